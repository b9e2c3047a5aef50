"""Find out whether the endpoint would answer an image, by its statistics or by sending one.

Triton's own readiness is of no use for probes: it stays "ready" when a model's process is dead.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException
from math import ceil

from ._http import open_directly
from ._repository import ENSEMBLE, read_config
from ._settings import Settings

# One grey pixel, as PNG.
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
SATURATED = "the server is saturated"
LATE = "the endpoint does not answer an image in time"
BUSY_REASONS = (SATURATED, LATE)  # of an overloaded server as well as of a hung one
_DECODED = re.compile(r"^yolov5_decode_seconds_count(?:{.*?})? ([0-9.e+]+)$", re.MULTILINE)
_CACHE_SECONDS = 1.0  # that a result stays valid
_CANARY_TIMEOUT = 2.0  # seconds, at least, for the answer to an image of one pixel
_FIRST_CANARY_TIMEOUT = 20.0  # the same for the first image of a server
_LIVE_SECONDS = 60.0  # without health; then the launcher itself should be restarted


class Statistics:
    """Triton's statistics of the endpoint.

    Args:
        base: Triton's HTTP address up to `/v2`.
        before: number of images that were answered at the last time.
        batch: largest batch of a step.

    Attributes:
        answered: number of images that the endpoint has answered with detections.
        has_grown: `answered` is more than `before`.
        canary_timeout: seconds for an image of one pixel. A network that is slow on this machine is
            not dead: the image may have to wait for a batch, and for another one before that.

    Raises:
        OSError, HTTPException, ValueError, KeyError, TypeError: Triton does not tell.
    """

    def __init__(self, base: str, *, before: int, batch: int) -> None:
        # Of the endpoint, because the steps are closed to callers.
        with open_directly(f"{base}/models/{ENSEMBLE}/stats", timeout=1) as answer:
            found = json.load(answer)["model_stats"][0]["inference_stats"]
        self.answered = found["success"]["count"]
        self.has_grown = self.answered > before
        compute = found["compute_infer"]
        mean = compute["ns"] / max(1, compute["count"]) / 1e9
        self.canary_timeout = max(
            _CANARY_TIMEOUT if self.answered else _FIRST_CANARY_TIMEOUT, 2 * batch * mean
        )


class Health:
    """The health of the service, for the launcher and for probes. Threads may share it.

    Attributes:
        restarts: restarts so far, by what failed and the reason.
        canaries: images of one pixel so far, `sent` and `failed`.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._base = f"http://{settings.url(settings.http_port)}/v2"
        self._metrics = f"http://{settings.url(settings.metrics_port)}/metrics"
        self._batch = read_config(settings.repository, ENSEMBLE).max_batch_size
        self._lock = threading.Lock()
        self._checking = threading.Lock()
        self._down_reason: str | None = "it is starting"  # set by the launcher
        self._restart_at = float("-inf")  # when the pause before the next start ends
        self._cached_reason: str | None = None  # result of the last check
        self._checked_at = float("-inf")
        self._unhealthy_since: float | None = self._clock()
        self._answered = 0
        self._decoded = 0.0
        self._answered_at = self._clock()  # when an image was last seen to be answered
        self._canary_timeout = _CANARY_TIMEOUT
        self.restarts: Counter[tuple[str, str]] = Counter()
        self.canaries: Counter[str] = Counter()

    def down(self, reason: str, *, pause: float = 0.0) -> None:
        """Report the service as down until `up` is called, whatever the endpoint answers.

        Args:
            reason: a sentence.
            pause: seconds until the next start.
        """
        with self._lock:
            self._down_reason = reason
            self._restart_at = self._clock() + pause
            self._unhealthy_since = self._unhealthy_since or self._clock()

    def up(self) -> None:
        """Report the health of the endpoint from now on."""
        with self._lock:
            self._down_reason = self._cached_reason = self._unhealthy_since = None
            self._checked_at = float("-inf")
            self._answered, self._answered_at = 0, self._clock()

    @property
    def is_live(self) -> bool:
        """Whether the launcher may still repair the service by itself."""
        with self._lock:
            if self._unhealthy_since is None:
                return True
            # The launcher chose the pause: restarting it then would only lengthen the wait.
            unhealthy = self._clock() - max(self._unhealthy_since, self._restart_at)
            return unhealthy <= _LIVE_SECONDS

    @property
    def pause(self) -> float:
        """Seconds until the next start; 0 if none is being delayed."""
        with self._lock:
            return self._remaining_pause()

    def _remaining_pause(self) -> float:
        return 0.0 if self._down_reason is None else max(0.0, self._restart_at - self._clock())

    def check(self) -> str | None:
        """Check whether an image would be answered now.

        A result of less than a second ago is reused. Otherwise the service is healthy if any caller
        has received an answer since then; if not, an image is sent.

        Returns:
            Why an image would not be answered; None if it would.
        """
        with self._checking:
            with self._lock:
                if self._down_reason is not None:
                    if pause := self._remaining_pause():
                        return f"{self._down_reason} Starting Triton again in {ceil(pause)} s."
                    return self._down_reason
                if self._clock() - self._checked_at < _CACHE_SECONDS:
                    return self._cached_reason
            return self._refresh()

    def unanswered_reason(self) -> str | None:
        """Why the server may have to be ended; None for a healthy or merely saturated server."""
        with self._checking:
            with self._lock:
                fresh = self._clock() - self._checked_at < _CACHE_SECONDS
                if self._down_reason is not None or (fresh and self._cached_reason is None):
                    return None
            reason = self._refresh()
        if reason == SATURATED and self._clock() - self._answered_at < 2 * self._canary_timeout:
            return None
        return reason

    def finished_images(self) -> float:
        """Number of images decoded or answered so far, as far as Triton tells."""
        with (
            contextlib.suppress(OSError, HTTPException),
            open_directly(self._metrics, timeout=1) as answer,
        ):
            self._decoded = sum(map(float, _DECODED.findall(answer.read().decode())))
        return self._answered + self._decoded

    def _refresh(self) -> str | None:
        """Check the endpoint and store the result. The caller holds `_checking`."""
        found = self._probe()
        now = self._clock()
        with self._lock:
            self._cached_reason, self._checked_at = found, now
            if found is None:
                self._answered_at = now
                self._unhealthy_since = None if self._down_reason is None else self._unhealthy_since
            else:
                self._unhealthy_since = self._unhealthy_since or now
        return found

    def _probe(self) -> str | None:
        try:
            statistics = self._statistics()
            if statistics.has_grown:
                return None
            self._canary_timeout = statistics.canary_timeout
            try:
                self._send()
            except (OSError, HTTPException):
                # Images of other callers may have been answered while this one waited.
                if self._statistics().has_grown:
                    return None
                raise
            self._answered += 1  # the canary itself
            return None
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            return _sentence(error)

    def _statistics(self) -> Statistics:
        statistics = Statistics(self._base, before=self._answered, batch=self._batch)
        self._answered = statistics.answered
        return statistics

    def _send(self) -> None:
        """Send the canary, an image of one pixel, to the endpoint."""
        request = urllib.request.Request(
            f"{self._base}/models/{ENSEMBLE}/infer",
            _PIXEL,
            {
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": "0",
            },
        )
        self.canaries["sent"] += 1
        try:
            open_directly(request, timeout=self._canary_timeout).close()
        except (OSError, HTTPException):
            self.canaries["failed"] += 1
            raise


def _sentence(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        if error.code == 503:
            return SATURATED
        return f"the endpoint answers an image with HTTP {error.code}{_message(error)}"
    if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
        return LATE
    return "Triton does not answer"


def _message(error: urllib.error.HTTPError) -> str:
    """Triton's own message in brackets, which callers get as well."""
    try:
        return f" ({json.loads(error.read(1000))['error']})"
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return ""
