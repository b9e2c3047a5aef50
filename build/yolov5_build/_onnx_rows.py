"""Find the output of a network that holds YOLOv5's decoded rows; if none does, say what it is.

The decision is based on shapes and values, as names differ between exporters. Arrays are the
outputs for photos, B images of H x W pixels. Rows are [B, N, 5 + C]: cx, cy, w, h in pixels,
objectness, and a score for each class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import BuildError
from ._onnx_file import quoted

Array = NDArray[Any]

_STRIDES = (4, 8, 16, 32, 64, 128)
_RUNS = [_STRIDES[i:j] for i in range(5) for j in range(i + 2, 7)]
_USUAL_ANCHORS = 3
_MAX_ANCHORS = 9
# Layouts of networks without anchors, with one row for each cell.
_ANCHOR_FREE_RUNS = [(8, 16, 32), (8, 16, 32, 64)]
_SLACK = 1e-3  # tolerance beyond 0 and 1, for float16

_NMS_OUTPUTS = {"num_dets", "num_detections", "det_boxes", "detection_boxes", "nmsed_boxes"}
_MAX_DETECTIONS = 1000
_MASKS = 32  # prototypes of a segmentation network, at a quarter of the input size

BUILT_IN_NMS = "has non-maximum suppression built in; export it again without that"
_ONLY = "only YOLOv5 detection networks are supported"
_UNDECODED = "without decoding; export it again with decoding (with --grid in release 5.0)"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The order of rows: a feature map for each stride in pixels, `anchors` rows for each cell."""

    anchors: int
    strides: tuple[int, ...]

    def rows(self, height: int, width: int) -> int | None:
        """The number of rows for an input of this size, None if it does not fit the strides."""
        cells = _cells(self.strides, height, width)
        return cells and self.anchors * cells


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The outputs of a network for photos.

    Attributes:
        tensors: by name.
        has_nms: the network has an operator for non-maximum suppression.
        batch: number of photos.
        height, width: of the photos in pixels.
    """

    tensors: Mapping[str, Array]
    has_nms: bool
    batch: int
    height: int
    width: int


def find_rows(name: str, outputs: Outputs) -> tuple[str, Layout]:
    """The name of the output that holds the decoded rows, and their layout.

    Raises:
        BuildError: no output holds them; the message begins with `name`.
    """
    problems = []
    for output, array in outputs.tensors.items():
        if array.ndim != 3 or array.shape[0] != outputs.batch or array.shape[2] < 6:
            continue
        layout = layout_for(array.shape[1], outputs.height, outputs.width)
        if layout is None or layout.anchors == 1:
            continue
        if _masks(outputs):
            raise BuildError(f"{name} looks like a YOLOv5 segmentation network; {_ONLY}.")
        problem = problem_with(array, outputs.height, outputs.width)
        if problem is None:
            return output, layout
        problems.append(problem)
    raise BuildError(f"{name} {problems[0] if problems else _other_network(outputs)}.")


def layout_for(rows: int, height: int, width: int) -> Layout | None:
    """The layout with this number of rows; of several, the one with the usual number of anchors."""
    layouts = []
    for strides in _RUNS:
        cells = _cells(strides, height, width)
        if cells and rows and rows % cells == 0:
            layout = Layout(anchors=rows // cells, strides=strides)
            if layout.anchors <= _MAX_ANCHORS:
                layouts.append(layout)
    possible = [x for x in layouts if x.anchors > 1 or x.strides in _ANCHOR_FREE_RUNS]
    return min(
        possible, key=lambda x: (x.anchors != _USUAL_ANCHORS, x.anchors, x.strides), default=None
    )


def _cells(strides: tuple[int, ...], height: int, width: int) -> int | None:
    if height % strides[-1] or width % strides[-1]:
        return None
    return sum((height // s) * (width // s) for s in strides)


def problem_with(rows: Array, height: int, width: int) -> str | None:
    """Why an output cannot be decoded rows, as the end of a sentence; None if it can."""
    if rows.dtype not in (np.float16, np.float32, np.float64):
        return f"answers with {rows.dtype} instead of float32 or float16"
    if not np.isfinite(rows).all():
        return "answers with values that are not finite"
    centres, sizes, scores = rows[..., :2], rows[..., 2:4], rows[..., 4:]
    # The centre of a box is at most half a cell outside the picture.
    margin = _STRIDES[-1]
    inside = (centres > -margin) & (centres < np.array((width, height)) + margin)
    if scores.min() < -_SLACK or scores.max() > 1 + _SLACK or not inside.all() or sizes.min() < 0:
        return f"answers with rows {_UNDECODED}"
    if centres.max() <= 2:
        return (
            "gives its boxes in 0 to 1, as exports for TensorFlow do, where pixels are needed;"
            " export it again without that"
        )
    if (sizes >= centres).all():
        return "gives its boxes as two corners, where centre and size are needed"
    return None


def _masks(outputs: Outputs) -> bool:
    shape = (outputs.batch, _MASKS, outputs.height // 4, outputs.width // 4)
    return any(array.shape == shape for array in outputs.tensors.values())


def _other_network(outputs: Outputs) -> str:
    """What a network without decoded rows is, as the end of a sentence."""
    if outputs.has_nms or not _NMS_OUTPUTS.isdisjoint(outputs.tensors):
        return BUILT_IN_NMS
    arrays = list(outputs.tensors.values())
    single = [array for array in arrays if array.ndim == 3 and array.shape[0] == outputs.batch]
    for array in single:
        shape = list(array.shape)
        if shape[1] >= 5 and shape[2] in [_cells(r, outputs.height, outputs.width) for r in _RUNS]:
            task = "segmentation " if _masks(outputs) else ""
            return f"looks like a YOLOv8 or YOLO11 {task}network, answering {shape}; {_ONLY}"
        layout = layout_for(shape[1], outputs.height, outputs.width)
        if layout is not None and layout.anchors == 1 and shape[2] >= 6:
            return f"looks like an anchor-free network such as YOLOX, answering {shape}; {_ONLY}"
    maps = [(outputs.height // s, outputs.width // s) for s in _STRIDES]
    raw = {array.shape[2:4] for array in arrays if array.ndim == 5}
    raw_flat = {array.shape[2:] for array in arrays if array.ndim == 4}
    if not raw.isdisjoint(maps) or len(raw_flat.intersection(maps)) > 1:
        return f"holds the raw heads {_UNDECODED}"
    if any(a.shape[1] <= _MAX_DETECTIONS and a.shape[2] in (6, 7) for a in single) or any(
        a.ndim == 2 and a.shape[0] != outputs.batch and a.shape[1] in (6, 7) for a in arrays
    ):
        return BUILT_IN_NMS
    if len(arrays) == 1 and arrays[0].ndim == 2 and arrays[0].shape[0] == outputs.batch:
        return f"looks like a classifier, answering {list(arrays[0].shape)}; {_ONLY}"
    shown = [f"{quoted(name)} {list(array.shape)}" for name, array in outputs.tensors.items()]
    if len(shown) > 4:
        shown[3:] = [f"{len(shown) - 3} more"]
    return (
        f"answers with {', '.join(shown) or 'no tensors'}; a YOLOv5 detection network answers with"
        f" [{outputs.batch}, rows, 5 + classes]"
    )
