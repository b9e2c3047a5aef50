"""A small server for `page.html` and for the one request that the page makes.

Triton sends no CORS headers, and a browser therefore forbids pages of other origins to use it. This
server is the page's origin and passes images on to Triton. It exposes nothing else of Triton.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import ipaddress
import json
import re
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import _contract as names
from ._connection import LARGEST_ANSWER
from ._proxy import Proxy, proxy_for_http

INFER = f"/v2/models/{names.MODEL}/infer"
MAX_BODY = 32 << 20  # bytes

_LENGTH = "Inference-Header-Content-Length"
_BINARY = "application/octet-stream"
_ROUTE = re.compile(INFER.replace(names.NETWORK, "([^/]*)"))
# Where the page has the name of the network that it asks at first.
_NETWORK = b'id="model" value="%s"'
_HEADER = re.compile(r"[!-9;-~]+:[\t -~\x80-\xff]*")
_HOSTS = {"localhost", "127.0.0.1", "[::1]"}


class RefusedError(Exception):
    """The request is refused. The message is one sentence for the caller."""

    def __init__(self, status: HTTPStatus, sentence: str, headers: Mapping[str, str] | None = None):
        super().__init__(sentence)
        self.status = status
        self.headers = headers or {}


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """Triton's HTTP port, to which images are passed on.

    Attributes:
        address: http://HOST:PORT or https://HOST:PORT, optionally with a path before /v2.
        timeout: seconds for a whole request.
        headers: sent with every request.

    Raises:
        ValueError: an attribute cannot be used.
    """

    address: str
    timeout: float = 60.0
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _is_http(self.address):
            raise ValueError(
                f"--server is {self.address!r}; allowed: the http:// or https:// address of"
                " Triton's HTTP side, such as http://127.0.0.1:8000."
            )
        if not 0 < self.timeout <= 366 * 24 * 3600:
            raise ValueError(
                f"--timeout is {self.timeout}; allowed: more than 0 seconds, at most a year."
            )
        if self.proxy and not self.proxy.url.startswith("http://"):
            raise ValueError(
                f"{self.proxy} cannot be used for the page; allowed: one that begins with http://,"
                " or the server in NO_PROXY."
            )
        for name, value in self.headers.items():
            if not _HEADER.fullmatch(f"{name}:{value}"):
                raise ValueError(f"--header {name!a} has characters that no header may have.")

    @cached_property
    def proxy(self) -> Proxy | None:
        """The proxy that the environment names for the address."""
        return proxy_for_http(self.address)

    @property
    def via(self) -> str:
        return f" (through {self.proxy})" if self.proxy else ""

    def infer(
        self, image: bytes, parameters: list[tuple[str, str]], route: str = INFER
    ) -> Response:
        """Send one image to Triton and return the answer.

        Args:
            parameters: headers, as the caller wrote them.
            route: the path of the endpoint.

        Raises:
            RefusedError: Triton gives no valid answer.
        """
        connection, prefix, extra = self._connection()
        headers = [
            *extra.items(),
            *self.headers.items(),
            *parameters,
            ("Content-Type", _BINARY),
            (_LENGTH, "0"),
            ("Content-Length", str(len(image))),
        ]
        try:
            with _time_limit(connection, self.timeout):
                path = urlsplit(self.address).path.rstrip("/") + route
                connection.putrequest("POST", prefix + path)
                for name, value in headers:
                    connection.putheader(name, value)
                connection.endheaders(image)
                return self._read(connection.getresponse())
        except TimeoutError:
            raise RefusedError(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"the server {self.address} did not answer within {self.timeout:g} s{self.via}",
            ) from None
        except http.client.HTTPException:
            raise RefusedError(
                HTTPStatus.BAD_GATEWAY,
                f"the server at {self.address} is not Triton's HTTP port{self.via}",
            ) from None
        except OSError as error:
            raise RefusedError(
                HTTPStatus.BAD_GATEWAY,
                f"the server {self.address} cannot be reached: {error.strerror or error}{self.via}",
            ) from None
        finally:
            connection.close()

    def _read(self, answer: http.client.HTTPResponse) -> Response:
        wanted = ("Content-Type", _LENGTH)
        headers = {name: text for name in wanted if (text := answer.headers[name]) is not None}
        body = answer.read(LARGEST_ANSWER + 1)
        if len(body) > LARGEST_ANSWER:
            raise RefusedError(
                HTTPStatus.BAD_GATEWAY,
                f"the answer of {self.address} is larger than {LARGEST_ANSWER >> 20} MiB",
            )
        return Response(answer.status, headers, body)

    def _connection(self) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
        """What to ask, what to put before the path, and headers for a proxy."""
        url = urlsplit(self.address)
        assert url.hostname is not None
        host, port, secure = url.hostname, url.port, url.scheme == "https"
        prefix, extra = "", {}
        if proxy := self.proxy:
            hop = urlsplit(proxy.url)
            extra = proxy.authorization
            host, port = hop.hostname or "", hop.port or 80
            if not secure:
                prefix = f"http://{url.netloc}"
        if not secure:
            return http.client.HTTPConnection(host, port, timeout=self.timeout), prefix, extra
        connection = http.client.HTTPSConnection(
            host, port, timeout=self.timeout, context=ssl.create_default_context()
        )
        if proxy:
            connection.set_tunnel(url.hostname, url.port or 443, headers=extra)
        return connection, "", {}


@contextmanager
def _time_limit(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Shut the connection down after some seconds: a socket's timeout restarts with each byte.

    Raises:
        TimeoutError: the connection was shut down.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):
            if connection.sock:
                # The method of the plain socket: that of TLS would wait for the peer.
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if late.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError


def _is_http(address: str) -> bool:
    try:
        url = urlsplit(address)
        beyond = url.username or url.query or url.fragment or url.port == 0
        return url.scheme in ("http", "https") and bool(url.hostname) and not beyond
    except ValueError:
        return False


class PageServer(socketserver.ThreadingTCPServer):
    """Listens as soon as it is made, and answers while `serve_forever` runs.

    Args:
        model: the network that the page asks until another one is chosen on it.

    Raises:
        OSError: it cannot listen on the host and port.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self, host: str, port: int, upstream: Upstream, model: str = names.NETWORK
    ) -> None:
        family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        self.upstream = upstream
        page = Path(__file__).with_name("page.html").read_bytes()
        default, chosen = (_NETWORK % name.encode() for name in (names.NETWORK, model))
        self.page = page.replace(default, chosen)
        self.policy = _content_security_policy(self.page)
        super().__init__((str(found[0]), port), _Handler)
        bound = self.socket.getsockname()[0]
        self.hosts = _HOSTS | {bound} if ipaddress.ip_address(bound).is_loopback else None

    @property
    def url(self) -> str:
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A caller that hangs up is not an error of the server.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _content_security_policy(page: bytes) -> str:
    """Return the Content-Security-Policy, which allows only the page's own script and style."""

    def hashes(tag: bytes) -> str:
        found = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text).digest()).decode() for text in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes(b'script')}; style-src {hashes(b'style')};"
        " img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )


