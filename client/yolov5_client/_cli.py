"""The command `yolov5-client`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from ._commands import (
    INTERRUPTED,
    NO_SERVER,
    USAGE,
    UsageError,
    connection_flags,
    detect,
    evaluate,
    page,
    status,
)
from ._errors import DataError, InvalidRequestError, YoloClientError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (UsageError, DataError, InvalidRequestError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except YoloClientError as error:
        print(f"error: {options.server}: {error}", file=sys.stderr)
        return NO_SERVER
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="yolov5-client", description="YOLOv5 behind Triton.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    connection = connection_flags()
    for command in (detect, evaluate, page, status):
        command.add_parser(commands, connection)
    return parser


if __name__ == "__main__":
    sys.exit(main())
