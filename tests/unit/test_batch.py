"""The offline job without Ray: its sources, its plan, its rows."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed")

import pyarrow as pa
import pyarrow.parquet as pq

from yolov5_client import Detections, InvalidRequestError, ServerError, UnavailableError
from yolov5_client._batch.plan import PlanError, make, part_name, read_or_make, read_part
from yolov5_client._batch.questions import Questions, SourceAwayError
from yolov5_client._batch.rows import Counts, Row, read_table, to_parquet
from yolov5_client._batch.settings import BatchSettings
from yolov5_client._batch.sources import Container, Photo, SourceError, expand
from yolov5_client._batch.storage import Folder

pytestmark = pytest.mark.unit

FOUND = Detections.from_unsorted(
    boxes=[[1, 2, 3, 4], [5, 6, 7, 8]],
    scores=[0.9, 0.5],
    classes=[2, 0],
    labels=["WBC", "RBC"],
    image_size=(480, 640),
)


def settings(destination: Path, *sources: Path | str, **other: Any) -> BatchSettings:
    given = {"server": "127.0.0.1:1", **other}
    return BatchSettings(sources=tuple(map(str, sources)), destination=str(destination), **given)


def photos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


# -- sources --------------------------------------------------------------------------------------


def test_folder_yields_its_images_and_those_of_its_folders(tmp_path: Path) -> None:
    folder = photos(tmp_path / "in", "b.jpg", "a.PNG", "notes.txt", "sub/c.webp")
    assert [one.key for one in expand(str(folder)) if isinstance(one, Photo)] == [
        f"{folder}/a.PNG",
        f"{folder}/b.jpg",
        f"{folder}/sub/c.webp",
    ]


def test_glob_yields_what_it_names(tmp_path: Path) -> None:
    folder = photos(tmp_path / "in", "b.jpg", "a.jpg", "c.png")
    assert [one.key for one in expand(f"{folder}/*.jpg") if isinstance(one, Photo)] == [
        f"{folder}/a.jpg",
        f"{folder}/b.jpg",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "a.jpg\n\ns3://bucket/b.jpg\n"),
        ("list.csv", "url,key\na.jpg,first\ns3://bucket/b.jpg,\n"),
        ("list.jsonl", '{"url": "a.jpg", "key": "first"}\n{"url": "s3://bucket/b.jpg"}\n'),
    ],
)
def test_list_yields_its_addresses(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    first = "a.jpg" if name.endswith(".txt") else "first"
    assert list(expand(str(tmp_path / name))) == [
        Photo(first, f"{tmp_path}/a.jpg"),
        Photo("s3://bucket/b.jpg", "s3://bucket/b.jpg"),
    ]


def test_table_of_addresses_yields_photos_and_one_of_bytes_its_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["/x/a.jpg", "/x/b.jpg"]}), tmp_path / "urls.parquet")
    assert list(expand(str(tmp_path / "urls.parquet"))) == [
        Photo("/x/a.jpg", "/x/a.jpg"),
        Photo("/x/b.jpg", "/x/b.jpg"),
    ]
    table = pa.table({"key": ["a", "b", "c"], "bytes": [b"1", b"2", b"3"]})
    pq.write_table(table, tmp_path / "photos.parquet", row_group_size=2)
    url = str(tmp_path / "photos.parquet")
    assert list(expand(url)) == [Container(url, 0, 2), Container(url, 1, 1)]


@pytest.mark.parametrize(
    ("make_source", "sentence"),
    [
        (lambda folder: folder / "nothing", "does not exist"),
        (lambda folder: photos(folder / "empty", "notes.md"), "holds no photos"),
        (lambda folder: _written(folder / "a.csv", "path\nx.jpg\n"), "no 'url' in row 1"),
        (lambda folder: _written(folder / "a.jsonl", "[1]\n"), "not a JSON object"),
        (lambda folder: _written(folder / "a.txt", "\xff"), "holds no photos|UTF-8"),
        (lambda folder: _table(folder / "a.parquet", {"x": [1]}), "neither the column 'url'"),
    ],
)
def test_source_that_cannot_be_used_is_refused_by_a_sentence(
    tmp_path: Path, make_source: Callable[[Path], Path], sentence: str
) -> None:
    with pytest.raises(SourceError, match=sentence):
        source = make_source(tmp_path)
        list(expand(str(source)))


def _written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("latin-1"))
    return path


def _table(path: Path, columns: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# -- the plan -------------------------------------------------------------------------------------


def test_plan_divides_the_photos_and_keeps_their_order(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", *(f"{n}.jpg" for n in range(5)))
    folder = Folder(str(tmp_path / "out"))
    plan = make(folder, settings(tmp_path / "out", source, part_size=2))
    assert (plan.parts, plan.photos) == (3, 5)
    keys = [one.key for n in range(3) for one in read_part(folder, n)]  # type: ignore[union-attr]
    assert keys == [f"{source}/{n}.jpg" for n in range(5)]


def test_plan_is_read_again_by_the_same_job_and_refused_to_another(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", "a.jpg")
    folder = Folder(str(tmp_path / "out"))
    first = settings(tmp_path / "out", source)
    plan, was_there = read_or_make(folder, first)
    assert not was_there
    photos(source, "b.jpg")  # the plan stays as it was
    assert read_or_make(folder, first) == (plan, True)
    with pytest.raises(PlanError, match="other parameters"):
        read_or_make(folder, settings(tmp_path / "out", source, parameters={"conf_thres": 0.5}))


def test_interrupted_planning_is_done_again(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", "a.jpg", "b.jpg")
    folder = Folder(str(tmp_path / "out"))
    folder.write(f"_plan/{part_name(0)}", b"half a file")
    plan, was_there = read_or_make(folder, settings(tmp_path / "out", source))
    assert (plan.photos, was_there) == (2, False)
    assert len(read_part(folder, 0)) == 2  # type: ignore[arg-type]


def test_planning_a_long_list_does_not_hold_it_in_memory(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    with listed.open("w") as file:
        file.writelines(f"s3://bucket/folder-{n % 100}/photo-{n:08d}.jpg\n" for n in range(20_000))
    tracemalloc.start()
    try:
        plan = make(Folder(str(tmp_path / "out")), settings(tmp_path / "out", listed))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (plan.parts, plan.photos) == (20, 20_000)
    assert peak < 3 << 20  # the list itself, as strings, takes 4 MB


# -- rows -----------------------------------------------------------------------------------------


def test_rows_are_written_with_their_detections_and_counts() -> None:
    rows = [
        Row(key="a.jpg", found=FOUND, milliseconds=12.5),
        Row(key="b.jpg", reason="missing", error="b.jpg does not exist."),
    ]
    content = to_parquet(rows, "yolov5", "3")
    first, second = read_table(content).to_pylist()
    assert first["key"] == "a.jpg"
    assert (first["width"], first["height"], first["milliseconds"]) == (640, 480, 12.5)
    assert first["detections"][0] == {
        "label": "WBC",
        "class_id": 2,
        "score": pytest.approx(0.9),
        "x1": 1.0,
        "y1": 2.0,
        "x2": 3.0,
        "y2": 4.0,
    }
    assert second["detections"] is None
    assert (second["reason"], second["version"]) == ("missing", "3")
    counts = Counts.of_file(content)
    assert (counts.photos, counts.classes, counts.errors) == (
        2,
        {"WBC": 1, "RBC": 1},
        {"missing": 1},
    )


def test_local_files_are_written_in_one_step(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write("photos/x", b"1")
    folder.write("photos/x", b"2")
    assert folder.names("photos") == {"x"}
    assert folder.read("photos/x") == b"2"


# -- asking ---------------------------------------------------------------------------------------


class Client:
    """Answers by the bytes of a photo; the server and its client have tests of their own."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    async def detect(self, data: bytes, *, model: str, **parameters: Any) -> Detections:
        self.asked.append(data)
        await asyncio.sleep(0)
        if b"bad" in data:
            raise InvalidRequestError("image 1 of 1: not an image of a supported format")
        if b"broken" in data:
            raise ServerError("internal fault in postprocess")
        if b"away" in data:
            raise UnavailableError("nobody there")
        return FOUND


