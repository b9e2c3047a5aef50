"""Pack the detections of each request's images into the arrays of its response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from nms import Detections
from numpy.typing import NDArray


def encode_labels(class_names: Sequence[str]) -> NDArray[np.object_]:
    """The class names as bytes [C], index = class."""
    return np.array([name.encode() for name in class_names], np.object_)


def pack_detections(
    detections: Detections, requests: Sequence[int], labels: NDArray[np.object_]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Pad the detections of every image to the largest number in its request, K.

    Args:
        requests: the number of images B of each request.
        labels: as `encode_labels` returns them.

    Yields:
        For each request its outputs by name: num_dets [B, 1], det_boxes [B, K, 4], det_scores
        [B, K] (padding 0), det_classes [B, K] (padding -1), det_labels [B, K] of bytes (padding
        empty).
    """
    columns = (
        ("det_boxes", detections.boxes, 0),
        ("det_scores", detections.scores, 0),
        ("det_classes", detections.classes.astype(np.int32), -1),
        ("det_labels", labels[detections.classes], b""),
    )
    image = at = 0
    for images in requests:
        counts = detections.counts[image : image + images]
        end = at + sum(counts)
        packed = {"num_dets": np.array(counts, np.int32)[:, None]}
        for name, column, padding in columns:
            packed[name] = _pad(column[at:end], counts, padding)
        yield packed
        image, at = image + images, end


def _pad(column: NDArray[Any], counts: Sequence[int], padding: Any) -> NDArray[Any]:
    if len(counts) == 1:
        return column[None]
    padded = np.full((len(counts), max(counts), *column.shape[1:]), padding, column.dtype)
    at = 0
    for row, count in enumerate(counts):
        padded[row, :count] = column[at : at + count]
        at += count
    return padded
