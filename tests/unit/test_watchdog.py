"""Watch processes that look like Triton's model processes; the test takes Triton's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from yolov5_server import Settings
from yolov5_server import _loading as loading
from yolov5_server._control import ControlError
from yolov5_server._health import Health
from yolov5_server._loading import LoadStuckError, StartingProcesses
from yolov5_server._processes import cpu_seconds, model_processes
from yolov5_server._watchdog import Fault, Watchdog

Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts the process of a model."""
    processes = []

    def now(model: str) -> subprocess.Popen[bytes]:
        script = tmp_path / model / "1" / "model.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text("import time\ntime.sleep(60)")
        stub = "/backends/python/triton_python_backend_stub"
        process = subprocess.Popen([stub, str(script)], executable=sys.executable)
        processes.append(process)
        while process.pid not in model_processes(os.getpid()):
            assert process.poll() is None
        return process

    yield now
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def watchdog() -> Iterator[tuple[Watchdog, list[Fault]]]:
    """A watchdog that watches the processes, and the faults that it has found."""
    found: list[Fault] = []
    should_exit = threading.Event()
    one = Watchdog(
        server=os.getpid(),
        loading=threading.Lock(),
        health=Health(Settings()),
        on_fault=found.append,
    )
    thread = threading.Thread(target=one.watch_processes, args=(should_exit,))
    thread.start()
    yield one, found
    should_exit.set()
    thread.join()


def wait_for(found: list[Fault], seconds: float = 5.0) -> Fault:
    deadline = time.monotonic() + seconds
    while not found:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[0]


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


class UnansweredCanaries(Health):
    """Health of a server whose canaries fail; it counts them."""

    def __init__(self) -> None:
        super().__init__(Settings())
        self.failed = 0

    def hangs(self) -> str | None:
        self.failed += 1
        return "Triton does not answer"

    def progress(self) -> float:
        return 0.0


@pytest.mark.parametrize("is_loading", [False, True])
def test_endpoint_that_keeps_failing_is_a_fault_unless_models_are_loading(is_loading: bool) -> None:
    health, found, loading_models = UnansweredCanaries(), list[Fault](), threading.Lock()
    should_exit = threading.Event()
    one = Watchdog(server=os.getpid(), loading=loading_models, health=health, on_fault=found.append)
    thread = threading.Thread(target=one.watch_endpoint, args=(should_exit,))
    if is_loading:
        loading_models.acquire()
    thread.start()
    deadline = time.monotonic() + 10
    while health.failed < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if is_loading:
        time.sleep(0.1)
        assert not found
    else:
        assert wait_for(found) == Fault(
            what="tritonserver",
            reason="hung",
            sentence="Triton hangs: Triton does not answer.",
        )
    should_exit.set()
    thread.join(5)
    assert not thread.is_alive()


def test_watchdog_reports_nothing_once_it_should_exit() -> None:
    health, found, should_exit = UnansweredCanaries(), list[Fault](), threading.Event()
    one = Watchdog(
        server=os.getpid(), loading=threading.Lock(), health=health, on_fault=found.append
    )
    should_exit.set()
    one.watch_endpoint(should_exit)
    assert (health.failed, found) == (0, [])


def test_end_of_an_expected_process_is_a_fault(
    start: Start, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    process = start("postprocess")
    one.expect(["postprocess"])
    time.sleep(0.3)
    end(process)
    fault = wait_for(found)
    assert (fault.what, fault.reason) == ("postprocess", "died")
    assert fault.sentence == f"postprocess: its process {process.pid} has died."


def test_process_that_stays_stopped_is_a_fault(
    start: Start, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    process = start("yolov5.2")
    one.expect(["yolov5.2"])
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    assert not found
    fault = wait_for(found)
    assert (fault.what, fault.reason) == ("yolov5", "stopped")


def test_end_of_an_earlier_networks_process_is_no_fault(
    start: Start, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    first = start("yolov5")
    one.expect(["yolov5"])
    incoming = start("yolov5.2")
    one.expect(None)
    one.expect(["yolov5.2"])
    second = start("yolov5")
    one.expect(None)
    one.expect(["yolov5"])
    for process in (incoming, first):
        end(process)
        time.sleep(0.5)
        assert not found
    end(second)
    assert wait_for(found).sentence == f"yolov5: its process {second.pid} has died."


def test_process_that_ended_before_the_cut_over_is_a_fault(
    start: Start, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    start("yolov5")
    one.expect(["yolov5"])
    loaded = start("yolov5.2")
    one.expect(None)
    end(loaded)
    one.expect(["yolov5.2"])
    fault = wait_for(found)
    assert (fault.what, fault.sentence) == ("yolov5", "yolov5.2: its process has died.")


def test_old_network_is_still_watched_after_a_failed_reload(
    start: Start, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    old = start("yolov5")
    one.expect(["yolov5"])
    failed = start("yolov5.2")
    one.expect(None)
    one.expect(["yolov5"])
    end(failed)
    time.sleep(0.3)
    assert not found
    end(old)
    assert wait_for(found).sentence == f"yolov5: its process {old.pid} has died."


def test_no_end_is_a_fault_while_the_models_are_changing(
    start: Start, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    process = start("yolov5")
    one.expect(["yolov5"])
    one.expect(None)
    end(process)
    time.sleep(0.5)
    assert not found


def test_load_is_given_up_when_its_process_has_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_GONE_SECONDS", 0.3)
    release = threading.Event()

    def waits_for_ever(*_: object) -> None:
        process = start("yolov5.2")
        time.sleep(0.4)
        end(process)
        release.wait(60)

    with pytest.raises(LoadStuckError, match="a process of yolov5.2 has ended while it"):
        loading.load(waits_for_ever, "yolov5.2", server=os.getpid(), has_process=True)
    release.set()


def test_failed_load_raises_tritons_reason() -> None:
    def fails(*_: object) -> None:
        raise ControlError("no such file")

    with pytest.raises(ControlError, match="no such file"):
        loading.load(fails, "yolov5", server=os.getpid(), has_process=True)


def test_process_that_stays_stopped_while_loading_is_killed(start: Start) -> None:
    now = [0.0]
    processes = StartingProcesses(os.getpid(), ["preprocess"], clock=lambda: now[0])
    process = start("preprocess")
    process.send_signal(signal.SIGSTOP)
    while not processes.are_stuck():
        now[0] += 1.0
        assert now[0] < 30
        time.sleep(0.05)
    assert process.wait(5) == -signal.SIGKILL


def test_load_is_stuck_if_a_process_never_appears(start: Start) -> None:
    now = [0.0]
    models = ["preprocess", "postprocess"]
    processes = StartingProcesses(os.getpid(), models, clock=lambda: now[0])
    start("preprocess")
    assert not processes.are_stuck()
    now[0] += 19.0
    assert not processes.are_stuck()
    now[0] += 2.0
    assert processes.are_stuck()
    start("postprocess")
    assert not processes.are_stuck()


def test_cpu_time_includes_the_model_processes(start: Start) -> None:
    before = cpu_seconds(os.getpid())
    start("yolov5")
    sum(range(3_000_000))
    assert cpu_seconds(os.getpid()) > before
