"""A Triton that limits bodies over HTTP gets a limit that no allowed request exceeds."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from support import REPOSITORY, ROOT

from yolov5_server._body_limit import body_limit_flags, largest_body
from yolov5_server._settings import FLAGS, Settings
from yolov5_server.embedded import triton_folder

LIMIT = 30_001  # bytes of an image


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    preprocess = Path(shutil.copytree(REPOSITORY / "preprocess", tmp_path / "preprocess"))
    config = preprocess / "config.pbtxt"
    config.write_text(config.read_text().replace('"33554432"', f'"{LIMIT}"'))
    return tmp_path


def test_largest_body_holds_a_full_batch_of_the_largest_images(repository: Path) -> None:
    images = [base64.b64encode(os.urandom(LIMIT)).decode() for _ in range(8)]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [8, 1], "data": images}
    body = json.dumps({"inputs": [tensor], "parameters": {"conf_thres": 0.4}})
    escaped = body.replace("/", "\\/")
    assert (
        len(body) < len(escaped) < largest_body(Settings(repository=repository)) < 1.05 * len(body)
    )


def test_triton_without_the_limit_is_not_given_the_flag(repository: Path) -> None:
    settings = Settings(repository=repository)
    assert body_limit_flags(triton_folder() / "bin" / "tritonserver", {}, settings) == []


def test_settings_of_the_launcher_count() -> None:
    half = Settings(steps={"max_image_bytes": str(16 << 20)})
    assert largest_body(half) == pytest.approx(largest_body(Settings()) / 2, rel=0.01)


@pytest.mark.parametrize(("limit", "given"), [(str(LIMIT), True), ("many", False)])
def test_triton_that_knows_the_flag_is_given_it(repository: Path, limit: str, given: bool) -> None:
    binary = repository / "tritonserver"
    binary.write_text("#!/bin/sh\n[ $1 = --help ] && echo '  --http-max-input-size <integer>'\n")
    binary.chmod(0o755)
    config = repository / "preprocess" / "config.pbtxt"
    config.write_text(config.read_text().replace(f'"{LIMIT}"', f'"{limit}"'))
    settings = Settings(repository=repository)
    flags = body_limit_flags(binary, {}, settings)
    assert flags == ([f"--http-max-input-size={largest_body(settings)}"] if given else [])


def test_number_for_a_triton_without_the_launcher_is_documented() -> None:
    flag = f"`--http-max-input-size={largest_body(Settings())}`"
    assert flag in (ROOT / "docs" / "deployment.md").read_text()


def test_file_of_flags_can_be_put_on_a_command_line_as_it_is() -> None:
    """`$(cat server/tritonserver.flags)`: flags alone, none of which a shell would change."""
    for line in FLAGS.read_text().splitlines():
        assert re.fullmatch(r"--[a-z-]+(=[\w:.*()?-]+)?", line), line
