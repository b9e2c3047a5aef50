"""Traces of Triton and its steps: from the settings to Triton's flags and environment."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from urllib.parse import urlsplit

from ._errors import StartError
from ._settings import Settings

SERVICE = "yolov5-triton"
STEPS_VARIABLE = "YOLOV5_TRACE"  # which the steps read, and the launcher too
_PATH = "/v1/traces"  # of a collector, in the specification of OTLP
_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.common")
_MOST_RARELY = 2**31 - 1  # Triton's largest rate


def collector_url(address: str) -> str:
    """The address with the path that OTLP has unless an operator names one."""
    return address if urlsplit(address).path.strip("/") else address.rstrip("/") + _PATH


def trace_environment(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which the steps send spans, or send none.

    Raises:
        StartError: a package is missing.
    """
    made = {name: value for name, value in environment.items() if name != STEPS_VARIABLE}
    if settings.trace:
        _check_packages()
        made[STEPS_VARIABLE] = collector_url(settings.trace)
        made["OTEL_SERVICE_NAME"] = environment.get("OTEL_SERVICE_NAME") or SERVICE
    return made


def trace_flags(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """Triton's flags.

    Args:
        environment: made by `trace_environment`.
    """
    if not settings.trace:
        return []
    return [
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        f"--trace-config=rate={_rate(settings.trace_ratio)}",
        f"--trace-config=opentelemetry,url={environment[STEPS_VARIABLE]}",
        f"--trace-config=opentelemetry,resource=service.name={environment['OTEL_SERVICE_NAME']}",
        # Triton 2.51 overlooks the header of some gRPC requests; the steps then read it themselves.
        "--grpc-header-forward-pattern=^traceparent$",
    ]


def _rate(ratio: float) -> int:
    """Triton traces one of so many requests; with 0 only those that bring a trace."""
    return min(round(1 / ratio), _MOST_RARELY) if ratio > 1 / _MOST_RARELY else 0


def _check_packages() -> None:
    for package in _PACKAGES:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise StartError(
                f"--trace needs the package {package}, which is not installed; run `make setup`."
            )
