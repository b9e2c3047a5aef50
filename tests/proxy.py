"""A wire between a client and the server that a test can encrypt, cut and hold."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from urllib.parse import urlsplit


class Proxy:
    """Forwards a port of its own to `target`, and speaks TLS on its own side with `context`.

    Attributes:
        connections: how many there have been.
        sent: bytes that came from clients.
    """

    def __init__(
        self, target: str, *, context: ssl.SSLContext | None = None, port: int = 0
    ) -> None:
        parts = urlsplit(target if "//" in target else f"//{target}")
        self._target = (parts.hostname, parts.port)
        self._context = context
        self._open: list[socket.socket] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._ended = False
        self.connections = 0
        self.sent = 0
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def hold(self) -> None:
        """Pass nothing on any more, as if the cable had been pulled out; new connections work."""
        self._flowing.clear()

    def let_go(self) -> None:
        self._flowing.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        far: socket.socket | None = None
        with contextlib.suppress(OSError, ValueError):
            if self._context is not None:
                near = self._context.wrap_socket(near, server_side=True)
            far = socket.create_connection(self._target)
            self._open += [near, far]
            self.connections += 1
            held = not self._flowing.is_set()
            while not self._ended:
                pending = isinstance(near, ssl.SSLSocket) and near.pending() > 0
                readable = [near] if pending else select.select([near, far], [], [], 0.1)[0]
                if not self._flowing.is_set() and not held:
                    self._flowing.wait()
                for one in readable:
                    data = one.recv(65536)
                    if not data:
                        return
                    self.sent += len(data) * (one is near)
                    (far if one is near else near).sendall(data)
        near.close()
        if far is not None:
            far.close()

    def close(self) -> None:
        """Cut every connection; nobody listens any more."""
        self._ended = True
        self._flowing.set()
        for one in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
