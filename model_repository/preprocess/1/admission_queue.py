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
_FIRST, _LEAST, _MOST = 1.0, 0.05, 3.0  # seconds
_SOON = 0.01  # seconds between two looks, at least
_WHEN_DOWN = 1.0  # and at least, while the network is down
_USUAL = 4  # times what it usually takes
_LARGEST = 8  # images of a request, Triton's max_batch_size
_REMEMBERED = 1000  # requests taken for lost
_RESERVE = 4  # the part of the queue that is kept for each kind of request, as a divisor
_DOWN = 4  # times as many images lost in a row as may wait: then the network is down


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
        self._reserve = capacity // _RESERVE
        # In the order in which they are admitted: turn, number of arrival, request.
        self._requests: list[tuple[int, int, Request]] = []
        self._arrived = 0  # requests
        self._waiting = 0  # images
        self._waiting_in_batches = 0  # of these, images of requests with several
        self._last_id = 0  # of the last that began: the images that have begun until then
        self._begun: dict[
            int, tuple[int, float]
        ] = {}  # on their way, by admission id: images, since when
        self._missing: dict[int, float] = {}  # taken for lost, by admission id: since when
        self._in_flight = 0  # images
        self._heard = 0.0  # when the last report came
        self._usual = _FIRST / _USUAL  # seconds from one report to the next
        self._lost = 0  # images since the last report
        self._asleep = False  # the thread, until somebody waits
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._serve, name="admission queue", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Admit the request at once, or have it wait for its turn.

        Raises:
            QueueFullError: too many do already. A request that nobody is before is never too large.
        """
        with self._changed:
            self._check_capacity(request.images)
            self._arrived += 1
            turn = self._last_id + (request.images - 1) * self._capacity // _LARGEST
            insort(self._requests, (turn, self._arrived, request))
            self._count(request, 1)
        self._let_go()
        with self._changed:
            if self._requests and self._asleep:
                self._changed.notify()  # from now on somebody has to look at the time

    def _check_capacity(self, images: int) -> None:
        batches = self._waiting_in_batches + images
        if not self._waiting or (images > 1 and batches <= self._reserve):
            return
        if self._waiting + images > self._capacity:
            raise QueueFullError(f"saturated: no more than {self._capacity} images may wait")
        for_batches = self._capacity - self._reserve
        if images > 1 and batches > for_batches:
            raise QueueFullError(
                f"saturated: no more than {for_batches} images may wait in requests with several"
            )

    def _count(self, request: Request, sign: int) -> None:
        self._waiting += sign * request.images
        if request.images > 1:
            self._waiting_in_batches += sign * request.images

    def complete(self, admission_id: int) -> None:
        """The request with this admission id has left the network behind it, and all before it."""
        with self._changed:
            if admission_id > self._last_id:
                return
            passed = [begun for begun in self._begun if begun <= admission_id]
            # If it was taken for lost, it was slow: the next ones are given more time.
            slow = self._missing.get(admission_id)
            for missing in [missing for missing in self._missing if missing <= admission_id]:
                del self._missing[missing]
            if not passed and slow is None:
                return
            now = monotonic()
            since = self._begun[passed[0]][1] if slow is None else slow
            taken = now - max(self._heard, since)
            self._usual = self._usual + 0.2 * (taken - self._usual) if slow is None else taken
            self._heard, self._lost = now, 0
            for begun in passed:
                self._forget(begun)
        self._let_go()

    def release(self, admission_id: int) -> None:
        """The request with this admission id goes no further."""
        with self._changed:
            if admission_id in self._begun:
                self._forget(admission_id)
        self._let_go()

    def _forget(self, admission_id: int) -> None:
        images, _ = self._begun.pop(admission_id)
        self._in_flight -= images

    def _let_go(self) -> None:
        """Begin those whose turn it is, on the thread that knows of it: to wake another takes
        longer."""
        while True:
            with self._changed:
                if not self._requests:
                    return
                if self._requests[0][-1].deadline < monotonic():
                    self._changed.notify()  # the thread refuses it, and goes on with the next
                    return
                *_, request = self._requests[0]
                admission_id = self._first()
            if admission_id is None:
                return
            request.on_admit(admission_id)

    def close(self) -> None:
        """Let all that wait go, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                expired = self._take_expired()
            for request in expired:
                request.on_expire()
            self._let_go()
            with self._changed:
                if self._closed:
                    if not self._requests:
                        return
                    continue
                self._asleep = not self._requests
                self._changed.wait(None if self._asleep else self._pause())
                self._asleep = False

    def _take_expired(self) -> list[Request]:
        now = monotonic()
        expired = [waiting for waiting in self._requests if waiting[-1].deadline < now]
        for waiting in expired:
            self._take(waiting)
        return [request for *_, request in expired]

    def _first(self) -> int | None:
        """The admission id of the first that waits, who waits no longer; None if he has to."""
        if not self._requests or not (self._closed or self._may_go()):
            return None
        *_, request = self._requests[0]
        self._take(self._requests[0])
        self._last_id += request.images
        self._begun[self._last_id] = (request.images, monotonic())
        self._in_flight += request.images
        return self._last_id

    def _may_go(self) -> bool:
        if self._in_flight < self._max_in_flight:
            return True
        _, last = [*self._begun.values()][-1]
        if monotonic() - max(self._heard, last) < self._patience():
            return False
        self._lost += self._in_flight
        self._missing.update((lost, since) for lost, (_, since) in self._begun.items())
        for admission_id in [*self._missing][:-_REMEMBERED]:
            del self._missing[admission_id]
        self._begun.clear()
        self._in_flight = 0
        return True

    def _patience(self) -> float:
        least = _WHEN_DOWN if self._lost >= _DOWN * self._capacity else _LEAST
        return min(_MOST, max(least, _USUAL * self._usual))

    def _pause(self) -> float:
        """Seconds until a request may have waited too long, or a report for too long."""
        next_deadline = min(waiting[-1].deadline for waiting in self._requests)
        return min(self._patience(), max(_SOON, next_deadline - monotonic()))

    def _take(self, waiting: tuple[int, int, Request]) -> None:
        self._requests.remove(waiting)
        self._count(waiting[-1], -1)
