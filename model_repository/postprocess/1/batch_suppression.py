"""Non-maximum suppression for the images of a batch.

torchvision's `batched_nms` keeps groups apart by an offset for each, and suppresses once. Within an
image the groups are its classes, and their offsets are those of `suppression.py`, since their
rounding is part of the answer. A second offset in float32, for the images, would round once more.
So it is added in float64, and torchvision judges in float64, where no offset here moves a box by
more than a trifle. Its verdict on two boxes can differ from that in float32 only if their IoU is
next to iou_thres. Two runs show that none is: one at a slightly higher threshold chooses the boxes,
one at a slightly lower threshold must leave all of these. If it does not, or the boxes are too odd
for this argument, the images are done one by one.

Why that is enough: a box is left out since a better one that is chosen overlaps it by more than the
higher threshold, and no two that are chosen overlap by more than the lower. A judgement in float32,
with any error smaller than the margin, agrees on all these pairs, and so chooses the same boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from batch_thresholds import BatchThresholds
from candidates import Candidates
from suppression import MOST_WITH_OFFSETS_ON_CPU, MOST_WITH_OFFSETS_ON_GPU, suppress
from thresholds import Thresholds
from torch import Tensor

# Of an IoU. In float32 it comes of some twenty roundings, which together are below 2e-6; the limit
# on the sides below keeps the error of the shift below 1e-6.
_MARGIN = 2.0**-18
_SIDES = 2.0**28  # how many times the shortest side all images side by side may measure
_HIGHEST = 2.0**30  # model pixels; areas are then far from the limits of float32

# Candidates of an image, and of all images, in a run of several, at most. torchvision compares each
# box that it keeps with all later ones, those of other images too. A GPU does that at the same
# time; on a CPU, images with more are faster one by one.
_ON_CPU, _ON_GPU = (32, 256), (MOST_WITH_OFFSETS_ON_GPU, MOST_WITH_OFFSETS_ON_GPU)


def suppress_batch(candidates: Candidates, thresholds: BatchThresholds) -> Tensor:
    """Choose the boxes that no better box of their image and class overlaps too much.

    Args:
        candidates: with boxes x1, y1, x2, y2.

    Returns:
        Indices [K] int64; of each image the best are first, and may be cut off after its max_det.
    """
    asked = thresholds.by_image
    if len(asked) == 1:
        return _suppress_image(candidates, asked[0])
    if not len(candidates.boxes):
        return candidates.images
    counts = torch.bincount(candidates.images, minlength=len(asked)).tolist()
    batch = _Batch(candidates, with_offsets(candidates, thresholds.agnostic_nms), asked, counts)
    limits = _ON_GPU if candidates.boxes.is_cuda else _ON_CPU
    runs = _runs(counts, [one.iou_thres for one in asked], *limits)
    return torch.cat([batch.suppress(first, end) for first, end in runs])


def _runs(
    counts: Sequence[int], iou_thres: Sequence[float], most: int, most_together: int
) -> Iterator[tuple[int, int]]:
    """Divide the images into runs of one iou_thres.

    An image with more than `most` candidates is alone.
    """
    first = held = 0
    for image, count in enumerate(counts):
        is_full = held + count > most_together or max(counts[image - 1], count) > most
        if image > first and (is_full or iou_thres[image] != iou_thres[first]):
            yield first, image
            first, held = image, 0
        held += count
    yield first, len(counts)


class _Batch:
    """The candidates of several images.

    Args:
        boxes: of the candidates, with the offsets of their classes.
        counts: how many candidates each image has.
    """

    def __init__(
        self,
        candidates: Candidates,
        boxes: Tensor,
        asked: Sequence[Thresholds],
        counts: Sequence[int],
    ) -> None:
        self._candidates = candidates
        self._boxes = boxes
        self._asked = asked
        self._starts = [0, *accumulate(counts)]
        most = MOST_WITH_OFFSETS_ON_GPU if boxes.is_cuda else MOST_WITH_OFFSETS_ON_CPU
        self._most = most

    def suppress(self, first: int, end: int) -> Tensor:
        """The indices of what is chosen of the images from `first` to before `end`."""
        if end - first > 1:
            together = self._suppress_together(first, end)
            if together is not None:
                return together
        return torch.cat([self._suppress_one(image) for image in range(first, end)])

    def _suppress_one(self, image: int) -> Tensor:
        start, end = self._starts[image : image + 2]
        if end - start <= self._most:
            boxes, scores = self._boxes[start:end], self._candidates.scores[start:end]
            kept: Tensor = torch.ops.torchvision.nms(boxes, scores, self._asked[image].iou_thres)
        else:
            one = Candidates(*(column[start:end] for column in self._candidates))
            kept = _suppress_image(one, self._asked[image])
        return kept + start

    def _suppress_together(self, first: int, end: int) -> Tensor | None:
        """None if the result might not be that of the images one by one."""
        part = slice(self._starts[first], self._starts[end])
        images, scores = self._candidates.images[part], self._candidates.scores[part].double()
        if not len(images):
            return images
        boxes, is_sound = apart(self._boxes[part], images - first, end - first)
        nms, iou_thres = torch.ops.torchvision.nms, self._asked[first].iou_thres
        kept: Tensor = nms(boxes, scores, iou_thres + _MARGIN)
        again = nms(boxes[kept], scores[kept], iou_thres - _MARGIN)
        return kept + part.start if len(again) == len(kept) and bool(is_sound) else None


def _suppress_image(candidates: Candidates, asked: Thresholds) -> Tensor:
    groups = None if asked.agnostic_nms else candidates.classes
    return suppress(candidates.boxes, candidates.scores, groups, asked.iou_thres, asked.max_det)


def with_offsets(candidates: Candidates, agnostic_nms: Tensor) -> Tensor:
    """The boxes [N, 4], moved so that those of different classes of an image do not overlap.

    Args:
        agnostic_nms: [B] bool; the boxes of such an image stay where they are.
    """
    images = candidates.images
    highest = torch.full_like(agnostic_nms, -torch.inf, dtype=torch.float32)
    highest = highest.scatter_reduce(0, images, candidates.boxes.amax(1), "amax") + 1
    offsets = (candidates.classes * highest[images]).masked_fill(agnostic_nms[images], 0)
    return candidates.boxes + offsets[:, None]


def apart(boxes: Tensor, images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Move the boxes so that those of different images do not overlap.

    Args:
        boxes: [N, 4] float32, at least one.
        images: [N] int64, from 0 to before `count`.

    Returns:
        Boxes [N, 4] float64; and whether IoUs in float64 are close to those in float32, a scalar.
    """
    moved = boxes.double()
    left, right = moved.aminmax()
    width = right - left + 1
    moved[:, 0::2] += (images * width)[:, None]
    shortest = (boxes[:, 2:] - boxes[:, :2]).amin()
    is_sound = (shortest * _SIDES > width * count) & (torch.maximum(right, -left) < _HIGHEST)
    return moved, is_sound
