"""Install another network while the server answers requests."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from support import (
    BUNDLED,
    PHOTO,
    Outputs,
    RunningServer,
    ask_grpc,
    infer,
    make_repository,
    post_raw,
    ready,
    running_server,
    samples,
    wait_until,
)

from yolov5_build.cli import main as build
from yolov5_server._reload import _locked

SECONDS = 60  # for one reload, on two busy cores
RELOADS = int(os.environ.get("RELOADS", "20"))
SQUARE, SMALL = ["--imgsz=640"], ["--imgsz=320", "--reduced-head"]
FULL = ["--imgsz=320"]
EVERYTHING = {"conf_thres": 0.01}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path, BUNDLED, *SQUARE)


def install(repository: Path, *arguments: str) -> None:
    """Run `make model`, which measures the network and takes its time."""
    assert build([str(BUNDLED), *arguments, f"--repository={repository}"]) == 0


def exchange(repository: Path, version: int, *arguments: str) -> None:
    """Replace the served network as `make model` does in the end, with one prepared before."""
    folder = repository.parent / f"new-{version}"
    new = make_repository(folder, BUNDLED, *arguments) / "yolov5"
    (new / "1").rename(new / str(version))
    with _locked(repository):
        (repository / "yolov5").rename(folder / "old")
        new.rename(repository / "yolov5")
    shutil.rmtree(folder)


def wait_for(server: RunningServer, line: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while line not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.1)


def fingerprint(outputs: Outputs) -> tuple[int, float]:
    return outputs["num_dets"].item(), round(float(outputs["det_scores"].sum()), 2)


@contextmanager
def callers(
    server: RunningServer, count: int, pause: float = 0.0
) -> Iterator[tuple[Counter[object], list[str]]]:
    """Callers that send requests while the block runs, each with a connection.

    Args:
        pause: seconds from an answer to the caller's next request.
    """
    done, answers, failures = threading.Event(), Counter[object](), list[str]()
    image = PHOTO.read_bytes()

    def ask() -> None:
        with grpc.InferenceServerClient(server.grpc) as client:
            while not done.is_set():
                try:
                    answers[fingerprint(infer(client, [image], EVERYTHING))] += 1
                except grpc.InferenceServerException as error:
                    failures.append(str(error))
                time.sleep(pause)

    def probe() -> None:
        while not done.wait(0.05):
            for path in ("health/ready", "models/yolov5_ensemble/ready"):
                try:
                    urllib.request.urlopen(f"{server.http}/v2/{path}").close()
                except OSError as error:
                    failures.append(f"{path}: {error}")

    threads = [threading.Thread(target=ask) for _ in range(count)]
    threads.append(threading.Thread(target=probe))
    for thread in threads:
        thread.start()
    try:
        yield answers, failures
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("count", [8, pytest.param(32, marks=pytest.mark.slow)])
def test_no_request_fails_or_uses_two_networks_during_a_reload(
    repository: Path, count: int
) -> None:
    with running_server(f"--repository={repository}") as server:
        image = PHOTO.read_bytes()
        first = fingerprint(ask_grpc(server.grpc, [image], EVERYTHING))
        started = time.monotonic()
        with callers(server, count) as (answers, failures):
            exchange(repository, 2, *SMALL)
            wait_for(server, "Now serving version 2")
            second = fingerprint(ask_grpc(server.grpc, [image], EVERYTHING))
            exchange(repository, 3, *SQUARE)
            wait_for(server, "Now serving version 3")
            if count > 8:
                time.sleep(max(0, 60 - (time.monotonic() - started)))
            last = fingerprint(ask_grpc(server.grpc, [image], EVERYTHING))
        print(f"{time.monotonic() - started:.0f} s, {count} callers: {answers}")
        assert failures == []
        assert first != second
        assert last == first
        assert set(answers) == {first, second}
        assert min(answers.values()) > count
        # One network and its steps are left, closed to callers as the first ones were.
        deadline = time.monotonic() + SECONDS
        while len(server.processes("triton_python_backend_stub")) > 3:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with grpc.InferenceServerClient(server.grpc) as client:
            with pytest.raises(grpc.InferenceServerException, match="2 identifiers"):
                infer(client, [image], model="preprocess.3")
            with pytest.raises(grpc.InferenceServerException, match="not found"):
                infer(client, [image], model="preprocess.2")


def test_network_that_cannot_be_loaded_is_not_served(repository: Path) -> None:
    with running_server(f"--repository={repository}") as server:
        before = ask_grpc(server.grpc, [PHOTO.read_bytes()])
        with callers(server, 2) as (_, failures):
            broken = repository / "broken"
            shutil.copytree(repository / "yolov5", broken)
            (broken / "1").rename(broken / "2")
            (broken / "2" / "model.onnx").write_bytes(b"nonsense")
            shutil.rmtree(repository / "yolov5")
            broken.rename(repository / "yolov5")
            wait_for(server, "The new network was not loaded, the old one is still served:")
            # The next network is served.
            install(repository, *SMALL)
            wait_for(server, "Now serving version 3")
        assert failures == []
        after = ask_grpc(server.grpc, [PHOTO.read_bytes()])
        assert fingerprint(after) != fingerprint(before)


def is_locked(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def kill_while_it_loads(server: RunningServer, model: str, *, library: str = "") -> None:
    """Kill the model's process as soon as it has started, or has opened this library."""
    deadline = time.monotonic() + SECONDS
    while not (found := server.processes(f"/{model}.2/")) or not all(
        library in Path(f"/proc/{pid}/maps").read_text() for pid in found
    ):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def served_version(server: RunningServer) -> str:
    """Version of the network whose image count grows with one more request."""

    def images() -> dict[str, float]:
        found = samples(server.metrics, "nv_inference_count", namespace="models")
        return {
            sample.labels["version"]: sample.value
            for sample in found
            if re.fullmatch(r"yolov5[.0-9]*", sample.labels["model"])
        }

    before = images()
    ask_grpc(server.grpc, [PHOTO.read_bytes()])
    (version,) = (version for version, count in images().items() if count != before.get(version))
    return version


