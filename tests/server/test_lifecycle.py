"""The launcher names errors, handles signals and leaves nothing behind."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from support import (
    MODEL_PROCESSES,
    PHOTO,
    ROOT,
    TRITON,
    TRITON_FLAGS,
    RunningServer,
    ask_grpc,
    free_ports,
    post_raw,
    ready,
    running_server,
    shared_memory,
    wait_until,
)

from yolov5_server.embedded import assemble_backends, triton_folder

STOP_SECONDS = 10


@pytest.fixture
def own(bundled_repository: Path) -> str:
    return f"--repository={bundled_repository}"


def assert_gone(server: RunningServer) -> None:
    """Assert that nothing is left; ended processes stay listed for a moment."""
    deadline = time.monotonic() + 2
    while (left := server.leftovers()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_server_and_leaves_nothing(own: str, number: signal.Signals) -> None:
    with running_server(own) as server:
        assert ask_grpc(server.grpc, [PHOTO.read_bytes()])["num_dets"].item() == 11
        assert shared_memory() - server.shared_memory_before
        assert server.stop(number) < STOP_SECONDS
        assert server.process.returncode == 0
        # What a stub of Triton 26.08 writes at its end is left out.
        assert "Python" not in server.log.read_text()
        assert_gone(server)


@pytest.mark.parametrize("model", MODEL_PROCESSES)
def test_server_ends_in_time_after_a_model_process_was_killed(own: str, model: str) -> None:
    with running_server(own) as server:
        stubs = server.processes(f"/{model}/1/")
        assert stubs
        for stub in stubs:
            os.kill(stub, signal.SIGKILL)
        assert server.stop() < STOP_SECONDS
        assert_gone(server)


def test_server_ends_in_time_when_a_model_process_hangs(own: str) -> None:
    with running_server(own) as server:
        for stub in server.processes("/preprocess/1/"):
            os.kill(stub, signal.SIGSTOP)
        assert server.stop(signal.SIGINT) < STOP_SECONDS
        assert_gone(server)


def test_server_can_be_ended_before_it_is_ready(own: str) -> None:
    with running_server(own, wait=False) as server:
        deadline = time.monotonic() + 30
        while not server.processes("triton_python_backend_stub"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.stop() < STOP_SECONDS
        assert_gone(server)


def test_second_signal_ends_the_server_at_once(own: str) -> None:
    with running_server(own) as server:
        for stub in server.processes("/postprocess/1/"):
            os.kill(stub, signal.SIGKILL)  # then a polite end takes seconds
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert server.stop(signal.SIGINT) < 1.5
        assert_gone(server)


def test_no_server_outlives_a_killed_launcher(own: str) -> None:
    with running_server(own) as server:
        server.stop(signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS
        while any("process" in left or "port" in left for left in server.leftovers()):
            assert time.monotonic() < deadline, server.leftovers()
            time.sleep(0.1)
        # The next launcher removes the shared memory.
        with running_server(own):
            assert [left for left in server.leftovers() if str(server.process.pid) in left] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "send",
    [
        lambda make: os.killpg(make, signal.SIGINT),  # to the foreground group, as a terminal
        lambda make: os.kill(make, signal.SIGTERM),
        lambda make: os.kill(make, signal.SIGINT),  # which make does not pass on
        lambda make: os.kill(make, signal.SIGKILL),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGINT", "SIGKILL"],
)
def test_make_serve_ends_like_the_launcher(own: str, send: Callable[[int], None]) -> None:
    flags = " ".join([own, *TRITON_FLAGS])
    make = ["make", "--no-print-directory", "-C", str(ROOT), "serve", f"ARGS={flags}"]
    with running_server(command=make) as server:
        server.seen.update(server.descendants())
        deadline = time.monotonic() + STOP_SECONDS
        send(server.process.pid)
        server.process.wait(STOP_SECONDS)
        while server.leftovers() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.leftovers() == []


def test_log_is_short_and_shows_a_command_to_try(own: str) -> None:
    with running_server(own) as server:
        lines = server.log.read_text().splitlines()
        assert lines[0].startswith(f"Settings: http_port={server.ports[0]} (--http-port), ")
        assert lines[1].startswith(f"Ready: HTTP on 127.0.0.1:{server.ports[0]}")
        assert any(line.strip().startswith("curl ") for line in lines)
        assert len(lines) < 8


def test_own_backends_run_the_network_in_another_triton(own: str, tmp_path: Path) -> None:
    """As on a CPU in a container; the embedded server's Triton in such a folder has no others."""
    triton = TRITON
    if triton is None:
        triton, wheel = tmp_path / "triton", triton_folder()
        backends = assemble_backends(wheel, tmp_path / "backends")
        (triton / "backends").mkdir(parents=True)
        (triton / "backends" / "python").symlink_to(backends / "python")
        (triton / "bin").symlink_to(wheel / "bin")
    with running_server(own, f"--triton={triton}", "--own-backends") as server:
        assert server.processes("/yolov5/1/")
        assert ask_grpc(server.grpc, [PHOTO.read_bytes()])["num_dets"].item() == 11
        assert server.stop() < STOP_SECONDS
        assert_gone(server)


def listening() -> set[tuple[str, int]]:
    """Addresses and ports that any process listens on."""
    return {
        (one.laddr.ip.removeprefix("::ffff:"), one.laddr.port)  # IPv4 on an IPv6 socket
        for one in psutil.net_connections("tcp")
        if one.laddr and one.status == psutil.CONN_LISTEN
    }


