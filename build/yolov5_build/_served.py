"""What a running server serves, asked from the port for probes of its launcher."""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

SECONDS = 1.0
_LARGEST = 1 << 20  # bytes of an answer


@dataclass(frozen=True, kw_only=True)
class Served:
    """A network in a running server. What the server does not tell is None.

    Attributes:
        version: the number of the version that is served.
        precision: what it computes in.
        reason: why the installed version is not served, in a sentence.
        memory: bytes of its process.
    """

    version: int | None
    precision: str | None
    reason: str | None
    memory: int | None


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server.

    Attributes:
        networks: by their names.
        steps: bytes of the processes that all networks share, by their names.
    """

    networks: dict[str, Served] = field(default_factory=dict)
    steps: dict[str, int | None] = field(default_factory=dict)


def ask_server(host: str, port: int) -> Server | None:
    """What the server says within a second; None if there is none, or if it is another program."""
    answers: list[Server] = []

    def ask() -> None:
        with suppress(OSError, ValueError, http.client.HTTPException, RecursionError):
            answers.append(_parsed(json.loads(_fetch(host, port))))

    # A timeout of the connection itself would start again with each byte.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answers[0] if answers else None


def _fetch(host: str, port: int) -> bytes:
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        connection.request("GET", "/models")
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise ValueError(response.status)
        return response.read(_LARGEST)
    finally:
        connection.close()


def _parsed(answer: Any) -> Server:
    """Raises ValueError if the answer is that of another program."""
    if not isinstance(answer, dict) or not isinstance(answer.get("models"), list):
        raise ValueError("no list of models")
    networks = {
        one["name"]: Served(
            version=_number(one.get("version")),
            precision=_text(one.get("precision")),
            reason=_text(one.get("reason")),
            memory=_number(one.get("memory_bytes")),
        )
        for one in _named(answer["models"])
    }
    steps = {one["name"]: _number(one.get("memory_bytes")) for one in _named(answer.get("steps"))}
    return Server(networks=networks, steps=steps)


def _named(entries: Any) -> list[dict[str, Any]]:
    """The objects in a list that have a name."""
    found = entries if isinstance(entries, list) else []
    return [one for one in found if isinstance(one, dict) and isinstance(one.get("name"), str)]


def _number(value: Any) -> int | None:
    return value if type(value) is int else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
