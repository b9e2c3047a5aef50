"""The decoder in a process of its own, as in the server: OpenCV reads its limit when it is first
imported, and a file that crashes the decoder must not end the tests."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decode import Decoder, ImageError
from image_limits import ImageLimits

LIMITS = ImageLimits(bytes=200_000, pixels=1_000_000)


@dataclass(frozen=True)
class Outcome:
    """
    Attributes:
        shape: of the picture; None where it was refused.
        reason, message: of the refusal.
        seconds: of processor time.
        memory: the most that the process held meanwhile, in bytes.
    """

    shape: tuple[int, ...] | None
    reason: str
    message: str
    seconds: float
    memory: int


_decoder: Decoder


def _prepare() -> None:
    global _decoder
    _decoder = Decoder(LIMITS)


def prepare(element: bytes) -> Outcome:
    """Decode and letterbox one element; any exception but an ImageError is raised."""
    from letterbox import letterbox

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    started = time.thread_time()
    shape: tuple[int, ...] | None = None
    reason = message = ""
    try:
        picture: Any = _decoder.decode(element)
    except ImageError as error:
        reason, message = error.reason, str(error)
    else:
        shape = picture.shape
        assert picture.dtype == "uint8"
        for mode in ("square", "rect", "stretch"):
            canvas, _ = letterbox(picture, 64, 64, mode)
            assert max(canvas.shape[:2]) <= 64
    seconds = time.thread_time() - started
    (memory,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return Outcome(shape, reason, message, seconds, int(memory) << 10)


@contextmanager
def decoding_process() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_prepare) as pool:
        yield pool
