"""Processes of a running server that die or hang are noticed, logged and restarted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import (
    MODEL_PROCESSES,
    PHOTO,
    TRITON_FLAGS,
    RunningServer,
    ask_grpc,
    free_ports,
    metric,
    ready,
    regions,
    running_server,
    wait_until,
)

from yolov5_client import Client, YoloClientError
from yolov5_client._cli import main
from yolov5_server.embedded import assemble_backends, triton_folder

# Generous, for a busy machine; test_endurance.py measures the times.
SEEN_SECONDS, BACK_SECONDS = 20.0, 60.0


@pytest.fixture
def own(bundled_repository: Path, tmp_path: Path) -> Iterator[RunningServer]:
    """A server with Triton in a folder of its own, as in a container."""
    flags = TRITON_FLAGS
    if not flags:
        triton = tmp_path / "triton"
        assemble_backends(triton_folder(), triton / "backends")
        (triton / "bin").mkdir()
        (triton / "bin" / "tritonserver").symlink_to(triton_folder() / "bin" / "tritonserver")
        flags = [f"--triton={triton}"]
    with running_server(f"--repository={bundled_repository}", *flags) as running:
        yield running


@contextmanager
def asking(server: RunningServer, callers: int = 4) -> Iterator[Callable[[], int]]:
    """Keep callers asking; yields a function that counts the good answers so far."""
    stop = threading.Event()
    good = [0] * callers

    def ask(index: int) -> None:
        with Client(server.grpc, timeout=5) as client:
            while not stop.is_set():
                with suppress(YoloClientError):
                    assert len(client.detect(PHOTO)) == 11
                    good[index] += 1
                time.sleep(0.05)  # the processors are for what starts again

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(callers)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(good), 30)
        yield lambda: sum(good)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_healthy_server_reports_ready_and_live(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ready(server) == (True, "")
    with urllib.request.urlopen(f"{server.health}/live") as answer:
        assert json.load(answer) == {"live": True}
    assert metric(f"{server.health}/metrics", "yolov5_ready") == 1
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{server.health}/v2")
    assert main(["status", "--deep", "--server", server.grpc]) == 0
    assert "an image was answered" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "what", "reason"),
    [(signal.SIGKILL, "has died", "died"), (signal.SIGSTOP, "is stopped", "stopped")],
)
def test_server_with_a_failed_model_process_is_restarted(
    own: RunningServer, number: signal.Signals, what: str, reason: str
) -> None:
    before = regions(own)
    processes = len(own.processes("triton_python_backend_stub"))
    for model in MODEL_PROCESSES:
        said = len(own.log.read_text())
        victim = own.processes(f"/{model}/1/")[0]
        with asking(own) as good:
            os.kill(victim, number)
            assert_back(own, good)
        log = own.log.read_text()[said:]
        seen = rf"{model}: its process {victim} {what}"
        fallen = r"Triton ended by itself \(exit status -\d+\)"  # over a lock that the process held
        assert re.search(rf"({seen}|{fallen})\. Starting Triton again\.", log)
        assert re.search(r"Triton is back after \d+\.\d s\.", log)
        assert restarts(own, model, reason) or restarts(own, "tritonserver", "ended")
    wait_until(lambda: len(own.processes("triton_python_backend_stub")) == processes, 10)
    assert regions(own) <= before


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGKILL, r"Triton ended by itself \(exit status -9\)\."),
        (signal.SIGSTOP, r"tritonserver: its process \d+ is stopped\."),
    ],
)
def test_failed_server_is_restarted(
    own: RunningServer, number: signal.Signals, sentence: str
) -> None:
    before = regions(own)
    with asking(own) as good:
        os.kill(own.processes("bin/tritonserver")[0], number)
        assert_back(own, good)
    assert re.search(rf"{sentence} Starting Triton again\.", own.log.read_text())
    assert regions(own) <= before


def assert_back(server: RunningServer, good: Callable[[], int]) -> None:
    """Assert that the server, which has just failed, reports that and answers again in time."""
    wait_until(lambda: not ready(server)[0], SEEN_SECONDS)
    wait_until(lambda: ready(server)[0], BACK_SECONDS)
    answered = good()
    wait_until(lambda: good() > answered + 8, BACK_SECONDS)


@pytest.mark.slow
def test_busy_server_is_not_restarted(server: RunningServer) -> None:
    """Eight images of 64 megapixels are the most that one request may contain."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (400, 400, 3), np.uint8).repeat(20, 0).repeat(20, 1)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    said = len(server.log.read_text())
    started = time.monotonic()
    for _ in range(3):
        outputs = ask_grpc(server.grpc, [jpeg] * 8)
        assert (outputs["image_size"] == 8000).all()
    print(f"\n24 pictures of 64 megapixels in {time.monotonic() - started:.0f} s")
    assert "Starting Triton again" not in server.log.read_text()[said:]
    wait_until(lambda: ready(server)[0], 20)


def restarts(server: RunningServer, what: str, reason: str | None = None) -> int:
    """Restarts that the launcher has counted, for one reason or for all."""
    labels = {"what": what} | ({"reason": reason} if reason else {})
    return metric(f"{server.health}/metrics", "yolov5_restarts_total", **labels)


def kill_whatever_starts(server: RunningServer, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, server.log.read_text()
        for pid in server.processes("bin/tritonserver"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def test_server_that_keeps_ending_is_restarted_after_growing_pauses(
    bundled_repository: Path,
) -> None:
    with running_server(f"--repository={bundled_repository}") as server:
        kill_whatever_starts(server, lambda: "again in 8 s." in server.log.read_text())
        assert server.process.poll() is None
        log = server.log.read_text()
        assert re.findall(r"Starting Triton again(.*)\.\n", log) == [
            "",
            "",
            *(f" in {pause} s" for pause in ("0.5", "1", "2", "4", "8")),
        ]
        well, reason = ready(server)
        assert not well
        assert re.search(r"\. Starting Triton again in [5-8] s\.$", reason)
        assert restarts(server, "tritonserver") == 7
        assert 4 <= metric(f"{server.health}/metrics", "yolov5_restart_pause_seconds") <= 8
        assert server.stop() < 10
        assert server.process.returncode == 0
        wait_until(lambda: server.leftovers() == [], 5)


def test_repository_that_breaks_later_is_named_until_it_is_repaired(
    bundled_repository: Path, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(bundled_repository, tmp_path / "model_repository"))
    with running_server(f"--repository={repository}") as server:
        config = repository / "postprocess" / "config.pbtxt"
        config.rename(tmp_path / "aside")
        os.kill(server.processes("bin/tritonserver")[0], signal.SIGKILL)
        sentence = "model_repository/postprocess/config.pbtxt is missing"
        wait_until(lambda: sentence in ready(server)[1], 20)
        (tmp_path / "aside").rename(config)
        wait_until(lambda: ready(server)[0], BACK_SECONDS)
        log = server.log.read_text()
        assert f"{sentence}; `git checkout" in log
        assert re.search(r"Triton is back after \d+\.\d s\.", log)
        assert restarts(server, "tritonserver", "start")


def test_health_port_in_use_is_named(bundled_repository: Path) -> None:
    import socket

    (port,) = free_ports(1)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        flags = (f"--repository={bundled_repository}", f"--health-port={port}")
        with running_server(*flags, wait=False) as server:
            server.process.wait(30)
            assert "set HEALTH_PORT to another one" in server.log.read_text()
