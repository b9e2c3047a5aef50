"""The functions that the ensemble's steps call, combined in one process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from yolov5_build._contract import WHOLE
from yolov5_build.detector import Detector
from yolov5_build.metadata import read_metadata
from yolov5_build.steps import step_module

CONF_THRES, IOU_THRES, MAX_DET = 0.25, 0.45, 300  # those of preprocess/config.pbtxt

_CONFIDENT, _SAME_BOX = 0.5, 0.5  # a score, and an IoU


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The detections in one image.

    Attributes:
        boxes: [K, 4]: x1, y1, x2, y2 in pixels of the image.
        scores: [K]
        classes: [K]
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def difference_from(self, other: Answer) -> str | None:
        """Describe the difference from another answer; None if they are equal up to rounding."""
        if self.classes.tolist() != other.classes.tolist():
            return f"{len(self.classes)} detections in place of {len(other.classes)}"
        box = np.abs(self.boxes - other.boxes).max(initial=0)
        score = np.abs(self.scores - other.scores).max(initial=0)
        return f"box {box:.3f} px, score {score:.4f} off" if box > 0.1 or score > 1e-3 else None

    def missing_from(self, other: Answer) -> str | None:
        """Describe a confident detection that only the other has; for less exact numbers."""
        same = (
            box_iou(torch.from_numpy(other.boxes), torch.from_numpy(self.boxes)).numpy() > _SAME_BOX
        )
        for box, score, index, near in zip(other.boxes, other.scores, other.classes, same):
            if score > _CONFIDENT and not (near & (self.classes == index)).any():
                return f"nothing of class {index} near {box.round(1).tolist()}, score {score:.2f}"
        return None

    def as_dict(self) -> dict[str, Any]:
        return {
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "classes": self.classes.tolist(),
        }

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Answer:
        return cls(
            boxes=np.array(given["boxes"], np.float32).reshape(-1, 4),
            scores=np.array(given["scores"], np.float32),
            classes=np.array(given["classes"], np.int64),
        )


class Pipeline:
    """Decode, letterbox, network and suppression for one image.

    Args:
        network: an ONNX file of a fixed size, as `make model` writes it.
        threads: threads of ONNX Runtime for one image; 0 for its own default.
    """

    def __init__(self, network: Path, threads: int = 0) -> None:
        torch.set_num_threads(1)
        decode = step_module("preprocess", "decode")
        limits = decode.ImageLimits(bytes=32 << 20, pixels=64_000_000)
        self._decoder = decode.Decoder(limits)
        normalise = step_module("preprocess", "normalise")
        self._normaliser = normalise.HostNormaliser()
        self._splitter = normalise.PlaneSplitter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            network, options, providers=["CPUExecutionProvider"]
        )
        image = self._session.get_inputs()[0]
        self._input = image.name
        self.height, self.width = image.shape[2:]
        metadata = read_metadata(network)
        self._detect = Detector(
            classes=len(metadata.names),
            conf_thres=CONF_THRES,
            iou_thres=IOU_THRES,
            max_det=MAX_DET,
        )
        self._letterbox = partial(
            step_module("preprocess", "letterbox").letterbox,
            height=self.height,
            width=self.width,
            whole_padding=metadata.padding == WHOLE,
        )

    def decode(self, image: bytes) -> NDArray[np.uint8]:
        """Return the picture, BGR [H, W, 3]."""
        picture: NDArray[np.uint8] = self._decoder.decode(image)
        return picture

    def prepare(self, image: bytes) -> tuple[NDArray[np.float32], Any]:
        """Return the network's input [1, 3, H, W], and the placement of the picture in it."""
        return self.place(self.decode(image))

    def place(self, picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Any]:
        """Letterbox and normalise a decoded picture; returns what `prepare` does."""
        canvas, placement = self._letterbox(picture)
        batch = self._normaliser.allocate(1, self.height, self.width)
        self._normaliser.put(canvas, batch, 0)
        return batch, placement

    def pixels(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Letterbox a decoded picture to [1, 3, H, W], 0..255, as the embedded server does."""
        canvas, _ = self._letterbox(picture)
        batch: NDArray[np.uint8] = self._splitter.allocate(1, self.height, self.width)
        self._splitter.put(canvas, batch, 0)
        return batch

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network: [1, 3, H, W] -> rows [N, 5 + C]."""
        rows: NDArray[np.float32] = self._session.run(None, {self._input: batch})[0][0]
        return rows

    def finish(self, rows: NDArray[np.float32], placement: Any) -> Answer:
        boxes, scores, classes = self._detect(rows, placement)
        return Answer(boxes=boxes, scores=scores, classes=classes)

    def __call__(self, image: bytes) -> Answer:
        batch, placement = self.prepare(image)
        return self.finish(self.run(batch), placement)
