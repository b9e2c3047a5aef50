"""mAP and speed of an exported network on labelled photos, without a server.

The photos go through the modules that the server's own steps are made of. The figures are
pycocotools', with up to 300 detections for each photo.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ._dataset import Split
from ._errors import BuildError
from ._names import HEAD_KEY
from ._photos import Pictures, step_module

CONF_THRES, IOU_THRES, MAX_DET = 0.001, 0.6, 300  # those that YOLOv5 validates with


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


def evaluate(path: Path, split: Split, *, classes: int) -> Figures:
    """Measure an ONNX network that `export_onnx` or `import_onnx` wrote.

    Raises:
        BuildError: the data set has no labels, or not the network's classes.
    """
    if not any(len(labels) for labels in split.labels):
        raise BuildError("the data set has no labels to measure with.")
    if any((labels[:, 0] >= classes).any() for labels in split.labels):
        raise BuildError(f"the data set has labels beyond the network's {classes} classes.")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    height, width = (side if isinstance(side, int) else 640 for side in image.shape[2:])
    reduced = session.get_modelmeta().custom_metadata_map.get(HEAD_KEY) == "reduced"
    nms = step_module("postprocess", "nms")
    thresholds = nms.Thresholds(
        conf_thres=CONF_THRES,
        iou_thres=IOU_THRES,
        max_det=MAX_DET,
        agnostic_nms=False,
        multi_label=not reduced,
    )
    everything = torch.ones(classes, dtype=torch.bool)
    pictures = Pictures(height, width)
    found, sizes, seconds = [], [], []
    for photo in split.photos:
        tensor, placement = pictures.prepare(photo)
        started = time.perf_counter()
        rows = session.run(None, {image.name: tensor[None]})[0][0]
        seconds.append(time.perf_counter() - started)
        detections = nms.detect(
            torch.from_numpy(rows),
            thresholds,
            everything,
            nms.Placement.from_row(placement.as_row()),
            best_class_only=reduced,
        )
        found.append([part.numpy() for part in detections])
        sizes.append((placement.height, placement.width))
    map50, map50_95 = _mean_average_precision(found, split.labels, sizes, classes)
    return Figures(
        map50=map50,
        map50_95=map50_95,
        milliseconds=float(np.median(seconds)) * 1000,
        bytes=path.stat().st_size,
    )


def _mean_average_precision(
    found: Sequence[Sequence[NDArray[Any]]],
    labels: Sequence[NDArray[np.float64]],
    sizes: Sequence[tuple[int, int]],
    classes: int,
) -> tuple[float, float]:
    truths: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for image, ((boxes, scores, indices), rows, (height, width)) in enumerate(
        zip(found, labels, sizes), 1
    ):
        for index, x, y, w, h in rows:
            corner = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            truths.append(
                {
                    "id": len(truths) + 1,
                    "image_id": image,
                    "category_id": int(index),
                    "bbox": corner,
                    "area": corner[2] * corner[3],
                    "iscrowd": 0,
                }
            )
        answers += [
            {
                "image_id": image,
                "category_id": int(index),
                "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                "score": float(score),
            }
            for (x1, y1, x2, y2), score, index in zip(boxes, scores, indices)
        ]
    if not answers:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(1, len(sizes) + 1)],
            "categories": [{"id": index} for index in range(classes)],
            "annotations": truths,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(answers), "bbox")
        evaluation.params.maxDets = [MAX_DET]
        evaluation.evaluate()
        evaluation.accumulate()
    # [IoU, recall, class, area, limit]; -1 for classes that no label has.
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    precision = precision[:, :, precision[0, 0] > -1]
    return float(precision[0].mean()), float(precision.mean())
