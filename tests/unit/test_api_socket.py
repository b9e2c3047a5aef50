"""The REST service on a Unix socket, as behind the gateway."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from yolov5_client._api.settings import ApiSettings

COMMAND = [sys.executable, "-m", "yolov5_client._cli", "api", "--server=127.0.0.1:1"]


def ask(path: Path, route: str) -> tuple[int, bytes]:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.settimeout(30)
        unix.connect(str(path))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = unix
        connection.request("GET", route)
        answer = connection.getresponse()
        return answer.status, answer.read()


@contextmanager
def service(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*COMMAND, f"--socket={path}"], stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            with suppress(OSError):
                assert ask(path, "/live") == (200, b'{"live":true}')
                break
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_socket_answers_its_user_alone_and_goes_with_the_service(tmp_path: Path) -> None:
    path = tmp_path / "rest.socket"
    with service(path) as process:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        second = subprocess.run([*COMMAND, f"--socket={path}"], capture_output=True, text=True)
        assert second.returncode == 2
        assert second.stderr == (
            f"error: cannot listen on {path}: Address already in use; choose another path with"
            " --socket.\n"
        )
        assert ask(path, "/live")[0] == 200  # the second one did not remove it
        process.terminate()
        process.wait(20)
        assert not path.exists()
        assert process.stdout is not None
        lines = process.stdout.read().decode().splitlines()
    assert lines == [f"Serving unix:{path} (server 127.0.0.1:1)"]


def test_socket_of_a_killed_service_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "rest.socket"
    with service(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    assert path.exists()
    with service(path):
        status, body = ask(path, "/openapi.json")
        assert (status, json.loads(body)["openapi"][:3]) == (200, "3.1")


def test_other_file_at_the_path_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("kept")
    done = subprocess.run([*COMMAND, f"--socket={path}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "File exists" in done.stderr and done.stderr.count("\n") == 1
    assert path.read_text() == "kept"


def test_path_that_no_socket_can_have_is_refused() -> None:
    ApiSettings(socket=Path("/" + 106 * "x"))
    with pytest.raises(ValueError, match=r"^--socket is /xxx.*; allowed: .* at most 107 bytes\.$"):
        ApiSettings(socket=Path("/" + 107 * "x"))
