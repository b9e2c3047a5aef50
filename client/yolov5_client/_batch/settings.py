"""The settings of a job, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .._connection import TLS
from .._contract import NETWORK


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """
    Attributes:
        sources: where the photos are, see `sources.py`.
        destination: folder for the results, local or in a bucket.
        server: addresses of the endpoint; None to start a server on each node that has room.
        server_flags: for the servers that the job starts.
        model: name of the network.
        health: the launcher's health port, from which the version is known; None for none.
        parameters: of each request, such as `conf_thres`.
        part_size: photos in one part.
        workers: processes that ask, at most; 0 for one on each node, or for each server that the
            job starts.
        in_flight: images that one worker asks about at a time.
        retry_for: seconds for which a server or a source that is away is waited for.
        timeout: seconds for one request.
        headers, tls: of each request.
        cluster: address of a Ray cluster; None for this machine alone.
        coco: also write `coco.json`.

    Raises:
        ValueError: a value is not allowed; the message names the flag.
    """

    sources: tuple[str, ...]
    destination: str
    server: str | None = None
    server_flags: tuple[str, ...] = ()
    model: str = NETWORK
    health: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    part_size: int = 1000
    workers: int = 0
    in_flight: int = 32
    retry_for: float = 300.0
    timeout: float = 60.0
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: TLS | bool = False
    cluster: str | None = None
    coco: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.part_size <= 100_000:
            raise ValueError(f"--part-size is {self.part_size}; allowed: 1 to 100000.")
        if not 0 <= self.workers <= 10_000:
            raise ValueError(f"--workers is {self.workers}; allowed: 0 to 10000.")
        if self.server is None and self.health is not None:
            raise ValueError("--health needs --server; servers that the job starts tell theirs.")
        if self.server is not None and self.server_flags:
            raise ValueError("--server-flag is for servers that the job starts, without --server.")

    @property
    def question(self) -> dict[str, Any]:
        """What decides the rows. A job that is continued must not ask otherwise."""
        return {
            "sources": list(self.sources),
            "model": self.model,
            "parameters": dict(self.parameters),
            "part_size": self.part_size,
        }
