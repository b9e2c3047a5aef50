"""Images fetched on a caller's word, and only from hosts that the operator lists.

Otherwise a stranger could let this machine ask anything that it can reach.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from .._proxy import proxy_for_http
from .problems import ProblemError
from .settings import MAX_IMAGE_BYTES, ApiSettings

if TYPE_CHECKING:
    import httpx

_SECONDS = 10.0


async def fetch(settings: ApiSettings, url: str, take: Callable[[int], None]) -> bytes:
    """Fetch one image. A redirection is not followed: it could lead anywhere.

    Args:
        take: is told of bytes as they come, and may refuse them.

    Raises:
        ProblemError: the host is not listed, or gives no image.
    """
    import httpx

    address = _checked(settings, url)
    try:
        return await asyncio.wait_for(_fetch(address, url, take), _SECONDS)
    except asyncio.TimeoutError:
        raise _failed(url, f"it did not come within {_SECONDS:g} seconds") from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise _failed(url, type(error).__name__) from None


async def _fetch(address: httpx.URL, url: str, take: Callable[[int], None]) -> bytes:
    import httpx

    proxy = proxy_for_http(str(address))
    options: dict[str, Any] = {
        "follow_redirects": False,
        "headers": {"Accept-Encoding": "identity"},
        "trust_env": False,  # _proxy.py chooses the proxy
        "proxy": httpx.Proxy(proxy.url) if proxy else None,
        "verify": _authorities(),
    }
    async with (
        httpx.AsyncClient(**options) as client,
        client.stream("GET", address) as answer,
    ):
        if answer.status_code != HTTPStatus.OK:
            raise _failed(url, f"its host answers with HTTP {answer.status_code}")
        body = bytearray()
        async for part in answer.aiter_raw():
            take(len(part))
            body += part
            if len(body) > MAX_IMAGE_BYTES:
                raise _failed(url, f"it has more than {MAX_IMAGE_BYTES >> 20} MiB")
        return bytes(body)


@cache
def _authorities() -> ssl.SSLContext:
    """The certificate authorities, which take 20 ms to read."""
    import httpx

    return httpx.create_ssl_context()


def _checked(settings: ApiSettings, url: str) -> httpx.URL:
    """Parse an address, in the one way in which it is then asked for."""
    import httpx

    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, f"{url[:100]!a} is no address; allowed: http:// or https://"
        )
    host = parts.netloc.decode("ascii", "replace")
    if host not in settings.url_hosts or parts.userinfo:
        listed = ", ".join(sorted(settings.url_hosts)) or "none; the operator lists no host"
        raise ProblemError(
            HTTPStatus.FORBIDDEN,
            f"images may not be fetched from {host[:100]!a}; allowed: {listed}",
        )
    return parts


def _failed(url: str, reason: str) -> ProblemError:
    return ProblemError(
        HTTPStatus.BAD_REQUEST, f"the image of {url[:100]!a} cannot be fetched: {reason}"
    )
