"""The health of the service over HTTP, for probes and Prometheus."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any, cast

from ._health import Health
from ._settings import Settings

_MAX_CONNECTIONS = 64  # at the same time
_IDLE_SECONDS = 2.0  # that a connection may send nothing
_HEAD_SECONDS = 5.0  # for the whole head of a request
_HEAD_BYTES = 16 << 10


class HealthServer(ThreadingHTTPServer):
    """Answers probes.

    - GET /ready: 200 if an image would be answered by every endpoint, else 503 with the reason.
      Networks that are not served as they are installed are listed, too.
    - GET /ready/NAME: the same for the endpoint of one network; 404 if there is none.
    - GET /models: what is served, as JSON. With ?memory=0 without its memory, which takes the
      system some milliseconds to add up.
    - GET /live: 200 unless the launcher itself should be restarted.
    - GET /metrics: restarts, canaries, what is served and its memory, for Prometheus.

    Connections that have sent no request are closed after a while, and earlier if a new one needs
    the place.

    Args:
        list_models: the answer to /models, with memory or without.
        more_metrics: lines for the answer to /metrics, beside those of `health`.

    Raises:
        OSError: the port cannot be used.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 2 * _MAX_CONNECTIONS

    def __init__(
        self,
        settings: Settings,
        health: Health,
        list_models: Callable[[bool], dict[str, Any]] = lambda memory: {},
        more_metrics: Callable[[], str] = str,
    ) -> None:
        self.address_family = settings.family
        self.health = health
        self.list_models = list_models
        self.more_metrics = more_metrics
        self._connections = threading.Condition()
        self._open = 0
        self._reading: dict[socket.socket, float] = {}  # since when, oldest first
        super().__init__((settings.host, settings.health_port), _Handler)
        threading.Thread(target=self.serve_forever, name="health", daemon=True).start()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.1)  # no descriptor is free; trying again at once would use up a core
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread; at most `_MAX_CONNECTIONS`, which limits descriptors."""
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
        """Note that the request has arrived: the connection is no longer closed as silent."""
        with self._connections:
            self._reading.pop(request, None)

    def service_actions(self) -> None:
        """Close silent connections. The standard library calls this twice a second."""
        with self._connections:
            self._close_silent(older_than=_HEAD_SECONDS, most=_MAX_CONNECTIONS)

    def _close_silent(self, *, older_than: float, most: int) -> None:
        """Close connections that have sent no request. The caller holds `_connections`."""
        now = time.monotonic()
        for request, since in list(self._reading.items())[:most]:
            if now - since >= older_than:
                del self._reading[request]
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)  # its thread then closes it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: a prober may hang up."""


class _Head:
    """The stream of a request, of which at most `_HEAD_BYTES` are read."""

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
        path, _, network = self.path.removeprefix("/").partition("/")
        if self.path == "/ready":
            refused = {"not_served": dict(health.refused)} if health.refused else {}
            self._send_ready(health.check(), refused)
        elif path == "ready" and network in {*health.networks, *health.refused}:
            self._send_ready(health.check(network), {})
        elif self.path == "/live":
            live = health.is_live
            self._send(200 if live else 503, {"live": live})
        elif self.path in ("/models", "/models?memory=0"):
            self._send(200, self.server.list_models(self.path == "/models"))
        elif self.path == "/metrics":
            self._send(200, _metrics(health) + self.server.more_metrics())
        else:
            allowed = "/ready, /ready/NAME, /live, /models, /metrics"
            self._send(404, {"error": f"no such path; allowed: {allowed}"})

    def _send_ready(self, reason: str | None, more: dict[str, Any]) -> None:
        body: dict[str, Any] = {"ready": reason is None}
        if reason is not None:
            body["reason"] = reason
        self._send(503 if reason else 200, body | more)

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
        """Do not log probes."""


def _metrics(health: Health) -> str:
    lines = [
        "# HELP yolov5_ready Whether an image would be answered.",
        "# TYPE yolov5_ready gauge",
        *_ready(health),
        "# HELP yolov5_restarts_total Restarts by the launcher: what failed, and why.",
        "# TYPE yolov5_restarts_total counter",
        *(
            f'yolov5_restarts_total{{what="{what}",reason="{reason}"}} {count}'
            for (what, reason), count in sorted(health.restarts.items())
        ),
        "# HELP yolov5_restart_pause_seconds Time until the next start, if it is delayed.",
        "# TYPE yolov5_restart_pause_seconds gauge",
        f"yolov5_restart_pause_seconds {health.pause:.1f}",
        "# HELP yolov5_canaries_total Images of one pixel sent by the launcher.",
        "# TYPE yolov5_canaries_total counter",
        *(
            f'yolov5_canaries_total{{outcome="{outcome}"}} {health.canaries[outcome]}'
            for outcome in ("sent", "failed")
        ),
    ]
    return "".join(f"{line}\n" for line in lines)


def _ready(health: Health) -> list[str]:
    """The health of each endpoint; of the only one, without a label."""
    names = sorted({*health.networks, *health.refused})
    if len(names) <= 1:
        return [f"yolov5_ready {int(health.check() is None)}"]
    return [f'yolov5_ready{{model="{one}"}} {int(health.check(one) is None)}' for one in names]
