"""mAP and speed of an exported network on labelled photos, without a server.

The photos go through the modules that the server's own steps are made of.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from yolov5_client import evaluation
from yolov5_client.evaluation import Predictions, Split

from ._metadata import read_metadata
from ._photos import Pictures, step_module
from ._runtimes import ONNX_RUNTIME, RUNTIMES


@dataclass(frozen=True, kw_only=True)
class Figures:
    """
    Attributes:
        map50, map50_95: mean average precision at IoU 0.5, and over 0.5 to 0.95.
        milliseconds: the network's own time for one image, the median, on all the CPU's cores.
        bytes: of the file.
    """

    map50: float
    map50_95: float
    milliseconds: float
    bytes: int


def evaluate(
    path: Path,
    split: Split,
    *,
    imgsz: tuple[int, int] = (640, 640),
    letterbox: str = "square",
    runtime: str = ONNX_RUNTIME,
) -> Figures:
    """Measure an ONNX network that `export_onnx` or `import_onnx` wrote.

    Args:
        runtime: one of `RUNTIMES`.
        imgsz: height and width for a network that leaves them open.
        letterbox: as it will be served.

    Raises:
        DataError: the data set has no labels, or not the network's classes.
    """
    network = RUNTIMES[runtime](path)
    height, width = (side or wanted for side, wanted in zip(network.sides, imgsz))
    metadata = read_metadata(path)
    classes = len(metadata.names)
    reduced = metadata.head == "reduced"
    nms = step_module("postprocess", "nms")
    thresholds = nms.Thresholds(
        conf_thres=evaluation.CONF_THRES,
        iou_thres=evaluation.IOU_THRES,
        max_det=evaluation.MAX_DET,
        agnostic_nms=False,
        multi_label=not reduced,
    )
    everything = torch.ones(classes, dtype=torch.bool)
    pictures = Pictures(height, width, letterbox=letterbox, stride=metadata.stride)
    found, seconds = [], []
    for photo in split.photos:
        tensor, placement = pictures.prepare(photo)
        started = time.perf_counter()
        rows = network.rows(tensor[None])
        seconds.append(time.perf_counter() - started)
        detections = nms.detect(
            torch.from_numpy(rows),
            thresholds,
            everything,
            nms.Placement.from_row(placement.as_row()),
            best_class_only=reduced,
        )
        boxes, scores, indices = (part.numpy() for part in detections)
        size = placement.height, placement.width
        found.append(Predictions(boxes=boxes, scores=scores, classes=indices, size=size))
    result = evaluation.evaluate(found, split, classes=classes)
    return Figures(
        map50=result.map50,
        map50_95=result.map50_95,
        milliseconds=float(np.median(seconds)) * 1000,
        bytes=path.stat().st_size,
    )
