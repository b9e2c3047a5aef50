"""Another network while the server runs: no request fails, and none meets two networks.

A request takes hold of all the models on its way when it enters the ensemble, so that replacing the
ensemble's configuration is what changes over, in one moment. The three steps are therefore first
loaded under other names, with the new network; the ensemble is led over to those; then the
steps are loaded anew under their own names, where nobody uses them, and it is led back.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ._control import ControlError, ModelControl
from ._errors import StartError
from ._preflight import (
    ENSEMBLE,
    NETWORK,
    STEPS,
    check_precision,
    chosen_configs,
    precision_of,
    read_config,
    read_network_config,
)
from ._settings import Settings
from ._wiring import wired

_SECONDS = 0.5  # between two looks at the repository


class Swap:
    """Watches the served network's folder, and changes over when another one is installed.

    Args:
        settings: of the server.
        staging: an empty folder that Triton was given as a second repository.
        loading: held by whoever loads models.
        changed: called when the models are others than before, with `loading` held.
        say: passes a line on to the operator.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        staging: Path,
        control: ModelControl,
        loading: threading.Lock,
        changed: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._repository = settings.repository
        self._plans = settings.triton is not None
        self._staging = staging
        self._control = control
        self._loading = loading
        self._changed = changed
        self._say = say
        self._served = self._identity()
        self._turn = 0

    def watch(self, stop: threading.Event) -> None:
        """Do so until `stop` is set."""
        while not stop.wait(_SECONDS):
            if self._identity() in (None, self._served):
                continue
            try:
                # Whoever installs a network takes the same lock: none is replaced while it loads.
                with self._loading, _locked(self._repository):
                    self._served = self._identity()
                    try:
                        report = self._change_over()
                    finally:
                        self._changed()
            except (ControlError, StartError, OSError) as error:
                report = f"The new network is not taken over, the old one is served: {error}"
            if not stop.is_set():  # else it failed because the server was ended
                self._say(report)

    def _identity(self) -> tuple[int, int] | None:
        """Changes with every installation, which puts another folder in the place of the old."""
        try:
            status = (self._repository / NETWORK).stat()
        except OSError:
            return None
        return status.st_ino, status.st_ctime_ns

    def _change_over(self) -> str:
        """Returns what came of it, a sentence; raises where nothing did."""
        configs = chosen_configs(self._settings)
        network = read_network_config(self._repository, configs, plans=self._plans)
        check_precision(network, self._settings.precision)
        version = max(
            int(path.name)
            for path in (self._repository / NETWORK).glob("[0-9]*")
            if path.name.isdecimal()
        )
        # Other names than the last time's, which are still in use if it did not go well.
        self._turn = 1 - self._turn
        incoming = _incoming(self._turn)
        self._stage(incoming)
        try:
            # All that can fail is tried before anything that is served is touched.
            for step, name in incoming.items():
                self._control.load(name, self._renamed(step, incoming, configs))
        except ControlError:
            self._unload(incoming)
            raise
        own = wired(read_config(self._repository, ENSEMBLE), network)
        led_over = model_config_pb2.ModelConfig()
        led_over.CopyFrom(own)
        for step in led_over.ensemble_scheduling.step:
            step.model_name = incoming[step.model_name]
        self._control.load(ENSEMBLE, led_over)
        serving = f"Now serving version {version} of the network, {precision_of(network).upper()}"
        try:
            for step in STEPS:
                config = read_config(self._repository, step, configs)
                if "network" in config.parameters:
                    # Triton does not load anew what looks as before.
                    config.parameters["network_version"].string_value = str(version)
                self._control.load(step, config)
            self._control.load(ENSEMBLE, own)
        except ControlError as error:
            return f"{serving}, but as {incoming[NETWORK]} until the next start: {error}"
        for turn in (0, 1):
            self._unload(_incoming(turn))
        return f"{serving}."

    def _unload(self, models: Mapping[str, str]) -> None:
        for name in models.values():
            self._control.unload(name)

    def _stage(self, incoming: Mapping[str, str]) -> None:
        """Copy the steps under their other names; the files are the same."""
        for step, name in incoming.items():
            folder = self._staging / name
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(self._repository / step, folder)
            config = self._renamed(step, incoming)
            (folder / "config.pbtxt").write_text(text_format.MessageToString(config), "utf-8")

    def _renamed(
        self, step: str, incoming: Mapping[str, str], configs: str | None = None
    ) -> model_config_pb2.ModelConfig:
        """The step's configuration under its other name."""
        config = read_config(self._repository, step, configs)
        config.name = incoming[step]
        if "network" in config.parameters:
            config.parameters["network"].string_value = incoming[NETWORK]
        return config


def _incoming(turn: int) -> dict[str, str]:
    """The steps' other names."""
    return {step: f"{step}_incoming{turn}" for step in STEPS}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
