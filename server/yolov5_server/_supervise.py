"""Keep a server running: start it, and start it again whenever it ends."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from ._backoff import Backoff
from ._checks import check_network, check_ports, check_repository, port_error
from ._console import log
from ._errors import StartError
from ._gpu import without_faulty_gpu
from ._health import Health
from ._health_server import HealthServer
from ._repository import NETWORK
from ._server import Server
from ._settings import Settings
from ._source_metrics import source_metrics
from ._startup import Stop, on_signals
from ._watchdog import Fault
from .source import ModelSource


def supervise(
    settings: Settings,
    stop: Stop,
    announce: Callable[[Server], None],
) -> None:
    """Keep a server running until `stop` says so.

    A server that was ready once is restarted for ever; the pause before a restart grows while the
    server keeps ending.

    Args:
        stop: what signals ask; a drain is added.
        announce: called when the first server is ready.

    Raises:
        StartError: the first server does not start.
    """
    check_ports(settings)
    if not settings.model_source:  # else it is checked when it has been fetched
        check_repository(settings)
    settings, warning = without_faulty_gpu(settings, stop.should_exit)
    if warning:
        log(warning)
    source = ModelSource(settings) if settings.model_source else None
    if source:
        on_signals([signal.SIGUSR1], source.check_soon)
    health = Health(settings)
    supervisor = _Supervisor(settings, health, announce, source)
    try:
        probes = HealthServer(settings, health, supervisor.list_models, supervisor.metrics)
    except OSError as error:
        raise port_error(settings, "HEALTH_PORT", error) from None
    stop.drain_first(settings.drain_seconds, lambda: _start_drain(settings, health))
    try:
        if supervisor.fetch(stop.should_exit):
            supervisor.run(stop.should_exit, stop.force_exit)
    finally:
        probes.shutdown()
        probes.server_close()


class _Supervisor:
    def __init__(
        self,
        settings: Settings,
        health: Health,
        announce: Callable[[Server], None],
        source: ModelSource | None,
    ) -> None:
        self._source = source
        self._settings = settings
        self._health = health
        self._announce = announce
        self._backoff = Backoff()
        self._down_since: float | None = None  # None until the first server has been ready
        self._uptime = 0.0  # of the last server, in seconds
        self._server: Server | None = None

    def list_models(self, memory: bool) -> dict[str, Any]:
        """What the present server serves."""
        found = self._server.list_models(memory) if self._server else {"models": [], "steps": []}
        return found | ({"source": self._source.status()} if self._source else {})

    def fetch(self, should_exit: threading.Event) -> bool:
        """Fetch the networks of the source, if there is one, and watch it from now on.

        Returns:
            False if `should_exit` was set first.

        Raises:
            StartError: there is nothing to serve.
        """
        if self._source is None:
            return True
        self._health.wait_for("It fetches the networks of the model source.")
        if not self._prepare(self._source, should_exit):
            return False
        self._health.down("it is starting")
        self._settings = replace(self._settings, repository=self._source.repository)
        try:
            _check_fetched(self._settings)
        except StartError:
            if not self._put_back():
                raise
            _check_fetched(self._settings)
        watch = partial(self._source.watch, should_exit)
        threading.Thread(target=watch, name="source", daemon=True).start()
        return True

    def _prepare(self, source: ModelSource, should_exit: threading.Event) -> bool:
        """Prepare the source on a thread of its own: a signal need not wait for the network."""
        done: Future[bool] = Future()

        def prepare() -> None:
            try:
                done.set_result(source.prepare(should_exit, self._health.wait_for))
            except Exception as error:
                done.set_exception(error)

        threading.Thread(target=prepare, name="source", daemon=True).start()
        while not done.done():
            if should_exit.wait(0.05):
                return False
        return done.result()

    def _put_back(self) -> bool:
        """Let the source put back a network that was never loaded; returns whether it did."""
        return self._source is not None and self._source.put_back_new()

    def metrics(self) -> str:
        """The metrics of the present server and the model source, beside those of `Health`."""
        return (self._server.metrics() if self._server else "") + source_metrics(self._source)

    def run(self, should_exit: threading.Event, force_exit: threading.Event) -> None:
        while (fault := self._run_server(should_exit, force_exit)) is not None:
            pause = self._backoff.next_pause(self._uptime)
            self._health.restarts[fault.what, fault.reason] += 1
            self._health.down(fault.sentence, pause=pause)
            when = f" in {pause:g} s" if pause else ""
            log(f"{fault.sentence} Starting Triton again{when}.")
            if should_exit.wait(pause):
                return

    def _run_server(
        self, should_exit: threading.Event, force_exit: threading.Event
    ) -> Fault | None:
        """Run one server to its end.

        Returns:
            Why it ended or did not start; None if `should_exit` was set.

        Raises:
            StartError: it did not start, and no server did before.
        """
        self._server = server = Server(self._settings, self._health, self._source)
        ready_at: float | None = None
        try:
            if self._down_since is not None:
                check_repository(self._settings)
            server.start()
            if not server.wait_ready(should_exit):
                return None
            ready_at = time.monotonic()
            self._health.up(server.networks)
            if self._down_since is None:
                self._announce(server)
            else:
                log(f"Triton is back after {ready_at - self._down_since:.1f} s.{_serving(server)}")
            if (fault := server.wait(should_exit)) is not None:
                self._health.down(fault.sentence)
            return fault
        except Exception as error:
            if should_exit.is_set():
                return None
            is_back = ready_at is None and self._put_back()
            if self._down_since is None and ready_at is None and not is_back:
                if isinstance(error, (StartError, OSError, RuntimeError)):
                    raise StartError(str(error)) from error
                raise
            sentence = f"{str(error).rstrip('.') or type(error).__name__}."
            return Fault(what="tritonserver", reason="start", sentence=sentence)
        finally:
            now = time.monotonic()
            self._uptime = 0.0 if ready_at is None else now - ready_at
            if ready_at is not None:
                self._down_since = now
            server.close(force_exit)


def _start_drain(settings: Settings, health: Health) -> bool:
    """Let `/ready` fail, so that load balancers send requests elsewhere; False without a server."""
    if not health.drain():
        return False
    log(f"Ending in {settings.drain_seconds:g} s. /ready fails; requests are still answered.")
    return True


def _check_fetched(settings: Settings) -> None:
    """
    Raises:
        StartError: what was fetched cannot be served.
    """
    check_repository(settings)
    check_network(settings, NETWORK)


def _serving(server: Server) -> str:
    """Name the served version: another network may have been installed since the last start."""
    version = server.version
    return f" It serves version {version} of the network." if version else ""
