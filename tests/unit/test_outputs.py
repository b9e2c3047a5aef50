from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support import PHOTO, no_detections, some_detections

from yolov5_client import Detections
from yolov5_client._draw import Picture, crop, decode, draw, write
from yolov5_client._journal import JOURNAL, Journal, Progress, RunRecord
from yolov5_client._outputs import (
    OutputOptions,
    ResultWriter,
    UniqueStems,
    crop_name,
    frame_stem,
    write_coco,
    write_csv,
)

# -- Detections as JSON ----------------------------------------------------------------------


def test_json_round_trips_the_exact_floats() -> None:
    random = np.random.default_rng(0)
    boxes = (random.random((500, 4)) * 10 ** random.uniform(-6, 5, (500, 4))).astype(np.float32)
    scores = random.random(500).astype(np.float32)
    classes = np.arange(500, dtype=np.int32)
    found = some_detections(boxes=boxes, scores=scores, classes=classes, labels=("ü",) * 500)
    text = json.dumps(found.to_dict())
    back = Detections.from_dict(json.loads(text))
    for name in ("boxes", "scores", "classes"):
        one, other = getattr(back, name), getattr(found, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert (back.labels, back.image_size) == (found.labels, found.image_size)
    assert json.dumps(some_detections().to_dict()["scores"]) == "[0.9, 0.5]", (
        "the shortest decimals"
    )


def test_json_round_trips_no_detections() -> None:
    back = Detections.from_dict({"image": "a.jpg", **no_detections().to_dict()})
    assert (len(back), back.boxes.shape) == (0, (0, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": None}, "^boxes is not"),
        ({"boxes": [[1, 2, 3], [1, 2, 3]]}, "^boxes is not"),
        ({"scores": [0.9, "high"]}, "^scores is not"),
        ({"scores": [0.9]}, "^scores has shape"),
        ({"scores": [0.9, float("nan")]}, "^scores is not"),
        ({"classes": [1, 2.5]}, "^classes is not"),
        ({"classes": [1, 2**31]}, "^classes is not"),
        ({"classes": [True, False]}, "^classes is not"),
        ({"labels": [1, 2]}, "^labels is not"),
        ({"image_size": [480]}, "^image_size is"),
        ({"image_size": [480, 0]}, "^image_size is"),
    ],
)
def test_json_that_does_not_describe_detections_is_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Detections.from_dict({**some_detections().to_dict(), **change})
    for name in change:
        with pytest.raises(ValueError, match=f"^{name} is not"):
            Detections.from_dict(
                {k: v for k, v in some_detections().to_dict().items() if k != name}
            )


# -- pictures --------------------------------------------------------------------------------


def photo() -> Picture:
    return decode(PHOTO.read_bytes())


def test_drawing_stays_inside_the_picture() -> None:
    boxes = np.array([[600, 0, 640, 30], [0, 450, 20, 480], [300, 200, 340, 260]], np.float32)
    found = some_detections(
        boxes=boxes,
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        classes=np.array([0, 1, 2], np.int32),
        labels=("a rather long label", "ü", "WBC"),
    )
    before, after = photo(), photo()
    draw(after, found)
    changed = (after != before).any(2)
    # Each box's own corner is drawn, and its label beside it.
    for x, y in ((604, 29), (1, 451), (300, 200)):
        assert changed[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].any()
    assert changed[:40, 450:600].any(), "the long label is moved to the left, not cut off"
    assert not changed[300:400].any()


def test_drawing_options_change_labels_confidences_and_lines() -> None:
    found = some_detections(boxes=np.array([[64, 248, 128, 296], [300, 200, 400, 300]], np.float32))

    def changed(**options: Any) -> int:
        after = photo()
        draw(after, found, **options)
        return int((after != photo()).any(2).sum())

    assert changed(labels=False) < changed(confidences=False) < changed() < changed(line=8)


def test_decoding_what_is_not_a_picture_fails() -> None:
    for data in (b"hello", b"", PHOTO.read_bytes()[:300]):
        with pytest.raises(ValueError, match="cannot be decoded for drawing"):
            decode(data)


def test_picture_too_large_for_its_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^1x20000 is too large for a \.webp file"):
        write(np.zeros((20_000, 1, 3), np.uint8), tmp_path / "a.webp")


def test_crop_has_a_margin_inside_the_picture() -> None:
    picture = np.arange(100 * 200 * 3, dtype=np.uint32).astype(np.uint8).reshape(100, 200, 3)
    cut = crop(picture, np.array([50, 20, 150, 60], np.float32))
    assert cut.shape == (51, 112, 3)  # 40 * 1.02 + 10, 100 * 1.02 + 10
    assert crop(picture, np.array([190, 90, 200, 100], np.float32)).shape == (16, 16, 3)


# -- names -----------------------------------------------------------------------------------


def test_result_names_are_unique() -> None:
    stems = UniqueStems(Progress())
    assert [stems.allocate(name) for name in ("a", "a", "a-2", "a")] == ["a", "a-2", "a-2-2", "a-3"]
    assert stems.allocate("clip", video=True) == "clip"
    assert stems.allocate("clip_7") == "clip_7-2", "clip_7 is the seventh frame of clip"
    assert stems.allocate("frame_1") == "frame_1"
    assert stems.allocate("frame", video=True) == "frame-2"


def test_result_names_of_a_resumed_run_are_unique() -> None:
    done = Progress(image_stems={"a", "b_1"}, video_stems={"clip"})
    stems = UniqueStems(done)
    assert stems.allocate("a") == "a-2"
    assert stems.allocate("clip_1") == "clip_1-2"
    assert stems.allocate("b", video=True) == "b-2"


def test_crop_names_of_different_images_differ() -> None:
    pairs = [(stem, n) for stem in ("a", "a.1", "a.2", "a2", "a.2.2") for n in (1, 2, 3, 22)]
    assert len({crop_name(*pair) for pair in pairs}) == len(pairs)
    assert [crop_name("a", n) for n in (1, 2)] == ["a", "a.2"]


# -- the results of one image -----------------------------------------------------------------


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def no_picture() -> Picture:
    raise AssertionError("the picture is not needed")


def test_text_file_has_a_line_for_each_detection(tmp_path: Path) -> None:
    plain = OutputOptions(pictures=False, save_txt=True)
    for _ in range(2):
        assert ResultWriter(tmp_path, plain).write("a", some_detections(), no_picture) is None
    with_scores = OutputOptions(pictures=False, save_txt=True, save_conf=True)
    ResultWriter(tmp_path, with_scores).write("b", some_detections(), no_picture)
    ResultWriter(tmp_path, plain).write("none", no_detections(), no_picture)
    assert files_in(tmp_path) == {
        "labels/a.txt": b"2 0.15 0.15 0.1 0.1\n0 0.5 0.5 1 1\n",
        "labels/b.txt": b"2 0.15 0.15 0.1 0.1 0.9\n0 0.5 0.5 1 1 0.5\n",
        "labels/none.txt": b"",
    }


def test_nothing_is_written_that_was_not_asked_for(tmp_path: Path) -> None:
    nothing = OutputOptions(pictures=False)
    assert not nothing.needs_folder
    assert not nothing.needs_picture
    assert ResultWriter(tmp_path, nothing).write("a", some_detections(), no_picture) is None
    assert files_in(tmp_path) == {}
    for name in ("save_txt", "save_crop", "save_csv", "save_json", "save_jsonl"):
        one = OutputOptions(pictures=False, **{name: True})
        assert one.needs_folder
        assert one.needs_picture == (name == "save_crop")
    pictures = OutputOptions(pictures=True)
    assert pictures.needs_folder
    assert pictures.needs_picture
    drawn = ResultWriter(tmp_path, pictures).write("a", some_detections(), photo)
    assert drawn is not None
    assert files_in(tmp_path) == {}, "the caller writes the picture"


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {}),
        ({"line_thickness": 5}, {"line": 5}),
        ({"hide_labels": True}, {"labels": False}),
        ({"hide_conf": True}, {"confidences": False}),
    ],
)
def test_picture_is_drawn_as_the_options_say(
    tmp_path: Path, options: dict[str, Any], arguments: dict[str, Any]
) -> None:
    writer = ResultWriter(tmp_path, OutputOptions(pictures=True, **options))
    wanted = photo()
    draw(wanted, some_detections(), **arguments)
    drawn = writer.write("a", some_detections(), photo)
    assert drawn is not None
    assert np.array_equal(drawn, wanted)


