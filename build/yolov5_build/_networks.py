"""The networks in a model repository: their names, and which of its folders belong to them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from . import _contract as contract
from ._errors import BuildError

STEPS = ("preprocess", "postprocess")  # shared by all networks

_ENDING = "_ensemble"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_SLOT = re.compile(r"image(?:_([1-9]\d?))?")


def check_name(name: str) -> str:
    """Return the name of a network, if it may be one.

    Raises:
        BuildError: it may not.
    """
    if not _NAME.fullmatch(name) or name.endswith(_ENDING) or name in STEPS:
        raise BuildError(
            f"NAME is {name[:60]!r}; allowed: up to 40 lower-case letters, digits, - and _, the"
            f" first one a letter or digit, but not {' or '.join(STEPS)}, and no {_ENDING} at the"
            " end."
        )
    return name


def endpoint_name(name: str) -> str:
    """The name of a network's endpoint, which is also that of its folder."""
    return f"{name}{_ENDING}"


def installed_networks(repository: Path) -> list[str]:
    """The names of all networks in a repository, `yolov5` first.

    A network counts if its folder or its endpoint's is there: one of them may have been removed by
    hand. Other models, which an operator may have put beside them, do not count.
    """
    names = {path.name for path in repository.glob("*") if _is_network(path)}
    names |= {path.name.removesuffix(_ENDING) for path in _endpoints(repository)}
    return sorted(filter(is_name, names), key=lambda name: (name != contract.MODEL, name))


def is_name(name: str) -> bool:
    try:
        check_name(name)
    except BuildError:
        return False
    return True


def _is_network(folder: Path) -> bool:
    """Whether `make model` has written this folder: all its configurations state a letterbox."""
    config = folder / contract.CONFIG_FILE
    try:
        return f'key: "{contract.LETTERBOX_KEY}"' in config.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _endpoints(repository: Path) -> list[Path]:
    """The folders of all endpoints; other ensembles have no slot."""
    found = repository.glob(f"*{_ENDING}/{contract.CONFIG_FILE}")
    return [config.parent for config in found if _slot_or_none(config) is not None]


def _slot_or_none(config: Path) -> int | None:
    try:
        return read_slot(config)
    except BuildError:
        return None


def endpoint_faults(repository: Path) -> Iterator[str]:
    """Sentences on endpoints that are missing or damaged, or that two networks cannot share."""
    owners: dict[int, str] = {}
    for name in installed_networks(repository):
        endpoint = endpoint_name(name)
        try:
            slot = read_slot(repository / endpoint / contract.CONFIG_FILE)
        except BuildError as error:
            yield str(error)
            continue
        if slot in owners:  # by a merge in git, for instance
            yield (
                f"{endpoint} and {owners[slot]} both take {slot_input(slot)}, of which one server"
                f" can serve only one; remove and install {name} again."
            )
        elif slot is not None:
            owners[slot] = endpoint


def used_slots(repository: Path) -> set[int]:
    """The slots of all endpoints in a repository.

    Raises:
        BuildError: a configuration cannot be read.
    """
    configs = sorted(repository.glob(f"*{_ENDING}/{contract.CONFIG_FILE}"))
    return {slot for config in configs if (slot := read_slot(config)) is not None}


def slot_input(slot: int) -> str:
    """The input of `preprocess` by which an endpoint with this slot is known to the steps."""
    return f"image_{slot}" if slot else "image"


def read_slot(config: Path) -> int | None:
    """The slot of an endpoint, None if this is another ensemble.

    Raises:
        BuildError: the configuration cannot be read.
    """
    place = f"{config.parent.name}/{config.name}"
    try:
        ensemble = text_format.Parse(config.read_text("utf-8"), model_config_pb2.ModelConfig())
    except OSError as error:
        raise BuildError(f"{place} cannot be read: {error.strerror}.") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise BuildError(f"{place} is not valid: {printable(str(error)).rstrip('.')}.") from None
    for step in ensemble.ensemble_scheduling.step:
        if step.model_name == STEPS[0] and len(step.input_map) == 1:
            found = _SLOT.fullmatch(next(iter(step.input_map)))
            return int(found[1] or 0) if found else None
    return None


def check_target(repository: Path, name: str) -> None:
    """Check that a network of this name can be installed.

    Raises:
        BuildError: the name is not allowed, or another model has it.
    """
    check_name(name)
    if name == contract.MODEL:
        return
    network, endpoint = repository / name, repository / endpoint_name(name) / contract.CONFIG_FILE
    foreign = None
    if (network / contract.CONFIG_FILE).exists() and not _is_network(network):
        foreign = name
    elif endpoint.exists() and read_slot(endpoint) is None:
        foreign = endpoint_name(name)
    if foreign:
        raise BuildError(
            f"NAME is {name!r}, but {repository.name}/{foreign} is another model, which `make"
            " model` has not written; choose another name."
        )


def printable(text: str) -> str:
    """The text without what would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
