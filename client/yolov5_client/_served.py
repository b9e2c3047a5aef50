"""The networks of a server, as the launcher's health port lists them under `/models`."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ._errors import ServerError, TimedOutError, UnavailableError
from ._proxy import opener_for
from ._wire import one_line

_LARGEST = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One network of a server.

    Attributes:
        name, endpoint: such as `plates` and `plates_ensemble`.
        ready: whether an image would be answered.
        reason: why it is not ready; None if it is.
        version: of the network that is served.
        precision: such as `fp32` or `bf16`.
        memory_bytes: of the network's process.
    """

    name: str
    endpoint: str
    ready: bool
    reason: str | None
    version: int | None
    precision: str | None
    memory_bytes: int | None


def read_served_models(address: str, timeout: float, *, memory: bool = True) -> list[ServedModel]:
    """Ask the launcher for the networks of its server.

    Args:
        address: of the launcher's health port, such as `http://127.0.0.1:8003`.
        timeout: seconds without a byte.
        memory: with the memory of each network, which takes the launcher longer.

    Raises:
        ValueError: the address cannot be used.
        UnavailableError, TimedOutError, ServerError: there is no valid answer.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(
            f"--health is {address!r}; allowed: the http:// address of the launcher's health port,"
            " such as http://127.0.0.1:8003."
        )
    url = f"{address.rstrip('/')}/models{'' if memory else '?memory=0'}"
    try:
        with opener_for(url).open(url, timeout=timeout) as answer:
            body = answer.read(_LARGEST + 1)
    except TimeoutError:
        raise TimedOutError(f"no answer of {url} within the timeout.") from None
    except urllib.error.HTTPError as error:
        raise ServerError(
            f"{url} answers with HTTP {error.code}; a launcher's health port lists its networks."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnavailableError(f"{url} cannot be read: {one_line(str(reason))}.") from None
    try:
        return [_served_model(one) for one in json.loads(body)["models"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ServerError(f"the answer of {url} is not a list of networks.") from None


def _served_model(described: Any) -> ServedModel:
    def text(key: str) -> str | None:
        value = described.get(key)
        return None if value is None else one_line(str(value))

    def number(key: str) -> int | None:
        value = described.get(key)
        return None if value is None else int(value)

    return ServedModel(
        name=one_line(str(described["name"])),
        endpoint=one_line(str(described["endpoint"])),
        ready=described["ready"] is True,
        reason=text("reason"),
        version=number("version"),
        precision=text("precision"),
        memory_bytes=number("memory_bytes"),
    )
