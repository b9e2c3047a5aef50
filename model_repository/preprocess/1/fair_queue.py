"""Which request is next: the bookkeeping of the queue, without threads.

All networks of a server share its cores and its memory, and so they share one queue. Three rules
keep the callers of one network from starving those of another:

- `queue_capacity.py` bounds how much of a full queue a network may hold.
- The next request is one of the network that has used least of the cores, for its weight
  (`fair_share.py`). But none waits for its turn for much longer than ten seconds, however small its
  weight is: its requests would expire, and the launcher would take it for hung.
- The last place in flight is left to a network that has nothing in flight, if one was served within
  the last second: it need not wait until another network, perhaps a slow one, finishes an image.
  And while others wait, a network whose requests get lost has only its share of the places.

Within a network, requests are admitted in order of arrival, except that a request of n images lets
others pass until (n - 1) eighths of the queue's capacity have been admitted after its arrival.
Callers with batches therefore do not keep callers with single images waiting, nor the other way
round.
"""

from __future__ import annotations

from collections.abc import Collection
from time import monotonic

from fair_share import FairShare
from in_flight import MIN_TIMEOUT, AllInFlight, InFlight
from load_signals import Load, LoadSignals
from network_queue import Entry, NetworkQueue, QueuedRequest
from queue_capacity import QueueCapacity, QueueFullError

_LARGEST_REQUEST = 8  # images; Triton's max_batch_size
_DOWN_FACTOR = 4  # a network counts as down when this many times the capacity is lost in a row
_RECENT = 1.0  # seconds for which a place is kept for a network after its last request
_LONGEST_WAIT = 10.0  # seconds for a turn; requests expire after 20
_REMEMBERED = 64  # idle networks of which the usual times are remembered


