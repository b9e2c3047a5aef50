"""Sees that a running server no longer answers images, whatever it says of itself.

After the end of a model's process Triton fails every request for ever and calls itself ready. A
process that is gone is found in /proc, and anything else by an image that is not answered. The
server is ended then, for the launcher to start another: loading the one model anew is slower under
load, and Triton has been seen to fall over a lock that the dead process held.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ._health import Health
from ._preflight import STEPS
from ._processes import ModelProcess, is_alive, model_processes, read_process

_LOOK = 0.2  # seconds between two looks at the processes
_STOPPED = 1.0  # seconds that a process may be stopped: a debugger does that, too
_CANARY = 1.0  # seconds between two looks at the endpoint
_SETTLING = 10.0  # seconds after a change of networks, when only the endpoint tells


@dataclass(frozen=True, kw_only=True)
class Fault:
    """
    Attributes:
        what: a model, or `tritonserver`.
        reason: a word for the metrics.
        sentence: for the log; it ends with a full stop.
    """

    what: str
    reason: str
    sentence: str


class Watch:
    """
    Args:
        server: its process number.
        loading: held by whoever loads models.
        abandon: ends the server.
    """

    def __init__(
        self,
        *,
        server: int,
        loading: threading.Lock,
        health: Health,
        abandon: Callable[[Fault], None],
    ) -> None:
        self._server = server
        self._loading = loading
        self._health = health
        self._abandon = abandon
        self._known: dict[int, ModelProcess] = {}
        self._wanted: Counter[str] = Counter()
        self._settled = float("-inf")  # when all processes are of the network that is served
        self._stopped: dict[int, float] = {}  # since when

    def watch_processes(self, stop: threading.Event) -> None:
        """Look at them until `stop` is set, or the server has been abandoned."""
        with self._loading:
            self._take_stock()
        while not stop.wait(_LOOK):
            if not self._loading.acquire(blocking=False):
                continue  # another network is being taken over
            try:
                fault = self._dead_or_stopped()
            finally:
                self._loading.release()
            if fault and not stop.is_set():
                self._abandon(fault)
                return

    def watch_endpoint(self, stop: threading.Event) -> None:
        """Ask it until `stop` is set, or the server has been abandoned."""
        failing = False
        # One failure may be chance, such as a machine that was suspended.
        while not stop.wait(_LOOK if failing else _CANARY):
            reason = self._health.hangs()
            if reason and failing and not stop.is_set():
                sentence = f"Triton hangs: {reason}."
                self._abandon(Fault(what="tritonserver", reason="hung", sentence=sentence))
                return
            failing = reason is not None

    def others_now(self) -> None:
        """Another network was taken over; the old one's processes end in their own time."""
        self._settled = time.monotonic() + _SETTLING
        self._take_stock()

    def _take_stock(self) -> None:
        """The processes that there are now are those that there should be. With `loading` held."""
        self._known = model_processes(self._server)
        self._wanted = Counter(process.model for process in self._known.values())

    def _dead_or_stopped(self) -> Fault | None:
        if time.monotonic() < self._settled:
            self._take_stock()
        if not is_alive(self._server):
            return None  # and so they are, too; the launcher sees to that
        now = {pid: read_process(pid, self._server) for pid in self._known}
        for pid, process in now.items():
            if process is None or not process.stopped:
                self._stopped.pop(pid, None)
            elif time.monotonic() - self._stopped.setdefault(pid, time.monotonic()) > _STOPPED:
                sentence = f"{process.model}: its process {pid} is stopped."
                return Fault(what=process.model, reason="stopped", sentence=sentence)
        gone = [pid for pid, process in now.items() if process is None]
        if not gone:
            return None
        there = model_processes(self._server)
        counts = Counter(process.model for process in there.values())
        for pid in gone:
            model = self._known[pid].model
            if model in STEPS and counts[model] < self._wanted[model]:
                sentence = f"{model}: its process {pid} has died."
                return Fault(what=model, reason="died", sentence=sentence)
        self._known = there  # others have taken their place: another network was taken over
        return None
