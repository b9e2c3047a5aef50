"""Load models whose processes look like Triton's; the test takes Triton's place."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from support import StartModel, kill_process

from yolov5_server import _loading as loading
from yolov5_server._control import ControlError
from yolov5_server._loading import LoadStuckError, StartingProcesses


def test_load_is_given_up_when_its_process_has_ended(
    start_model: StartModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_GONE_SECONDS", 0.3)
    release = threading.Event()

    def waits_for_ever(*_: object) -> None:
        process = start_model("yolov5.2")
        time.sleep(0.4)
        kill_process(process)
        release.wait(60)

    with pytest.raises(LoadStuckError, match="a process of yolov5.2 has ended while it"):
        loading.load(waits_for_ever, "yolov5.2", server=os.getpid(), has_process=True)
    release.set()


def test_failed_load_raises_tritons_reason() -> None:
    def fails(*_: object) -> None:
        raise ControlError("no such file")

    with pytest.raises(ControlError, match="no such file"):
        loading.load(fails, "yolov5", server=os.getpid(), has_process=True)


def test_process_that_stays_stopped_while_loading_is_killed(start_model: StartModel) -> None:
    now = [0.0]
    processes = StartingProcesses(os.getpid(), ["preprocess"], clock=lambda: now[0])
    process = start_model("preprocess")
    process.send_signal(signal.SIGSTOP)
    while not processes.are_stuck():
        now[0] += 1.0
        assert now[0] < 30
        time.sleep(0.05)
    assert process.wait(5) == -signal.SIGKILL


def test_load_is_stuck_if_a_process_never_appears(start_model: StartModel) -> None:
    now = [0.0]
    models = ["preprocess", "postprocess"]
    processes = StartingProcesses(os.getpid(), models, clock=lambda: now[0])
    start_model("preprocess")
    assert not processes.are_stuck()
    now[0] += 19.0
    assert not processes.are_stuck()
    now[0] += 2.0
    assert processes.are_stuck()
    start_model("postprocess")
    assert not processes.are_stuck()