def assert_listens_only_on(host: str, server: RunningServer) -> None:
    ports = set(server.ports)
    assert {(a, p) for a, p in listening() if p in ports} == {(host, p) for p in ports}


def test_server_listens_only_on_this_machine_by_default(server: RunningServer) -> None:
    assert_listens_only_on("127.0.0.1", server)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_server_listens_only_on_the_given_address(own: str) -> None:
    with running_server(own, "--host=::1") as server:
        assert_listens_only_on("::1", server)


def failure(*arguments: str) -> str:
    with running_server(*arguments, wait=False) as server:
        server.process.wait(60)
        assert server.process.returncode == 1
        text = server.log.read_text()
        assert_gone(server)
    lines = [line for line in text.splitlines() if not line.startswith("Settings: ")]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    return lines[0]


def test_port_in_use_is_named(own: str) -> None:
    (port,) = free_ports(1)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        message = failure(own, f"--grpc-port={port}")
    assert f"Port {port} on 127.0.0.1 cannot be used" in message
    assert "GRPC_PORT" in message


def broken_copy(repository: Path, folder: Path) -> Path:
    return Path(shutil.copytree(repository, folder / "model_repository"))


def test_labels_that_do_not_fit_the_network_are_refused(
    bundled_repository: Path, tmp_path: Path
) -> None:
    broken = broken_copy(bundled_repository, tmp_path)
    with (broken / "yolov5" / "labels.txt").open("a") as labels:
        labels.write("one too many\n")
    message = failure(f"--repository={broken}")
    assert "labels.txt has 4 names" in message


def test_default_out_of_range_is_refused(bundled_repository: Path, tmp_path: Path) -> None:
    broken = broken_copy(bundled_repository, tmp_path)
    config = broken / "preprocess" / "config.pbtxt"
    config.write_text(config.read_text().replace('"0.25"', '"2.5"'))
    message = failure(f"--repository={broken}")
    assert "conf_thres is '2.5'; allowed: a number from 0 to 1" in message


def test_changed_defaults_are_served(bundled_repository: Path, tmp_path: Path) -> None:
    changed = broken_copy(bundled_repository, tmp_path)
    config = changed / "preprocess" / "config.pbtxt"
    config.write_text(config.read_text().replace('"0.25"', '"0.5"'))
    with running_server(f"--repository={changed}") as server:
        assert ask_grpc(server.grpc, [PHOTO.read_bytes()])["num_dets"].item() == 5


@contextmanager
def connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open connections that send nothing."""
    held = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(count)]
    try:
        yield held
    finally:
        for one in held:
            one.close()


def limited(soft: int, hard: int, own: str) -> list[str]:
    """A command that starts the launcher with these limits on descriptors."""
    flags = shlex.join(TRITON_FLAGS)
    script = f"""ulimit -Sn {soft}; ulimit -Hn {hard}; export "$@"
exec "$0" -m yolov5_server "{own}" --precision=fp32 {flags} --http-port="$HTTP_PORT" \\
  --grpc-port="$GRPC_PORT" --metrics-port="$METRICS_PORT" --health-port="$HEALTH_PORT"
"""
    return ["sh", "-c", script, sys.executable]


def test_requests_are_answered_beside_idle_connections_over_the_soft_limit(own: str) -> None:
    with running_server(command=limited(256, 4096, own)) as server:
        said = len(server.log.read_text())
        with connections(server.ports[0], 320):
            reply = post_raw(server.http, PHOTO.read_bytes())
            assert reply.status == 200
            assert "open files" not in server.log.read_text()[said:]
            assert server.stop() < STOP_SECONDS
        assert server.process.returncode == 0


def test_server_without_free_descriptors_logs_little_and_ends_in_time(own: str) -> None:
    with running_server(command=limited(256, 256, own)) as server:
        with connections(server.ports[0], 320):
            time.sleep(3)
            assert "Too many open files (repeated" in server.log.read_text()
            assert server.log.stat().st_size < 5000
            assert psutil.Process(server.process.pid).memory_info().rss < 150 << 20
            assert server.stop() < STOP_SECONDS
        assert_gone(server)


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def full_pipe() -> int:
    """The writing end of a full pipe that nobody reads."""
    _, writer = os.pipe()  # the other end stays open until the tests end
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    return writer


@pytest.mark.parametrize("open_log", [full_disk, full_pipe])
def test_lost_log_does_not_end_the_service(own: str, open_log: Callable[[], int]) -> None:
    ports = free_ports(4)
    names = ("http-port", "grpc-port", "metrics-port", "health-port")
    flags = [*TRITON_FLAGS, *(f"--{name}={port}" for name, port in zip(names, ports))]
    command = [sys.executable, "-m", "yolov5_server", own, "--precision=fp32", *flags]
    errors = open_log()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
    )
    os.close(errors)
    server = RunningServer(process, ports, Path(os.devnull))
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Settings: ")
        assert process.stdout.readline().startswith("Ready:")
        process.stdout.close()  # as `| head` does
        for victim in server.processes("bin/tritonserver"):
            os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not ready(server)[0], 20)
        wait_until(lambda: ready(server)[0], 60)
        assert ask_grpc(server.grpc, [PHOTO.read_bytes()])["num_dets"].item() == 11
    finally:
        seconds = server.stop()
    assert seconds < STOP_SECONDS
    assert process.returncode == 0
    assert_gone(server)
