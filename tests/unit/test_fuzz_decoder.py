"""A coverage-guided fuzzer looks for a file that ends the decoder, or costs too much.

FUZZ_SECONDS says for how long (60 unless set).
"""

from __future__ import annotations

import base64
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import ROOT

from .test_fuzz_requests import SEEDS
from .test_strip import ANIMATION, EXIF, LAST, LOSSLESS, animated, chunk, frame, png

SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))


@pytest.fixture(scope="module")
def atheris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the fuzzer, which is not installed in the environment."""
    (pin,) = re.findall(r'^fuzz = \["(.+)"\]$', (ROOT / "pyproject.toml").read_text(), re.M)
    folder = tmp_path_factory.mktemp("atheris")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run = subprocess.run(
        [*install, "--no-deps", "--only-binary=:all:", f"--target={folder}", pin],
        capture_output=True,
        text=True,
    )
    if run.returncode:
        pytest.skip(f"{pin} cannot be installed here: {(run.stderr.splitlines() or [''])[-1]}")
    return folder


def corpus() -> list[bytes]:
    pages = cv2.imencodemulti(".tiff", [np.zeros((9, 7, 3), np.uint8)] * 2)[1].tobytes()
    big = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 2)
    big += struct.pack("<HHQQ", 256, 3, 1, 16) + struct.pack("<HHQQ", 257, 3, 1, 16) + bytes(8)
    more = [
        png(ANIMATION, frame(0, 30, 20, 25, 15), after=LAST),
        png(chunk(b"eXIf", EXIF), chunk(b"zTXt", b"x\0\0x"), interlaced=1),
        animated(0, 0, 30, 20, LOSSLESS),
        animated(4, 2, 10, 8, LOSSLESS),
        pages,
        big,
    ]
    small = [seed for seed in (*SEEDS, *more) if len(seed) < 4000]
    texts = [base64.b64encode(small[0]), b"data:;a=b;base64," + base64.urlsafe_b64encode(small[1])]
    return [*small, *texts]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_fuzzer_finds_no_file_that_ends_the_decoder(tmp_path: Path, atheris: Path) -> None:
    inputs, found = tmp_path / "corpus", tmp_path / "found"
    inputs.mkdir()
    found.mkdir()
    for number, data in enumerate(corpus()):
        (inputs / str(number)).write_bytes(data)
    path = [atheris, ROOT / "model_repository" / "preprocess" / "1"]
    flags = [
        "-max_len=4096",
        "-timeout=10",
        "-rss_limit_mb=2000",
        "-print_final_stats=1",
        "-seed=1",
    ]
    run = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tests" / "fuzz_decoder.py"), str(inputs), *flags),
            *(f"-max_total_time={SECONDS}", f"-artifact_prefix={found}/"),
        ],
        env={**os.environ, "PYTHONPATH": ":".join(map(str, path))},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS + 240,
    )
    output = run.stderr[-3000:]
    inputs_found = {file.name: file.read_bytes().hex() for file in found.iterdir()}
    assert not inputs_found, f"{output}\n{inputs_found}"
    assert run.returncode == 0, output
    (runs,) = re.findall(r"number_of_executed_units: (\d+)", run.stderr)
    print(f"\n{runs} files in {SECONDS} s")
