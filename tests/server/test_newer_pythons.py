"""The client alone, with NumPy 2, on Pythons that the server does not support."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from support import PHOTO, ROOT, RunningServer

from yolov5_client import Client

SCRIPT = """
import json, sys
import numpy
from yolov5_client import Client

answers = []
for address in sys.argv[2:]:
    with Client(address) as client, open(sys.argv[1], "rb") as photo:
        answers.append(client.detect(sys.argv[1], conf_thres=0.5, classes=["RBC", 2]).to_dict())
        answers += [found.to_dict() for found in client.detect_stream([photo])]
print(json.dumps([sys.version_info[:2], int(numpy.__version__.split(".")[0]), answers]))
"""


def interpreter(version: str) -> str | None:
    """Find one that runs: pyenv puts names on the PATH of Pythons that are not selected."""
    found = [path for path in [shutil.which(f"python{version}")] if path]
    kept = (Path.home() / ".pyenv" / "versions").glob(f"{version}*/bin/python3")
    for path in [*found, *map(str, kept)]:
        asked = subprocess.run(
            [path, "-c", "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
        )
        if asked.stdout.strip() == version:
            return path
    return None


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.13", "3.14"])
def test_client_works_on_newer_pythons(server: RunningServer, tmp_path: Path, version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} with ensurepip on the PATH or in ~/.pyenv")
    # Building leaves files in the folder.
    shutil.copytree(ROOT / "client", tmp_path / "client")
    environment = tmp_path / "environment"
    subprocess.run([python, "-m", "venv", environment], check=True)
    installed = subprocess.run(
        [environment / "bin/pip", "install", "--quiet", f"{tmp_path}/client[http]"],
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr
    asked = subprocess.run(
        [environment / "bin/python", "-W", "error", "-c", SCRIPT, PHOTO, server.grpc, server.http],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert asked.returncode == 0, asked.stderr
    running, numpy, answers = json.loads(asked.stdout)
    assert running == [int(number) for number in version.split(".")]
    assert numpy == 2
    with Client(server.grpc) as client:
        wanted = client.detect(PHOTO, conf_thres=0.5, classes=["RBC", 2])
        everything = client.detect(PHOTO)
    assert len(wanted) > 1
    assert answers == [wanted.to_dict(), everything.to_dict()] * 2
    status = subprocess.run(
        [environment / "bin/yolov5-client", "status", "--server", server.grpc],
        capture_output=True,
        text=True,
    )
    assert (status.returncode, status.stderr) == (0, "")
