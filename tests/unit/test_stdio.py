"""Commands whose standard streams are closed, or whose encoding lacks characters."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CLIENT = "from yolov5_client._cli import main; sys.exit(main({arguments}))"
BUILD = "from yolov5_build.cli import main; sys.exit(main({arguments}))"
ENGINE = "from yolov5_build.engine import main; sys.exit(main({arguments}))"


@pytest.mark.parametrize(
    ("command", "arguments", "closed"),
    [
        (CLIENT, ["detect", "nowhere.jpg", "--server=127.0.0.1:1"], "<&- >&-"),
        (CLIENT, ["detect", "-", "--server=127.0.0.1:1"], "<&-"),
        (BUILD, ["nowhere.pt"], "<&-"),
        (ENGINE, ["--undo", "--repository=/nowhere"], "<&- >&-"),
    ],
)
def test_closed_standard_stream_causes_no_traceback(
    command: str, arguments: list[str], closed: str
) -> None:
    code = f"import sys; {command.format(arguments=arguments)}"
    found = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode in (1, 2, 3)
    assert "error: " in found.stderr
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
