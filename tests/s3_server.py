"""A real S3 server for the tests, SeaweedFS, and a proxy that cuts and slows connections to it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support import ROOT, free_ports

WEED = ROOT / ".venv" / "bin" / "weed"
KEY, SECRET = "reader", "only-for-tests"
BUCKET = "models"
_START_SECONDS = 60.0
_SERVICES = ("master", "volume", "filer", "s3")


class S3Server:
    """SeaweedFS on free ports; what is stored survives `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = ports = free_ports(2 * len(_SERVICES))
        self.port = ports[2 * _SERVICES.index("s3")]
        self._flags = [
            f"-{service}.port{kind}={port}"
            for (service, kind), port in zip(
                ((service, kind) for service in _SERVICES for kind in ("", ".grpc")), ports
            )
        ]
        (folder / "data").mkdir()
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server, and wait until it stores what it is sent, in `BUCKET`."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(WEED),
                    "server",
                    f"-dir={self._folder / 'data'}",
                    "-ip=127.0.0.1",
                    "-master.volumeSizeLimitMB=64",
                    "-volume.max=8",
                    "-filer",
                    "-s3",
                    f"-s3.config={self._folder / 's3.json'}",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    *self._flags,
                ],
                cwd=self._folder,
                env={key: os.environ[key] for key in os.environ if not key.startswith("AWS_")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.1)
        while not self._stores():  # its volumes may not be there at once
            assert time.monotonic() < deadline, "the S3 server stores nothing"
            time.sleep(0.5)

    def _stores(self) -> bool:
        import s3fs

        try:
            bucket = s3fs.S3FileSystem(
                key=KEY, secret=SECRET, endpoint_url=self.endpoint, skip_instance_cache=True
            )
            bucket.makedirs(BUCKET, exist_ok=True)
            bucket.pipe_file(f"{BUCKET}/test", b"test")
        except OSError:
            return False
        return True

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=2).close()
        except urllib.error.HTTPError as error:
            return error.code == 403  # it asks for a signature
        except OSError:
            return False
        return True

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None
        for port in self._ports:  # sockets that it has no time to remove
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


@contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    """An S3 server with an empty bucket, whose credentials are in the environment of the block."""
    if not WEED.exists():
        pytest.skip("there is no `weed` of tests/tools.txt in .venv/bin")
    import s3fs

    server = S3Server(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        # In one process they are kept by their arguments, and would ask the server of another file.
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            server.start()
            yield server
        finally:
            server.kill()


class Proxy:
    """A TCP proxy that can cut and slow what comes from the server.

    Attributes:
        port: where it listens.
        target: port of the server.
        cuts: how many of the next connections with much data are cut.
        cut_after: bytes from the server after which they are cut.
        pause: seconds of rest after each 64 KiB from the server.
        connections: number of connections so far.
        was_cut: number of connections that were cut.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.cuts = 0
        self.cut_after = 1 << 20
        self.pause = 0.0
        self.connections = 0
        self.was_cut = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.target), 5)
        except OSError:
            caller.close()
            return
        server.settimeout(None)
        up = threading.Thread(target=self._copy, args=(caller, server, False), daemon=True)
        up.start()
        self._copy(server, caller, True)
        for one in (caller, server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        up.join(5)
        caller.close()
        server.close()

    def _copy(self, source: socket.socket, target: socket.socket, down: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                if down and self.cuts and passed > self.cut_after:
                    self.cuts -= 1
                    self.was_cut += 1
                    return
                target.sendall(data)
                if down and self.pause:
                    time.sleep(self.pause)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
