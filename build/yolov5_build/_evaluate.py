"""Measure mAP and speed of an exported network on labelled photos, without a server.

The photos go through the modules of the server's own steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolov5_client import evaluation
from yolov5_client.evaluation import Predictions, Split

from . import _contract as contract
from ._runtimes import ONNX_RUNTIME, RUNTIMES
from .detector import Detector
from .metadata import Metadata, read_metadata
from .photos import PhotoLoader


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a network achieves on a data set.

    Attributes:
        map50, map50_95: mean average precision at IoU 0.5, and over 0.5 to 0.95.
        milliseconds: median time of the network alone for one image, on all cores of the CPU.
        bytes: size of the file.
        photos: number of photos that it was measured on.
    """

    map50: float
    map50_95: float
    milliseconds: float
    bytes: int
    photos: int = 0


def evaluate(
    path: Path,
    split: Split,
    *,
    imgsz: tuple[int, int] = contract.DEFAULT_SIZE,
    letterbox: str = contract.SQUARE,
    runtime: str = ONNX_RUNTIME,
) -> Measurement:
    """Measure an ONNX network that `export_onnx` or `import_onnx` wrote.

    Args:
        imgsz: height and width in pixels, if the network leaves them open.
        letterbox: the mode in which the network will be served.
        runtime: one of `RUNTIMES`.

    Raises:
        DataError: the data set has no labels, or other classes than the network.
    """
    network = RUNTIMES[runtime](path)
    height, width = (side or wanted for side, wanted in zip(network.sides, imgsz))
    metadata = read_metadata(path)
    photos = PhotoLoader(
        height, width, letterbox=letterbox, stride=metadata.stride, padding=metadata.padding
    )
    find = _detector(metadata)
    found, seconds = [], []
    for photo in split.photos:
        tensor, placement = photos.load(photo)
        started = time.perf_counter()
        rows = network.rows(tensor[None])
        seconds.append(time.perf_counter() - started)
        found.append(find(rows, placement))
    result = evaluation.evaluate(found, split, classes=len(metadata.names))
    return Measurement(
        map50=result.map50,
        map50_95=result.map50_95,
        milliseconds=float(np.median(seconds)) * 1000,
        bytes=path.stat().st_size,
        photos=len(split.photos),
    )


def _detector(metadata: Metadata) -> Callable[[NDArray[np.float32], Any], Predictions]:
    """What postprocess would find in an image, as a function of its rows [N, 5 + C] and placement.

    The thresholds are those of the reference's evaluation.
    """
    best_class_only = metadata.head != contract.FULL
    detector = Detector(
        classes=len(metadata.names),
        conf_thres=evaluation.CONF_THRES,
        iou_thres=evaluation.IOU_THRES,
        max_det=evaluation.MAX_DET,
        multi_label=not best_class_only,
        best_class_only=best_class_only,
        end_to_end=metadata.head == contract.END2END,
    )

    def find(rows: NDArray[np.float32], placement: Any) -> Predictions:
        boxes, scores, indices = detector(rows, placement)
        size = placement.height, placement.width
        return Predictions(boxes=boxes, scores=scores, classes=indices, size=size)

    return find