def rows_of(
    tmp_path: Path, part: list[Photo] | Container, monkeypatch: pytest.MonkeyPatch, **other: Any
) -> list[Row]:
    async def at_once(seconds: float) -> None:
        await real_sleep(0)

    real_sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    monkeypatch.setattr("yolov5_client._batch.questions.asyncio.sleep", at_once)
    questions = Questions(settings(tmp_path, "x", **other), Client())  # type: ignore[arg-type]
    return asyncio.run(questions.rows(part))


def test_poisoned_photo_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos(tmp_path, "a.jpg", "bad.jpg", "broken.jpg", "z.jpg")
    names = ["a.jpg", "bad.jpg", "broken.jpg", "missing.jpg", "z.jpg"]
    part = [Photo(name, f"{folder}/{name}") for name in names]
    rows = rows_of(tmp_path, part, monkeypatch)
    assert [row.key for row in rows] == names
    assert [row.reason for row in rows] == [None, "refused", "failed", "missing", None]
    assert rows[1].error == "not an image of a supported format"


def test_server_that_stays_away_ends_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(tmp_path, "a.jpg", "away.jpg")
    part = [Photo(name, f"{folder}/{name}") for name in ("a.jpg", "away.jpg")]
    with pytest.raises(UnavailableError):
        rows_of(tmp_path, part, monkeypatch)


