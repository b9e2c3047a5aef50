"""Readers of videos and live streams, and a writer of videos. Needs OpenCV (the extra `draw`)."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ._draw import Picture

# Silence FFmpeg's messages, as `_draw` does OpenCV's.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_USUAL_RATE = 30.0  # frames/s, if a source does not state it
_REOPEN_AFTER = (1.0, 2.0, 4.0)  # seconds
_OPEN_TIMEOUT = 10_000  # milliseconds
_LEAST_RATE = 1.0  # frames/s of the written file, unless the source has fewer
_LONGEST_FRAME = 600.0  # seconds; timestamps may be absurd


def encode(frame: Picture, quality: int) -> bytes:
    """Encode a frame as JPEG.

    Args:
        quality: 1 to 100.
    """
    return cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


class Video:
    """A video file or URL, read once from its start.

    Attributes:
        rate: frames/s; the mean if it varies.
        frames: the number of frames that the file states; 0 if it does not.
        seconds: time of the newest frame, from the first.
        length: seconds of the whole video, after all frames have been read.

    Raises:
        OSError: the video cannot be opened.
    """

    def __init__(self, address: str) -> None:
        self._capture = _open(address)
        self.rate = _rate(self._capture)
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.seconds = self.length = 0.0
        self._first = 0.0

    def read(self, stride: int = 1) -> Iterator[tuple[int, Picture]]:
        """Yield each frame, or every `stride`th, with its number, from 1."""
        number = 0
        while self._capture.grab():
            number += 1
            self._update_time(number)
            if (number - 1) % stride == 0:
                there, frame = self._capture.retrieve()
                if there:
                    yield number, frame.astype(np.uint8, copy=False)
        self._capture.release()
        # The stated length is a multiple of the mean; the last frame may be longer or shorter.
        self.length = number / self.rate
        if number != self.frames or self.length <= self.seconds:
            self.length = self.seconds + 1 / self.rate

    def _update_time(self, number: int) -> None:
        stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if number == 1:
            self._first = stamp if math.isfinite(stamp) else 0.0
        else:
            seconds = stamp - self._first
            # Some sources have no timestamps.
            if not (math.isfinite(seconds) and seconds > self.seconds):
                seconds = self.seconds + 1 / self.rate
            self.seconds = min(seconds, self.seconds + _LONGEST_FRAME)


class LiveStream:
    """A camera or network stream. Only its newest frame is kept.

    Attributes:
        rate: frames/s.
        read: number of frames received, whether they were used or not.

    Args:
        address: of a stream, or the index of a camera.
        reopen: open a lost stream again, up to three times.
        stride: keep every so many frames.

    Raises:
        OSError: the stream cannot be opened.
    """

    def __init__(self, address: str, *, reopen: bool, stride: int = 1) -> None:
        self._address = address
        self._reopen = reopen
        self._stride = stride
        capture = _open(address)
        self.rate = _rate(capture)
        self.read = 0
        self._newest: tuple[int, Picture] | None = None
        self._ended = False
        self._change = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(capture,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[int, Picture]]:
        """Yield the newest frame and its number, from 1, until the stream ends."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._newest is not None or self._ended)
                if self._newest is None:
                    return
                newest, self._newest = self._newest, None
            yield newest

    def close(self) -> None:
        """End the stream, and any iteration that waits for a frame."""
        self._stop.set()
        with self._change:
            self._ended, self._newest = True, None
            self._change.notify_all()

    def _follow(self, first: cv2.VideoCapture) -> None:
        capture: cv2.VideoCapture | None = first
        pauses = iter(_REOPEN_AFTER)
        while capture is not None and not self._stop.is_set():
            there, frame = capture.read()
            if there:
                pauses = iter(_REOPEN_AFTER)
                with self._change:
                    self.read += 1
                    if (self.read - 1) % self._stride == 0:
                        self._newest = (self.read, frame.astype(np.uint8, copy=False))
                        self._change.notify_all()
            else:
                capture.release()
                capture = self._open_again(pauses) if self._reopen else None
        if capture is not None:
            capture.release()
        with self._change:
            self._ended = True
            self._change.notify_all()

    def _open_again(self, pauses: Iterator[float]) -> cv2.VideoCapture | None:
        for pause in pauses:
            if self._stop.wait(pause):
                return None
            try:
                return _open(self._address)
            except OSError:
                continue
        return None


class Writer:
    """Writes an MP4 file of pictures with the first one's size, each shown for its own time.

    The file has a constant rate: a picture is repeated until the next is due, or left out.

    Args:
        rate: frames/s of the source.
        stride: one of so many frames of the source is written.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, rate: float, first: Picture, *, stride: int = 1) -> None:
        height, width = first.shape[:2]
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._size = (width, height)
        self._rate = max(rate / stride, min(rate, _LEAST_RATE))
        self._writer = cv2.VideoWriter(str(path), code, self._rate, self._size)
        if not self._writer.isOpened():
            raise OSError(f"{path} cannot be written as a video")
        self._written = 0
        self._pending: Picture | None = None

    def write(self, picture: Picture, seconds: float) -> None:
        """Append a picture.

        Args:
            seconds: the time at which it is shown, from the start of the source.
        """
        self._fill_until(seconds)
        if picture.shape[1::-1] != self._size:  # OpenCV would silently drop it
            picture = cv2.resize(picture, self._size).astype(np.uint8, copy=False)
        self._pending = picture

    def close(self, length: float = 0.0) -> None:
        """Finish the file.

        Args:
            length: seconds of the source, until which the last picture is shown.
        """
        if self._pending is not None:
            self._fill_until(max(length, (self._written + 1) / self._rate))
            self._pending = None
        self._writer.release()

    def _fill_until(self, seconds: float) -> None:
        """Repeat the newest picture up to this time."""
        while self._pending is not None and self._written < round(seconds * self._rate):
            self._writer.write(self._pending)
            self._written += 1


def _open(address: str) -> cv2.VideoCapture:
    if address.isdecimal() and not Path(address).exists():
        capture = cv2.VideoCapture(int(address))
    else:
        wait = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT]
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, wait)
    if not capture.isOpened():
        raise OSError("cannot be opened as a video")
    # Apply the video's rotation. Newer versions than OpenCV 4.11 do by default.
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    return capture


def _rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if math.isfinite(rate) and 0 < rate <= 1000 else _USUAL_RATE
