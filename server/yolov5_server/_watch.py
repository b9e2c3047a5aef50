"""Sees that a model of a running server has died or hangs, and brings it back.

Triton does not: after the end of a model's process every request fails, for ever. Loading the
model anew helps; where it does not, the server is ended, for the launcher to start another.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

from ._control import ControlError, ModelControl
from ._errors import StartError
from ._health import SATURATED, Health, Statistics
from ._preflight import SHARED_MEMORY, STEPS, read_config
from ._processes import ModelProcess, is_alive, model_processes, read_process
from ._settings import Settings

_LOOK = 0.2  # seconds between two looks at the processes
_CANARY = 1.0  # seconds between two looks at the endpoint
_GRACE = 2.0  # seconds that old instances have to finish what they are at
_SETTLING = 10.0  # seconds after a change of networks, when only the canary tells
_STEADY = 5.0  # seconds that a model has to live for its earlier failures to be forgotten
_ATTEMPTS = 3  # loads of a model that does not, before the server is started anew


class Watch:
    """
    Args:
        server: its process number.
        loading: held by whoever loads models.
        patience: seconds that a load may take.
        abandon: ends the server, for a reason.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        server: int,
        control: ModelControl,
        loading: threading.Lock,
        health: Health,
        patience: float,
        say: Callable[[str], None],
        abandon: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._server = server
        self._control = control
        self._loading = loading
        self._health = health
        self._patience = patience
        self._say = say
        self._abandon = abandon
        self._known: dict[int, ModelProcess] = {}
        self._wanted: Counter[str] = Counter()
        self._settled = float("-inf")  # when all processes are of the network that is served
        self._attempts: Counter[str] = Counter()
        self._healed: dict[str, float] = {}  # when
        self._loads = 0

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set, or the server has been abandoned."""
        with self._loading:
            self._take_stock()
        looked = time.monotonic()
        failing: str | None = None
        while not stop.wait(_LOOK):
            if not self._loading.acquire(blocking=False):
                continue  # another network is being taken over
            try:
                if found := self._dead_or_stopped():
                    model, what = found
                    if not self._heal(model, *what, stop):
                        return
                elif time.monotonic() - looked > _CANARY:
                    looked = time.monotonic()
                    before = self._statistics() if failing else None
                    reason = self._health.check()
                    # One failure may be chance, such as a machine that was suspended.
                    if reason and failing and not self._heal_hanging(before, reason, stop):
                        return
                    failing = None if failing else reason
            finally:
                self._loading.release()

    def others_now(self) -> None:
        """Another network was taken over; the old one's processes end in their own time."""
        self._settled = time.monotonic() + _SETTLING
        self._take_stock()

    def _take_stock(self) -> None:
        """The processes that there are now are those that there should be. With `loading` held."""
        self._known = model_processes(self._server)
        self._wanted = Counter(process.model for process in self._known.values())

    def _dead_or_stopped(self) -> tuple[str, tuple[str, str]] | None:
        """A model, and what is the matter with it: a word for the metrics, and for the log."""
        if time.monotonic() < self._settled:
            self._take_stock()
        if not is_alive(self._server):
            return None  # and so they are, too; the launcher sees to that
        now = {pid: read_process(pid, self._server) for pid in self._known}
        for pid, process in now.items():
            if process is not None and process.stopped:
                return process.model, ("stopped", f"its process {pid} is stopped")
        gone = [pid for pid, process in now.items() if process is None]
        if not gone:
            return None
        there = model_processes(self._server)
        counts = Counter(process.model for process in there.values())
        for pid in gone:
            model = self._known[pid].model
            if model in STEPS and counts[model] < self._wanted[model]:
                return model, ("died", f"its process {pid} has died")
        self._known = there  # others have taken their place: another network was taken over
        return None

    def _heal(self, model: str, reason: str, sentence: str, stop: threading.Event) -> bool:
        """Load the model anew; False where the server was abandoned instead."""
        self._health.down(f"{model}: {sentence}")
        self._health.restarts[model, reason] += 1
        self._say(f"{model}: {sentence}; loading it again.")
        started = time.monotonic()
        if started - self._healed.get(model, started) > _STEADY:
            self._attempts[model] = 0
        self._attempts[model] += 1
        attempt = self._attempts[model]
        if attempt > _ATTEMPTS:
            self._abandon(f"{model} keeps failing")
            return False
        stop.wait(0 if attempt == 1 else 0.5 * 2 ** (attempt - 2))
        for process in model_processes(self._server).values():
            if process.model == model and (process.stopped or reason == "hung"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        try:
            config = read_config(self._settings.repository, model)
            # Triton does not load anew what looks as before.
            self._loads += 1
            config.parameters["network_version"].string_value = f"loaded again {self._loads}"
            self._control.load(model, config, timeout=self._patience)
            self._health.send(timeout=self._patience)
        except (ControlError, StartError, OSError) as error:
            if stop.is_set():
                return False
            self._abandon(f"{model} could not be loaded again: {error}")
            return False
        self._healed[model] = time.monotonic()
        self._health.up()
        self._say(f"{model} is back after {self._healed[model] - started:.1f} s.")
        self._clear_away(model, stop)
        self._take_stock()
        return True

    def _clear_away(self, model: str, stop: threading.Event) -> None:
        """What Triton leaves of the old instances, where one of them did not end by itself."""
        old = [process for process in self._known.values() if process.model == model]
        deadline = time.monotonic() + _GRACE
        while any(read_process(one.pid, self._server) for one in old):
            if time.monotonic() > deadline or stop.wait(0.1):
                break
        for one in old:
            if read_process(one.pid, self._server):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
            (SHARED_MEMORY / one.region).unlink(missing_ok=True)

    def _heal_hanging(self, before: Statistics | None, reason: str, stop: threading.Event) -> bool:
        """An image was sent and not answered: find the step that has it."""
        if stop.is_set():
            return False
        after = self._statistics()
        if before is None or after is None:
            self._abandon(reason)
            return False
        if reason == SATURATED:
            return True
        for step in STEPS:
            if after.answered[step] == before.answered[step]:
                return self._heal(step, "hung", reason, stop)
        self._abandon(reason)
        return False

    def _statistics(self) -> Statistics | None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return self._health.statistics()
        return None
