"""The launcher's flags; each is an environment variable, too (_environment.py)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from ._environment import Flag, Given, add_variables, read_given
from ._settings import GPU_CHOICES, PRECISIONS, Settings
from ._source_options import add_source_options

# Settings of the shared steps: those of preprocess/config.pbtxt, which checks them.
STEP_SETTINGS = {
    "conf_thres": ("NUMBER", "default of the request parameter"),
    "iou_thres": ("NUMBER", "default of the request parameter"),
    "max_det": ("N", "default of the request parameter"),
    "classes": ("LIST", "default of the request parameter, such as 0,2 or person,bus"),
    "agnostic_nms": ("BOOL", "default of the request parameter, true or false"),
    "multi_label": ("BOOL", "default of the request parameter, true or false"),
    "class_conf_thres": ("LIST", "default of the request parameter, such as person:0.6,2:0.3"),
    "max_image_bytes": ("N", "largest encoded image"),
    "max_image_pixels": ("N", "largest decoded image, and all pixels decoded at the same time"),
    "scaled_decoding": ("BOOL", "decode large JPEGs in a smaller size, true or false"),
    "threads": ("N", "images decoded at the same time; 0 for the number of CPU cores"),
    "max_queued_images": ("N", "images that may wait in the queue"),
    "max_queue_seconds": ("SECONDS", "how long a request may wait there"),
    "max_in_flight_images": ("N", "images past the queue; 0 for 2 for each core, plus 2"),
}

_PORTS = {
    "http_port": "HTTP",
    "grpc_port": "gRPC",
    "metrics_port": "Triton's metrics",
    "health_port": "health; by default the one after that for metrics",
}


def make_parser() -> tuple[argparse.ArgumentParser, list[Flag]]:
    """Make the parser of the command line; returns its flags as well.

    A flag's name is that of a field of `Settings`, or one of `STEP_SETTINGS`.
    """
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="yolov5_server",
        description="Run Triton in the foreground until Ctrl-C or SIGTERM.",
        epilog="Each flag can also be set by the environment variable in brackets; the flag wins.",
    )
    add = parser.add_argument
    add("--host", default=default.host, help="address to bind to (%(default)s)")
    for name, port in default.ports.items():
        what = name.lower()
        fallback = 0 if what == "health_port" else port
        use = f"port for {_PORTS[what]} ({port})"
        add(f"--{what.replace('_', '-')}", type=int, default=fallback, help=use)
    add("--precision", default=default.precision, help=f"{' or '.join(PRECISIONS)} (%(default)s)")
    add("--gpu", default=default.gpu, help=f"{', '.join(GPU_CHOICES)}: use a GPU (%(default)s)")
    add(
        "--repository",
        type=Path,
        default=default.repository,
        help="the model repository (%(default)s)",
    )
    add(
        "--triton",
        type=Path,
        metavar="FOLDER",
        help="use this Triton, not the embedded one; in a container: /opt/tritonserver",
    )
    add(
        "--own-backends",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="without an NVIDIA GPU, run the network with this project's backends in that Triton",
    )
    add_source_options(parser)
    add(
        "--drain-seconds",
        type=float,
        metavar="SECONDS",
        default=default.drain_seconds,
        help="after SIGTERM, /ready fails for so long before the server ends (%(default)g)",
    )
    add(
        "--verbose",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="show all that Triton logs",
    )
    add(
        "--trace",
        default=default.trace,
        metavar="URL",
        help="send traces to this collector, by OTLP over HTTP, such as http://localhost:4318",
    )
    add(
        "--trace-ratio",
        type=float,
        default=default.trace_ratio,
        metavar="SHARE",
        help="of the requests that bring no trace of their own, 0 to 1 (%(default)s)",
    )
    _add_step_settings(parser)
    return parser, add_variables(parser)


def _add_step_settings(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_argument_group(
        "the steps", "In place of those in preprocess/config.pbtxt. An endpoint's own ones win."
    )
    for name, (metavar, meaning) in STEP_SETTINGS.items():
        steps.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=meaning)


def read_arguments(
    arguments: Sequence[str] | None, environment: Mapping[str, str]
) -> tuple[list[Flag], dict[str, Given]]:
    """The launcher's flags, and what is set by the command line or the environment.

    Raises:
        StartError: a variable cannot be used.
    """
    parser, flags = make_parser()
    return flags, read_given(flags, parser.parse_args(arguments), environment)


def make_settings(given: Mapping[str, Given]) -> Settings:
    """
    Raises:
        StartError: a value is out of range.
    """
    values = {name: one.value for name, one in given.items()}
    steps = {name: values.pop(name) for name in STEP_SETTINGS if name in values}
    if "repository" in values:
        values["repository"] = values["repository"].resolve()
    return Settings(**values, steps=steps)
