"""Add, replace and remove networks while the server runs: no request fails, and none uses two.

A request takes hold of all the models on its way when it enters the ensemble. Replacing the
ensemble's configuration therefore cuts over to another network in one moment. First the network is
loaded under a name of its own, `yolov5.2` and so on; then the ensemble is cut over to it, and the
earlier network is unloaded. The steps that all networks share stay as they are: they read the
network of each request by its slot (_stage.py).
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ._checks import check_network
from ._control import ControlError, ModelControl
from ._errors import StartError
from ._loading import LoadStuckError, load
from ._repository import (
    FIRST,
    LAST,
    NETWORK,
    endpoint_name,
    installed_networks,
)
from ._settings import Settings
from ._stage import Stage, Staged

_POLL_SECONDS = 0.5  # between two checks of the repository


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What changes when a network is installed, or its endpoint's configuration is written.

    Attributes:
        network: of the network's folder, which every installation replaces.
        endpoint: of the endpoint's configurations.
    """

    network: tuple[int, int]
    endpoint: tuple[tuple[int, int], ...]


def read_identity(repository: Path, network: str) -> Identity | None:
    """The identity of what is installed; None if a file is missing."""
    folder = repository / endpoint_name(network)
    try:
        status = (repository / network).stat()
        configs = [folder / "config.pbtxt", *sorted(folder.glob("configs/*.pbtxt"))]
        statuses = [config.stat() for config in configs]
    except OSError:
        return None
    return Identity(
        network=(status.st_ino, status.st_ctime_ns),
        endpoint=tuple((one.st_ino, one.st_mtime_ns) for one in statuses),
    )


@dataclass(frozen=True, kw_only=True)
class Served:
    """An endpoint that answers.

    Attributes:
        staged: its names and slot.
        identity: of what was installed when it was staged.
        version: of the network.
    """

    staged: Staged
    identity: Identity | None
    version: int


