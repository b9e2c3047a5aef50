"""What is drawn, to the pixel, and what is cut out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support import some_detections

from yolov5_client import Detections
from yolov5_client._draw import Picture, crop, decode, draw, write

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
# Of class 0, 1 and so on, in OpenCV's order: blue, green, red.
COLOURS = [
    *((56, 56, 255), (49, 210, 207), (255, 115, 100), (23, 204, 146), (31, 112, 255)),
    *((168, 153, 44), (236, 24, 0), (29, 178, 255), (187, 212, 0), (199, 55, 255)),
]


def blank(height: int = 480, width: int = 640) -> Picture:
    return np.full((height, width, 3), 128, np.uint8)


def one(
    *box: float, index: int = 2, score: float = 0.9, label: str = "WBC", size: Any = (480, 640)
) -> Detections:
    return Detections(
        boxes=np.array([box], np.float32),
        scores=np.array([score], np.float32),
        classes=np.array([index], np.int32),
        labels=(label,),
        image_size=size,
    )


def drawn(found: Detections, picture: Picture | None = None, **options: Any) -> Picture:
    picture = blank() if picture is None else picture
    draw(picture, found, **options)
    return picture


@pytest.mark.parametrize("index", range(12))
def test_each_class_has_its_colour(index: int) -> None:
    picture = drawn(one(100, 200, 300, 400, index=index), labels=False, line=3)
    for x, y in ((100, 300), (300, 300), (200, 200), (200, 400)):
        assert tuple(picture[y, x].tolist()) == COLOURS[index % 10]
    assert tuple(picture[300, 200].tolist()) == (128, 128, 128)


@pytest.mark.parametrize(
    ("height", "width", "line"), [(48, 64, 2), (480, 640, 2), (800, 868, 3), (1000, 2000, 4)]
)
def test_lines_grow_with_the_picture(height: int, width: int, line: int) -> None:
    found = one(width // 4, height // 4, width // 2, height // 2)
    wanted = drawn(found, blank(height, width), line=line)
    assert np.array_equal(drawn(found, blank(height, width)), wanted)
    thinner = drawn(found, blank(height, width), line=line - 1)
    assert not np.array_equal(wanted, thinner)


def with_label(
    box: tuple[int, int, int, int], text: str, place: tuple[int, int, int, int], index: int = 2,
    ink: tuple[int, int, int] = WHITE, line: int = 2, scale: float = 2 / 3, stroke: int = 1,
) -> Picture:  # fmt: skip
    """A box, and a label that fills `place`, whose text begins at its left."""
    picture, colour = blank(), COLOURS[index]
    cv2.rectangle(picture, box[:2], box[2:], colour, line, cv2.LINE_AA)
    left, top, right, bottom = place
    cv2.rectangle(picture, (left, top), (right, bottom), colour, cv2.FILLED)
    font = cv2.FONT_HERSHEY_SIMPLEX
    below = cv2.getTextSize(text, font, scale, stroke)[1]
    text_at = (left, bottom - below // 2)
    cv2.putText(picture, text, text_at, font, scale, ink, stroke, cv2.LINE_AA)
    return picture


def size_of(text: str, scale: float, stroke: int) -> tuple[int, int]:
    """Width and height, with the part below the line."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
    return width, height + below


def test_label_is_above_its_box() -> None:
    w, h = size_of("WBC 0.90", 2 / 3, 1)
    box = (100, 200, 300, 400)
    wanted = with_label(box, "WBC 0.90", (100, 200 - h, 100 + w, 200))
    assert np.array_equal(drawn(one(*box)), wanted)
    at_the_edge = (100, h, 300, 400)
    wanted = with_label(at_the_edge, "WBC 0.90", (100, 0, 100 + w, h))
    assert np.array_equal(drawn(one(*at_the_edge)), wanted)


def test_label_without_space_above_is_inside_its_box() -> None:
    w, h = size_of("WBC 0.90", 2 / 3, 1)
    for top in (0, h - 1):
        box = (100, top, 300, 400)
        wanted = with_label(box, "WBC 0.90", (100, top, 100 + w, top + h))
        assert np.array_equal(drawn(one(*box)), wanted)
    flat = blank(h - 2, 640)
    drawn(one(100, 0, 300, 5), flat)
    assert tuple(flat[-1, 101].tolist()) == COLOURS[2], "not below the picture's edge"


