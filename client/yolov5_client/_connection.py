"""How to reach a server and how long to retry: the clients' arguments, checked."""

from __future__ import annotations

import random
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ._contract import NETWORK, check_network, endpoint_for
from ._proxy import Proxy, proxy_for_grpc, proxy_for_http
from ._trace_context import trace_headers

# Seconds after which `detect` and `batch` repeat a request that timed out, or failed on the server.
RETRY_FAULTS_AFTER = (0.5, 1.0, 2.0)
LARGEST_ANSWER = 16 << 20  # bytes; 1000 detections take 28 kB plus their labels

_LONGEST = 366 * 24 * 3600.0  # seconds; clocks and timers overflow beyond it


@dataclass(frozen=True, kw_only=True)
class TLS:
    """Certificates for an encrypted connection, as paths of files in PEM format.

    Example:
        >>> TLS(ca="missing.pem")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'missing.pem'

    Attributes:
        ca: the certificate authorities to trust; by default the system's.
        certificate, key: the client's own certificate and private key, for mutual TLS.

    Raises:
        OSError: a file cannot be read.
        ValueError: a certificate is given without its key, or a key without its certificate.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client's certificate and its key belong together; one is missing.")
        for path in (self.ca, self.certificate, self.key):
            if path is not None:
                Path(path).read_bytes()

    def context(self) -> ssl.SSLContext:
        """Return the settings in the form that HTTPS needs.

        Example:
            >>> TLS().context().check_hostname
            True

        Raises:
            ssl.SSLError: a file is not in PEM format, or the key does not fit the certificate.
        """
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True, kw_only=True)
class Call:
    """What is asked about each image.

    Attributes:
        endpoint: name of the model that is asked.
        parameters: as the caller gave them.
        request_id: sent as the id of the request, if it is not empty.
        trace: further headers, which continue the trace of the calling code.
    """

    endpoint: str
    parameters: Mapping[str, Any]
    request_id: str
    trace: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The arguments of `Client` and `AsyncClient`, which describe them.

    Raises:
        ValueError: a value is out of range, or the environment's proxy cannot be used.
    """

    address: str
    timeout: float
    retry_for: float
    in_flight: int
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: TLS | bool | None
    keepalive: float | None
    model: str = NETWORK

    def __post_init__(self) -> None:
        check_network(self.model)
        # The conditions are written to refuse NaN as well.
        if not 0 < self.timeout <= _LONGEST:
            raise ValueError(
                f"timeout is {self.timeout}; allowed: more than 0 seconds, at most a year."
            )
        if not 0 <= self.retry_for <= _LONGEST:
            raise ValueError(
                f"retry_for is {self.retry_for}; allowed: 0 seconds or more, at most a year."
            )
        if self.in_flight < 1:
            raise ValueError(f"in_flight is {self.in_flight}; allowed: 1 or more.")
        # gRPC stores it as milliseconds in 32 bits.
        if self.keepalive is not None and not 0 < self.keepalive <= 24 * 3600:
            raise ValueError(
                f"keepalive is {self.keepalive}; allowed: more than 0 seconds, or None;"
                " at most a day."
            )
        for name, value in self.headers.items():
            if not _HEADER.fullmatch(f"{name}:{value}") or name.lower().endswith("-bin"):
                # The value may be a secret, which must not appear in a message.
                raise ValueError(f"the header {name!r} cannot be sent; allowed: one line of ASCII.")
        if self.address.startswith("http://") and self.tls:
            raise ValueError("tls needs an https:// address.")
        if self.http:
            _check_url(self.address)
        _ = self.proxy

    @property
    def endpoint(self) -> str:
        """The name under which the server has the network's endpoint."""
        return endpoint_for(self.model)

    def call(self, model: str | None, request_id: str, parameters: Mapping[str, Any]) -> Call:
        """Say what to ask about each image; without a model, the client's own network.

        Raises:
            ValueError: no network can have that name.
        """
        endpoint = self.endpoint if model is None else endpoint_for(check_network(model))
        return Call(
            endpoint=endpoint, parameters=parameters, request_id=request_id, trace=trace_headers()
        )

    @property
    def encryption(self) -> TLS | None:
        """The certificates; None for unencrypted gRPC, and for HTTPS with the system's."""
        return TLS() if self.tls is True else self.tls or None

    @property
    def http(self) -> bool:
        """Whether requests travel over HTTP rather than gRPC."""
        return self.address.startswith(("http://", "https://"))

    @cached_property
    def proxy(self) -> Proxy | None:
        """The proxy that the environment names for the address; None for a loopback address."""
        return (proxy_for_http if self.http else proxy_for_grpc)(self.address)

    @property
    def via(self) -> str:
        """The end of an error message that a proxy may have caused; empty without a proxy."""
        return f" (through {self.proxy})" if self.proxy else ""


def _check_url(address: str) -> None:
    try:
        url = urlsplit(address)
        usable = bool(url.hostname) and url.port != 0 and re.fullmatch("[!-~]+", address)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{address!a} is no address; allowed: one such as http://host:8000.")


_HEADER = re.compile(r"[!-9;-~]+:[\t -~]*")


class Backoff:
    """Pauses between attempts at one request: exponential, with jitter, within a budget.

    The jitter prevents all callers from returning at once when a server comes back
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/, "equal jitter").

    Args:
        budget: seconds for all attempts together.
    """

    INITIAL, MAXIMUM = 0.1, 2.0  # seconds

    def __init__(self, budget: float) -> None:
        self._deadline = time.monotonic() + budget
        self._budget = budget

    def __iter__(self) -> Iterator[float]:
        """Yield the seconds to wait before each next attempt, until the budget is used up."""
        longest = self.INITIAL
        while self._budget and (left := self._deadline - time.monotonic()) > 0:
            yield min(random.uniform(longest / 2, longest), left)
            longest = min(2 * longest, self.MAXIMUM)