class Reloader:
    """Watches the installed networks, and serves what is installed.

    Args:
        settings: of the server.
        stage: the folders that Triton reads.
        control: loads and unloads models.
        loading: held while models are being loaded.
        on_models_changed: called with the models that answer from now on; with None until that is
            known.
        on_endpoints_changed: called with the names of the networks that are served.
        on_replaced: called with the name of a network whose endpoint is another one from now on.
        on_refused: called with the name of a network that Triton does not load; returns whether
            what was installed before was put back.
        on_stuck: called with a sentence when Triton can load nothing any more; ends the server.
        log: writes a line to the operator's log.

    Attributes:
        served: by the name of the network.
        refused: why a network is not served as it is installed, by its name.
    """

    server: int  # Triton's process number, to be set before `watch`

    def __init__(
        self,
        *,
        settings: Settings,
        stage: Stage,
        control: ModelControl,
        loading: threading.Lock,
        on_models_changed: Callable[[Collection[str] | None], None],
        on_endpoints_changed: Callable[[Collection[str]], None],
        on_stuck: Callable[[str], None],
        log: Callable[[str], None],
        on_replaced: Callable[[str], None] = lambda network: None,
        on_refused: Callable[[str], bool] = lambda network: False,
    ) -> None:
        self._settings = settings
        self._repository = settings.repository
        self._stage = stage
        self._control = control
        self._loading = loading
        self._on_models_changed = on_models_changed
        self._on_endpoints_changed = on_endpoints_changed
        self._on_replaced = on_replaced
        self._on_refused = on_refused
        self._on_stuck = on_stuck
        self._log = log
        self._known: dict[str, Identity | None] = {}  # what was last served or refused
        self._generation = 1  # number of networks loaded so far, also of those that failed to load
        self.served: dict[str, Served] = {}
        self.refused: dict[str, str] = {}

    @property
    def models(self) -> list[str]:
        """The models that answer."""
        return [FIRST, LAST, *(one.staged.model for one in self.served.values())]

    def stage_all(self) -> list[Staged]:
        """Stage every installed endpoint before the server starts.

        Raises:
            StartError, OSError: the endpoint without a name cannot be served.
        """
        staged = []
        for network in installed_networks(self._repository):
            self._known[network] = read_identity(self._repository, network)
            try:
                if network != NETWORK:  # the first one was checked before
                    check_network(self._settings, network)
                staged.append(self._stage.add_endpoint(network))
            except (StartError, OSError) as error:
                if network == NETWORK:
                    raise
                self._stage.remove_endpoint(network)
                self._stage.remove_network(network)
                self._refuse(network, f"The network {network} is not served: {error}")
        return staged

    def started(self, staged: Collection[Staged]) -> None:
        """Take note of which of the staged endpoints Triton has loaded.

        Raises:
            ControlError: Triton does not tell.
        """
        reasons = self._control.failures()
        for one in staged:
            if one.endpoint in reasons:
                reason = reasons.get(one.model) or reasons[one.endpoint]
                self._stage.remove_endpoint(one.network)
                self._unload(one.model)
                self._refuse(one.network, f"The network {one.network} is not served: {reason}")
            else:
                self._accept(one, self._known[one.network])
        for network, sentence in self.refused.items():
            self._log(sentence)
            self._on_refused(network)  # `watch` then loads what was put back
        self._on_endpoints_changed(list(self.served))

    def watch(self, should_exit: threading.Event) -> None:
        """Watch until `should_exit` is set."""
        while not should_exit.wait(_POLL_SECONDS):
            for network in self._changed():
                # `make model` takes the same lock to install a network, and may hold it for long.
                # So no network is replaced while it loads.
                with _locked(self._repository), self._loading:
                    report = self._update(network)
                if report and not should_exit.is_set():  # otherwise the server has ended
                    self._log(report)

    def _changed(self) -> list[str]:
        """Networks that were installed, removed or configured since they were last looked at."""
        installed = installed_networks(self._repository)
        found = {name: read_identity(self._repository, name) for name in installed}
        if found[NETWORK] is None:  # it cannot be removed
            del found[NETWORK]
        gone = self._known.keys() - found.keys() - {NETWORK}
        return [*gone, *(name for name in found if found[name] != self._known.get(name))]

    def _update(self, network: str) -> str | None:
        """Serve the network as it is installed now.

        Returns:
            A sentence for the log; None if there is nothing to say.
        """
        identity = read_identity(self._repository, network)
        if identity is None and network != NETWORK:
            self._known.pop(network, None)
            return self._remove(network)
        self._known[network] = identity
        return self._replace(network, identity)

    def _replace(self, network: str, identity: Identity | None) -> str | None:
        """Load the network and cut its endpoint over to it, or stay with what is served."""
        before = self.served.get(network)
        same = before is not None and _same_network(before.identity, identity)
        model = before.staged.model if before and same else self._next_model(network)
        kept = self._stage.read_endpoint(network)
        error: Exception | None = None
        staged = None
        try:
            check_network(self._settings, network)
            staged = self._stage.replacement(network, model)
            self._load_and_cut_over(staged, is_loaded=same)
        except LoadStuckError as stuck:
            self._on_stuck(f"The new network was not loaded: {stuck}.")
            return None
        except (ControlError, StartError, OSError) as raised:
            error = raised
        try:
            # Loading may have failed only as far as the answer is concerned.
            if staged and (error is None or (not same and self._is_served(staged))):
                return self._finish(staged, identity, before)
        except ControlError as silent:
            self._on_stuck(f"Triton does not say which network it serves: {silent}.")
            return None
        self._on_models_changed(self.models)
        if not same:
            self._unload(model)
        return self._keep(network, before, kept, error)

    def _is_served(self, staged: Staged) -> bool:
        """Whether Triton has cut the endpoint over to this network."""
        served = self._control.is_served(staged.endpoint)
        return served and staged.model in self._control.steps(staged.endpoint)

    def _next_model(self, network: str) -> str:
        self._generation += 1
        return f"{network}.{self._generation}"

    def _load_and_cut_over(self, staged: Staged, *, is_loaded: bool) -> None:
        """Load the network, then cut its endpoint over to it.

        Raises:
            LoadStuckError: Triton waits for ever.
            ControlError, StartError, OSError: a part failed. What was served still is.
        """
        # Whatever can fail comes before the served ensemble is changed.
        if not is_loaded:
            self._stage.add_network(staged)
            # In a container the network's backend may be in C++ and need no process.
            has_process = self._settings.has_own_backends
            load(self._control.load, staged.model, server=self.server, has_process=has_process)
        self._stage.write_endpoint(staged)
        # Cut over, in one moment: the earlier process may end from now on.
        self._on_models_changed(None)
        self._control.load(staged.endpoint)

    def _finish(self, staged: Staged, identity: Identity | None, before: Served | None) -> str:
        """Take note of a new network or endpoint, and unload the one before."""
        self._accept(staged, identity)
        self._on_models_changed(self.models)
        self._on_endpoints_changed(list(self.served))
        self._on_replaced(staged.network)
        if before is not None and before.staged.model == staged.model:
            return f"Now serving {staged.endpoint} as it is configured now."
        if before is not None:
            self._unload(before.staged.model)
        version = self.served[staged.network].version
        name = "the network" if staged.network == NETWORK else staged.network
        return f"Now serving version {version} of {name}, {staged.precision.upper()}."

    def _keep(
        self,
        network: str,
        before: Served | None,
        configs: dict[Path, bytes],
        error: Exception | None,
    ) -> str:
        """Stay with what is served, if anything is, and with its configurations."""
        name = "" if network == NETWORK else f" {network}"
        is_back = self._on_refused(network)
        if before is None:
            self._stage.remove_endpoint(network)
            return self._refuse(network, f"The network{name} is not served: {error}")
        with suppress(OSError):  # then a later change of it will fail as well
            self._stage.restore_endpoint(before.staged, configs)
        if is_back:  # it is what is served: there is nothing to load
            self._known[network] = read_identity(self._repository, network)
        sentence = f"The new network{name} was not loaded, the old one is still served: {error}"
        return self._refuse(network, sentence)

    def _accept(self, staged: Staged, identity: Identity | None) -> None:
        version = self._control.version(staged.model)
        self.refused.pop(staged.network, None)
        self.served[staged.network] = Served(staged=staged, identity=identity, version=version)

    def _refuse(self, network: str, sentence: str) -> str:
        self.refused[network] = sentence
        return sentence

    def _remove(self, network: str) -> str | None:
        """Unload an endpoint and its network, once their requests are answered."""
        self.refused.pop(network, None)
        before = self.served.pop(network, None)
        if before is None:
            return None
        self._on_endpoints_changed(list(self.served))
        self._on_models_changed(None)
        with suppress(ControlError):
            self._control.unload(before.staged.endpoint)
        self._stage.remove_endpoint(network)
        self._unload(before.staged.model)
        self._on_models_changed(self.models)
        return f"{before.staged.endpoint} was removed."

    def _unload(self, model: str) -> None:
        """Unload a network, once the requests that it has are answered."""
        with suppress(ControlError):  # then it stays in memory
            self._control.unload(model)
        self._stage.remove_network(model)


def _same_network(before: Identity | None, now: Identity | None) -> bool:
    return before is not None and now is not None and before.network == now.network


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
