"""The subcommands of `yolov5-client`, one module each, and what they share.

A module has `add_parser(commands, connection)`, which adds its flags, and `run(options)`, which
returns the exit status.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .._client import Client
from .._connection import TLS


class UsageError(Exception):
    """What was asked for on the command line cannot be done; the message is one sentence."""


# Exit statuses; argparse itself ends with 2 on unusable arguments.
OK, SOME_FAILED, USAGE, NO_SERVER, INTERRUPTED = 0, 1, 2, 3, 130


def server_flags(default: str, meaning: str) -> argparse.ArgumentParser:
    """The flags that say where the server is."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("the server")
    group.add_argument(
        "--server", default=default, metavar="ADDRESS", help=f"{meaning} (%(default)s)"
    )
    group.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="a request may take"
    )
    group.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="send it with every request; @FILE reads such lines from a file, for secrets",
    )
    return parser


def connection_flags() -> argparse.ArgumentParser:
    """Those, and the ones that say how to reach it: what `connect` takes."""
    parser = server_flags(
        "127.0.0.1:8001",
        "HOST:PORT of its gRPC side, a gRPC target such as dns:///yolo:8001, or the http:// or"
        " https:// address of its HTTP side",
    )
    group = parser.add_argument_group("encryption")
    group.add_argument("--tls", action="store_true", help="encrypt gRPC (https:// always is)")
    group.add_argument("--ca", type=Path, metavar="PEM", help="trust these authorities")
    group.add_argument("--cert", type=Path, metavar="PEM", help="the client's own certificate")
    group.add_argument("--key", type=Path, metavar="PEM", help="and its key")
    return parser


def connect(options: argparse.Namespace, *, retry_for: float = 0.0, in_flight: int = 16) -> Client:
    """The client that the flags describe.

    Raises:
        UsageError: they cannot be used.
    """
    try:
        tls: TLS | bool = options.tls
        if options.ca or options.cert or options.key:
            tls = TLS(ca=options.ca, certificate=options.cert, key=options.key)
        return Client(
            options.server,
            timeout=options.timeout,
            retry_for=retry_for,
            in_flight=in_flight,
            headers=read_headers(options.header),
            tls=tls,
        )
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(str(error)) from None


def read_headers(given: list[str]) -> dict[str, str]:
    """What `--header` was given, and the files that it named.

    Raises:
        UsageError: it is not of the form that it should be, or a file cannot be read.
    """
    headers = {}
    for one in given:
        try:
            lines = Path(one[1:]).read_text("utf-8") if one.startswith("@") else one
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--header cannot read {one[1:]}: {error}") from None
        for line in filter(None, map(str.strip, lines.splitlines())):
            name, colon, value = line.partition(":")
            if not (colon and name.strip()):
                # Not shown: it may hold a secret.
                raise UsageError("a --header is not of the form 'NAME: VALUE'.")
            headers[name.strip()] = value.strip()
    return headers


def result_flags(group: argparse._ArgumentGroup, project: str) -> None:
    """Where results go, as YOLOv5 names it."""
    group.add_argument("--project", type=Path, default=Path(project), help="(%(default)s)")
    group.add_argument("--name", default="exp", help="folder in the project (%(default)s)")
    group.add_argument("--exist-ok", action="store_true", help="write into it if it exists")


def result_folder(options: argparse.Namespace) -> Path:
    """`exp`, else `exp2`, `exp3`, ...: as YOLOv5 numbers its runs. Not made yet."""
    folder: Path = options.project / options.name
    number, candidate = 1, folder
    # A link that leads nowhere is in the way, too.
    while (candidate.exists() or candidate.is_symlink()) and not options.exist_ok:
        number += 1
        candidate = folder.with_name(f"{folder.name}{number}")
    return candidate
