"""How far the detections of two networks, A and B, agree on the same photos.

The detections of a photo are matched one to one. The pair with the largest IoU comes first; of
equal ones the pair of one label, then the pair of the highest scores. Labels are compared, not
class indices, because two networks may number their classes differently.
"""

from __future__ import annotations

import math
import statistics
from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ._boxes import overlaps
from ._detections import Detections

IOU = 0.5  # least IoU of a pair

Indices = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoAgreement:
    """The detections of A and B in one photo, matched.

    Attributes:
        a, b: the detections.
        pairs_a, pairs_b: [p] the index in `a` and in `b` of each of the p pairs.
        ious: float64 [p]: IoU of each pair.
        same: bool [p]: whether both of a pair have the same label.
        only_a, only_b: the indices without a partner.
    """

    a: Detections
    b: Detections
    pairs_a: Indices
    pairs_b: Indices
    ious: NDArray[np.float64]
    same: NDArray[np.bool_]
    only_a: Indices
    only_b: Indices

    @property
    def score_shifts(self) -> NDArray[np.float64]:
        """float64 [p]: score of B less score of A, of each pair."""
        one, other = (
            found.scores[pairs].astype(np.float64)
            for found, pairs in ((self.a, self.pairs_a), (self.b, self.pairs_b))
        )
        shifts: NDArray[np.float64] = other - one
        return shifts

    @property
    def differing(self) -> int:
        """Number of detections, of A and B together, without a partner of the same label."""
        return len(self.a) + len(self.b) - 2 * int(self.same.sum())

    @property
    def rank(self) -> tuple[int, float]:
        """How much A and B differ: by detections, then by the sum of the score shifts."""
        return self.differing, math.fsum(np.abs(self.score_shifts))


def match(a: Detections, b: Detections, iou: float = IOU) -> PhotoAgreement:
    """Match the detections of two networks in one photo.

    Args:
        iou: least IoU of a pair, more than 0. Two equal boxes are a pair even without area.
    """
    # Indices in an order that does not depend on that of the arguments, for equal candidates.
    order_a, order_b = _canonical(a), _canonical(b)
    boxes = [one.boxes[order].astype(np.float64) for one, order in ((a, order_a), (b, order_b))]
    ious = overlaps(*boxes)
    ious[(boxes[0][:, None] == boxes[1][None]).all(2)] = 1.0
    rows, columns = np.nonzero(ious >= iou)
    labels_a, labels_b = (np.array(one.labels, np.object_) for one in (a, b))
    other = labels_a[order_a[rows]] != labels_b[order_b[columns]]
    scores = a.scores[order_a[rows]].astype(np.float64) + b.scores[order_b[columns]]
    best_first = np.lexsort((-scores, other, -ious[rows, columns]))
    free_a, free_b = np.ones(len(a), np.bool_), np.ones(len(b), np.bool_)
    kept = []
    for candidate in best_first.tolist():
        i, j = rows[candidate], columns[candidate]
        if free_a[i] and free_b[j]:
            free_a[i] = free_b[j] = False
            kept.append(candidate)
    taken = np.array(kept, np.intp)
    return PhotoAgreement(
        a=a,
        b=b,
        pairs_a=order_a[rows[taken]],
        pairs_b=order_b[columns[taken]],
        ious=ious[rows[taken], columns[taken]],
        same=~other[taken].astype(np.bool_),
        only_a=np.sort(order_a[free_a]),
        only_b=np.sort(order_b[free_b]),
    )


def _canonical(found: Detections) -> Indices:
    labels = np.unique(np.array([*found.labels, ""]), return_inverse=True)[1][:-1]
    order: Indices = np.lexsort((*found.boxes.T, labels, -found.scores))
    return order


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The agreement on one label, or on all.

    Attributes:
        found_a, found_b: number of detections.
        matched: number of pairs; for a label, those in which one or both have it.
        other_class: number of these pairs in which the other has another label.
        only_a, only_b: number of detections without a partner.
        score_shift_mean, score_shift_median, score_shift_max: score of B less score of A in the
            pairs. The last is the one farthest from 0. None without a pair.
        mean_iou: of the pairs; None without a pair.
    """

    found_a: int
    found_b: int
    matched: int
    other_class: int
    only_a: int
    only_b: int
    score_shift_mean: float | None
    score_shift_median: float | None
    score_shift_max: float | None
    mean_iou: float | None

    @property
    def agreement(self) -> float:
        """The share of all detections of A and B that have a partner with the same label.

        That is twice the pairs of one label, divided by the number of detections of A and of B; 1
        if there are none. With A in place of labels it is the F1 score of B.
        """
        found = self.found_a + self.found_b
        return 2 * (self.matched - self.other_class) / found if found else 1.0


_COUNTED = ("found_a", "found_b", "other_class", "only_a", "only_b")


@dataclass
class _Counts:
    """What is counted of one label, or of all; 16 bytes for each pair."""

    numbers: Counter[str] = field(default_factory=Counter)  # by the names of `Figures`
    shifts: array[float] = field(default_factory=lambda: array("d"))
    ious: array[float] = field(default_factory=lambda: array("d"))

    def add_pair(self, shift: float, iou: float, same: bool) -> None:
        self.shifts.append(shift)
        self.ious.append(iou)
        self.numbers["other_class"] += not same

    def figures(self) -> Figures:
        pairs = len(self.shifts)
        return Figures(
            matched=pairs,
            **{name: self.numbers[name] for name in _COUNTED},
            # fsum does not depend on the order of the photos.
            score_shift_mean=math.fsum(self.shifts) / pairs if pairs else None,
            score_shift_median=statistics.median(self.shifts) if pairs else None,
            score_shift_max=max(self.shifts, key=lambda one: (abs(one), one)) if pairs else None,
            mean_iou=math.fsum(self.ious) / pairs if pairs else None,
        )


class Agreement:
    """The agreement on any number of photos, which are counted one by one and not kept."""

    def __init__(self) -> None:
        self.photos = 0
        self._total = _Counts()
        self._labels: dict[str, _Counts] = {}

    def add(self, photo: PhotoAgreement) -> None:
        """Count one more photo."""
        self.photos += 1
        a, b = photo.a.labels, photo.b.labels
        for labels, found, only, indices in (
            (a, "found_a", "only_a", photo.only_a),
            (b, "found_b", "only_b", photo.only_b),
        ):
            for label in labels:
                self._count(label, found)
            for index in indices.tolist():
                self._count(labels[index], only)
        for i, j, shift, iou, same in zip(
            photo.pairs_a.tolist(),
            photo.pairs_b.tolist(),
            photo.score_shifts.tolist(),
            photo.ious.tolist(),
            photo.same.tolist(),
        ):
            for counts in (self._total, *(self._of(label) for label in {a[i], b[j]})):
                counts.add_pair(shift, iou, same)

    def total(self) -> Figures:
        """Return the figures of all labels together. A pair of two labels counts once."""
        return self._total.figures()

    def by_label(self) -> dict[str, Figures]:
        """Return the figures of each label, sorted. A pair of two labels counts for both."""
        return {label: self._labels[label].figures() for label in sorted(self._labels)}

    def _of(self, label: str) -> _Counts:
        return self._labels.setdefault(label, _Counts())

    def _count(self, label: str, what: str) -> None:
        for counts in (self._total, self._of(label)):
            counts.numbers[what] += 1
