"""The REST service as a child of `make gateway`, which starts it again when it ends."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from yolov5_server import Settings, StartError
from yolov5_server._backoff import Backoff

NAME = "The REST service"
# Images that it asks Triton about at a time. As with the batches of nginx.conf.template, a quarter
# of Triton's queue is left to others.
IN_FLIGHT = 48

Children = dict[str, "subprocess.Popen[bytes]"]


class RestService:
    """`yolov5-client api` on a Unix socket.

    Callers of Triton lose nothing when it ends: it is started again, after pauses that grow. One
    that never listened ends the gateway, for what it lacks will not come.

    Args:
        triton: settings of the server that it asks.
        socket: path to listen on.
        flags: further ones for the command, as for a shell.
        children: where the process is kept while it runs.
        start: starts a command whose stdout, the access log, goes to a file.
    """

    def __init__(
        self,
        triton: Settings,
        socket: Path,
        flags: str,
        children: Children,
        start: Callable[[list[str], Path], subprocess.Popen[bytes]],
    ) -> None:
        self._command = [sys.executable, "-m", "yolov5_client._cli", "api", "--gateway"]
        self._command.append(f"--socket={socket}")
        self._command.append(f"--server={triton.url(triton.grpc_port)}")
        self._command.append(f"--health=http://{triton.url(triton.health_port)}")
        self._command.append(f"--in-flight={IN_FLIGHT}")
        try:
            self._command += shlex.split(flags)
        except ValueError as error:
            raise StartError(f"--rest-flags is {flags!a}: {error}.") from None
        self._socket = socket
        self._children = children
        self._start = start
        self._backoff = Backoff()
        self._ready_at: float | None = None
        self._start_at = time.monotonic()

    def keep_running(self) -> None:
        """Start it if it does not run. Call this often.

        Raises:
            StartError: it ended before it has ever listened.
        """
        now = time.monotonic()
        child = self._children.get(NAME)
        if child is None:
            if now >= self._start_at:
                self._start_at = now
                self._children[NAME] = self._start(self._command, self._socket.with_suffix(".log"))
        elif child.poll() is not None:
            if self._ready_at is None:
                raise StartError(
                    f"{NAME} ended by itself (exit status {child.returncode});"
                    " --no-rest does without it."
                )
            del self._children[NAME]
            self._start_at = now + self._backoff.next_pause(now - self._start_at)
            print(
                f"{NAME} ended by itself (exit status {child.returncode}); it is started again.",
                flush=True,
            )

    def accepts_connections(self) -> bool:
        """Whether it listens."""
        with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            probe.connect(str(self._socket))
            self._ready_at = time.monotonic()
            return True
        return False
