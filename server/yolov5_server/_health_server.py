"""The health of the service over HTTP, for probes and Prometheus."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any, cast

from ._health import Health
from ._settings import Settings

_MAX_CONNECTIONS = 64  # connections at the same time
_IDLE_SECONDS = 2.0  # seconds that a connection may send nothing
_HEAD_SECONDS = 5.0  # for the whole head of a request
_HEAD_BYTES = 16 << 10


class HealthServer(ThreadingHTTPServer):
    """What probes ask.

    - GET /ready: 200 if an image would be answered, else 503 with the reason.
    - GET /live: 200 unless the launcher itself should be restarted.
    - GET /metrics: restarts and canaries, for Prometheus.

    A connection that has not sent its request makes room for a newer one, and does not last long.

    Raises:
        OSError: it cannot listen there.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 2 * _MAX_CONNECTIONS

    def __init__(self, settings: Settings, health: Health) -> None:
        self.address_family = settings.family
        self.health = health
        self._connections = threading.Condition()
        self._open = 0
        self._reading: dict[socket.socket, float] = {}  # since when, the oldest first
        super().__init__((settings.host, settings.health_port), _Handler)
        threading.Thread(target=self.serve_forever, name="health", daemon=True).start()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.1)  # no descriptor is free; asking again at once would take a core
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, while there are not too many: they hold the launcher's own descriptors."""
        with self._connections:
            if self._open >= _MAX_CONNECTIONS:
                self._close_silent(older_than=0.0, most=1)
                self._connections.wait_for(lambda: self._open < _MAX_CONNECTIONS, timeout=0.5)
            if self._open >= _MAX_CONNECTIONS:
                self.shutdown_request(request)
                return
            self._open += 1
            self._reading[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._closed(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._closed(request)

    def _closed(self, request: socket.socket) -> None:
        with self._connections:
            self._reading.pop(request, None)
            self._open -= 1
            self._connections.notify_all()

    def head_is_read(self, request: socket.socket) -> None:
        """Its answer is under way now: it is closed after that, and not before."""
        with self._connections:
            self._reading.pop(request, None)

    def service_actions(self) -> None:
        """Called by the standard library twice a second, and after each connection."""
        with self._connections:
            self._close_silent(older_than=_HEAD_SECONDS, most=_MAX_CONNECTIONS)

    def _close_silent(self, *, older_than: float, most: int) -> None:
        """End connections that have sent no request; the caller holds `_connections`."""
        now = time.monotonic()
        for request, since in list(self._reading.items())[:most]:
            if now - since >= older_than:
                del self._reading[request]
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)  # its thread reads an end, and closes it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A prober that hangs up is no fault of ours."""


class _Head:
    """The stream of a request, of which so many bytes are read and no more."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self._left = _HEAD_BYTES

    def readline(self, size: int) -> bytes:
        line = self._stream.readline(min(size, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise LineTooLong("head")
        return line

    def close(self) -> None:
        self._stream.close()


class _Handler(BaseHTTPRequestHandler):
    server: HealthServer
    timeout = _IDLE_SECONDS

    def setup(self) -> None:
        super().setup()
        self.rfile = cast(BufferedIOBase, _Head(self.rfile))

    def parse_request(self) -> bool:
        found = super().parse_request()
        self.server.head_is_read(self.connection)
        return found

    def do_GET(self) -> None:
        health = self.server.health
        if self.path == "/ready":
            reason = health.check()
            body: dict[str, Any] = {"ready": reason is None}
            self._send(503 if reason else 200, body | ({"reason": reason} if reason else {}))
        elif self.path == "/live":
            live = health.is_live
            self._send(200 if live else 503, {"live": live})
        elif self.path == "/metrics":
            self._send(200, _metrics(health))
        else:
            self._send(404, {"error": "no such path; allowed: /ready, /live, /metrics"})

    do_HEAD = do_GET  # noqa: N815

    def _send(self, status: int, body: dict[str, Any] | str) -> None:
        text = body if isinstance(body, str) else json.dumps(body) + "\n"
        kind = "application/json" if isinstance(body, dict) else "text/plain; version=0.0.4"
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Probes are not logged."""


def _metrics(health: Health) -> str:
    lines = [
        "# HELP yolov5_ready Whether an image would be answered.",
        "# TYPE yolov5_ready gauge",
        f"yolov5_ready {int(health.check() is None)}",
        "# HELP yolov5_restarts_total What the launcher has brought back, and why.",
        "# TYPE yolov5_restarts_total counter",
        *(
            f'yolov5_restarts_total{{what="{what}",reason="{reason}"}} {count}'
            for (what, reason), count in sorted(health.restarts.items())
        ),
        "# HELP yolov5_restart_pause_seconds Until the next start, while the launcher puts it off.",
        "# TYPE yolov5_restart_pause_seconds gauge",
        f"yolov5_restart_pause_seconds {health.pause:.1f}",
        "# HELP yolov5_canaries_total Images of one pixel that the launcher has sent.",
        "# TYPE yolov5_canaries_total counter",
        *(
            f'yolov5_canaries_total{{outcome="{outcome}"}} {health.canaries[outcome]}'
            for outcome in ("sent", "failed")
        ),
    ]
    return "".join(f"{line}\n" for line in lines)