def test_label_does_not_leave_the_picture_at_its_sides() -> None:
    w, h = size_of("WBC 0.90", 2 / 3, 1)
    box = (600, 200, 639, 400)
    wanted = with_label(box, "WBC 0.90", (640 - w, 200 - h, 640, 200))
    assert np.array_equal(drawn(one(*box)), wanted)
    long = "a label as wide as the picture, and then some more words of it"
    w, h = size_of(long, 2 / 3, 1)
    assert w > 640
    box = (100, 200, 300, 400)
    wanted = with_label(box, long, (0, 200 - h, w, 200))
    assert np.array_equal(drawn(one(*box, label=long), confidences=False), wanted)


def test_text_grows_with_the_lines_and_is_ascii() -> None:
    w, h = size_of("? 0.57", 2.0, 5)
    box = (100, 200, 300, 400)
    wanted = with_label(box, "? 0.57", (100, 200 - h, 100 + w, 200), line=6, scale=2.0, stroke=5)
    assert np.array_equal(drawn(one(*box, label="ü", score=0.567), line=6), wanted)
    w, h = size_of("WBC", 1 / 3, 1)
    wanted = with_label(box, "WBC", (100, 200 - h, 100 + w, 200), line=1, scale=1 / 3)
    assert np.array_equal(drawn(one(*box), line=1, confidences=False), wanted)


@pytest.mark.parametrize(
    ("index", "ink"),
    [*enumerate((WHITE, BLACK, WHITE, BLACK, BLACK, WHITE, WHITE, BLACK, BLACK, BLACK))],
)
def test_text_is_black_on_light_colours(index: int, ink: tuple[int, int, int]) -> None:
    w, h = size_of("WBC 0.90", 2 / 3, 1)
    box = (100, 200, 300, 400)
    wanted = with_label(box, "WBC 0.90", (100, 200 - h, 100 + w, 200), index=index, ink=ink)
    assert np.array_equal(drawn(one(*box, index=index)), wanted)


def test_best_detection_is_on_top() -> None:
    both = some_detections(
        boxes=np.array([[100, 200, 300, 400]] * 2, np.float32), labels=("WBC", "Platelets")
    )
    wanted = drawn(one(100, 200, 300, 400, index=0, score=0.5, label="Platelets"))
    wanted = drawn(one(100, 200, 300, 400), wanted)
    assert np.array_equal(drawn(both), wanted)


def test_crop_is_two_hundredths_and_ten_pixels_larger() -> None:
    rows, columns = np.mgrid[0:200, 0:250]
    picture = np.dstack([rows, columns, rows]).astype(np.uint8)

    def cut(*box: float) -> list[int]:
        """Left, top, right, bottom of what is cut out."""
        part = crop(picture, np.array(box, np.float32))
        (top, left), (bottom, right) = part[0, 0, :2], part[-1, -1, :2]
        return [int(one) for one in (left, top, right + 1, bottom + 1)]

    assert cut(50, 20, 150, 60) == [44, 14, 156, 65]
    assert cut(100, 100, 200, 150) == [94, 94, 206, 155]
    assert cut(0, 0, 10, 10) == [0, 0, 15, 15]
    assert cut(240, 190, 250, 200) == [234, 184, 250, 200]


def test_picture_is_decoded_in_colour_and_upright(tmp_path: Path) -> None:
    picture = blank(4, 6)
    picture[:, :3] = (255, 0, 0)
    write(picture, tmp_path / "a.png")
    assert np.array_equal(decode((tmp_path / "a.png").read_bytes()), picture)


def test_opencv_keeps_silent(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write(blank(4, 6), tmp_path / "a.png")
    for data in (
        (tmp_path / "a.png").read_bytes()[:-20],
        b"\x89PNG\r\n\x1a\n",
        b"II*\0" + b"x" * 9,
    ):
        with pytest.raises(ValueError, match="cannot be decoded"):
            decode(data)
    with pytest.raises(ValueError, match="1x70000 is too large for a .jpg file"):
        write(np.zeros((70_000, 1, 3), np.uint8), tmp_path / "a.jpg")
    assert capfd.readouterr() == ("", "")


def test_picture_that_opencv_fails_to_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some versions of OpenCV return that a picture is too large, others raise it."""

    def fail(*_: object) -> None:
        raise cv2.error("Maximum supported image dimension is 65500 pixels")

    monkeypatch.setattr(cv2, "imencode", fail)
    with pytest.raises(ValueError, match=r"^6x4 is too large for a \.jpg file$"):
        write(blank(4, 6), tmp_path / "a.jpg")
    assert [*tmp_path.iterdir()] == []
