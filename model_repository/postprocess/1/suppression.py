"""Non-maximum suppression that stops after the last box requested.

The result is that of `torchvision.ops.batched_nms`, cut off after `max_det` boxes. That function
first judges all candidates, which on a CPU takes seconds for 30,000 that hardly overlap.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision_ops import load_operators

load_operators()

# Up to this number of candidates torchvision adds an offset to the coordinates of each class, which
# keeps classes from overlapping, and suppresses once; beyond it, it suppresses class by class. As
# the sum rounds the coordinates, the same is done here.
MOST_WITH_OFFSETS_ON_CPU, MOST_WITH_OFFSETS_ON_GPU = 1000, 25_000

_CHUNK = 512  # candidates examined at a time
_BLOCK = 256  # kept boxes compared with them at a time: 0.5 MB, which fits into a core's cache


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_thres: float, max_det: int
) -> Tensor:
    """Choose the boxes that no better box of their group overlaps by more than `iou_thres`.

    Args:
        boxes: [N, 4] float32: x1, y1, x2, y2.
        scores: [N] float32. Of equal scores the first counts as better.
        groups: [N] int64; None if all boxes are in one group.

    Returns:
        Indices [K] int64, best first, K <= max_det.
    """
    if len(boxes) <= (MOST_WITH_OFFSETS_ON_GPU if boxes.is_cuda else MOST_WITH_OFFSETS_ON_CPU):
        return _suppress_with_offsets(boxes, scores, groups, iou_thres)[:max_det]
    if boxes.is_cuda:
        return _suppress_by_group(boxes, scores, groups, iou_thres)[:max_det]
    order = scores.sort(descending=True, stable=True).indices
    search = _Search(boxes[order], None if groups is None else groups[order], iou_thres)
    return order[search.first(max_det)]


def _suppress_with_offsets(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_thres: float
) -> Tensor:
    if groups is not None and len(boxes):
        boxes = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
    return torch.ops.torchvision.nms(boxes, scores, iou_thres)  # type: ignore[no-any-return]


def _suppress_by_group(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_thres: float
) -> Tensor:
    if groups is None:
        return torch.ops.torchvision.nms(boxes, scores, iou_thres)  # type: ignore[no-any-return]
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in torch.unique(groups):
        members = (groups == group).nonzero().squeeze(1)
        kept[members[torch.ops.torchvision.nms(boxes[members], scores[members], iou_thres)]] = True
    indices = kept.nonzero().squeeze(1)
    return indices[scores[indices].sort(descending=True, stable=True).indices]


class _Search:
    """Suppression of candidates on the CPU, best first, chunk by chunk.

    Each pair is judged in float32 by the operations of torchvision's CPU kernel, in their order.

    Args:
        boxes, groups: as for `suppress`, in order of descending score.
    """

    def __init__(self, boxes: Tensor, groups: Tensor | None, iou_thres: float) -> None:
        x1, y1, x2, y2 = (column.contiguous() for column in boxes.T)
        self._columns = (x1, y1, x2, y2, (x2 - x1) * (y2 - y1))
        self._groups = None if groups is None else groups.int()
        # The kernel compares float32 with float64.
        rounded = np.float32(iou_thres)
        self._iou_thres = float(
            rounded if rounded <= iou_thres else np.nextafter(rounded, np.float32(-math.inf))
        )
        self._floats = torch.empty((3, _BLOCK * _CHUNK))  # new memory each time is slower
        self._flags = torch.empty((2, _BLOCK * _CHUNK), dtype=torch.bool)

    def first(self, count: int) -> Tensor:
        """The indices of the first `count` boxes kept; of all kept, if they are fewer."""
        kept = torch.empty(0, dtype=torch.int64)
        for chunk in torch.split(torch.arange(len(self._columns[0])), _CHUNK):
            for block in torch.split(kept, _BLOCK):
                chunk = chunk[~self._overlaps(block, chunk).any(0)]
            kept = torch.cat((kept, chunk[self._unsuppressed(chunk, count - len(kept))]))
            if len(kept) >= count:
                break
        return kept

    def _unsuppressed(self, chunk: Tensor, count: int) -> list[int]:
        """Positions of the first `count` in the chunk that no earlier one in it suppresses."""
        overlaps: NDArray[np.bool_] = np.concatenate(
            [self._overlaps(block, chunk).numpy().copy() for block in torch.split(chunk, _BLOCK)]
        )
        kept: list[int] = []
        suppressed = np.zeros(len(chunk), np.bool_)
        for position in range(len(chunk)):
            if not suppressed[position]:
                kept.append(position)
                if len(kept) == count:
                    break
                suppressed |= overlaps[position]
        return kept

    def _overlaps(self, kept: Tensor, chunk: Tensor) -> Tensor:
        """[k, c] bool: which kept box suppresses which of the chunk; valid until the next call."""
        shape = (len(kept), len(chunk))
        width, height, scratch = (b[: math.prod(shape)].view(shape) for b in self._floats)
        over: Tensor = self._flags[0][: math.prod(shape)].view(shape)
        together = self._flags[1][: math.prod(shape)].view(shape)
        a = [column[kept][:, None] for column in self._columns]
        b = [column[chunk] for column in self._columns]
        for side, low, high in ((width, 0, 2), (height, 1, 3)):
            torch.minimum(a[high], b[high], out=side)
            side.sub_(torch.maximum(a[low], b[low], out=scratch)).clamp_(min=0)
        intersection = width.mul_(height)
        union = torch.add(a[4], b[4], out=scratch).sub_(intersection)
        torch.gt(intersection.div_(union), self._iou_thres, out=over)
        if self._groups is not None:
            torch.eq(self._groups[kept][:, None], self._groups[chunk], out=together)
            over &= together
        return over