def _check_route(path: str) -> None:
    """Check that a path is that of an endpoint, whether or not the server has it.

    Raises:
        RefusedError: it is not.
    """
    match = _ROUTE.fullmatch(path)
    if match is None:
        raise RefusedError(HTTPStatus.NOT_FOUND, f"no such path; allowed: / and {INFER}")
    try:
        names.check_network(match[1])
    except ValueError as error:
        raise RefusedError(HTTPStatus.NOT_FOUND, str(error).rstrip(".")) from None


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds without a byte sent or received

    def _route(self) -> None:
        try:
            path = self.path.partition("?")[0]
            self._check(path)
            if path == "/":
                headers = {
                    "Content-Type": "text/html; charset=utf-8",
                    "Content-Security-Policy": self.server.policy,
                }
                self._send(Response(HTTPStatus.OK, headers, self.server.page))
            else:
                image, parameters = self._image(), self._parameters()
                self._send(self.server.upstream.infer(image, parameters, path))
        except RefusedError as error:
            self._refuse(error)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _route  # noqa: N815

    def _check(self, path: str) -> None:
        host = self.headers.get("Host", "")
        # Under DNS rebinding another site's name resolves to this machine, and its page counts as
        # of the same origin. Only the host name reveals it.
        if self.server.hosts and re.sub(r":\d+$", "", host).lower() not in self.server.hosts:
            allowed = ", ".join(sorted(self.server.hosts))
            raise RefusedError(
                HTTPStatus.FORBIDDEN, f"the header Host names another machine; allowed: {allowed}"
            )
        if path != "/":
            _check_route(path)
        method = "GET" if path == "/" else "POST"
        if self.command != method:
            raise RefusedError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                f"{path} cannot be asked for with {self.command}; allowed: {method}",
                {"Allow": method},
            )
        origins = (f"http://{host}", f"https://{host}")
        # A link from elsewhere may lead to the page; only the page may ask for detections.
        if path != "/" and (
            self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
            or self.headers.get("Origin", origins[0]) not in origins
        ):
            raise RefusedError(
                HTTPStatus.FORBIDDEN, "the request comes from another site; allowed: this page"
            )

    def _parameters(self) -> list[tuple[str, str]]:
        given = [
            (name, value)
            for name, value in self.headers.items()
            if name.lower().startswith("x-yolo-")
        ]
        for name, value in given:
            if not _HEADER.fullmatch(f"{name}:{value}"):
                raise RefusedError(
                    HTTPStatus.BAD_REQUEST, f"the header {name!a} has characters it may not have"
                )
        return given

    def _image(self) -> bytes:
        kind = self.headers.get_content_type() if "Content-Type" in self.headers else "none"
        if kind != _BINARY:
            raise RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type is {kind}; allowed: {_BINARY}"
            )
        if self.headers.get(_LENGTH) != "0":
            raise RefusedError(
                HTTPStatus.BAD_REQUEST,
                f"{_LENGTH} is not 0; allowed: 0, with the image itself as the body",
            )
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths or "Transfer-Encoding" in self.headers:
            raise RefusedError(
                HTTPStatus.LENGTH_REQUIRED, "the body's length is not given by Content-Length"
            )
        if not re.fullmatch(r"\d{1,18}", lengths[0], re.ASCII) or len(lengths) > 1:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Content-Length is not one whole number")
        length = int(lengths[0])
        if length > MAX_BODY:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the image has {length} bytes; allowed: at most {MAX_BODY}",
            )
        image = self.rfile.read(length)
        if len(image) < length:
            raise ConnectionAbortedError
        return image

    def _refuse(self, error: RefusedError) -> None:
        # The rest of the request's body must not be parsed as the next request.
        headers = {**error.headers, "Content-Type": "application/json", "Connection": "close"}
        self._send(Response(error.status, headers, json.dumps({"error": str(error)}).encode()))
        # Closing a socket with unread bytes resets the connection, and a browser that is still
        # sending would not see the answer.
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(2)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.rfile.read1(1 << 16):
            pass

    def _send(self, answer: Response) -> None:
        self.send_response_only(answer.status)
        for name, value in {
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Content-Length": str(len(answer.body)),
            **answer.headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses by itself: malformed requests and other methods."""
        self.command = self.command or "GET"
        self._refuse(RefusedError(HTTPStatus(code), message or HTTPStatus(code).phrase))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Do not log requests."""
