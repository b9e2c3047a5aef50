"""The requests of one network: those that wait, in the order of their admission, and in flight."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

from fair_share import Usage
from in_flight import InFlight
from load_signals import NetworkLoad


@dataclass(frozen=True, kw_only=True)
class QueuedRequest:
    """A request, and what to call at the end of its wait.

    Attributes:
        network: name of the network that it is for.
        images: how many it has.
        deadline: until when it may wait, by `time.monotonic()`.
        on_admit: called with the admission id, on any thread; must not raise, nor take long.
        on_expire: called instead when the deadline has passed.
        on_evict: called instead, with a sentence, when it has made room for another network.
        weight: part of the cores that the network may use, against the weights of the others. The
            newest request of a network decides.
    """

    network: str
    images: int
    deadline: float
    on_admit: Callable[[int], None]
    on_expire: Callable[[], None]
    on_evict: Callable[[str], None]
    weight: float = 1.0


Entry = tuple[int, int, QueuedRequest]  # turn, number of arrival, request


@dataclass
class Filled:
    """How much of the queue is filled.

    Attributes:
        images: that wait.
        batch_images: how many of these are in requests with several.
    """

    images: int = 0
    batch_images: int = 0

    def add(self, request: QueuedRequest) -> None:
        self.images += request.images
        if request.images > 1:
            self.batch_images += request.images

    def remove(self, request: QueuedRequest) -> None:
        self.images -= request.images
        if request.images > 1:
            self.batch_images -= request.images


class NetworkQueue:
    """One network's part of the queue.

    Args:
        filled: by the requests of all networks.
        load: what an autoscaler is told of it.

    Attributes:
        name: of the network.
        entries: the requests that wait, in order of admission.
        images: how many they have.
        turn_at: when it had its last turn, or when its requests began to wait, if that was later.
    """

    def __init__(self, name: str, in_flight: InFlight, filled: Filled, load: NetworkLoad) -> None:
        self.name = name
        self.in_flight = in_flight
        self.load = load
        self.usage = Usage()
        self.entries: list[Entry] = []
        self.images = 0
        self.turn_at = 0.0
        self._filled = filled

    @property
    def weight(self) -> float:
        return self.usage.weight

    @property
    def is_active(self) -> bool:
        return bool(self.entries or self.in_flight.images)

    def add(self, request: QueuedRequest, *, arrival: int, passed_by: int) -> None:
        """Add a request, which is admitted after this many images of the network's others."""
        insort(self.entries, (self.in_flight.admitted_images + passed_by, arrival, request))
        self.images += request.images
        self._filled.add(request)

    def remove(self, entry: Entry) -> None:
        self.entries.remove(entry)
        self.images -= entry[-1].images
        self._filled.remove(entry[-1])
