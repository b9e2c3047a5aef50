from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise

import pytest
from fair_queue import FairQueue
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from network_queue import QueuedRequest
from queue_capacity import QueueFullError
from virtual_time import Clock, virtual_time


class Server:
    """A queue whose requests are named by network and number, as `a1`, `a2`."""

    def __init__(self, clock: Clock, *, capacity: int = 64, max_in_flight: int, cores: int = 2):
        self.clock = clock
        self.max_in_flight = max_in_flight
        self.queue = FairQueue(capacity=capacity, max_in_flight=max_in_flight, cores=cores)
        self.submitted: Counter[str] = Counter()
        self.names: dict[QueuedRequest, str] = {}
        self.admitted: dict[str, int] = {}  # admission ids by name, in order

    def submit(self, networks: str, images: int = 1, *, weight: float = 1.0) -> list[str]:
        """Submit a request for each of these networks; return those that had to go."""
        evicted = []
        for network in networks:
            self.submitted[network] += 1
            request = QueuedRequest(
                network=network,
                images=images,
                deadline=self.clock.now + 1000 + self.submitted.total(),
                on_admit=print,
                on_expire=lambda: None,
                on_evict=print,
                weight=weight,
            )
            self.names[request] = f"{network}{self.submitted[network]}"
            evicted += [self.names[other] for other in self.queue.add(request)]
        return evicted

    def admit(self) -> list[str]:
        """Admit all requests that there is room for; return their names."""
        names = []
        while queue := self.queue.next_network():
            request, admission_id = self.queue.admit(queue)
            names.append(self.names[request])
            self.admitted[names[-1]] = admission_id
        return names

    def complete(self, *names: str) -> list[str]:
        """Complete these requests; return those that are admitted then."""
        for name in names:
            self.queue.complete(self.admitted[name])
        return self.admit()

    @property
    def images_in_flight(self) -> int:
        return self.queue._in_flight.images

    @property
    def queued(self) -> dict[str, int]:
        return {queue.name: queue.images for queue in self.queue.waiting}


@pytest.fixture
def clock() -> Iterator[Clock]:
    with virtual_time() as clock:
        yield clock


def test_networks_with_equal_charges_take_turns_as_time_passes(clock: Clock) -> None:
    server = Server(clock, max_in_flight=1)
    server.submit("aaabbb")
    order = server.admit()
    while len(order) < 6:
        clock.now += 0.1
        order += server.complete(order[-1])
    assert order == ["a1", "b1", "a2", "b2", "a3", "b3"]


def test_network_that_takes_longer_gets_fewer_turns(clock: Clock) -> None:
    server = Server(clock, max_in_flight=1)
    server.submit("a" * 40 + "b" * 20)
    order = server.admit()
    for _ in range(44):
        clock.now += 0.1 if order[-1][0] == "a" else 1.0
        order += server.complete(order[-1])
    assert Counter(name[0] for name in order) == {"a": 41 - 1, "b": 5}


def test_network_with_three_times_the_weight_gets_three_times_the_turns(clock: Clock) -> None:
    server = Server(clock, max_in_flight=1)
    for _ in range(30):
        server.submit("a", weight=3.0)
    server.submit("b" * 20, weight=1.0)
    order = server.admit()
    for _ in range(39):
        clock.now += 0.1
        order += server.complete(order[-1])
    assert Counter(name[0] for name in order) == {"a": 30, "b": 10}


def test_network_with_hardly_any_weight_waits_ten_seconds_for_a_turn(clock: Clock) -> None:
    server = Server(clock, max_in_flight=1)
    turns = {"a": list[float](), "b": list[float](), "c": list[float]()}
    order: list[str] = []
    while clock.now < 160:
        if server.queued.get("a", 0) < 8:
            server.submit("a" * 8, weight=100.0)
        if "b" not in server.queued:
            server.submit("b", weight=0.01)
        if clock.now > 140 and "c" not in server.queued:
            server.submit("c")
        order += server.complete(*order[-1:])
        turns[order[-1][0]].append(clock.now)
        clock.now += 0.1
    waits = [after - before for before, after in pairwise(turns["b"])]
    assert len(waits) >= 4
    assert max(waits) < 10.5
    assert min(waits) > 9.5, "otherwise the weights count"
    assert len(turns["a"]) > 40 * len(turns["b"])
    assert turns["c"], "its debt is not that of others"


