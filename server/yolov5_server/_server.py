"""Run one tritonserver: start it, wait until it is ready, end it, and leave nothing behind."""

from __future__ import annotations

import compileall
import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
from collections.abc import Callable, Collection
from http.client import HTTPException
from pathlib import Path
from traceback import format_exc
from typing import Any

from ._body_limit import body_limit_flags
from ._checks import SHARED_MEMORY
from ._console import log
from ._control import ControlError, ModelControl
from ._errors import StartError
from ._guard import GroupGuard
from ._health import Health
from ._http import open_directly
from ._loading import StartingProcesses
from ._log import LogPump
from ._models import list_models
from ._paths import make_folder, plain
from ._reload import Reloader
from ._repository import (
    ENSEMBLE,
    FIRST,
    LAST,
    NETWORK,
    chosen_configs,
    network_precision,
    read_config,
)
from ._served_metrics import served_metrics
from ._settings import FLAGS, Settings
from ._stage import CLOSED, CONFIG_NAME, MODELS, Stage, Staged
from ._tracing import trace_environment, trace_flags
from ._watchdog import Fault, Watchdog
from .embedded import assemble_backends, server_environment, triton_folder
from .source import ModelSource

STOP_SECONDS = 7.0  # until the process group is killed; Ctrl-C promises 10 s in all
_DRAIN_SECONDS = 5  # grace that Triton gives requests in flight
_READY_POLL_SECONDS = 0.05  # between two checks of a server that starts
_ORPHAN_SECONDS = _DRAIN_SECONDS + 1  # for Triton to end after this process was killed
_START_SECONDS = 900.0  # for all models to be ready; a TensorRT engine may be built first
_SHARED_MEMORY_PREFIX = "yolov5_triton_"
_CPU_RUNTIMES = {"onnxruntime": "CPUExecutionProvider", "openvino": "OpenVINO"}
_PR_SET_PDEATHSIG = 1
_REQUIRED = (FIRST, LAST, NETWORK, ENSEMBLE)  # without these the server does not start