def test_crops_are_numbered_by_label_and_not_drawn_into(tmp_path: Path) -> None:
    found = some_detections(
        boxes=np.array([[64, 48, 128, 96], [0, 0, 64, 48], [9, 9, 9, 9], [99, 9, 120, 40]], "<f4"),
        scores=np.array([0.9, 0.8, 0.7, 0.6], np.float32),
        classes=np.array([2, 2, 0, 2], np.int32),
        labels=("WBC", "WBC", "RBC", "WBC"),
    )
    writer = ResultWriter(tmp_path, OutputOptions(pictures=True, save_crop=True))
    writer.write("a", found, photo)
    assert files_in(tmp_path).keys() == {
        f"crops/{name}.jpg" for name in ("RBC/a", "WBC/a", "WBC/a.2", "WBC/a.3")
    }
    write(crop(photo(), found.boxes[1]), tmp_path / "wanted.jpg")
    files = files_in(tmp_path)
    assert files["crops/WBC/a.2.jpg"] == files["wanted.jpg"]


def test_crop_outside_the_picture_is_left_out(tmp_path: Path) -> None:
    found = some_detections(boxes=np.array([[900, 900, 910, 910], [0, 0, 9, 9]], np.float32))
    writer = ResultWriter(tmp_path, OutputOptions(pictures=False, save_crop=True))
    writer.write("a", found, photo)
    assert [*files_in(tmp_path)] == ["crops/Platelets/a.jpg"]


