"""The queue of requests in front of the network: how many may wait, how long, and who is next.

Triton's own queue limits are not used. With them its dynamic batcher forgets a request that comes
while the model is busy with another, until the next one comes or half a second has passed
(https://github.com/triton-inference-server/core, `PriorityQueue::SupportPrefetching`).

Nothing that Triton hands over tells one caller from another, so the queue is fair by the size of
requests. They are admitted in order of arrival, except that a request of n images lets others pass
until (n - 1) eighths of the queue's capacity have been admitted after its arrival. So callers with
batches do not keep callers with single images waiting, nor the other way round. For the same reason
neither kind can fill the queue: a quarter of it is kept for single images, and requests with
several may go a quarter beyond it.

Nothing tells this first step how many images the later ones still hold, which bounds their memory.
So every request takes an admission id along, and the last step reports it. Some never get there:
Triton drops a request between two steps when its caller has gone, and tells nobody. What began
before a reported one is therefore no longer counted; and when no report comes for several times as
long as one usually takes, all that are on their way are taken for lost.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition, Thread
from time import monotonic

# How long a report is waited for: until there has been one, at least, and at most. A batch of 8
# takes seconds on a slow machine: one taken for lost too early lets others in, out of turn. But
# when callers have gone, nothing is done for that long.
_FIRST_TIMEOUT, _MIN_TIMEOUT, _MAX_TIMEOUT = 1.0, 0.05, 3.0  # seconds
_MIN_PAUSE = 0.01  # seconds between two looks, at least
_MIN_TIMEOUT_WHEN_DOWN = 1.0  # and at least, while the network is down
_TIMEOUT_FACTOR = 4  # times what it usually takes
_LARGEST_REQUEST = 8  # images of a request, Triton's max_batch_size
_REMEMBERED = 1000  # requests taken for lost
_RESERVE_DIVISOR = 4  # the part of the queue that is kept for each kind of request, as a divisor
_DOWN_FACTOR = 4  # times as many images lost in a row as may wait: then the network is down


class QueueFullError(Exception):
    """No more may wait; one sentence."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """
    Attributes:
        images: how many it has.
        deadline: of `time.monotonic()`, until which it may wait.
        on_admit: called with its admission id when it is its turn, on any thread; must not raise,
            nor take long.
        on_expire: called in place of `on_admit` when it has waited too long.
    """

    images: int
    deadline: float
    on_admit: Callable[[int], None]
    on_expire: Callable[[], None]


class AdmissionQueue:
    """
    Args:
        capacity: images that may wait; see above for requests with several.
        max_in_flight: images that may be on their way at the same time.
    """

    def __init__(self, *, capacity: int, max_in_flight: int) -> None:
        self._capacity = capacity
        self._max_in_flight = max_in_flight
        self._reserve = capacity // _RESERVE_DIVISOR
        # In the order in which they are admitted: turn, number of arrival, request.
        self._queue: list[tuple[int, int, Request]] = []
        self._arrivals = 0  # requests
        self._queued = 0  # images
        self._queued_in_batches = 0  # of these, images of requests with several
        self._last_id = 0  # of the last that began: the images that have begun until then
        self._admitted: dict[
            int, tuple[int, float]
        ] = {}  # on their way, by admission id: images, since when
        self._presumed_lost: dict[int, float] = {}  # taken for lost, by admission id: since when
        self._in_flight = 0  # images
        self._last_completion = 0.0  # when the last report came
        self._usual_interval = (
            _FIRST_TIMEOUT / _TIMEOUT_FACTOR
        )  # seconds from one report to the next
        self._lost_images = 0  # images since the last report
        self._idle = False  # the thread, until somebody waits
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="admission queue", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Admit the request at once, or have it wait for its turn.

        Raises:
            QueueFullError: too many do already. A request that nobody is before is never too large.
        """
        with self._changed:
            self._check_capacity(request.images)
            self._arrivals += 1
            turn = self._last_id + (request.images - 1) * self._capacity // _LARGEST_REQUEST
            insort(self._queue, (turn, self._arrivals, request))
            self._add_queued(request, 1)
        self._dispatch()
        with self._changed:
            if self._queue and self._idle:
                self._changed.notify()  # from now on somebody has to look at the time

    def _check_capacity(self, images: int) -> None:
        batches = self._queued_in_batches + images
        if not self._queued or (images > 1 and batches <= self._reserve):
            return
        if self._queued + images > self._capacity:
            raise QueueFullError(f"saturated: no more than {self._capacity} images may wait")
        for_batches = self._capacity - self._reserve
        if images > 1 and batches > for_batches:
            raise QueueFullError(
                f"saturated: no more than {for_batches} images may wait in requests with several"
            )

    def _add_queued(self, request: Request, sign: int) -> None:
        self._queued += sign * request.images
        if request.images > 1:
            self._queued_in_batches += sign * request.images

    def complete(self, admission_id: int) -> None:
        """The request with this admission id has left the network behind it, and all before it."""
        with self._changed:
            if admission_id > self._last_id:
                return
            passed = [begun for begun in self._admitted if begun <= admission_id]
            # If it was taken for lost, it was slow: the next ones are given more time.
            slow = self._presumed_lost.get(admission_id)
            for missing in [missing for missing in self._presumed_lost if missing <= admission_id]:
                del self._presumed_lost[missing]
            if not passed and slow is None:
                return
            now = monotonic()
            since = self._admitted[passed[0]][1] if slow is None else slow
            taken = now - max(self._last_completion, since)
            self._usual_interval = (
                self._usual_interval + 0.2 * (taken - self._usual_interval)
                if slow is None
                else taken
            )
            self._last_completion, self._lost_images = now, 0
            for begun in passed:
                self._retire(begun)
        self._dispatch()

    def release(self, admission_id: int) -> None:
        """The request with this admission id goes no further."""
        with self._changed:
            if admission_id in self._admitted:
                self._retire(admission_id)
        self._dispatch()

    def _retire(self, admission_id: int) -> None:
        images, _ = self._admitted.pop(admission_id)
        self._in_flight -= images

    def _dispatch(self) -> None:
        """Begin those whose turn it is, on the thread that knows of it: to wake another takes
        longer."""
        while True:
            with self._changed:
                if not self._queue:
                    return
                if self._queue[0][-1].deadline < monotonic():
                    self._changed.notify()  # the thread refuses it, and goes on with the next
                    return
                *_, request = self._queue[0]
                admission_id = self._admit_first()
            if admission_id is None:
                return
            request.on_admit(admission_id)

    def close(self) -> None:
        """Let all that wait go, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
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

    def _take_expired(self) -> list[Request]:
        now = monotonic()
        expired = [waiting for waiting in self._queue if waiting[-1].deadline < now]
        for waiting in expired:
            self._dequeue(waiting)
        return [request for *_, request in expired]

    def _admit_first(self) -> int | None:
        """The admission id of the first that waits, who waits no longer; None if he has to."""
        if not self._queue or not (self._closed or self._may_admit()):
            return None
        *_, request = self._queue[0]
        self._dequeue(self._queue[0])
        self._last_id += request.images
        self._admitted[self._last_id] = (request.images, monotonic())
        self._in_flight += request.images
        return self._last_id

    def _may_admit(self) -> bool:
        if self._in_flight < self._max_in_flight:
            return True
        _, last = [*self._admitted.values()][-1]
        if monotonic() - max(self._last_completion, last) < self._completion_timeout():
            return False
        self._lost_images += self._in_flight
        self._presumed_lost.update((lost, since) for lost, (_, since) in self._admitted.items())
        for admission_id in [*self._presumed_lost][:-_REMEMBERED]:
            del self._presumed_lost[admission_id]
        self._admitted.clear()
        self._in_flight = 0
        return True

    def _completion_timeout(self) -> float:
        least = (
            _MIN_TIMEOUT_WHEN_DOWN
            if self._lost_images >= _DOWN_FACTOR * self._capacity
            else _MIN_TIMEOUT
        )
        return min(_MAX_TIMEOUT, max(least, _TIMEOUT_FACTOR * self._usual_interval))

    def _pause(self) -> float:
        """Seconds until a request may have waited too long, or a report for too long."""
        next_deadline = min(waiting[-1].deadline for waiting in self._queue)
        return min(self._completion_timeout(), max(_MIN_PAUSE, next_deadline - monotonic()))

    def _dequeue(self, waiting: tuple[int, int, Request]) -> None:
        self._queue.remove(waiting)
        self._add_queued(waiting[-1], -1)
