"""The image for CPUs, built from its Dockerfile and run as it is run in a cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import images
import psutil
import pytest
from support import (
    PHOTO,
    PHOTOS,
    Difference,
    compare,
    free_ports,
    parse_binary,
    post,
    post_raw,
    reference,
    wait_until,
)

DOCKERFILE = "build/Dockerfile.cpu"
IMAGE = "localhost/yolov5-triton:cpu"
WANTED = reference(Path(__file__).parents[1] / "data" / "bccd_reference.json")
# As a pod of the restricted profile with a read-only root, and any other user than the image's.
RESTRICTED = [
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp:rw,exec", "--shm-size=1g"),
    *("--cap-drop=all", "--security-opt=no-new-privileges", "--network=host"),
    # Limits that root may not raise everywhere; health checks would need systemd.
    *("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096", "--no-healthcheck"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(bool(images.missing()), reason=images.missing()),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[images.Store]:
    with images.store(tmp_path_factory.mktemp("images")) as made:
        made.build(DOCKERFILE, IMAGE, "--layers")
        yield made


@dataclass
class Container:
    """A running container: the client that waits for it, its first process, and its log."""

    name: str
    client: subprocess.Popen[bytes]
    log: Path
    pid: int = 0

    def processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]


@contextmanager
def running(store: images.Store, name: str, log: Path, *arguments: str) -> Iterator[Container]:
    command = [*store.podman_command, "run", "--rm", f"--name={name}", *RESTRICTED, *arguments]
    with log.open("wb") as file:
        client = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield Container(name, client, log)
    finally:
        subprocess.run([*store.podman_command, "rm", "--force", name], capture_output=True)
        client.wait(30)


@contextmanager
def running_server(
    store: images.Store, folder: Path, *flags: str
) -> Iterator[tuple[Container, list[int]]]:
    """A container with a server, and the ports of the server."""
    ports = free_ports(4)
    names = ("http-port", "grpc-port", "metrics-port", "health-port")
    given = [f"--{name}={port}" for name, port in zip(names, ports)]
    arguments = [*flags, IMAGE, *given, "--precision=fp32"]
    with running(store, f"server{ports[0]}", folder / "server", *arguments) as container:
        log = container.log

        def is_ready() -> bool:
            assert container.client.poll() is None, log.read_text()
            return "Ready:" in log.read_text()

        seconds = wait_until(is_ready, 120)
        print(f"\nready after {seconds:.1f} s")
        text = store.podman("inspect", "--format={{.State.Pid}}", container.name)
        container.pid = int(text)
        yield container, ports


def test_image_says_what_it_is(store: images.Store) -> None:
    found = store.inspect(IMAGE)
    config = found["Config"]
    print(f"\n{found['Size'] / 1e6:.0f} MB in {len(found['RootFS']['Layers'])} layers")
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"][:3] == ["python3", "-m", "yolov5_server"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert found["Size"] < 1.3e9


def test_image_holds_no_more_than_it_needs(store: images.Store) -> None:
    with store.files(IMAGE) as root:
        programs = {
            path.name
            for folder in ("usr/bin", "usr/sbin", "opt/venv/bin")
            for path in (root / folder).iterdir()
        }
        packages = root / "opt" / "venv" / "lib" / "python3.11" / "site-packages"
        heavy = [path for path in packages.rglob("*cuda*.so*") if path.stat().st_size > 2e6]
        assert not heavy
        assert not {"apt-get", "dpkg", "pip", "pip3", "perl", "gcc", "as", "ld"} & programs
        assert not (packages / "pip").exists()
        assert not (packages / "pytest").exists()
        contents = json.loads((root / "opt" / "venv" / "sbom.cdx.json").read_text())
        listed = {part["name"]: part["version"] for part in contents["components"]}
        assert contents["bomFormat"] == "CycloneDX"
        assert {"torch", "onnxruntime", "openvino", "nvidia-pytriton", "starlette"} <= set(listed)
        assert {path.name for path in (root / "var/lib/dpkg/status.d").iterdir()} >= {"libc6"}
        # Nothing that only root could read, whatever the rights in the checkout are.
        for folder in ("opt", "models"):
            for path in (root / folder).rglob("*"):
                mode = path.lstat().st_mode
                assert path.is_symlink() or mode & 0o004, path
                assert path.is_symlink() or not mode & 0o022, path


def test_photos_are_answered_as_by_the_reference(store: images.Store, tmp_path: Path) -> None:
    with running_server(store, tmp_path) as (container, ports):
        url = f"http://127.0.0.1:{ports[0]}"
        answers = {
            path.name: parse_binary(post_raw(url, path.read_bytes())) for path in PHOTOS.iterdir()
        }
        found: Difference = compare(answers, WANTED)
        print(found)
        assert (found.images, found.detections, found.unmatched) == (8, 130, 0)
        assert found.box <= 0.1
        assert found.score <= 1e-3

        memory = sum(process.memory_full_info().pss for process in container.processes())
        print(f"memory (PSS) of all processes: {memory / 1e6:.0f} MB")
        for process in container.processes():
            assert process.uids().real == 1000
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert "CapEff:\t0000000000000000" in status
        script = "open('/opt/server/a', 'w')"
        refused = subprocess.run(
            [*store.podman_command, "exec", container.name, "python3", "-c", script],
            capture_output=True,
            text=True,
        )
        assert "Read-only file system" in refused.stderr
        # Of the image's files nothing changed; podman mounts its own over some in /etc.
        changed = store.podman("diff", container.name).split("\n")
        assert {line for line in changed if line and not line.startswith(("C /etc", "A /etc"))} <= {
            "C /run",
            "A /run/.containerenv",
        }


def test_server_ends_within_ten_seconds(store: images.Store, tmp_path: Path) -> None:
    with running_server(store, tmp_path, "--user=54321:0") as (container, _):
        started = time.monotonic()
        os.kill(container.pid, signal.SIGTERM)
        status = container.client.wait(30)
        seconds = time.monotonic() - started
        print(f"ended after {seconds:.1f} s")
        assert status == 0
        # Ten for the launcher, the rest for podman.
        assert seconds < 12


def test_health_check_of_the_image_passes_when_ready(store: images.Store, tmp_path: Path) -> None:
    command = store.inspect(IMAGE)["Config"]["Healthcheck"]["Test"][1:]
    with running_server(store, tmp_path) as (container, ports):
        text = [part.replace("8003", str(ports[3])) for part in command]
        store.podman("exec", container.name, *text)


def test_rest_service_is_another_command_of_the_image(store: images.Store, tmp_path: Path) -> None:
    with running_server(store, tmp_path) as (_, ports):
        (port,) = free_ports(1)
        flags = [f"--server=127.0.0.1:{ports[1]}", f"--port={port}"]
        arguments = ["--entrypoint=yolov5-client", IMAGE, "api", *flags]
        with running(store, f"rest{port}", tmp_path / "rest", *arguments) as rest:

            def answers() -> bool:
                assert rest.client.poll() is None, rest.log.read_text()
                try:
                    return post(f"http://127.0.0.1:{port}/detect", PHOTO.read_bytes()).status == 200
                except OSError:
                    return False

            wait_until(answers, 60)
            answer = json.loads(post(f"http://127.0.0.1:{port}/detect", PHOTO.read_bytes()).body)
            (image,) = answer["images"]
            assert len(image["detections"]) == len(WANTED[PHOTO.name])


def test_second_build_makes_the_same_image(store: images.Store) -> None:
    store.build(DOCKERFILE, "localhost/again", "--no-cache")
    first, second = (store.inspect(tag) for tag in (IMAGE, "localhost/again"))
    assert first["RootFS"]["Layers"] == second["RootFS"]["Layers"]
    assert first["Config"] == second["Config"]
