"""Conversions of detections to and from other libraries, which are imported on use.

`to_...` returns the other library's form, `from_...` the arguments of `Detections.from_unsorted`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv

    from ._detections import Detections

_CORNERS = ["xmin", "ymin", "xmax", "ymax"]


def to_supervision(detections: Detections) -> sv.Detections:
    import supervision as sv

    return sv.Detections(
        xyxy=detections.boxes,
        confidence=detections.scores,
        class_id=detections.classes.astype(int),
        data={"class_name": np.array(detections.labels, dtype=np.str_)},
    )


def from_supervision(found: sv.Detections) -> dict[str, Any]:
    if found.confidence is None or found.class_id is None or "class_name" not in found.data:
        raise ValueError("the detections lack confidence, class_id or data['class_name'].")
    return {
        "boxes": found.xyxy,
        "scores": found.confidence,
        "classes": found.class_id,
        "labels": [str(label) for label in found.data["class_name"]],
    }


def to_coco(
    detections: Detections, image_id: int | str, categories: Mapping[int, int] | None
) -> list[dict[str, Any]]:
    results = []
    for (x1, y1, x2, y2), score, index in zip(
        detections.boxes.tolist(), detections.scores.tolist(), detections.classes.tolist()
    ):
        results.append(
            {
                "image_id": image_id,
                "category_id": index if categories is None else categories[index],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
        )
    return results


def from_coco(results: Iterable[Mapping[str, Any]], names: Mapping[int, str]) -> dict[str, Any]:
    rows = list(results)
    corners = [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in rows)]
    classes = [int(row["category_id"]) for row in rows]
    return {
        "boxes": corners,
        "scores": [row["score"] for row in rows],
        "classes": classes,
        "labels": [names[index] for index in classes],
    }


def to_pandas(detections: Detections) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(detections.boxes, columns=_CORNERS)
    table["confidence"] = detections.scores
    table["class"] = detections.classes
    table["name"] = pd.Series(detections.labels, dtype=object)
    return table


def from_pandas(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "boxes": table[_CORNERS].to_numpy(),
        "scores": table["confidence"].to_numpy(),
        "classes": table["class"].to_numpy(),
        "labels": [str(label) for label in table["name"].tolist()],
    }
