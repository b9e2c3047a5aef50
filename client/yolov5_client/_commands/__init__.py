"""The subcommands of `yolov5-client`, one module each, and what they share.

A module has `add_parser(commands, connection)`, which adds its flags, and `run(options)`, which
returns the exit status.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .._client import Client
from .._connection import TLS
from .._contract import NETWORK


class UsageError(Exception):
    """The command line cannot be carried out. The message is one sentence."""


# Exit statuses; argparse itself exits with 2 on unusable arguments.
OK, SOME_FAILED, USAGE, NO_SERVER, INTERRUPTED = 0, 1, 2, 3, 130


def connection_flags() -> argparse.ArgumentParser:
    """Return the flags that `connect` reads: where the server is, and how to encrypt."""
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("the server")
    group.add_argument(
        "--server",
        default="127.0.0.1:8001",
        metavar="ADDRESS",
        help="HOST:PORT for gRPC, a gRPC target such as dns:///yolo:8001, or an http:// or https://"
        " address for HTTP (%(default)s)",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="limit for one request (%(default)g)",
    )
    group.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="send this header with every request; @FILE reads such lines from a file, for secrets",
    )
    group = parser.add_argument_group("encryption")
    group.add_argument(
        "--tls",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="encrypt gRPC (https:// is always encrypted)",
    )
    group.add_argument("--ca", type=Path, metavar="PEM", help="certificate authorities to trust")
    group.add_argument("--cert", type=Path, metavar="PEM", help="the client's own certificate")
    group.add_argument("--key", type=Path, metavar="PEM", help="the certificate's private key")
    return parser


def model_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag for the network, which a resumed `detect` keeps, unlike those of the server."""
    parser.add_argument(
        "--model",
        default=NETWORK,
        metavar="NAME",
        help="name of the network on the server, as `make models` lists it (%(default)s)",
    )


def connect(
    options: argparse.Namespace,
    *,
    model: str | None = None,
    retry_for: float = 0.0,
    in_flight: int = 16,
) -> Client:
    """Make the client that the flags describe.

    Args:
        model: the network, if it is not the one of the flag.

    Raises:
        UsageError: a flag cannot be used.
    """
    try:
        return Client(
            options.server,
            model=options.model if model is None else model,
            timeout=options.timeout,
            retry_for=retry_for,
            in_flight=in_flight,
            headers=read_headers(options.header),
            tls=tls_of(options),
        )
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(str(error)) from None


def tls_of(options: argparse.Namespace) -> TLS | bool:
    """Return the encryption that the flags describe.

    Raises:
        OSError, ValueError: as `TLS` raises them.
    """
    if options.ca or options.cert or options.key:
        return TLS(ca=options.ca, certificate=options.cert, key=options.key)
    return bool(options.tls)


def read_headers(given: list[str]) -> dict[str, str]:
    """Parse the values of `--header` and the files that they name.

    Raises:
        UsageError: a header has another form, or a file cannot be read.
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
                # The value is not shown: it may be a secret.
                raise UsageError("a --header is not of the form 'NAME: VALUE'.")
            headers[name.strip()] = value.strip()
    return headers


def result_flags(group: argparse._ArgumentGroup, project: str) -> None:
    """Add the flags for the results' folder, named as in YOLOv5."""
    group.add_argument(
        "--project", type=Path, default=Path(project), help="parent folder (%(default)s)"
    )
    group.add_argument("--name", default="exp", help="folder in the project (%(default)s)")
    group.add_argument("--exist-ok", action="store_true", help="write into an existing folder")


def result_folder(options: argparse.Namespace) -> Path:
    """Return `exp`, or the next of `exp2`, `exp3`, ... as YOLOv5 does. It is not created here."""
    folder: Path = options.project / options.name
    number, candidate = 1, folder
    # A dangling link occupies a name, too.
    while (candidate.exists() or candidate.is_symlink()) and not options.exist_ok:
        number += 1
        candidate = folder.with_name(f"{folder.name}{number}")
    return candidate
