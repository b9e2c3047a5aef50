"""A real server with the variables that the Helm chart gives it, probed and ended as in a Pod."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from charts import launcher_variables, needs_helm, rendered, resource, resources
from support import PHOTO, RunningServer, ask_grpc, running_server

pytestmark = needs_helm

DRAIN = 6  # seconds
CONFIDENT = 5  # detections of the photo over 0.5


def pod_spec() -> dict[str, Any]:
    settings = (f"drainSeconds={DRAIN}", "settings.host=127.0.0.1", "settings.conf_thres=0.5")
    deployment = resource(resources(rendered("default", *settings)), "Deployment")
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def status(server: RunningServer, probe: dict[str, Any]) -> int:
    """What the kubelet gets for a probe."""
    ports = dict(zip(("http", "grpc", "metrics", "health"), server.ports))
    ask = probe["httpGet"]
    url = f"http://127.0.0.1:{ports[ask['port']]}{ask['path']}"
    try:
        with urllib.request.urlopen(url, timeout=probe["timeoutSeconds"]) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_server_is_probed_and_drained_as_in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    if not {"YOLOV5_HOST", "YOLOV5_DRAIN_SECONDS"} <= launcher_variables():
        pytest.skip("the launcher takes no settings from variables")
    spec = pod_spec()
    (container,) = spec["containers"]
    for one in container["env"]:
        monkeypatch.setenv(one["name"], one["value"])
    with running_server() as server:
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert status(server, container[name]) == 200, name
        assert ask_grpc(server.grpc, [PHOTO.read_bytes()])["num_dets"].item() == CONFIDENT
        started = time.monotonic()
        server.process.terminate()
        while status(server, container["readinessProbe"]) == 200:
            assert time.monotonic() - started < DRAIN / 2
        while time.monotonic() - started < DRAIN - 1:
            assert ask_grpc(server.grpc, [PHOTO.read_bytes()])["num_dets"].item() == CONFIDENT
            assert status(server, container["livenessProbe"]) == 200
        server.process.wait(spec["terminationGracePeriodSeconds"] - (time.monotonic() - started))
        assert time.monotonic() - started >= DRAIN
