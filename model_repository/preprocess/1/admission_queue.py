"""The queue in front of the networks: how many images may wait, how long, and which are next.

Triton's own queue limits are not used. With them its dynamic batcher forgets a request that comes
while the model is busy with another, until the next one comes or half a second has passed
(https://github.com/triton-inference-server/core, `PriorityQueue::SupportPrefetching`).

Triton does not tell one caller from another, so the queue is fair to networks, and by the size of
requests: `fair_queue.py` says how. This module adds the thread that watches deadlines, and the
calls at the end of a wait.
"""

from __future__ import annotations

from threading import Condition, Thread
from time import monotonic

from cpu_count import available_cpus
from fair_queue import FairQueue
from load_signals import Load
from network_queue import QueuedRequest
from queue_capacity import QueueFullError

__all__ = ["AdmissionQueue", "QueueFullError", "QueuedRequest"]

_MIN_PAUSE = 0.01  # seconds between two checks for expired requests, at least


class AdmissionQueue:
    """Admits requests in turn, expires those that wait too long, and refuses those that do not fit.

    Args:
        capacity: images that may wait; see `queue_capacity.py` for requests with several.
        max_in_flight: requests wait while this many images are in flight.
        cores: that the networks share; all available ones unless given.
    """

    def __init__(self, *, capacity: int, max_in_flight: int, cores: int | None = None) -> None:
        self._queue = FairQueue(
            capacity=capacity, max_in_flight=max_in_flight, cores=cores or available_cpus()
        )
        self._idle = False  # whether the thread sleeps until a request waits
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="admission queue", daemon=True)
        self._thread.start()

    def submit(self, request: QueuedRequest) -> None:
        """Admit the request at once, or have it wait for its turn.

        Raises:
            QueueFullError: the queue is full, and no other network has more than its share of it.
        """
        with self._changed:
            evicted = self._queue.add(request)
        for other in evicted:
            other.on_evict(self._queue.evicted)
        self._dispatch()
        with self._changed:
            if self._queue.waiting and self._idle:
                self._changed.notify()  # the thread has to watch the deadline from now on

    def hand_on(self, admission_id: int) -> None:
        """Note that this request has been prepared, and goes on to its network."""
        with self._changed:
            self._queue.hand_on(admission_id)

    def complete(self, admission_id: int) -> None:
        """Retire this request and those of its network admitted before it: it is done with them.

        If a later request overtakes an earlier one, the earlier is retired a moment too soon.
        """
        with self._changed:
            changed = self._queue.complete(admission_id)
        if changed:
            self._dispatch()

    def release(self, admission_id: int) -> None:
        """Retire this request alone: it does not go on to the network."""
        with self._changed:
            self._queue.release(admission_id)
        self._dispatch()

    def read_load(self) -> dict[str, Load]:
        """The load of each network, for the metrics. Call it once a second."""
        with self._changed:
            return self._queue.read_load()

    def close(self) -> None:
        """Admit all requests that wait, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _dispatch(self) -> None:
        """Admit requests while it is their turn.

        On the calling thread: waking another one is slower.
        """
        while True:
            with self._changed:
                network = self._queue.next_network(unbounded=self._closed)
                if network is None:
                    return
                if network.entries[0][-1].deadline < monotonic():
                    self._changed.notify()  # the thread expires it, and dispatches again
                    return
                request, admission_id = self._queue.admit(network)
            request.on_admit(admission_id)

    def _run(self) -> None:
        """Expire requests, and admit those that wait for lost ones."""
        while True:
            with self._changed:
                expired = self._queue.take_expired()
            for request in expired:
                request.on_expire()
            self._dispatch()
            with self._changed:
                if self._closed:
                    if not self._queue.waiting:
                        return
                    continue
                self._idle = not self._queue.waiting
                self._changed.wait(None if self._idle else self._pause())
                self._idle = False

    def _pause(self) -> float:
        """Seconds until a request expires, or those in flight may be presumed lost."""
        next_deadline = min(
            entry[-1].deadline for network in self._queue.waiting for entry in network.entries
        )
        return min(self._queue.timeout(), max(_MIN_PAUSE, next_deadline - monotonic()))
