"""`yolov5-client compare` on endpoints with known answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hostile import http, http_endpoints, over_http, tensors_for

from yolov5_client import Detections
from yolov5_client._agreement import match
from yolov5_client._agreement_picture import side_by_side
from yolov5_client._cli import main
from yolov5_client._commands._comparison import Photo
from yolov5_client._sources import Source

SIZE = (120, 160)
BOXES = {"RBC": [10, 10, 50, 50], "WBC": [80, 20, 140, 100], "Platelets": [5, 70, 30, 110]}
NOT_AN_IMAGE = "not an image of a supported format; allowed: JPEG, PNG, WebP, BMP, TIFF"


def found(*labels: str, score: float = 0.5) -> Detections:
    """One detection of each label, at its own place; `RBC:WBC` is a WBC in the place of an RBC."""
    return Detections.from_unsorted(
        boxes=[BOXES[label.partition(":")[0]] for label in labels],
        scores=[score] * len(labels),
        classes=[0] * len(labels),
        labels=[label.rpartition(":")[2] for label in labels],
        image_size=SIZE,
    )


def refused(sentence: str, status: str = "400 Bad Request") -> bytes:
    return http(json.dumps({"error": sentence}).encode(), status=status)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def photos(*names: str) -> None:
    """Write a file for each name, whose content is a small picture, then its name."""
    picture = np.full((*SIZE, 3), 90, np.uint8)
    encoded = cv2.imencode(".jpg", picture)[1].tobytes()
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(encoded + Path(name).stem.encode())


@contextmanager
def endpoints(answers: Mapping[str, Mapping[str, Detections | bytes]]) -> Iterator[str]:
    """Two endpoints, or more, that answer each photo by its name."""

    def answer(endpoint: str, image: bytes) -> bytes:
        known = answers[endpoint.removesuffix("_ensemble")]
        (one,) = (one for stem, one in known.items() if image.endswith(stem.encode()))
        return one if isinstance(one, bytes) else over_http(tensors_for(one))

    with http_endpoints(answer) as address:
        yield address


def compare(server: str, *arguments: str) -> int:
    return main(["compare", "yolov5", "plates", *arguments, "--server", server])


def figures(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_photos_are_compared_and_the_largest_disagreement_is_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos("in/same.jpg", "in/other.jpg", "in/more.jpg", "in/none.jpg")
    one = {
        "same": found("RBC", "WBC"),
        "other": found("RBC"),
        "more": found("RBC", "Platelets", score=0.25),
        "none": found(),
    }
    other = {
        "same": found("RBC", "WBC"),
        "other": found("RBC:car"),
        "more": found("RBC", "WBC", score=0.75),
        "none": found("WBC"),
    }
    with endpoints({"yolov5": one, "plates": other}) as server:
        assert compare(server, "in", "--json", "-", "--in-flight", "1") == 0
        got = figures(capsys)
        assert compare(server, "in") == 0
    assert (got["a"]["model"], got["b"]["model"], got["photos"]) == ("yolov5", "plates", 4)
    total = got["total"]
    assert (total["found_a"], total["found_b"]) == (5, 6)
    assert (total["matched"], total["other_class"]) == (4, 1)
    assert (total["only_a"], total["only_b"]) == (1, 2)
    assert total["score_shift_max"] == 0.5
    assert got["agreement"] == total["agreement"] == round(2 * 3 / 11, 6)
    assert [*got["classes"]] == ["Platelets", "RBC", "WBC", "car"]
    assert (got["labels_only_a"], got["labels_only_b"]) == (["Platelets"], ["car"])
    first = ("in/more.jpg", 2, 1, 1, 0)
    assert [tuple(one.values())[:5] for one in got["largest_disagreements"]] == [
        first,
        ("in/other.jpg", 2, 0, 0, 1),
        ("in/none.jpg", 1, 0, 1, 0),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"A: yolov5 at {server}"
    assert lines[7].split()[:8] == ["all", "5", "6", "4", "1", "1", "2", "0.5455"]
    assert lines[8:] == [
        "Only A finds these: Platelets",
        "Only B finds these: car",
        "in/more.jpg: 1 only A, 1 only B",
        "in/other.jpg: 1 of another class",
        "in/none.jpg: 1 only B",
        "Agreement: 0.5455 (4 photos, IoU 0.5)",
    ]


@pytest.mark.parametrize(("least", "status"), [("0.5", 0), ("0.51", 1), ("1", 1)])
def test_status_says_whether_the_agreement_is_enough(
    least: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    photos("a.jpg")
    answers = {"yolov5": {"a": found("RBC", "WBC")}, "plates": {"a": found("RBC", "Platelets")}}
    with endpoints(answers) as server:
        assert compare(server, "a.jpg", "--min-agreement", least) == status
    said = f"error: the agreement is 0.5, less than {float(least)}.\n"
    assert capsys.readouterr().err == (said if status else "")


def test_photo_that_an_endpoint_refuses_is_counted_and_the_run_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos("a.jpg", "b.jpg", "c.jpg")
    Path("clip.mp4").write_bytes(b"a film")
    no = refused(f"in ensemble 'plates_ensemble', image 1 of 1: {NOT_AN_IMAGE}")
    some = found("RBC")
    one: dict[str, Detections | bytes] = {"a": some, "b": no, "c": some}
    other: dict[str, Detections | bytes] = {"a": some, "b": no, "c": no}
    sources = ["a.jpg", "b.jpg", "c.jpg", "clip.mp4", "list.txt"]
    Path("list.txt").write_text("none.jpg\n")
    with endpoints({"yolov5": one, "plates": other}) as server:
        assert compare(server, *sources, "--json", "figures.json") == 0
        assert compare(server, "a.jpg", "b.jpg", "--min-agreement", "1") == 0, "neither answered"
        assert compare(server, "a.jpg", "c.jpg", "--min-agreement", "1") == 1
        assert compare(server, "b.jpg", "c.jpg") == 1, "nothing was compared"
    got = json.loads(Path("figures.json").read_text())
    assert got["left_out"] == [
        {"photo": "b.jpg", "a": NOT_AN_IMAGE, "b": NOT_AN_IMAGE},
        {"photo": "c.jpg", "a": None, "b": NOT_AN_IMAGE},
        {"photo": "clip.mp4", "a": "a video; allowed: images", "b": "a video; allowed: images"},
        {"photo": "none.jpg", "a": "No such file or directory", "b": "No such file or directory"},
    ]
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f"error: b.jpg: {NOT_AN_IMAGE}",
        f"error: c.jpg: B: {NOT_AN_IMAGE}",
        "error: clip.mp4: a video; allowed: images",
        "error: none.jpg: No such file or directory",
        f"error: b.jpg: {NOT_AN_IMAGE}",
        f"error: c.jpg: B: {NOT_AN_IMAGE}",
        "error: only one of the two answered 1 photo.",
        f"error: b.jpg: {NOT_AN_IMAGE}",
        f"error: c.jpg: B: {NOT_AN_IMAGE}",
        "error: no photo was answered by both.",
    ]
    assert "Agreement: 1.0000 (1 photo, 4 left out, IoU 0.5)\n" in said.out
    assert said.out.endswith("Agreement: none (0 photos, 2 left out, IoU 0.5)\n")


def test_parameters_go_to_both_and_a_refusal_names_the_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos("a.jpg")
    no = refused("in ensemble 'plates_ensemble', classes names 'car'; allowed: RBC")
    with endpoints({"yolov5": {"a": found("RBC")}, "plates": {"a": no}}) as server:
        assert compare(server, "a.jpg", "--classes", "car") == 2
    assert capsys.readouterr().err == (
        f"error: B, plates at {server}: classes names 'car'; allowed: RBC\n"
    )


def test_each_network_may_have_a_server_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    photos("a.jpg")
    with (
        endpoints({"yolov5": {"a": found("RBC")}}) as one,
        endpoints({"yolov5": {"a": found("RBC", "WBC")}}) as other,
    ):
        command = ["compare", "yolov5", "yolov5", "a.jpg", "--json", "-"]
        assert main([*command, "--server", one, "--server-b", other]) == 0
        got = figures(capsys)
        assert got["b"] == {"model": "yolov5", "server": other}
        assert (got["total"]["found_a"], got["total"]["found_b"]) == (1, 2)
        away = "http://127.0.0.1:9"
        assert main([*command, "--server", one, "--server-b", away]) == 3
        assert f"error: B, yolov5 at {away}: " in capsys.readouterr().err


def test_photo_is_read_once_and_few_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The photos of a long source would not fit into memory."""
    lock = threading.Lock()
    read: list[str] = []
    released: list[str] = []
    held = 0
    release = Photo.release

    def reading(source: Source) -> bytes:
        nonlocal held
        with lock:
            read.append(source.name)
            held = max(held, len(read) - len(released))
        return b"a photo"

    def releasing(photo: Photo) -> None:
        with lock:
            released.append(photo.source.name)
        release(photo)
        assert photo._data is None

    monkeypatch.setattr(Source, "read", reading)
    monkeypatch.setattr(Photo, "release", releasing)
    names = [f"{number}.jpg" for number in range(200)]
    Path("list.txt").write_text("\n".join(names))
    answer = over_http(tensors_for(found("RBC")))
    with http_endpoints(lambda endpoint, image: answer) as server:
        assert compare(server, "list.txt", "--in-flight", "2") == 0
    assert sorted(read) == sorted(names)
    assert released == names
    assert held <= 2 * 2 + 2


