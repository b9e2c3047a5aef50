"""The REST service as its users start it: a process of its own, in front of a server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import RunningServer


@dataclass(frozen=True)
class RunningApi:
    """A service that listens.

    Attributes:
        url: http://127.0.0.1:PORT, without a slash at the end.
        output: file with what it has written on stdout.
        errors: file with what it has written on stderr.
    """

    process: subprocess.Popen[str]
    url: str
    output: Path
    errors: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def access_log(self) -> list[dict[str, Any]]:
        """The requests so far, but for probes; the last one may be missing for a moment."""
        return [json.loads(line) for line in self.output.read_text().splitlines()[1:]]


@contextmanager
def running_api(server: RunningServer | str, *flags: str) -> Iterator[RunningApi]:
    """Start `yolov5-client api` on a free port, and end it at the end of the block in any case.

    Args:
        server: which is asked; with an address there is no health port to ask about networks.
        flags: further ones.

    Raises:
        subprocess.TimeoutExpired: it does not end within its time for draining and some more.
    """
    if isinstance(server, RunningServer):
        flags = (f"--health={server.health}", *flags)
        server = server.grpc
    folder = Path(tempfile.mkdtemp(prefix="api-"))
    output, errors = folder / "output", folder / "errors"
    command = [sys.executable, "-m", "yolov5_client._cli", "api", "--port=0", f"--server={server}"]
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(
            [*command, *flags], stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True
        )
    try:
        yield RunningApi(process, _address(process, output, errors), output, errors)
        process.terminate()
        process.wait(20)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _address(process: subprocess.Popen[str], output: Path, errors: Path) -> str:
    """Wait for the line that says where the service listens."""
    deadline = time.monotonic() + 60
    while not (text := output.read_text()).endswith("\n"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the service did not start:\n{text}{errors.read_text()}")
        time.sleep(0.02)
    line = text.splitlines()[0]
    assert line.startswith("Serving http://127.0.0.1:"), line
    return line.split()[1]
