"""What was found in one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _contract as names


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """The detections in one image, best first.

    Attributes:
        boxes: float32 [n, 4]: x1, y1, x2, y2 in pixels of the image as it is displayed (EXIF
            orientation applied).
        scores: float32 [n]: confidence, 0 to 1, descending.
        classes: int32 [n]: class index.
        labels: n class names.
        image_size: height, width of the image in pixels.

    Raises:
        ValueError: the parts do not fit each other.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]
    labels: tuple[str, ...]
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        n = len(self.labels)
        for name, shape in (("boxes", (n, 4)), ("scores", (n,)), ("classes", (n,))):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}, expected a height and a width")

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_outputs(cls, outputs: Mapping[str, NDArray[Any]], row: int = 0) -> Detections:
        """One image's detections out of the endpoint's outputs, without the padding.

        Args:
            outputs: the arrays by name, as the contract describes them.
            row: which image of the batch.
        """
        n = int(outputs[names.NUM_DETS][row, 0])
        height, width = outputs[names.IMAGE_SIZE][row].tolist()
        return cls(
            boxes=outputs[names.DET_BOXES][row, :n],
            scores=outputs[names.DET_SCORES][row, :n],
            classes=outputs[names.DET_CLASSES][row, :n],
            labels=tuple(label.decode() for label in outputs[names.DET_LABELS][row, :n]),
            image_size=(height, width),
        )

    @property
    def boxes_normalised(self) -> NDArray[np.float32]:
        """float32 [n, 4]: centre x, centre y, width, height as fractions of the image's sides."""
        height, width = self.image_size
        x1, y1, x2, y2 = self.boxes.T
        centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
        normalised: NDArray[np.float32] = np.stack(
            (centre_x / width, centre_y / height, (x2 - x1) / width, (y2 - y1) / height), axis=1
        )
        return normalised

    def summary(self) -> str:
        """How many of which class, such as "3 persons, 1 bus"; as YOLOv5 prints it."""
        counts: dict[str, int] = {}
        for label in self.labels:
            counts[label] = counts.get(label, 0) + 1
        if not counts:
            return "no detections"
        return ", ".join(
            f"{n} {label}{'s' * (n > 1 and not label.endswith('s'))}" for label, n in counts.items()
        )

    def yolo_lines(self, *, confidence: bool = False) -> list[str]:
        """The lines of a YOLO text file: class, then the normalised box, each to 6 digits.

        Args:
            confidence: append the score, as YOLOv5's `--save-conf` does.
        """
        lines = []
        for index, box, score in zip(self.classes, self.boxes_normalised, self.scores):
            values = [*box, score] if confidence else box
            lines.append(" ".join([str(index), *(f"{value:.6g}" for value in values)]))
        return lines
