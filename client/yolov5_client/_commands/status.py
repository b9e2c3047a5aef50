"""`yolov5-client status`: whether the server is ready, for a person, a script or a probe."""

from __future__ import annotations

import argparse
import base64
from typing import Any

from . import NO_SERVER, OK, connect

# One grey pixel, as PNG.
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


def add_parser(commands: Any, connection: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "status", parents=[connection], help="show whether the server is ready"
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also send an image of one pixel: Triton may report ready while no image is answered",
    )


def run(options: argparse.Namespace) -> int:
    """Print the status and return 0 if the server and its endpoint are ready."""
    with connect(options) as client:
        status = client.status()
        if options.deep:
            client.detect(_PIXEL)
    print(f"{status.address}: Triton {status.version}, {'ready' if status.ready else 'NOT READY'}")
    for model, ready in status.models.items():
        print(f"  {model}: {'ready' if ready else 'NOT READY'}")
    if options.deep:
        print("  an image was answered")
    return OK if status.ready and all(status.models.values()) else NO_SERVER
