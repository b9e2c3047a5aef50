"""Keep what is served the same as what a source holds: at the start, and whenever it changes."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from traceback import format_exc
from typing import Any

from .._console import log as console_log
from .._errors import StartError
from .._repository import NETWORK
from .._settings import Settings
from .._source_url import safe_url, source_key
from ._cache import Cache
from ._configs import check_configs
from ._errors import SourceError, refused
from ._fetch import StoppedError, fetch_file, fetch_manifest
from ._manifest import SourceNetwork, parse_manifest
from ._stores import Store, open_store

OUTCOMES = ("unchanged", "installed", "refused", "failed")
_START_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 15.0)  # between two attempts of a start without a cache
_REFUSED_SECONDS = 300.0  # until files that were refused are fetched again
_RESERVE_BYTES = 64 << 20  # that stay free on the disk


@dataclass(frozen=True, kw_only=True)
class _Refused:
    """A manifest that was refused.

    Attributes:
        digest: its SHA-256.
        sentence: why.
        until: when its files are fetched again, as `time.monotonic()`.
    """

    digest: str
    sentence: str
    until: float


class ModelSource:
    """The networks of a source, as a model repository on this machine.

    Args:
        settings: of the server; `model_source` is set.
        log: writes a line to the operator's log.

    Attributes:
        checks: looks at the source so far, by outcome.
        last_success: when what is installed was last what the source holds, as `time.time()`; 0 if
            never.
        reason: why what is installed is not what the source holds; None if it is.

    Raises:
        StartError: the cache cannot be used, or what reads the source is not installed.
    """

    def __init__(self, settings: Settings, log: Callable[[str], None] = console_log) -> None:
        self._settings = settings
        self._url = settings.model_source
        self._log = log
        self._wake = threading.Event()
        self._refused: _Refused | None = None
        self._logged = ""  # what was logged last as wrong
        self.checks: Counter[str] = Counter()
        self.last_success = 0.0
        self.reason: str | None = None
        folder = settings.model_cache or default_cache(settings)
        self._cache = Cache(folder.absolute(), source_key(self._url), settings.repository)
        try:
            self._store: Store = open_store(self._url)
        except SourceError as error:
            raise StartError(str(error)) from None

    def close(self) -> None:
        """Let another launcher use the cache."""
        self._cache.close()

    @property
    def repository(self) -> Path:
        """The model repository to serve."""
        return self._cache.repository

    def prepare(
        self, should_exit: threading.Event, on_wait: Callable[[str], None] = lambda reason: None
    ) -> bool:
        """Install what the source holds, before the server starts.

        If the source cannot be read, what it held last is served; without that, the source is
        waited for.

        Args:
            on_wait: called before each wait with the reason, a sentence.

        Returns:
            False if `should_exit` was set first.

        Raises:
            StartError: waiting would not help: the address, the credentials or the files are wrong.
        """
        attempt = 0
        while not should_exit.is_set():
            error = self._check(should_exit)
            if NETWORK in self._cache.installed:
                if error is not None:
                    self._log(f"The networks that were fetched before are served: {self._kept()}.")
                return not should_exit.is_set()
            if error is not None and not error.is_temporary:
                raise StartError(f"MODEL_SOURCE cannot be served: {error}")
            if error is not None:
                on_wait(f"It waits for the model source: {error}")
            delay = _START_DELAYS_S[min(attempt, len(_START_DELAYS_S) - 1)]
            attempt += 1
            self._wait(should_exit, delay)
        return False

    def watch(self, should_exit: threading.Event) -> None:
        """Install what the source holds whenever it changes, until `should_exit` is set."""
        poll = self._settings.model_source_poll
        while not should_exit.is_set():
            # Not all servers of a fleet at once: each loads two networks for a moment.
            self._wait(should_exit, poll * random.uniform(0.75, 1.25) if poll else None)
            try:
                if not should_exit.is_set():
                    self._check(should_exit)
            except Exception:
                self._log(f"warning: unexpected error in the model source.\n{format_exc()}")

    def check_soon(self) -> None:
        """Look at the source at once, and try again what was refused."""
        self._refused = None
        self._cache.forget_refusals()
        self._wake.set()

    def note_loaded(self, networks: Collection[str]) -> None:
        """Take note that Triton has loaded these networks as they are installed."""
        self._cache.note_loaded(networks)

    def put_back(self, network: str) -> bool:
        """Install again what was before a network that Triton does not load.

        Returns:
            Whether there was anything before.
        """
        if not self._cache.put_back(network):
            return False
        self.reason = self._not_loaded()
        version = self._cache.installed[network].version
        self._log(f"Version {version} of {network}, which was fetched before, is installed again.")
        return True

    def put_back_new(self) -> bool:
        """The same for `yolov5` when a server does not start, unless it was loaded before.

        Then something else is wrong.
        """
        return not self._cache.was_loaded(NETWORK) and self.put_back(NETWORK)

    def _not_loaded(self) -> str:
        names = ", ".join(sorted(self._cache.refused))
        return f"The server did not load what the source holds of {names}."

    def status(self) -> dict[str, Any]:
        """What the source is and what is installed of it, for operators."""
        return {
            "url": safe_url(self._url),
            "last_success": self.last_success or None,
            "reason": self.reason,
            "networks": {
                name: {"version": one.version, "published": one.published, "digest": one.digest}
                for name, one in sorted(self._cache.installed.items())
            },
        }

    def _wait(self, should_exit: threading.Event, seconds: float | None) -> None:
        """Wait until the time is over, `check_soon` was called or the server is to end."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not should_exit.is_set() and not self._wake.wait(0.25):
            if deadline is not None and time.monotonic() >= deadline:
                break
        self._wake.clear()

    def _check(self, should_exit: threading.Event) -> SourceError | None:
        """Look at the source once; returns what was wrong."""
        error: SourceError | None = None
        try:
            outcome = self._update(should_exit)
        except StoppedError:
            return None
        except SourceError as raised:
            error = raised
        except OSError as raised:
            reason = raised.strerror or type(raised).__name__
            error = SourceError(f"MODEL_CACHE cannot be written to: {reason}.", is_temporary=True)
        if error is None:
            self._succeeded(outcome)
            return None
        self.checks["refused" if error.is_refused else "failed"] += 1
        kind = "away" if error.is_temporary else str(error)
        if kind != self._logged:  # not at each look
            self._log(f"The model source {safe_url(self._url)} was not taken over: {error}")
        self.reason, self._logged = str(error), kind
        return error

    def _succeeded(self, outcome: str) -> None:
        if self._cache.refused:
            self.checks["refused"] += 1
            self.reason = self._not_loaded()
            return
        self.checks[outcome] += 1
        if self._logged:
            self._log(f"The model source {safe_url(self._url)} is taken over again.")
        self.reason, self._logged = None, ""
        self.last_success = time.time()

    def _update(self, should_exit: threading.Event) -> str:
        """Install what the source holds, all of it or nothing.

        Returns:
            The outcome.

        Raises:
            SourceError: it cannot be read, or is refused.
            OSError: the cache cannot be written to.
            StoppedError: `should_exit` was set.
        """
        content = fetch_manifest(self._store, should_exit)
        digest = hashlib.sha256(content).hexdigest()
        known = self._refused
        if known and digest == known.digest and time.monotonic() < known.until:
            raise refused(known.sentence)
        try:
            wanted = parse_manifest(content).networks
            changed = [one for one in wanted.values() if self._is_new(one)]
            removed = self._cache.installed.keys() - wanted.keys()
            if not changed and not removed:
                return "unchanged"
            started = time.monotonic()
            for network in changed:
                self._fetch(network, should_exit)
        except SourceError as error:
            if error.is_refused:
                until = time.monotonic() + _REFUSED_SECONDS
                self._refused = _Refused(digest=digest, sentence=str(error), until=until)
            raise
        self._cache.install(changed, removed)
        self._report(changed, time.monotonic() - started)
        return "installed"

    def _is_new(self, network: SourceNetwork) -> bool:
        installed = self._cache.installed.get(network.name)
        if installed is not None and installed.digest == network.digest:
            return False
        return self._cache.refused.get(network.name) != network.digest

    def _fetch(self, network: SourceNetwork, should_exit: threading.Event) -> None:
        missing = [*self._cache.missing(network)]
        needed = sum(file.size for file, _ in missing) + _RESERVE_BYTES
        if (free := self._cache.free_bytes()) < needed:
            raise SourceError(
                f"MODEL_CACHE has {free >> 20} MB free, but {network.name} needs"
                f" {needed >> 20} MB.",
                is_temporary=True,
            )
        for file, target in missing:
            fetch_file(self._store, file, target, should_exit)
        check_configs(self._cache.partial(network), network.name)
        self._cache.complete(network)

    def _report(self, networks: list[SourceNetwork], seconds: float) -> None:
        for one in networks:
            self._log(
                f"Installed version {one.version} of {one.name} from {safe_url(self._url)}"
                f" ({one.size / 1e6:.1f} MB, published {one.published or 'at an unknown time'};"
                f" {seconds:.1f} s)."
            )

    def _kept(self) -> str:
        installed = self._cache.installed.values()
        return ", ".join(f"version {one.version} of {one.name}" for one in installed)


def default_cache(settings: Settings) -> Path:
    """The folder in the user's cache for this source and this server.

    Raises:
        StartError: the user has no home folder.
    """
    digest = hashlib.sha256(source_key(settings.model_source).encode()).hexdigest()[:12]
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise StartError(
            "There is no home folder to keep networks in; set MODEL_CACHE to a folder."
        ) from None
    return folder / "yolov5-triton" / "sources" / f"{digest}-{settings.health_port}"
