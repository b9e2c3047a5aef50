"""The same model repository on other Tritons, with their own ONNX Runtime backend in C++.

Each archive in ../shared/triton holds one, in a folder like a container's /opt/tritonserver.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, SHARED, TRITON

ARCHIVES = sorted((SHARED.parent / "triton").glob("triton-*.tar.xz"))
# What a Triton takes part in. The other files test the client, the page, the gateway and the bench.
FILES = [
    f"test_{name}.py"
    for name in (
        *("anchor_free", "batches", "closed_steps", "endpoint", "errors", "fidelity"),
        *("kept_versions", "lifecycle", "networks", "ordinary_user", "paths", "reload"),
        *("several_networks", "shedding", "supervision", "transports"),
    )
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not ARCHIVES, reason="other Tritons are not at hand"),
    pytest.mark.skipif(TRITON is not None, reason="--triton names one already"),
]


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name.partition(".tar")[0])
def test_server_tests_pass_on_another_triton(archive: Path, tmp_path: Path) -> None:
    subprocess.run(["tar", "xf", archive, "-C", tmp_path], check=True)
    (triton,) = tmp_path.glob("triton-*")
    if (triton / "unpack.sh").exists():
        subprocess.run([triton / "unpack.sh", sys.prefix], check=True)
    command = [sys.executable, "-m", "pytest", "-n0", "-m", "not slow", f"--triton={triton}"]
    files = [str(ROOT / "tests" / "server" / name) for name in FILES]
    tested = subprocess.run([*command, *files], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    summary = tested.stdout[tested.stdout.find("short test summary") :]
    print(f"\n{archive.name}: {summary}")
    assert tested.returncode == 0, tested.stdout[-20000:]
