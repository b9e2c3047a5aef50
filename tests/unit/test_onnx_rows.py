"""Which output of a network holds decoded rows, and what another network is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from yolov5_build import BuildError
from yolov5_build._onnx_rows import (
    CHANNELS,
    CHOSEN,
    ROWS,
    Form,
    Layout,
    Outputs,
    find_rows,
    layout_for,
    problem_with,
)

STRIDES = (4, 8, 16, 32, 64, 128)
RUNS = [STRIDES[i:j] for i, j in combinations(range(7), 2) if j - i >= 2]
UNDECODED = (
    "answers with rows without decoding; export it again with decoding (with --grid in release 5.0)"
)
RAW = (
    "holds the raw heads without decoding; export it again with decoding"
    " (with --grid in release 5.0)"
)
NMS = "has non-maximum suppression built in; export it again without that"
ONLY = "only detection networks as YOLOv5 and YOLOv8 export them are supported"
RELATIVE = (
    "gives its boxes in 0 to 1, as exports for TensorFlow do, where pixels are needed; export"
)

Array = NDArray[Any]


@pytest.mark.parametrize("strides", RUNS, ids=str)
def test_layout_follows_from_the_number_of_rows(strides: tuple[int, ...]) -> None:
    cells = sum((640 // s) * (1280 // s) for s in strides)
    layout = layout_for(3 * cells, 640, 1280)
    assert layout == Layout(anchors=3, strides=strides)
    assert layout is not None and layout.rows(640, 1280) == 3 * cells


@pytest.mark.parametrize(
    "rows, layout",
    [
        (1000, Layout(anchors=2, strides=(32, 64))),  # also 8 anchors at strides 64 and 128
        (1125, Layout(anchors=9, strides=(64, 128))),
        (1250, None),  # 10 anchors
        (1200, None),  # one feature map
        (0, None),
        (8401, None),
        # One row for each cell only as networks without anchors have it.
        (8400, Layout(anchors=1, strides=(8, 16, 32))),
        (8500, Layout(anchors=1, strides=(8, 16, 32, 64))),
        (34000, Layout(anchors=1, strides=(4, 8, 16, 32))),
        (125, None),
    ],
)
def test_layout_of_other_numbers_of_rows(rows: int, layout: Layout | None) -> None:
    assert layout_for(rows, 640, 640) == layout


@pytest.mark.parametrize("size", [(640, 648), (648, 640)])
def test_size_must_fit_the_strides(size: tuple[int, int]) -> None:
    assert Layout(anchors=3, strides=(8, 16, 32)).rows(*size) is None
    assert Layout(anchors=3, strides=(4, 8)).rows(*size) == 3 * (160 * 162 + 80 * 81)
    assert layout_for(25200, *size) is None


@pytest.mark.parametrize("size", [(640, 656), (656, 640)])
def test_size_must_fit_the_largest_stride(size: tuple[int, int]) -> None:
    assert Layout(anchors=3, strides=(8, 16, 32)).rows(*size) is None
    assert Layout(anchors=3, strides=(8, 16)).rows(*size) == 3 * (80 * 82 + 40 * 41)


def rows(height: int = 64, width: int = 64, **columns: float) -> Array:
    """Rows with centres all over the picture; the given values are in the last one."""
    count = 3 * sum((height // s) * (width // s) for s in (8, 16, 32))
    made = np.full((1, count, 6), 0.5)
    made[0, :, 0] = np.linspace(4, width - 4, count)
    made[0, :, 1] = np.linspace(4, height - 4, count)
    made[0, :, 2:4] = 20
    for name, value in columns.items():
        made[0, -1, ["cx", "cy", "w", "h", "objectness", "score"].index(name)] = value
    return made


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_decoded_rows_have_no_problem(kind: type) -> None:
    assert problem_with(rows().astype(kind), 64, 64) is None


@pytest.mark.parametrize(
    "columns",
    [
        {"cx": -127.9},
        {"cy": -127.9},
        {"cx": 223.9},
        {"cy": 191.9},
        {"w": 0},
        {"h": 0.1},
        {"objectness": -1e-3},
        {"score": -1e-3},
        {"objectness": 1 + 1e-3},
        {"score": 1 + 1e-3},
        {"w": 1000},
    ],
    ids=str,
)
def test_rows_at_the_limits_have_no_problem(columns: Mapping[str, float]) -> None:
    assert problem_with(rows(64, 96, **columns), 64, 96) is None


@pytest.mark.parametrize(
    "columns",
    [
        {"cx": -128},
        {"cy": -128},
        {"cx": 224},
        {"cy": 192},
        {"w": -0.1},
        {"h": -0.1},
        {"objectness": -2e-3},
        {"score": -2e-3},
        {"objectness": 1 + 2e-3},
        {"score": 1 + 2e-3},
    ],
    ids=str,
)
def test_rows_beyond_the_limits_are_not_decoded(columns: Mapping[str, float]) -> None:
    assert problem_with(rows(64, 96, **columns), 64, 96) == UNDECODED


def test_values_that_cannot_be_rows_are_described() -> None:
    assert problem_with(rows().astype(np.int64), 64, 64) == (
        "answers with int64 instead of float32 or float16"
    )
    assert problem_with(rows(w=np.inf), 64, 64) == "answers with values that are not finite"
    relative = rows() * (2 / rows()[..., :2].max())
    assert str(problem_with(relative, 64, 64)).startswith("gives its boxes in 0 to 1, as exports")
    assert problem_with(relative * 1.01, 64, 64) is None
    corners = rows()
    corners[..., 2:4] = corners[..., :2]
    assert problem_with(corners, 64, 64) == (
        "gives its boxes as two corners, where centre and size are needed"
    )
    corners[0, 0, 2] -= 1
    assert problem_with(corners, 64, 64) is None


def outputs(
    tensors: Mapping[str, Sequence[int] | Array], *, side: int = 640, **known: Any
) -> Outputs:
    """Outputs of given values, or of values of a given shape that are no detections."""
    return Outputs(
        tensors={
            name: one if isinstance(one, np.ndarray) else np.full(one, 2.5, np.float32)
            for name, one in tensors.items()
        },
        **{"has_nms": False, **known},
        batch=1,
        height=side,
        width=side,
    )


def problem(tensors: Mapping[str, Sequence[int] | Array], **options: Any) -> str:
    with pytest.raises(BuildError) as caught:
        find_rows("them.onnx", outputs(tensors, **options))
    sentence = str(caught.value)
    assert sentence.startswith("them.onnx ") and sentence.endswith(".")
    return sentence.removeprefix("them.onnx ").removesuffix(".")


@pytest.mark.parametrize(
    "other",
    [
        rows()[0],
        rows().repeat(2, axis=0),
        rows()[..., :5],
        rows()[:, :251],
        rows()[:, :84],
        rows(score=2),
    ],
    ids=["2 dimensions", "batch", "columns", "count", "anchors", "values"],
)
def test_output_with_rows_is_found_among_others(other: Array) -> None:
    form = Form(kind=ROWS, layout=Layout(anchors=3, strides=(8, 16, 32)))
    for tensors in ({"a": other, "b": rows()}, {"b": rows(), "a": other}):
        assert find_rows("them.onnx", outputs(tensors, side=64)) == ("b", form)


def test_problem_of_the_first_output_is_reported() -> None:
    tensors = {"a": rows(score=2), "b": rows().astype(np.int64)}
    assert problem(tensors, side=64) == UNDECODED


def test_two_anchors_are_enough() -> None:
    made = np.repeat(rows()[:, :84], 2, axis=1)
    made[0, :, :2] = np.linspace(4, 60, 168)[:, None]
    form = Form(kind=ROWS, layout=Layout(anchors=2, strides=(8, 16, 32)))
    assert find_rows("them.onnx", outputs({"a": made}, side=64)) == ("a", form)


@pytest.mark.parametrize(
    "masks, found",
    [
        ((1, 32, 160, 160), True),
        ((2, 32, 160, 160), False),
        ((1, 31, 160, 160), False),
        ((1, 32, 80, 160), False),
        ((1, 32, 160, 80), False),
    ],
)
def test_segmentation_networks_have_masks(masks: Sequence[int], found: bool) -> None:
    said = problem({"a": (1, 25200, 117), "masks": masks})
    assert (said == f"looks like a YOLOv5 segmentation network; {ONLY}") == found
    said = problem({"a": (1, 116, 8400), "masks": masks})
    assert said == (
        f"looks like a YOLOv8 or YOLO11 segmentation network; {ONLY}"
        if found
        else f"answers with [1, 116, 8400], but not with scores from 0 to 1; {ONLY}"
    )
    said = problem({"a": (1, 300, 38), "masks": masks})
    assert (said == f"looks like a segmentation network; {ONLY}") == found


@pytest.mark.parametrize(
    "tensors, sentence",
    [
        ({"a": (1, 5, 8400)}, "answers with [1, 5, 8400], but not with scores from 0 to 1; "),
        ({"a": (1, 84, 525)}, "answers with [1, 84, 525], but not with scores from 0 to 1; "),
        ({"a": np.full((1, 300, 84), 0.5)}, "looks like RT-DETR, answering [1, 300, 84]; "),
        ({"a": np.full((1, 300, 6), 0.5)}, "looks like RT-DETR, answering [1, 300, 6]; "),
        ({"a": (1, 300, 6)}, "answers with [1, 300, 6], but not with two corners, a score and a"),
        ({"a": (1, 8400, 6)}, "looks like an anchor-free network such as YOLOX, answering [1, 84"),
        ({"a": (1, 8500, 85)}, "looks like an anchor-free network such as YOLOX, answering [1, 8"),
        ({"a": (1, 3, 80, 80, 85)}, RAW),
        ({"a": (1, 3, 160, 160, 85)}, RAW),
        ({"a": (1, 3, 5, 5, 85)}, RAW),
        ({"a": (1, 255, 80, 80), "b": (1, 255, 40, 40)}, RAW),
        ({"a": (1, 255, 10, 10), "b": (1, 255, 5, 5)}, RAW),
        ({"a": (1, 300, 7)}, NMS),
        ({"a": (5, 6)}, NMS),
        ({"a": (5, 7), "b": (3,)}, NMS),
        ({"num_dets": (1, 1), "b": (1, 4)}, NMS),
        ({"b": (1, 4), "nmsed_boxes": (1, 1)}, NMS),
        ({"a": (1, 1000)}, "looks like a classifier, answering [1, 1000]; "),
        ({"a": (1, 7)}, "looks like a classifier, answering [1, 7]; "),
    ],
    ids=str,
)
def test_other_networks_are_recognised(tensors: Mapping[str, Sequence[int]], sentence: str) -> None:
    assert problem(tensors).startswith(sentence)


def test_suppression_leaves_at_most_a_thousand_boxes() -> None:
    assert problem({"a": (1, 1000, 7)}, side=608) == NMS
    assert problem({"a": (1, 1001, 7)}, side=608).startswith("answers with 'a' [1, 1001, 7]; ")


def test_operator_for_suppression_is_recognised() -> None:
    assert problem({"a": (1, 4, 8400)}, has_nms=True) == NMS


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": (1, 4, 8400)},
        {"a": (2, 84, 8400)},
        {"a": (1, 84, 8401)},
        {"a": (1, 8400, 5)},
        {"a": (1, 3, 81, 80, 85)},
        {"a": (1, 80, 80, 3, 85)},
        {"a": (1, 255, 80, 80)},
        {"a": (1, 255, 80, 80), "b": (1, 255, 40, 41)},
        {"a": (1, 255, 80, 80), "b": (1, 64, 80, 80)},
        {"a": (1, 1001, 7)},
        {"a": (1, 300, 5)},
        {"a": (1, 300, 8)},
        {"a": (5, 5)},
        {"a": (5, 8)},
        {"a": (2, 1000)},
        {"a": (1000,)},
        {"a": (1, 1000), "b": (1, 1000)},
        {"a": (3,), "b": (3,), "c": (3,), "d": (3,)},
    ],
    ids=str,
)
def test_outputs_of_unknown_networks_are_listed(tensors: Mapping[str, Sequence[int]]) -> None:
    listed = ", ".join(f"'{name}' {list(shape)}" for name, shape in tensors.items())
    assert problem(tensors) == (
        f"answers with {listed}; a detection network answers with [1, rows, 5 + classes],"
        " [1, 4 + classes, rows] or [1, boxes, 6]"
    )


def test_long_list_of_outputs_is_cut() -> None:
    assert problem(dict.fromkeys("abcde", (3,))).startswith(
        "answers with 'a' [3], 'b' [3], 'c' [3], 2 more; "
    )
    assert problem({}).startswith("answers with no tensors; ")


# ---------------------------------------------------------------------------------------------
# Networks without anchors


def channels(strides: Sequence[int] = (8, 16, 32), side: int = 64, classes: int = 2) -> Array:
    """Boxes around each cell, and scores."""
    parts = []
    for s in strides:
        y, x = np.mgrid[s / 2 : side : s, s / 2 : side : s]
        size, score = np.full(x.size, 20.0), np.full(x.size, 0.5)
        parts.append(np.stack([x.ravel(), y.ravel(), size, size, *[score] * classes]))
    made = np.concatenate(parts, 1)[None]
    assert isinstance(made, np.ndarray)
    return made


@pytest.mark.parametrize("strides", RUNS, ids=str)
def test_channels_are_recognised_by_the_number_of_cells(strides: tuple[int, ...]) -> None:
    side = max(128, 2 * strides[-1])
    form = Form(kind=CHANNELS, layout=Layout(anchors=1, strides=strides))
    for kind in (np.float16, np.float32, np.float64):
        made = channels(strides, side).astype(kind)
        assert find_rows("them.onnx", outputs({"a": made}, side=side)) == ("a", form)


def test_one_class_is_enough_for_channels() -> None:
    assert find_rows("them.onnx", outputs({"a": channels(classes=1)}, side=64))[0] == "a"


def test_channels_become_rows_with_an_objectness_of_one() -> None:
    form = Form(kind=CHANNELS, layout=Layout(anchors=1, strides=(8, 16)))
    array = np.arange(2 * 6 * 3, dtype=np.float32).reshape(2, 6, 3)
    assert form.as_served(array).tolist() == [
        [[i, i + 3, i + 6, i + 9, 1, i + 12, i + 15] for i in (first, first + 1, first + 2)]
        for first in (0, 18)
    ]
    assert form.as_served(array).dtype == np.float32
    other = Form(kind=CHOSEN, layout=None)
    assert other.as_served(array) is array


def test_number_of_rows_must_fit_the_size() -> None:
    layout = Layout(anchors=1, strides=(8, 16, 32))
    by_channel, by_row = (Form(kind=kind, layout=layout) for kind in (CHANNELS, ROWS))
    array = np.zeros((1, 84, 126))
    assert by_channel.fits(array, 64, 96) and not by_channel.fits(array, 64, 64)
    assert by_row.fits(array, 64, 64) and not by_row.fits(array, 64, 96)
    assert Form(kind=CHOSEN, layout=None).fits(array, 64, 64)
    assert not any(form.fits(array[0], 64, 64) for form in (by_channel, by_row))


def test_values_that_cannot_be_channels_are_described() -> None:
    def said(made: Array, **known: Any) -> str:
        return problem({"a": made}, side=64, **known)

    good = channels()
    assert said(good.astype(np.int64)) == "answers with int64 instead of float32 or float16"
    assert said(np.where(good == 20, np.inf, good)) == "answers with values that are not finite"
    scores = good.copy()
    scores[0, 5, 0] = 1 + 2e-3
    wanted = f"answers with [1, 6, 84], but not with scores from 0 to 1; {ONLY}"
    assert said(scores) == said(scores, classes=2) == wanted
    assert said(scores, classes=1) == (
        "answers with [1, 6, 84], 1 values more than a box and 1 classes need, as networks for"
        f" poses and oriented boxes do; {ONLY}"
    )
    assert said(good / np.array([64, 64, 64, 64, 1, 1])[:, None]).startswith(RELATIVE)
    corners = good.copy()
    corners[:, :2], corners[:, 2:4] = good[:, :2] - 10, good[:, :2] + 10
    assert said(corners) == "gives its boxes as two corners, where centre and size are needed"


def test_centres_must_be_near_their_cells() -> None:
    side = 640
    good = channels(side=side)
    reach = np.repeat([64, 128, 256], [6400, 1600, 400])
    for share, accepted in ((0.49, True), (0.51, False)):
        moved = good.copy()
        far = np.arange(8400) < share * 8400
        moved[0, 0, far] += reach[far] + 1
        moved[0, 0, ~far] -= reach[~far]
        tensors = {"a": moved}
        if accepted:
            assert find_rows("them.onnx", outputs(tensors))[0] == "a"
        else:
            wanted = f"answers with [1, 6, 8400], but not with boxes in pixels; {ONLY}"
            assert problem(tensors) == wanted


def test_rows_of_a_converted_network_have_a_constant_objectness() -> None:
    layout = Layout(anchors=1, strides=(8, 16, 32))
    made = Form(kind=CHANNELS, layout=layout).as_served(channels())
    found = find_rows("them.onnx", outputs({"a": made}, side=64))
    assert found == ("a", Form(kind=ROWS, layout=layout))
    made[0, 0, 0] = -1000  # at most 8 of the largest strides outside the picture
    assert find_rows("them.onnx", outputs({"a": made}, side=64)) == found
    made[0, 0, 0] = -1025
    assert problem({"a": made}, side=64) == UNDECODED
    made[0, 0, 4] = 0.5
    assert problem({"a": made}, side=64).startswith("looks like an anchor-free network such as")


# ---------------------------------------------------------------------------------------------
# Networks that choose their boxes themselves


def boxes(*rows: Sequence[float], fill: int = 0) -> Array:
    """[1, K, 6], with rows of zeros at the end."""
    return np.array([[*rows, *[[0] * 6] * fill]], np.float32)


CHOSEN_BOXES = boxes([10, 20, 60, 50, 0.9, 1], [-5, 3, 30, 30, 1, 0], fill=3)


@pytest.mark.parametrize(
    "made, side",
    [
        (CHOSEN_BOXES, 64),
        (CHOSEN_BOXES.astype(np.float16), 64),
        (boxes([10, 20, 60, 50, 1, 79]), 64),
        (boxes([10, 20, 60, 50, 1e-6, 5], [0, 0, 9, 9, -1, -1]), 64),
        (boxes([10, 20, 60, 50, 0.9, 5], *[[20, 20, 19, 21, 1e-3, 5]] * 9), 64),
        # The number of rows would also be one of a network with anchors: 5 at strides 32 and 64.
        (np.repeat(boxes([10, 20, 60, 50, 0.5, 1]), 25, axis=1), 64),
        (np.repeat(boxes([10, 20, 60, 50, 0.5, 0.0]), 25, axis=1), 64),
    ],
    ids=["two", "half", "one", "fillers", "bad ones", "class 1", "class 0"],
)
def test_boxes_that_a_network_chooses_are_recognised(made: Array, side: int) -> None:
    form = Form(kind=CHOSEN, layout=None)
    assert find_rows("them.onnx", outputs({"a": made}, side=side)) == ("a", form)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({5: 0.5}, "answers with [1, 5, 6], but not with two corners, a score and a class; "),
        ({5: -1}, "answers with [1, 5, 6], but not with two corners, a score and a class; "),
        ({4: 1.002}, "answers with [1, 5, 6], but not with two corners, a score and a class; "),
        ({0: 0.1, 1: 0.1, 2: 0.6, 3: 0.7}, RELATIVE),
        ({2: 5}, "gives its boxes as centre and size, where two corners are needed"),
        ({3: 5}, "gives its boxes as centre and size, where two corners are needed"),
        ({3: np.nan}, "answers with values that are not finite"),
        ({4: 0}, f"answers with [1, 5, 6] and finds nothing in photos; {ONLY}"),
    ],
    ids=str,
)
def test_values_that_cannot_be_chosen_boxes_are_described(
    changes: Mapping[int, float], sentence: str
) -> None:
    made = boxes([10, 20, 60, 50, 0.9, 1], fill=4)
    for column, value in changes.items():
        made[0, 0, column] = value
    assert problem({"a": made}, side=64).startswith(sentence)


def test_network_that_finds_nothing_must_be_known_to_choose_its_boxes() -> None:
    nothing = {"a": boxes(fill=5)}
    for known in ({"has_nms": True}, {"chooses": True}):
        form = Form(kind=CHOSEN, layout=None)
        assert find_rows("them.onnx", outputs(nothing, side=64, **known)) == ("a", form)
    assert "finds nothing in photos" in problem(nothing, side=64)


def test_few_boxes_may_be_inside_out() -> None:
    made = np.repeat(boxes([10, 20, 60, 50, 0.9, 1]), 12, axis=1)
    made[0, 0, 2] = 5
    assert find_rows("them.onnx", outputs({"a": made}, side=64))[0] == "a"
    made[0, 1, 3] = 5
    assert problem({"a": made}, side=64).startswith("gives its boxes as centre and size")
