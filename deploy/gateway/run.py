"""`make gateway`: nginx with TLS and API keys in front of Triton and the REST service.

All files of nginx are in one folder. Missing ones are created there: a self-signed certificate, a
certificate authority for clients, an API key. The list of endpoints there follows the model
repository. If no Triton answers, the launcher is started with the flags that are not listed here.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from endpoints import EndpointList
from rest import NAME as REST
from rest import Children, RestService

from yolov5_server import Settings, StartError, exit_with_make, on_signals

HERE = Path(__file__).parent
STOP_SECONDS = 9.0  # Ctrl-C promises 10; the launcher takes 7 at most
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the gateway until a signal arrives, and return the exit status."""
    should_exit = threading.Event()
    children: Children = {}

    def exit_soon() -> None:
        if should_exit.is_set():  # a second signal ends the children at once
            for child in [*children.values()]:
                child.terminate()
        should_exit.set()

    on_signals([signal.SIGINT, signal.SIGTERM], exit_soon)
    options, launcher = _options(arguments)
    folder: Path = options.folder.absolute()
    ports = {"http_port": options.http_port, "grpc_port": options.grpc_port}
    ports["metrics_port"] = options.metrics_port
    ports["health_port"] = options.health_port or options.metrics_port + 1
    try:
        public, triton = Settings(host=options.host, **ports), Settings(**ports)
        nginx = _find_nginx()
        _check_port(public, options.port)
        rest = None if options.no_rest else folder / "rest.socket"
        _write_files(folder, public, options.port, _find_modules(nginx[0]), rest)
        endpoints = _list_endpoints(options.repository, folder)
        exit_with_make(should_exit)
        service = None
        if rest is not None:
            service = RestService(triton, rest, options.rest_flags, children, _start)
        gateway = _Gateway(should_exit, children, endpoints, service)
        try:
            if not _responds(triton, "health/live"):
                flags = [f"--{name.replace('_', '-')}={port}" for name, port in ports.items()]
                # As flags, which win over its environment: nobody but the gateway is to reach it.
                flags += [f"--host={triton.host}", f"--repository={options.repository}"]
                command = [sys.executable, "-m", "yolov5_server", *flags, *launcher]
                children["Triton"] = _start(command)
            gateway.wait_until(lambda: _any_ready(triton, endpoints.names), 0.1)
            if not should_exit.is_set():
                children["nginx"] = _start([*nginx, "-p", f"{folder}/", "-c", "nginx.conf"])
                gateway.wait_until(lambda: _accepts_connections(public, options.port), 0.05)
                gateway.wait_until(lambda: not service or service.accepts_connections(), 0.05)
                _announce(public.url(options.port), folder, rest is not None)
            gateway.wait_until(lambda: False, 0.1)
        finally:
            _shut_down(children)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


@dataclass
class _Gateway:
    """What is looked after while the gateway runs."""

    should_exit: threading.Event
    children: Children
    endpoints: EndpointList
    rest: RestService | None

    def wait_until(self, condition: Callable[[], bool], pause: float) -> None:
        """Look after everything until the condition holds or the gateway is to end.

        Raises:
            StartError: a child has ended.
        """
        while not condition() and not self.should_exit.wait(pause):
            for name, child in self.children.items():
                if name != REST and child.poll() is not None:
                    raise StartError(f"{name} ended by itself (exit status {child.returncode}).")
            if self.rest is not None:
                self.rest.keep_running()
            self.endpoints.refresh()


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    default = Settings()
    parser = argparse.ArgumentParser(prog="gateway", description=__doc__, allow_abbrev=False)
    parser.add_argument("--host", default=default.host, help="address to bind to (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=8443, help="port for HTTPS and gRPC (%(default)s)"
    )
    for name in ("http", "grpc", "metrics"):
        parser.add_argument(
            f"--{name}-port",
            type=int,
            default=getattr(default, f"{name}_port"),
            help=f"Triton's port for {name} (%(default)s)",
        )
    parser.add_argument(
        "--health-port",
        type=int,
        default=0,
        help="the launcher's port for health; by default the one after that for metrics",
    )
    parser.add_argument(
        "--repository",
        type=Path,
        default=default.repository,
        help="the model repository, whose endpoints are let through (%(default)s)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs/gateway"),
        help="folder for keys, certificates and logs (%(default)s)",
    )
    parser.add_argument("--no-rest", action="store_true", help="only Triton's own routes")
    parser.add_argument(
        "--rest-flags",
        default="",
        metavar="'FLAGS'",
        help="for the REST service, as `yolov5-client api` takes them",
    )
    return parser.parse_known_args(arguments)


def _find_nginx() -> list[str]:
    """Return the command line of nginx, without its configuration."""
    # The PATH of an ordinary user may lack the last two folders.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    found = shutil.which("nginx", path=path)
    if found is None:
        raise StartError("nginx is not installed; on Debian and Ubuntu: apt install nginx.")
    # By default the workers run as another user, who may not enter the folder.
    user = " user root;" if os.geteuid() == 0 else ""
    return [found, "-g", f"daemon off;{user}"]


def _find_modules(nginx: str) -> Path:
    """Find the folder with nginx's module for JavaScript, which inspects request bodies."""
    output = subprocess.run([nginx, "-V"], capture_output=True, text=True).stderr
    configured = re.search(r"--modules-path=(\S+)", output)
    folder = Path(configured[1] if configured else "/usr/lib/nginx/modules")
    if not (folder / "ngx_http_js_module.so").exists():
        raise StartError(
            "nginx's module for JavaScript (njs) is not installed; on Debian and Ubuntu:"
            " apt install libnginx-mod-http-js; with nginx.org's packages: nginx-module-njs."
        )
    return folder


