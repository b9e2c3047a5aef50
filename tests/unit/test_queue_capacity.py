"""With one network, the bounds are tested in `test_admission_queue.py`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from in_flight import InFlight
from load_signals import NetworkLoad
from network_queue import NetworkQueue, QueuedRequest
from queue_capacity import QueueCapacity, QueueFullError


class Queue:
    """Queues of a few networks. Requests are named by network and number, as `a1`, `a2`."""

    def __init__(self, capacity: int, **weights: float) -> None:
        self.capacity = QueueCapacity(capacity)
        self.networks = {
            name: NetworkQueue(name, InFlight(down_after=1), self.capacity.filled, NetworkLoad())
            for name in weights
        }
        self.weights = weights
        self.arrivals = 0
        self.names: dict[QueuedRequest, str] = {}

    def submit(self, network: str, images: int = 1) -> list[str]:
        """Submit a request; return the names of those that had to go."""
        self.arrivals += 1
        queue = self.networks[network]
        request = QueuedRequest(
            network=network,
            images=images,
            deadline=self.arrivals,
            on_admit=print,
            on_expire=lambda: None,
            on_evict=print,
            weight=self.weights[network],
        )
        waiting = [queue for queue in self.networks.values() if queue.entries]
        victims = self.capacity.make_room(request, queue, waiting)
        for other, entry in victims:
            other.remove(entry)
        queue.usage.weight = request.weight
        queue.add(request, arrival=self.arrivals, passed_by=0)
        number = sum(name.startswith(network) for name in self.names.values()) + 1
        self.names[request] = f"{network}{number}"
        return [self.names[entry[-1]] for _, entry in victims]

    def fill(self, network: str, images: int = 1) -> int:
        """Submit requests until one is refused; return how many fitted."""
        for count in range(1000):
            try:
                assert not self.submit(network, images)
            except QueueFullError:
                return count
        raise AssertionError("no limit")

    def held(self) -> Sequence[int]:
        return [queue.images for queue in self.networks.values()]


def test_network_may_fill_the_queue_while_no_other_wants_a_part() -> None:
    queue = Queue(8, a=1, b=1)
    assert queue.fill("a") == 8


def test_network_below_its_share_pushes_out_the_newest_requests() -> None:
    queue = Queue(8, a=1, b=1)
    queue.fill("a")
    assert [queue.submit("b") for _ in range(4)] == [["a8"], ["a7"], ["a6"], ["a5"]]
    assert queue.held() == [4, 4]
    with pytest.raises(QueueFullError, match=r"^saturated: the queue of 8 images has no room for"):
        queue.submit("b")
    with pytest.raises(QueueFullError, match=r" 1 more$"):
        queue.submit("a")


def test_shares_are_by_weight() -> None:
    queue = Queue(8, a=1, b=3)
    queue.fill("a")
    for _ in range(6):
        assert len(queue.submit("b")) == 1
    assert queue.held() == [2, 6]
    with pytest.raises(QueueFullError):
        queue.submit("b")


def test_those_most_over_their_share_go_first() -> None:
    queue = Queue(12, a=1, b=1, c=1)
    for network in "aaaaaaabbbbb":
        queue.submit(network)
    assert [queue.submit("c") for _ in range(4)] == [["a7"], ["a6"], ["a5"], ["b5"]]
    assert queue.held() == [4, 4, 4]


def test_weight_decides_who_is_most_over_its_share() -> None:
    queue = Queue(12, a=4, b=1, c=1)
    for network in "aaaaaaaabbbb":
        queue.submit(network)
    assert queue.submit("c") == ["b4"]  # 4 images of 2, where a has 8 of 8


def test_request_is_not_pushed_out_for_one_of_its_own_network() -> None:
    queue = Queue(8, a=1, b=1)
    queue.submit("b")
    queue.fill("a")
    with pytest.raises(QueueFullError):
        queue.submit("a")
    assert queue.held() == [7, 1]


def test_next_request_of_a_network_is_never_pushed_out() -> None:
    queue = Queue(2, a=1, b=1, c=1)
    queue.submit("a")
    queue.submit("b")
    with pytest.raises(QueueFullError):
        queue.submit("c")
    queue = Queue(8, a=0.01, b=100, c=1)
    queue.submit("a", 8)
    with pytest.raises(QueueFullError):
        queue.submit("b")


def test_network_with_nothing_in_the_queue_may_exceed_a_share_that_is_too_small() -> None:
    queue = Queue(8, a=100, b=1)
    queue.fill("a")
    assert queue.submit("b") == ["a8"]  # its share is 0.08 images
    with pytest.raises(QueueFullError):
        queue.submit("b")


def test_network_with_nothing_in_the_queue_gets_a_place_beside_any_weights() -> None:
    queue = Queue(8, a=100, b=0.01, c=1)
    queue.submit("b")
    assert queue.fill("a") == 7, "less than its share, 7.9"
    assert queue.submit("c") == ["a7"]
    with pytest.raises(QueueFullError):
        queue.submit("c")
    with pytest.raises(QueueFullError):
        queue.submit("b")
    assert queue.held() == [6, 1, 1]


def test_batch_pushes_out_batches_before_single_images() -> None:
    queue = Queue(64, a=1, b=1)
    for _ in range(6):
        queue.submit("a", 8)
    queue.fill("a")
    assert queue.held() == [64, 0]
    assert queue.submit("b", 8) == ["a6"]
    assert queue.submit("b") == ["a22"]


def test_batch_pushes_out_single_images_if_there_are_no_batches() -> None:
    queue = Queue(64, a=1, b=1)
    queue.fill("a")
    assert queue.submit("b", 8) == queue.submit("b", 8) == []  # beyond the queue, as ever
    assert queue.submit("b", 8) == [f"a{number}" for number in range(64, 56, -1)]
    assert queue.held() == [56, 24]


def test_single_image_pushes_out_a_batch_if_there_are_no_others() -> None:
    queue = Queue(64, a=1, b=1)
    for _ in range(6):
        queue.submit("a", 8)
    for _ in range(16):
        queue.submit("b")
    assert queue.submit("b") == ["a6"]


def test_single_images_stay_where_only_batches_are_in_the_way() -> None:
    queue = Queue(16, a=1, b=3)
    for images in (2, 6, 1, 1, 1, 1):
        queue.submit("a", images)
    queue.submit("b", 4)  # 12 images in batches, three quarters of the queue
    assert queue.submit("b", 2) == ["a2"]
    assert queue.submit("b", 4) == []
    with pytest.raises(QueueFullError, match=r" 2 more$"):
        queue.submit("b", 2)
    assert queue.held() == [6, 10]


def test_evicted_request_is_told_why() -> None:
    assert QueueCapacity(8).evicted == (
        "saturated: the queue of 8 images is full, and another network had less than its share "
        "of it"
    )


REQUESTS = st.tuples(st.sampled_from("abc"), st.sampled_from([1, 1, 1, 2, 8]))


@fuzz(100)
@given(
    st.lists(REQUESTS, max_size=120),
    st.tuples(*[st.sampled_from([0.01, 0.5, 1.0, 3.0, 100.0])] * 3),
    st.integers(8, 40),
)
def test_bounds_and_shares_hold_for_any_requests(
    requests: list[tuple[str, int]], weights: tuple[float, ...], capacity: int
) -> None:
    queue = Queue(capacity, **dict(zip("abc", weights)))
    filled = queue.capacity.filled
    for network, images in requests:
        before = {name: other.images for name, other in queue.networks.items()}
        total = filled.images
        try:
            evicted = queue.submit(network, images)
        except QueueFullError:
            assert before == {name: other.images for name, other in queue.networks.items()}
            continue
        assert filled.images == sum(queue.held()) <= capacity + capacity // 4
        if filled.images > capacity and images == 1:
            assert filled.images <= total
        present = {name for name, held in before.items() if held} | {network}
        share = capacity / sum(queue.weights[name] for name in present)
        for name in {name[0] for name in evicted}:
            assert name != network
            assert before[name] > share * queue.weights[name] or not before[network]
            assert queue.networks[name].entries
        if evicted and before[network]:
            assert before[network] + images <= share * queue.weights[network]


@fuzz(100)
@given(st.lists(REQUESTS, max_size=120), st.integers(8, 40))
def test_network_with_nothing_in_a_full_queue_finds_room_if_another_holds_most_of_it(
    requests: list[tuple[str, int]], capacity: int
) -> None:
    queue = Queue(capacity, a=1, b=1, c=1, d=1)
    for network, images in requests:
        with suppress(QueueFullError):
            queue.submit(network, images)
    surplus = any(
        other.images > capacity / 2 and len(other.entries) > 1 for other in queue.networks.values()
    )
    if surplus:
        queue.submit("d")
        assert queue.networks["d"].images == 1
