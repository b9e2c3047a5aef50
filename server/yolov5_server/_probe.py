"""Find out whether an endpoint would answer an image, by its statistics or by sending one."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException

from ._errors import StartError
from ._http import open_directly
from ._repository import endpoint_name, read_config
from ._settings import Settings

# One grey pixel, as PNG.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
SATURATED = "the server is saturated"
LATE = "the endpoint does not answer an image in time"
BUSY_REASONS = (SATURATED, LATE)  # of an overloaded server as well as of a hung one
_DECODED = re.compile(
    r"^yolov5_decode_seconds_count(?P<labels>{.*?})? (?P<value>[0-9.e+]+)$", re.MULTILINE
)
_DEFAULT_BATCH = 8  # images
_CANARY_TIMEOUT = 2.0  # seconds, at least, for the answer to an image of one pixel
_FIRST_CANARY_TIMEOUT = 20.0  # the same for the first image of a server


class Statistics:
    """Triton's statistics of an endpoint.

    Args:
        base: Triton's HTTP address up to `/v2`.
        endpoint: its name.
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

    def __init__(self, base: str, endpoint: str, *, before: int, batch: int) -> None:
        # Of the endpoint, because the steps are closed to callers.
        with open_directly(f"{base}/models/{endpoint}/stats", timeout=1) as answer:
            found = json.load(answer)["model_stats"][0]["inference_stats"]
        self.answered = found["success"]["count"]
        self.has_grown = self.answered > before
        compute = found["compute_infer"]
        mean = compute["ns"] / max(1, compute["count"]) / 1e9
        self.canary_timeout = max(
            _CANARY_TIMEOUT if self.answered else _FIRST_CANARY_TIMEOUT, 2 * batch * mean
        )


class EndpointProbe:
    """Probes one endpoint of a running server, and remembers the result.

    Args:
        settings: of the server.
        network: its name.
        canaries: counts the images of one pixel, `sent` and `failed`.
        clock: seconds, monotonic.

    Attributes:
        lock: held while the endpoint is probed.
        reason: why it did not answer at the last time; None if it did.
        probed_at: when that was.
        answered_at: when an image was last seen to be answered.
        has_answered: whether an image was ever seen to be answered.
        canary_timeout: seconds for an image of one pixel.
    """

    def __init__(
        self, settings: Settings, network: str, canaries: Counter[str], clock: Callable[[], float]
    ) -> None:
        self._endpoint = endpoint_name(network)
        self._label = f'model="{network}"'
        self._base = f"http://{settings.url(settings.http_port)}/v2"
        self._metrics = f"http://{settings.url(settings.metrics_port)}/metrics"
        self._batch = _DEFAULT_BATCH
        with contextlib.suppress(StartError):  # the endpoint was removed in this moment
            self._batch = read_config(settings.repository, self._endpoint).max_batch_size
        self._canaries = canaries
        self._clock = clock
        self._answered = 0
        self._decoded = 0.0
        self.lock = threading.Lock()
        self.reason: str | None = None
        self.probed_at = float("-inf")
        self.answered_at = clock()
        self.has_answered = False
        self.canary_timeout = _CANARY_TIMEOUT

    def probe(self) -> str | None:
        """Probe the endpoint. The caller holds `lock`.

        It is healthy if any caller has received an answer since the last time; if not, an image is
        sent.

        Returns:
            Why an image would not be answered; None if it would.
        """
        try:
            self._probe()
            reason = None
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            reason = _sentence(error)
        self.reason, self.probed_at = reason, self._clock()
        if reason is None:
            self.answered_at, self.has_answered = self.probed_at, True
        return reason

    def finished_images(self) -> float:
        """Number of images decoded or answered so far, as far as Triton tells."""
        with (
            contextlib.suppress(OSError, HTTPException),
            open_directly(self._metrics, timeout=1) as answer,
        ):
            self._decoded = sum(
                float(found["value"])
                for found in _DECODED.finditer(answer.read().decode())
                # Of the only model, it has no such label.
                if "model=" not in (labels := found["labels"] or "") or self._label in labels
            )
        return self._answered + self._decoded

    def _probe(self) -> None:
        statistics = self._statistics()
        if statistics.has_grown:
            return
        self.canary_timeout = statistics.canary_timeout
        try:
            self._send()
        except (OSError, HTTPException):
            # Images of other callers may have been answered while this one waited.
            if self._statistics().has_grown:
                return
            raise
        self._answered += 1  # the canary itself

    def _statistics(self) -> Statistics:
        statistics = Statistics(
            self._base, self._endpoint, before=self._answered, batch=self._batch
        )
        self._answered = statistics.answered
        return statistics

    def _send(self) -> None:
        """Send the canary, an image of one pixel, to the endpoint."""
        request = urllib.request.Request(
            f"{self._base}/models/{self._endpoint}/infer",
            PIXEL,
            {
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": "0",
            },
        )
        self._canaries["sent"] += 1
        try:
            open_directly(request, timeout=self.canary_timeout).close()
        except (OSError, HTTPException):
            self._canaries["failed"] += 1
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
