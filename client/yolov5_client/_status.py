"""The state of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """The state of a server, as `Client.status` returns it.

    Example:
        >>> with Client("127.0.0.1:8001") as client:
        ...     status = client.status()
        >>> status.version
        '2...'
        >>> status.models
        {'yolov5_ensemble': True}

    Attributes:
        address: the address that the client was given.
        version: the version of Triton.
        ready: whether Triton is ready.
        models: whether the client's endpoint is ready, by its name.
    """

    address: str
    version: str
    ready: bool
    models: dict[str, bool]
