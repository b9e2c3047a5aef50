"""Load models on a clock that the test moves; only the states of the processes are needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil
import pytest

from yolov5_server import _loading as loading
from yolov5_server._control import ControlError
from yolov5_server._loading import LoadStuckError, StartingProcesses


class Process:
    """Takes the place of a process.

    Attributes:
        status: as psutil says it.
        kills: how often it was killed.
    """

    def __init__(self) -> None:
        self.is_stopped, self.kills = False, 0

    def status(self) -> str:
        return psutil.STATUS_STOPPED if self.is_stopped else psutil.STATUS_SLEEPING

    def kill(self) -> None:
        self.kills += 1
        raise psutil.NoSuchProcess(0)


class Machine:
    """Its clock, and the processes of a Triton with the models that they serve."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.looked = 100.0, 0
        self.running: dict[Process, str | None] = {}
        monkeypatch.setattr(loading, "starting_processes", self.look)

    def look(self, server: int) -> dict[Process, str | None]:
        self.looked += 1
        return dict(self.running)

    def start(self, *models: str) -> StartingProcesses:
        return StartingProcesses(1, models, clock=lambda: self.now)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_processes_are_looked_at_five_times_a_second(machine: Machine) -> None:
    processes = machine.start()
    machine.looked, machine.now = 0, 0.0
    for now, looked in ((0.0, 1), (0.1, 1), (0.2, 2), (0.39, 2), (0.4, 3)):
        machine.now = now
        assert not processes.are_stuck()
        assert machine.looked == looked


def test_load_is_stuck_five_seconds_after_the_end_of_a_process(machine: Machine) -> None:
    earlier, process = Process(), Process()
    machine.running = {earlier: "yolov5"}
    processes = machine.start("yolov5.2")
    machine.running = {process: "yolov5.2"}
    assert not processes.are_stuck(), "the earlier process may end"
    machine.now += 1
    machine.running = {}
    assert not processes.are_stuck()
    machine.now += 5
    assert not processes.are_stuck()
    machine.running = {process: "yolov5.2"}
    machine.now += 0.25
    assert not processes.are_stuck(), "it was only not seen"
    machine.running = {}
    for seconds, stuck in ((0.25, False), (5, False), (0.25, True)):
        machine.now += seconds
        assert processes.are_stuck() is stuck


def test_load_is_stuck_after_twenty_seconds_without_a_process(machine: Machine) -> None:
    machine.running = {Process(): "yolov5"}
    processes = machine.start("preprocess", "yolov5")
    for seconds, stuck in ((0, False), (20, False), (0.25, True)):
        machine.now += seconds
        assert processes.are_stuck() is stuck
    machine.running |= {Process(): "preprocess", Process(): None, Process(): "yolov5"}
    machine.now += 1
    assert not processes.are_stuck()
    machine.now += 60
    assert not processes.are_stuck()


def test_model_without_a_process_of_its_own_is_not_missed(machine: Machine) -> None:
    processes = machine.start()
    for _ in range(3):
        machine.now += 60
        assert not processes.are_stuck()


def test_process_is_killed_when_it_was_stopped_for_five_seconds(machine: Machine) -> None:
    earlier, process = Process(), Process()
    earlier.is_stopped = True
    machine.running = {earlier: "yolov5"}
    processes = machine.start("yolov5")
    machine.running[process] = "yolov5"
    for stopped, seconds, kills in (
        *((True, 0, 0), (True, 5, 0), (False, 0.25, 0), (True, 0.25, 0), (True, 5, 0)),
        *((True, 0.25, 1), (True, 0.25, 2)),
    ):
        process.is_stopped = stopped
        machine.now += seconds
        assert not processes.are_stuck()
        assert process.kills == kills
    assert earlier.kills == 0


def load_with(work: Callable[[], object], *, has_process: bool = False) -> None:
    loading.load(lambda name: work(), "yolov5.2", server=1, has_process=has_process)  # type: ignore


def test_slow_load_is_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_POLL_SECONDS", 0.01)
    found: list[object] = []

    def work() -> None:
        time.sleep(0.05)
        found.append(threading.current_thread().daemon)

    load_with(work)
    assert found == [True], "a load that hangs must not keep the launcher from ending"


def test_process_is_missed_only_if_the_model_has_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(loading, "_MISSING_SECONDS", 0.03)
    load_with(lambda: time.sleep(0.1))
    release = threading.Event()
    with pytest.raises(LoadStuckError, match="a process of yolov5.2 has ended while it was load"):
        load_with(lambda: release.wait(10), has_process=True)
    release.set()


def test_any_error_of_a_load_is_raised(machine: Machine) -> None:
    for error in (ControlError("no"), OSError("no"), KeyError("no")):
        with pytest.raises(type(error), match="no"):
            load_with(lambda error=error: (_ for _ in ()).throw(error))  # type: ignore[misc]
