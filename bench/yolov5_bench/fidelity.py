"""Answers of a server compared with those of the reference, photo by photo."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_NEAR = 1.0  # pixels: two boxes so close are the same
_MARGIN = 1e-3  # of a score from the threshold
_BOX, _SCORE, _UNMATCHED = 0.1, 1e-3, 0.002  # what an answer in FP32 may differ by


class Answer(Protocol):
    """The detections in one image, as a server has answered them.

    Attributes:
        boxes: [K, 4]: x1, y1, x2, y2 in pixels of the image.
        scores: [K]
        classes: [K]
    """

    @property
    def boxes(self) -> NDArray[Any]: ...
    @property
    def scores(self) -> NDArray[Any]: ...
    @property
    def classes(self) -> NDArray[Any]: ...


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Differences from the reference.

    Attributes:
        wanted: number of detections of the reference.
        found: number of ours.
        unmatched: number of either that the other lacks.
        box: largest difference of a side, in pixels.
        score: largest difference of a score.
    """

    photos: int
    wanted: int
    found: int
    unmatched: int
    box: float
    score: float

    @property
    def is_exact(self) -> bool:
        """Whether the answers are the reference's up to rounding in FP32."""
        few = self.unmatched <= _UNMATCHED * self.wanted
        return few and self.box <= _BOX and self.score <= _SCORE


def read_reference(path: Path) -> dict[str, NDArray[np.float64]]:
    """The reference's detections by photo: rows of x1, y1, x2, y2, score, class."""
    images: dict[str, Any] = json.loads(path.read_text())["images"]
    return {
        name: np.array(image["detections"], np.float64).reshape(-1, 6)
        for name, image in images.items()
    }


def compare(
    answers: Mapping[str, Answer],
    reference: Mapping[str, NDArray[np.float64]],
    *,
    conf_thres: float,
) -> Fidelity:
    """Match every detection of the reference with the nearest box of the same class.

    Args:
        conf_thres: of both. Detections whose score is within 1e-3 of it may be missing on either
            side.
    """
    wanted = found = unmatched = 0
    box = score = 0.0
    for name, answer in answers.items():
        rows = reference[name]
        wanted, found = wanted + len(rows), found + len(answer.scores)
        free = set(range(len(answer.scores)))
        for row in rows:
            near = [
                (float(np.abs(answer.boxes[index] - row[:4]).max()), index)
                for index in free
                if answer.classes[index] == row[5]
            ]
            distance, best = min(near, default=(np.inf, -1))
            if distance > _NEAR:
                unmatched += bool(abs(row[4] - conf_thres) > _MARGIN)
                continue
            free.remove(best)
            box = max(box, distance)
            score = max(score, float(abs(answer.scores[best] - row[4])))
        unmatched += sum(bool(abs(answer.scores[i] - conf_thres) > _MARGIN) for i in free)
    return Fidelity(
        photos=len(answers), wanted=wanted, found=found, unmatched=unmatched, box=box, score=score
    )
