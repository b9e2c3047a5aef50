"""The detections in one image, and their conversions."""

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

    Example:
        >>> found = Detections(
        ...     boxes=np.array([[64, 48, 128, 96]], np.float32),
        ...     scores=np.array([0.9], np.float32),
        ...     classes=np.array([2], np.int32),
        ...     labels=("WBC",),
        ...     image_size=(480, 640),
        ... )
        >>> len(found), found.summary()
        (1, '1 WBC')

    Attributes:
        boxes: float32 [n, 4]: x1, y1, x2, y2 in pixels of the image as it is displayed (EXIF
            orientation applied).
        scores: float32 [n]: confidence, 0 to 1, descending.
        classes: int32 [n]: class index.
        labels: n class names.
        image_size: height, width of the displayed image in pixels.

    Raises:
        ValueError: the parts differ in length or have another shape.
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
        """Make the detections of one image from the endpoint's outputs, without the padding.

        Example:
            >>> outputs = {
            ...     "num_dets": np.array([[1]], np.int32),
            ...     "det_boxes": np.array([[[64, 48, 128, 96], [0, 0, 0, 0]]], np.float32),
            ...     "det_scores": np.array([[0.9, 0]], np.float32),
            ...     "det_classes": np.array([[2, -1]], np.int32),
            ...     "det_labels": np.array([[b"WBC", b""]], np.object_),
            ...     "image_size": np.array([[480, 640]], np.int32),
            ... }
            >>> Detections.from_outputs(outputs).labels
            ('WBC',)

        Args:
            outputs: for B images with at most K detections, by name: num_dets int32 [B, 1],
                det_boxes float32 [B, K, 4] in pixels of the displayed image, det_scores float32
                [B, K], det_classes int32 [B, K], det_labels bytes [B, K], image_size int32 [B, 2].
            row: the index of the image in the batch.

        Raises:
            ValueError: an array has another type or shape, or holds a value out of range.
        """
        images, k = _checked_shape(outputs)
        if row >= images:
            raise ValueError(f"there is no image {row + 1}, of {images}")
        n = int(outputs[names.NUM_DETS][row, 0])
        if not 0 <= n <= k:
            raise ValueError(f"{names.NUM_DETS} is {n}, of at most {k}")
        height, width = outputs[names.IMAGE_SIZE][row].tolist()
        found = cls(
            boxes=outputs[names.DET_BOXES][row, :n],
            scores=outputs[names.DET_SCORES][row, :n],
            classes=outputs[names.DET_CLASSES][row, :n],
            labels=tuple(_text(label) for label in outputs[names.DET_LABELS][row, :n]),
            image_size=(height, width),
        )
        _check_values(found)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as lists, for JSON.

        Each number is the shortest decimal that converts back to the same float32.

        Example:
            >>> found = Detections.from_unsorted(
            ...     boxes=[[64, 48, 128, 96]],
            ...     scores=[0.9],
            ...     classes=[2],
            ...     labels=["WBC"],
            ...     image_size=(480, 640),
            ... )
            >>> found.to_dict()
            {'image_size': [480, 640], 'boxes': [[64.0, 48.0, 128.0, 96.0]], 'scores': [0.9],
             'classes': [2], 'labels': ['WBC']}
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
        """Make detections from what `to_dict` returned. Further keys are ignored.

        Example:
            >>> line = '{"image_size": [480, 640], "boxes": [], "scores": [], "classes": [],'
            >>> line += ' "labels": [], "image": "empty.jpg"}'
            >>> import json
            >>> Detections.from_dict(json.loads(line)).summary()
            'no detections'

        Raises:
            ValueError: a key is missing, or its value has another form.
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
        """Make detections from values in any order and of any number type.

        Example:
            >>> Detections.from_unsorted(
            ...     boxes=[[0, 0, 640, 480], [64, 48, 128, 96]],
            ...     scores=[0.5, 0.9],
            ...     classes=[0, 2],
            ...     labels=["Platelets", "WBC"],
            ...     image_size=(480, 640),
            ... ).labels
            ('WBC', 'Platelets')

        Args:
            boxes: [n, 4]: x1, y1, x2, y2 in pixels of the displayed image.
            scores: [n] confidence, 0 to 1.
            classes: [n] class index.
            labels: n class names.
            image_size: height, width of the displayed image in pixels.

        Raises:
            ValueError: the parts differ in length.
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
        """Convert to `supervision.Detections`, with the labels in `data["class_name"]`.

        Example:
            >>> found = Detections.from_unsorted(
            ...     boxes=[[64, 48, 128, 96]],
            ...     scores=[0.9],
            ...     classes=[2],
            ...     labels=["WBC"],
            ...     image_size=(480, 640),
            ... )
            >>> print(found.to_supervision().class_id)
            [2]

        Raises:
            ImportError: supervision is not installed.
        """
        return _interchange.to_supervision(self)

    @classmethod
    def from_supervision(
        cls, detections: sv.Detections, *, image_size: tuple[int, int]
    ) -> Detections:
        """Convert from `supervision.Detections` with confidence, class_id and `class_name`.

        Example:
            >>> import supervision as sv
            >>> other = sv.Detections(
            ...     xyxy=np.array([[64, 48, 128, 96]]),
            ...     confidence=np.array([0.9]),
            ...     class_id=np.array([2]),
            ...     data={"class_name": np.array(["WBC"])},
            ... )
            >>> Detections.from_supervision(other, image_size=(480, 640)).labels
            ('WBC',)

        Args:
            image_size: height, width of the displayed image in pixels.

        Raises:
            ValueError: confidence, class_id or `class_name` is missing.
        """
        return cls.from_unsorted(**_interchange.from_supervision(detections), image_size=image_size)

    def to_coco(
        self, image_id: int | str, *, categories: Mapping[int, int] | None = None
    ) -> list[dict[str, Any]]:
        """Convert to COCO results: image_id, category_id, bbox (x, y, width, height), score.

        Example:
            >>> found = Detections.from_unsorted(
            ...     boxes=[[64, 48, 128, 96]],
            ...     scores=[0.5],
            ...     classes=[2],
            ...     labels=["WBC"],
            ...     image_size=(480, 640),
            ... )
            >>> found.to_coco(7)
            [{'image_id': 7, 'category_id': 2, 'bbox': [64.0, 48.0, 64.0, 48.0], 'score': 0.5}]

        Args:
            categories: class index -> category_id; by default both are equal.

        Returns:
            A dictionary for each detection, best first; `bbox` in pixels of the displayed image.

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
        """Convert from the COCO results of one image.

        Example:
            >>> result = {"category_id": 2, "bbox": [64, 48, 64, 48], "score": 0.5}
            >>> found = Detections.from_coco([result], names={2: "WBC"}, image_size=(480, 640))
            >>> found.boxes.tolist(), found.labels
            ([[64.0, 48.0, 128.0, 96.0]], ('WBC',))

        Args:
            names: category_id -> label. The category_id becomes the class index.
            image_size: height, width of the displayed image in pixels.

        Raises:
            KeyError: a key is missing, or a category has no name.
        """
        return cls.from_unsorted(**_interchange.from_coco(results, names), image_size=image_size)

    def to_pandas(self) -> pd.DataFrame:
        """Convert to a table with the columns of YOLOv5's `results.pandas().xyxy`.

        Example:
            >>> found = Detections.from_unsorted(
            ...     boxes=[[64, 48, 128, 96]],
            ...     scores=[0.5],
            ...     classes=[2],
            ...     labels=["WBC"],
            ...     image_size=(480, 640),
            ... )
            >>> print(found.to_pandas().to_string())
               xmin  ymin   xmax  ymax  confidence  class name
            0  64.0  48.0  128.0  96.0         0.5      2  WBC

        Raises:
            ImportError: pandas is not installed.
        """
        return _interchange.to_pandas(self)

    @classmethod
    def from_pandas(cls, table: pd.DataFrame, *, image_size: tuple[int, int]) -> Detections:
        """Convert from a table with the columns that `to_pandas` writes.

        Example:
            >>> import pandas as pd
            >>> row = {"xmin": 64, "ymin": 48, "xmax": 128, "ymax": 96, "confidence": 0.5}
            >>> table = pd.DataFrame([{**row, "class": 2, "name": "WBC"}])
            >>> Detections.from_pandas(table, image_size=(480, 640)).labels
            ('WBC',)

        Args:
            image_size: height, width of the displayed image in pixels.

        Raises:
            KeyError: a column is missing.
        """
        return cls.from_unsorted(**_interchange.from_pandas(table), image_size=image_size)

    @property
    def boxes_normalised(self) -> NDArray[np.float32]:
        """float32 [n, 4]: centre x, centre y, width, height, each divided by the image's side."""
        height, width = self.image_size
        x1, y1, x2, y2 = self.boxes.T
        centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
        normalised: NDArray[np.float32] = np.stack(
            (centre_x / width, centre_y / height, (x2 - x1) / width, (y2 - y1) / height), axis=1
        )
        return normalised

    def summary(self) -> str:
        """Count the detections of each class, in the words of YOLOv5.

        Example:
            >>> Detections.from_unsorted(
            ...     boxes=[[0, 0, 9, 9]] * 3,
            ...     scores=[0.9, 0.8, 0.7],
            ...     classes=[0, 0, 5],
            ...     labels=["person", "person", "bus"],
            ...     image_size=(480, 640),
            ... ).summary()
            '2 persons, 1 bus'
        """
        counts: dict[str, int] = {}
        for label in self.labels:
            counts[label] = counts.get(label, 0) + 1
        if not counts:
            return "no detections"
        return ", ".join(
            f"{n} {label}{'s' * (n > 1 and not label.endswith('s'))}" for label, n in counts.items()
        )

    def yolo_lines(self, *, confidence: bool = False) -> list[str]:
        """Return the lines of a YOLO text file: class, then the normalised box, to 6 digits each.

        Example:
            >>> Detections.from_unsorted(
            ...     boxes=[[64, 48, 128, 96]],
            ...     scores=[0.5],
            ...     classes=[2],
            ...     labels=["WBC"],
            ...     image_size=(480, 640),
            ... ).yolo_lines(confidence=True)
            ['2 0.15 0.15 0.1 0.1 0.5']

        Args:
            confidence: append the score, as YOLOv5's `--save-conf` does.

        Returns:
            A line for each detection: class, then centre x, centre y, width and height, each
            divided by the image's side.
        """
        lines = []
        for index, box, score in zip(self.classes, self.boxes_normalised, self.scores):
            values = [*box, score] if confidence else box
            lines.append(" ".join([str(index), *(f"{value:.6g}" for value in values)]))
        return lines


