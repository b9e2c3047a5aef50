"""Notice that a running server no longer answers images, even if it calls itself ready.

After a model's process has died, Triton fails every request for ever and calls itself ready. The
watchdog looks at the processes, and finds any other fault by an image that is not answered. The
launcher then restarts the whole server: reloading one model is slower under load, and Triton was
seen to crash over a lock that the dead process held.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

import psutil

from ._console import log
from ._hang import HangDetector
from ._health import Health
from ._probe import BUSY_REASONS
from ._processes import ModelProcess, cpu_seconds, is_alive, is_stopped, model_processes
from ._repository import NETWORK, endpoint_name

_POLL_SECONDS = 0.2  # between two checks of the processes
_STOPPED_SECONDS = 1.0  # that a process may be stopped, as by a debugger
_CANARY_SECONDS = 1.0  # between two checks of the endpoint


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a server has ended, or has to be ended.

    Attributes:
        what: a model, or `tritonserver`.
        reason: a word for the metrics.
        sentence: for the log; it ends with a full stop.
    """

    what: str
    reason: str
    sentence: str


class Watchdog:
    """Watches the processes and the endpoint of one server.

    Args:
        server: Triton's process number.
        loading: held while models are being loaded.
        health: of this server.
        on_fault: called with the first fault; ends the server.
        have_processes: whether each model certainly has one; otherwise only those that had.
    """

    def __init__(
        self,
        *,
        server: int,
        loading: threading.Lock,
        health: Health,
        on_fault: Callable[[Fault], None],
        have_processes: bool = False,
    ) -> None:
        self._server = psutil.Process(server)
        self._loading = loading
        self._health = health
        self._on_fault = on_fault
        self._have_processes = have_processes
        self._lock = threading.Lock()  # guards the attributes below
        self._expected: list[ModelProcess] = []
        self._previous: list[ModelProcess] = []  # expected before the models began to change
        self._seen: set[psutil.Process] = set()  # all processes at the last `expect`
        self._missing: str | None = None  # a model that should answer and has no process
        self._stopped: dict[psutil.Process, float] = {}  # since when
        self._blamed: set[str] = set()  # networks whose endpoints have never answered

    def expect(self, models: Collection[str] | None) -> None:
        """Set the models that answer from now on; their latest processes must not end.

        Earlier processes end once their last request is answered, and that is no fault.

        Args:
            models: None while the models are changing: until the next call no end is a fault.
        """
        with self._lock:
            self._previous = self._expected or self._previous
            self._expected = []
            if models is None:
                return
            running = model_processes(self._server.pid)
            last = {one.process for one in self._previous}
            # After a reload a step's model has another name, such as yolov5.2.
            had_process = {one.step for one in self._previous}
            for model in models:
                own = [one for one in running if one.model == model]
                step = model.partition(".")[0]
                if not own and (self._have_processes or step in had_process):
                    self._missing = model  # its process ended after the model was loaded
                fresh = [one for one in own if one.process not in self._seen]
                # Triton does not reload a model whose files are unchanged: its process stays.
                kept = [one for one in own if one.process in last]
                youngest = sorted(own, key=lambda one: one.started)[-1:]
                self._expected += fresh or kept or youngest
            self._seen = {one.process for one in running}

    def watch_processes(self, should_exit: threading.Event) -> None:
        """Watch the processes until `should_exit` is set or a fault is found."""
        # That Triton itself has ended is reported by `Server.wait`.
        while not should_exit.is_set() and is_alive(self._server):
            with self._lock:
                fault = self._find_fault()
                pids = [one.process.pid for one in self._expected]
            if fault:
                if not should_exit.is_set():
                    self._on_fault(fault)
                return
            _wait_for_exit(pids, _POLL_SECONDS)

    def watch_endpoints(self, should_exit: threading.Event) -> None:
        """Watch the endpoints, one after the other, until `should_exit` is set or there is a fault.

        One that fails is watched alone until it answers or the server is ended.
        """
        detector, network = HangDetector(), NETWORK
        while not should_exit.wait(_POLL_SECONDS if detector.is_failing else _CANARY_SECONDS):
            networks = self._health.networks or [NETWORK]
            if network not in networks:
                detector.reset()
                network = networks[0]
            elif not detector.is_failing:
                network = networks[(networks.index(network) + 1) % len(networks)]
            if verdict := self._judge(network, detector):
                if not should_exit.is_set():
                    sentence = f"Triton hangs: {verdict}."
                    self._on_fault(Fault(what="tritonserver", reason="hung", sentence=sentence))
                return

    def _judge(self, network: str, detector: HangDetector) -> str | None:
        """Why the server should be ended, as this network's endpoint shows; None if it should not.

        Progress is that of the endpoint: the others go on when one network's process hangs.
        """
        reason = self._health.unanswered_reason(network)
        if reason is None or self._loading.locked():  # a network is being reloaded
            if reason is None:
                self._blamed.discard(network)
            detector.reset()
            return None
        verdict = detector.judge(
            reason,
            may_be_busy=reason in BUSY_REASONS,
            now=time.monotonic(),
            cpu=cpu_seconds(self._server.pid),
            finished=self._health.finished_images(network),
        )
        if verdict and self._health.is_to_blame(network):
            self._blame(network, verdict)
            detector.reset()
            return None
        return verdict

    def _blame(self, network: str, verdict: str) -> None:
        """Say once that an endpoint does not work, which is no reason to end the others."""
        if network not in self._blamed:
            self._blamed.add(network)
            log(f"{endpoint_name(network)} cannot be used: {verdict}. The other endpoints go on.")

    def _find_fault(self) -> Fault | None:
        if self._is_stopped_too_long(self._server):
            sentence = f"tritonserver: its process {self._server.pid} is stopped."
            return Fault(what="tritonserver", reason="stopped", sentence=sentence)
        if self._missing is not None and is_alive(self._server):
            step = self._missing.partition(".")[0]
            sentence = f"{self._missing}: its process has died."
            return Fault(what=step, reason="died", sentence=sentence)
        for one in self._expected:
            if not is_alive(one.process):
                if not is_alive(self._server):
                    return None  # Triton itself has ended, and its model processes with it
                sentence = f"{one.model}: its process {one.process.pid} has died."
                return Fault(what=one.step, reason="died", sentence=sentence)
            if self._is_stopped_too_long(one.process):
                sentence = f"{one.model}: its process {one.process.pid} is stopped."
                return Fault(what=one.step, reason="stopped", sentence=sentence)
        return None

    def _is_stopped_too_long(self, process: psutil.Process) -> bool:
        if not is_stopped(process):
            self._stopped.pop(process, None)
            return False
        stopped_at = self._stopped.setdefault(process, time.monotonic())
        return time.monotonic() - stopped_at > _STOPPED_SECONDS


def _wait_for_exit(pids: Collection[int], seconds: float) -> None:
    """Wait until one of these processes has ended, at most for so many seconds."""
    descriptors: list[int] = []
    poll = select.poll()
    try:
        for pid in pids:
            with suppress(OSError):  # it has ended, or this kernel has no pidfd
                descriptors.append(os.pidfd_open(pid))
                poll.register(descriptors[-1], select.POLLIN)
        poll.poll(seconds * 1000)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