def test_pictures_of_the_largest_disagreements_are_saved(
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos("same.jpg", "one.jpg", "two.jpg", "three.jpg")
    none = {"same": found("RBC"), "one": found(), "two": found(), "three": found()}
    some = {
        "same": found("RBC"),
        "one": found("RBC"),
        "two": found("RBC", "WBC"),
        "three": found("RBC", "WBC", "Platelets"),
    }
    with endpoints({"yolov5": none, "plates": some}) as server:
        sources = ["same.jpg", "one.jpg", "two.jpg", "three.jpg"]
        assert compare(server, *sources, "--save", "out/here", "--pictures", "2") == 0
        assert "2 pictures saved to out/here\n" in capsys.readouterr().err
        assert compare(server, *sources, "--save", "out/here") == 2
        assert "error: --save is out/here; allowed: a new or" in capsys.readouterr().err
    assert sorted(path.name for path in Path("out/here").iterdir()) == ["1-three.jpg", "2-two.jpg"]
    picture = cv2.imread("out/here/1-three.jpg")
    assert picture is not None
    assert picture.shape == (360 + 2 * 36, 2 * 480 + 8, 3)


def pixels(picture: Any, colour: tuple[int, int, int]) -> int:
    return int((picture == np.array(colour, np.uint8)).all(2).sum())


GREEN, YELLOW, RED = (115, 158, 0), (66, 228, 240), (0, 94, 213)


def test_agreed_and_other_boxes_have_their_own_colours_on_each_side() -> None:
    blank = np.full((480, 640, 3), 90, np.uint8)
    scaled = {label: [4 * side for side in box] for label, box in BOXES.items()}

    def at_scale(one: Detections) -> Detections:
        return Detections(
            boxes=one.boxes * 4, scores=one.scores, classes=one.classes, labels=one.labels,
            image_size=(480, 640),
        )  # fmt: skip

    a, b = at_scale(found("RBC", "WBC")), at_scale(found("RBC", "WBC:car", "Platelets"))
    drawn = side_by_side(blank, match(a, b), ("A", "B"))
    assert drawn.shape == (480 + 72, 1288, 3)
    left, right = drawn[36:-36, :640], drawn[36:-36, 648:]
    for side in (left, right):
        x1, y1, x2, y2 = scaled["RBC"]
        assert tuple(side[(y1 + y2) // 2, x1].tolist()) == GREEN
        x1, y1, x2, y2 = scaled["WBC"]
        assert tuple(side[(y1 + y2) // 2, x2].tolist()) == YELLOW
    assert pixels(left, RED) == 0
    x1, y1, x2, y2 = scaled["Platelets"]
    assert tuple(right[(y1 + y2) // 2, x1].tolist()) == RED
    assert all(pixels(drawn[-36:], colour) for colour in (GREEN, YELLOW, RED)), "the legend"
    assert np.array_equal(blank, np.full((480, 640, 3), 90, np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000), (3000, 4000)])
def test_picture_of_a_photo_of_any_shape_has_a_legible_size(size: tuple[int, int]) -> None:
    height, width = size
    one = Detections.from_unsorted(
        boxes=[[0, 0, width, height]], scores=[0.5], classes=[0], labels=["RBC"], image_size=size
    )
    drawn = side_by_side(np.full((*size, 3), 90, np.uint8), match(one, one), ("A, x", "B, y"))
    assert drawn.shape[0] <= 1280 + 72
    assert 2 * 320 + 8 <= drawn.shape[1] <= 2 * 1280 + 8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["A", "b", "a.jpg"], "error: A is 'A'; allowed: up to 40 lower-case letters"),
        (["a", "b_ensemble", "a.jpg"], "error: B is 'b_ensemble'; allowed: up to 40"),
        (["a", "b", "none.jpg"], "error: no such file or folder: none.jpg"),
        (["a", "b", "a.jpg", "--iou", "0"], "0.0 is not allowed; allowed: more than 0, at most 1"),
        (["a", "b", "a.jpg", "--iou", "nan"], "nan is not allowed; allowed: more than 0"),
        (["a", "b", "a.jpg", "--min-agreement", "2"], "2.0 is not allowed; allowed: 0 to 1"),
        (["a", "b", "a.jpg", "--json", "no/x"], "--json is no/x; allowed: a file in a folder that"),
        (["a", "b", "a.jpg", "--save", "a.jpg"], "--save is a.jpg; allowed: a new or an empty fol"),
        (["a", "b"], "arguments are required: SOURCE"),
    ],
)
def test_unusable_argument_is_named_before_anything_is_sent(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos("a.jpg")
    try:
        status = main(["compare", *arguments, "--server", "127.0.0.1:9"])
    except SystemExit as error:
        status = int(str(error.code))
    assert status == 2
    assert sentence in capsys.readouterr().err
