"""Videos are read and written upright and with their own length."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from yolov5_client._video import Video, Writer

RATE = 12.0


def grey(number: int) -> NDArray[np.uint8]:
    """Draw the picture of this number: its brightness tells it; the top left is lighter."""
    picture = np.full((48, 64, 3), 20 * number, np.uint8)
    picture[:16, :16] = 255
    return picture


def number_of(picture: NDArray[Any]) -> int:
    return round(float(picture[20:28, 28:36].mean()) / 20)


def make_mp4(path: Path, frames: int, code: str = "mp4v") -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), RATE, (64, 48))
    for number in range(frames):
        writer.write(grey(number))
    writer.release()


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write the tag for the rotation: the matrix in the header of the track."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 24] = struct.pack(">6i", a, b, 0, c, d, 0)
    path.write_bytes(data)


def lengthen(path: Path, frames: int) -> None:
    """Make the later frames four times as long: two entries in the table of durations."""
    data = bytearray(path.read_bytes())
    place = data.index(b"stts") + 8
    _, count, ticks = struct.unpack(">III", data[place : place + 12])
    table = struct.pack(">5I", 2, frames, ticks, count - frames, 4 * ticks)
    data[place : place + 12] = table
    factor = (frames + 4 * (count - frames)) / count
    for tag in (b"stts", b"stbl", b"minf", b"mdia", b"trak", b"moov"):  # the sizes around it
        start = data.index(tag) - 4
        (size,) = struct.unpack(">I", data[start : start + 4])
        data[start : start + 4] = struct.pack(">I", size + 8)
    for tag, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20), (b"elst", 12)):
        start = data.index(tag) + offset
        (length,) = struct.unpack(">I", data[start : start + 4])
        data[start : start + 4] = struct.pack(">I", round(length * factor))
    path.write_bytes(data)


def copy(source: Path, target: Path, stride: int = 1) -> None:
    """Copy a video as `detect` does, without boxes."""
    video = Video(str(source))
    writer = None
    for _, picture in video.read(stride):
        writer = writer or Writer(target, video.rate, picture, stride=stride)
        writer.write(picture, video.seconds)
    assert writer is not None
    writer.close(video.length)


def shown(path: Path) -> tuple[list[int], float]:
    """Read the numbers of the pictures, and the seconds for which each is shown."""
    capture = cv2.VideoCapture(str(path))
    numbers = []
    while (frame := capture.read()[1]) is not None:
        numbers.append(number_of(frame))
    return numbers, 1 / capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((1, 0, 0, 1), 0), ((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
    ids=["0", "90 clockwise", "180", "270 clockwise"],
)
def test_rotated_video_is_read_upright(
    tmp_path: Path, matrix: tuple[int, int, int, int], turns: int
) -> None:
    make_mp4(tmp_path / "plain.mp4", 3)
    make_mp4(tmp_path / "turned.mp4", 3)
    turn(tmp_path / "turned.mp4", matrix)
    plain = [picture for _, picture in Video(str(tmp_path / "plain.mp4")).read()]
    turned = [picture for _, picture in Video(str(tmp_path / "turned.mp4")).read()]
    assert len(plain) == len(turned) == 3
    for one, other in zip(plain, turned):
        assert (np.rot90(one, turns) == other).all()


def test_copied_video_has_each_frame_once(tmp_path: Path) -> None:
    make_mp4(tmp_path / "in.mp4", 12)
    copy(tmp_path / "in.mp4", tmp_path / "out.mp4")
    numbers, each = shown(tmp_path / "out.mp4")
    assert numbers == [*range(12)]
    assert each == pytest.approx(1 / RATE)


@pytest.mark.parametrize("frames", [12, 10])
@pytest.mark.parametrize("stride", [2, 3, 5, 100])
def test_every_nth_frame_lasts_n_times_as_long(tmp_path: Path, frames: int, stride: int) -> None:
    make_mp4(tmp_path / "in.avi", frames, "MJPG")
    copy(tmp_path / "in.avi", tmp_path / "out.mp4", stride)
    numbers, each = shown(tmp_path / "out.mp4")
    assert sorted({*numbers}) == [*range(0, frames, stride)]
    assert len(numbers) * each == pytest.approx(frames / RATE, abs=each)


def test_frames_of_varying_length_keep_their_times(tmp_path: Path) -> None:
    make_mp4(tmp_path / "in.mp4", 10)
    lengthen(tmp_path / "in.mp4", 5)
    copy(tmp_path / "in.mp4", tmp_path / "out.mp4")
    numbers, each = shown(tmp_path / "out.mp4")
    starts = np.cumsum([0, *[1 / RATE] * 5, *[4 / RATE] * 5])
    assert len(numbers) * each == pytest.approx(starts[-1], abs=each / 2)
    for number in {*numbers}:
        assert numbers.index(number) * each == pytest.approx(starts[number], abs=each)
    assert {5, 6, 7, 8, 9} <= {*numbers}, "those that are long enough are there"


def test_animation_keeps_its_frame_times(tmp_path: Path) -> None:
    lengths = [0.1] * 5 + [0.4] * 5
    pictures = [Image.fromarray(grey(number)) for number in range(10)]
    pictures[0].save(
        tmp_path / "in.gif",
        save_all=True,
        append_images=pictures[1:],
        duration=[round(1000 * seconds) for seconds in lengths],
    )
    copy(tmp_path / "in.gif", tmp_path / "out.mp4")
    numbers, each = shown(tmp_path / "out.mp4")
    assert len(numbers) * each == pytest.approx(sum(lengths), abs=0.4)
    starts = np.cumsum([0, *lengths])
    for number in {*numbers}:
        assert numbers.index(number) * each == pytest.approx(starts[number], abs=each)
    assert {5, 6, 7, 8, 9} <= {*numbers}, "those that are long enough are there"


def test_absurd_timestamps_do_not_fill_the_disk(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "out.mp4", 1.0, grey(0))
    video = Video.__new__(Video)
    video.rate, video.seconds, video.length, video._first = 1.0, 0.0, 0.0, 0.0

    class Clock:
        def __init__(self, stamp: float) -> None:
            self.stamp = stamp

        def get(self, _: int) -> float:
            return self.stamp

    for number, stamp in enumerate((0.0, 1e15, float("nan"), -5.0, 2e15), 1):
        video._capture = Clock(stamp)  # type: ignore[assignment]
        video._update_time(number)
        writer.write(grey(number), video.seconds)
    writer.close()
    assert len(shown(tmp_path / "out.mp4")[0]) <= 1210
