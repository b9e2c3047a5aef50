"""Install another network while the server answers requests."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from support import (
    BUNDLED,
    MODEL_PROCESSES,
    PHOTO,
    TRITON,
    Fingerprint,
    RunningServer,
    ask_grpc,
    fingerprint,
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
# Small ones: what the networks themselves take is not what these tests are about.
FIRST, REDUCED = ["--imgsz=320"], ["--imgsz=256", "--reduced-head"]
OTHER = ["--imgsz=256"]
EVERYTHING = {"conf_thres": 0.01}
# Triton's rare answer in the moment of a change: docs/operations.md.
NO_MODEL = "no model"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path, BUNDLED, *FIRST)


@dataclass
class Site:
    """A server, and the repository whose network is replaced.

    Attributes:
        version: of the network that was installed last; each has a number of its own.
    """

    server: RunningServer
    repository: Path
    version: int = 1
    _said: int = 0

    def exchange(self, *arguments: str, broken: bool = False) -> None:
        """Replace the network as `make model` does in the end, with one prepared before."""
        self.version += 1
        self._said = len(self.server.log.read_text())
        folder = self.repository.parent / f"new-{self.version}"
        new = make_repository(folder, BUNDLED, *arguments) / "yolov5"
        weights = (new / "1").rename(new / str(self.version))
        if broken:
            (weights / "served.onnx").write_bytes(b"nonsense")
        with _locked(self.repository):
            (self.repository / "yolov5").rename(folder / "old")
            new.rename(self.repository / "yolov5")
        shutil.rmtree(folder)

    def exchange_and_kill(self, *, library: str = "") -> None:
        """Replace the network, and kill the new one's process while it loads.

        Args:
            library: wait until the process has opened this one.
        """
        before = self.server.processes("/yolov5")
        self.exchange(*OTHER)
        deadline = time.monotonic() + SECONDS
        while not (found := {*self.server.processes("/yolov5.")}.difference(before)) or not all(
            library in Path(f"/proc/{pid}/maps").read_text() for pid in found
        ):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        """What the launcher has written since the last replacement."""
        return self.server.log.read_text()[self._said :]

    def wait_for(self, line: str, seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while line not in self.log():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def wait_for_new_network(self, seconds: float = SECONDS) -> None:
        self.wait_for(f"Now serving version {self.version} of the network", seconds)

    def answer(self) -> Fingerprint:
        return fingerprint(ask_grpc(self.server.grpc, [PHOTO.read_bytes()], EVERYTHING))


@contextmanager
def running_site(repository: Path) -> Iterator[Site]:
    with running_server(f"--repository={repository}") as server:
        yield Site(server, repository)


@pytest.fixture
def site(repository: Path) -> Iterator[Site]:
    """For one test, which may end the server."""
    with running_site(repository) as site:
        yield site


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For tests that leave a healthy server with one network."""
    with running_site(make_repository(tmp_path_factory.mktemp("site"), BUNDLED, *FIRST)) as site:
        yield site


def refusal(address: str) -> str:
    """How a probe of this address is refused; empty if it is answered."""
    try:
        urllib.request.urlopen(address, timeout=20).close()
    except urllib.error.HTTPError as error:
        return f"{error}: {error.read().decode()}"
    except OSError as error:
        return str(error)
    return ""


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
                    if "Request for unknown model" in str(error):
                        answers[NO_MODEL] += 1
                    else:
                        failures.append(str(error))
                time.sleep(pause)

    def probe() -> None:
        while not done.wait(0.05):
            for path in ("health/ready", "models/yolov5_ensemble/ready"):
                if error := refusal(f"{server.http}/v2/{path}"):
                    # Triton itself may refuse a question in the moment of a change, which lasts as
                    # long as a busy machine lets its thread wait.
                    print(f"{path}: {error}")
                    time.sleep(0.5)
                    if error := refusal(f"{server.http}/v2/{path}"):
                        failures.append(f"{path}: {error}")
            if ready(server) != (True, ""):
                failures.append(f"the launcher: {ready(server)}")

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
    shared_site: Site, count: int
) -> None:
    server = shared_site.server
    first = shared_site.answer()
    started = time.monotonic()
    with callers(server, count, pause=0 if count > 8 else 0.1) as (answers, failures):
        shared_site.exchange(*REDUCED)
        shared_site.wait_for_new_network()
        second = shared_site.answer()
        shared_site.exchange(*FIRST)
        shared_site.wait_for_new_network()
        if count > 8:
            time.sleep(max(0, 60 - (time.monotonic() - started)))
        last = shared_site.answer()
    print(f"{time.monotonic() - started:.0f} s, {count} callers: {answers}")
    assert failures == []
    assert answers.pop(NO_MODEL, 0) < 3
    assert first != second
    assert last == first
    assert set(answers) == {first, second}
    assert min(answers.values()) > count
    assert "Fatal" not in server.log.read_text()
    # One network and the steps are left, closed to callers as the first ones were.
    left = len(MODEL_PROCESSES)
    wait_until(lambda: len(server.processes("triton_python_backend_stub")) == left, SECONDS)
    served, _ = served_model(server)
    with grpc.InferenceServerClient(server.grpc) as client:
        with pytest.raises(grpc.InferenceServerException, match="2 identifiers"):
            infer(client, [PHOTO.read_bytes()], model=served)
        with pytest.raises(grpc.InferenceServerException, match="not found"):
            earlier = f"yolov5.{int(served.partition('.')[2]) - 1}"
            infer(client, [PHOTO.read_bytes()], model=earlier)