def _check_port(settings: Settings, port: int) -> None:
    if not 1 <= port <= 65535:
        raise StartError(f"GATEWAY_PORT is {port}; allowed: 1 to 65535.")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, port))
            probe.listen()
        except OSError as error:
            raise StartError(
                f"Port {port} on {settings.host} cannot be used ({error.strerror});"
                " set GATEWAY_PORT to another one."
            ) from None


def _write_files(
    folder: Path, public: Settings, port: int, modules: Path, rest: Path | None
) -> None:
    """Write the configuration, and create the keys and certificates that are missing.

    Args:
        rest: socket of the REST service; None closes its routes.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = (HERE / "nginx.conf.template").read_text("utf-8")
    host = f"[{public.host}]" if ":" in public.host else public.host
    for name, value in {
        "MODULES": str(modules),
        "LISTEN": f"{host}:{port}",
        "TRITON_HTTP": f"127.0.0.1:{public.http_port}",
        "TRITON_GRPC": f"127.0.0.1:{public.grpc_port}",
        "REST": f"unix:{rest or 'none'}",
        "REST_ROUTES": "on" if rest else "off",
    }.items():
        text = text.replace(f"${{{name}}}", value)
    (folder / "nginx.conf").write_text(text, "utf-8")
    shutil.copyfile(HERE / "inspect.js", folder / "inspect.js")

    names = f"DNS:localhost,DNS:{socket.gethostname()},IP:127.0.0.1,IP:::1"
    if public.host not in ("127.0.0.1", "::1", "0.0.0.0", "::"):
        names += f",IP:{public.host}"
    _make_certificate(folder, "certificate", "key", f"subjectAltName={names}")
    _make_certificate(folder, "client-ca", "client-ca-key", "keyUsage=critical,keyCertSign,cRLSign")
    if not (folder / "keys.map").exists():
        key = secrets.token_hex(32)
        _write_secret(folder / "keys.map", f'"{key}" "first";\n')
        _write_secret(folder / "api-key.header", f"X-Api-Key: {key}\n")


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text, "utf-8")


def _make_certificate(folder: Path, certificate: str, key: str, extension: str) -> None:
    """Create a self-signed certificate for a year, unless it exists."""
    if (folder / f"{certificate}.pem").exists():
        return
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "365", "-subj", f"/CN=YOLOv5 gateway, {certificate}"]
    command += ["-addext", extension, "-keyout", f"{key}.pem", "-out", f"{certificate}.pem"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise StartError(
            f"openssl is not installed; install it, or put {certificate}.pem and {key}.pem"
            f" into {folder}."
        ) from None
    except subprocess.CalledProcessError as error:
        raise StartError(
            f"openssl made no {certificate}.pem: {error.stderr.strip().splitlines()[-1]}"
        ) from None


def _start(command: list[str], log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a child.

    Args:
        log: file to which its stdout is appended; otherwise it goes to this process's own.
    """
    parent = os.getpid()

    def in_child() -> None:
        # End the child if this process is killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    with ExitStack() as stack:
        # A process group of its own, which Ctrl-C does not reach.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stack.enter_context(log.open("ab")) if log else None,
            start_new_session=True,
            preexec_fn=in_child,
        )


def _list_endpoints(repository: Path, folder: Path) -> EndpointList:
    endpoints = EndpointList(repository, folder)
    try:
        endpoints.update()
    except OSError as error:
        raise StartError(f"{error.filename} cannot be used ({error.strerror}).") from None
    if not endpoints.names:
        raise StartError(
            f"{repository} has no endpoint; needed: the folders NAME and NAME_ensemble, as"
            " `make model` writes them."
        )
    return endpoints


def _any_ready(triton: Settings, endpoints: Sequence[str]) -> bool:
    """Whether an endpoint is served. A network that cannot be loaded must not stop the others."""
    return any(_responds(triton, f"models/{name}/ready") for name in endpoints)


def _responds(triton: Settings, path: str) -> bool:
    connection = HTTPConnection(triton.url(triton.http_port), timeout=1)
    try:
        connection.request("GET", f"/v2/{path}")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _accepts_connections(public: Settings, port: int) -> bool:
    host, _, _ = public.url(port).rpartition(":")
    with suppress(OSError), socket.create_connection((host.strip("[]"), port), 1):
        return True
    return False


def _announce(address: str, folder: Path, rest: bool) -> None:
    here = Path.cwd()
    shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
    curl = (
        f"  curl --cacert {shown}/certificate.pem -H @{shown}/api-key.header"
        f" -F image=@photo.jpg https://{address}/detect\n"
    )
    print(
        f"Gateway: https://{address}, and gRPC with TLS on the same port. Its files: {shown}.\n"
        "Send it a photo, with the first API key:\n"
        f"{curl if rest else ''}"
        f"  make detect SERVER=https://{address}"
        f" ARGS='--ca {shown}/certificate.pem --header @{shown}/api-key.header'\n"
        "Ctrl-C ends it.",
        flush=True,
    )


def _shut_down(children: Children) -> None:
    """End nginx and Triton gracefully; kill what is left after `STOP_SECONDS`."""
    for name, child in children.items():
        child.send_signal(signal.SIGQUIT if name == "nginx" else signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for child in children.values():
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
