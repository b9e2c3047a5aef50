from __future__ import annotations

import candidates
import nms
import numpy as np
import one_image
import pytest
import torch
from batch_thresholds import BatchThresholds
from candidates import MAX_CANDIDATES
from nms import InputError
from one_image import placement_of
from pack import encode_labels, pack_detections
from placement import Placement
from thresholds import NOT_REPORTED, Thresholds
from torch import Tensor

IDENTITY = placement_of([1, 1, 0, 0, 640, 640])
ALL = torch.ones(3, dtype=torch.bool)


def thresholds(**changes: float) -> Thresholds:
    values = {
        "conf_thres": 0.25,
        "iou_thres": 0.45,
        "max_det": 300,
        "agnostic_nms": 0,
        "multi_label": 0,
        **changes,
    }
    return Thresholds.from_row(list(values.values()))


def by_class(given: Thresholds, reported: Tensor) -> Tensor:
    """The same threshold for each class that may be reported."""
    return torch.where(reported, given.conf_thres, NOT_REPORTED)


def detect(
    rows: Tensor,
    given: Thresholds,
    reported: Tensor,
    placement: Placement,
    *,
    best_class_only: bool = False,
    end_to_end: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    return one_image.detect(
        rows,
        given,
        by_class(given, reported),
        placement,
        best_class_only=best_class_only,
        end_to_end=end_to_end,
    )


def row(cx: float, cy: float, w: float, h: float, objectness: float, *classes: float) -> Tensor:
    return torch.tensor([cx, cy, w, h, objectness, *classes])


# Two boxes of the same class with IoU 0.6, and one far from them.
NEAR = row(100, 100, 80, 80, 0.9, 0.9, 0.1, 0.0)
NEARER = row(120, 100, 80, 80, 0.8, 0.9, 0.1, 0.0)
FAR = row(400, 300, 50, 20, 0.5, 0.1, 0.2, 0.8)
ROWS = torch.stack([FAR, NEARER, NEAR])


def test_detections_are_corners_best_first_with_the_product_as_score() -> None:
    boxes, scores, classes = detect(ROWS, thresholds(), ALL, IDENTITY)
    assert boxes.tolist() == [[60, 60, 140, 140], [375, 290, 425, 310]]
    assert scores.tolist() == pytest.approx([0.81, 0.40])
    assert classes.tolist() == [0, 2]


def test_overlap_is_judged_by_iou_thres_for_each_class() -> None:
    assert len(detect(ROWS, thresholds(iou_thres=0.61), ALL, IDENTITY)[0]) == 3
    other = ROWS.clone()
    other[1, 5:7] = torch.tensor([0.1, 0.9])
    assert len(detect(other, thresholds(), ALL, IDENTITY)[0]) == 3
    assert len(detect(other, thresholds(agnostic_nms=1), ALL, IDENTITY)[0]) == 2


def test_thresholds_are_exclusive_as_in_the_reference() -> None:
    rows = torch.stack([row(10, 10, 4, 4, 0.5, 1.0, 0, 0), row(50, 50, 4, 4, 1.0, 0.5, 0, 0)])
    assert len(detect(rows, thresholds(conf_thres=0.5), ALL, IDENTITY)[0]) == 0
    assert len(detect(rows, thresholds(conf_thres=0.49), ALL, IDENTITY)[0]) == 2


def test_reduced_head_gives_the_same_detections() -> None:
    """Its rows hold what `detect` computes from a full head: the best score and its class."""
    full = torch.rand((500, 8), generator=torch.Generator().manual_seed(3)) ** 2
    full[:, :4] *= 640
    scores, classes = (full[:, 5:] * full[:, 4:5]).max(1, keepdim=True)
    reduced = torch.cat((full[:, :4], scores, classes.float()), 1)
    for allowed in (ALL, torch.tensor([True, False, True])):
        wanted = detect(full, thresholds(), allowed, IDENTITY)
        found = detect(reduced, thresholds(), allowed, IDENTITY, best_class_only=True)
        assert len(wanted[0]) > 20
        for one, other in zip(wanted, found):
            torch.testing.assert_close(one, other)


def test_reduced_head_refuses_multi_label_and_unknown_classes() -> None:
    with pytest.raises(InputError, match="the best class alone"):
        detect(ROWS[:, :6], thresholds(multi_label=1), ALL, IDENTITY, best_class_only=True)
    rows = torch.tensor([[10.0, 10.0, 5.0, 5.0, 0.9, 3.0]])
    with pytest.raises(InputError, match="a row's class is none of the 3"):
        detect(rows, thresholds(), ALL, IDENTITY, best_class_only=True)


def test_multi_label_reports_each_class_over_the_threshold() -> None:
    rows = row(100, 100, 80, 80, 1.0, 0.9, 0.6, 0.1)[None]
    assert detect(rows, thresholds(), ALL, IDENTITY)[2].tolist() == [0]
    _, scores, classes = detect(rows, thresholds(multi_label=1), ALL, IDENTITY)
    assert classes.tolist() == [0, 1]
    assert scores.tolist() == pytest.approx([0.9, 0.6])


@pytest.mark.parametrize("multi_label", [0, 1])
def test_classes_outside_the_filter_are_left_out(multi_label: int) -> None:
    wanted = torch.tensor([False, True, True])
    rows = torch.stack([NEAR, FAR, row(200, 200, 9, 9, 1.0, 0.6, 0.5, 0.0)])
    classes = detect(rows, thresholds(multi_label=multi_label), wanted, IDENTITY)[2].tolist()
    # The filter excludes the best class of the last row; only multi_label considers the second.
    assert classes == ([1, 2] if multi_label else [2])


def test_max_det_keeps_the_best() -> None:
    assert detect(ROWS, thresholds(max_det=1), ALL, IDENTITY)[2].tolist() == [0]


def test_boxes_are_mapped_back_and_clipped_to_the_picture() -> None:
    placement = placement_of([0.5, 0.5, 0, 106.5, 427 * 2, 1280])
    rows = torch.stack([row(100, 206.5, 40, 20, 1, 1, 0, 0), row(0, 106.5, 40, 20, 0.9, 1, 0, 0)])
    boxes = detect(rows, thresholds(), ALL, placement)[0].tolist()
    assert boxes == [[160, 180, 240, 220], [0, 0, 40, 20]]
    moved = placement_of([0.5, 0.5, 80, 8, 400, 160])
    rows[1, :2] = torch.tensor([180.0, 300.0])
    assert detect(rows, thresholds(), ALL, moved)[0].tolist() == [
        [0, 377, 80, 400],
        [160, 400, 160, 400],
    ]
    rows[1, :2] = torch.tensor([0.0, 106.5])
    stretched = placement_of([0.5, 2, 0, 0, 320, 1280])
    assert detect(rows[:1], thresholds(), ALL, stretched)[0].tolist() == [[160, 98.25, 240, 108.25]]


def test_best_class_only_accepts_exactly_the_classes_that_there_are() -> None:
    rows = torch.tensor([[10.0, 10.0, 5.0, 5.0, 0.9, 0.0], [99.0, 99.0, 5.0, 5.0, 0.8, 2.0]])
    assert detect(rows, thresholds(), ALL, IDENTITY, best_class_only=True)[2].tolist() == [0, 2]
    for wrong in (-1, 3):
        rows[1, 5] = wrong
        with pytest.raises(InputError, match="a row's class is none of the 3"):
            detect(rows, thresholds(), ALL, IDENTITY, best_class_only=True)
    rows[:, 4] = 0  # nothing is asked of rows that do not count
    assert not len(detect(rows, thresholds(), ALL, IDENTITY, best_class_only=True)[0])


def test_thresholds_of_a_reduced_head_are_exclusive() -> None:
    rows = torch.tensor([[10.0, 10.0, 5.0, 5.0, 0.5, 0.0]])
    for conf_thres, count in ((0.5, 0), (0.49, 1)):
        found = detect(rows, thresholds(conf_thres=conf_thres), ALL, IDENTITY, best_class_only=True)
        assert len(found[0]) == count


# Boxes that a network has chosen: corners, score, class; the last row fills up the tensor.
CHOSEN = torch.tensor(
    [
        [10, 10, 50, 50, 0.5, 2],
        [12, 10, 52, 50, 0.9, 2],
        [500, 400, 700, 500, 0.3, 0],
        [10, 10, 50, 50, 0.5, 1],
        [0, 0, 0, 0, 0, 0],
    ]
)


def test_boxes_that_the_network_has_chosen_are_not_suppressed() -> None:
    for iou_thres in (0.0, 0.45, 1.0):
        limits = thresholds(iou_thres=iou_thres)
        boxes, scores, classes = detect(CHOSEN, limits, ALL, IDENTITY, end_to_end=True)
        assert boxes.tolist() == [
            [12, 10, 52, 50],
            [10, 10, 50, 50],  # of equal scores the first
            [10, 10, 50, 50],
            [500, 400, 640, 500],  # clipped to the picture
        ]
        assert scores.tolist() == pytest.approx([0.9, 0.5, 0.5, 0.3])
        assert classes.tolist() == [2, 2, 1, 0]


def test_other_thresholds_apply_to_boxes_that_the_network_has_chosen() -> None:
    def found(allowed: Tensor = ALL, **changes: float) -> list[int]:
        limits = thresholds(**changes)
        return detect(CHOSEN, limits, allowed, IDENTITY, end_to_end=True)[2].tolist()

    assert found(conf_thres=0.5) == [2]
    assert found(conf_thres=0.49) == [2, 2, 1]
    assert found(max_det=2) == [2, 2]
    assert found(torch.tensor([True, True, False])) == [1, 0]
    with pytest.raises(InputError, match="the best class alone"):
        found(multi_label=1)


def test_threshold_of_a_class_applies_to_boxes_that_the_network_has_chosen() -> None:
    for by_class, wanted in (
        ([0.25, 0.25, 0.6], [2, 1, 0]),
        ([0.4, 0.25, 0.25], [2, 2, 1]),
        ([0.1, NOT_REPORTED, 0.9], [0]),
    ):
        limits = thresholds(conf_thres=min(by_class))
        found = one_image.detect(CHOSEN, limits, torch.tensor(by_class), IDENTITY, end_to_end=True)
        assert found[2].tolist() == wanted


def test_rows_that_fill_up_the_tensor_are_no_detections() -> None:
    for filler in ([0.0] * 6, [0.0, 0, 0, 0, 0, -1], [-1.0] * 6):
        rows = torch.stack([CHOSEN[0], torch.tensor(filler)])
        found = detect(rows, thresholds(conf_thres=0), ALL, IDENTITY, end_to_end=True)
        assert found[2].tolist() == [2]


def test_thresholds_of_several_labels_are_exclusive() -> None:
    rows = row(100, 100, 80, 80, 1.0, 0.9, 0.5, 0.25)[None]
    for conf_thres, classes in ((0.5, [0]), (0.49, [0, 1]), (0.25, [0, 1]), (0.24, [0, 1, 2])):
        given = thresholds(conf_thres=conf_thres, multi_label=1)
        assert detect(rows, given, ALL, IDENTITY)[2].tolist() == classes


def test_as_many_candidates_are_allowed_as_in_the_reference() -> None:
    assert MAX_CANDIDATES == 30_000


@pytest.mark.parametrize("surplus", [-1, 0, 1, 2, 500])
def test_candidates_beyond_the_most_allowed_are_dropped_worst_and_last_first(surplus: int) -> None:
    count = MAX_CANDIDATES + surplus
    scores = torch.full((count,), 0.5)
    scores[::100] = 0.75  # as many as can be kept: some of the equal ones are dropped
    wanted = torch.ones(count, dtype=torch.bool)
    wanted[:3] = False
    kept = candidates.keep_best(wanted.clone(), scores)
    expected = wanted.clone()
    dropped = max(0, surplus - 3)
    worst = (wanted & (scores == 0.5)).nonzero().squeeze(1)
    expected[worst[len(worst) - dropped :]] = False
    assert torch.equal(kept, expected)


def test_no_detections_are_empty_tensors() -> None:
    boxes, scores, classes = detect(ROWS * 0, thresholds(), ALL, IDENTITY)
    assert (boxes.shape, scores.shape, classes.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize("best_class_only", [False, True])
def test_only_the_best_candidates_enter_the_suppression(best_class_only: bool) -> None:
    count = MAX_CANDIDATES + 5000
    rows = torch.rand((count, 6), generator=torch.Generator().manual_seed(0))
    rows[:, 4] = rows[:, 4].sqrt() * 0.5 + 0.5
    rows[:, 5] = 0 if best_class_only else 1
    given = one_image.asked(thresholds(), by_class(thresholds(), ALL[:1]), IDENTITY)
    selected = candidates.select_rows([rows[None]], given.conf_thres)
    boxes, scores, classes, _ = candidates.find_candidates(selected, given, reduced=best_class_only)
    assert (boxes.shape, classes.shape) == ((MAX_CANDIDATES, 4), (MAX_CANDIDATES,))
    best = rows[:, 4].sort(descending=True).values[:MAX_CANDIDATES]
    assert torch.equal(scores.sort(descending=True).values, best)


def test_half_precision_rows_are_computed_in_float32() -> None:
    boxes, scores, _ = detect(ROWS.half(), thresholds(), ALL, IDENTITY)
    assert (boxes.dtype, scores.dtype) == (torch.float32, torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_gpu_gives_the_same_detections() -> None:
    host = detect(ROWS, thresholds(), ALL, IDENTITY)
    device = detect(ROWS.cuda(), thresholds(), ALL.cuda(), IDENTITY)
    for one, other in zip(host, device):
        torch.testing.assert_close(one, other)


def test_pack_pads_to_the_largest_number_of_detections_of_a_request() -> None:
    asked = thresholds().as_row()
    given = BatchThresholds.from_arrays(
        np.array([asked] * 3, np.float32),
        np.full((3, 3), 0.25, np.float32),
        np.array([IDENTITY.as_row()] * 3, np.float32),
    )
    found = nms.detect([torch.stack([ROWS, ROWS * 0]), ROWS[None, :1]], given)
    assert found.counts == [2, 0, 1]
    packed, other = pack_detections(found, [2, 1], encode_labels(("a", "b", "ç")))
    assert other["det_boxes"].tolist() == [[[375, 290, 425, 310]]]
    assert other["det_labels"].tolist() == [["ç".encode()]]
    assert packed["num_dets"].tolist() == [[2], [0]]
    assert packed["det_boxes"].shape == (2, 2, 4)
    assert packed["det_classes"].tolist() == [[0, 2], [-1, -1]]
    assert packed["det_labels"].tolist() == [[b"a", "ç".encode()], [b"", b""]]
    assert not packed["det_scores"][1].any()
    assert {name: array.dtype for name, array in packed.items()} == {
        "num_dets": np.int32,
        "det_boxes": np.float32,
        "det_scores": np.float32,
        "det_classes": np.int32,
        "det_labels": np.object_,
    }
