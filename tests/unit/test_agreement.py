"""How far two networks agree: matching and figures, against cases computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from yolov5_client import Detections
from yolov5_client._agreement import Agreement, Figures, PhotoAgreement, match

Found = tuple[str, float, tuple[float, float, float, float]]  # label, score, box


def detections(*found: Found) -> Detections:
    """Detections in an image of 100x100; a label is as long as its class index says."""
    return Detections.from_unsorted(
        boxes=[box for _, _, box in found],
        scores=[score for _, score, _ in found],
        classes=[len(label) for label, _, _ in found],
        labels=[label for label, _, _ in found],
        image_size=(100, 100),
    )


def pairs(photo: PhotoAgreement) -> set[tuple[str, str, float]]:
    """Labels and IoU of each pair."""
    return {
        (photo.a.labels[i], photo.b.labels[j], round(iou, 6))
        for i, j, iou in zip(photo.pairs_a, photo.pairs_b, photo.ious)
    }


def figures(*photos: tuple[Detections, Detections], **options: Any) -> Agreement:
    agreement = Agreement()
    for a, b in photos:
        agreement.add(match(a, b, **options))
    return agreement


NONE = detections()
HERE = (0.0, 0.0, 10.0, 10.0)
HALF = (0.0, 0.0, 10.0, 5.0)  # IoU with HERE: 0.5
NEAR = (0.0, 0.0, 10.0, 8.0)  # 0.8
AWAY = (50.0, 50.0, 60.0, 60.0)


def test_boxes_are_matched_one_to_one_by_their_overlap() -> None:
    a = detections(("x", 0.9, HERE), ("y", 0.5, AWAY))
    b = detections(("x", 0.4, NEAR), ("x", 0.8, HALF), ("z", 0.1, (80.0, 80.0, 90.0, 90.0)))
    photo = match(a, b)
    assert pairs(photo) == {("x", "x", 0.8)}, "the larger overlap, though the score is less"
    assert [a.labels[i] for i in photo.only_a] == ["y"]
    assert [b.labels[i] for i in photo.only_b] == ["x", "z"]
    assert b.scores[photo.only_b] == pytest.approx([0.8, 0.1])
    assert photo.score_shifts == pytest.approx([-0.5])
    assert photo.differing == 3
    assert photo.rank[0] == 3
    assert photo.rank[1] == pytest.approx(0.5)


def test_box_takes_the_second_best_partner_if_the_best_is_taken() -> None:
    a = detections(("x", 0.9, HERE), ("x", 0.8, NEAR))
    b = detections(("x", 0.7, (0.0, 0.0, 10.0, 9.0)), ("x", 0.6, (0.0, 0.0, 10.0, 7.0)))
    # 9/10 for HERE and 9; 8/9 for NEAR and 9; 7/8 for NEAR and 7; 7/10 for HERE and 7.
    assert pairs(match(a, b)) == {("x", "x", 0.9), ("x", "x", 0.875)}


@pytest.mark.parametrize(("iou", "matched"), [(0.4, 1), (0.5, 1), (0.51, 0), (1.0, 0)])
def test_pair_needs_the_least_iou(iou: float, matched: int) -> None:
    one = figures((detections(("x", 0.9, HERE)), detections(("x", 0.9, HALF))), iou=iou)
    assert one.total().matched == matched


def test_of_equal_overlaps_the_same_label_comes_first_then_the_scores() -> None:
    a = detections(("x", 0.9, HERE), ("y", 0.8, HERE))
    b = detections(("y", 0.9, HERE), ("x", 0.1, HERE), ("x", 0.2, HERE))
    photo = match(a, b)
    assert pairs(photo) == {("x", "x", 1.0), ("y", "y", 1.0)}
    assert sorted(photo.score_shifts) == pytest.approx([-0.7, 0.1])
    assert b.scores[photo.only_b] == pytest.approx([0.1])


def test_figures_of_a_case_computed_by_hand() -> None:
    a = detections(("x", 0.9, HERE), ("x", 0.8, AWAY), ("y", 0.7, (0.0, 80.0, 10.0, 90.0)))
    b = detections(("x", 0.5, NEAR), ("y", 0.9, AWAY), ("z", 0.3, (90.0, 0.0, 99.0, 9.0)))
    other = detections(("x", 0.6, HERE)), detections(("x", 0.7, HERE))
    found = figures((a, b), other)
    assert found.photos == 2
    total, labels = found.total(), found.by_label()
    assert (total.found_a, total.found_b, total.matched, total.other_class) == (4, 4, 3, 1)
    assert (total.only_a, total.only_b) == (1, 1)
    # Shifts: -0.4 (x), +0.1 (x and y), +0.1 (x); IoU 0.8, 1 and 1.
    assert total.score_shift_mean == pytest.approx(-0.2 / 3)
    assert total.score_shift_median == pytest.approx(0.1)
    assert total.score_shift_max == pytest.approx(-0.4)
    assert total.mean_iou == pytest.approx(2.8 / 3)
    assert total.agreement == pytest.approx(2 * 2 / 8)
    assert [*labels] == ["x", "y", "z"]
    x, y, z = labels.values()
    assert (x.found_a, x.found_b, x.matched, x.other_class) == (3, 2, 3, 1)
    assert (x.only_a, x.only_b) == (0, 0)
    assert x.agreement == pytest.approx(2 * 2 / 5)
    assert (y.found_a, y.found_b, y.matched, y.other_class) == (1, 1, 1, 1)
    assert (y.only_a, y.only_b, y.agreement) == (1, 0, 0.0)
    assert y.score_shift_median == pytest.approx(0.1)
    assert z == Figures(
        found_a=0, found_b=1, matched=0, other_class=0, only_a=0, only_b=1,
        score_shift_mean=None, score_shift_median=None, score_shift_max=None, mean_iou=None,
    )  # fmt: skip
    assert z.agreement == 0.0


def test_two_networks_that_find_nothing_agree() -> None:
    found = figures((NONE, NONE))
    assert (found.photos, found.total().agreement, found.by_label()) == (1, 1.0, {})
    assert match(NONE, NONE).rank == (0, 0.0)
    assert Agreement().total().agreement == 1.0


def test_what_only_one_finds_is_no_agreement() -> None:
    some = detections(("x", 0.9, HERE), ("y", 0.5, AWAY))
    one, other = figures((some, NONE)).total(), figures((NONE, some)).total()
    assert (one.only_a, one.only_b, one.agreement) == (2, 0, 0.0)
    assert (other.only_a, other.only_b, other.agreement) == (0, 2, 0.0)


def test_class_lists_may_differ_as_labels_are_compared() -> None:
    a = detections(("car", 0.9, HERE), ("bus", 0.8, AWAY))
    renumbered = Detections(
        boxes=a.boxes,
        scores=a.scores,
        classes=a.classes + 7,
        labels=a.labels,
        image_size=(100, 100),
    )
    assert figures((a, renumbered)).total().agreement == 1.0
    renamed = Detections(
        boxes=a.boxes, scores=a.scores, classes=a.classes, labels=("auto", "bus"),
        image_size=(100, 100),
    )  # fmt: skip
    found = figures((a, renamed))
    assert found.total().agreement == 0.5
    assert found.total().other_class == 1
    assert [label for label, one in found.by_label().items() if not one.found_a] == ["auto"]
    assert [label for label, one in found.by_label().items() if not one.found_b] == ["car"]


def random_detections(generator: np.random.Generator, count: int) -> Detections:
    """Overlapping boxes on a coarse grid, some equal and some without area, with equal scores."""
    corners = generator.integers(0, 6, (count, 2)) * 10
    sides = generator.integers(0, 4, (count, 2)) * 10
    return detections(
        *(
            ("abc"[generator.integers(3)], round(generator.integers(1, 6) / 10, 1), (x, y, x2, y2))
            for (x, y), (x2, y2) in zip(corners.tolist(), (corners + sides).tolist())
        )
    )


def shuffled(found: Detections, generator: np.random.Generator) -> Detections:
    order = generator.permutation(len(found))
    return Detections(
        boxes=found.boxes[order],
        scores=found.scores[order],
        classes=found.classes[order],
        labels=tuple(found.labels[index] for index in order),
        image_size=found.image_size,
    )


@pytest.mark.parametrize("seed", range(20))
def test_network_agrees_with_itself_wholly(seed: int) -> None:
    found = random_detections(np.random.default_rng(seed), 40)
    total = figures((found, found)).total()
    assert (total.agreement, total.matched, total.other_class) == (1.0, 40, 0)
    assert (total.score_shift_max, total.mean_iou) == (0.0, 1.0)
    assert match(found, found).rank == (0, 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_order_of_detections_and_photos_does_not_matter(seed: int) -> None:
    generator = np.random.default_rng(seed)
    photos = [
        (random_detections(generator, 30), random_detections(generator, 25)) for _ in range(3)
    ]
    wanted = figures(*photos)
    mixed = [(shuffled(a, generator), shuffled(b, generator)) for a, b in reversed(photos)]
    found = figures(*mixed)
    assert found.total() == wanted.total()
    assert found.by_label() == wanted.by_label()


@pytest.mark.parametrize("seed", range(20))
def test_exchanging_the_networks_exchanges_the_figures(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = random_detections(generator, 30), random_detections(generator, 25)
    one, other = figures((a, b)).total(), figures((b, a)).total()
    assert one.agreement == other.agreement
    assert (one.found_a, one.only_a, one.matched) == (other.found_b, other.only_b, other.matched)
    assert one.found_a + one.found_b == 2 * one.matched + one.only_a + one.only_b
    assert one.score_shift_mean == pytest.approx(-(other.score_shift_mean or 0))


def test_agreement_with_labels_is_the_f1_score() -> None:
    labels = detections(("x", 1.0, HERE), ("x", 1.0, AWAY), ("x", 1.0, (0.0, 80.0, 10.0, 90.0)))
    found = detections(("x", 0.9, NEAR), ("x", 0.8, (90.0, 0.0, 99.0, 9.0)))
    precision, recall = 1 / 2, 1 / 3
    f1 = 2 * precision * recall / (precision + recall)
    assert figures((labels, found)).total().agreement == pytest.approx(f1)
