"""Find the output of a network that holds its detections, and their form; if none does, say what
the network is.

The decision is based on shapes and values, as names differ between exporters. Arrays are the
outputs for photos, B images of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import BuildError
from ._onnx_file import quoted

Array = NDArray[Any]

# The forms of detections, for each of B images:
# [B, N, 5 + C]: cx, cy, w, h in pixels, objectness, and a score for each class; as YOLOv5 has them.
ROWS = "rows"
# [B, 4 + C, N]: cx, cy, w, h in pixels and a score for each class, of each cell; networks without
# anchors have them, such as YOLOv8.
CHANNELS = "channels"
# [B, K, 6]: x1, y1, x2, y2 in pixels, score, class index; of boxes that the network has chosen
# itself. Rows of score 0 or less only fill up the tensor.
CHOSEN = "chosen"

_STRIDES = (4, 8, 16, 32, 64, 128)
_RUNS = [_STRIDES[i:j] for i in range(5) for j in range(i + 2, 7)]
_USUAL_ANCHORS = 3
_MAX_ANCHORS = 9
# Layouts of networks without anchors, with one row for each cell.
_ANCHOR_FREE_RUNS = [(8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32)]
# Largest distance of a box's centre from its cell, in strides, in most rows. A side of a box is at
# most 15 strides from the cell in YOLOv8, thus a centre at most 7.5.
_REACH = 8
_SLACK = 1e-3  # tolerance beyond 0 and 1, for float16

_NMS_OUTPUTS = {"num_dets", "num_detections", "det_boxes", "detection_boxes", "nmsed_boxes"}
_MAX_DETECTIONS = 1000
_MASKS = 32  # prototypes of a segmentation network, at a quarter of the input size

BUILT_IN_NMS = "has non-maximum suppression built in; export it again without that"
_ONLY = "only detection networks as YOLOv5 and YOLOv8 export them are supported"
_UNDECODED = "without decoding; export it again with decoding (with --grid in release 5.0)"
_RELATIVE = (
    "gives its boxes in 0 to 1, as exports for TensorFlow do, where pixels are needed;"
    " export it again without that"
)
_CORNERS = "gives its boxes as two corners, where centre and size are needed"


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
        chooses: its file says that it chooses its boxes itself.
        classes: number of class names in its file, None if unknown.
        batch: number of photos.
        height, width: of the photos in pixels.
    """

    tensors: Mapping[str, Array]
    has_nms: bool
    chooses: bool = False
    classes: int | None = None
    batch: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an output holds detections.

    Attributes:
        kind: `ROWS`, `CHANNELS` or `CHOSEN`.
        layout: the order of the rows; None for `CHOSEN`.
    """

    kind: str
    layout: Layout | None

    @property
    def anchor_free(self) -> bool:
        """Whether it is of the families after YOLOv5, and not of YOLOv5 itself."""
        return self.layout is None or self.layout.anchors == 1

    def problem_with(self, array: Array, outputs: Outputs) -> str | None:
        """Why an output cannot have this form, as the end of a sentence; None if it can.

        Args:
            array: the output.
            outputs: what is known of the network, and the size of the photos.
        """
        problem = _problem_with_values(array)
        if problem is None and self.layout is None:
            return _problem_with_chosen(array, outputs.has_nms or outputs.chooses)
        if problem is None and self.layout is not None and self.kind == CHANNELS:
            return _problem_with_channels(array, self.layout, outputs)
        return problem or problem_with(array, outputs.height, outputs.width)

    def as_served(self, array: Array) -> Array:
        """The output in the form that is served: `CHANNELS` become `ROWS` with an objectness of 1.

        Args:
            array: [B, 4 + C, N], or of another form.

        Returns:
            [B, N, 5 + C], or `array` itself.
        """
        if self.kind != CHANNELS:
            return array
        parts = (array[:, :4], np.ones_like(array[:, :1]), array[:, 4:])
        return np.ascontiguousarray(np.concatenate(parts, 1).transpose(0, 2, 1))

    def fits(self, array: Array, height: int, width: int) -> bool:
        """Whether an output for photos of this size has the number of rows that it must have."""
        if array.ndim != 3:
            return False
        rows = array.shape[2] if self.kind == CHANNELS else array.shape[1]
        return self.layout is None or rows == self.layout.rows(height, width)


def find_rows(name: str, outputs: Outputs) -> tuple[str, Form]:
    """The name of the output that holds the detections, and their form.

    Raises:
        BuildError: no output holds them; the message begins with `name`.
    """
    problems = []
    for output, array in outputs.tensors.items():
        for form in _forms(array, outputs):
            if form.kind != CHOSEN and _masks(outputs):
                family = "YOLOv5" if form.kind == ROWS else "YOLOv8 or YOLO11"
                raise BuildError(f"{name} looks like a {family} segmentation network; {_ONLY}.")
            problem = form.problem_with(array, outputs)
            if problem is None:
                return output, form
            problems.append(problem)
    raise BuildError(f"{name} {problems[0] if problems else _other_network(outputs)}.")


def _forms(array: Array, outputs: Outputs) -> Iterator[Form]:
    """The forms that an output can have according to its shape."""
    if array.ndim != 3 or array.shape[0] != outputs.batch:
        return
    for strides in (*_ANCHOR_FREE_RUNS, *_RUNS):
        if array.shape[1] >= 5 and array.shape[2] == _cells(strides, outputs.height, outputs.width):
            yield Form(kind=CHANNELS, layout=Layout(anchors=1, strides=strides))
            break
    if array.shape[2] < 6:
        return
    layout = layout_for(array.shape[1], outputs.height, outputs.width)
    forms = []
    # Without anchors, only a network whose objectness is constant has rows, one that was converted.
    if layout is not None and (layout.anchors > 1 or (array[..., 4] == 1).all()):
        forms.append(Form(kind=ROWS, layout=layout))
    if array.shape[2] == 6 and (layout is None or layout.anchors > 1):
        forms.append(Form(kind=CHOSEN, layout=None))
    # As many boxes can be chosen as there are rows in a layout. Their classes are integers, and the
    # scores of rows are not.
    integers = bool((array[..., 5] == np.rint(array[..., 5])).all())
    yield from reversed(forms) if integers else forms


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
    """Why an output cannot be decoded `ROWS`, as the end of a sentence; None if it can."""
    problem = _problem_with_values(rows)
    if problem:
        return problem
    centres, sizes, scores = rows[..., :2], rows[..., 2:4], rows[..., 4:]
    # The centre of a box is at most half a cell outside the picture, or some cells without anchors.
    margin = _STRIDES[-1] if (rows[..., 4] != 1).any() else _REACH * _STRIDES[-1]
    inside = (centres > -margin) & (centres < np.array((width, height)) + margin)
    if not _in_unit_interval(scores) or not inside.all() or sizes.min() < 0:
        return f"answers with rows {_UNDECODED}"
    if centres.max() <= 2:
        return _RELATIVE
    return _CORNERS if (sizes >= centres).all() else None


def _problem_with_values(array: Array) -> str | None:
    if array.dtype not in (np.float16, np.float32, np.float64):
        return f"answers with {array.dtype} instead of float32 or float16"
    if not np.isfinite(array).all():
        return "answers with values that are not finite"
    return None


def _in_unit_interval(scores: Array) -> bool:
    return not scores.size or bool(scores.min() >= -_SLACK and scores.max() <= 1 + _SLACK)


def _problem_with_channels(array: Array, layout: Layout, outputs: Outputs) -> str | None:
    centres, sizes, scores = array[:, :2], array[:, 2:4], array[:, 4:]
    shape, more = list(array.shape), array.shape[1] - 4 - (outputs.classes or 0)
    if not _in_unit_interval(scores):
        if outputs.classes and more > 0:
            return (
                f"answers with {shape}, {more} values more than a box and {outputs.classes} classes"
                f" need, as networks for poses and oriented boxes do; {_ONLY}"
            )
        return f"answers with {shape}, but not with scores from 0 to 1; {_ONLY}"
    if centres.max() <= 2:
        return _RELATIVE
    reach, cells = _cell_centres(layout, outputs.height, outputs.width)
    distances = np.abs(centres - cells)
    # In a small picture, boxes may all be as large as that.
    middles = (centres + sizes) / 2  # of boxes that are given as corners
    if (sizes >= centres).all() and np.abs(middles - cells).mean() < distances.mean():
        return _CORNERS
    near = (distances <= reach).all(axis=1)
    if near.mean() < 0.5:
        return f"answers with {shape}, but not with boxes in pixels; {_ONLY}"
    return None


def _cell_centres(layout: Layout, height: int, width: int) -> tuple[Array, Array]:
    """For each cell the largest distance of a box's centre [N], and its own centre x, y [2, N]."""
    reach, cells = [], []
    for stride in layout.strides:
        y, x = np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride]
        cells.append(np.stack((x.ravel(), y.ravel())))
        reach.append(np.full(x.size, _REACH * stride))
    return np.concatenate(reach), np.concatenate(cells, 1)


