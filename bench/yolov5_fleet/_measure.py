"""Measure one real server, and whether the simulation foretells other loads on one and three."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import mean

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from yolov5_bench.__main__ import machine
from yolov5_build.paths import REPOSITORY
from yolov5_build.steps import step_module

from ._envoy import running_envoy
from ._parameters import QUANTILES, Parameters
from ._predict import Case, Figures, arrivals, at_speed, figures, predict
from ._real import PAUSE_SECONDS, Measured, RealServer, load, on_cores, running_server
from ._server import Limits, Work

SERVERS = 3
CORES = sorted(os.sched_getaffinity(0))
_BUSY = 8  # callers that keep a small machine busy; more are needed on more cores
_ONE, _ALL = "one", "all"  # Envoy's ports: for a single server, and for all
CASES = tuple(
    Case(servers=servers, callers=callers, load=share)
    for servers in (1, SERVERS)
    for callers, share in ((0, 0.6), (0, 0.8), (0, 1.5), (32, 0.0), (96, 0.0))
)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long things are measured, in seconds.

    Attributes:
        calibration: each of its loads.
        case: a case.
        reference: the look at the machine's speed before and after a case.
        warm: at the beginning of each.
    """

    calibration: float = 10.0
    case: float = 20.0
    reference: float = 4.0
    warm: float = 2.0

    def shortened(self, factor: float) -> Lengths:
        """The same, but for a try."""
        return Lengths(
            calibration=self.calibration * factor,
            case=self.case * factor,
            reference=self.reference * factor,
            warm=self.warm * factor,
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A case, as it was foretold and as it was.

    Attributes:
        speed: of the machine then, relative to the calibration.
        late: the longest that a request was sent after its time, in seconds.
    """

    case: Case
    predicted: Figures
    measured: Figures
    speed: float
    late: float


class Rig:
    """Real servers, and Envoy in front of them.

    Args:
        first: has all cores.
        others: have one core each, as in `_predict`.
        envoy: its PID.
        addresses: its ports, to the first server and to the others.
    """

    def __init__(
        self,
        first: RealServer,
        others: Sequence[RealServer],
        envoy: int,
        addresses: dict[str, str],
        lengths: Lengths,
    ) -> None:
        self._first = first
        self._others = others
        self._envoy = envoy
        self._addresses = addresses
        self._lengths = lengths

    def calibrate(self, precision: str, load: float) -> Parameters:
        """Measure the parameters with the first server alone.

        Args:
            load: load average of the machine before, for the reader.
        """
        cores = len(CORES)
        alone = self._load_first(callers=1)
        together = self._load_first(callers=cores)
        busy = self._load_first(callers=_busy_callers(cores))
        behind = self._load_first(callers=_busy_callers(cores), behind_envoy=True)
        return parameters_from(
            alone=alone,
            together=together,
            busy=busy,
            envoy=behind.cpu["envoy"] / 1000,
            cores=cores,
            start_seconds=self._first.start_seconds,
            about={
                "machine": machine(),
                "precision": precision,
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "load average before": f"{load:.1f}",
            },
        )

    def compare(self, cases: Sequence[Case], parameters: Parameters) -> Iterator[Comparison]:
        """Measure each case, and simulate it."""
        usual = parameters.cores / _demand(parameters)
        before = self._speed(parameters.cores, usual)
        for seed, case in enumerate(cases):
            now = at_speed(parameters, before)
            times = arrivals(case, now, self._lengths.warm + self._lengths.case, seed)
            found = self._load_case(case, times)
            after = self._speed(parameters.cores, usual)
            speed = mean((before, after))
            predicted = predict(
                case,
                at_speed(parameters, speed),
                times,
                warm=self._lengths.warm,
                seconds=self._lengths.case,
                pause=PAUSE_SECONDS,
            )
            yield Comparison(
                case=case,
                predicted=predicted,
                measured=figures(found.summary, found.rate),
                speed=speed,
                late=found.late,
            )
            before = after

    def _load_case(self, case: Case, times: Sequence[float]) -> Measured:
        alone = case.servers == 1
        with (
            paused(self._others if alone else [self._first]),
            on_cores(CORES if alone else CORES[-1:]),
        ):
            return load(
                self._first.address if alone else self._addresses[_ALL],
                warm=self._lengths.warm,
                seconds=self._lengths.case,
                callers=case.callers,
                times=times,
            )

    def _load_first(self, *, callers: int, behind_envoy: bool = False) -> Measured:
        with paused(self._others):
            return load(
                self._addresses[_ONE] if behind_envoy else self._first.address,
                warm=self._lengths.warm,
                seconds=self._lengths.calibration,
                callers=callers,
                launchers=[self._first.process],
                envoy=self._envoy,
            )

    def _speed(self, cores: int, usual: float) -> float:
        """How fast the machine is now; it has other guests, and its speed drifts."""
        with paused(self._others):
            found = load(
                self._first.address,
                warm=self._lengths.warm / 2,
                seconds=self._lengths.reference,
                callers=_busy_callers(cores),
            )
        return found.rate / usual


def _busy_callers(cores: int) -> int:
    return max(_BUSY, 4 * cores)


def _demand(parameters: Parameters) -> float:
    """Seconds of CPU for an image of a server that is asked directly."""
    work = parameters.work
    return parameters.generator + work.prepare + work.network + work.finish


def parameters_from(
    *,
    alone: Measured,
    together: Measured,
    busy: Measured,
    envoy: float,
    cores: int,
    start_seconds: float,
    about: dict[str, str],
) -> Parameters:
    """Turn what was measured into parameters.

    The rate of a busy server says what an image costs in all, and CPU times what the steps take of
    it; the rest is the network's. What a single caller waits beyond the steps is the network on all
    cores.

    Args:
        alone, together, busy: with one caller, with one for each core, and with many.
        envoy: seconds of CPU for a request.
    """
    steps = {name: milliseconds / 1000 for name, milliseconds in busy.cpu.items()}
    prepare = steps["preprocess"] + steps["tritonserver"]
    finish, generator = steps["postprocess"], steps["generator"]
    beside = sum(alone.cpu[name] for name in ("preprocess", "tritonserver", "postprocess"))
    latencies = alone.summary.latencies
    spread = together.summary.latencies / together.summary.latencies.mean()
    return Parameters(
        about=about,
        cores=cores,
        work=Work(
            prepare=prepare,
            network=cores / busy.rate - prepare - finish - generator,
            network_alone=float(latencies.mean()) - (beside + alone.cpu["generator"]) / 1000,
            finish=finish,
            refuse=steps["tritonserver"],
        ),
        limits=read_limits(),
        limits_of_one_core=_limits_of_one_core(),
        generator=generator,
        balancer=envoy,
        spread=np.quantile(spread, np.linspace(0, 1, QUANTILES)).tolist(),
        start_seconds=start_seconds,
    )


def _limits_of_one_core() -> Limits:
    with on_cores(CORES[:1]):
        return read_limits()


def read_limits() -> Limits:
    """The settings of the queue, as the installed server reads them on this machine."""
    text = (REPOSITORY / "preprocess" / "config.pbtxt").read_text("utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    values = {name: one.string_value for name, one in config.parameters.items()}
    settings = step_module("preprocess", "settings").read_settings(values, ())
    return Limits(
        max_queued_images=settings.max_queued_images,
        max_queue_seconds=settings.max_queue_seconds,
        max_in_flight_images=settings.max_in_flight_images,
    )


@contextmanager
def paused(servers: Sequence[RealServer]) -> Iterator[None]:
    """Stop the launchers of idle servers."""
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server.paused())
        yield


@contextmanager
def open_rig(precision: str, lengths: Lengths) -> Iterator[Rig]:
    """Start the servers and Envoy."""
    with ExitStack() as stack:
        servers: list[RealServer] = []
        last = CORES[-1:]
        for cores in (CORES, *([CORES[number % len(CORES)]] for number in range(SERVERS))):
            with paused(servers), on_cores(cores):
                server = stack.enter_context(running_server(precision))
            servers.append(server)
        first, *others = servers
        groups = {_ONE: [first.address], _ALL: [server.address for server in others]}
        with on_cores(last):
            envoy, ports = stack.enter_context(running_envoy(groups))
        yield Rig(first, others, envoy, ports, lengths)
