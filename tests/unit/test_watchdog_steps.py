"""Watch a Triton on a clock that the test moves; only the states of the processes are needed."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

import pytest

from yolov5_server import Settings, _watchdog
from yolov5_server._health import Health
from yolov5_server._probe import LATE
from yolov5_server._processes import ModelProcess
from yolov5_server._watchdog import Fault, Watchdog, _wait_for_exit


class Process:
    """Takes the place of a process."""

    def __init__(self, pid: int) -> None:
        self.pid, self.is_alive, self.is_stopped = pid, True, False


class Machine:
    """A Triton and its model processes, on a clock that a test moves.

    Attributes:
        running: in any order.
        found: faults.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.server = 100.0, Process(1)
        self.running: list[ModelProcess] = []
        self.found: list[Fault] = []
        fakes: dict[str, object] = {
            "time": SimpleNamespace(monotonic=lambda: self.now),
            "psutil": SimpleNamespace(Process=lambda pid: self.server),
            "model_processes": lambda pid: [
                one
                for one in self.running
                if one.process.is_alive  # type: ignore[attr-defined]
            ],
            "is_alive": lambda process: process.is_alive,
            "is_stopped": lambda process: process.is_stopped,
            "cpu_seconds": lambda pid: 0.0,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(_watchdog, name, fake)
        self._patch = monkeypatch
        self.loading = threading.Lock()
        self.health = Health(Settings())
        self.health.finished_images = lambda network="": 0.0  # type: ignore[method-assign]
        self.watchdog = Watchdog(
            server=1, loading=self.loading, health=self.health, on_fault=self.found.append
        )

    def start(self, model: str) -> Process:
        process = Process(10 + len(self.running))
        one: Any = process
        # The youngest is listed first.
        self.running.insert(0, ModelProcess(process=one, started=one.pid, model=model))
        return process

    def watch(self, *steps: Callable[[], object]) -> list[Fault]:
        """Watch the processes, with these steps between two checks; the faults that are new."""
        ended, left = threading.Event(), [*steps]

        def go_on(pids: Collection[int], seconds: float) -> None:
            assert seconds == 0.2
            if left:
                left.pop(0)()
            else:
                ended.set()

        self._patch.setattr(_watchdog, "_wait_for_exit", go_on)
        before = len(self.found)
        self.watchdog.watch_processes(ended)
        return self.found[before:]

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def end(process: Process) -> Callable[[], object]:
    return lambda: setattr(process, "is_alive", False)


def stop(process: Process, stopped: bool = True) -> Callable[[], object]:
    return lambda: setattr(process, "is_stopped", stopped)


def test_reloaded_model_is_watched_in_its_new_process_only(machine: Machine) -> None:
    old = machine.start("yolov5")
    machine.watchdog.expect(["yolov5"])
    new = machine.start("yolov5")
    machine.watchdog.expect(["yolov5"])
    assert machine.watch(end(old)) == []
    (fault,) = machine.watch(end(new))
    assert fault == Fault(
        what="yolov5", reason="died", sentence=f"yolov5: its process {new.pid} has died."
    )


def test_process_of_an_unchanged_model_stays_watched(machine: Machine) -> None:
    kept, other = machine.start("yolov5"), machine.start("yolov5")
    machine.watchdog.expect(["yolov5"])
    machine.start("preprocess")
    machine.watchdog.expect(None)
    machine.watchdog.expect(["yolov5", "preprocess"])
    (fault,) = machine.watch(end(kept))
    assert fault.sentence == f"yolov5: its process {kept.pid} has died."
    kept.is_alive = True
    (fault,) = machine.watch(end(other))
    assert fault.sentence == f"yolov5: its process {other.pid} has died."


def test_youngest_process_is_watched_if_none_is_known(machine: Machine) -> None:
    machine.start("preprocess")
    old, young = machine.start("yolov5"), machine.start("yolov5")
    machine.watchdog.expect(["preprocess"])
    machine.watchdog.expect(["yolov5"])
    assert machine.watch(end(old)) == []
    assert len(machine.watch(end(young))) == 1


def test_model_that_never_had_a_process_may_have_none(machine: Machine) -> None:
    """In a container the network's backend may be in C++."""
    machine.start("preprocess")
    machine.watchdog.expect(["preprocess", "yolov5"])
    assert machine.watch() == []
    machine.watchdog.expect(None)
    machine.watchdog.expect(["preprocess", "yolov5.2"])
    assert machine.watch() == []


def test_model_whose_process_ended_before_the_cut_over_is_a_fault(machine: Machine) -> None:
    machine.start("yolov5")
    machine.watchdog.expect(["yolov5"])
    loaded = machine.start("yolov5.2")
    machine.watchdog.expect(None)
    machine.watchdog.expect(None)
    loaded.is_alive = False
    machine.watchdog.expect(["yolov5.2"])
    assert machine.watch() == [
        Fault(what="yolov5", reason="died", sentence="yolov5.2: its process has died.")
    ]


def test_first_process_of_a_further_network_may_not_end_before_its_cut_over(
    machine: Machine,
) -> None:
    watchdog = Watchdog(
        server=1,
        loading=machine.loading,
        health=machine.health,
        on_fault=machine.found.append,
        have_processes=True,
    )
    machine.watchdog = watchdog
    machine.start("preprocess")
    watchdog.expect(["preprocess"])
    loaded = machine.start("plates.2")
    watchdog.expect(None)
    loaded.is_alive = False
    watchdog.expect(["preprocess", "plates.2"])
    assert machine.watch() == [
        Fault(what="plates", reason="died", sentence="plates.2: its process has died.")
    ]


def test_process_may_be_stopped_for_a_second(machine: Machine) -> None:
    process = machine.start("yolov5.2")
    machine.watchdog.expect(["yolov5.2"])
    second, more = lambda: machine.wait(1.0), lambda: machine.wait(0.25)
    assert machine.watch(stop(process), second) == []
    assert machine.watch(stop(process, False), more, stop(process), second) == []
    assert machine.watch(more) == [
        Fault(
            what="yolov5",
            reason="stopped",
            sentence=f"yolov5.2: its process {process.pid} is stopped.",
        )
    ]


def test_stopped_server_is_a_fault(machine: Machine) -> None:
    steps = [stop(machine.server), lambda: machine.wait(1.0), lambda: machine.wait(0.25)]
    assert machine.watch(*steps[:2]) == []
    assert machine.watch(steps[2]) == [
        Fault(
            what="tritonserver",
            reason="stopped",
            sentence="tritonserver: its process 1 is stopped.",
        )
    ]


def test_end_of_the_server_itself_is_reported_by_others(machine: Machine) -> None:
    process = machine.start("yolov5")
    machine.watchdog.expect(["yolov5"])
    assert machine.watch(lambda: (end(process)(), end(machine.server)())) == []


def test_fault_is_not_reported_once_the_watch_should_exit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.start("yolov5").is_alive = True
    machine.watchdog.expect(["yolov5"])
    ended = threading.Event()

    def is_alive(process: Process) -> bool:
        if process is machine.server:
            return True
        ended.set()  # between the look at the event and at the process
        return False

    monkeypatch.setattr(_watchdog, "is_alive", is_alive)
    machine.watchdog.watch_processes(ended)
    assert machine.found == []


class Waits(threading.Event):
    """Records how long it is waited for; is set after so many times."""

    def __init__(self, machine: Machine, times: int) -> None:
        super().__init__()
        self.machine, self.times, self.seconds = machine, times, list[float]()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout
        self.machine.now += timeout
        self.seconds.append(timeout)
        if len(self.seconds) > self.times:
            self.set()
        return self.is_set()


def watch_endpoint(machine: Machine, reasons: list[str | None]) -> list[float]:
    """Watch with these answers to canaries; the seconds between them."""
    waits = Waits(machine, len(reasons))
    left = iter(reasons)
    machine.health.unanswered_reason = lambda network="": next(left)  # type: ignore[method-assign]
    machine.watchdog.watch_endpoints(waits)
    return waits.seconds


def test_dead_endpoint_is_asked_again_at_once_and_given_up(machine: Machine) -> None:
    assert watch_endpoint(machine, ["dead", None, "dead", "dead", "dead"]) == [1, 0.2, 1, 0.2]
    assert machine.found == [
        Fault(what="tritonserver", reason="hung", sentence="Triton hangs: dead.")
    ]


def test_late_endpoint_is_given_up_when_it_computes_nothing(machine: Machine) -> None:
    late = LATE
    assert len(watch_endpoint(machine, [late] * 15)) == 16
    assert machine.found == []
    assert len(watch_endpoint(machine, [late] * 60)) in (21, 22), "after four seconds"
    assert machine.found[0].sentence == f"Triton hangs: {late}."


def test_endpoint_is_not_judged_while_models_are_loading(machine: Machine) -> None:
    with machine.loading:
        assert watch_endpoint(machine, ["dead"] * 3) == [1] * 4
    assert machine.found == []


def test_hung_endpoint_is_not_reported_once_the_watch_should_exit(machine: Machine) -> None:
    waits = Waits(machine, 5)
    reasons = iter(["dead", "dead"])

    def reason(network: str = "") -> str:
        if len(waits.seconds) == 2:
            waits.set()
        return next(reasons)

    machine.health.unanswered_reason = reason  # type: ignore[method-assign]
    machine.watchdog.watch_endpoints(waits)
    assert machine.found == []


def test_end_of_any_process_ends_the_wait() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (a folder of the kernel's)

    before = open_files()
    sleeping = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    try:
        started = time.monotonic()
        _wait_for_exit([one.pid for one in sleeping], 0.05)
        assert 0.04 < time.monotonic() - started < 5
        for one in sleeping[::-1]:
            one.kill()
            # Without `poll` for the one, which would take the ended process away.
            one_of_two = [other.pid for other in sleeping if other is one or other.poll() is None]
            started = time.monotonic()
            _wait_for_exit(one_of_two, 20)
            assert time.monotonic() - started < 10
            one.wait(5)
        _wait_for_exit([one.pid for one in sleeping], 0.01)
    finally:
        for one in sleeping:
            one.kill()
            one.wait(5)
    assert open_files() == before
