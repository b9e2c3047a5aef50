"""Shared by the tests of deploy/monitoring: its queries, and a Prometheus that asks them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from support import ROOT, free_ports

MONITORING = ROOT / "deploy" / "monitoring"
VARIABLES = {"job": ".*", "instance": ".*", "baseline": "1m", "__rate_interval": "1m"}


def dashboard_queries() -> Iterator[str]:
    """The queries of the dashboard, with its variables."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def substitute(query: str) -> str:
    """The query as Grafana asks it."""
    for name, value in VARIABLES.items():
        query = query.replace(f"${name}", value)
    return query


@dataclass
class RunningPrometheus:
    """A Prometheus started by a test."""

    process: subprocess.Popen[bytes]
    port: int

    def query(self, query: str) -> list[dict[str, Any]]:
        """Ask for the present value; return the series that the answer has."""
        return list(self._ask("query", {"query": query})["result"])

    def value(self, query: str) -> float | None:
        """The value of the only series of the answer; None if there is none."""
        found = self.query(query)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {
            str(one["labels"]["alertname"])
            for one in self._ask("alerts", {})["alerts"]
            if one["state"] == "firing"
        }

    def healthy_rules(self) -> set[str]:
        """The states of health that the rules have."""
        groups = self._ask("rules", {})["groups"]
        return {str(rule["health"]) for group in groups for rule in group["rules"]}

    def wait_for(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait until it holds; return the seconds that it took."""
        started = time.monotonic()
        while not condition():
            waited = time.monotonic() - started
            assert waited < seconds, f"{what}: not within {seconds:g} s"
            time.sleep(0.25)
        return time.monotonic() - started

    def _ask(self, route: str, parameters: Mapping[str, str]) -> Any:
        address = f"http://127.0.0.1:{self.port}/api/v1/{route}"
        body = urllib.parse.urlencode(parameters).encode() if parameters else None
        with urllib.request.urlopen(address, body, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        return found["data"]


@contextmanager
def running_prometheus(
    folder: Path, targets: Mapping[str, Sequence[str]], rules: Mapping[str, Any]
) -> Iterator[RunningPrometheus]:
    """Start Prometheus, and end it at the end of the block in any case.

    Args:
        folder: an empty one, for its files.
        targets: addresses by the name of the job, asked every two seconds.
        rules: the content of the file of rules.
    """
    binary = shutil.which("prometheus")
    assert binary is not None
    (port,) = free_ports(1)
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules)))
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [*addresses]}]}
            for job, addresses in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_ready(process, port, folder / "log")
        yield RunningPrometheus(process, port)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        with suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5).close()
            return
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
