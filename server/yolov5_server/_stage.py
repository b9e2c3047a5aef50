"""The folders that Triton reads as its repositories, made of the model repository.

There are two. In `models` each network and each endpoint has a folder of its own, with the
configuration chosen for this server; weights and the shared steps are links. `preprocess` has a
configuration of its own as well if the launcher was given settings for it. A network that replaces
another one is put beside it, under another name. In `closed` every step has a double, a model of
its name: server/closed_steps/README.md says why.

Each endpoint has a slot, the number of its input of `preprocess` (endpoint_registry.py there). A
network that replaces another one gets another slot, so that requests under way keep the old one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf import text_format

from ._errors import StartError
from ._repository import (
    FIRST,
    LAST,
    NETWORK,
    chosen_configs,
    endpoint_name,
    network_precision,
    read_config,
)
from ._settings import CLOSED_STEPS, Settings

MODELS, CLOSED = "models", "closed"
CONFIG_NAME = "served"  # of the configurations that Triton prefers to config.pbtxt
_NOT_LINKED = ("config.pbtxt", "configs", "versions")  # `versions` holds earlier ones
_IMAGES = {"images", "pixels"}  # 0..1 and 0..255; a network takes one of them
_INPUTS = {*_IMAGES, "nms"}
_Config: TypeAlias = Any  # a ModelConfig


@dataclass(frozen=True, kw_only=True)
class Staged:
    """An endpoint as Triton is to serve it.

    Attributes:
        network: its name.
        model: name of the model that is the network: the same, or with a number added.
        slot: number of the input of `preprocess`.
        input: name of that input.
        takes: names of the network's inputs.
        precision: of the network.
    """

    network: str
    model: str
    slot: int
    input: str
    takes: tuple[str, ...]
    precision: str

    @property
    def endpoint(self) -> str:
        """Name of the ensemble."""
        return endpoint_name(self.network)


class Stage:
    """Makes and changes the two folders.

    Args:
        settings: of the server.
        folder: to make them in.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._repository = settings.repository
        self._models = folder / MODELS
        self._closed = folder / CLOSED
        # Index = slot.
        self._inputs = [tensor.name for tensor in read_config(self._repository, FIRST).input]
        self._last_slot = -1
        self._slots: dict[str, int] = {}  # by network; of the endpoints that are staged
        self._models.mkdir()
        shutil.copytree(CLOSED_STEPS, self._closed)
        (self._models / LAST).symlink_to(self._repository / LAST)
        if settings.steps:
            self._write_first()
        else:
            (self._models / FIRST).symlink_to(self._repository / FIRST)

    def _write_first(self) -> None:
        """Stage `preprocess` with the settings of this server in place of its own."""
        source, target = self._repository / FIRST, self._models / FIRST
        target.mkdir()
        for path in source.iterdir():
            if path.name not in _NOT_LINKED:
                (target / path.name).symlink_to(path)
        config = read_config(self._repository, FIRST)
        for name, value in self._settings.steps.items():
            config.parameters[name].string_value = value
        _write(target / "config.pbtxt", config)

    def add_endpoint(self, network: str) -> Staged:
        """Stage an endpoint and its network before the server starts.

        Raises:
            StartError, OSError: a file is missing or not valid.
        """
        staged = self._staged(network, network, self._own_slot(network))
        self.add_network(staged)
        if network != NETWORK:  # its double is among those that are copied
            # Triton loads it with the network. The doubles of later networks are not loaded.
            self._add_double(staged.model, staged.endpoint)
        self.write_endpoint(staged)
        return staged

    def replacement(self, network: str, model: str) -> Staged:
        """What is to replace the endpoint of this network, or to be its first one.

        Raises:
            StartError: there are too many endpoints, or a file is missing or not valid.
        """
        return self._staged(network, model, self._next_slot())

    def add_network(self, staged: Staged) -> None:
        """Stage a network under the name of its model.

        Raises:
            StartError, OSError: a file is missing or not valid.
        """
        source, target = self._repository / staged.network, self._models / staged.model
        target.mkdir()
        for path in source.iterdir():
            if path.name == "labels.txt":  # the shared steps may read it when it has been replaced
                shutil.copy(path, target)
            elif path.name not in _NOT_LINKED:
                (target / path.name).symlink_to(path)
        self._write_configs(staged, staged.network, target, _rename)
        if staged.model != staged.network:
            # Of itself: Triton cannot load it, but knows its name, which is enough. For a double
            # that consists of an endpoint, Triton would reload the endpoint.
            self._add_double(staged.model, staged.model)

    def write_endpoint(self, staged: Staged) -> None:
        """Write the endpoint's configuration, or replace it.

        Raises:
            StartError, OSError: a file is missing or not valid.
        """
        folder = self._models / staged.endpoint
        (folder / "1").mkdir(parents=True, exist_ok=True)
        self._write_configs(staged, staged.endpoint, folder, _wire)
        self._slots[staged.network] = self._last_slot = staged.slot
        self._mark_changed()

    def read_endpoint(self, network: str) -> dict[Path, bytes]:
        """The endpoint's configurations as they are staged now."""
        configs = (self._models / endpoint_name(network)).rglob("*.pbtxt")
        return {path: path.read_bytes() for path in configs}

    def restore_endpoint(self, staged: Staged, configs: dict[Path, bytes]) -> None:
        """Go back to what `read_endpoint` has returned for this endpoint.

        The repository may hold other configurations by now, which cannot be served.
        """
        for path, config in configs.items():
            if path.read_bytes() != config:
                _replace(path, config)
        self._slots[staged.network] = staged.slot
        self._mark_changed()

    def remove_endpoint(self, network: str) -> None:
        """Remove an endpoint that is no longer served."""
        shutil.rmtree(self._models / endpoint_name(network), ignore_errors=True)
        self._slots.pop(network, None)

    def remove_network(self, model: str) -> None:
        """Remove a network that is no longer served. The double of its name stays for a first one:
        Triton would tell callers that there is no such model."""
        shutil.rmtree(self._models / model, ignore_errors=True)
        if "." in model:
            shutil.rmtree(self._closed / model, ignore_errors=True)

    def _write_configs(
        self, staged: Staged, source: str, folder: Path, change: Callable[[_Config, Staged], None]
    ) -> None:
        """Write both configurations of the model `source` of the repository, changed."""
        chosen = chosen_configs(self._settings, staged.network)
        for name, configs in (("config", None), (f"configs/{CONFIG_NAME}", chosen)):
            config = read_config(self._repository, source, configs)
            change(config, staged)
            _write(folder / f"{name}.pbtxt", config)

    def _add_double(self, model: str, step: str) -> None:
        folder = self._closed / model
        (folder / "1").mkdir(parents=True, exist_ok=True)
        double = read_config(self._closed, NETWORK)
        double.name = model
        double.ensemble_scheduling.step[0].model_name = step
        _write(folder / "config.pbtxt", double)

    def _staged(self, network: str, model: str, slot: int) -> Staged:
        config = read_config(self._repository, network, chosen_configs(self._settings, network))
        return Staged(
            network=network,
            model=model,
            slot=slot,
            input=self._inputs[slot],
            takes=tuple(tensor.name for tensor in config.input),
            precision=network_precision(config),
        )

    def _own_slot(self, network: str) -> int:
        """The slot in the repository, unless another endpoint has it."""
        config = read_config(self._repository, endpoint_name(network))
        for step in config.ensemble_scheduling.step:
            for name in step.input_map if step.model_name == FIRST else ():
                own = self._inputs.index(name) if name in self._inputs else None
                if own is not None and own not in self._slots.values():
                    return own
        return self._next_slot()

    def _next_slot(self) -> int:
        """The free slot that was not used longest: requests of before may still be under way."""
        count = len(self._inputs)
        for step in range(1, count + 1):
            slot = (self._last_slot + step) % count
            if slot not in self._slots.values():
                return slot
        raise StartError(f"there are too many endpoints; allowed: {count - 1}.")

    def _mark_changed(self) -> None:
        """Let the shared steps see a change, however soon after the last one."""
        before = self._models.stat().st_mtime_ns
        now = max(time.time_ns(), before + 1)
        os.utime(self._models, ns=(now, now))


def _rename(config: _Config, staged: Staged) -> None:
    config.name = staged.model


def _wire(config: _Config, staged: Staged) -> None:
    for step in config.ensemble_scheduling.step:
        if step.model_name == staged.network:
            step.model_name = staged.model
            _name_tensors(step.input_map, _INPUTS, staged.takes)
        elif step.model_name == FIRST:
            images = [name for name in staged.takes if name in _IMAGES]
            _name_tensors(step.output_map, _IMAGES, images)
            tensors = list(step.input_map.values())
            step.input_map.clear()
            for tensor in tensors:
                step.input_map[staged.input] = tensor


def _name_tensors(
    tensors: MutableMapping[str, str], known: set[str], wanted: Iterable[str]
) -> None:
    """Of the known tensors, let a step have those that the network takes.

    An earlier version of the project may have written the network or the endpoint.
    """
    for name in known & tensors.keys() - set(wanted):
        del tensors[name]
    for name in known.intersection(wanted) - tensors.keys():
        tensors[name] = name


def _write(path: Path, config: _Config) -> None:
    """Write a configuration, replacing an earlier one in one moment."""
    path.parent.mkdir(exist_ok=True)
    _replace(path, text_format.MessageToString(config).encode())


def _replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)
