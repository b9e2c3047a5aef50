"""What was found in one image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _contract as names
from . import _interchange

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv


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

        Raises:
            ValueError: they are not as the contract describes them.
        """
        images, k = _checked_shape(outputs)
        if row >= images:
            raise ValueError(f"there is no image {row + 1}, of {images}")
        n = int(outputs[names.NUM_DETS][row, 0])
        if not 0 <= n <= k:
            raise ValueError(f"{names.NUM_DETS} is {n}, of at most {k}")
        height, width = outputs[names.IMAGE_SIZE][row].tolist()
        boxes = outputs[names.DET_BOXES][row, :n]
        scores = outputs[names.DET_SCORES][row, :n]
        classes = outputs[names.DET_CLASSES][row, :n]
        labels = [_text(label) for label in outputs[names.DET_LABELS][row, :n]]
        found = cls(
            boxes=boxes,
            scores=scores,
            classes=classes,
            labels=tuple(labels),
            image_size=(height, width),
        )
        # All written so that a NaN is refused, too.
        sides = np.array([width, height, width, height], np.float32)
        if not ((boxes >= 0) & (boxes <= sides)).all():
            raise ValueError(f"{names.DET_BOXES} has a box that is not in the image")
        if not (boxes[:, :2] <= boxes[:, 2:]).all():
            raise ValueError(f"{names.DET_BOXES} has a box that ends before it begins")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(f"{names.DET_SCORES} has one that is not from 0 to 1")
        if not (scores[1:] <= scores[:-1]).all():
            raise ValueError(f"{names.DET_SCORES} are not in descending order")
        if not (classes >= 0).all():
            raise ValueError(f"{names.DET_CLASSES} has a negative index")
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: the attributes by name, as lists.

        A number is the shortest decimal that gives the float32 back.
        """
        return {
            "image_size": list(self.image_size),
            "boxes": [[float(str(side)) for side in box] for box in self.boxes],
            "scores": [float(str(score)) for score in self.scores],
            "classes": self.classes.tolist(),
            "labels": list(self.labels),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Detections:
        """What `to_dict` made; further keys are passed over.

        Raises:
            ValueError: a key is missing, or holds what it should not.
        """
        columns = {}
        for name, is_one in _COLUMNS.items():
            column = data.get(name)
            if not isinstance(column, list) or not all(is_one(value) for value in column):
                raise ValueError(f"{name} is not what the detections of an image have there")
            columns[name] = column
        height_width = columns["image_size"]
        if len(height_width) != 2:
            raise ValueError(f"image_size is {height_width}, expected a height and a width")
        return cls(
            boxes=np.array(columns["boxes"], np.float32).reshape(-1, 4),
            scores=np.array(columns["scores"], np.float32),
            classes=np.array(columns["classes"], np.int32),
            labels=tuple(columns["labels"]),
            image_size=(height_width[0], height_width[1]),
        )

    @classmethod
    def from_unsorted(
        cls,
        *,
        boxes: ArrayLike,
        scores: ArrayLike,
        classes: ArrayLike,
        labels: Sequence[str],
        image_size: tuple[int, int],
    ) -> Detections:
        """Detections from what is in any order, and of any number type.

        Raises:
            ValueError: the parts do not fit each other.
        """
        order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
        parts: dict[str, NDArray[Any]] = {
            "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
            "scores": np.asarray(scores, np.float32),
            "classes": np.asarray(classes, np.int32),
            "labels": np.array(labels, np.object_),
        }
        for name, part in parts.items():
            if len(part) != len(order):
                raise ValueError(f"there are {len(order)} scores, and {len(part)} {name}")
        return cls(
            boxes=parts["boxes"][order],
            scores=parts["scores"][order],
            classes=parts["classes"][order],
            labels=tuple(parts["labels"][order].tolist()),
            image_size=image_size,
        )

    def to_supervision(self) -> sv.Detections:
        """`supervision.Detections`, with the labels under `data["class_name"]`."""
        return _interchange.to_supervision(self)

    @classmethod
    def from_supervision(
        cls, detections: sv.Detections, *, image_size: tuple[int, int]
    ) -> Detections:
        """From `supervision.Detections` that have confidence, class_id and `class_name`.

        Raises:
            ValueError: they lack one of these.
        """
        return cls.from_unsorted(**_interchange.from_supervision(detections), image_size=image_size)

    def to_coco(
        self, image_id: int | str, *, categories: Mapping[int, int] | None = None
    ) -> list[dict[str, Any]]:
        """COCO results: image_id, category_id, bbox (x, y, width, height in pixels), score.

        Args:
            categories: class index -> category_id; without it they are the same.

        Raises:
            KeyError: a class has no category.
        """
        return _interchange.to_coco(self, image_id, categories)

    @classmethod
    def from_coco(
        cls,
        results: Iterable[Mapping[str, Any]],
        *,
        names: Mapping[int, str],
        image_size: tuple[int, int],
    ) -> Detections:
        """From the COCO results of one image.

        Args:
            names: category_id -> label; the category_id becomes the class index.

        Raises:
            KeyError: a key is missing, or a category has no name.
        """
        return cls.from_unsorted(**_interchange.from_coco(results, names), image_size=image_size)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each detection, in the columns that YOLOv5's `results.pandas().xyxy` has:
        xmin, ymin, xmax, ymax, confidence, class, name."""
        return _interchange.to_pandas(self)

    @classmethod
    def from_pandas(cls, table: pd.DataFrame, *, image_size: tuple[int, int]) -> Detections:
        """From such a table.

        Raises:
            KeyError: a column is missing.
        """
        return cls.from_unsorted(**_interchange.from_pandas(table), image_size=image_size)

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


def _checked_shape(outputs: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    """B and K, where all the arrays have the type and the shape that they should have.

    Raises:
        ValueError: one does not.
    """
    shape = outputs[names.DET_SCORES].shape
    b, k = shape if len(shape) == 2 else (0, 0)
    for name, (kind, wanted) in {
        names.NUM_DETS: (np.int32, (b, 1)),
        names.DET_BOXES: (np.float32, (b, k, 4)),
        names.DET_SCORES: (np.float32, (b, k)),
        names.DET_CLASSES: (np.int32, (b, k)),
        names.DET_LABELS: (np.object_, (b, k)),
        names.IMAGE_SIZE: (np.int32, (b, 2)),
    }.items():
        array = outputs[name]
        if array.dtype != kind:
            raise ValueError(f"{name} is of the type {array.dtype}, expected {np.dtype(kind)}")
        if array.shape != wanted:
            raise ValueError(f"{name} has shape {array.shape}, expected {wanted}")
    return int(b), int(k)


def _text(label: object) -> str:
    if not isinstance(label, bytes):
        raise ValueError(f"{names.DET_LABELS} has one that is no string of bytes")
    try:
        return label.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{names.DET_LABELS} has one that is not UTF-8") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_int32(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


_COLUMNS: dict[str, Callable[[object], bool]] = {
    "image_size": _is_int32,
    "boxes": _is_box,
    "scores": _is_number,
    "classes": _is_int32,
    "labels": lambda value: isinstance(value, str),
}
