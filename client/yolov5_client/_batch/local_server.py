"""A server that the job starts on a node, and that ends with the process that has started it.

Run as a program, this module keeps the server: it starts the command of its arguments, and ends it
when standard input ends. That happens however the parent dies. Ray kills the children of a worker
that ends, and therefore the keeper is none: it is the child of a process that has ended at once.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, suppress

START = 300.0  # seconds; a first start may have to load a large network


class LocalServerError(Exception):
    """The server does not start; the message is one sentence."""


class LocalServer:
    """A server of this project on this machine, on free ports.

    Args:
        flags: for the launcher.

    Attributes:
        address: for gRPC.
        health: of the launcher's health port.

    Raises:
        LocalServerError: it does not become ready.
    """

    def __init__(self, flags: Sequence[str]) -> None:
        http, grpc, metrics, health = _free_ports(4)
        self.address = f"127.0.0.1:{grpc}"
        self.health = f"http://127.0.0.1:{health}"
        ports = [
            *(f"--http-port={http}", f"--grpc-port={grpc}"),
            *(f"--metrics-port={metrics}", f"--health-port={health}"),
        ]
        launcher = [sys.executable, "-m", "yolov5_server", *ports, *flags]
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", __name__, *launcher],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._keeper.wait()  # the one that ends at once
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if self._has_ended(0):
                raise LocalServerError(
                    "the server of this node ended while it started; its log is in the worker's"
                    " log."
                )
            with suppress(OSError), urllib.request.urlopen(f"{self.health}/ready", timeout=5):
                return
            time.sleep(0.2)
        raise LocalServerError(f"the server of this node was not ready within {START:g} s.")

    def _has_ended(self, seconds: float) -> bool:
        """Wait for the end of the keeper's output, which it closes when it ends."""
        assert self._keeper.stdout is not None
        readable, _, _ = select.select([self._keeper.stdout], [], [], seconds)
        return bool(readable)

    def close(self) -> None:
        """End the server, and wait for its end."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._has_ended(15)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        found = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in found]


def _keep(command: Sequence[str]) -> int:
    if os.fork():
        return 0
    os.setsid()
    # Its output tells the parent that it lives; the server's goes where errors go.
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    )

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        server.terminate()

    threading.Thread(target=end_with_parent, daemon=True).start()
    return server.wait()


if __name__ == "__main__":
    sys.exit(_keep(sys.argv[1:]))
