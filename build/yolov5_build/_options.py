"""Install trained weights as the served model.

WEIGHTS is a best.pt, a .safetensors or .onnx file, or the name of an official release such as
yolov5s, which is downloaded. Without it, the bundled model is restored.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from . import _contract as contract
from .paths import BUNDLED, REPOSITORY

BEFORE = ""  # the version before the served one


def manages(options: argparse.Namespace) -> bool:
    """Whether installed networks are managed, and none is installed."""
    return bool(options.remove or options.rollback is not None)


def install_options(options: argparse.Namespace) -> list[str]:
    """The flags on the command line that only an installation has."""
    parser = _parser()
    shared = {"name", "repository", "remove", "rollback", "weights", "weights_given"}
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(options).items()
        if name not in shared and value != parser.get_default(name)
    ]
    return ["WEIGHTS", *given] if options.weights_given else given


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; that of this process if left out."""
    options = _parser().parse_args(arguments)
    options.weights_given = options.weights is not None
    options.weights = options.weights or str(BUNDLED)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="yolov5_build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "weights", nargs="?", help="file or release (default: bundled best.pt, without --name)"
    )
    parser.add_argument(
        "--imgsz",
        type=int,
        nargs="+",
        help="height and width, or one number for both (default: the file's, else 640)",
    )
    parser.add_argument(
        "--letterbox",
        choices=contract.LETTERBOX_MODES,
        default=contract.SQUARE,
        help="how a photo is fitted into the input (default: %(default)s)",
    )
    parser.add_argument(
        "--names",
        type=Path,
        help="class names to use instead of the file's: one per line, or a data.yaml",
    )
    _add_precision_options(parser)
    parser.add_argument(
        "--reduced-head",
        action="store_true",
        help="return only the best class of each box: smaller output, but no multi_label",
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE.safetensors",
        help="convert the checkpoint to this file instead of installing it",
    )
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="model repository to install into"
    )
    parser.add_argument(
        "--name",
        default=contract.MODEL,
        help="name of the network, whose endpoint is NAME_ensemble (default: %(default)s)",
    )
    _add_management_options(parser)
    return parser


def _add_management_options(parser: argparse.ArgumentParser) -> None:
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--rollback",
        nargs="?",
        const=BEFORE,
        metavar="VERSION",
        help="instead of installing, serve a kept version again (default: the one before)",
    )
    instead.add_argument(
        "--remove", action="store_true", help="instead of installing, remove a further network"
    )


def _add_precision_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--half", action="store_true", help="compute in FP16")
    parser.add_argument(
        "--int8",
        choices=tuple(contract.INT8_TARGETS),
        nargs="?",
        const="cpu",
        help="compute in INT8, calibrated on the training photos of --data (default target: cpu)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="data.yaml of a labelled data set; measures the mAP before installing",
    )
    parser.add_argument(
        "--accept-loss",
        action="store_true",
        help="install INT8 even if it loses more than half a point of mAP",
    )
