"""`yolov5-client api`: the REST service, with a page to try images on."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import OK, UsageError, connection_flags, model_flag, read_headers, tls_of
from ._environment import PREFIX, Flag, Given, add_variables, read_given, summary

if TYPE_CHECKING:
    from .._api.settings import ApiSettings


def add_parser(commands: Any, connection: argparse.ArgumentParser) -> None:
    api = commands.add_parser(
        "api",
        # Flags of its own: only here they have environment variables.
        parents=[connection_flags()],
        help="serve plain REST, and a page to try images on",
        epilog="Each flag can also be set by the environment variable in brackets; the flag wins.",
    )
    model_flag(api)
    api.add_argument("--host", default="127.0.0.1", help="address to bind to (%(default)s)")
    api.add_argument("--port", type=int, default=8080, help="port to bind to (%(default)s)")
    api.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="listen on a Unix socket in place of address and port; only this user can use it",
    )
    api.add_argument(
        "--health",
        metavar="ADDRESS",
        help="the launcher's health port, such as http://127.0.0.1:8003; it tells the networks and"
        " their versions",
    )
    api.add_argument("--open", action="store_true", help="open the page in a browser")
    who = api.add_argument_group("who may ask")
    who.add_argument(
        "--api-keys",
        type=Path,
        metavar="FILE",
        help="API keys, one in a line, each followed by a name for the log; without it everybody",
    )
    who.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this site use the service, such as https://example.com",
    )
    who.add_argument(
        "--allow-url-host",
        action="append",
        default=[],
        metavar="HOST",
        help="let callers name images on this host by their address",
    )
    who.add_argument(
        "--gateway",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="behind `make gateway`, which says what each caller may ask; nobody else must be able"
        " to reach the port",
    )
    limits = api.add_argument_group("limits")
    limits.add_argument(
        "--in-flight",
        type=int,
        default=128,
        metavar="N",
        help="images that the server is asked about at a time (%(default)s)",
    )
    limits.add_argument(
        "--max-buffered-mib",
        type=int,
        default=256,
        metavar="MIB",
        help="memory for the requests in progress (%(default)s)",
    )
    limits.add_argument(
        "--upload-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="for the body of a request (%(default)g)",
    )
    limits.add_argument(
        "--drain",
        type=float,
        default=8.0,
        metavar="SECONDS",
        help="for requests in progress when the service is stopped (%(default)g)",
    )
    traces = api.add_argument_group("traces")
    traces.add_argument(
        "--trace",
        default="",
        metavar="URL",
        help="send traces to this collector, by OTLP over HTTP, such as http://localhost:4318",
    )
    traces.add_argument(
        "--trace-ratio",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of the requests that bring no trace of their own, 0 to 1 (%(default)g)",
    )
    api.set_defaults(run=run, flags=add_variables(api))


def run(options: argparse.Namespace) -> int:
    """Serve until the process is told to end.

    Raises:
        UsageError: a flag or an environment variable cannot be used, the port is taken, or a
            package is missing.
    """
    try:
        from .._api.serve import serve
    except ImportError as error:
        raise UsageError(
            f"{error.name} is missing; pip install 'yolov5-client[api]' brings it."
        ) from None
    flags: list[Flag] = options.flags
    given = read_given(flags, options, os.environ)
    _fill(options, flags, given)
    settings = _checked_settings(options, flags, given)
    if settings.trace:
        _check_trace_packages()
    # Flags alone are in the command line; this is the log of faults.
    if any(one.origin.startswith(PREFIX) for one in given.values()):
        print(summary(flags, given), file=sys.stderr, flush=True)
    # uvicorn raises the signal again when it has ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(OK))
    try:
        serve(settings, open_page=options.open)
    except OSError as error:
        where, advice = f"{options.host}, port {options.port}", "others with --host and --port"
        if options.socket is not None:
            where, advice = str(options.socket), "another path with --socket"
        raise UsageError(f"cannot listen on {where}: {error.strerror}; choose {advice}.") from None
    return OK


def _check_trace_packages() -> None:
    try:
        from .._api import otlp, tracing  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--trace needs {error.name}; pip install 'yolov5-client[trace]' brings it."
        ) from None


def _fill(options: argparse.Namespace, flags: list[Flag], given: Mapping[str, Given]) -> None:
    """Set all settings: those that are given, and the defaults."""
    for flag in flags:
        one = given.get(flag.setting)
        setattr(options, flag.setting, one.value if one else flag.default)


def _checked_settings(
    options: argparse.Namespace, flags: list[Flag], given: Mapping[str, Given]
) -> ApiSettings:
    """
    Raises:
        UsageError: a setting cannot be used; the sentence names its variable, if that was set.
    """
    try:
        return _settings(options)
    except UsageError as error:
        variable = _culprit(str(error), flags, given)
        raise UsageError(f"{variable}: {error}" if variable else str(error)) from None


def _culprit(sentence: str, flags: list[Flag], given: Mapping[str, Given]) -> str | None:
    """The variable without which the settings can be used, or fail for another reason."""
    changes = None
    for name, one in given.items():
        if not one.origin.startswith(PREFIX):
            continue
        rest = argparse.Namespace()
        _fill(rest, flags, {key: value for key, value in given.items() if key != name})
        try:
            _settings(rest)
        except UsageError as error:
            if str(error) != sentence:
                changes = changes or one.origin
        else:
            return one.origin
    return changes


def _settings(options: argparse.Namespace) -> ApiSettings:
    from .._api.settings import ApiSettings

    try:
        return ApiSettings(
            host=options.host,
            port=options.port,
            socket=options.socket,
            server=options.server,
            model=options.model,
            health=options.health,
            timeout=options.timeout,
            headers=read_headers(options.header),
            tls=tls_of(options),
            keys=_read_keys(options.api_keys) if options.api_keys else {},
            url_hosts=frozenset(one.lower() for one in options.allow_url_host),
            origins=frozenset(options.allow_origin),
            gateway=options.gateway,
            in_flight=options.in_flight,
            max_buffered_bytes=options.max_buffered_mib << 20,
            upload_timeout=options.upload_timeout,
            drain=options.drain,
            trace=options.trace,
            trace_ratio=options.trace_ratio,
        )
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None


def _read_keys(path: Path) -> dict[str, str]:
    """Read the file of keys.

    Raises:
        UsageError: it cannot be read, or holds no key.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-keys cannot read {path}: {error}") from None
    keys = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, _, name = line.strip().partition(" ")
        if not (len(key) >= 16 and key.isascii() and key.isprintable()):
            # The key itself is a secret, and not shown.
            raise UsageError(
                f"--api-keys: line {number} of {path} has no usable key; allowed: 16 or more"
                " printable ASCII characters, then a blank and a name."
            )
        if key in keys:
            raise UsageError(
                f"--api-keys: line {number} of {path} has a key that an earlier line has."
            )
        keys[key] = name.strip() or f"line {number}"
    if not keys:
        raise UsageError(
            f"--api-keys: {path} holds no key; leave the flag out to let everybody ask."
        )
    return keys
