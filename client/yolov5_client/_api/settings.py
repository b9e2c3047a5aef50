"""The settings of the service, checked."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from .._connection import TLS, Connection
from .._contract import NETWORK, check_network

MAX_IMAGES = 8  # of one request, as the endpoint allows
MAX_IMAGE_BYTES = 32 << 20  # as the endpoint allows
# One image at the limit is 43 MiB as base64 in JSON.
MAX_BODY_BYTES = 48 << 20

_LONGEST_SOCKET = 107  # bytes of a path, sun_path in unix(7)

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?", re.ASCII)
# The same addresses as the launcher's flag takes.
_COLLECTOR = re.compile(r"https?://[^\s/,=@?#]+(/[^\s,=@?#]*)?")
_ORIGIN = re.compile(r"https?://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """What an operator decides; the flags of `yolov5-client api` have the same names.

    Attributes:
        host, port: to listen on. Port 0 takes any free one.
        socket: path of a Unix socket to listen on in their place, for this user alone.
        server: address of the Triton server, as `AsyncClient` takes it.
        model: the network that is asked if a request names none.
        health: address of the launcher's health port, which tells the served networks and their
            versions; None does without.
        timeout: seconds for one image.
        headers, tls: as `AsyncClient` takes them.
        keys: who may ask, by key; empty lets everybody ask.
        url_hosts: hosts, with a port if it is not the scheme's, from which images may be fetched
            for a request with `url`; empty refuses such requests.
        origins: origins of other sites whose pages may use the service, such as
            `https://example.com`.
        gateway: take the caller's rights from the header `X-Yolov5-Endpoints`, which a gateway in
            front sets.
        in_flight: images that the server is asked about at a time; one more is answered with 503.
        max_buffered_bytes: request bodies in memory, all together; more are answered with 503.
        upload_timeout: seconds within which the body of a request must have come.
        drain: seconds that requests in progress have when the service is stopped.
        trace: address of a collector that takes traces by OTLP over HTTP; empty for no traces.
        trace_ratio: share of the requests without a trace of their own that are traced, 0 to 1.

    Raises:
        ValueError: a value cannot be used. The message is one sentence that names the flag.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    socket: Path | None = None
    server: str = "127.0.0.1:8001"
    model: str = NETWORK
    health: str | None = None
    timeout: float = 60.0
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: TLS | bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    url_hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    gateway: bool = False
    in_flight: int = 128
    max_buffered_bytes: int = 256 << 20
    upload_timeout: float = 30.0
    drain: float = 8.0
    trace: str = ""
    trace_ratio: float = 0.01

    def __post_init__(self) -> None:
        check_network(self.model, "--model")
        Connection(  # checks what `AsyncClient` will be given
            address=self.server,
            timeout=self.timeout,
            retry_for=0,
            in_flight=max(1, self.in_flight),
            headers=self.headers,
            tls=self.tls,
            keepalive=None,
        )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}; allowed: 0 to 65535.")
        if self.socket is not None and len(os.fsencode(self.socket)) > _LONGEST_SOCKET:
            raise ValueError(
                f"--socket is {self.socket}; allowed: a path of at most {_LONGEST_SOCKET} bytes."
            )
        if self.health is not None and not _is_http(self.health):
            raise ValueError(
                f"--health is {self.health!a}; allowed: the http:// address of the launcher's"
                " health port, such as http://127.0.0.1:8003."
            )
        for host in self.url_hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(
                    f"--allow-url-host is {host!a}; allowed: a host such as images.example.com or"
                    " 10.0.0.7:9000."
                )
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"--allow-origin is {origin!a}; allowed: an origin such as https://example.com."
                )
        if self.in_flight < MAX_IMAGES:
            raise ValueError(f"--in-flight is {self.in_flight}; allowed: {MAX_IMAGES} or more.")
        if self.max_buffered_bytes < MAX_BODY_BYTES:
            raise ValueError(
                f"--max-buffered-mib is {self.max_buffered_bytes >> 20}; allowed:"
                f" {MAX_BODY_BYTES >> 20} or more, which is one request."
            )
        self._check_trace()
        for name, seconds in (("upload-timeout", self.upload_timeout), ("drain", self.drain)):
            if not 0 < seconds <= 3600:
                raise ValueError(
                    f"--{name} is {seconds}; allowed: more than 0 seconds, at most 3600."
                )

    def _check_trace(self) -> None:
        if self.trace and not _COLLECTOR.fullmatch(self.trace):
            # Without the value, which may hold a password.
            raise ValueError(
                "--trace is not the address of a collector; allowed: one such as"
                " http://localhost:4318, without user, query and commas."
            )
        if not 0 <= self.trace_ratio <= 1:
            raise ValueError(f"--trace-ratio is {self.trace_ratio:g}; allowed: 0 to 1.")

    @property
    def local_hosts(self) -> frozenset[str] | None:
        """The names under which a service for this machine alone can be asked; None if others can.

        Under DNS rebinding another site's name resolves to this machine, and its page counts as of
        the same origin. Only the host name reveals it.
        """
        try:
            local = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            local = self.host == "localhost"
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return frozenset({"localhost", "127.0.0.1", "[::1]", shown}) if local else None


def _is_http(address: str) -> bool:
    try:
        url = urlsplit(address)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False
