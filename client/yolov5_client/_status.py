"""What the server says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """
    Attributes:
        address: as the client was given it.
        version: Triton's.
        models: the endpoint, and whether it is ready.
    """

    address: str
    version: str
    ready: bool
    models: dict[str, bool]