def _checked_shape(outputs: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    """Return B and K after checking the type and shape of each array.

    Raises:
        ValueError: an array has another type or shape.
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


def _check_values(found: Detections) -> None:
    """Check that the values of an answer are in range. The conditions refuse NaN as well.

    Raises:
        ValueError: a value is out of range, or the scores are not in descending order.
    """
    boxes, scores = found.boxes, found.scores
    height, width = found.image_size
    sides = np.array([width, height, width, height], np.float32)
    if not ((boxes >= 0) & (boxes <= sides)).all():
        raise ValueError(f"{names.DET_BOXES} has a box that is not in the image")
    if not (boxes[:, :2] <= boxes[:, 2:]).all():
        raise ValueError(f"{names.DET_BOXES} has a box that ends before it begins")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(f"{names.DET_SCORES} has a score that is not from 0 to 1")
    if not (scores[1:] <= scores[:-1]).all():
        raise ValueError(f"{names.DET_SCORES} are not in descending order")
    if not (found.classes >= 0).all():
        raise ValueError(f"{names.DET_CLASSES} has a negative index")


def _text(label: object) -> str:
    if not isinstance(label, bytes):
        raise ValueError(f"{names.DET_LABELS} has a label that is not a string of bytes")
    try:
        return label.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{names.DET_LABELS} has a label that is not UTF-8") from None


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