def test_network_that_cannot_be_loaded_is_not_served(shared_site: Site) -> None:
    before = shared_site.answer()
    with callers(shared_site.server, 2, pause=0.05) as (_, failures):
        shared_site.exchange(*FIRST, broken=True)
        shared_site.wait_for("The new network was not loaded, the old one is still served:")
        assert shared_site.answer() == before
        # The next network is served, installed by `make model` itself, which measures it first.
        repository = f"--repository={shared_site.repository}"
        assert build([str(BUNDLED), *REDUCED, repository]) == 0
        shared_site.version += 1
        shared_site.wait_for_new_network()
    assert failures == []
    assert shared_site.answer() != before
    shared_site.exchange(*FIRST)
    shared_site.wait_for_new_network()


def is_locked(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def served_model(server: RunningServer) -> tuple[str, str]:
    """Model and version of the network whose image count grows with one more request."""

    def images() -> dict[tuple[str, str], float]:
        found = samples(server.metrics, "nv_inference_count", namespace="models")
        return {
            (sample.labels["model"], sample.labels["version"]): sample.value
            for sample in found
            if re.fullmatch(r"yolov5[.0-9]*", sample.labels["model"])
        }

    before = images()
    ask_grpc(server.grpc, [PHOTO.read_bytes()])
    (model,) = (model for model, count in images().items() if count != before.get(model))
    return model


def served_version(server: RunningServer) -> str:
    """Version of the network that answers."""
    return served_model(server)[1]


@pytest.mark.embedded("a network has a process of its own")
def test_network_whose_process_is_killed_while_loading_is_not_served(shared_site: Site) -> None:
    server = shared_site.server
    before, version = shared_site.answer(), served_version(server)
    with callers(server, 2, pause=0.05) as (_, failures):
        shared_site.exchange_and_kill(library="onnxruntime")
        wait_until(lambda: not is_locked(shared_site.repository), 30)
        shared_site.wait_for("The new network was not loaded, the old one is still served:")
    assert failures == []
    assert shared_site.answer() == before
    assert served_version(server) == version
    assert ready(server) == (True, "")


@pytest.mark.embedded("a network has a process of its own")
def test_process_killed_before_triton_knows_it_does_not_hold_the_lock(site: Site) -> None:
    """Triton waits for that process for ever, and is restarted."""
    site.exchange_and_kill()
    wait_until(lambda: not is_locked(site.repository), 30)
    site.wait_for("Triton is back after")
    log = site.log()
    assert "The new network was not loaded: a process of yolov5.2 " in log
    assert f"It serves version {served_version(site.server)} of the network." in log
    assert ready(site.server) == (True, "")


@pytest.mark.embedded("a network has a process of its own")
def test_launcher_killed_during_a_stuck_load_leaves_nothing(site: Site) -> None:
    server = site.server
    site.exchange_and_kill()
    time.sleep(1)
    server.stop(signal.SIGKILL)
    wait_until(lambda: not [left for left in server.leftovers() if "/dev/" not in left], 10)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_many_reloads_under_load(site: Site) -> None:
    """No reload ends the server, and no request fails. RELOADS sets their number."""
    with callers(site.server, 8, pause=0.2) as (answers, failures):
        for number in range(RELOADS):
            site.exchange(*(FIRST if number % 2 else OTHER))
            site.wait_for_new_network(4 * SECONDS)
            assert failures == [], site.server.log.read_text()
        time.sleep(15)  # for the processes of earlier networks to end
        log = site.server.log.read_text()
    print(
        f"\n{RELOADS} changes of networks, {sum(answers.values())} answers, of which"
        f" {answers.pop(NO_MODEL, 0)} that the endpoint is not there; {len(failures)} failed"
    )
    assert failures == []
    assert "Starting Triton again" not in log
    assert len(answers) == 2


def test_only_the_launcher_can_load_a_model(shared_site: Site) -> None:
    server = shared_site.server
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


def test_server_can_be_ended_during_a_reload(site: Site) -> None:
    server = site.server
    site.exchange(*REDUCED)
    if TRITON:  # the network has no process
        (process,) = server.processes("bin/tritonserver")
        wait_until(Path(f"/proc/{process}/cwd/models/yolov5.2").exists, SECONDS)
    else:
        wait_until(lambda: bool(server.processes("yolov5.2")), SECONDS)
    assert server.stop() < 10
    assert server.process.returncode == 0
    with suppress(AssertionError):  # ended processes stay listed for a moment
        wait_until(lambda: not server.leftovers(), 2)
    assert server.leftovers() == []
    assert "network" not in server.log.read_text()