def test_videos_are_mp4(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path, OutputOptions(pictures=True))
    assert writer.video_path("clip") == tmp_path / "clip.mp4"


def test_label_cannot_escape_the_crops_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "exp"
    folder.mkdir(parents=True)
    found = some_detections(labels=("../../../escaped", "/etc"))
    writer = ResultWriter(folder, OutputOptions(pictures=False, save_crop=True))
    writer.write("a", found, photo)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg"))
    assert written == [
        "runs/exp/crops/_.._.._escaped/a.jpg",
        "runs/exp/crops/_etc/a.jpg",
    ]


# -- tables ----------------------------------------------------------------------------------

LINES: list[dict[str, Any]] = [
    {"image": "in/7.jpg", **some_detections().to_dict()},
    {"image": "bad.jpg", "error": "not an image"},
    {"image": "clip.mp4", "frame": 3, **some_detections().to_dict()},
    {"image": "other/7.jpg", "stem": "7-2", **no_detections().to_dict()},
]


def test_csv_has_a_row_for_each_detection(tmp_path: Path) -> None:
    write_csv(tmp_path / "results.csv", LINES)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = [*csv.reader(file)]
    assert rows[0] == ["image", "frame", "label", "class", "score", "x1", "y1", "x2", "y2"]
    assert rows[1] == ["in/7.jpg", "", "WBC", "2", "0.9", "64.0", "48.0", "128.0", "96.0"]
    assert [row[:3] for row in rows[2:]] == [
        ["in/7.jpg", "", "Platelets"],
        ["clip.mp4", "3", "WBC"],
        ["clip.mp4", "3", "Platelets"],
    ]


def test_coco_file_has_an_entry_for_each_detection(tmp_path: Path) -> None:
    write_coco(tmp_path / "results.json", LINES)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results[0] == {
        "image_id": 7,
        "category_id": 2,
        "bbox": [64.0, 48.0, 64.0, 48.0],
        "score": 0.9,
    }
    assert [result["image_id"] for result in results] == [7, 7, "clip_3", "clip_3"]
    write_coco(tmp_path / "empty.json", LINES[1:2])
    assert json.loads((tmp_path / "empty.json").read_text()) == []


def test_sizes_in_a_coco_file_have_four_decimals(tmp_path: Path) -> None:
    found = some_detections(boxes=np.array([[0.1, 0.2, 0.3, 0.7], [0, 0, 1 / 3, 2 / 3]], "<f4"))
    write_coco(tmp_path / "one.json", [{"image": "7.5.jpg", **found.to_dict()}])
    text = (tmp_path / "one.json").read_text()
    assert text == (
        '[\n{"image_id": "7.5", "category_id": 2, "bbox": [0.1, 0.2, 0.2, 0.5], "score": 0.9},\n'
        '{"image_id": "7.5", "category_id": 0, "bbox": [0.0, 0.0, 0.3333, 0.6667], "score": 0.5}\n'
        "]\n"
    )
    write_coco(tmp_path / "one.json", [])
    assert files_in(tmp_path) == {"one.json": b"[]\n"}


