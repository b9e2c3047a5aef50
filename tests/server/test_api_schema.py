"""The REST service against its own OpenAPI document, by Schemathesis."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest
from api_service import RunningApi
from openapi_spec_validator import OpenAPIV31SpecValidator

pytest.importorskip("schemathesis", reason="Schemathesis needs Python 3.11")

TESTS = Path(__file__).parents[1]


def test_document_is_valid_openapi(api: RunningApi) -> None:
    document = httpx.get(f"{api.url}/openapi.json").json()
    OpenAPIV31SpecValidator(document).validate()
    paths = httpx.post(f"{api.url}/none").json()["detail"]
    assert all(path in document["paths"] for path in re.findall("/[a-z.0-9/]+", paths)[:3])


@pytest.mark.parametrize("examples", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_answers_are_as_the_document_says(api: RunningApi, tmp_path: Path, examples: int) -> None:
    """Valid and invalid requests: no 5xx, and every answer as it is described.

    A request that fits the document may still be refused (a class that the network does not have).
    """
    before = len(api.access_log)
    program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    command = [
        *(sys.executable, "-c", program, "run", f"{api.url}/openapi.json"),
        *(f"--max-examples={examples}", "--phases=coverage,fuzzing", "--seed=1", "--no-color"),
        "--exclude-checks=positive_data_acceptance",
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks", "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    [count] = re.findall(r"(\d+) generated", done.stdout)
    assert int(count) >= 5 * examples
    statuses = Counter(one["status"] for one in api.access_log[before:])
    assert max(statuses) < 500
    assert statuses[200] > examples / 2, "the server has answered many"
    assert api.errors.read_text() == ""