def test_weight_of_the_newest_request_counts(clock: Clock) -> None:
    server = Server(clock, max_in_flight=1)
    server.submit("b" * 30)
    server.submit("a" * 20)
    server.submit("a", weight=3.0)
    order = server.admit()
    for _ in range(19):
        clock.now += 0.1
        order += server.complete(order[-1])
    assert Counter(name[0] for name in order) == {"a": 15, "b": 5}


def test_completion_retires_no_earlier_request_of_another_network(clock: Clock) -> None:
    server = Server(clock, max_in_flight=4)
    server.submit("abab")
    assert server.admit() == ["a1", "b1", "a2", "b2"] or server.images_in_flight == 4
    server.complete("b2")
    assert server.images_in_flight == 2  # both of a
    server.complete("a2")
    assert server.images_in_flight == 0


def test_admission_ids_are_the_number_of_images_of_all_networks(clock: Clock) -> None:
    server = Server(clock, max_in_flight=20)
    for network, images in (("a", 2), ("b", 3), ("a", 1)):
        server.submit(network, images)
        server.admit()
    assert server.admitted == {"a1": 2, "b1": 5, "a2": 6}


def test_release_and_completion_of_an_unknown_id_change_nothing(clock: Clock) -> None:
    server = Server(clock, max_in_flight=4)
    server.submit("ab")
    server.admit()
    for unknown in (0, -1, 3, 1 << 40):
        server.queue.release(unknown)
        server.queue.hand_on(unknown)
        assert not server.queue.complete(unknown)
    assert server.images_in_flight == 2


def newest(server: Server, network: str) -> str:
    return [name for name in server.admitted if name[0] == network][-1]


def test_requests_of_a_hung_network_are_presumed_lost_without_those_of_others(
    clock: Clock,
) -> None:
    server = Server(clock, max_in_flight=4)
    server.submit("aa")
    server.admit()
    server.submit("bbb")
    server.admit()
    for _ in range(4):
        clock.now += 0.3
        server.submit("bb")
        server.complete(newest(server, "b"))
    assert server.queue.in_flight("a").lost_images == 2
    assert server.queue.in_flight("b").lost_images == 0
    assert server.queue.in_flight("b").images == 3  # one place is kept for a


@contextmanager
def hung_beside_another(clock: Clock) -> Iterator[Server]:
    """Network `a` has three quarters of the weight and completes nothing, `b` completes all."""
    server = Server(clock, max_in_flight=8)
    for _ in range(20):
        server.submit("a", weight=3.0)
    server.admit()
    server.submit("b" * 20)
    clock.now += 1.01  # all of `a` are lost
    server.admit()
    for _ in range(50):
        step(server, "b")
    yield server


def step(server: Server, completing: str) -> list[str]:
    """Complete the requests of these networks after a while; keep both waiting."""
    server.clock.now += 0.1
    while server.queued["a"] < 10:
        server.submit("a", weight=3.0)
    server.submit("b" * (20 - server.queued["b"]))
    for network in completing:
        if server.queue.in_flight(network).images:
            server.queue.complete(server.admitted[newest(server, network)])
    names = server.admit()
    for name in names:
        server.queue.hand_on(server.admitted[name])
    return names


def test_network_that_loses_requests_has_its_share_of_the_places_while_others_wait(
    clock: Clock,
) -> None:
    with hung_beside_another(clock) as server:
        for _ in range(50):
            admitted = step(server, "b")
            assert server.queue.in_flight("a").images <= 6
            assert len([name for name in admitted if name[0] == "b"]) >= 2


def test_network_that_completes_again_may_have_more_than_its_places(clock: Clock) -> None:
    with hung_beside_another(clock) as server:
        most = 0
        for _ in range(50):
            step(server, "ab")
            most = max(most, server.queue.in_flight("a").images)
        assert server.queue.in_flight("a").lost_images == 0
        assert most > 6


