"""`yolov5-client status`: whether the server is ready, for a person, a script or a probe."""

from __future__ import annotations

import argparse
import base64
import sys
from typing import Any

from .._client import Client
from .._contract import NETWORK
from .._errors import UnavailableError, YoloClientError
from .._served import ServedModel, read_served_models
from . import NO_SERVER, OK, UsageError, connect
from ._report import printable

# One grey pixel, as PNG.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


def add_parser(commands: Any, connection: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "status", parents=[connection], help="show whether the server is ready"
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--model",
        nargs="+",
        default=[NETWORK],
        metavar="NAME",
        help=f"names of the networks to ask for ({NETWORK})",
    )
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also send an image of one pixel: Triton may report ready while no image is answered",
    )
    parser.add_argument(
        "--health",
        metavar="ADDRESS",
        help="also list all networks, as the launcher's health port tells them, such as"
        " http://127.0.0.1:8003",
    )


def run(options: argparse.Namespace) -> int:
    """Print the status and return 0 if the server and its endpoints are ready."""
    all_ready = True
    for number, model in enumerate(options.model):
        with connect(options, model=model) as client:
            status = client.status()
            if options.deep:
                client.detect(PIXEL)
            if not number:
                state = "ready" if status.ready else "NOT READY"
                print(f"{status.address}: Triton {status.version}, {state}")
            for endpoint, ready in status.models.items():
                print(f"  {endpoint}: {'ready' if ready else _not_ready(client, status.ready)}")
        all_ready = all_ready and status.ready and all(status.models.values())
    if options.deep:
        several = len(options.model) > 1
        print("  each answered an image" if several else "  an image was answered")
    if options.health:
        all_ready = _print_served(options.health, options.timeout) and all_ready
    return OK if all_ready else NO_SERVER


def require_ready(client: Client) -> None:
    """Check that the server and the client's endpoint are ready.

    Raises:
        UnavailableError: one of them is not. For a ready server the message says whether it has
            the endpoint at all.
    """
    status = client.status()
    if not status.ready:
        raise UnavailableError("the server is not ready.")
    if not all(status.models.values()):
        client.detect(PIXEL)  # Triton says only of a request why it has no answer


def _not_ready(client: Client, server_ready: bool) -> str:
    """Say why the endpoint is not ready, as far as the server tells."""
    if server_ready:
        try:
            client.detect(PIXEL)
        except YoloClientError as error:
            return f"NOT READY, {error}"
    return "NOT READY"


def _print_served(address: str, timeout: float) -> bool:
    """Print all networks of the server, and return whether each is ready."""
    try:
        served = read_served_models(address, timeout)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except YoloClientError as error:  # `main` would put --server before it
        print(f"error: {error}", file=sys.stderr)
        return False
    print(f"{address}: {len(served)} network{'s' * (len(served) != 1)}")
    for one in served:
        print(f"  {printable(_line(one))}")
    return all(one.ready for one in served)


def _line(one: ServedModel) -> str:
    parts = ["ready" if one.ready else f"NOT READY, {one.reason or 'for a reason not told'}"]
    if one.version is not None:
        parts.append(f"version {one.version}")
    if one.precision is not None:
        parts.append(one.precision)
    if one.memory_bytes is not None:
        parts.append(f"{one.memory_bytes / 1e6:.0f} MB")
    return f"{one.endpoint}: {', '.join(parts)}"
