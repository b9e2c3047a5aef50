"""The fuzz tests again, with five times as many inputs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_fuzz_files.py", "test_fuzz_requests.py"])
def test_many_more_inputs_are_read_or_refused(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/unit/{name}"],
        cwd=ROOT,
        env={**os.environ, "FUZZ_TIMES": "5"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout
