"""`yolov5-client batch` on a real Ray, against a real server."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from support import PHOTO, PHOTOS, RunningServer, running_server, wait_until

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pytest.importorskip("ray", reason="Ray is not installed")

import pyarrow as pa
import pyarrow.parquet as pq

from yolov5_client import Client
from yolov5_client._batch.rows import read_table
from yolov5_client._cli import main

pytestmark = [pytest.mark.server, pytest.mark.timeout(420)]

EACH = sorted(PHOTOS.glob("*.jpg"))
SIDES = ("x1", "y1", "x2", "y2")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as running:
        yield running


def command(server: RunningServer, *arguments: str | Path) -> list[str]:
    return [
        *(sys.executable, "-m", "yolov5_client._cli", "batch", *map(str, arguments)),
        *("--server", server.grpc, "--health", server.health, "--workers", "1"),
    ]


def run(server: RunningServer, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(server, *arguments), capture_output=True, text=True, timeout=300, check=False
    )


def rows(destination: Path) -> list[dict[str, Any]]:
    parts = sorted((destination / "photos").glob("*.parquet"))
    return [row for part in parts for row in read_table(part.read_bytes()).to_pylist()]


def assert_as_client(server: RunningServer, found: list[dict[str, Any]]) -> None:
    """The rows are what the client answers for the photos of the same names."""
    with Client(server.grpc) as client:
        wanted = {photo.name: client.detect(photo) for photo in EACH}
    for row in found:
        expected = wanted[Path(row["key"]).name]
        assert (row["height"], row["width"]) == expected.image_size
        detections = row["detections"]
        assert [one["label"] for one in detections] == [*expected.labels]
        boxes = np.array([[one[side] for side in SIDES] for one in detections])
        scores = np.array([one["score"] for one in detections])
        np.testing.assert_allclose(boxes, expected.boxes, atol=1e-2)
        np.testing.assert_allclose(scores, expected.scores, atol=1e-4)


def sources(folder: Path) -> list[Path]:
    """A folder, a list with photos that nobody can answer, a table and an archive of the photos."""
    table = pa.table(
        {"key": [path.name for path in EACH], "bytes": [path.read_bytes() for path in EACH]}
    )
    pq.write_table(table, folder / "table.parquet", row_group_size=5)
    with tarfile.open(folder / "archive.tar", "w") as tar:
        for path in EACH:
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            tar.addfile(member, io.BytesIO(path.read_bytes()))
    (folder / "no-photo.jpg").write_bytes(b"not a photo")
    listed = [*map(str, EACH), "no-photo.jpg", "missing.jpg"]
    (folder / "list.txt").write_text("\n".join(listed))
    names = ("list.txt", "table.parquet", "archive.tar")
    return [PHOTOS, *(folder / name for name in names)]


def test_every_kind_of_source_gives_one_row_for_each_photo(
    server: RunningServer, tmp_path: Path
) -> None:
    given = sources(tmp_path)
    ended = run(server, *given, tmp_path / "out", "--part-size", "3", "--coco")
    assert ended.returncode == 1, ended.stderr  # two photos have an error
    found = rows(tmp_path / "out")
    assert Counter(row["reason"] for row in found) == {None: 32, "refused": 1, "missing": 1}
    assert Counter(Path(row["key"]).name for row in found) == {
        **{path.name: 4 for path in EACH},
        "no-photo.jpg": 1,
        "missing.jpg": 1,
    }
    answered = [row for row in found if row["reason"] is None]
    assert_as_client(server, answered)
    assert {row["model"] for row in found} == {"yolov5"}
    assert {row["version"] for row in found} == {"1"}
    assert all(row["milliseconds"] > 0 for row in answered)
    refused = next(row for row in found if row["reason"] == "refused")
    assert "not an image of a supported format" in refused["error"]

    labels = Counter(one["label"] for row in answered for one in row["detections"])
    assert f"34 photos, {labels.total()} detections" in ended.stdout
    assert "2 photos with an error" in ended.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary == {
        "photos": 34,
        "classes": dict(labels),
        "errors": {"refused": 1, "missing": 1},
    }
    coco = [
        one
        for part in sorted((tmp_path / "out" / "coco").iterdir())
        for one in json.loads(part.read_text())
    ]
    assert Counter(one["category_name"] for one in coco) == labels

    again = run(server, *given, tmp_path / "out", "--part-size", "3")
    assert "parts are done" in again.stderr
    assert rows(tmp_path / "out") == found


def test_killed_job_is_continued_by_the_same_command(server: RunningServer, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    lines = [f"{n:03d}/{path.name},{path}" for n in range(30) for path in EACH]
    listed.write_text("key,url\n" + "\n".join(lines))
    arguments = command(server, listed, tmp_path / "out", "--part-size", "20")
    job = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    done = tmp_path / "out" / "photos"
    try:
        wait_until(lambda: done.exists() and len(list(done.glob("part-*"))) >= 2, 200)
        workers = psutil.Process(job.pid).children(recursive=True)
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait(20)
    _, left = psutil.wait_procs(workers, timeout=120)
    assert not left, [" ".join(one.cmdline())[:80] for one in left]
    before = {path.name: path.stat().st_mtime_ns for path in done.glob("part-*")}
    assert 0 < len(before) < 12
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    found = rows(tmp_path / "out")
    assert [row["key"] for row in found] == [line.partition(",")[0] for line in lines]
    assert_as_client(server, found)
    assert {name: (done / name).stat().st_mtime_ns for name in before} == before


def test_wrong_parameter_ends_the_job_before_it_begins(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["batch", str(PHOTO), str(tmp_path / "out"), "--server", server.grpc]
    assert main([*arguments, "--conf-thres", "1.5"]) == 2
    assert capsys.readouterr().err == "error: conf_thres is 1.5; allowed: a number from 0 to 1\n"
    assert not (tmp_path / "out").exists()


def test_destination_of_another_job_and_missing_source_are_refused(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", "nothing", str(tmp_path / "out"), "--server", server.grpc]) == 2
    assert "nothing does not exist" in capsys.readouterr().err


def test_no_server_ends_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", str(PHOTO), str(tmp_path / "out"), "--server", "127.0.0.1:9"]) == 3
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_source_that_stays_away_ends_the_job_by_a_sentence(
    server: RunningServer, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("http://127.0.0.1:9/photo.jpg\n")
    ended = run(server, tmp_path / "list.txt", tmp_path / "out", "--retry-for", "1")
    assert ended.returncode == 1
    assert "error: http://127.0.0.1:9 could not be read for 1 s: " in ended.stderr
    assert "The same command continues the job." in ended.stderr
    assert "Traceback" not in ended.stderr


def local_servers(mark: str) -> list[psutil.Process]:
    """The processes with this flag on their command line, other than the job and its keeper."""
    return [
        one
        for one in psutil.process_iter(["cmdline"])
        if (line := one.info["cmdline"]) and mark in line and "yolov5_server" in line
    ]


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True])
def test_job_starts_and_ends_its_own_server(tmp_path: Path, is_killed: bool) -> None:
    mark = f"--max-queue-seconds={1711 + is_killed}"
    arguments = [
        *(sys.executable, "-m", "yolov5_client._cli", "batch", str(PHOTOS), str(tmp_path / "out")),
        *("--server-flag=--precision=fp32", f"--server-flag={mark}"),
    ]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as job:
        try:
            wait_until(lambda: bool(local_servers(mark)), 120)
            if is_killed:
                job.kill()
            job.wait(300)
        finally:
            job.kill()
    if not is_killed:
        assert job.returncode == 0
        assert len(rows(tmp_path / "out")) == len(EACH)
        assert {row["version"] for row in rows(tmp_path / "out")} == {"1"}
    wait_until(lambda: not local_servers(mark), 60)
