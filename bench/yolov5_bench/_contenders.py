"""The contenders: how each is started, and how requests are sent to it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from yolov5_client._contract import endpoint_for

from ._checkout import Checkout
from ._load import MODEL

_CPUS = len(os.sched_getaffinity(0))
_START_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to serve the network.

    Attributes:
        sender: arguments of `_load.make_sender`; HTTP and GRPC stand for the server's addresses,
            NETWORK for the path of the ONNX file.
        service: a module beside this one and its last arguments, in which GRPC_PORT, REPOSITORY,
            MODEL and FOLDER (an empty folder) are replaced by their values; None for our server,
            () for no server.
        ready_path: the path that is answered with 200 when the server is ready; MODEL and ENDPOINT
            stand for the names of the network and of its endpoint.
        callers: a fixed number of callers.
        precision: of our server, as for `make serve`. Only with "fp32" must its answers be equal
            to the bare functions' up to rounding.
        build: further arguments of `make model`, for a repository of its own.
        flags: further ones of our launcher.
    """

    name: str
    about: str
    sender: tuple[str, ...]
    service: tuple[str, ...] | None = None
    ready_path: str = "/v2/models/ENDPOINT/ready"
    callers: int | None = None
    precision: str = "fp32"
    build: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether its answers must be the bare functions' own."""
        return self.precision == "fp32" and not self.build


CONTENDERS = (
    Contender(
        name="ours",
        about="the endpoint, over HTTP, as `make serve PRECISION=fp32` starts it",
        sender=("http", "HTTP"),
    ),
    Contender(
        name="ours-grpc",
        about="the same over gRPC, by the project's client",
        sender=("grpc", "GRPC"),
    ),
    Contender(
        name="default",
        about="the endpoint, over HTTP, as `make serve` starts it",
        sender=("http", "HTTP"),
        precision="auto",
    ),
    Contender(
        name="rect",
        about="ours, padded only to the next multiple of the stride",
        sender=("http", "HTTP"),
        build=("--letterbox=rect",),
    ),
    Contender(
        name="default-rect",
        about="default, padded only so",
        sender=("http", "HTTP"),
        precision="auto",
        build=("--letterbox=rect",),
    ),
    Contender(
        name="int8",
        about="the endpoint, over HTTP, with a network in INT8, whatever that costs (needs --data)",
        sender=("http", "HTTP"),
        precision="auto",
        build=("--int8", "--accept-loss"),
    ),
    Contender(
        name="client-side",
        about="letterbox and suppression in the client, a float tensor to a Triton of the network",
        sender=("work", "GRPC", "NETWORK"),
        service=("_triton", "GRPC_PORT", "REPOSITORY", "FOLDER", "MODEL"),
        ready_path="/v2/models/MODEL/ready",
    ),
    Contender(
        name="fastapi",
        about="FastAPI and ONNX Runtime with their own settings: 40 threads, all cores for each",
        sender=("json", "HTTP"),
        service=("_fastapi",),
        ready_path="/docs",
    ),
    Contender(
        name="fastapi-tuned",
        about="the same, as many images at once as there are cores, one thread for each",
        sender=("json", "HTTP"),
        service=("_fastapi", "1", str(_CPUS)),
        ready_path="/docs",
    ),
    Contender(
        name="litserve",
        about="LitServe, a worker for each core, one thread for each",
        sender=("base64", "HTTP"),
        service=("_litserve", str(_CPUS)),
        ready_path="/docs",
    ),
    Contender(
        name="mosec",
        about="mosec, a process for each core behind a front in Rust, one thread for each",
        sender=("json", "HTTP"),
        service=("_mosec", str(_CPUS)),
        ready_path="/",
    ),
    Contender(
        name="bare",
        about="the functions without a server, in one process, model.onnx, an image on each core",
        sender=("bare", "NETWORK"),
        service=(),
        callers=_CPUS,
    ),
)


def on_triton(name: str, folder: Path) -> list[Contender]:
    """The endpoint on another Triton: with that one's backends, and with this project's."""
    return [
        Contender(
            name=f"{name}{'-own' if own else ''}",
            about=f"ours on {folder}, with {'our' if own else 'its'} backends",
            sender=("http", "HTTP"),
            flags=(f"--triton={folder}", *own),
        )
        for own in ((), ("--own-backends",))
    ]