@pytest.mark.parametrize(
    "model, library", [("yolov5", "onnxruntime"), ("postprocess", "libtorch_cpu")]
)
def test_network_whose_process_is_killed_while_loading_is_not_served(
    repository: Path, model: str, library: str
) -> None:
    with running_server(f"--repository={repository}") as server:
        before = ask_grpc(server.grpc, [PHOTO.read_bytes()])
        with callers(server, 2) as (_, failures):
            exchange(repository, 2, *FULL)
            kill_while_it_loads(server, model, library=library)
            wait_until(lambda: not is_locked(repository), 30)
            wait_for(server, "The new network was not loaded, the old one is still served:")
        assert failures == []
        assert fingerprint(ask_grpc(server.grpc, [PHOTO.read_bytes()])) == fingerprint(before)
        assert served_version(server) == "1"
        assert ready(server) == (True, "")


def test_process_killed_before_triton_knows_it_does_not_hold_the_lock(repository: Path) -> None:
    """Triton waits for that process for ever, and is restarted."""
    with running_server(f"--repository={repository}") as server:
        exchange(repository, 2, *FULL)
        kill_while_it_loads(server, "postprocess")
        wait_until(lambda: not is_locked(repository), 30)
        wait_until(lambda: "Triton is back after" in server.log.read_text(), SECONDS)
        log = server.log.read_text()
        assert "The new network was not loaded: a process of postprocess.2 " in log
        assert f"It serves version {served_version(server)} of the network." in log
        assert ready(server) == (True, "")


def test_launcher_killed_during_a_stuck_load_leaves_nothing(repository: Path) -> None:
    with running_server(f"--repository={repository}") as server:
        exchange(repository, 2, *FULL)
        kill_while_it_loads(server, "postprocess")
        time.sleep(1)
        server.stop(signal.SIGKILL)
        wait_until(lambda: not [left for left in server.leftovers() if "/dev/" not in left], 10)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_many_reloads_under_load(repository: Path) -> None:
    """No reload ends the server, and no request fails. RELOADS sets their number."""
    with (
        running_server(f"--repository={repository}") as server,
        callers(server, 8, pause=0.2) as (answers, failures),
    ):
        for number in range(RELOADS):
            version = number + 2
            exchange(repository, version, *(SQUARE if number % 2 else FULL))
            wait_for(server, f"Now serving version {version} of the network, FP32.", 4 * SECONDS)
            assert failures == [], server.log.read_text()
        time.sleep(15)  # for the processes of earlier networks to end
        log = server.log.read_text()
    print(
        f"\n{RELOADS} changes of networks, {sum(answers.values())} answers, {len(failures)} failed"
    )
    assert failures == []
    assert "Starting Triton again" not in log
    assert len(answers) == 2


def test_only_the_launcher_can_load_a_model(repository: Path) -> None:
    with running_server(f"--repository={repository}") as server:
        for action in ("load", "unload"):
            with (
                grpc.InferenceServerClient(server.grpc) as client,
                pytest.raises(grpc.InferenceServerException, match="restricted"),
            ):
                getattr(client, f"{action}_model")("yolov5")
        (process,) = server.processes("bin/tritonserver")
        arguments = Path("/proc", str(process), "cmdline").read_text()
        assert "x-yolov5-launcher=xxxxxxxx" in arguments
        assert post_raw(server.http, PHOTO.read_bytes()).status == 200


def test_server_can_be_ended_during_a_reload(repository: Path) -> None:
    with running_server(f"--repository={repository}") as server:
        exchange(repository, 2, *SMALL)
        deadline = time.monotonic() + SECONDS
        while not server.processes("postprocess.2"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.stop() < 10
        assert server.process.returncode == 0
        deadline = time.monotonic() + 2  # ended processes stay listed for a moment
        while (left := server.leftovers()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
        assert "network" not in server.log.read_text()