def test_table_of_no_images_has_its_head(tmp_path: Path) -> None:
    write_csv(tmp_path / "one.csv", [])
    assert files_in(tmp_path) == {"one.csv": b"image,frame,label,class,score,x1,y1,x2,y2\r\n"}
    write_csv(tmp_path / "one.csv", [{"image": "\udcff.jpg", **some_detections().to_dict()}] * 2)
    rows = (tmp_path / "one.csv").read_bytes().split(b"\r\n")
    assert rows[1:] == [
        b"\xff.jpg,,WBC,2,0.9,64.0,48.0,128.0,96.0",
        b"\xff.jpg,,Platelets,0,0.5,0.0,0.0,640.0,480.0",
    ] * 2 + [b""]


# -- the journal -----------------------------------------------------------------------------


def journal_of(folder: Path, *lines: dict[str, Any], rest: str = "") -> Journal:
    text = "".join(json.dumps(line) + "\n" for line in lines) + rest
    (folder / JOURNAL).write_text(text)
    return Journal(folder)


def test_truncated_last_line_of_a_journal_is_removed(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, *LINES[:2], rest='{"image": "c.j')
    done = journal.recover([])
    assert (dict(done.images), done.lines) == ({"in/7.jpg": 1, "bad.jpg": 1}, 2)
    assert done.refused == [("bad.jpg", "not an image")]
    assert done.image_stems == {"7"}, "a refused image has no results to name"
    journal.append('{"image": "next"}')
    assert [line["image"] for line in journal.lines()] == ["in/7.jpg", "bad.jpg", "next"]
    journal.close()


def test_path_given_twice_counts_twice(tmp_path: Path) -> None:
    second = {**LINES[0], "stem": "7-2"}
    journal = journal_of(tmp_path, LINES[0], second)
    done = journal.recover([])
    assert (done.images["in/7.jpg"], done.image_stems) == (2, {"7", "7-2"})
    journal.close()


def test_lines_of_an_incomplete_video_are_removed(tmp_path: Path) -> None:
    def frames(stem: str, count: int) -> list[dict[str, Any]]:
        found = no_detections().to_dict()
        return [{"image": "v.mp4", "frame": n, "stem": stem, **found} for n in range(count)]

    lines = [LINES[0], *frames("v", 3), LINES[1], *frames("v-2", 2), LINES[3], *frames("v-3", 4)]
    journal = journal_of(tmp_path, *lines, rest="{")
    done = journal.recover(["v-2"])
    assert [line.get("stem") for line in journal.lines()] == [None, None, "v-2", "v-2", "7-2"]
    assert (done.videos["v.mp4"], done.video_stems, done.lines) == (1, {"v-2"}, 5)
    with pytest.raises(BlockingIOError, match="another process writes to"):
        Journal(tmp_path)
    journal.append('{"image": "next"}')
    assert [*journal.lines()][-1] == {"image": "next"}
    journal.close()
    Journal(tmp_path).close()


def test_malformed_journal_line_is_named_by_its_number(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, LINES[0], rest="[]\n")
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2 is not what a run has written"):
        journal.recover([])
    journal.close()


HOLD = """
import sys
from pathlib import Path
from yolov5_client._journal import Journal

journal = Journal(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
journal.close()
"""


def test_journal_is_locked_against_another_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="another process writes to"):
            Journal(tmp_path)
        process.communicate(timeout=30)
    Journal(tmp_path).close()


def test_run_record_is_read_back_and_checked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not a run's folder: no run\.json"):
        RunRecord.read(tmp_path)
    record = RunRecord({"source": ["a.jpg"]}, "/here", ["clip"])
    record.write(tmp_path)
    assert RunRecord.read(tmp_path) == record
    for text in ("", "[]", '{"options": [], "directory": "/"}', '{"options": {}, "directory": 1}'):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ValueError, match=r"run\.json is not what a run has written"):
            RunRecord.read(tmp_path)


def test_frames_are_named_as_yolov5_does() -> None:
    assert (frame_stem("clip", 12), frame_stem("photo", None)) == ("clip_12", "photo")


def test_annotated_pictures_keep_their_format(tmp_path: Path) -> None:
    writer = ResultWriter(tmp_path, OutputOptions(pictures=True))
    for suffix in (".jpg", ".jpe", ".png", ".bmp", ".tif", ".webp", ".upload", ""):
        writer.write_picture(f"photo{suffix[1:]}", suffix, photo())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == sorted(
        (".jpg", ".jpe", ".png", ".bmp", ".tif", ".webp", ".jpg", ".jpg")
    )
    for path in tmp_path.iterdir():
        picture = cv2.imread(str(path))
        assert picture is not None
        assert picture.shape == (480, 640, 3)
