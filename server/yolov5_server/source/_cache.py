"""The folder where fetched networks are kept, and the model repository that is made of them.

    lock                      held by the launcher that uses the folder
    state.json                the source; what is installed, was before, was loaded, is refused
    networks/yolov5-1a2b.../  the files of a network and of its endpoint, which are never changed
    model_repository/         links: to the steps of the project, and to the installed networks

A network and its endpoint are exchanged by their links, each in one moment, under the lock that the
launcher holds while it loads a network.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .._errors import StartError
from .._repository import FIRST, LAST, endpoint_name
from ._errors import SourceError
from ._fetch import is_intact
from ._manifest import Manifest, SourceFile, SourceNetwork, parse_manifest

_STATE = "state.json"
_NETWORKS = "networks"
_PARTIAL = ".partial"
_DIGITS = 16  # of a digest, in the name of a folder


class Cache:
    """The networks of one source on this machine. Threads may share it.

    Args:
        folder: made if it is not there.
        source: address of the source, by which it is known again.
        project: the model repository with the steps.

    Attributes:
        repository: the model repository to serve.
        installed: by name.
        previous: what was installed before, and can be put back.
        loaded: digests of installed networks that Triton has loaded before, by name.
        refused: digests of networks that Triton did not load, by name.

    Raises:
        StartError: the folder cannot be used, or another launcher uses it.
    """

    def __init__(self, folder: Path, source: str, project: Path) -> None:
        self._folder = folder
        self._source = source
        self._lock = threading.Lock()
        self.repository = folder / "model_repository"
        self.installed: dict[str, SourceNetwork] = {}
        self.previous: dict[str, SourceNetwork] = {}
        self.loaded: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        try:
            (folder / _NETWORKS).mkdir(parents=True, exist_ok=True)
            self.repository.mkdir(exist_ok=True)
            self._own = _lock_folder(folder)
            self._read_state()
            self._link_all(project)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StartError(f"MODEL_CACHE {folder} cannot be used: {reason}.") from None

    def close(self) -> None:
        """Let another launcher use the folder."""
        os.close(self._own)

    def folder(self, network: SourceNetwork) -> Path:
        """Where the files of a network are."""
        return self._folder / _NETWORKS / f"{network.name}-{network.digest[:_DIGITS]}"

    def missing(self, network: SourceNetwork) -> Iterator[tuple[SourceFile, Path]]:
        """The files of a network that are still to be fetched, and where to.

        `complete` is to be called when all of them are there.
        """
        partial = _partial(self.folder(network))
        for file in network.files:
            target = partial / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not is_intact(target, file) and not self._link_known(file, target):
                yield file, target

    def complete(self, network: SourceNetwork) -> None:
        """Keep a network whose files are all there."""
        folder = self.folder(network)
        shutil.rmtree(folder, ignore_errors=True)
        _partial(folder).rename(folder)

    def partial(self, network: SourceNetwork) -> Path:
        """Where the files of a network are until `complete`."""
        return _partial(self.folder(network))

    def free_bytes(self) -> int:
        """Bytes that can still be fetched."""
        return shutil.disk_usage(self._folder).free

    def install(self, networks: Collection[SourceNetwork], removed: Collection[str]) -> None:
        """Exchange networks and take away others, while the launcher loads none.

        Raises:
            OSError: the folder cannot be written to.
        """
        with _locked(self.repository), self._lock:
            for network in networks:
                before = self.installed.get(network.name)
                if before is not None and self.refused.get(network.name) != before.digest:
                    self.previous[network.name] = before
                for kept in (self.loaded, self.refused):
                    kept.pop(network.name, None)
                self.installed[network.name] = network
                self._link(network)
            for name in removed:
                self._unlink(name)
                self.installed.pop(name, None)
                self.previous.pop(name, None)
                for kept in (self.loaded, self.refused):
                    kept.pop(name, None)
            self._write_state()
            self._prune()

    def put_back(self, name: str) -> bool:
        """Install again what was before, since Triton does not load what is installed.

        Returns:
            Whether there was anything before.
        """
        with self._lock:
            bad, before = self.installed.get(name), self.previous.get(name)
            if bad is None or before is None or bad.digest == before.digest:
                return False
            self.installed[name] = before
            self.refused[name] = bad.digest
            with suppress(OSError):  # then it is tried again at the next start
                self._link(before)
                self._write_state()
            return True

    def note_loaded(self, names: Collection[str]) -> None:
        """Take note that Triton has loaded these networks as they are installed."""
        with self._lock:
            digests = {name: one.digest for name, one in self.installed.items() if name in names}
            if digests.items() - self.loaded.items():
                self.loaded.update(digests)
                with suppress(OSError):  # then only this launcher knows
                    self._write_state()

    def was_loaded(self, name: str) -> bool:
        """Whether Triton has loaded this network before, as it is installed."""
        with self._lock:
            network = self.installed.get(name)
            return network is not None and self.loaded.get(name) == network.digest

    def forget_refusals(self) -> None:
        """Let refused networks be tried again."""
        with self._lock:
            self.refused.clear()

    def _link_known(self, file: SourceFile, target: Path) -> bool:
        """Link a file that an installed network has as well; returns whether one has it."""
        for network in self.installed.values():
            for one in network.files:
                if one.sha256 == file.sha256 and one.size == file.size:
                    with suppress(OSError):
                        target.unlink(missing_ok=True)
                        target.hardlink_to(self.folder(network) / one.path)
                        return is_intact(target, file)
        return False

    def _link_all(self, project: Path) -> None:
        """Make the repository anew: the project may lie elsewhere than at the last start."""
        models = {FIRST, LAST, *self.installed, *map(endpoint_name, self.installed)}
        for path in self.repository.iterdir():
            if path.name not in models and path.is_symlink():
                path.unlink()
        for step in (FIRST, LAST):
            _replace_link(self.repository / step, (project / step).absolute())
        for network in self.installed.values():
            self._link(network)

    def _link(self, network: SourceNetwork) -> None:
        place = Path("..", _NETWORKS, self.folder(network).name)
        # A running server takes a further network for installed once it has its endpoint.
        for model in (network.name, endpoint_name(network.name)):
            _replace_link(self.repository / model, place / model)

    def _unlink(self, name: str) -> None:
        for model in (endpoint_name(name), name):
            (self.repository / model).unlink(missing_ok=True)

    def _prune(self) -> None:
        """Remove the files of all networks that are neither installed nor the ones before."""
        used = {*self.installed.values(), *self.previous.values()}
        names = {self.folder(network).name for network in used}
        for path in (self._folder / _NETWORKS).iterdir():
            if path.name not in names:
                shutil.rmtree(path, ignore_errors=True)

    def _read_state(self) -> None:
        """Take up what an earlier launcher has left, as far as it is of this source and intact."""
        try:
            state = json.loads((self._folder / _STATE).read_bytes())
            if state["source"] != self._source:
                return
            self.installed = self._intact(state["installed"])
            self.previous = self._intact(state["previous"])
            self.loaded = _digests(state["loaded"])
            self.refused = _digests(state["refused"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SourceError):
            self.installed, self.previous, self.loaded, self.refused = {}, {}, {}, {}

    def _intact(self, values: Any) -> dict[str, SourceNetwork]:
        found = parse_manifest(json.dumps(values).encode(), needs_first=False).networks
        return {name: one for name, one in found.items() if self._is_intact(one)}

    def _is_intact(self, network: SourceNetwork) -> bool:
        folder = self.folder(network)
        return all(is_intact(folder / file.path, file) for file in network.files)

    def _write_state(self) -> None:
        def as_json(networks: Mapping[str, SourceNetwork]) -> Any:
            return json.loads(Manifest(networks=networks).text())

        state = {
            "source": self._source,
            "installed": as_json(self.installed),
            "previous": as_json(self.previous),
            "loaded": self.loaded,
            "refused": self.refused,
        }
        new = self._folder / f"{_STATE}.new"
        new.write_text(json.dumps(state, indent=1) + "\n", "utf-8")
        new.replace(self._folder / _STATE)


def _digests(values: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in values.items()}


def _partial(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_PARTIAL}")


def _replace_link(link: Path, target: Path) -> None:
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def _lock_folder(folder: Path) -> int:
    """Lock the folder until this process ends; returns the descriptor.

    Raises:
        StartError: another launcher uses it.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StartError(
            f"MODEL_CACHE {folder} is in use by another launcher; give each a folder of its own."
        ) from None
    return descriptor


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
