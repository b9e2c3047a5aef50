"""Reload another network while the server runs: no request fails, and none uses two networks.

A request takes hold of all the models on its way when it enters the ensemble. Replacing the
ensemble's configuration therefore cuts over to another network in one moment. First the three steps
are loaded with the new network under names of their own, `preprocess.2` and so on; then the
ensemble is cut over to them, and the earlier steps are unloaded. Each of the new steps is closed to
callers as the first ones are: by a double of its name in another repository (server/closed_steps).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ._checks import check_precision
from ._control import ControlError, ModelControl
from ._errors import StartError
from ._loading import LoadStuckError, load
from ._repository import (
    ENSEMBLE,
    NETWORK,
    STEPS,
    chosen_configs,
    network_precision,
    read_config,
    read_network_config,
)
from ._settings import Settings

_POLL_SECONDS = 0.5  # between two checks of the repository


class Reloader:
    """Watches the served network's folder, and reloads when another one is installed.

    Args:
        settings: of the server.
        models: the folder that Triton reads as its repository.
        closed: the repository with the doubles of the steps.
        config_name: name of the configurations that Triton prefers to config.pbtxt.
        loading: held while models are being loaded.
        on_models_changed: called with the models that answer from now on; with None until that is
            known.
        on_stuck: called with a sentence when Triton can load nothing any more; ends the server.
        log: writes a line to the operator's log.
    """

    server: int  # Triton's process number, to be set before `watch`

    def __init__(
        self,
        *,
        settings: Settings,
        models: Path,
        closed: Path,
        config_name: str,
        control: ModelControl,
        loading: threading.Lock,
        on_models_changed: Callable[[Collection[str] | None], None],
        on_stuck: Callable[[str], None],
        log: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._repository = settings.repository
        self._plans = settings.triton is not None
        self._models = models
        self._closed = closed
        self._config_name = config_name
        self._control = control
        self._loading = loading
        self._on_models_changed = on_models_changed
        self._on_stuck = on_stuck
        self._log = log
        self._served = self._installed_folder()
        self._generation = 1  # number of networks so far, also of those that failed to load
        self._steps = {step: step for step in STEPS}  # step -> name of the model that serves it

    def watch(self, should_exit: threading.Event) -> None:
        """Watch until `should_exit` is set."""
        while not should_exit.wait(_POLL_SECONDS):
            if self._installed_folder() in (None, self._served):
                continue
            # `make model` takes the same lock to install a network, and may hold it for long. So
            # no network is replaced while it loads.
            with _locked(self._repository), self._loading:
                self._served = self._installed_folder()
                report = self._reload()
            if report and not should_exit.is_set():  # otherwise it failed because the server ended
                self._log(report)

    def _reload(self) -> str | None:
        """Reload the installed network, or stay with the old one.

        Returns:
            A sentence on what is served now; None if the server has to be restarted first.
        """
        self._generation += 1
        steps = {step: f"{step}.{self._generation}" for step in STEPS}
        error: Exception | None = None
        try:
            self._load_and_cut_over(steps)
        except LoadStuckError as stuck:
            self._on_stuck(f"The new network was not loaded: {stuck}.")
            return None
        except (ControlError, StartError, OSError) as raised:
            error = raised
        try:
            served = self._control.steps(ENSEMBLE)
            is_new = steps[NETWORK] in served
            version = self._control.version(steps[NETWORK] if is_new else self._steps[NETWORK])
        except ControlError as silent:
            self._on_stuck(f"Triton does not say which network it serves: {silent}.")
            return None
        self._on_models_changed(served)
        if not is_new:
            self._unload(steps)
            return f"The new network was not loaded, the old one is still served: {error}"
        self._unload(self._steps)
        self._steps = steps
        config = read_config(self._repository, NETWORK, chosen_configs(self._settings))
        return f"Now serving version {version} of the network, {network_precision(config).upper()}."

    def _installed_folder(self) -> tuple[int, int] | None:
        """Identity of the installed network's folder, which every installation replaces."""
        try:
            status = (self._repository / NETWORK).stat()
        except OSError:
            return None
        return status.st_ino, status.st_ctime_ns

    def _load_and_cut_over(self, steps: Mapping[str, str]) -> None:
        """Load the steps with the new network, then cut the ensemble over to them.

        Args:
            steps: step -> name of the model that is to serve it.

        Raises:
            LoadStuckError: Triton waits for ever.
            ControlError, StartError, OSError: a part failed. The old network is still served.
        """
        configs = chosen_configs(self._settings)
        network = read_network_config(self._repository, configs, plans=self._plans)
        check_precision(network, self._settings.precision)
        self._stage(steps, configs)
        # Whatever can fail comes before the served ensemble is changed.
        for step, name in steps.items():
            # In a container the network's backend may be in C++ and need no process.
            has_process = not (self._plans and step == NETWORK)
            load(self._control.load, name, server=self.server, has_process=has_process)
        ensemble = read_config(self._repository, ENSEMBLE, configs)
        for one in ensemble.ensemble_scheduling.step:
            one.model_name = steps[one.model_name]
        # Cut over, in one moment: the earlier processes may end from now on.
        self._on_models_changed(None)
        self._control.load(ENSEMBLE, ensemble)

    def _stage(self, steps: Mapping[str, str], configs: str | None) -> None:
        """Copy the steps under their new names, and give each a double."""
        for step, name in steps.items():
            shutil.copytree(
                self._repository / step,
                self._models / name,
                ignore=shutil.ignore_patterns("configs"),
            )
            self._write_config(self._models / name / "config.pbtxt", step, steps)
            # Triton reads this one first; it was told the name when it was started.
            chosen = self._models / name / "configs" / f"{self._config_name}.pbtxt"
            self._write_config(chosen, step, steps, configs)
            # The doubles of the first steps consist of the endpoint; for a later one Triton would
            # reload the endpoint. This one consists of itself: Triton cannot load it, but knows its
            # name, which is enough.
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

    def _unload(self, steps: Mapping[str, str]) -> None:
        """Unload these steps, once the requests that they have are answered."""
        for step, name in steps.items():
            with suppress(ControlError):  # then it stays in memory
                self._control.unload(name)
            if name != step:
                shutil.rmtree(self._models / name, ignore_errors=True)
                shutil.rmtree(self._closed / name, ignore_errors=True)


def write_config(path: Path, config: model_config_pb2.ModelConfig) -> None:
    """Write a configuration, and make its folder."""
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
