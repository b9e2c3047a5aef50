"""Each flag of a parser is also an environment variable, for containers and systemd.

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

from ._errors import StartError

PREFIX = "YOLOV5_"
_OTHERS = ("YOLOV5_API_",)  # variables of the REST service, which may share the environment
_COMMAND = "`python -m yolov5_server --help`"

# Kubernetes and Docker describe each service, such as `yolov5` or `yolov5-http`, in variables.
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
        option: the flag, such as `--http-port`.
        variable: such as `YOLOV5_HTTP_PORT`.
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
    for action in _actions(parser):
        option = action.option_strings[0]
        variable = PREFIX + option.removeprefix("--").upper().replace("-", "_")
        read, allowed = _reader(action)
        flags.append(
            Flag(
                setting=action.dest,
                option=option,
                variable=variable,
                default=action.default,
                read=read,
                allowed=allowed,
            )
        )
        meaning = (action.help or "") % {"default": action.default}
        action.help = f"{meaning} [{variable}]".replace("%", "%%")
        action.default = argparse.SUPPRESS
    return flags


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    return (one for one in parser._actions if one.option_strings and one.dest != "help")


def _reader(action: argparse.Action) -> tuple[Callable[[str], Any], str]:
    if action.nargs == 0:
        return _read_switch, "true or false"
    if action.type is int:
        return int, "a whole number"
    if action.type is float:
        return float, "a number"
    if action.type is Path:
        return Path, "a path"
    return str, "text"


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
        StartError: a variable has a value of the wrong kind, or is unknown; the sentence names it.
    """
    by_variable = {flag.variable: flag for flag in flags}
    given = {}
    for variable, text in _own_variables(environment):
        flag = by_variable.get(variable)
        if flag is None:
            raise StartError(_unknown(variable, by_variable))
        if text:
            given[flag.setting] = Given(_read(flag, text), variable)
    for flag in flags:
        if hasattr(parsed, flag.setting):
            given[flag.setting] = Given(getattr(parsed, flag.setting), flag.option)
    return given


def _own_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable.startswith(_OTHERS):
            continue
        if not _is_of_service(variable, text):
            yield variable, text


def _is_of_service(variable: str, text: str) -> bool:
    if variable.endswith("PORT") and _SERVICE_ADDRESS.match(text):
        return True
    return _SERVICE.fullmatch(variable) is not None


def _unknown(variable: str, known: Mapping[str, Flag]) -> str:
    near = difflib.get_close_matches(variable, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"{_COMMAND} lists those that there are."
    return f"{variable} is no setting; {hint}"


def _read(flag: Flag, text: str) -> Any:
    try:
        return flag.read(text)
    except ValueError:
        raise StartError(f"{flag.variable} is {text!a}; allowed: {flag.allowed}.") from None


def summary(flags: Sequence[Flag], given: Mapping[str, Given]) -> str:
    """A line that names what differs from the defaults; empty if nothing does."""
    shown = [
        f"{flag.setting}={_shown(given[flag.setting].value)} ({given[flag.setting].origin})"
        for flag in flags
        if flag.setting in given and given[flag.setting].value != flag.default
    ]
    return f"Settings: {', '.join(shown)}; everything else is the default." if shown else ""


def _shown(value: object) -> str:
    """The value without what may be a secret in an address: user, password and query."""
    if isinstance(value, bool):
        return str(value).lower()
    text = ascii(str(value))[1:-1]
    return _CREDENTIALS.sub("...", text) if "://" in text else text
