"""Which rows of the network count, and as what: the candidates that enter the suppression.

The rules are those of YOLOv5 (v7.0), with which answers are compared: a row counts if its
objectness is over conf_thres; its score is objectness times class score, for the best class or,
with multi_label, for each class over conf_thres. With a conf_thres for each class, candidates are
those of one run for each class with that conf_thres, which takes nothing but this class.

A full head has rows [N, 5 + C]: cx, cy, w, h in model pixels, objectness, class scores. A reduced
one has [N, 6]: the box, the best class's score times objectness, its index. An end-to-end one has
[N, 6]: x1, y1, x2, y2 in model pixels, score, class index; rows that only fill up the tensor have
the score 0, which is over no conf_thres.

All images of a batch are looked at together: the number of operations does not depend on how many
there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from batch_thresholds import BatchThresholds
from torch import Tensor

MAX_CANDIDATES = 30_000  # of an image; the best of them enter the suppression

_OBJECTNESS = 4  # column

# Rows of several images that are looked at together, at most. That bounds memory, as each may
# become a candidate for each class. So few are looked at as they are, since the thresholds of the
# classes drop all that conf_thres, the lowest of them, would drop.
_ROWS_TOGETHER = 10_000


class InputError(ValueError):
    """The inputs do not fit each other or the model; the ensemble never sends such inputs."""


class Rows(NamedTuple):
    """Rows of several images.

    Attributes:
        values: [N, 5 + C] or [N, 6] float32.
        images: [N] int64, the index of each row's image, ascending.
    """

    values: Tensor
    images: Tensor


class Candidates(NamedTuple):
    """Boxes [N, 4] float32 as the head has them, scores [N], classes and images [N] int64.

    The images are in ascending order.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    images: Tensor


def select_rows(outputs: Sequence[Tensor], conf_thres: Tensor) -> Rows:
    """Join the rows of all images; of many rows only those with an objectness over conf_thres.

    Args:
        outputs: `output0` of each request: [b, n, 5 + C] or [b, n, 6], on one device.
        conf_thres: [B], for the images of all requests.
    """
    rows = sum(output.shape[0] * output.shape[1] for output in outputs)
    if rows <= _ROWS_TOGETHER:
        return join_rows(outputs)
    if outputs[0].is_cuda:
        return over(join_rows(outputs), conf_thres)
    # A network that hands out all its rows: to copy the few that count is faster on a CPU.
    selected, first = [], 0
    for output in outputs:
        values, images = over(join_rows([output]), conf_thres[first : first + len(output)])
        selected.append(Rows(values, images + first))
        first += len(output)
    return Rows(*map(torch.cat, zip(*selected)))


def join_rows(outputs: Sequence[Tensor]) -> Rows:
    """All rows of all images."""
    # Most requests have one image, and need not be reshaped one by one.
    flat = [output if len(output) == 1 else output.flatten(0, 1)[None] for output in outputs]
    rows = (flat[0] if len(flat) == 1 else torch.cat(flat, 1))[0]
    counts = [output.shape[1] for output in outputs for _ in range(len(output))]
    if len(counts) == 1:
        return Rows(rows.float(), rows.new_zeros(len(rows), dtype=torch.int64))
    repeats = torch.tensor(counts, device=rows.device)
    return Rows(rows.float(), torch.repeat_interleave(repeats, output_size=len(rows)))


def over(rows: Rows, conf_thres: Tensor) -> Rows:
    """The rows whose objectness is over the conf_thres of their image; [B]."""
    index = (rows.values[:, _OBJECTNESS] > conf_thres[rows.images]).nonzero().squeeze(1)
    return Rows(rows.values[index], rows.images[index])


def portions(rows: Rows, images: int) -> Iterator[tuple[int, int, Rows]]:
    """Split the rows of many images, so that memory is bounded.

    Yields:
        The first image, the one after the last, and their rows, with images counted from 0.
    """
    if images == 1 or len(rows.values) <= _ROWS_TOGETHER:
        yield 0, images, rows
        return
    counts = torch.bincount(rows.images, minlength=images).tolist()
    starts = [0, *accumulate(counts)]
    first = 0
    for end in range(1, images + 1):
        if end == images or starts[end + 1] - starts[first] > _ROWS_TOGETHER:
            part = slice(starts[first], starts[end])
            yield first, end, Rows(rows.values[part], rows.images[part] - first)
            first = end


def find_candidates(rows: Rows, thresholds: BatchThresholds, *, reduced: bool) -> Candidates:
    """Find the candidates of each image, at most `MAX_CANDIDATES`.

    Args:
        rows: with all whose objectness is over `thresholds.conf_thres`.
        reduced: whether a row holds the best class alone.

    Raises:
        InputError: multi_label is requested of such rows, or a class index is out of range.
    """
    several = any(one.multi_label for one in thresholds.by_image)
    if reduced:
        if several:
            raise InputError("multi_label is true, but the rows hold the best class alone")
        return _reduced(rows, thresholds)
    return _several_labels(rows, thresholds) if several else _best_label(rows, thresholds)


def _reduced(rows: Rows, thresholds: BatchThresholds) -> Candidates:
    scores, classes = rows.values[:, 4], rows.values[:, 5].long()
    known = thresholds.class_conf_thres.shape[1]
    is_unknown = (classes < 0) | (classes >= known)
    least = thresholds.class_conf_thres[rows.images, classes.clamp(0, known - 1)]
    # Nothing is asked of rows that do not count.
    if bool((is_unknown & (scores > thresholds.conf_thres[rows.images])).any()):
        raise InputError(f"a row's class is none of the {known} there are")
    return _one_of_a_row(rows, scores > least, scores, classes)


def _best_label(rows: Rows, thresholds: BatchThresholds) -> Candidates:
    objectness = rows.values[:, _OBJECTNESS]
    scores, classes = (rows.values[:, 5:] * objectness[:, None]).max(1)
    least = thresholds.class_conf_thres[rows.images, classes]
    wanted = torch.minimum(scores, objectness) > least
    return _one_of_a_row(rows, wanted, scores, classes)


def _one_of_a_row(rows: Rows, wanted: Tensor, scores: Tensor, classes: Tensor) -> Candidates:
    index = _keep_best(wanted, scores, rows.images).nonzero().squeeze(1)
    return Candidates(rows.values[index, :4], scores[index], classes[index], rows.images[index])


def _several_labels(rows: Rows, thresholds: BatchThresholds) -> Candidates:
    """Each class over its conf_thres; for images without multi_label the best class alone."""
    objectness = rows.values[:, _OBJECTNESS, None]
    scores = rows.values[:, 5:] * objectness
    best = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.max(1, True).indices, True)
    wanted = torch.minimum(scores, objectness) > thresholds.class_conf_thres[rows.images]
    wanted &= best | thresholds.multi_label[rows.images, None]
    index, classes = _keep_best(wanted, scores, rows.images).nonzero(as_tuple=True)
    return Candidates(rows.values[index, :4], scores[index, classes], classes, rows.images[index])


def _keep_best(wanted: Tensor, scores: Tensor, images: Tensor) -> Tensor:
    """Keep the best `MAX_CANDIDATES` of each image in `wanted`, a mask of the shape of `scores`."""
    if wanted.numel() > MAX_CANDIDATES:
        for image in torch.unique_consecutive(images):
            mine = images == image
            wanted[mine] = keep_best(wanted[mine], scores[mine])
    return wanted


def keep_best(wanted: Tensor, scores: Tensor) -> Tensor:
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
