"""Pack the detections of a request's images into the arrays of its response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Detections = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


def pack_detections(images: Sequence[Detections], labels: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Pad the detections of every image to the largest number among them, K.

    Args:
        images: for each of the B images: boxes [n, 4], scores [n], classes [n].
        labels: class names, index = class.

    Returns:
        The outputs by name: num_dets [B, 1], det_boxes [B, K, 4], det_scores [B, K] (padding 0),
        det_classes [B, K] (padding -1), det_labels [B, K] of bytes (padding empty).
    """
    batch = len(images)
    counts = [len(scores) for _, scores, _ in images]
    most = max(counts)
    packed: dict[str, NDArray[Any]] = {
        "num_dets": np.array(counts, np.int32).reshape(batch, 1),
        "det_boxes": np.zeros((batch, most, 4), np.float32),
        "det_scores": np.zeros((batch, most), np.float32),
        "det_classes": np.full((batch, most), -1, np.int32),
        "det_labels": np.full((batch, most), b"", np.object_),
    }
    for row, (count, (boxes, scores, classes)) in enumerate(zip(counts, images)):
        packed["det_boxes"][row, :count] = boxes
        packed["det_scores"][row, :count] = scores
        packed["det_classes"][row, :count] = classes
        packed["det_labels"][row, :count] = [labels[index].encode() for index in classes]
    return packed
