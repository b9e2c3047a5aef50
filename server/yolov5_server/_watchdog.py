"""Sees that a running server no longer answers images, whatever it says of itself.

After the end of a model's process Triton fails every request for ever and calls itself ready. A
process that is gone is found in /proc, and anything else by an image that is not answered. The
server is ended then, for the launcher to start another: loading the one model anew is slower under
load, and Triton has been seen to fall over a lock that the dead process held.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from ._hang import HangDetector
from ._health import BUSY_REASONS, Health
from ._processes import (
    ModelProcess,
    cpu_seconds,
    is_alive,
    is_stopped,
    model_processes,
    read_process,
)

_POLL_SECONDS = 0.2  # seconds between two looks at the processes
_STOPPED_SECONDS = 1.0  # seconds that a process may be stopped: a debugger does that, too
_CANARY_SECONDS = 1.0  # seconds between two looks at the endpoint


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


class Watchdog:
    """
    Args:
        server: its process number.
        loading: held by whoever loads models.
        on_fault: called with the first fault; ends the server.
    """

    def __init__(
        self,
        *,
        server: int,
        loading: threading.Lock,
        health: Health,
        on_fault: Callable[[Fault], None],
    ) -> None:
        self._server = server
        self._loading = loading
        self._health = health
        self._on_fault = on_fault
        self._lock = threading.Lock()  # of what follows
        self._expected: dict[int, ModelProcess] = {}
        self._previous: dict[int, ModelProcess] = {}  # before it was open
        self._seen: set[tuple[int, int]] = set()  # keys of all processes seen up to then
        self._missing: str | None = None  # one that answers and has no process
        self._stopped: dict[int, float] = {}  # since when

    def expect(self, models: Collection[str] | None) -> None:
        """Name the models that answer from now on; their latest processes have to stay.

        Those of before end in their own time, when the last of their requests is answered, and
        nothing follows from that.

        Args:
            models: None for as long as it is open which ones they are: no end counts then.
        """
        with self._lock:
            self._previous = self._expected or self._previous
            self._expected = {}
            if models is None:
                return
            there = model_processes(self._server)
            last = {process.key for process in self._previous.values()}
            had_process = {process.step for process in self._previous.values()}
            for model in models:
                own = [process for process in there.values() if process.model == model]
                if not own and model.partition(".")[0] in had_process:
                    self._missing = model  # it ended after it had been loaded
                fresh = [process for process in own if process.key not in self._seen]
                # Triton does not load anew what looks as before.
                kept = [process for process in own if process.key in last]
                youngest = sorted(own, key=lambda process: process.started)[-1:]
                self._expected |= {p.pid: p for p in fresh or kept or youngest}
            self._seen = {process.key for process in there.values()}

    def watch_processes(self, should_exit: threading.Event) -> None:
        """Look at them until `should_exit` is set, or a fault was found."""
        while not should_exit.is_set() and is_alive(self._server):  # `Server.wait` reports its end
            with self._lock:
                fault = self._find_fault()
                expected = list(self._expected)
            if fault:
                if not should_exit.is_set():
                    self._on_fault(fault)
                return
            _wait_for_exit(expected, _POLL_SECONDS)

    def watch_endpoint(self, should_exit: threading.Event) -> None:
        """Ask it until `should_exit` is set, or a fault was found."""
        detector = HangDetector()
        while not should_exit.wait(_POLL_SECONDS if detector.is_failing else _CANARY_SECONDS):
            reason = self._health.hangs()
            if reason is None or self._loading.locked():  # another network is being taken over
                detector.reset()
                continue
            verdict = detector.judge(
                reason,
                may_be_busy=reason in BUSY_REASONS,
                now=time.monotonic(),
                cpu=cpu_seconds(self._server),
                progress=self._health.progress(),
            )
            if verdict and not should_exit.is_set():
                sentence = f"Triton hangs: {verdict}."
                self._on_fault(Fault(what="tritonserver", reason="hung", sentence=sentence))
                return

    def _find_fault(self) -> Fault | None:
        if self._is_stopped_too_long(self._server, is_stopped(self._server)):
            sentence = f"tritonserver: its process {self._server} is stopped."
            return Fault(what="tritonserver", reason="stopped", sentence=sentence)
        if self._missing is not None and is_alive(self._server):
            step = self._missing.partition(".")[0]
            sentence = f"{self._missing}: its process has died."
            return Fault(what=step, reason="died", sentence=sentence)
        for pid, expected in self._expected.items():
            now = read_process(pid, self._server)
            if now is None or now.key != expected.key:
                if not is_alive(self._server):
                    return None  # they end with it
                sentence = f"{expected.model}: its process {pid} has died."
                return Fault(what=expected.step, reason="died", sentence=sentence)
            if self._is_stopped_too_long(pid, now.stopped):
                sentence = f"{expected.model}: its process {pid} is stopped."
                return Fault(what=expected.step, reason="stopped", sentence=sentence)
        return None

    def _is_stopped_too_long(self, pid: int, stopped: bool) -> bool:
        if not stopped:
            self._stopped.pop(pid, None)
            return False
        return time.monotonic() - self._stopped.setdefault(pid, time.monotonic()) > _STOPPED_SECONDS


def _wait_for_exit(pids: Collection[int], seconds: float) -> None:
    """Return as soon as one of them has ended, and after so many seconds at the latest."""
    descriptors: list[int] = []
    poll = select.poll()
    try:
        for pid in pids:
            with suppress(OSError):  # it has gone, or this kernel knows no such descriptors
                descriptors.append(os.pidfd_open(pid))
                poll.register(descriptors[-1], select.POLLIN)
        poll.poll(seconds * 1000)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
