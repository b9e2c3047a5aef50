"""The image for CPUs, run by podman with the rights and volumes that the Helm chart gives it.

It needs an image, such as that of build/Dockerfile.cpu, by its name in the variable IMAGE.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from charts import needs_helm, rendered, resource, resources
from support import PHOTO

IMAGE = os.environ.get("IMAGE", "")
PODMAN = ("podman", "--cgroup-manager=cgroupfs", "--runtime=runc")
NAME = f"yolov5-chart-{os.getpid()}"
READY = 240  # seconds
SEND = (
    "import sys, urllib.request as u\n"
    "headers = {'Content-Type': 'application/octet-stream',"
    " 'Inference-Header-Content-Length': '0'}\n"
    "url = 'http://127.0.0.1:8000/v2/models/yolov5_ensemble/infer'\n"
    "print(u.urlopen(u.Request(url, sys.stdin.buffer.read(), headers), timeout=60).status)"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not IMAGE, reason="IMAGE names no image"),
    pytest.mark.skipif(not shutil.which("podman"), reason="podman is not installed"),
    needs_helm,
]


def podman(*arguments: str, stdin: bytes = b"") -> str:
    result = subprocess.run(
        [*PODMAN, *arguments], input=stdin, capture_output=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


def inside(code: str, stdin: bytes = b"") -> str:
    """Run Python in the container; what it prints."""
    return podman("exec", "--interactive", NAME, "python3", "-c", code, stdin=stdin).strip()


def status(path: str) -> str:
    """Answer of the health port: its status, or the name of the error."""
    return inside(
        "import urllib.request as u\n"
        f"try: print(u.urlopen('http://127.0.0.1:8003{path}', timeout=5).status)\n"
        "except OSError as error: print(getattr(error, 'code', error))"
    )


def flags(spec: dict[str, Any]) -> list[str]:
    """What podman is told, so that the container is as in the Pod."""
    (container,) = spec["containers"]
    security, user = container["securityContext"], spec["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    sizes = {
        one["name"]: one["emptyDir"]["sizeLimit"].replace("i", "").lower()
        for one in spec["volumes"]
    }
    mounts = {one["mountPath"]: sizes[one["name"]] for one in container["volumeMounts"]}
    return [
        f"--user={user['runAsUser']}:{user['runAsGroup']}",
        "--read-only",
        "--read-only-tmpfs=false",
        *(f"--cap-drop={one}" for one in security["capabilities"]["drop"]),
        "--security-opt=no-new-privileges",
        f"--shm-size={mounts.pop('/dev/shm')}",
        *(f"--tmpfs={path}:rw,exec,mode=1777,size={size}" for path, size in mounts.items()),
        *(f"--env={one['name']}={one['value']}" for one in container["env"]),
    ]


@pytest.fixture
def container() -> Iterator[None]:
    settings = ("drainSeconds=0",)
    deployment = resource(resources(rendered("default", *settings)), "Deployment")
    limits = ("--ulimit=nofile=20000:20000", "--ulimit=nproc=20000:20000")
    podman(
        "run",
        "--detach",
        f"--name={NAME}",
        "--network=none",
        "--no-healthcheck",
        *limits,
        *flags(deployment["spec"]["template"]["spec"]),
        IMAGE,
    )
    try:
        yield
    finally:
        podman("rm", "--force", NAME)


@pytest.mark.usefixtures("container")
def test_image_serves_with_the_rights_of_the_chart() -> None:
    started = time.monotonic()
    while status("/ready") != "200":
        assert time.monotonic() - started < READY
        time.sleep(1)
    assert inside("import os; print(os.getuid())") == "1000"
    rights = inside("print(open('/proc/1/status').read())")
    assert "CapEff:\t0000000000000000" in rights
    assert "NoNewPrivs:\t1" in rights
    assert "Seccomp:\t2" in rights
    assert "Read-only" in inside("try: open('/x', 'w')\nexcept OSError as error: print(error)")
    assert inside(SEND, PHOTO.read_bytes()) == "200"
    assert status("/live") == "200"
    started = time.monotonic()
    podman("stop", "--time=20", NAME)
    assert time.monotonic() - started < 15
    assert podman("inspect", "--format={{.State.ExitCode}}", NAME).strip() == "0"
