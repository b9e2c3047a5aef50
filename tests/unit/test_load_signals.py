"""Saturation is demand over capacity: 0 without requests, 1 under full load, more beyond."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import mean

import pytest
from fair_queue import FairQueue
from load_signals import Load, LoadSignals
from network_queue import QueuedRequest
from queue_capacity import QueueFullError
from virtual_time import Clock, virtual_time

CORES, MAX_IN_FLIGHT, CAPACITY = 2, 6, 64
SECONDS = 0.04  # of one core for an image: 50 images/s in all
FULL = CORES / SECONDS


@pytest.fixture
def clock() -> Iterator[Clock]:
    with virtual_time() as clock:
        yield clock


@dataclass
class Server:
    """Cores that each work on one image at a time, behind the queue.

    Attributes:
        scale: how long an image takes, against the usual time.
        exact: whether every image takes equally long.
    """

    clock: Clock
    scale: float = 1.0
    exact: bool = False
    random: random.Random = field(default_factory=lambda: random.Random(7))
    shed: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        self.queue = FairQueue(capacity=CAPACITY, max_in_flight=MAX_IN_FLIGHT, cores=CORES)
        self._admitted: deque[tuple[int, str]] = deque()
        self._working = 0
        self._events: list[tuple[float, int, str, int, str]] = []
        self._numbers = 0
        self._read_at = self.clock.now + 1

    def at(self, time: float, event: str, admission_id: int = 0, network: str = "yolov5") -> None:
        self._numbers += 1
        heapq.heappush(self._events, (time, self._numbers, event, admission_id, network))

    def run(self, seconds: float, *, closed: bool = False, think: float = 0.0) -> list[Load]:
        """Go on for so long; return the load of `yolov5` of each second.

        Args:
            closed: whether each answer brings a new request.
            think: seconds from the answer to the next request.
        """
        return [loads.get("yolov5", Load()) for loads in self.run_all(seconds, closed, think)]

    def run_all(
        self, seconds: float, closed: bool = False, think: float = 0.0
    ) -> list[dict[str, Load]]:
        end = self.clock.now + seconds
        loads = []
        while True:
            next_event = self._events[0][0] if self._events else end
            self.clock.now = min(next_event, self._read_at, end)
            if self.clock.now == self._read_at:
                loads.append(self.queue.read_load())
                self._read_at += 1
            elif self.clock.now == end:
                return loads
            else:
                _, _, event, admission_id, network = heapq.heappop(self._events)
                if event == "arrive":
                    self._arrive(network)
                else:
                    self._finish(admission_id)
                    if closed:
                        self.at(self.clock.now + think, "arrive", network=network)

    def _arrive(self, network: str) -> None:
        request = QueuedRequest(
            network=network,
            images=1,
            deadline=self.clock.now + 60,
            on_admit=lambda _: None,
            on_expire=lambda: None,
            on_evict=lambda _: None,
        )
        try:
            self.shed += len(self.queue.add(request))
        except QueueFullError:
            self.shed += 1
        self._dispatch()

    def _finish(self, admission_id: int) -> None:
        self.done += 1
        self._working -= 1
        self.queue.complete(admission_id)
        self._dispatch()

    def _dispatch(self) -> None:
        while network := self.queue.next_network():
            request, admission_id = self.queue.admit(network)
            self.queue.hand_on(admission_id)
            self._admitted.append((admission_id, request.network))
        while self._admitted and self._working < CORES:
            admission_id, name = self._admitted.popleft()
            self._working += 1
            seconds = SECONDS * self.scale
            if not self.exact:
                seconds = self.random.expovariate(1 / seconds)
            self.at(self.clock.now + seconds, "finish", admission_id, name)

    def callers(self, count: int, network: str = "yolov5") -> None:
        for number in range(count):
            self.at(self.clock.now + number * 0.001, "arrive", network=network)

    def arrivals(self, rate: float, seconds: float, network: str = "yolov5") -> None:
        """Random arrivals, so many in a second."""
        time = self.clock.now
        while (time := time + self.random.expovariate(rate)) < self.clock.now + seconds:
            self.at(time, "arrive", network=network)


@pytest.fixture
def server(clock: Clock) -> Server:
    return Server(clock)


def saturation(loads: list[Load]) -> float:
    return mean(load.saturation for load in loads)


def test_idle_server_has_no_load(server: Server) -> None:
    assert server.run(8) == [Load()] * 8


@pytest.mark.parametrize("rho", [0.2, 0.5, 0.8])
def test_random_arrivals_show_their_part_of_the_capacity(server: Server, rho: float) -> None:
    server.arrivals(rho * FULL, 200)
    assert saturation(server.run(200)[5:]) == pytest.approx(rho, abs=0.07)


@pytest.mark.parametrize("rho", [1.5, 3.0])
def test_more_than_the_capacity_shows_as_more_than_one(server: Server, rho: float) -> None:
    server.arrivals(rho * FULL, 100)
    loads = server.run(100)[10:]
    # The queue is full as well, and is to be worked off within a second.
    backlog = CAPACITY / FULL
    assert saturation(loads) == pytest.approx(rho + backlog, abs=0.25)
    assert server.shed > 0


@pytest.mark.parametrize(("callers", "least", "most"), [(1, 0.45, 0.5), (2, 0.95, 1), (4, 1, 1)])
def test_callers_who_wait_for_answers_ask_for_at_most_all(
    server: Server, callers: int, least: float, most: float
) -> None:
    server.exact = True
    server.callers(callers)
    loads = server.run(20, closed=True)[6:]
    assert least <= saturation(loads) <= most
    assert {load.queued for load in loads} == {0}


def test_callers_who_pause_ask_for_less(server: Server) -> None:
    server.exact = True
    server.callers(1)
    loads = server.run(20, closed=True, think=3 * SECONDS)[6:]
    assert saturation(loads) == pytest.approx(0.125, abs=0.02)


def test_32_callers_ask_for_more_than_one_server_and_none_for_nothing(server: Server) -> None:
    server.callers(32)
    loads = server.run(20, closed=True)[6:]
    assert saturation(loads) == pytest.approx(1 + (32 - MAX_IN_FLIGHT) / FULL, abs=0.1)
    assert {load.in_flight for load in loads} <= {MAX_IN_FLIGHT - 1, MAX_IN_FLIGHT}
    assert mean(load.queued for load in loads) == pytest.approx(26, abs=1)
    afterwards = server.run(10)
    assert afterwards[6:] == [Load()] * 4
    assert [load.saturation for load in afterwards] == sorted(
        (load.saturation for load in afterwards), reverse=True
    )


def test_slow_network_with_a_queue_is_saturated_before_its_first_image(server: Server) -> None:
    server.scale, server.exact = 200.0, True  # 8 s for an image
    server.callers(20)
    assert server.run(5)[-1].saturation == 10.0


def test_expired_and_evicted_requests_count_as_demand(clock: Clock) -> None:
    queue = FairQueue(capacity=8, max_in_flight=1, cores=1)

    def add(network: str, seconds: float) -> None:
        queue.add(
            QueuedRequest(
                network=network,
                images=1,
                deadline=clock.now + seconds,
                on_admit=lambda _: None,
                on_expire=lambda: None,
                on_evict=lambda _: None,
            )
        )

    add("yolov5", 60)
    network = queue.next_network()
    assert network is not None
    _, admission_id = queue.admit(network)
    for _ in range(8):
        add("yolov5", 0.1)
    add("plates", 0.1)  # pushes one out
    clock.now += 0.2
    assert len(queue.take_expired()) == 8
    queue.complete(admission_id)
    clock.now += 0.8
    loads = queue.read_load()
    # 0.2 s of the server for the image; 8 others were not served, 7 of them waited 0.2 s.
    assert loads["yolov5"] == Load(0, 0, round(0.2 + (8 + 7 * 0.2) * 0.2, 2))
    assert loads["plates"] == Load(0, 0, round((1 + 0.2) * 0.2, 2))


def test_networks_share_the_saturation_of_the_server(server: Server) -> None:
    server.arrivals(0.2 * FULL, 100)
    server.arrivals(0.4 * FULL, 100, network="plates")
    loads = server.run_all(100)[5:]
    assert mean(load["yolov5"].saturation for load in loads) == pytest.approx(0.2, abs=0.05)
    assert mean(load["plates"].saturation for load in loads) == pytest.approx(0.4, abs=0.07)


def test_forgotten_network_leaves_no_load() -> None:
    signals = LoadSignals(parallel=2, now=0.0)
    plates = signals.add("plates")
    signals.record(plates, queued=0, in_flight=2, overtaken=0, done=0, now=0.0)
    signals.remove("plates", plates)
    yolov5 = signals.add("yolov5")
    signals.record(yolov5, queued=0, in_flight=2, overtaken=0, done=0, now=1.0)
    assert signals.read(2.0) == {"yolov5": Load(0, 2, 0.5)}


def test_overtaken_images_are_worked_on_but_no_longer_in_flight() -> None:
    signals = LoadSignals(parallel=2, now=0.0)
    load = signals.add("yolov5")
    signals.record(load, queued=0, in_flight=1, overtaken=1, done=0, now=0.0)
    assert signals.read(1.0) == {"yolov5": Load(0, 1, 1.0)}


def test_no_time_has_no_saturation() -> None:
    signals = LoadSignals(parallel=2, now=0.0)
    signals.add("yolov5")
    assert signals.read(0.0) == {"yolov5": Load()}
