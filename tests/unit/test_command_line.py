"""The command line in an unusual shell or locale, or with a reader that leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import http_recorder
from support import PHOTO

from yolov5_client._commands._run import class_list

LABELS = ("Größe ≥ 5", "猫")
LOCALES = {
    "c": {"LC_ALL": "C"},
    "c_without_utf8": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin": {"PYTHONIOENCODING": "latin-1:strict"},
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http_recorder(*LABELS) as (address, _):
        yield address


def shell(folder: Path, line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [
            "bash",
            "-c",
            f"set -o pipefail; client() {{ '{sys.executable}' -m yolov5_client._cli "
            f'"$@"; }}; {line}',
        ],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize("locale", LOCALES)
def test_labels_and_paths_of_any_script_are_printed_in_any_locale(
    server: str, tmp_path: Path, locale: str
) -> None:
    name = "Größe 猫.jpg"
    (tmp_path / name).write_bytes(PHOTO.read_bytes())
    done = shell(
        tmp_path,
        f"client detect keine-größe.jpg --server {server};"
        f" client detect '{name}' --server {server} --save-txt --save-csv --save-json --save-crop",
        **LOCALES[locale],
    )
    said = done.stdout + done.stderr
    assert b"Traceback" not in said
    assert done.returncode == 0, said
    assert done.stderr.count(b"error: ") == 1
    assert b"1 " in done.stdout
    folder = tmp_path / "runs/detect/exp"
    line = json.loads((folder / "results.jsonl").read_text("utf-8"))
    assert line["labels"] == [*LABELS]
    assert all(label in (folder / "results.csv").read_text("utf-8") for label in LABELS)
    assert all((folder / "crops").glob("*/*.jpg"))


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("client status --server {server} <&-", 0),
        ("client detect {photo} --server {server} <&-", 0),
        ("client detect - --server {server} <&-", 0),
        ("client detect {photo} --server {server} >&-", 0),
        ("client detect {photo} --server {server} <&- >&- 2>&-", 0),
        ("client status --server {server} >&-", 0),
        ("client nonsense 2>&-", 2),
        ("client --help | true", None),
        ("client status --server {server} | true", None),
        ("client detect {photo} --server {server} | true", None),
        ("client eval --help | head -c 1", None),
        ("client status --server {server} > /dev/full", 2),
    ],
)
def test_closed_or_unread_standard_streams_cause_no_traceback(
    server: str, tmp_path: Path, line: str, status: int | None
) -> None:
    done = shell(tmp_path, line.format(server=server, photo=PHOTO))
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert status is None or done.returncode == status, done.stderr


def test_each_word_after_the_classes_flag_is_one_class() -> None:
    assert class_list(["0,2", "a,b", "traffic light", "3", " x"]) == [
        *("0", "2", "a,b", "traffic light", "3", " x"),
    ]
