"""`yolov5-client compare`: how far two networks agree on the same photos."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import tee
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .._agreement import IOU
from .._client import Client
from .._contract import check_network
from .._detections import Detections
from .._errors import InvalidRequestError, YoloClientError
from .._sources import Source, expand
from . import NO_SERVER, UsageError, connect
from ._comparison import Answered, Comparison, Photo, Side
from ._run import answer_reason, given_parameters, settled
from .detect import add_parameter_flags, add_retry_flag, whole_number
from .status import require_ready


def add_parser(commands: Any, connection: argparse.ArgumentParser) -> None:
    compare = commands.add_parser(
        "compare",
        parents=[connection],
        help="compare the detections of two networks on the same photos",
    )
    compare.set_defaults(run=run)
    compare.add_argument("a", metavar="A", help="name of one network, such as the one in use")
    compare.add_argument("b", metavar="B", help="name of the other, such as the one to replace it")
    compare.add_argument(
        "source", nargs="+", metavar="SOURCE", help="photos: files, folders, globs, URLs, lists, -"
    )
    compare.add_argument(
        "--server-b", metavar="ADDRESS", help="the server of B, if it is not that of A"
    )
    compare.add_argument(
        "--iou",
        type=_iou,
        default=IOU,
        metavar="0..1",
        help="least IoU of two detections that are matched (%(default)s)",
    )
    compare.add_argument(
        "--min-agreement",
        type=_share,
        metavar="0..1",
        help="end with status 1 if the agreement is less, or if a photo is answered by only one",
    )
    add_parameter_flags(
        compare.add_argument_group("detections (default: the settings of each endpoint)")
    )
    _add_sending_flags(compare.add_argument_group("sending"))
    _add_output_flags(compare.add_argument_group("output"))


def _add_sending_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--in-flight",
        type=whole_number,
        default=8,
        metavar="N",
        help="concurrent requests to each of the two (%(default)s)",
    )
    add_retry_flag(group)


def _add_output_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--json", metavar="FILE", help="write the figures as JSON; - prints them, not the table"
    )
    group.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="draw the photos with the largest disagreement into this folder",
    )
    group.add_argument(
        "--pictures",
        type=whole_number,
        default=8,
        metavar="N",
        help="how many of them (%(default)s)",
    )


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not allowed; allowed: 0 to 1")
    return value


def _iou(text: str) -> float:
    if not 0 < (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not allowed; allowed: more than 0, at most 1")
    return value


class _SideError(Exception):
    """A server cannot be used. The message says which."""


def run(options: argparse.Namespace) -> int:
    """Send the photos to both networks, print the figures and return the exit status.

    Raises:
        UsageError: an argument cannot be used, or a network refuses a parameter.
    """
    _check(options)
    sources, total = expand(options.source, stdin=sys.stdin.buffer, exclude=options.save)
    work = Comparison(options)
    with ExitStack() as stack:
        try:
            sides = _connect(options, stack)
            # disable=None: silent unless standard error is a terminal.
            with tqdm(total=total, unit="photo", disable=None) as progress:
                for photo in _answers(sides, sources, given_parameters(options)):
                    work.add(photo)
                    progress.update()
        except _SideError as error:
            print(f"error: {error}", file=sys.stderr)
            return NO_SERVER
    return work.end(sides)


def _check(options: argparse.Namespace) -> None:
    """Check the arguments before anything is sent."""
    try:
        check_network(options.a, "A")
        check_network(options.b, "B")
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.json not in (None, "-") and not Path(options.json).absolute().parent.is_dir():
        raise UsageError(
            f"--json is {options.json}; allowed: a file in a folder that exists, or -."
        )
    if options.save is not None:
        try:
            from .. import _draw  # noqa: F401
        except ImportError:
            sentence = "--save needs OpenCV: pip install opencv-python-headless"
            raise UsageError(sentence) from None
        # Pictures of an earlier comparison would look like those of this one.
        if options.save.exists() and (not options.save.is_dir() or any(options.save.iterdir())):
            raise UsageError(f"--save is {options.save}; allowed: a new or an empty folder.")
        options.save.mkdir(parents=True, exist_ok=True)


def _connect(options: argparse.Namespace, stack: ExitStack) -> tuple[Side, Side]:
    """Make the clients of both, once each has a server that is ready now."""

    def client(model: str, server: str, **sending: Any) -> Client:
        of_server = argparse.Namespace(**{**vars(options), "server": server})
        return stack.enter_context(connect(of_server, model=model, **sending))

    def side(letter: str, model: str, server: str) -> Side:
        # The first client does not wait for a server, or for an endpoint that may never come.
        _ask(Side(letter, model, server, client(model, server)), require_ready)
        sending = {"retry_for": options.retry_for, "in_flight": options.in_flight}
        return Side(letter, model, server, client(model, server, **sending))

    server = options.server
    return side("A", options.a, server), side("B", options.b, options.server_b or server)


def _ask(side: Side, ask: Any, *arguments: Any) -> Any:
    """Call a function with the side's client, and say of which side its error is.

    Raises:
        UsageError: the network refuses a parameter.
        _SideError: the server cannot be used.
    """
    try:
        return ask(side.client, *arguments)
    except InvalidRequestError as error:
        raise UsageError(f"{side}: {error}") from None
    except YoloClientError as error:
        raise _SideError(f"{side}: {error}") from None


def _answers(
    sides: tuple[Side, Side], sources: Iterable[Source], parameters: dict[str, Any]
) -> Iterator[Answered]:
    """Send each photo to both, side by side, and yield the answers in order."""
    # The streams read photos ahead only as far as `in_flight` allows. tee forgets late, by the
    # dozen, hence `release`.
    photos, *both = tee(map(Photo, sources), 3)
    streams = [
        side.client.detect_stream(mine, return_exceptions=True, **parameters)
        for side, mine in zip(sides, both)
    ]
    for answers in zip(*streams):
        photo = next(photos)
        a, b = (
            _ask(side, settled, photo, answer, parameters) for side, answer in zip(sides, answers)
        )
        yield Answered(photo, *(_or_reason(one) for one in (a, b)))
        photo.release()


def _or_reason(answer: Detections | YoloClientError | OSError) -> Detections | str:
    return answer if isinstance(answer, Detections) else answer_reason(answer)
