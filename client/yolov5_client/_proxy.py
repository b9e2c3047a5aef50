"""The proxy that the environment names for an address, chosen as curl and gRPC do."""

from __future__ import annotations

import ipaddress
import os
import re
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_HTTP_SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True)
class Proxy:
    """A proxy from the environment.

    Attributes:
        url: the value of the variable, perhaps with a password.
        variable: the name of the variable.
    """

    url: str = field(repr=False)
    variable: str

    def __str__(self) -> str:
        """Describe the proxy without its password."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        return f"the proxy {parts.scheme}://{host} that {self.variable} names"


def proxy_for_http(address: str) -> Proxy | None:
    """Find the proxy for an http:// or https:// address; None for a loopback address.

    Raises:
        ValueError: the variable does not hold a proxy's address.
    """
    url = urlsplit(address)
    if not url.hostname or _is_exempt(url.hostname, url.port, "no_proxy", "NO_PROXY"):
        return None
    # Under CGI, HTTP_PROXY holds the header `Proxy` of the caller and is not to be trusted.
    upper = () if url.scheme == "http" and "REQUEST_METHOD" in os.environ else (url.scheme,)
    names = [f"{url.scheme}_proxy", *(f"{scheme.upper()}_PROXY" for scheme in upper)]
    found = _named(*names) or _named("all_proxy", "ALL_PROXY")
    if found is not None:
        _check(found)
    return found


def proxy_for_grpc(target: str) -> Proxy | None:
    """Find the proxy that gRPC itself uses for a target; None for loopback addresses and lists."""
    hosts = _grpc_hosts(target)
    if len(hosts) != 1 or _is_exempt(*hosts[0], "no_grpc_proxy", "no_proxy"):
        return None
    found = next(filter(None, map(_named, ("grpc_proxy", "https_proxy", "http_proxy"))), None)
    return found if found and urlsplit(found.url).scheme == "http" else None


def opener_for(url: str) -> urllib.request.OpenerDirector:
    """Return an opener for a download, with the environment's proxies except for loopback."""
    loopback = is_loopback(urlsplit(url).hostname or "")
    handlers = [urllib.request.ProxyHandler({})] if loopback else []
    return urllib.request.build_opener(*handlers)


def is_loopback(host: str) -> bool:
    """Whether a host name or an IP address is this machine's own."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _named(*variables: str) -> Proxy | None:
    """Return the proxy of the first variable that is set; an empty variable means no proxy."""
    for variable in variables:
        if (value := os.environ.get(variable)) is not None:
            value = value.strip()
            return (
                Proxy(value if "://" in value else f"http://{value}", variable) if value else None
            )
    return None


def _check(proxy: Proxy) -> None:
    try:
        url = urlsplit(proxy.url)
        usable = url.scheme in _HTTP_SCHEMES and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[!-~]+", proxy.url):
        # The value may hold a password, which must not appear in a message.
        raise ValueError(
            f"{proxy.variable} does not name a proxy that can be used; allowed: an address that"
            f" begins with {', '.join(f'{scheme}://' for scheme in _HTTP_SCHEMES)}."
        )


def _is_exempt(host: str, port: int | None, *variables: str) -> bool:
    """Whether a host is this machine, or is listed in one of the variables."""
    if is_loopback(host):
        return True
    listed = next((value for name in variables if (value := os.environ.get(name))), "")
    return any(_matches(entry, host, port) for entry in listed.replace(",", " ").split())


def _matches(entry: str, host: str, port: int | None) -> bool:
    """Whether a host matches an entry: *, an address, a network, or a domain and its subdomains."""
    if entry == "*":
        return True
    host, entry = host.strip("[]").rstrip(".").lower(), entry.lower()
    name, colon, number = entry.rpartition(":")
    if colon and number.isdecimal() and (":" not in name or name.endswith("]")):
        if number != str(port):
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").lstrip(".").rstrip(".")
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return bool(entry) and (host == entry or host.endswith(f".{entry}"))


def _grpc_hosts(target: str) -> list[tuple[str, int | None]]:
    """Return host and port of each address in a gRPC target; none for a local socket."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("unix", "unix-abstract", "vsock"):
        return []
    if colon and scheme in ("dns", "ipv4", "ipv6"):
        target = re.sub("^//[^/]*/", "", rest).lstrip("/")
    return [_split(one) for one in target.split(",")]


def _split(address: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"\[(.*)\](?::(\d+))?|([^:]*):(\d+)", address)
    if match is None:
        return address, None
    port = match[2] or match[4]
    return match[1] or match[3] or "", int(port) if port else None
