"""Settings of the server, checked when they are made."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from ._errors import SettingError
from ._source_url import url_fault
from .hardware import has_gpu

_ROOT = Path(__file__).parents[2]
REPOSITORY = _ROOT / "model_repository"
BACKENDS = _ROOT / "server" / "backends"
FLAGS = _ROOT / "server" / "tritonserver.flags"  # flags for every server, in a container as well
CLOSED_STEPS = _ROOT / "server" / "closed_steps"  # models that close the steps to callers
PRECISIONS = ("auto", "fp32")
GPU_CHOICES = ("auto", "1", "0")
# A comma or an equals sign has a meaning in Triton's flag for it.
_COLLECTOR = re.compile(r"https?://[^\s/,=@?#]+(/[^\s,=@?#]*)?")
_MAX_DRAIN_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """
    Attributes:
        host: address to bind to: numeric, or `localhost`.
        health_port: 0 for the port after `metrics_port`.
        precision: `auto` for the installed network, in BF16 if its accuracy was measured to be as
            good and the CPU has BF16; `fp32` for FP32 only.
        gpu: `auto` to run the network on an NVIDIA GPU if its driver is loaded, `1` to look for a
            GPU in any case, `0` for the CPU.
        repository: the model repository.
        triton: folder of a Triton with its own backends, such as a container's
            /opt/tritonserver; None for the embedded one.
        own_backends: run the network with this project's backends in that Triton as well, if the
            machine has no NVIDIA GPU, or `gpu` is `0`.
        drain_seconds: after SIGTERM, how long the server goes on while `/ready` fails, before it
            ends.
        model_source: where the networks are fetched from: s3://bucket/prefix, https://host/path or
            a folder; empty for those of `repository`.
        model_source_poll: seconds between two looks at the source; 0 for none after the start.
        model_cache: folder that keeps what was fetched; None for one in the user's cache.
        verbose: show all that Triton logs.
        trace: address of a collector that takes traces by OTLP over HTTP; empty for no traces.
        trace_ratio: share of the requests without a trace of their own that are traced, 0 to 1.
        steps: settings in place of those in the configuration of `preprocess`, as text, by name.

    Raises:
        StartError: a value is out of range. The message names make's variable.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    health_port: int = 0
    precision: str = "auto"
    gpu: str = "auto"
    repository: Path = REPOSITORY
    triton: Path | None = None
    own_backends: bool = False
    drain_seconds: float = 0.0
    model_source: str = ""
    model_source_poll: float = 30.0
    model_cache: Path | None = None
    verbose: bool = False
    trace: str = ""
    trace_ratio: float = 0.01
    steps: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.host == "localhost":
            object.__setattr__(self, "host", "127.0.0.1")
        if self.health_port == 0:
            object.__setattr__(self, "health_port", self.metrics_port + 1)
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            allowed = "a numeric address such as 127.0.0.1 or 0.0.0.0"
            raise _not_allowed("HOST", repr(self.host), allowed) from None
        for name, port in self.ports.items():
            if not 1 <= port <= 65535:
                raise _not_allowed(name, port, "1 to 65535")
        for (name, port), (other, same) in combinations(self.ports.items(), 2):
            if port == same:
                raise SettingError(
                    f"{name} and {other} are both {port}; they must be different ports.",
                    {name.lower(): name, other.lower(): other},
                )
        if self.precision not in PRECISIONS:
            raise _not_allowed("PRECISION", repr(self.precision), ", ".join(PRECISIONS))
        if self.gpu not in GPU_CHOICES:
            raise _not_allowed("GPU", repr(self.gpu), ", ".join(GPU_CHOICES))
        if not 0 <= self.drain_seconds <= _MAX_DRAIN_SECONDS:
            raise SettingError(
                f"--drain-seconds is {self.drain_seconds:g}; allowed: 0 to {_MAX_DRAIN_SECONDS:g}.",
                {"drain_seconds": "--drain-seconds"},
            )
        if self.model_source and (fault := url_fault(self.model_source)):
            raise SettingError(f"MODEL_SOURCE {fault}.", {"model_source": "MODEL_SOURCE"})
        if not (self.model_source_poll == 0 or 1 <= self.model_source_poll <= 86400):
            raise SettingError(
                f"--model-source-poll is {self.model_source_poll:g}; allowed: 0, or 1 to 86400"
                " seconds.",
                {"model_source_poll": "--model-source-poll"},
            )
        self._check_trace()

    def _check_trace(self) -> None:
        if self.trace and not _COLLECTOR.fullmatch(self.trace):
            # Without the value, which may hold a password.
            raise SettingError(
                "--trace is not the address of a collector; allowed: one such as"
                " http://localhost:4318, without user, query and commas.",
                {"trace": "--trace"},
            )
        if not 0 <= self.trace_ratio <= 1:
            raise SettingError(
                f"--trace-ratio is {self.trace_ratio:g}; allowed: 0 to 1.",
                {"trace_ratio": "--trace-ratio"},
            )

    @property
    def ports(self) -> dict[str, int]:
        """Ports by the name of the variable that sets them."""
        return {
            "HTTP_PORT": self.http_port,
            "GRPC_PORT": self.grpc_port,
            "METRICS_PORT": self.metrics_port,
            "HEALTH_PORT": self.health_port,
        }

    @property
    def has_own_backends(self) -> bool:
        """Whether this project's backends run the network, each in a process of its own."""
        return self.triton is None or (self.own_backends and (self.gpu == "0" or not has_gpu()))

    @property
    def family(self) -> socket.AddressFamily:
        """Address family of `host`."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def url(self, port: int) -> str:
        """`host:port`, as a client on this machine writes it."""
        address = ipaddress.ip_address(self.host)
        if address.is_unspecified:
            return f"localhost:{port}"
        return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _not_allowed(name: str, value: object, allowed: str) -> SettingError:
    return SettingError(f"{name} is {value}; allowed: {allowed}.", {name.lower(): name})
