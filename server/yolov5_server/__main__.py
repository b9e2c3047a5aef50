"""`python -m yolov5_server`: run Triton in the foreground until Ctrl-C or SIGTERM."""

from __future__ import annotations

import argparse
import ipaddress
import signal
import sys
import threading
from pathlib import Path

from . import Server, Settings, StartError
from ._console import STDOUT, flush, log
from ._parent import exit_with_make
from ._settings import GPU_CHOICES, PRECISIONS, REPOSITORY
from ._startup import end_in_time, on_signals, open_standard_streams, raise_descriptor_limit
from ._supervise import supervise
from .hardware import wants_gpu

EXAMPLE = "examples/bccd/photos/BloodImage_00007.jpg"


def main(arguments: list[str] | None = None) -> int:
    """Run the launcher; returns its exit status."""
    open_standard_streams()
    raise_descriptor_limit()
    should_exit, force_exit = threading.Event(), threading.Event()

    def exit_soon() -> None:
        (force_exit if should_exit.is_set() else should_exit).set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        numbers.append(signal.SIGHUP)  # the terminal was closed
    on_signals(numbers, exit_soon)
    end_in_time(should_exit)
    try:
        settings = _settings(arguments)
        exit_with_make(should_exit)
        supervise(settings, should_exit, force_exit, _announce)
    except StartError as error:
        log(f"error: {error}")
        return 1
    finally:
        flush()
    return 0


def _settings(arguments: list[str] | None) -> Settings:
    default = Settings()
    parser = argparse.ArgumentParser(prog="yolov5_server", description=__doc__)
    parser.add_argument("--host", default=default.host, help="address to bind to (%(default)s)")
    for name, port in default.ports.items():
        flag = f"--{name.lower().replace('_', '-')}"
        parser.add_argument(flag, type=int, default=port, help="(%(default)s)")
    parser.set_defaults(health_port=0)
    parser.add_argument("--precision", default=default.precision, help=" or ".join(PRECISIONS))
    parser.add_argument(
        "--gpu", default=default.gpu, help=f"{', '.join(GPU_CHOICES)}: use a GPU (%(default)s)"
    )
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="the model repository (%(default)s)"
    )
    parser.add_argument(
        "--triton",
        type=Path,
        metavar="FOLDER",
        help="use this Triton, not the embedded one; in a container: /opt/tritonserver",
    )
    parser.add_argument(
        "--own-backends",
        action="store_true",
        help="without an NVIDIA GPU, run the network with this project's backends in that Triton",
    )
    _add_source_options(parser, default)
    parser.add_argument("--verbose", action="store_true", help="show all that Triton logs")
    options = vars(parser.parse_args(arguments))
    options["repository"] = options["repository"].resolve()
    return Settings(**options)


def _add_source_options(parser: argparse.ArgumentParser, default: Settings) -> None:
    parser.add_argument(
        "--model-source",
        default=default.model_source,
        metavar="URL",
        help="fetch the networks from s3://bucket/prefix, https://host/path or a folder",
    )
    parser.add_argument(
        "--model-source-poll",
        type=float,
        default=default.model_source_poll,
        metavar="SECONDS",
        help="between two looks at it; 0: only at the start and at SIGUSR1 (%(default)g)",
    )
    parser.add_argument(
        "--model-cache",
        type=Path,
        metavar="FOLDER",
        help="keep what was fetched there (default: a folder in the user's cache)",
    )


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
