"""Each flag of `yolov5-client api` is also an environment variable, for containers and systemd.

argparse stays the only parser of the command line, and its flags are the table: a new flag has a
variable without further code. The command line wins over the environment, the environment over the
default. An empty variable counts as not set, as `docker compose` leaves it.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import UsageError

PREFIX = "YOLOV5_API_"
_PROJECT = "YOLOV5_"  # the launcher, which may share the environment, has variables of its own
_ONLY_FLAGS = ("help", "open")
# Secrets come in files: in the environment, everybody who may look at a container would see them.
_NAMES = {
    "api_keys": "KEYS_FILE",
    "ca": "CA_FILE",
    "cert": "CERT_FILE",
    "key": "KEY_FILE",
    "header": "HEADERS_FILE",
}
# How much a variable of another name must be like one of these to be one; the launcher's
# YOLOV5_TRACE_RATIO is 0.9 like that of the service.
_TYPING_ERROR = 0.91

# Kubernetes and Docker describe each service, such as `yolov5-api`, in variables.
_SERVICE = re.compile(
    r"\w+_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")  # value of a name that ends with PORT
_SWITCH = {"true": True, "1": True, "false": False, "0": False}
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]*(?=@)|(?<=\?).+")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag and its variable.

    Attributes:
        setting: name of the setting.
        option: the flag, such as `--port`.
        variable: such as `YOLOV5_API_PORT`.
        default: value if neither is given.
        read: makes a value of a variable's text; raises ValueError.
        allowed: what it takes, for a sentence.
    """

    setting: str
    option: str
    variable: str
    default: Any
    read: Callable[[str], Any]
    allowed: str


@dataclass(frozen=True)
class Given:
    """A value that somebody has set, and where: the flag or the variable."""

    value: Any
    origin: str


def add_variables(parser: argparse.ArgumentParser) -> list[Flag]:
    """Give each flag of the parser a variable, and name it in the help.

    The parser has no defaults any more, so that it returns only what was given.
    """
    flags = []
    for action in parser._actions:
        if not action.option_strings or action.dest in _ONLY_FLAGS:
            continue
        option, name = action.option_strings[0], _NAMES.get(action.dest, action.dest.upper())
        read, allowed = _reader(action)
        flags.append(
            Flag(
                setting=action.dest,
                option=option,
                variable=PREFIX + name,
                default=action.default,
                read=read,
                allowed=allowed,
            )
        )
        meaning = (action.help or "") % {"default": action.default}
        action.help = f"{meaning} [{PREFIX}{name}]".replace("%", "%%")
        action.default = argparse.SUPPRESS
    return flags


def _reader(action: argparse.Action) -> tuple[Callable[[str], Any], str]:
    if action.dest == "header":
        return lambda text: [f"@{text}"], "a path"
    if action.nargs == 0:
        return _read_switch, "true or false"
    if isinstance(action.default, list):
        return lambda text: [part.strip() for part in text.split(",")], "a list"
    if action.type is int:
        return int, "a whole number"
    if action.type is float:
        return float, "a number"
    return (Path, "a path") if action.type is Path else (str, "text")


def _read_switch(text: str) -> bool:
    try:
        return _SWITCH[text.strip().lower()]
    except KeyError:
        raise ValueError from None


def read_given(
    flags: Sequence[Flag], parsed: argparse.Namespace, environment: Mapping[str, str]
) -> dict[str, Given]:
    """What is set by the command line and the environment, by the name of the setting.

    Args:
        parsed: by the parser of these flags.

    Raises:
        UsageError: a variable has a value of the wrong kind, or is unknown; the sentence names it.
    """
    by_variable = {flag.variable: flag for flag in flags}
    given = {}
    for variable, text in _own_variables(environment, by_variable):
        flag = by_variable.get(variable)
        if flag is None:
            raise UsageError(_unknown(variable, by_variable))
        if text:
            given[flag.setting] = Given(_read(flag, text), variable)
    for flag in flags:
        if hasattr(parsed, flag.setting):
            given[flag.setting] = Given(getattr(parsed, flag.setting), flag.option)
    return given


def _own_variables(
    environment: Mapping[str, str], known: Mapping[str, Flag]
) -> Iterator[tuple[str, str]]:
    for variable, text in sorted(environment.items()):
        if not variable.startswith(_PROJECT) or _is_of_service(variable, text):
            continue
        if variable.startswith(PREFIX) or difflib.get_close_matches(
            variable, known, n=1, cutoff=_TYPING_ERROR
        ):
            yield variable, text


def _is_of_service(variable: str, text: str) -> bool:
    if variable.endswith("PORT") and _SERVICE_ADDRESS.match(text):
        return True
    return _SERVICE.fullmatch(variable) is not None


def _unknown(variable: str, known: Mapping[str, Flag]) -> str:
    near = difflib.get_close_matches(variable, known, n=1)
    command = "`yolov5-client api --help`"
    hint = f"did you mean {near[0]}?" if near else f"{command} lists those that there are."
    return f"{variable} is no setting; {hint}"


def _read(flag: Flag, text: str) -> Any:
    try:
        return flag.read(text)
    except ValueError:
        raise UsageError(f"{flag.variable} is {text!a}; allowed: {flag.allowed}.") from None


def summary(flags: Sequence[Flag], given: Mapping[str, Given]) -> str:
    """A line that names what differs from the defaults; empty if nothing does."""
    shown = [
        f"{flag.setting}{_shown(flag, given[flag.setting].value)} ({given[flag.setting].origin})"
        for flag in flags
        if flag.setting in given and given[flag.setting].value != flag.default
    ]
    return f"Settings: {', '.join(shown)}; everything else is the default." if shown else ""


def _shown(flag: Flag, value: object) -> str:
    """The value without what may be a secret: headers; user, password and query of an address."""
    if flag.setting == "header":
        return ""
    if isinstance(value, list):
        value = ",".join(map(str, value))
    text = str(value).lower() if isinstance(value, bool) else ascii(str(value))[1:-1]
    return f"={_CREDENTIALS.sub('...', text) if '://' in text else text}"