@dataclass
class Running:
    """A contender that has been started.

    Attributes:
        places: the values of HTTP, GRPC and NETWORK, and METRICS, the address of our metrics.
        process: the PID of the server, whose descendants belong to it; 0 for none.
        model: name of the network, where the server has a name for it.
    """

    contender: Contender
    sender: list[str]
    places: dict[str, str]
    process: int = 0
    model: str = MODEL

    @property
    def http(self) -> str:
        return self.places["HTTP"]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop our launcher, which sends an idle server an image each second."""
        if self.contender.service is not None:
            yield
            return
        os.kill(self.process, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process, signal.SIGCONT)

    def asked_as(self, contender: Contender) -> Running:
        """Return another contender that is served by the same process."""
        sender = [self.places.get(part, part) for part in contender.sender]
        return replace(self, contender=contender, sender=sender)


@contextmanager
def started(
    contender: Contender,
    *,
    network: Path,
    repository: Path,
    cpus: int = _CPUS,
    model: str = MODEL,
    checkout: Checkout | None = None,
) -> Iterator[Running]:
    """Start a contender, wait until it is ready, and end it after the block.

    Args:
        network: the ONNX file, for contenders without Triton.
        repository: the model repository, for Triton.
        cpus: number of cores that it may use.
        model: name of the network in the repository.
        checkout: whose programs are run; by default those of this process.

    Raises:
        RuntimeError: the contender does not start.
    """
    with (
        tempfile.TemporaryDirectory(prefix="yolov5-bench-", ignore_cleanup_errors=True) as folder,
        _started(contender, network, repository, cpus, folder, model, checkout) as running,
    ):
        yield running


@contextmanager
def _started(
    contender: Contender,
    network: Path,
    repository: Path,
    cpus: int,
    folder: str,
    model: str,
    checkout: Checkout | None,
) -> Iterator[Running]:
    web, grpc, metrics, health = free_ports(4)
    if contender.service == ():
        command = None
    elif contender.service is None:
        command = launcher(repository, contender.precision, (web, grpc, metrics, health))
        command += contender.flags
    else:
        module, *settings = contender.service
        values = {"GRPC_PORT": str(grpc), "REPOSITORY": str(repository), "FOLDER": folder}
        values["MODEL"] = model
        settings = [values.get(setting, setting) for setting in settings]
        command = [f"yolov5_bench.{module}", str(network), str(web), *settings]
    places = {
        "HTTP": f"127.0.0.1:{web}",
        "GRPC": f"127.0.0.1:{grpc}",
        "NETWORK": str(network),
        "METRICS": f"127.0.0.1:{metrics}",
    }
    sender = [places.get(part, part) for part in contender.sender]
    running = Running(contender, sender, places, model=model)
    if command is None:
        yield running
        return
    # A process group of its own: LitServe does not end its children.
    process = subprocess.Popen(
        [checkout.python if checkout else sys.executable, "-m", *command],
        stdout=subprocess.DEVNULL,
        env=checkout.environment if checkout else None,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus]),
    )
    try:
        path = contender.ready_path.replace("ENDPOINT", endpoint_for(model)).replace("MODEL", model)
        _wait(process, web, path)
        running.process = process.pid
        yield running
    finally:
        end_group(process)


def launcher(repository: Path, precision: str, ports: Sequence[int]) -> list[str]:
    """The arguments of `python -m` that start the launcher.

    Args:
        precision: as for `make serve`.
        ports: HTTP, gRPC, metrics, health.
    """
    names = ("http", "grpc", "metrics", "health")
    flags = [f"--{name}-port={port}" for name, port in zip(names, ports)]
    return ["yolov5_server", f"--repository={repository}", f"--precision={precision}", *flags]


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End the leader of a process group, and kill what is left of the group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        connection = http.client.HTTPConnection(f"127.0.0.1:{port}", timeout=2)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise RuntimeError("it did not start")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
