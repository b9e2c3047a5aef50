"""Another network while the server runs: no request fails, and none meets two networks.

A request takes hold of all the models on its way when it enters the ensemble, so that replacing the
ensemble's configuration is what changes over, in one moment. The three steps are therefore first
loaded with the new network under names of their own, `preprocess.2` and so on; then the ensemble is
led over to those, and the steps before them are unloaded. A step is closed to callers by a double
of its name in another repository (server/closed_steps), and so are these.
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
        models: the folder that Triton was given as its repository.
        closed: the repository with the doubles of the steps.
        config_name: under which Triton looks for a model's configuration before config.pbtxt.
        loading: held by whoever loads models.
        changed: called when the models are others than before, with `loading` held.
        say: passes a line on to the operator.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        models: Path,
        closed: Path,
        config_name: str,
        control: ModelControl,
        loading: threading.Lock,
        changed: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._repository = settings.repository
        self._plans = settings.triton is not None
        self._models = models
        self._closed = closed
        self._config_name = config_name
        self._control = control
        self._loading = loading
        self._changed = changed
        self._say = say
        self._served = self._identity()
        self._count = 1  # of the networks that this server was led over to
        self._steps = {step: step for step in STEPS}  # their names now

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
        self._count += 1
        steps = {step: f"{step}.{self._count}" for step in STEPS}
        self._stage(steps, configs)
        try:
            # All that can fail is tried before anything that is served is touched.
            for name in steps.values():
                self._control.load(name)
            ensemble = wired(read_config(self._repository, ENSEMBLE), network)
            for step in ensemble.ensemble_scheduling.step:
                step.model_name = steps[step.model_name]
            self._control.load(ENSEMBLE, ensemble)
        except ControlError:
            self._remove(steps)
            raise
        before, self._steps = self._steps, steps
        serving = f"Now serving version {version} of the network, {precision_of(network).upper()}"
        try:
            self._remove(before)
        except ControlError as error:
            return f"{serving}; the one before stays in memory: {error}"
        return f"{serving}."

    def _stage(self, steps: Mapping[str, str], configs: str | None) -> None:
        """Copy the steps, to be loaded under these names, and give each a double."""
        for step, name in steps.items():
            shutil.copytree(
                self._repository / step,
                self._models / name,
                ignore=shutil.ignore_patterns("configs"),
            )
            self._write_config(self._models / name / "config.pbtxt", step, steps)
            # Under the name by which Triton was told to look for such.
            chosen = self._models / name / "configs" / f"{self._config_name}.pbtxt"
            self._write_config(chosen, step, steps, configs)
            # Not made of the endpoint, which Triton would load anew with it. It is made of itself,
            # and cannot be loaded; that does as well.
            shutil.copytree(self._closed / step, self._closed / name)
            double = read_config(self._closed, step)
            double.name = name
            double.ensemble_scheduling.step[0].model_name = name
            write_config(self._closed / name / "config.pbtxt", double)

    def _write_config(
        self, path: Path, step: str, steps: Mapping[str, str], configs: str | None = None
    ) -> None:
        config = read_config(self._repository, step, configs)
        config.name = steps[step]
        if "network" in config.parameters:
            config.parameters["network"].string_value = steps[NETWORK]
        write_config(path, config)

    def _remove(self, steps: Mapping[str, str]) -> None:
        """Have Triton forget these; requests that they have already are answered."""
        for step, name in steps.items():
            self._control.unload(name)
            if name != step:
                shutil.rmtree(self._models / name, ignore_errors=True)
                shutil.rmtree(self._closed / name, ignore_errors=True)


def write_config(path: Path, config: model_config_pb2.ModelConfig) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text_format.MessageToString(config), "utf-8")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