def test_network_with_nearly_all_of_the_weight_leaves_a_place_when_it_loses_requests(
    clock: Clock,
) -> None:
    server = Server(clock, max_in_flight=4)
    for _ in range(20):
        server.submit("a", weight=100.0)
    server.admit()
    server.submit("b" * 40, weight=1.0)
    clock.now += 1.01
    server.admit()
    for _ in range(20):
        clock.now += 0.1
        server.complete(newest(server, "b"))
        assert server.queue.in_flight("b").images >= 1


def test_network_cannot_save_up_turns_while_it_loses_requests(clock: Clock) -> None:
    with hung_beside_another(clock) as server:
        for _ in range(200):  # for 20 seconds
            step(server, "b")
        counts = Counter(name[0] for _ in range(40) for name in step(server, "ab"))
        assert counts == {"a": 240, "b": 80}


def test_network_that_lost_its_only_place_gets_its_turn_again(clock: Clock) -> None:
    server = Server(clock, max_in_flight=1)
    server.submit("aaa")
    server.admit()
    server.submit("b" * 20)
    clock.now += 1.01
    order = server.admit()
    while "a2" not in order and len(order) < 20:
        clock.now += 0.1
        order += server.complete(order[-1])
    assert order[:11] == [f"b{number}" for number in range(1, 12)]  # for 1.01 seconds
    assert order[11:] == ["a2"]


def test_nobody_has_used_more_after_a_pause(clock: Clock) -> None:
    server = Server(clock, max_in_flight=1)
    server.submit("a")
    server.admit()
    clock.now += 5.0
    server.complete("a1")
    server.submit("bbaa")
    order = server.admit()
    for _ in range(3):
        clock.now += 0.1
        order += server.complete(order[-1])
    assert order == ["b1", "a2", "b2", "a3"]


def test_as_many_requests_may_be_overtaken_as_there_are_cores(clock: Clock) -> None:
    server = Server(clock, max_in_flight=10, cores=3)
    server.submit("a" * 10)
    server.admit()
    overtaken = []
    for number in (2, 3, 4, 5):
        server.complete(f"a{number}")
        overtaken.append(server.queue.in_flight("a").overtaken)
    assert overtaken == [1, 1, 1, 0]


def test_network_that_was_idle_has_no_turns_left_over(clock: Clock) -> None:
    server = Server(clock, max_in_flight=1)
    server.submit("b" * 60)
    order = server.admit()
    for _ in range(40):
        clock.now += 0.1
        order += server.complete(order[-1])
    server.submit("a" * 20)
    order = order[-1:]
    for _ in range(20):
        clock.now += 0.1
        order += server.complete(order[-1])
    assert 9 <= len([name for name in order if name[0] == "a"]) <= 12


def test_network_is_charged_for_requests_that_were_overtaken(clock: Clock) -> None:
    server = Server(clock, max_in_flight=10, cores=2)
    server.submit("aaab")
    for name in server.admit():
        server.queue.hand_on(server.admitted[name])
    server.complete("a2")  # a1 and a3 are still worked on
    clock.now += 0.9
    server.queue._share.advance()
    charges = {
        name: server.queue._share.charge(queue.usage)
        for name, queue in server.queue._networks.items()
    }
    assert charges == {"a": pytest.approx(0.6), "b": pytest.approx(0.3)}


def test_last_place_is_left_to_a_network_that_was_served_within_a_second(clock: Clock) -> None:
    server = Server(clock, max_in_flight=4)
    server.submit("b")
    server.admit()
    server.complete("b1")
    server.submit("a" * 10)
    assert server.admit() == ["a1", "a2", "a3"]
    clock.now += 0.9
    server.submit("b")
    assert server.admit() == ["b2"]
    server.complete("b2")
    clock.now += 1.0
    server.queue.complete(server.admitted["a1"])
    assert server.admit() == ["a4", "a5"]


def test_last_place_is_not_left_by_a_network_that_has_nothing_in_flight(clock: Clock) -> None:
    server = Server(clock, max_in_flight=1)
    server.submit("b")
    server.admit()
    server.complete("b1")
    server.submit("a")
    assert server.admit() == ["a1"]


def test_one_network_alone_has_all_places(clock: Clock) -> None:
    server = Server(clock, max_in_flight=4)
    for _ in range(3):
        server.submit("a")
        server.complete(*server.admit())
    server.submit("a" * 9)
    assert len(server.admit()) == 4


