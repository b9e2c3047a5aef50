"""`make gateway` as a process of its own, in front of a server that runs."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tritonclient.grpc as triton
from support import RAW, ROOT, Reply, RunningServer, free_ports

from yolov5_client import TLS, Client

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


@dataclass
class Gateway:
    """A gateway started by a test.

    Attributes:
        folder: with the files of nginx.
    """

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def key(self) -> dict[str, str]:
        return {"x-api-key": (self.folder / "keys.map").read_text().split('"')[1]}

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"

    def client(
        self,
        scheme: str,
        headers: Mapping[str, str] | None = None,
        tls: TLS | None = None,
        retry_for: float = 0,
    ) -> Client:
        """Make a client with the first API key, unless other headers are given."""
        return Client(
            scheme + self.address,
            headers=self.key if headers is None else headers,
            tls=tls or TLS(ca=self.certificate),
            retry_for=retry_for,
        )

    def triton(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(
            self.address, ssl=True, root_certificates=str(self.certificate)
        )

    def connect(self, protocol: str = "http/1.1") -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=self.certificate)
        context.set_alpn_protocols([protocol])
        plain = socket.create_connection(("127.0.0.1", self.port), 30)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    def ask(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | list[tuple[str, str]] = RAW,
        *,
        method: str = "POST",
        key: bool = True,
    ) -> Reply:
        """Send a request with these headers, plus the key and the body's length."""
        connection = http.client.HTTPSConnection(
            self.address, timeout=60, context=ssl.create_default_context(cafile=self.certificate)
        )
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            given = [*headers.items()] if isinstance(headers, Mapping) else headers
            length = [] if body is None else [("Content-Length", str(len(body)))]
            for name, value in [*given, *(self.key.items() if key else ()), *length]:
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.headers), answer.read())
        finally:
            connection.close()

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    def logged(self, before: int, *wanted: tuple[str, str, str]) -> list[dict[str, Any]]:
        """The entries after the first `before`: some, with these (caller, status, gRPC status).

        nginx writes an entry a moment after the answer.
        """
        deadline = time.monotonic() + 10
        while True:
            entries = self.log()[before:]
            found = {(one["caller"], one["status"], one["grpc_status"]) for one in entries}
            if entries and found >= set(wanted):
                return entries
            assert time.monotonic() < deadline, (wanted, entries)
            time.sleep(0.02)

    def workers(self) -> dict[int, str]:
        """Processes of nginx but for its master, with their titles."""
        master = int((self.folder / "nginx.pid").read_text())
        found = {}
        for process in psutil.Process(master).children():
            with suppress(psutil.NoSuchProcess):
                found[process.pid] = " ".join(process.cmdline())
        return found

    @contextmanager
    def changed(self, name: str, *changes: tuple[str, str]) -> Iterator[None]:
        """Change text in a file for a while, and reload nginx as an operator would."""
        file = self.folder / name
        before = text = file.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        self._reload(file, text)
        try:
            yield
        finally:
            self._reload(file, before)

    def _reload(self, file: Path, text: str) -> None:
        old = self.workers().keys()
        file.write_text(text)
        os.kill(int((self.folder / "nginx.pid").read_text()), signal.SIGHUP)
        deadline = time.monotonic() + 10
        while any(pid in old and "shutting" not in title for pid, title in self.workers().items()):
            assert time.monotonic() < deadline, (self.folder / "error.log").read_text()
            time.sleep(0.02)


@contextmanager
def running_gateway(server: RunningServer, folder: Path, *arguments: str) -> Iterator[Gateway]:
    """Start a gateway, and end it at the end of the block in any case.

    Args:
        folder: for the files of nginx.
        arguments: further ones for `run.py`.
    """
    (port,) = free_ports(1)
    names = ("--http-port", "--grpc-port", "--metrics-port", "--health-port")
    flags = [f"{name}={number}" for name, number in zip(names, server.ports)]
    flags.extend(arguments)
    command = [sys.executable, "deploy/gateway/run.py", f"--port={port}", f"--folder={folder}"]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [*command, *flags], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_for(folder / "output", "Gateway:", process)
        yield Gateway(process, port, folder)
    finally:
        process.terminate()
        process.wait(15)


def wait_for(output: Path, text: str, process: subprocess.Popen[Any]) -> None:
    """Wait until a process has written the text."""
    deadline = time.monotonic() + 60
    while text not in output.read_text():
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)
