"""How requests end, and which of them have not ended yet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import Generic, TypeVar

# With postprocess; refused for its image or a parameter; no room in the queue; waited too long; a
# fault in preprocess; not come to postprocess, as the network failed or the caller hung up.
ANSWERED, REJECTED, SHED = "answered", "rejected", "shed"
EXPIRED, FAILED, LOST = "expired", "failed", "lost"
OUTCOMES = (ANSWERED, REJECTED, SHED, EXPIRED, FAILED, LOST)

_LOST_AFTER = 60.0  # seconds; then the launcher takes a network that finishes nothing for hung

T = TypeVar("T")


class RequestTimer:
    """Tells how a request has ended, and how long it took.

    Args:
        started: when the request arrived, by `time.monotonic()`.
        count: called with its outcome and the seconds since then.
    """

    def __init__(self, started: float, count: Callable[[str, float], None]) -> None:
        self._started = started
        self._count = count

    def stop(self, outcome: str) -> None:
        self._count(outcome, monotonic() - self._started)


class PendingRequests(Generic[T]):
    """The requests that have been handed on to the network, until `postprocess` has them."""

    def __init__(self) -> None:
        self._pending: OrderedDict[int, tuple[float, T]] = OrderedDict()  # time, oldest first
        self._lock = Lock()

    def add(self, admission_id: int, request: T) -> None:
        with self._lock:
            self._pending[admission_id] = monotonic(), request

    def take(self, admission_id: int) -> T | None:
        """Take this request out; None if it is not pending."""
        with self._lock:
            _, request = self._pending.pop(admission_id, (0.0, None))
        return request

    def take_lost(self) -> list[T]:
        """Take out the requests that have been pending for so long that they are lost."""
        lost = []
        before = monotonic() - _LOST_AFTER
        with self._lock:
            while self._pending:
                admission_id, (since, request) = next(iter(self._pending.items()))
                if since > before:
                    break
                del self._pending[admission_id]
                lost.append(request)
        return lost
