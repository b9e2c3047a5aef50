"""How to reach a server, and how long to keep trying: data, checked where it enters."""

from __future__ import annotations

import random
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from ._proxy import Proxy, proxy_for_grpc, proxy_for_http

LARGEST_ANSWER = 16 << 20  # bytes; 1000 detections take 28 kB and their labels

_LONGEST = 366 * 24 * 3600.0  # seconds: beyond it, clocks and timers overflow


@dataclass(frozen=True, kw_only=True)
class TLS:
    """Files in PEM format.

    Attributes:
        ca: the authorities to trust; without it those of the system.
        certificate, key: the client's own, for mutual TLS.

    Raises:
        OSError: one cannot be read.
        ValueError: a certificate without its key, or a key without its certificate.
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
        """For HTTPS.

        Raises:
            ssl.SSLError: a file is not what it should be.
        """
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What `Client` and `AsyncClient` are made with; see there.

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

    def __post_init__(self) -> None:
        # Written so that a NaN is refused, too.
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
        # gRPC counts it in milliseconds, in 32 bits.
        if self.keepalive is not None and not 0 < self.keepalive <= 24 * 3600:
            raise ValueError(
                f"keepalive is {self.keepalive}; allowed: more than 0 seconds, or None;"
                " at most a day."
            )
        for name, value in self.headers.items():
            if not _HEADER.fullmatch(f"{name}:{value}") or name.lower().endswith("-bin"):
                # Its value may be a key, which belongs in no message.
                raise ValueError(f"the header {name!r} cannot be sent; allowed: one line of ASCII.")
        if self.address.startswith("http://") and self.tls:
            raise ValueError("tls needs an https:// address.")
        if self.http:
            _check_url(self.address)
        _ = self.proxy

    @property
    def encryption(self) -> TLS | None:
        """What to encrypt with; None for gRPC in the clear, and for what HTTPS does by itself."""
        return TLS() if self.tls is True else self.tls or None

    @property
    def http(self) -> bool:
        """Over HTTP, and not gRPC."""
        return self.address.startswith(("http://", "https://"))

    @cached_property
    def proxy(self) -> Proxy | None:
        """What the environment wants between here and there; never for a loopback address."""
        return (proxy_for_http if self.http else proxy_for_grpc)(self.address)

    @property
    def via(self) -> str:
        """For the end of an error message, where a proxy may have caused it."""
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
    """Waits between attempts at one request: exponential, with jitter, within a budget.

    The jitter keeps the callers of a server that comes back from all arriving at once
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/, "equal jitter").
    """

    INITIAL, MAXIMUM = 0.1, 2.0  # seconds

    def __init__(self, budget: float) -> None:
        self._deadline = time.monotonic() + budget
        self._budget = budget

    def __iter__(self) -> Iterator[float]:
        """Seconds to wait before the next attempt; ends when the budget is used up."""
        longest = self.INITIAL
        while self._budget and (left := self._deadline - time.monotonic()) > 0:
            yield min(random.uniform(longest / 2, longest), left)
            longest = min(2 * longest, self.MAXIMUM)
