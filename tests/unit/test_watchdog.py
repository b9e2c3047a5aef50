"""Watch processes that look like Triton's model processes; the test takes Triton's place."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from support import StartModel, kill_process

from yolov5_server import Settings, _watchdog
from yolov5_server._health import Health
from yolov5_server._watchdog import Fault, Watchdog


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the watchdog look more often, so that the tests need not wait long for it."""
    monkeypatch.setattr(_watchdog, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(_watchdog, "_CANARY_SECONDS", 0.25)


SEVERAL_LOOKS = 0.2  # seconds


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


class UnansweredCanaries(Health):
    """Health of a server whose canaries fail; it counts them."""

    def __init__(self) -> None:
        super().__init__(Settings())
        self.failed = 0

    def unanswered_reason(self, network: str = "") -> str | None:
        self.failed += 1
        return "Triton does not answer"

    def finished_images(self, network: str = "") -> float:
        return 0.0


@pytest.mark.parametrize("is_loading", [False, True])
def test_endpoint_that_keeps_failing_is_a_fault_unless_models_are_loading(is_loading: bool) -> None:
    health, found, loading_models = UnansweredCanaries(), list[Fault](), threading.Lock()
    should_exit = threading.Event()
    one = Watchdog(server=os.getpid(), loading=loading_models, health=health, on_fault=found.append)
    thread = threading.Thread(target=one.watch_endpoints, args=(should_exit,))
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


def test_endpoint_that_is_to_blame_is_logged_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    health, said = UnansweredCanaries(), list[str]()
    monkeypatch.setattr(_watchdog, "log", said.append)
    health.up(["plates"])
    monkeypatch.setattr(health, "is_to_blame", lambda network: network == "plates")
    found: list[Fault] = []
    should_exit = threading.Event()
    one = Watchdog(
        server=os.getpid(), loading=threading.Lock(), health=health, on_fault=found.append
    )
    monkeypatch.setattr(_watchdog, "_CANARY_SECONDS", 0.01)
    monkeypatch.setattr(_watchdog, "_POLL_SECONDS", 0.01)
    thread = threading.Thread(target=one.watch_endpoints, args=(should_exit,))
    thread.start()
    deadline = time.monotonic() + 10
    while health.failed < 8:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    should_exit.set()
    thread.join(5)
    assert found == []
    assert said == [
        "plates_ensemble cannot be used: Triton does not answer. The other endpoints go on."
    ]


def test_watchdog_reports_nothing_once_it_should_exit() -> None:
    health, found, should_exit = UnansweredCanaries(), list[Fault](), threading.Event()
    one = Watchdog(
        server=os.getpid(), loading=threading.Lock(), health=health, on_fault=found.append
    )
    should_exit.set()
    one.watch_endpoints(should_exit)
    assert (health.failed, found) == (0, [])


def test_end_of_an_expected_process_is_a_fault(
    start_model: StartModel, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    process = start_model("postprocess")
    one.expect(["postprocess"])
    time.sleep(SEVERAL_LOOKS)
    kill_process(process)
    fault = wait_for(found)
    assert (fault.what, fault.reason) == ("postprocess", "died")
    assert fault.sentence == f"postprocess: its process {process.pid} has died."


def test_process_that_stays_stopped_is_a_fault(
    start_model: StartModel, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    process = start_model("yolov5.2")
    one.expect(["yolov5.2"])
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    assert not found
    fault = wait_for(found)
    assert (fault.what, fault.reason) == ("yolov5", "stopped")


def test_end_of_an_earlier_networks_process_is_no_fault(
    start_model: StartModel, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    first = start_model("yolov5")
    one.expect(["yolov5"])
    incoming = start_model("yolov5.2")
    one.expect(None)
    one.expect(["yolov5.2"])
    second = start_model("yolov5")
    one.expect(None)
    one.expect(["yolov5"])
    for process in (incoming, first):
        kill_process(process)
        time.sleep(SEVERAL_LOOKS)
        assert not found
    kill_process(second)
    assert wait_for(found).sentence == f"yolov5: its process {second.pid} has died."


def test_process_that_ended_before_the_cut_over_is_a_fault(
    start_model: StartModel, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    start_model("yolov5")
    one.expect(["yolov5"])
    loaded = start_model("yolov5.2")
    one.expect(None)
    kill_process(loaded)
    one.expect(["yolov5.2"])
    fault = wait_for(found)
    assert (fault.what, fault.sentence) == ("yolov5", "yolov5.2: its process has died.")


def test_old_network_is_still_watched_after_a_failed_reload(
    start_model: StartModel, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    old = start_model("yolov5")
    one.expect(["yolov5"])
    failed = start_model("yolov5.2")
    one.expect(None)
    one.expect(["yolov5"])
    kill_process(failed)
    time.sleep(SEVERAL_LOOKS)
    assert not found
    kill_process(old)
    assert wait_for(found).sentence == f"yolov5: its process {old.pid} has died."


def test_no_end_is_a_fault_while_the_models_are_changing(
    start_model: StartModel, watchdog: tuple[Watchdog, list[Fault]]
) -> None:
    one, found = watchdog
    process = start_model("yolov5")
    one.expect(["yolov5"])
    one.expect(None)
    kill_process(process)
    time.sleep(SEVERAL_LOOKS)
    assert not found