class FairQueue:
    """The requests of all networks. Not thread-safe.

    Args:
        capacity: images that may wait; see `queue_capacity.py` for requests with several.
        max_in_flight: requests wait while this many images are in flight.
        cores: how many threads can run at the same time.
    """

    def __init__(self, *, capacity: int, max_in_flight: int, cores: int) -> None:
        self._capacity = capacity
        self._room = QueueCapacity(capacity)
        self._max_in_flight = max_in_flight
        self._in_flight = AllInFlight()
        self._cores = cores
        self._share = FairShare(cores)
        self._load = LoadSignals(parallel=min(cores, max_in_flight), now=self._share.time)
        self._arrivals = 0  # requests
        self._overdue_at = float("inf")  # before this, nothing can be presumed lost
        self._networks: dict[str, NetworkQueue] = {}
        self._waiting: dict[str, NetworkQueue] = {}  # those of them with requests that wait
        self._idle: dict[str, float] = {}  # those with no requests, and since when

    @property
    def waiting(self) -> Collection[NetworkQueue]:
        """The queues with requests that wait."""
        return self._waiting.values()

    def in_flight(self, network: str) -> InFlight:
        """What this network has in flight."""
        return self._get(network).in_flight

    def read_load(self) -> dict[str, Load]:
        """The load of each network. Call it once a second."""
        self._share.advance()
        return self._load.read(self._share.time)

    def add(self, request: QueuedRequest) -> list[QueuedRequest]:
        """Add a request.

        Returns:
            Requests that made room for it, and are no longer in the queue.

        Raises:
            QueueFullError: there is no room.
        """
        queue = self._get(request.network)
        self._share.advance()
        try:
            victims = self._room.make_room(request, queue, self._waiting.values())
        except QueueFullError:
            queue.load.unmet += request.images
            raise
        for other, entry in victims:
            other.remove(entry)  # never its last one
            other.load.unmet += entry[-1].images
            self._record_load(other)
        if queue.entries:
            self._share.set_weight(queue.usage, request.weight)
        else:
            self._share.join(queue.usage, request.weight)
            self._waiting[queue.name] = queue
            queue.turn_at = monotonic()
        self._idle.pop(queue.name, None)
        self._arrivals += 1
        passed_by = (request.images - 1) * self._capacity // _LARGEST_REQUEST
        queue.add(request, arrival=self._arrivals, passed_by=passed_by)
        self._record_load(queue)
        return [entry[-1] for _, entry in victims]

    def next_network(self, *, unbounded: bool = False) -> NetworkQueue | None:
        """The network whose turn it is.

        Args:
            unbounded: whether there is always room in flight.

        Returns:
            Its queue, or None if no request waits or there is no room.
        """
        if not self._waiting:
            return None
        if unbounded:
            return next(iter(self._waiting.values()))
        return self._choose() or (self._choose() if self._give_up_overdue() else None)

    def admit(self, queue: NetworkQueue) -> tuple[QueuedRequest, int]:
        """Take the network's next request out of the queue; return it with its admission id."""
        self._share.choose(queue.usage)
        queue.turn_at = monotonic()
        *_, request = entry = queue.entries[0]
        self._remove(queue, entry)
        admission_id = queue.in_flight.admit(request.images)
        self._record(queue)
        return request, admission_id

    def _choose(self) -> NetworkQueue | None:
        if self._in_flight.images >= self._max_in_flight:
            return None
        if len(self._waiting) == 1:
            (chosen,) = self._waiting.values()
        else:
            chosen = self._choose_fairly()
        is_last_place = self._in_flight.images + 1 == self._max_in_flight
        if is_last_place and chosen.in_flight.images and self._is_place_kept():
            return None
        return chosen

    def _choose_fairly(self) -> NetworkQueue:
        """The network with the lowest charge of those that wait."""
        self._share.advance()
        limited = [queue for queue in self._waiting.values() if self._has_its_places(queue)]
        waiting: Collection[NetworkQueue] = self._waiting.values()
        if limited:
            waiting = [queue for queue in waiting if queue not in limited] or limited
        charges = [self._share.charge(queue.usage) for queue in waiting]
        lowest = min(charges)
        for queue in limited:  # it cannot save up turns
            self._share.raise_to(queue.usage, lowest)
        longest = min(waiting, key=lambda queue: queue.turn_at)
        if monotonic() - longest.turn_at > _LONGEST_WAIT:
            self._share.lower_to(longest.usage, lowest)
            return longest
        return [*waiting][charges.index(lowest)]

    def _has_its_places(self, queue: NetworkQueue) -> bool:
        """Whether the network loses requests, and has its share of the places in flight."""
        if not queue.in_flight.lost_images or not queue.in_flight.images:
            return False
        weights = sum(other.weight for other in self._waiting.values())
        share = self._max_in_flight * queue.weight / weights
        return queue.in_flight.images >= min(share, self._max_in_flight - 1)

    def _is_place_kept(self) -> bool:
        """Whether a place in flight is kept for a network without requests."""
        latest = next(reversed(self._idle.values()), float("-inf"))
        return monotonic() - latest < _RECENT

    def complete(self, admission_id: int) -> bool:
        """Retire this request, and those of its network that were admitted before it.

        Returns:
            Whether that changed anything: an unknown id does not.
        """
        queue = self._find(admission_id)
        if queue is None:
            return False
        changed = queue.in_flight.complete(admission_id)
        self._record(queue)
        return changed

    def release(self, admission_id: int) -> None:
        """Retire this request alone."""
        if queue := self._find(admission_id):
            queue.in_flight.release(admission_id)
            self._record(queue)

    def hand_on(self, admission_id: int) -> None:
        """Note that this request has been prepared, and goes on to its network."""
        if queue := self._find(admission_id):
            queue.in_flight.hand_on(admission_id)
            self._record(queue)

    def take_expired(self) -> list[QueuedRequest]:
        """Take the requests out of the queue that have waited too long."""
        now = monotonic()
        expired = []
        for queue in [*self._waiting.values()]:
            for entry in [entry for entry in queue.entries if entry[-1].deadline < now]:
                self._remove(queue, entry)
                queue.load.unmet += entry[-1].images
                expired.append(entry[-1])
            self._record(queue)
        return expired

    def timeout(self) -> float:
        """Seconds after which requests in flight may be presumed lost."""
        return min(
            queue.in_flight.timeout() for queue in self._networks.values() if queue.is_active
        )

    @property
    def evicted(self) -> str:
        """What requests are told that have made room for another network's."""
        return self._room.evicted

    def _give_up_overdue(self) -> bool:
        """Presume requests lost of networks that have completed none for too long."""
        now = monotonic()
        if now < self._overdue_at:
            return False
        in_flight = self._in_flight.images
        self._overdue_at = float("inf")
        for queue in [*self._networks.values()]:
            if queue.in_flight.overdue_at() <= now:
                queue.in_flight.give_up_overdue()
                self._record(queue)
            self._overdue_at = min(self._overdue_at, queue.in_flight.overdue_at())
        return self._in_flight.images < in_flight

    def _find(self, admission_id: int) -> NetworkQueue | None:
        return self._networks.get(self._in_flight.networks.get(admission_id, ""))

    def _get(self, network: str) -> NetworkQueue:
        if network not in self._networks:
            in_flight = InFlight(
                down_after=_DOWN_FACTOR * self._capacity,
                network=network,
                together=self._in_flight,
                parallel=self._cores,
            )
            self._networks[network] = queue = NetworkQueue(
                network, in_flight, self._room.filled, self._load.add(network)
            )
            self._rest(queue)
        return self._networks[network]

    def _remove(self, queue: NetworkQueue, entry: Entry) -> None:
        queue.remove(entry)
        if not queue.entries:
            del self._waiting[queue.name]

    def _record(self, queue: NetworkQueue) -> None:
        """Note that the network has more or fewer images in flight, or none."""
        in_flight = queue.in_flight
        self._share.record(
            queue.usage,
            preparing=in_flight.preparing,
            in_network=in_flight.images - in_flight.preparing + in_flight.overtaken,
        )
        self._record_load(queue)
        self._overdue_at = min(self._overdue_at, self._share.time + MIN_TIMEOUT)
        if not queue.is_active:
            self._rest(queue)

    def _record_load(self, queue: NetworkQueue) -> None:
        in_flight = queue.in_flight
        self._load.record(
            queue.load,
            queued=queue.images,
            in_flight=in_flight.images,
            overtaken=in_flight.overtaken,
            done=in_flight.admitted_images - in_flight.images,
            now=self._share.time,
        )

    def _rest(self, queue: NetworkQueue) -> None:
        """Note that the network has no requests; forget those that have had none for longest."""
        self._idle.pop(queue.name, None)
        self._idle[queue.name] = monotonic()
        if not self._waiting and not self._in_flight.images:
            self._share.restart()
        for name in [*self._idle][:-_REMEMBERED]:
            del self._idle[name]
            forgotten = self._networks.pop(name)
            forgotten.in_flight.close()
            self._load.remove(name, forgotten.load)