class Server:
    """One Triton with its model processes: call `start`, then the waits, and always `close`.

    Args:
        source: where the networks come from, if they do not lie in the repository.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        source: ModelSource | None = None,
    ) -> None:
        self.settings = settings
        self._source = source
        self._health = health
        self._process: subprocess.Popen[bytes] | None = None
        self._log: LogPump | None = None
        self._folder: Path | None = None
        self._control = ModelControl(settings.url(settings.http_port))
        self._reloader: Reloader | None = None
        self._watchdog: Watchdog | None = None
        self._guard: GroupGuard | None = None
        self._starting: StartingProcesses | None = None
        self._staged: list[Staged] = []
        self._loading = threading.Lock()
        self._ended = threading.Event()
        self._fault: Fault | None = None
        self._prefix = f"{_SHARED_MEMORY_PREFIX}{os.getpid()}_{secrets.token_hex(4)}_"

    def start(self) -> None:
        """Start the process, which is not ready yet when this returns.

        Raises:
            StartError: something is missing or in the way.
        """
        _remove_stale_shared_memory()
        self._folder = make_folder()
        binary, backends = self._find_triton()
        _compile_steps(self.settings.repository)
        reloader = self._make_reloader()
        self._staged = reloader.stage_all()
        environment = server_environment(self._folder, self.settings.gpu)
        command = self._command(binary, backends)
        environment = trace_environment(self.settings, environment)
        command += body_limit_flags(binary, environment, self.settings)
        command += trace_flags(self.settings, environment)
        self._process = self._spawn(command, environment)
        assert self._process.stdout is not None
        self._log = LogPump(self._process.stdout, verbose=self.settings.verbose)
        own = self.settings.has_own_backends  # else they are in C++ and need no process
        networks = [one.model for one in self._staged] if own else []
        self._starting = StartingProcesses(
            self._process.pid, [FIRST, LAST, *networks], self._log.failures
        )
        self._guard = GroupGuard(self._process.pid, _ORPHAN_SECONDS)
        reloader.server = self._process.pid
        self._reloader = reloader

    def _find_triton(self) -> tuple[Path, Path]:
        """The binary and the folder of its backends.

        Raises:
            StartError: it is not installed.
        """
        assert self._folder is not None
        if self.settings.triton is None:
            triton = triton_folder()
        else:
            triton = plain(self.settings.triton.absolute(), self._folder, "triton")
        binary = triton / "bin" / "tritonserver"
        if not binary.is_file():
            raise StartError(f"{binary} is not there; --triton names the folder of a Triton.")
        if self.settings.has_own_backends:
            return binary, assemble_backends(triton, self._folder / "backends")
        return binary, triton / "backends"

    def _make_reloader(self) -> Reloader:
        assert self._folder is not None
        return Reloader(
            settings=self.settings,
            stage=Stage(self.settings, self._folder),
            control=self._control,
            loading=self._loading,
            on_models_changed=self._expect,
            on_endpoints_changed=self._health.serve,
            on_replaced=self._replaced,
            on_refused=lambda network: self._source is not None and self._source.put_back(network),
            on_stuck=self._on_stuck,
            log=log,
        )

    def _replaced(self, network: str) -> None:
        self._health.replaced(network)
        if self._source is not None:
            self._source.note_loaded([network])

    def _spawn(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        parent = os.getpid()

        def in_child() -> None:
            # If this process is killed outright, Triton gets SIGTERM and cleans up.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

        return subprocess.Popen(
            command,
            env=environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A group of its own: Ctrl-C reaches only this process, and stragglers can be found.
            start_new_session=True,
            preexec_fn=in_child,
        )

    def _command(self, binary: Path, backends: Path) -> list[str]:
        s = self.settings
        # HTTP and gRPC write IPv6 in two ways; with the wrong one Triton binds to another address.
        models = [
            FIRST,
            LAST,
            *(name for one in self._staged for name in (one.model, one.endpoint)),
        ]
        ipv6 = ":" in s.host
        http_address, grpc_address = (f"ipv6:{s.host}", f"[{s.host}]") if ipv6 else (s.host,) * 2
        return [
            str(binary),
            # Relative to the working directory: Triton tells callers these names.
            f"--model-repository={MODELS}",
            f"--model-repository={CLOSED}",
            # Models are loaded by name: then the launcher can load another network later, and
            # readiness is that of the server, not of every model that happens to be loading.
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in models),
            # One network that fails does not keep the others from being served.
            "--exit-on-error=false",
            "--strict-readiness=false",
            f"--backend-directory={backends}",
            f"--http-address={http_address}",
            f"--grpc-address={grpc_address}",
            f"--metrics-address={http_address}",
            f"--http-port={s.http_port}",
            f"--grpc-port={s.grpc_port}",
            f"--metrics-port={s.metrics_port}",
            f"--model-config-name={CONFIG_NAME}",
            *FLAGS.read_text("utf-8").split(),
            # Only the launcher may manage the server.
            f"--http-restricted-api={self._control.restriction}",
            f"--grpc-restricted-protocol={self._control.restriction}",
            f"--exit-timeout-secs={_DRAIN_SECONDS}",
            f"--allow-gpu-metrics={str(bool(shutil.which('nvidia-smi'))).lower()}",
            f"--log-info={str(s.verbose).lower()}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            "--backend-config=python,stub-timeout-seconds=120",  # torch from a cold, slow disk
        ]

    def wait_ready(self, should_exit: threading.Event) -> bool:
        """Wait until all models are ready.

        Returns:
            False if `should_exit` was set first.

        Raises:
            StartError: Triton ended, or is stuck.
        """
        assert self._process is not None and self._log is not None
        assert self._starting is not None
        started = time.monotonic()
        while not should_exit.wait(_READY_POLL_SECONDS):
            if self._process.poll() is not None:
                raise StartError(f"Triton did not start: {self._log.failure(_REQUIRED)}.")
            if self._log.stub_failure:
                raise StartError(f"Triton cannot start its models: {self._log.stub_failure}.")
            if self._is_ready():
                if not self._control.hide_key(self._process.pid):
                    log("warning: the key of Triton's model control is in the process list.")
                self._log.release()
                self._start_watching()
                return True
            if self._has_failed():
                raise StartError(f"Triton did not start: {self._log.failure(_REQUIRED)}.")
            if self._starting.are_stuck():
                reason = self._log.failure(_REQUIRED)
                raise StartError(f"A model's process ended while Triton was starting: {reason}.")
            if time.monotonic() - started > _START_SECONDS:
                raise StartError(f"Triton was not ready after {_START_SECONDS:.0f} s.")
        return False

    def _start_watching(self) -> None:
        assert self._process is not None and self._reloader is not None
        self._watchdog = Watchdog(
            server=self._process.pid,
            loading=self._loading,
            health=self._health,
            on_fault=self._on_fault,
            have_processes=self.settings.has_own_backends,
        )
        self._health.refused = self._reloader.refused
        try:
            self._reloader.started(self._staged)
        except ControlError as error:
            raise StartError(f"Triton does not say what it serves: {error}.") from None
        if self._source is not None:
            self._source.note_loaded(self.networks)
        self._watchdog.expect(self._reloader.models)
        for work in (
            self._reloader.watch,
            self._watchdog.watch_processes,
            self._watchdog.watch_endpoints,
        ):
            threading.Thread(target=self._run_until_exit, args=(work,), daemon=True).start()

    def _run_until_exit(self, work: Callable[[threading.Event], None]) -> None:
        """Run `work` until the server ends; log an unexpected exception and start it again."""
        while not self._ended.is_set():
            try:
                return work(self._ended)
            except Exception:
                log(f"warning: unexpected error in the launcher, which continues.\n{format_exc()}")
                self._ended.wait(1)
        return None

    def _expect(self, models: Collection[str] | None) -> None:
        if self._watchdog is not None:
            self._watchdog.expect(models)

    def _on_stuck(self, sentence: str) -> None:
        self._on_fault(Fault(what=NETWORK, reason="load", sentence=sentence))

    def _on_fault(self, fault: Fault) -> None:
        """Kill the server: it would not answer its requests anyway."""
        assert self._process is not None
        # Otherwise it has ended by itself, or is being ended.
        if self._process.poll() is None and not self._ended.is_set():
            self._health.down(fault.sentence)
            self._fault = fault
            self._process.kill()

    @property
    def precision(self) -> str:
        """Precision and backend of the network at the start, for people."""
        config = read_config(self.settings.repository, NETWORK, chosen_configs(self.settings))
        return f"{network_precision(config).upper()}, by {config.backend or config.platform}"

    @property
    def device(self) -> str:
        """What the network runs on, and by what, for people; empty if a container's Triton knows.

        A backend names a GPU in the log.
        """
        if not self.settings.has_own_backends or self._log is None:
            return ""
        if gpus := self._log.gpus.get(NETWORK):
            return f"{' and '.join(sorted(gpus))}, by {' or '.join(sorted({*gpus.values()}))}"
        config = read_config(self.settings.repository, NETWORK, chosen_configs(self.settings))
        return f"the CPU, by {_CPU_RUNTIMES.get(config.backend, config.backend)}"

    @property
    def version(self) -> int | None:
        """Version of the served network; None if Triton does not tell."""
        served = self._reloader.served.get(NETWORK) if self._reloader else None
        return served.version if served else None

    @property
    def networks(self) -> list[str]:
        """Names of the networks that are served."""
        return [*self._reloader.served] if self._reloader else []

    @property
    def further_endpoints(self) -> list[str]:
        """Names of the endpoints that are served beside the one without a name."""
        served = self._reloader.served.values() if self._reloader else ()
        return [one.staged.endpoint for one in served if one.staged.network != NETWORK]

    def list_models(self, memory: bool) -> dict[str, Any]:
        """What is served, and what is not, for operators: the answer to /models."""
        if self._reloader is None or self._process is None:
            return {"models": [], "steps": []}
        process = self._process.pid if memory else None
        return list_models(self._reloader, self._health, process)

    def metrics(self) -> str:
        """What is served and the memory of all processes, for Prometheus."""
        if self._reloader is None or self._process is None:
            return served_metrics(self.settings.repository, {}, (), None)
        served, refused = self._reloader.served, self._reloader.refused
        return served_metrics(self.settings.repository, served, refused, self._process.pid)

    def _is_ready(self) -> bool:
        return self._status("health/ready") == 200 == self._status(f"models/{ENSEMBLE}/ready")

    def _has_failed(self) -> bool:
        """Whether the server runs without the endpoint: it answers when all models were loaded.

        No answer in time, from a busy machine, says nothing.
        """
        if self._status("health/ready") != 200:
            return False
        return self._status(f"models/{ENSEMBLE}/ready") not in (None, 200)

    def _status(self, path: str) -> int | None:
        """Triton's HTTP status for this path; None without an answer."""
        base = f"http://{self.settings.url(self.settings.http_port)}/v2"
        try:
            with open_directly(f"{base}/{path}", timeout=1) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, HTTPException):
            return None

    def wait(self, should_exit: threading.Event) -> Fault | None:
        """Wait until Triton ends.

        Returns:
            Why it ended; None if `should_exit` was set first.
        """
        assert self._process is not None
        while not should_exit.wait(0.05):
            if (status := self._process.poll()) is not None:
                sentence = f"Triton ended by itself (exit status {status})."
                return self._fault or Fault(what="tritonserver", reason="ended", sentence=sentence)
        return None

    def close(self, force_exit: threading.Event) -> None:
        """End the server: politely at first, by force after a while or with `force_exit`."""
        self._ended.set()
        if self._process is not None:
            deadline = time.monotonic() + STOP_SECONDS
            self._process.terminate()
            while self._process.poll() is None and time.monotonic() < deadline:
                if force_exit.wait(0.05):
                    break
            # Its group also holds model processes that a crash left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if self._guard is not None:
                self._guard.close()
            # As the first process of a container, this one inherits the model processes.
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-self._process.pid, 0)[0]:
                    pass
        if self._log is not None:
            self._log.close()
        for region in SHARED_MEMORY.glob(f"{self._prefix}*"):
            region.unlink(missing_ok=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _compile_steps(repository: Path) -> None:
    """Write the bytecode of the steps now, whatever PYTHONDONTWRITEBYTECODE says.

    If their interpreters wrote it later, the folders would change, and Triton would load the steps
    again whenever it loads the ensemble.
    """
    for step in (FIRST, LAST):
        compileall.compile_dir(repository / step, quiet=2)


def _remove_stale_shared_memory() -> None:
    """Remove shared memory of servers that were killed together with their launcher."""
    for region in SHARED_MEMORY.glob(f"{_SHARED_MEMORY_PREFIX}*"):
        launcher = region.name.removeprefix(_SHARED_MEMORY_PREFIX).partition("_")[0]
        if launcher.isdecimal() and not Path("/proc", launcher).exists():
            with contextlib.suppress(OSError):
                region.unlink()
