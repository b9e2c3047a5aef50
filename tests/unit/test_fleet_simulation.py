"""The simulated fleet: balancing, retries, scaling, and the loss of a zone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from simpy import Environment

from yolov5_fleet import _parameters
from yolov5_fleet._arrivals import by_rate, day, spike, steady
from yolov5_fleet._autoscaler import Policy
from yolov5_fleet._balancer import Balancer, Balancing
from yolov5_fleet._clock import call_later
from yolov5_fleet._cores import Cores
from yolov5_fleet._fleet import ZONES, Fleet, Setup
from yolov5_fleet._measure import Comparison, parameters_from
from yolov5_fleet._parameters import Parameters
from yolov5_fleet._predict import Case, Figures, arrivals, at_speed, capacity, predict
from yolov5_fleet._real import Measured
from yolov5_fleet._record import Record, Summary
from yolov5_fleet._report import comparison_table, parameter_table, scenario_table, verdict
from yolov5_fleet._scenarios import Scenario, run, scenarios
from yolov5_fleet._server import Limits, Outcome, Server, Work

# Any will do here; these are not measured.
PARAMETERS = Parameters(
    about={"machine": "none"},
    cores=2,
    work=Work(prepare=0.01, network=0.08, network_alone=0.05, finish=0.01, refuse=0.005),
    limits=Limits(),
    limits_of_one_core=Limits(max_in_flight_images=4),
    generator=0.001,
    balancer=0.001,
    spread=[0.9, 1.0, 1.1],
    start_seconds=5.0,
)


class Bench:
    """A balancer with servers of their own cores, and what became of the requests."""

    def __init__(self, servers: int, settings: Balancing, rate: float) -> None:
        self.env, self.record = Environment(), Record()
        self.balancer = Balancer(self.env, Random(1), settings)
        self.servers = [
            Server(
                self.env,
                Cores(self.env, 2),
                PARAMETERS.work,
                PARAMETERS.limits,
                workers=2,
            )
            for _ in range(servers)
        ]
        self.sent: Counter[Server] = Counter()
        for server in self.servers:
            self.balancer.add(server)
        send = lambda answer: self.balancer.send(1.0, answer)  # noqa: E731
        by_rate(self.env, steady(rate), send, self.record, Random(2))


def test_balancer_spreads_the_load_evenly() -> None:
    bench = Bench(4, Balancing(), rate=56.0)
    busy = Counter[int]()
    for second in range(1, 100):
        bench.env.run(until=second)
        busy.update({number: one.requests for number, one in enumerate(bench.servers)})
    assert max(busy.values()) < 1.3 * min(busy.values())


@pytest.mark.parametrize("choices", [0, 2])
def test_fewest_requests_wait_less_than_random_choice(choices: int) -> None:
    found = []
    for drawn in (choices, 1):
        bench = Bench(8, Balancing(choices=drawn), rate=8 * 17.0)
        bench.env.run(until=200)
        found.append(bench.record.between(20).quantile(0.99))
    assert found[0] < 0.8 * found[1]


def test_refused_request_is_tried_on_another_server() -> None:
    shares = []
    for retries in (0, 1):
        # Of two that are full now and then, one may have room.
        bench = Bench(2, Balancing(choices=1, retries=retries), rate=39.0)
        bench.env.run(until=600)
        shares.append(bench.record.between().share(Outcome.REFUSED))
    assert shares[1] < shares[0] / 2


def test_lost_server_costs_no_request() -> None:
    bench = Bench(4, Balancing(), rate=30.0)
    call_later(bench.env, 10.0, lambda: bench.balancer.lose(bench.servers[0]))
    bench.env.run(until=60.0)
    found = bench.record.between()
    assert found.failed.total() == 0
    assert found.quantile(1.0) > 25.0  # what the server had was repeated, late
    assert bench.record.between(20.0).quantile(1.0) < 1.0


def test_without_a_retry_the_requests_of_a_lost_server_are_lost() -> None:
    bench = Bench(4, Balancing(retries=0), rate=30.0)
    call_later(bench.env, 10.0, lambda: bench.balancer.lose(bench.servers[0]))
    bench.env.run(until=60.0)
    assert 3 <= bench.record.between().failed[Outcome.LOST] < 30


def test_fleet_grows_with_the_load_and_shrinks_after_it() -> None:
    env, record, random = Environment(), Record(), Random(3)
    fleet = Fleet(env, PARAMETERS, Setup(pods=3, policy=Policy(least=2)), random)
    usual = 3 * PARAMETERS.capacity * 0.7
    by_rate(env, spike(usual, 3.0, 60.0, 360.0), fleet.send, record, random)
    env.run(until=50.0)
    assert fleet.ready in (2, 3)
    env.run(until=350.0)
    grown = fleet.ready
    assert 8 <= grown <= 14
    env.run(until=1100.0)
    assert fleet.ready <= 5
    assert record.between(200.0, 360.0).share(Outcome.REFUSED) == 0


def test_pods_of_a_lost_zone_are_replaced_elsewhere() -> None:
    env, record, random = Environment(), Record(), Random(4)
    fleet = Fleet(env, PARAMETERS, Setup(pods=6, evict_seconds=60.0), random)
    by_rate(env, steady(6 * PARAMETERS.capacity * 0.4), fleet.send, record, random)
    call_later(env, 30.0, lambda: fleet.lose_zone(0))
    env.run(until=31.0)
    assert fleet.ready == 6 - 6 // ZONES
    env.run(until=100.0)
    assert fleet.ready >= 4
    assert record.between(60.0).failed.total() == 0


def test_pod_that_starts_takes_its_time() -> None:
    env = Environment()
    fleet = Fleet(env, PARAMETERS, Setup(pods=2, start_seconds=30.0), Random(5))
    record = Record()
    by_rate(env, steady(6 * PARAMETERS.capacity), fleet.send, record, Random(6))
    env.run(until=40.0)
    assert fleet.ready == 2
    env.run(until=60.0)
    assert fleet.ready > 2


def test_a_day_is_lowest_at_midnight_and_highest_at_noon() -> None:
    rate = day(10.0, 50.0)
    assert rate(0.0) == pytest.approx(10)
    assert rate(12 * 3600.0) == pytest.approx(50)
    assert rate(6 * 3600.0) == pytest.approx(30)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(name="spike", pods=2, seconds=400.0, event=60.0, load="spike"),
        Scenario(name="zone", pods=6, seconds=200.0, event=60.0, loses_zone=True),
    ],
    ids=lambda one: one.name,
)
def test_scenario_has_a_row(scenario: Scenario) -> None:
    result = run(scenario, PARAMETERS)
    assert result.images > 1000
    assert result.least <= result.most
    assert 0 < result.p50 <= result.p99 <= result.worst * 1.01
    assert scenario.name in scenario_table([result])


def test_scenarios_have_names_of_their_own() -> None:
    names = [one.name for one in scenarios(3)]
    assert len(names) == len({*names})


@pytest.mark.parametrize("servers", [1, 3])
def test_prediction_of_callers_is_the_capacity(servers: int) -> None:
    case = Case(servers=servers, callers=32)
    found = predict(case, PARAMETERS, [], warm=5.0, seconds=20.0, pause=1.0)
    assert found.rate == pytest.approx(capacity(PARAMETERS, servers), rel=0.03)
    # By Little's law; of three servers, two share a core, and take longer.
    usual = 32 / found.rate
    assert found.p50 == pytest.approx(usual, rel=0.05) if servers == 1 else usual < found.p50
    assert found.shed == 0


def test_prediction_of_an_overload_is_the_full_queue() -> None:
    case = Case(servers=1, load=1.5)
    times = arrivals(case, PARAMETERS, 80.0, seed=1)
    found = predict(case, PARAMETERS, times, warm=30.0, seconds=50.0, pause=1.0)
    assert found.shed == pytest.approx(1 / 3, abs=0.06)
    assert found.p99 == pytest.approx(70 / found.rate, rel=0.1)


def test_faster_machine_does_more() -> None:
    assert at_speed(PARAMETERS, 2.0).capacity == pytest.approx(2 * PARAMETERS.capacity)


def measured(latency: float, rate: float, **cpu: float) -> Measured:
    summary = Summary([0.9 * latency, latency, 1.1 * latency], {})
    return Measured(summary=summary, rate=rate, cpu=cpu, late=0.0)


def test_parameters_give_back_what_was_measured() -> None:
    cpu = {"tritonserver": 1.0, "preprocess": 2.0, "postprocess": 1.5, "generator": 0.5}
    found = parameters_from(
        alone=measured(0.025, 40.0, **cpu),
        together=measured(0.04, 48.0, **cpu),
        busy=measured(0.16, 50.0, **cpu),
        envoy=0.0006,
        cores=2,
        start_seconds=4.0,
        about={},
    )
    case = Case(servers=1, callers=8)
    assert predict(case, found, [], warm=2.0, seconds=20.0, pause=1.0).rate == pytest.approx(
        50.0, rel=0.02
    )
    case = Case(servers=1, callers=1)
    assert predict(case, found, [], warm=2.0, seconds=20.0, pause=1.0).rate == pytest.approx(
        40.0, rel=0.02
    )


def test_parameters_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "parameters.json"
    _parameters.write(PARAMETERS, path)
    assert _parameters.read(path) == PARAMETERS
    assert "images/s | 20.0" in parameter_table(PARAMETERS)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"work": {"much": 1}, "limits": {}}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "parameters.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"parameters\.json is not a file of"):
        _parameters.read(path)


def test_verdict_counts_the_ratios() -> None:
    def compared(predicted: float, shed: float) -> Comparison:
        return Comparison(
            case=Case(servers=1, load=1.3),
            predicted=Figures(rate=50.0, p50=0.5, p99=predicted, shed=shed),
            measured=Figures(rate=50.0, p50=0.5, p99=1.0, shed=0.2),
            speed=1.0,
            late=0.0,
        )

    found = [compared(1.1, 0.21), compared(0.9, 0.3), compared(1.2, 0.19)]
    assert verdict(found) == (4, 6)
    assert "| 1000 / 1000" not in comparison_table(found)
    assert "| 1100 / 1000 | 1.10 |" in comparison_table(found)
