"""The journal of a run on a disk that is full, in a folder that others use, and cut short."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from yolov5_client._journal import JOURNAL, Journal, RunRecord, line_stem, replace_file


def frames(stem: str, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"image": "v.mp4", "frame": n, "stem": stem, **more} for n in range(count)]


def text_of(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (a folder of the kernel's)


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file grows beyond this size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_line_is_written_completely_or_not_at_all(folder: Path) -> None:
    journal = Journal(folder)
    journal.append('{"image": "ü.jpg"}')
    before = (folder / JOURNAL).read_bytes()
    assert before == '{"image": "ü.jpg"}\n'.encode()
    with (
        full_disk(len(before) + 5),
        pytest.raises(OSError, match=r"results\.jsonl cannot be written: the disk is full\.$"),
    ):
        journal.append('{"image": "next.jpg"}')
    assert (folder / JOURNAL).read_bytes() == before
    journal.append("{}")
    assert (folder / JOURNAL).read_bytes() == before + b"{}\n"
    journal.clear()
    assert (folder / JOURNAL).read_bytes() == b""
    journal.append("{}")
    assert (folder / JOURNAL).read_bytes() == b"{}\n"
    journal.close()


@pytest.mark.parametrize("rest", ["", '{"image": "c.j', "{"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_incomplete_last_line_is_cut_off_on_disk(folder: Path, count: int, rest: str) -> None:
    whole = text_of(*({"image": f"{n}.jpg", "labels": []} for n in range(count)))
    (folder / JOURNAL).write_text(whole + rest)
    journal = Journal(folder)
    assert journal.recover([]).lines == count
    assert (folder / JOURNAL).read_text() == whole
    journal.close()


def test_kept_lines_are_copied_as_they_are(folder: Path) -> None:
    kept = [{"image": "a.jpg"}, *frames("v-2", 3), {"image": "b.jpg", "text": "x" * (5 << 19)}]
    mixed = [kept[0], *frames("v", 2), *kept[1:4], *frames("v", 1), kept[4], {"image": "c.jpg"}]
    (folder / JOURNAL).write_text(text_of(*mixed) + "{")
    journal = Journal(folder)
    before = open_files()
    done = journal.recover(["v-2"])
    assert open_files() == before
    wanted = text_of(*kept, {"image": "c.jpg"})
    assert (folder / JOURNAL).read_text() == wanted
    assert [path.name for path in folder.iterdir()] == [JOURNAL]
    assert (done.lines, dict(done.images)) == (6, {"a.jpg": 1, "b.jpg": 1, "c.jpg": 1})
    with full_disk(len(wanted) + 5), pytest.raises(OSError, match="the disk is full"):
        journal.append('{"image": "next.jpg"}')
    journal.append("{}")
    assert (folder / JOURNAL).read_text() == wanted + "{}\n"
    journal.close()


def test_only_lines_of_an_incomplete_video_leave_an_empty_journal(folder: Path) -> None:
    (folder / JOURNAL).write_text(text_of(*frames("v", 2)))
    journal = Journal(folder)
    done = journal.recover([])
    assert (done.lines, done.videos, done.video_stems) == (0, {}, set())
    assert (folder / JOURNAL).read_text() == ""
    journal.close()


def test_progress_counts_images_videos_and_refusals(folder: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"image": "in/a.jpg"},
        {"image": "bad.jpg", "error": 7},
        *frames("v", 2),
        {"image": "v.mp4", "frame": 2, "stem": "v", "error": "no"},
        *frames("v-2", 1),
        {"image": "in/a.jpg", "stem": "a-2"},
    ]
    (folder / JOURNAL).write_text(text_of(*lines))
    journal = Journal(folder)
    done = journal.recover(["v", "v-2"])
    assert done.lines == 7
    assert dict(done.images) == {"in/a.jpg": 2, "bad.jpg": 1}
    assert dict(done.videos) == {"v.mp4": 2}
    assert (done.image_stems, done.video_stems) == ({"a", "a-2"}, {"v", "v-2"})
    assert done.refused == [("bad.jpg", "7"), ("v.mp4", "no")]
    journal.close()


@pytest.mark.parametrize("line", ["[]", "{}", '{"image": 1}', '{"image": "a", "stem": 1}', "x"])
def test_line_that_no_run_wrote_is_named(folder: Path, line: str) -> None:
    (folder / JOURNAL).write_text(f'{{"image": "a"}}\n{line}\n')
    journal = Journal(folder)
    with pytest.raises(ValueError, match="line 2 is not what a run has written"):
        [*journal.lines()]
    journal.close()


@pytest.mark.parametrize("is_replaced", [True, False], ids=["replaced", "removed"])
def test_journal_that_another_process_takes_away_is_opened_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_replaced: bool
) -> None:
    path, lock, tries = folder / JOURNAL, fcntl.flock, 0

    def after_another(file: int, operation: int) -> None:
        """At the first time, the file is taken away before it is locked."""
        nonlocal tries
        tries += 1
        if tries == 1:
            path.unlink()
            if is_replaced:
                path.write_text('{"image": "new"}\n')
        lock(file, operation)

    before = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", after_another)
        journal = Journal(folder)
    journal.append('{"image": "next"}')
    assert [line["image"] for line in journal.lines()] == ["new"] * is_replaced + ["next"]
    assert (tries, open_files()) == (2, before + 1)
    journal.close()
    assert open_files() == before


def test_locked_journal_leaves_no_file_open(folder: Path) -> None:
    journal = Journal(folder)
    before = open_files()
    with pytest.raises(BlockingIOError, match=f"another process writes to {folder}"):
        Journal(folder)
    assert open_files() == before
    journal.close()


def test_journal_may_be_read_and_written_as_the_umask_says(folder: Path) -> None:
    umask = os.umask(0o002)
    try:
        journal = Journal(folder)
        assert (folder / JOURNAL).stat().st_mode & 0o777 == 0o664
        (folder / JOURNAL).write_text(text_of(*frames("v", 1)))
        journal.recover([])
        assert (folder / JOURNAL).stat().st_mode & 0o777 == 0o664
        journal.close()
    finally:
        os.umask(umask)


def test_name_of_results_follows_the_line() -> None:
    assert line_stem({"image": "in/photo.jpg"}) == "photo"
    assert line_stem({"image": "in/photo.jpg", "stem": "photo-2"}) == "photo-2"


def test_run_record_is_text_for_people(folder: Path) -> None:
    RunRecord({"source": ["a.jpg"]}, "/here").write(folder)
    assert (folder / "run.json").read_text() == (
        '{\n  "options": {\n    "source": [\n      "a.jpg"\n    ]\n  },\n'
        '  "directory": "/here",\n  "videos": []\n}\n'
    )
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    with pytest.raises(FileNotFoundError, match="is not a run's folder"):
        RunRecord.read(folder / "run.json")
    (folder / "run.json").write_text('{"options": {}, "directory": "/", "videos": [1]}')
    with pytest.raises(ValueError, match="is not what a run has written"):
        RunRecord.read(folder)


def test_file_is_replaced_as_a_whole(folder: Path) -> None:
    path = folder / "one.csv"
    path.write_text("old")
    with path.open() as old:
        replace_file(path, b"new")
        assert (old.read(), path.read_text()) == ("old", "new")
    assert [*folder.iterdir()] == [path]
