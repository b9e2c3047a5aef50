"""The functions of both steps in a loop in one process: what an image costs without a server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ._pipeline import Pipeline

_REPEATS = 20


def bare_milliseconds(
    pipeline: Pipeline, photo: Path, rows: NDArray[np.float32], *, seconds: float
) -> dict[str, float]:
    """Measure milliseconds of CPU for an image, by the fields of `Bare`: medians of short loops.

    Args:
        rows: [N, 5 + C], what the network answers with.
        seconds: for each function.
    """
    image = photo.read_bytes()
    picture = pipeline.decode(image)
    _, placement = pipeline.place(picture)
    return {
        "decode": _milliseconds(lambda: pipeline.decode(image), seconds),
        "place": _milliseconds(lambda: pipeline.pixels(picture), seconds),
        "postprocess": _milliseconds(lambda: pipeline.finish(rows, placement), seconds),
    }


def _milliseconds(work: Callable[[], object], seconds: float) -> float:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        began = time.process_time()
        for _ in range(_REPEATS):
            work()
        found.append((time.process_time() - began) * 1000 / _REPEATS)
    return median(found)
