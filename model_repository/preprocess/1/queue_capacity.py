"""Which requests the queue has room for, and which ones have to make room.

Requests with several images fill at most three quarters of the queue; and when single images fill
all of it, a quarter of its capacity is accepted beyond it for requests with several.

A network may hold all of the queue while no other wants a part of it. When the queue is full, a
request of a network with less than its share pushes out the newest requests of the network that is
most over its share. The shares are as the weights of the networks that have requests in the queue.
The request of each network that is next is never pushed out. A network with nothing in the queue
pushes out others' requests even if its share is less than an image, for it would never be served.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from network_queue import Entry, Filled, NetworkQueue, QueuedRequest

_RESERVE_DIVISOR = 4  # capacity divided by this is kept for each kind of request


class QueueFullError(Exception):
    """The queue has no room for the request; one sentence."""


class QueueCapacity:
    """The bounds of the queue.

    Args:
        capacity: images that may wait; see above for requests with several.

    Attributes:
        filled: by the requests that wait.
    """

    def __init__(self, capacity: int) -> None:
        self.filled = Filled()
        self._capacity = capacity
        self._reserve = capacity // _RESERVE_DIVISOR

    def make_room(
        self, request: QueuedRequest, newcomer: NetworkQueue, waiting: Collection[NetworkQueue]
    ) -> list[tuple[NetworkQueue, Entry]]:
        """Find room for a request.

        Args:
            newcomer: queue of the request's network.
            waiting: all queues with requests.

        Returns:
            The requests that have to go, each with its queue. Nothing has been changed.

        Raises:
            QueueFullError: there is no room. An empty queue accepts a request of any size.
        """
        reason = self._refusal(request.images, self.filled, self._capacity, self._most_in_batches)
        if reason is None:
            return []
        victims = self._find_victims(request, newcomer, waiting)
        if not victims:
            raise QueueFullError(
                f"saturated: the queue of {self._capacity} images has no room for {reason}"
            )
        return victims

    @property
    def evicted(self) -> str:
        """What a request is told that has made room for another one.

        The other network is not named: not every caller may know of it.
        """
        return (
            f"saturated: the queue of {self._capacity} images is full, and another network had"
            " less than its share of it"
        )

    @property
    def _most_in_batches(self) -> int:
        return self._capacity - self._reserve

    def _refusal(self, images: int, filled: Filled, most: int, most_in_batches: int) -> str | None:
        if not filled.images:
            return None
        batch_images = filled.batch_images + images
        if images > 1 and batch_images <= self._reserve:
            return None
        if filled.images + images > most:
            return f"{images} more"
        if images > 1 and batch_images > most_in_batches:
            return f"{images} more in requests with several"
        return None

    def _find_victims(
        self,
        request: QueuedRequest,
        newcomer: NetworkQueue,
        waiting: Collection[NetworkQueue],
    ) -> list[tuple[NetworkQueue, Entry]]:
        others = [queue for queue in waiting if queue is not newcomer]
        share = self._capacity / (request.weight + sum(queue.weight for queue in others))
        if not newcomer.images:
            return self._pick(request, others, share) or self._pick(request, others, 0.0)
        if newcomer.images + request.images > share * request.weight:
            return []
        return self._pick(request, others, share)

    def _pick(
        self, request: QueuedRequest, others: Collection[NetworkQueue], share: float
    ) -> list[tuple[NetworkQueue, Entry]]:
        """Enough requests of networks that are over this share; none if they are too few."""
        filled = replace(self.filled)
        # A queue that is over its bounds already must not grow.
        most = max(self._capacity, filled.images)
        most_in_batches = max(self._most_in_batches, filled.batch_images)
        victims = []
        several = request.images > 1
        only_batches = several and filled.batch_images + request.images > most_in_batches
        for queue, entry in _surplus(others, share, several, only_batches):
            filled.remove(entry[-1])
            victims.append((queue, entry))
            if self._refusal(request.images, filled, most, most_in_batches) is None:
                return victims
        return []


def _surplus(
    queues: Collection[NetworkQueue], share: float, several: bool, only_batches: bool
) -> Iterator[tuple[NetworkQueue, Entry]]:
    """Requests of networks that are over their share, in the order in which they have to go.

    Args:
        share: images that a network of weight 1 may have.
        several: whether requests with several images go first, or single images.
        only_batches: whether single images do not go at all.
    """
    held = {queue: queue.images / queue.weight for queue in queues}
    left = {
        queue: [
            entry
            for entry in _newest_last(queue, several)
            if entry[-1].images > 1 or not only_batches
        ]
        for queue in queues
    }
    while over := [queue for queue in queues if left[queue] and held[queue] > share]:
        most = max(over, key=held.__getitem__)
        entry = left[most].pop()
        held[most] -= entry[-1].images / most.weight
        yield most, entry


def _newest_last(queue: NetworkQueue, several: bool) -> list[Entry]:
    """All requests but the next one, by arrival, those of the wanted kind after the others."""
    by_kind = [((entry[-1].images > 1) is several, entry[1], entry) for entry in queue.entries[1:]]
    return [entry for *_, entry in sorted(by_kind, key=lambda item: item[:2])]
