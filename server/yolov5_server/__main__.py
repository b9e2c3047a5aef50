"""`python -m yolov5_server`: run Triton in the foreground until Ctrl-C or SIGTERM."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
from collections.abc import Mapping

from . import Server, Settings, StartError
from ._arguments import make_settings, read_arguments
from ._console import STDOUT, flush, log
from ._environment import PREFIX, Given, summary
from ._errors import SettingError
from ._parent import exit_with_make
from ._startup import Stop, end_in_time, on_signals, open_standard_streams, raise_descriptor_limit
from ._supervise import supervise
from .hardware import wants_gpu

EXAMPLE = "examples/bccd/photos/BloodImage_00007.jpg"


def main(arguments: list[str] | None = None) -> int:
    """Run the launcher; returns its exit status."""
    open_standard_streams()
    raise_descriptor_limit()
    stop = Stop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        numbers.append(signal.SIGHUP)  # the terminal was closed
    on_signals(numbers, stop.request)
    end_in_time(stop.should_exit)
    given: dict[str, Given] = {}
    try:
        flags, given = read_arguments(arguments, os.environ)
        settings = make_settings(given)
        if line := summary(flags, given):
            log(line, descriptor=STDOUT)
        exit_with_make(stop.should_exit)
        supervise(settings, stop, _announce)
    except StartError as error:
        log(f"error: {_sentence(error, given)}")
        return 1
    finally:
        flush()
    return 0


def _sentence(error: StartError, given: Mapping[str, Given]) -> str:
    """The error's message, with the environment variables that were set in place of make's."""
    if not isinstance(error, SettingError):
        return str(error)
    origins = {name: one.origin for name, one in given.items()}
    return error.with_labels({k: v for k, v in origins.items() if v.startswith(PREFIX)})


def _announce(server: Server) -> None:
    settings = server.settings
    http, grpc = settings.url(settings.http_port), settings.url(settings.grpc_port)
    names = server.further_endpoints
    further = f"Further endpoints: {', '.join(names)}.\n" if names else ""
    runs = f" It runs on {server.device}." if server.device else ""
    address = "" if settings.grpc_port == Settings().grpc_port else f" SERVER={grpc}"
    log(
        f"Ready: HTTP on {http}, gRPC on {grpc},"
        f" metrics on {settings.url(settings.metrics_port)}/metrics,"
        f" health on {settings.url(settings.health_port)}/ready."
        f" Precision: {server.precision}.{runs}\n"
        f"{further}"
        "Send it a photo:\n"
        f"  make detect SOURCE={EXAMPLE}{address}\n"
        f"  curl -sS -X POST http://{http}/v2/models/yolov5_ensemble/infer"
        " -H 'Content-Type: application/octet-stream' -H 'Inference-Header-Content-Length: 0'"
        f" --data-binary @{EXAMPLE} --output answer.bin\n"
        "Ctrl-C ends it.",
        descriptor=STDOUT,
    )
    if wants_gpu(settings.gpu) and server.device.startswith("the CPU"):
        log(
            "warning: the network runs on the CPU, although the GPU works; the lines above, or"
            " ARGS=--verbose, may say why."
        )
    if not ipaddress.ip_address(settings.host).is_loopback:
        log(
            f"warning: HOST is {settings.host}: everybody who reaches ports {settings.http_port}"
            f" and {settings.grpc_port} can use the endpoint, and"
            f" {settings.metrics_port} and {settings.health_port} show its metrics and health."
            " Triton has no authentication; `make gateway` adds it, see docs/security.md."
        )


if __name__ == "__main__":
    sys.exit(main())
