"""Turn the network's rows into the detections of one image, in pixels of that image.

The rules are those of YOLOv5 (v7.0), with which answers are compared: a row counts if its
objectness is over conf_thres; its score is objectness times class score, for the best class or,
with multi_label, for each class over conf_thres; non-maximum suppression runs per class, or
over all classes with agnostic_nms. With a conf_thres for each class, candidates are those of one
run for each class with that conf_thres, which takes nothing but this class. Boxes that an
end-to-end network has chosen are not suppressed.

A full head has rows [N, 5 + C]: cx, cy, w, h in model pixels, objectness, class scores. A reduced
one has [N, 6]: the box, the best class's score times objectness, its index. An end-to-end one has
[N, 6]: x1, y1, x2, y2 in model pixels, score, class index; rows that only fill up the tensor have
the score 0, which is over no conf_thres.

Tensors may be on any device; the result is on the same one.
"""

from __future__ import annotations

import torch
from placement import Placement
from suppression import suppress
from thresholds import Thresholds
from torch import Tensor

MAX_CANDIDATES = 30_000  # the best of them enter the suppression


class InputError(ValueError):
    """The inputs do not fit each other or the model; the ensemble never sends such inputs."""


def check_lowest(conf_thres: Tensor, class_conf_thres: Tensor) -> None:
    """Check that no class needs rows that the network may have left out.

    Args:
        conf_thres: [B], the confidence that the network was given with each image.
        class_conf_thres: [B, C].

    Raises:
        InputError: it is not the lowest of the classes.
    """
    if not torch.equal(conf_thres, class_conf_thres.amin(1)):
        raise InputError("conf_thres is not the lowest of class_conf_thres; allowed: the lowest")


def detect(
    rows: Tensor,
    thresholds: Thresholds,
    class_conf_thres: Tensor,
    placement: Placement,
    *,
    best_class_only: bool = False,
    end_to_end: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the detections of one image, best first.

    Args:
        rows: [N, 5 + C] or [N, 6] float, as the head has them.
        thresholds: as requested, with the lowest conf_thres of all classes.
        class_conf_thres: [C] float32: the conf_thres of each class, `NOT_REPORTED` for none.
        placement: where the image lies in the network's input.
        best_class_only, end_to_end: of the head. With the latter, `iou_thres` has no effect.

    Returns:
        boxes [K, 4] float32: x1, y1, x2, y2 in pixels of the image, clipped to it;
        scores [K] float32; classes [K] int64. K <= max_det.

    Raises:
        InputError: multi_label is requested of rows [N, 6], or a class index is out of range.
    """
    candidates = _reduced_candidates if best_class_only or end_to_end else _full_candidates
    boxes, scores, classes = candidates(rows, thresholds, class_conf_thres)
    boxes = boxes if end_to_end else _corners(boxes)
    kept = _best(boxes, scores, classes, thresholds, suppressing=not end_to_end)
    return _to_image(boxes[kept], placement), scores[kept], classes[kept]


def _best(
    boxes: Tensor, scores: Tensor, classes: Tensor, thresholds: Thresholds, *, suppressing: bool
) -> Tensor:
    """The indices of the boxes that are reported, best first."""
    if not suppressing:
        return scores.sort(descending=True, stable=True).indices[: thresholds.max_det]
    groups = None if thresholds.agnostic_nms else classes
    return suppress(boxes, scores, groups, thresholds.iou_thres, thresholds.max_det)


def _full_candidates(
    rows: Tensor, thresholds: Thresholds, class_conf_thres: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows = rows[rows[:, 4] > thresholds.conf_thres].float()
    objectness = rows[:, 4]
    all_scores = rows[:, 5:] * objectness[:, None]
    if thresholds.multi_label:
        wanted = (all_scores > class_conf_thres) & (objectness[:, None] > class_conf_thres)
        index, classes = _keep_best(wanted, all_scores).nonzero(as_tuple=True)
        scores = all_scores[index, classes]
    else:
        scores, classes = all_scores.max(1)
        least = class_conf_thres[classes]
        wanted = (scores > least) & (objectness > least)
        index = _keep_best(wanted, scores).nonzero().squeeze(1)
        scores, classes = scores[index], classes[index]
    return rows[:, :4][index], scores, classes


def _reduced_candidates(
    rows: Tensor, thresholds: Thresholds, class_conf_thres: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if thresholds.multi_label:
        raise InputError("multi_label is true, but the rows hold the best class alone")
    rows = rows[rows[:, 4] > thresholds.conf_thres].float()
    scores, classes = rows[:, 4], rows[:, 5].long()
    if len(classes) and not 0 <= classes.min() <= classes.max() < len(class_conf_thres):
        raise InputError(f"a row's class is none of the {len(class_conf_thres)} there are")
    index = _keep_best(scores > class_conf_thres[classes], scores).nonzero().squeeze(1)
    return rows[index, :4], scores[index], classes[index]


def _keep_best(wanted: Tensor, scores: Tensor) -> Tensor:
    """Keep the best `MAX_CANDIDATES` of `wanted`, a mask of the same shape as `scores`.

    Of equal scores the first are kept. This works on the mask, as there may be millions of
    candidates, and to list them would copy a row of the network for each.
    """
    surplus = int(wanted.count_nonzero()) - MAX_CANDIDATES
    if surplus <= 0:
        return wanted
    lowest = scores[wanted].kthvalue(surplus + 1).values
    ties = (wanted & (scores == lowest)).flatten().nonzero().squeeze(1)
    best = wanted & (scores > lowest)
    best.view(-1)[ties[: MAX_CANDIDATES - int(best.count_nonzero())]] = True
    return best


def _corners(boxes: Tensor) -> Tensor:
    """cx, cy, w, h -> x1, y1, x2, y2."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat((centre - half, centre + half), 1)


def _to_image(boxes: Tensor, placement: Placement) -> Tensor:
    p = placement
    x = ((boxes[:, 0::2] - p.pad_x) / p.gain_x).clamp(0, p.width)
    y = ((boxes[:, 1::2] - p.pad_y) / p.gain_y).clamp(0, p.height)
    return torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1)
