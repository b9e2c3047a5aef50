"""The queue in front of the network: how many images may wait, how long, and which are next.

Triton's own queue limits are not used. With them its dynamic batcher forgets a request that comes
while the model is busy with another, until the next one comes or half a second has passed
(https://github.com/triton-inference-server/core, `PriorityQueue::SupportPrefetching`).

Triton does not tell one caller from another, so the queue is fair by the size of requests. They are
admitted in order of arrival, except that a request of n images lets others pass until (n - 1)
eighths of the queue's capacity have been admitted after its arrival. Callers with batches therefore
do not keep callers with single images waiting, nor the other way round. For the same reason
requests with several images fill at most three quarters of the queue; and when single images fill
all of it, a quarter of its capacity is accepted beyond it for requests with several.

Admitted requests are counted in `in_flight.py`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition, Thread
from time import monotonic

from in_flight import InFlight

_MIN_PAUSE = 0.01  # seconds between two checks for expired requests, at least
_LARGEST_REQUEST = 8  # images; Triton's max_batch_size
_RESERVE_DIVISOR = 4  # capacity divided by this is kept for each kind of request
_DOWN_FACTOR = 4  # the network counts as down when this many times the capacity is lost in a row


class QueueFullError(Exception):
    """The queue has no room for the request; one sentence."""


@dataclass(frozen=True, kw_only=True)
class QueuedRequest:
    """A request, and what to call at the end of its wait.

    Attributes:
        images: how many it has.
        deadline: until when it may wait, by `time.monotonic()`.
        on_admit: called with the admission id, on any thread; must not raise, nor take long.
        on_expire: called instead when the deadline has passed.
    """

    images: int
    deadline: float
    on_admit: Callable[[int], None]
    on_expire: Callable[[], None]


class AdmissionQueue:
    """Admits requests in turn, expires those that wait too long, and refuses those that do not fit.

    Args:
        capacity: images that may wait; see above for requests with several.
        max_in_flight: requests wait while this many images are in flight.
    """

    def __init__(self, *, capacity: int, max_in_flight: int) -> None:
        self._capacity = capacity
        self._max_in_flight = max_in_flight
        self._reserve = capacity // _RESERVE_DIVISOR
        self._in_flight = InFlight(down_after=_DOWN_FACTOR * capacity)
        # In order of admission: turn, number of arrival, request.
        self._queue: list[tuple[int, int, QueuedRequest]] = []
        self._arrivals = 0  # requests
        self._queued = 0  # images
        self._queued_in_batches = 0  # images of requests with several; included in `_queued`
        self._idle = False  # whether the thread sleeps until a request waits
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="admission queue", daemon=True)
        self._thread.start()

    def submit(self, request: QueuedRequest) -> None:
        """Admit the request at once, or have it wait for its turn.

        Raises:
            QueueFullError: the queue is full. An empty queue accepts a request of any size.
        """
        with self._changed:
            self._check_capacity(request.images)
            self._arrivals += 1
            passed_by = (request.images - 1) * self._capacity // _LARGEST_REQUEST
            turn = self._in_flight.admitted_images + passed_by
            insort(self._queue, (turn, self._arrivals, request))
            self._add_queued(request, 1)
        self._dispatch()
        with self._changed:
            if self._queue and self._idle:
                self._changed.notify()  # the thread has to watch the deadline from now on

    def complete(self, admission_id: int) -> None:
        """Retire this request and every one admitted before it: the network is done with them.

        If a later request overtakes an earlier one, the earlier is retired a moment too soon.
        """
        with self._changed:
            changed = self._in_flight.complete(admission_id)
        if changed:
            self._dispatch()

    def release(self, admission_id: int) -> None:
        """Retire this request alone: it does not go on to the network."""
        with self._changed:
            self._in_flight.release(admission_id)
        self._dispatch()

    def close(self) -> None:
        """Admit all requests that wait, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _check_capacity(self, images: int) -> None:
        if not self._queued:
            return
        batch_images = self._queued_in_batches + images
        if images > 1 and batch_images <= self._reserve:
            return
        sentence = f"saturated: the queue of {self._capacity} images has no room for {images} more"
        if self._queued + images > self._capacity:
            raise QueueFullError(sentence)
        if images > 1 and batch_images > self._capacity - self._reserve:
            raise QueueFullError(f"{sentence} in requests with several")

    def _dispatch(self) -> None:
        """Admit requests while it is their turn.

        On the calling thread: waking another one is slower.
        """
        while True:
            with self._changed:
                if not self._queue:
                    return
                entry = self._queue[0]
                *_, request = entry
                if request.deadline < monotonic():
                    self._changed.notify()  # the thread expires it, and dispatches again
                    return
                if not self._may_admit():
                    return
                self._dequeue(entry)
                admission_id = self._in_flight.admit(request.images)
            request.on_admit(admission_id)

    def _may_admit(self) -> bool:
        """Whether there is room in flight, perhaps because requests are presumed lost."""
        return (
            self._closed
            or self._in_flight.images < self._max_in_flight
            or self._in_flight.give_up_overdue()
        )

    def _run(self) -> None:
        """Expire requests, and admit those that wait for lost ones."""
        while True:
            with self._changed:
                expired = self._take_expired()
            for request in expired:
                request.on_expire()
            self._dispatch()
            with self._changed:
                if self._closed:
                    if not self._queue:
                        return
                    continue
                self._idle = not self._queue
                self._changed.wait(None if self._idle else self._pause())
                self._idle = False

    def _take_expired(self) -> list[QueuedRequest]:
        now = monotonic()
        expired = [entry for entry in self._queue if entry[-1].deadline < now]
        for entry in expired:
            self._dequeue(entry)
        return [request for *_, request in expired]

    def _pause(self) -> float:
        """Seconds until a request expires, or those in flight may be presumed lost."""
        next_deadline = min(entry[-1].deadline for entry in self._queue)
        return min(self._in_flight.timeout(), max(_MIN_PAUSE, next_deadline - monotonic()))

    def _dequeue(self, entry: tuple[int, int, QueuedRequest]) -> None:
        self._queue.remove(entry)
        self._add_queued(entry[-1], -1)

    def _add_queued(self, request: QueuedRequest, sign: int) -> None:
        self._queued += sign * request.images
        if request.images > 1:
            self._queued_in_batches += sign * request.images
