"""The compose file of deploy/compose is valid, confined, and agrees with the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import DOCKER_COMPOSE, needs_compose, needs_helm, rendered, resource, resources
from support import ROOT

from yolov5_client._cli import _parser
from yolov5_server import Settings

COMPOSE = ROOT / "deploy" / "compose"
MONITORING = ROOT / "deploy" / "monitoring"


def composed(*files: str) -> dict[str, Any]:
    """The services as docker compose understands them."""
    result = subprocess.run(
        [DOCKER_COMPOSE, *(f"--file={COMPOSE / file}" for file in files), "config"],
        env={**os.environ, "YOLOV5_IMAGE": "", "DOCKER_HOST": "unix:///nowhere"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    services: dict[str, Any] = yaml.safe_load(result.stdout)["services"]
    return services


@needs_compose
def test_compose_file_is_valid() -> None:
    assert set(composed("compose.yaml")) == {"server", "rest", "prometheus", "grafana"}


@needs_compose
def test_server_takes_a_gpu_with_the_second_file() -> None:
    server = composed("compose.yaml", "compose.gpu.yaml")["server"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"]) == ("nvidia", 1)
    assert server["build"]["dockerfile"] == "build/Dockerfile"
    assert "-gpu:" in server["image"]


@needs_compose
def test_services_are_confined_and_for_this_machine_alone() -> None:
    for name, service in composed("compose.yaml").items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) > 0, name
        assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}, name


@needs_compose
def test_rest_service_is_given_flags_that_it_knows() -> None:
    rest = composed("compose.yaml")["rest"]
    assert rest["entrypoint"] == ["yolov5-client", "api"]
    options = _parser().parse_args(["api", *rest["command"]])
    assert (options.server, options.health) == ("server:8001", "http://server:8003")
    assert {port["target"] for port in rest["ports"]} == {options.port}


@needs_compose
def test_files_that_are_mounted_are_there() -> None:
    mounted = [
        Path(volume["source"])
        for service in composed("compose.yaml").values()
        for volume in service.get("volumes", ())
        if volume["type"] == "bind"
    ]
    assert mounted and all(path.is_file() for path in mounted)


@needs_compose
@needs_helm
def test_shared_memory_is_as_large_as_the_chart_makes_it() -> None:
    deployment = resource(resources(rendered("default")), "Deployment")
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    (size,) = (one["emptyDir"]["sizeLimit"] for one in volumes if one["name"] == "shared-memory")
    wanted = int(size.removesuffix("Mi")) << 20
    assert int(composed("compose.yaml")["server"]["shm_size"]) == wanted


def test_prometheus_asks_the_ports_of_the_launcher() -> None:
    (job,) = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for one in job["static_configs"] for target in one["targets"]}
    ports = Settings().ports
    assert targets == {
        f"server:{ports['METRICS_PORT']}",
        f"server:{ports['HEALTH_PORT']}",
        "rest:8080",
    }
    assert "yolov5" in job["job_name"]  # by which the rules find it


def test_prometheus_accepts_its_configuration(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    text = (COMPOSE / "prometheus.yml").read_text()
    rules = MONITORING / "rules.yaml"
    path = tmp_path / "prometheus.yml"
    path.write_text(text.replace("/etc/prometheus/rules.yaml", str(rules)))
    result = subprocess.run(
        [promtool, "check", "config", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SUCCESS" in result.stdout
