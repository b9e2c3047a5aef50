"""Whether an image would be answered: asked of the endpoint itself, and told over HTTP.

Triton's own health goes on saying ready when a model's process is dead: no answer for a probe.
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
BUSY_REASONS = (SATURATED, LATE)  # of a server that has too much to do, and of one that hangs
_DECODED = re.compile(r"^yolov5_decode_seconds_count(?:{.*?})? ([0-9.e+]+)$", re.MULTILINE)
_CACHE_SECONDS = 1.0  # seconds that a finding holds
_CANARY_TIMEOUT = 2.0  # seconds for an image of one pixel, at the least
_FIRST_CANARY_TIMEOUT = 20.0  # the same for the first one of a server
_LIVE_SECONDS = 60.0  # without health; then the launcher itself should be restarted


class Statistics:
    """
    Args:
        before: images that had been answered before.
        batch: images that a step takes at once, at the most.

    Attributes:
        answered: images that the endpoint has answered with detections.
        has_grown: `answered` is more than `before`.
        canary_timeout: seconds for an image of one pixel. A network that is slow on this machine is
            not dead: the image may have to wait for a batch, and for another one before that.

    Raises:
        OSError, HTTPException, ValueError, KeyError, TypeError: Triton does not say.
    """

    def __init__(self, base: str, *, before: int, batch: int) -> None:
        # Not of the steps, which are closed to callers.
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
    """What is known of the service, for the launcher and for probes. Threads may share it."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._base = f"http://{settings.url(settings.http_port)}/v2"
        self._metrics = f"http://{settings.url(settings.metrics_port)}/metrics"
        self._batch = read_config(settings.repository, ENSEMBLE).max_batch_size
        self._lock = threading.Lock()
        self._checking = threading.Lock()
        self._down_reason: str | None = "it is starting"  # by the launcher
        self._restart_at = float("-inf")  # when a pause before the next start ends
        self._cached_reason: str | None = None  # by asking
        self._checked_at = float("-inf")
        self._unhealthy_since: float | None = self._clock()
        self._answered = 0
        self._decoded = 0.0
        self._progress = self._clock()  # when an image was last known to be answered
        self._canary_timeout = _CANARY_TIMEOUT
        self.restarts: Counter[tuple[str, str]] = Counter()
        self.canaries: Counter[str] = Counter()

    def down(self, reason: str, *, pause: float = 0.0) -> None:
        """Say so until `up`, whatever the endpoint seems to do.

        Args:
            reason: a sentence.
            pause: seconds until the next start.
        """
        with self._lock:
            self._down_reason = reason
            self._restart_at = self._clock() + pause
            self._unhealthy_since = self._unhealthy_since or self._clock()

    def up(self) -> None:
        with self._lock:
            self._down_reason = self._cached_reason = self._unhealthy_since = None
            self._checked_at = float("-inf")
            self._answered, self._progress = 0, self._clock()

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
        """Seconds until the next start, while one is put off; else 0."""
        with self._lock:
            return self._remaining_pause()

    def _remaining_pause(self) -> float:
        return 0.0 if self._down_reason is None else max(0.0, self._restart_at - self._clock())

    def check(self) -> str | None:
        """Why an image would not be answered now; None where it would be.

        What was found less than a second ago counts, and so does an answer that any caller has
        got since then; else an image is sent.
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

    def hangs(self) -> str | None:
        """Why the server should be given up; one that is merely saturated should not."""
        with self._checking:
            with self._lock:
                fresh = self._clock() - self._checked_at < _CACHE_SECONDS
                if self._down_reason is not None or (fresh and self._cached_reason is None):
                    return None
            reason = self._refresh()
        if reason == SATURATED and self._clock() - self._progress < 2 * self._canary_timeout:
            return None
        return reason

    def progress(self) -> float:
        """Images that were decoded or answered so far, as far as Triton tells."""
        with (
            contextlib.suppress(OSError, HTTPException),
            open_directly(self._metrics, timeout=1) as answer,
        ):
            self._decoded = sum(map(float, _DECODED.findall(answer.read().decode())))
        return self._answered + self._decoded

    def _refresh(self) -> str | None:
        """Ask, and remember what was found; with `_checking` held."""
        found = self._probe()
        now = self._clock()
        with self._lock:
            self._cached_reason, self._checked_at = found, now
            if found is None:
                self._progress = now
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
                # Others may have been answered while this one had to wait.
                if self._statistics().has_grown:
                    return None
                raise
            self._answered += 1  # that was its own
            return None
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            return _sentence(error)

    def _statistics(self) -> Statistics:
        statistics = Statistics(self._base, before=self._answered, batch=self._batch)
        self._answered = statistics.answered
        return statistics

    def _send(self) -> None:
        """The canary: an image of one pixel through the endpoint."""
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
    """What Triton says of it, in brackets; it is what every caller is told."""
    try:
        return f" ({json.loads(error.read(1000))['error']})"
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return ""
