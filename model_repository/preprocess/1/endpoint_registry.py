"""The endpoints that the steps work for, read from the ensembles beside them.

All networks share `preprocess` and `postprocess`, and Triton does not tell a step which ensemble a
request came through. So `preprocess` has several inputs, `image`, `image_1` and so on, and each
endpoint gives its images to one of them, its slot. The tensor `network` hands the slot on to
`postprocess`, which links to this module.

Endpoints come and go while the steps run. A change of the repository's folder is noticed at the
next request. An endpoint whose network is replaced gets another slot, so that requests under way
keep the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from google.protobuf import text_format
from network_spec import NetworkSpec, read_network_spec
from tritonclient.grpc import model_config_pb2

SUFFIX = "_ensemble"  # of an endpoint's name; before it is that of its network
SLOTS = 64
INPUTS = ("image", *(f"image_{slot}" for slot in range(1, SLOTS)))  # of `preprocess`; index = slot
_FIRST, _LAST = "preprocess", "postprocess"

T = TypeVar("T")


class EndpointError(ValueError):
    """An endpoint cannot be used; one sentence that names it."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint and its network.

    Attributes:
        name: of the network, for callers and metrics; that of its folder may have a number added.
        slot: which of `INPUTS` its images come through.
        network: what the steps know of the network.
        parameters: of the endpoint's own configuration, as text.
    """

    name: str
    slot: int
    network: NetworkSpec
    parameters: Mapping[str, str]


def read_endpoint(folder: Path) -> Endpoint:
    """Read an endpoint from its folder, and its network from the folder beside it.

    Raises:
        EndpointError, NetworkSpecError: a file is missing, or the files contradict each other.
    """
    return _read_network(folder, _read_config(folder))


def read_parameters(folder: Path) -> dict[str, str]:
    """The `parameters` in the configuration of the model in this folder, as text.

    Raises:
        EndpointError: the file is missing or not valid.
    """
    return _texts(_read_config(folder))


class EndpointRegistry(Generic[T]):
    """Finds what a step needs for a request. Not thread-safe.

    Args:
        repository: the folder of all models.
        prepare: makes of an endpoint what the step needs; called once for each.
        warn: called with a sentence about an endpoint that cannot be used.
    """

    def __init__(
        self, repository: Path, prepare: Callable[[Endpoint], T], warn: Callable[[str], None]
    ) -> None:
        self._repository = repository
        self._prepare = prepare
        self._warn = warn
        self._by_slot: dict[int, T | EndpointError] = {}
        self._seen: dict[Path, tuple[int, int]] = {}  # configurations that have been read
        self._changed_at = -1

    def find(self, slot: int) -> T:
        """What was prepared for the endpoint in this slot.

        Raises:
            EndpointError: there is none, or it cannot be used.
        """
        changed_at = self._repository.stat().st_mtime_ns
        if changed_at != self._changed_at or slot not in self._by_slot:
            self._changed_at = changed_at
            self._read()
        if slot not in self._by_slot:
            raise EndpointError(f"no endpoint uses input {slot}")
        found = self._by_slot[slot]
        if isinstance(found, EndpointError):
            raise found
        return found

    def _read(self) -> None:
        """Read the endpoints that are new or changed; those that are gone keep their slots."""
        for config in sorted(self._repository.glob(f"*{SUFFIX}/config.pbtxt")):
            try:
                status = config.stat()
            except OSError:  # it was removed in this moment
                continue
            identity = (status.st_ino, status.st_mtime_ns)
            if self._seen.get(config) != identity:
                self._seen[config] = identity
                self._add(config.parent)

    def _add(self, folder: Path) -> None:
        try:
            config = _read_config(folder)
            slot, _ = _wiring(folder.name, config)
        except EndpointError as error:
            self._warn(str(error))
            return
        try:
            self._by_slot[slot] = self._prepare(_read_network(folder, config))
        except ValueError as error:  # the steps' errors about settings and files
            self._by_slot[slot] = EndpointError(f"{folder.name}: {error}")
            self._warn(f"{folder.name}: {error}")


def _read_config(folder: Path) -> Any:
    try:
        text = (folder / "config.pbtxt").read_text("utf-8")
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EndpointError(f"{folder.name}/config.pbtxt cannot be read: {reason}") from None


def _read_network(folder: Path, config: Any) -> Endpoint:
    """The endpoint in this folder, with this configuration, and its network."""
    slot, network = _wiring(folder.name, config)
    return Endpoint(
        name=folder.name.removesuffix(SUFFIX),
        slot=slot,
        network=read_network_spec(folder.parent / network),
        parameters=_texts(config),
    )


def _texts(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def _wiring(endpoint: str, config: Any) -> tuple[int, str]:
    """The slot, and the name of the network's folder."""
    steps = {step.model_name: step for step in config.ensemble_scheduling.step}
    networks = steps.keys() - {_FIRST, _LAST}
    inputs = list(steps[_FIRST].input_map) if _FIRST in steps else []
    if len(steps) != 3 or len(networks) != 1 or len(inputs) != 1 or inputs[0] not in INPUTS:
        raise EndpointError(
            f"{endpoint}/config.pbtxt must have three steps, {_FIRST}, a network and {_LAST}, and"
            f" give its image to one input of {_FIRST}: image, or image_1 to image_{SLOTS - 1}"
        )
    return INPUTS.index(inputs[0]), networks.pop()