def _problem_with_chosen(array: Array, chooses: bool) -> str | None:
    """Why an output cannot be `CHOSEN`.

    Args:
        chooses: the network is known to choose its boxes itself.
    """
    rows = array[array[..., 4] > 0]
    boxes, scores, classes = rows[:, :4], rows[:, 4], rows[:, 5]
    shape = list(array.shape)
    if not len(rows):
        nothing = f"answers with {shape} and finds nothing in photos; {_ONLY}"
        return None if chooses else nothing
    integers = classes.min() >= 0 and (classes == np.rint(classes)).all()
    if not _in_unit_interval(scores) or not integers:
        if _in_unit_interval(array):
            return f"looks like RT-DETR, answering {shape}; {_ONLY}"
        return f"answers with {shape}, but not with two corners, a score and a class; {_ONLY}"
    if boxes.max() <= 2:
        return _RELATIVE
    # YOLO26 does not limit the sides of boxes, and those of the last ones may be in reverse.
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)
    if np.average(ordered, weights=scores.astype(np.float64)) < 0.9:
        return "gives its boxes as centre and size, where two corners are needed"
    return None


def _masks(outputs: Outputs) -> bool:
    shape = (outputs.batch, _MASKS, outputs.height // 4, outputs.width // 4)
    return any(array.shape == shape for array in outputs.tensors.values())


def _other_network(outputs: Outputs) -> str:
    """What a network without detections is, as the end of a sentence."""
    arrays = list(outputs.tensors.values())
    single = [array for array in arrays if array.ndim == 3 and array.shape[0] == outputs.batch]
    if _masks(outputs):
        return f"looks like a segmentation network; {_ONLY}"
    if outputs.has_nms or not _NMS_OUTPUTS.isdisjoint(outputs.tensors):
        return BUILT_IN_NMS
    for array in single:
        shape = list(array.shape)
        layout, across = (layout_for(n, outputs.height, outputs.width) for n in shape[1:])
        if layout is not None and layout.anchors == 1 and shape[2] - 4 == outputs.classes:
            wanted = [shape[0], shape[2], shape[1]]
            return f"answers with {shape}, where {wanted} is needed; export it again in that order"
        if layout is not None and layout.anchors == 1 and shape[2] >= 6:
            return f"looks like an anchor-free network such as YOLOX, answering {shape}; {_ONLY}"
        in_parts = across is not None and across.anchors == 1  # boxes, scores of a YOLOv8
        if shape[1] > _MAX_DETECTIONS or shape[2] <= 7 or in_parts:
            continue
        if _in_unit_interval(array):
            return f"looks like RT-DETR, answering {shape}; {_ONLY}"
    maps = [(outputs.height // s, outputs.width // s) for s in _STRIDES]
    raw = {array.shape[2:4] for array in arrays if array.ndim == 5}
    raw_flat = {array.shape[2:] for array in arrays if array.ndim == 4}
    if not raw.isdisjoint(maps) or len(raw_flat.intersection(maps)) > 1:
        return f"holds the raw heads {_UNDECODED}"
    if any(a.shape[1] <= _MAX_DETECTIONS and a.shape[2] == 7 for a in single) or any(
        a.ndim == 2 and a.shape[0] != outputs.batch and a.shape[1] in (6, 7) for a in arrays
    ):
        return BUILT_IN_NMS
    if len(arrays) == 1 and arrays[0].ndim == 2 and arrays[0].shape[0] == outputs.batch:
        return f"looks like a classifier, answering {list(arrays[0].shape)}; {_ONLY}"
    return _listed(outputs)


def _listed(outputs: Outputs) -> str:
    shown = [f"{quoted(name)} {list(array.shape)}" for name, array in outputs.tensors.items()]
    if len(shown) > 4:
        shown[3:] = [f"{len(shown) - 3} more"]
    return (
        f"answers with {', '.join(shown) or 'no tensors'}; a detection network answers with"
        f" [{outputs.batch}, rows, 5 + classes], [{outputs.batch}, 4 + classes, rows]"
        f" or [{outputs.batch}, boxes, 6]"
    )
