"""Commands whose standard streams are closed, or whose encoding lacks characters."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

CLIENT = "yolov5_client._cli"
BUILD = "yolov5_build.cli"
ENGINE = "yolov5_build.engine"


@pytest.mark.parametrize(
    ("commands", "closed"),
    [
        ({CLIENT: ["detect", "nowhere.jpg", "--server=127.0.0.1:1"]}, "<&- >&-"),
        ({CLIENT: ["detect", "-", "--server=127.0.0.1:1"]}, "<&-"),
        # In one process: each would import PyTorch.
        ({BUILD: ["nowhere.pt"], ENGINE: ["--undo", "--repository=/nowhere"]}, "<&- >&-"),
    ],
    ids=["client", "client without stdin", "build and engine"],
)
def test_closed_standard_stream_causes_no_traceback(
    commands: dict[str, list[str]], closed: str
) -> None:
    code = "import sys\n" + "".join(
        f"from {module} import main\nprint('status', main({arguments}), file=sys.stderr)\n"
        for module, arguments in commands.items()
    )
    found = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    statuses = re.findall(r"^status (.+)$", found.stderr, re.MULTILINE)
    assert len(statuses) == len(commands) and {*statuses} <= {"1", "2", "3"}
    assert len(re.findall(r"^error: ", found.stderr, re.MULTILINE)) == len(commands)
    assert "Traceback" not in found.stderr


def test_character_missing_from_the_output_encoding_is_escaped() -> None:
    code = """
import sys
from yolov5_client._cli import main
try:
    main(["--help"])
except SystemExit:
    print("caf\\u00e9")
"""
    for environment in (
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ):
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            capture_output=True,
            timeout=120,
        )
        assert found.returncode == 0, found.stderr
        assert found.stdout.splitlines()[-1].startswith(b"caf")
