"""The command `yolov5-client`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from ._commands import (
    INTERRUPTED,
    NO_SERVER,
    USAGE,
    UsageError,
    api,
    batch,
    compare,
    connection_flags,
    detect,
    evaluate,
    status,
)
from ._errors import DataError, InvalidRequestError, YoloClientError
from .stdio import prepare_stdio


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    prepare_stdio()
    try:
        return _main(arguments)
    finally:
        _flush()


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        status = run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of the output has closed it
        return INTERRUPTED
    except (UsageError, DataError, InvalidRequestError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except YoloClientError as error:
        print(f"error: {options.server}: {error}", file=sys.stderr)
        return NO_SERVER
    except KeyboardInterrupt:
        return INTERRUPTED


def _flush() -> None:
    """Flush as Python does at exit, but silently if the reader of the output has closed it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="yolov5-client", description="Client of a YOLOv5 ensemble on Triton."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    connection = connection_flags()
    for command in (detect, batch, compare, evaluate, api, status):
        command.add_parser(commands, connection)
    return parser


if __name__ == "__main__":
    sys.exit(main())