def test_states_of_networks_that_come_and_go_are_dropped(clock: Clock) -> None:
    server = Server(clock, max_in_flight=4)
    for number in range(300):
        name = f"n{number}"
        for _ in range(2):
            server.queue.add(
                QueuedRequest(
                    network=name,
                    images=1,
                    deadline=0.0,
                    on_admit=print,
                    on_expire=lambda: None,
                    on_evict=print,
                )
            )
        queue = server.queue.next_network()
        assert queue is not None
        _, admission_id = server.queue.admit(queue)
        if number % 2:
            server.queue.complete(admission_id)
        server.queue.take_expired()
        clock.now += 4.0
    fair_queue = server.queue
    assert len(fair_queue._networks) <= 64 + 4
    assert fair_queue._idle.keys() <= fair_queue._networks.keys()
    assert len(fair_queue._in_flight.networks) <= 64 + 4
    assert not fair_queue.waiting


def test_network_that_is_refused_leaves_no_state_for_ever(clock: Clock) -> None:
    server = Server(clock, capacity=8, max_in_flight=1)
    server.submit("a" * 1)
    server.admit()
    server.submit("bcdefghi")
    for number in range(200):
        with pytest.raises(QueueFullError):
            server.queue.add(
                QueuedRequest(
                    network=f"n{number}",
                    images=1,
                    deadline=1000.0,
                    on_admit=print,
                    on_expire=lambda: None,
                    on_evict=print,
                )
            )
    assert len(server.queue._networks) <= 64 + 9


def test_usual_times_of_a_network_are_remembered_while_it_is_idle(clock: Clock) -> None:
    server = Server(clock, max_in_flight=4)
    server.submit("a")
    server.admit()
    clock.now += 2.0
    server.complete("a1")
    usual = server.queue.in_flight("a").usual_interval
    server.submit("b" * 3)
    server.complete(*server.admit())
    assert server.queue.in_flight("a").usual_interval == usual > 0.25


def test_expired_requests_are_taken_from_all_networks(clock: Clock) -> None:
    server = Server(clock, max_in_flight=1)
    server.submit("abab")
    server.admit()
    clock.now += 1003.5
    names = {server.names[request] for request in server.queue.take_expired()}
    assert names == {"b1", "a2"} and server.queued == {"b": 1}


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from("aaabcd"), st.sampled_from([1, 1, 1, 2, 8])),
        st.tuples(st.sampled_from(["complete", "release", "hand on"]), st.integers(0, 9)),
        st.tuples(st.just("wait"), st.sampled_from([0.01, 0.1, 1.0, 4.0])),
    ),
    max_size=120,
)
WEIGHTS = {"a": 1.0, "b": 0.5, "c": 3.0, "d": 100.0}


def do(server: Server, operation: tuple[object, ...]) -> list[str]:
    """Do one of the operations; return the names of evicted requests."""
    kind, value = operation[:2]
    if kind == "wait":
        assert isinstance(value, float)
        server.clock.now += value
    elif kind == "submit":
        assert isinstance(value, str) and isinstance(operation[2], int)
        with suppress(QueueFullError):
            return server.submit(value, operation[2], weight=WEIGHTS[value])
    elif server.admitted:
        assert isinstance(value, int)
        ids = [*server.admitted.values()][-10:]
        admission_id = ids[value % len(ids)]
        {
            "complete": server.queue.complete,
            "release": server.queue.release,
            "hand on": server.queue.hand_on,
        }[str(kind)](admission_id)
    return []


@fuzz(100)
@given(OPERATIONS)
def test_bounds_hold_and_no_place_stays_empty(operations: list[tuple[object, ...]]) -> None:
    with virtual_time() as clock:
        server = Server(clock, capacity=16, max_in_flight=6)
        ended: list[str] = []
        for operation in operations:
            ended += do(server, operation)
            while queue := server.queue.next_network():
                assert server.images_in_flight < 6
                request, admission_id = server.queue.admit(queue)
                name = server.names[request]
                ended.append(name)
                assert admission_id > max(server.admitted.values(), default=0)
                server.admitted[name] = admission_id
            assert sum(server.queued.values()) <= 16 + 4
            places = 5 if server.queue._is_place_kept() else 6
            assert not server.queued or server.images_in_flight >= places
            assert sum(server.queue.in_flight(name).images for name in "abcd") == (
                server.images_in_flight
            )
        assert len(ended) == len({*ended})