def test_source_that_stays_away_ends_the_part_and_one_bad_photo_of_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(tmp_path, "a.jpg", "b.jpg")

    def read(url: str) -> bytes:
        if "a.jpg" in url:
            raise ConnectionError("cut off")
        return Path(url).read_bytes()

    monkeypatch.setattr("yolov5_client._batch.fetch._read", read)
    part = [Photo(name, f"{folder}/{name}") for name in ("a.jpg", "b.jpg")]
    rows = rows_of(tmp_path, part, monkeypatch, retry_for=60.0)
    assert [row.reason for row in rows] == ["unreadable", None]
    with pytest.raises(SourceAwayError, match=r"could not be read for 0\.05 s: cut off"):
        rows_of(tmp_path, part[:1], monkeypatch, retry_for=0.05)


def test_archive_and_table_are_read_photo_by_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "photos.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("1.jpg", "1.json", "2.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    rows = rows_of(tmp_path, Container(str(archive)), monkeypatch)
    assert [row.key for row in rows] == [f"{archive}/1.jpg", f"{archive}/2.jpg"]
    table = tmp_path / "photos.parquet"
    pq.write_table(pa.table({"key": ["a", "b", "c"], "bytes": [b"1", b"2", b"bad"]}), table)
    rows = rows_of(tmp_path, Container(str(table), 0), monkeypatch)
    assert [(row.key, row.reason) for row in rows] == [("a", None), ("b", None), ("c", "refused")]


def test_damaged_archive_costs_what_is_behind_the_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "photos.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("1.jpg", "2.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 1000
            tar.addfile(member, io.BytesIO(bytes(1000)))
    archive.write_bytes(archive.read_bytes()[:2100])
    rows = rows_of(tmp_path, Container(str(archive)), monkeypatch)
    assert [(row.key, row.reason) for row in rows] == [
        (f"{archive}/1.jpg", None),
        (str(archive), "unreadable"),
    ]


def test_storage_that_is_away_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder("memory://results", 30.0)
    system, _ = folder._opened
    failures = iter([ConnectionError("refused"), TimeoutError("nobody")])
    write = type(system).pipe_file

    def flaky(self: Any, path: str, content: bytes) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure
        write(self, path, content)

    monkeypatch.setattr(type(system), "pipe_file", flaky)
    folder.write("a", b"1")
    assert folder.read("a") == b"1"
    with pytest.raises(FileNotFoundError):
        folder.read("b")


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"part_size": 0}, "--part-size is 0"),
        ({"workers": -1}, "--workers is -1"),
        ({"server": None, "health": "http://x"}, "--health needs --server"),
        ({"server_flags": ("--gpu=0",)}, "--server-flag is for servers"),
    ],
)
def test_settings_are_checked(tmp_path: Path, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        settings(tmp_path, "x", **given)


def test_detections_of_a_row_are_those_of_the_client() -> None:
    row = read_table(to_parquet([Row(key="a", found=FOUND)], "yolov5", None)).to_pylist()[0]
    boxes = np.array(
        [[one[side] for side in ("x1", "y1", "x2", "y2")] for one in row["detections"]]
    )
    np.testing.assert_array_equal(boxes, FOUND.boxes)
    assert json.loads(Counts().to_json()) == {"photos": 0, "classes": {}, "errors": {}}


def test_each_row_has_its_own_detections() -> None:
    none = Detections.from_unsorted(
        boxes=np.empty((0, 4)), scores=[], classes=[], labels=[], image_size=(480, 640)
    )
    found = [FOUND, None, none, None, FOUND]
    rows = [Row(key=f"{n}", found=one) for n, one in enumerate(found)]
    column = [row["detections"] for row in read_table(to_parquet(rows, "yolov5", None)).to_pylist()]
    labels = [None if one is None else [each["label"] for each in one] for one in column]
    assert labels == [["WBC", "RBC"], None, [], None, ["WBC", "RBC"]]
    assert read_table(to_parquet(rows[1:2], "yolov5", None)).to_pylist()[0]["detections"] is None
