"""Envoy as a process of its own, in front of servers that run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import ROOT, RunningServer, free_ports

CONFIGURATION = ROOT / "deploy" / "envoy"
ENVOY = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
_PORTS = (10000, 9901, 9902)  # of envoy.yaml: traffic, admin, metrics


@dataclass
class Envoy:
    """An Envoy started by a test.

    Attributes:
        folder: with its files.
        log: file with its log and its access log.
    """

    process: subprocess.Popen[bytes]
    port: int
    admin: str
    metrics: str
    folder: Path
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask_admin(self, path: str, *, method: str = "GET") -> str:
        request = urllib.request.Request(f"{self.admin}{path}", method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.read().decode())

    def set_traffic(self, *, canary: int = 0, shadow: int = 0) -> None:
        """Set the percentages as README.md says, and wait until Envoy has them."""
        text = (self.folder / "traffic.yaml").read_text()
        lines = []
        for line in text.splitlines():
            name, colon, _ = line.partition(": ")
            wanted = {"yolov5.canary": canary, "yolov5.shadow": shadow}.get(name.strip())
            lines.append(line if wanted is None else f"{name}{colon}{wanted}")
        (self.folder / "traffic.new").write_text("\n".join(lines))
        (self.folder / "traffic.new").replace(self.folder / "traffic.yaml")
        self._wait_for(lambda: self._runtime() == {"canary": canary, "shadow": shadow})

    def _runtime(self) -> dict[str, int]:
        entries = json.loads(self.ask_admin("/runtime"))["entries"]
        return {
            name: int(entries[f"yolov5.{name}"]["final_value"]) for name in ("canary", "shadow")
        }

    def set_servers(self, lines: Sequence[str], *, ready: Mapping[str, int] | None = None) -> None:
        """Replace the list of servers, and wait for so many ready ones of these clusters."""
        write_servers(self.folder, lines)
        self.wait_ready(ready or {})

    def wait_ready(self, wanted: Mapping[str, int], seconds: float = 60) -> None:
        """Wait until exactly so many servers of these clusters get requests."""
        self._wait_for(lambda: {name: self.ready()[name] for name in wanted} == wanted, seconds)

    def ready(self) -> Counter[str]:
        """Number of servers that get requests, by cluster."""
        found: Counter[str] = Counter()
        for cluster in json.loads(self.ask_admin("/clusters?format=json"))["cluster_statuses"]:
            for host in cluster.get("host_statuses", []):
                health = dict(host["health_status"])
                found[cluster["name"]] += health == {"eds_health_status": "HEALTHY"}
        return found

    def stat(self, name: str) -> int:
        """A counter or gauge of Envoy; 0 before it is used for the first time."""
        for line in self.ask_admin(f"/stats?filter=^{name}$").splitlines():
            return int(line.rpartition(": ")[2])
        return 0

    def requests(self, group: str) -> int:
        """Number of requests that servers of this group have got, retries included."""
        return sum(
            self.stat(f"cluster.{group}-{protocol}.upstream_rq_total")
            for protocol in ("http", "grpc")
        )

    def _wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < deadline, self.ask_admin("/clusters")
            time.sleep(0.05)


def line(server: RunningServer, group: str = "stable", more: str = "") -> str:
    """A server's line in the list."""
    http, grpc, _, health = server.ports
    return f"{group} 127.0.0.1 {http} {grpc} {health} {more}".rstrip()


def write_servers(folder: Path, lines: Sequence[str]) -> None:
    """Write Envoy's files of servers, with the program that operators use."""
    (folder / "servers.txt").write_text("\n".join(lines))
    subprocess.run(
        [sys.executable, CONFIGURATION / "servers.py", folder / "servers.txt", folder],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def write_configuration(folder: Path, changes: Mapping[str, str]) -> list[int]:
    """Copy Envoy's files, with other ports and these texts replaced; return the ports."""
    ports = free_ports(len(_PORTS))
    shutil.copy(CONFIGURATION / "traffic.yaml", folder)
    text = (CONFIGURATION / "envoy.yaml").read_text()
    replaced = {f"port_value: {old} ": f"port_value: {new} " for old, new in zip(_PORTS, ports)}
    for old, new in [*replaced.items(), *changes.items()]:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "envoy.yaml").write_text(text)
    return ports


def start_envoy(folder: Path, flags: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start Envoy with the files of this folder; its log is appended to `log` there."""
    assert ENVOY is not None
    with (folder / "log").open("a") as file:
        return subprocess.Popen(
            [ENVOY, "-c", "envoy.yaml", "--concurrency", "2", *flags],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


@contextmanager
def running_envoy(
    folder: Path,
    lines: Sequence[str],
    changes: Mapping[str, str] | None = None,
    *,
    flags: Sequence[str] = ("--disable-hot-restart",),
) -> Iterator[Envoy]:
    """Start Envoy, wait until it passes requests on, and end it at the end of the block.

    Args:
        folder: for its files; must exist.
        lines: the list of servers.
        changes: texts of `envoy.yaml` to replace.
        flags: of Envoy.
    """
    write_servers(folder, lines)
    port, admin, metrics = write_configuration(folder, changes or {})
    process = start_envoy(folder, flags)
    admin_url, metrics_url = f"http://127.0.0.1:{admin}", f"http://127.0.0.1:{metrics}"
    envoy = Envoy(process, port, admin_url, metrics_url, folder, folder / "log")
    try:
        envoy._wait_for(lambda: _is_open(envoy))
        yield envoy
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_open(envoy: Envoy) -> bool:
    try:
        with urllib.request.urlopen(f"http://{envoy.address}/v2/health/ready", timeout=5):
            return True
    except (OSError, urllib.error.HTTPError):
        return False