class Cores:
    """Processor sharing: the cores are divided evenly between the images that are worked on.

    Each network has callers that send again as soon as they are answered, one thread for each core,
    and its own cost of an image, in seconds of a core.
    """

    def __init__(self, server: Server, cores: int, costs: dict[str, float]) -> None:
        self.server, self.cores, self.costs = server, cores, costs
        self.left: dict[str, float] = {}  # by name of the request
        self.used = dict.fromkeys(costs, 0.0)  # seconds of a core
        self.admissions: list[str] = []  # networks

    def begin(self, names: Sequence[str]) -> None:
        for name in names:
            self.left[name] = self.costs[name[0]]
            self.server.queue.hand_on(self.server.admitted[name])
            self.admissions.append(name[0])

    def run(self, seconds: float, weights: dict[str, float]) -> None:
        end = self.server.clock.now + seconds
        while self.server.clock.now < end:
            running = [
                name
                for network in self.costs
                for name in [name for name in self.left if name[0] == network][: self.cores]
            ]
            speed = min(1.0, self.cores / len(running))
            first = min(running, key=self.left.__getitem__)
            passed = self.left[first] / speed
            self.server.clock.now += passed
            for name in running:
                self.left[name] -= passed * speed
                self.used[name[0]] += passed * speed
            del self.left[first]
            self.server.queue.complete(self.server.admitted[first])
            self.server.submit(first[0], weight=weights[first[0]])
            self.begin(self.server.admit())


@contextmanager
def full_load(
    cores: int, costs: dict[str, float], weights: dict[str, float], callers: dict[str, int]
) -> Iterator[Cores]:
    with virtual_time() as clock:
        server = Server(clock, max_in_flight=2 * cores + 2, cores=cores, capacity=200)
        load = Cores(server, cores, costs)
        for network, count in callers.items():
            server.submit(network * count, weight=weights[network])
        load.begin(server.admit())
        load.run(5.0, weights)  # until the beginning is forgotten
        load.used.update(dict.fromkeys(costs, 0.0))
        load.admissions.clear()
        load.run(30.0, weights)
        yield load


@pytest.mark.parametrize("cores, callers", [(2, 8), (4, 16)])
@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (1, 3)])
def test_networks_under_full_load_share_the_cores_by_weight(
    cores: int, callers: int, weights: tuple[float, float]
) -> None:
    """Though an image of one takes ten times as long as one of the other."""
    by_name = dict(zip("fs", weights))
    with full_load(cores, {"f": 0.01, "s": 0.1}, by_name, {"f": callers, "s": callers}) as load:
        share = load.used["f"] / sum(load.used.values())
        assert share == pytest.approx(weights[0] / sum(weights), abs=0.03)
        assert sum(load.used.values()) == pytest.approx(30.0 * cores, rel=0.01)


def test_caller_of_a_fast_network_does_not_wait_for_images_of_a_slow_one() -> None:
    """Alone on 2 cores it would have 100 answers each second, of one core."""
    with full_load(2, {"f": 0.01, "s": 0.1}, {"f": 1, "s": 1}, {"f": 1, "s": 15}) as load:
        assert load.admissions.count("f") / 30 > 50


@fuzz(10)
@given(
    st.lists(st.sampled_from([0.01, 0.03, 0.1]), min_size=2, max_size=5),
    st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=5, max_size=5),
)
def test_every_network_that_waits_is_admitted_again_soon(
    costs: list[float], weights: list[float]
) -> None:
    names = "abcde"[: len(costs)]
    by_name = dict(zip(names, weights))
    with full_load(2, dict(zip(names, costs)), by_name, dict.fromkeys(names, 8)) as load:
        # At most six images of 0.1 s go ahead of the others' smallest images, by its weight.
        share = by_name[names[0]] / sum(by_name.values())
        turns = [number for number, name in enumerate(load.admissions) if name == names[0]]
        gap = max(later - turn for turn, later in pairwise(turns))
        assert gap <= 6 * 0.1 / min(costs) / share
