"""The images of a batch are done in one pass, and answered as if each were alone."""

from __future__ import annotations

from collections.abc import Iterator

import batch_suppression
import candidates
import nms
import numpy as np
import pytest
import torch
from batch_thresholds import BatchThresholds
from candidates import InputError
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from thresholds import NOT_REPORTED
from torch import Tensor
from torch.profiler import profile

Array = NDArray[np.float32]
PLACEMENT = [0.5, 0.5, 0, 80, 1000, 1200]
DEFAULTS = [0.25, 0.45, 300, 0, 0]


def asked(count: int, classes: int, *nms: list[float]) -> BatchThresholds:
    """The same of each image, or of each image its own."""
    given = np.array(nms or [DEFAULTS] * count, np.float32)
    return BatchThresholds.from_arrays(
        given,
        np.repeat(given[:, :1], classes, 1),
        np.array([PLACEMENT] * count, np.float32),
    )


def random_rows(generator: np.random.Generator, count: int, classes: int, head: str) -> Array:
    """Rows in heaps, of which many overlap."""
    heaps = max(1, count // 4)
    centres = generator.uniform(0, 640, (heaps, 2))[generator.integers(0, heaps, count)]
    sides = generator.uniform(4, 200, (count, 2))
    boxes = np.concatenate((centres + generator.normal(0, 9, (count, 2)), sides), 1)
    if generator.random() < 0.3:
        boxes = boxes.round(-1)  # IoUs of exactly a half, and the same box twice
    objectness = generator.random((count, 1))
    scores = generator.random((count, classes)) ** 2
    if generator.random() < 0.3:
        objectness, scores = objectness.round(1), scores.round(1)  # equal scores
    if generator.random() < 0.05 and count:
        boxes[generator.integers(count), generator.integers(4)] = generator.choice(
            [np.nan, np.inf, -np.inf, 3e38, 0]
        )
    if head != "full":
        scores = scores * objectness
        objectness, scores = scores.max(1, keepdims=True), scores.argmax(1)[:, None]
    rows: Array = np.concatenate((boxes, objectness, scores), 1).astype(np.float32)
    return rows


def random_thresholds(generator: np.random.Generator, head: str) -> list[float]:
    iou_thres = generator.choice([0, 0.45, 0.5, 1, generator.random()])
    max_det = generator.choice([1, 3, 300])
    multi_label = head == "full" and generator.random() < 0.3
    conf_thres = generator.choice([0, 0.25, 0.25, 0.6])
    return [conf_thres, iou_thres, max_det, generator.random() < 0.3, multi_label]


@fuzz(200)
@given(
    seed=st.integers(0, 2**32),
    head=st.sampled_from(["full", "reduced", "end-to-end"]),
    classes=st.sampled_from([1, 3, 80]),
    requests=st.lists(st.integers(1, 3), min_size=1, max_size=8),
    limits=st.sampled_from([batch_suppression._ON_CPU, (5, 100), batch_suppression._ON_GPU]),
    together=st.sampled_from([60, candidates._ROWS_TOGETHER]),
)
def test_each_image_is_answered_as_if_it_were_alone(
    seed: int,
    head: str,
    classes: int,
    requests: list[int],
    limits: tuple[int, int],
    together: int,
) -> None:
    """Whatever the sizes of runs and portions, which the batch is divided into."""
    generator = np.random.default_rng(seed)
    outputs, nms_rows, class_rows = [], [], []
    alike = random_thresholds(generator, head) if generator.random() < 0.5 else None
    for images in requests:
        count = int(generator.choice([0, 1, 7, 40, 150]))
        rows = [random_rows(generator, count, classes, head) for _ in range(images)]
        outputs.append(torch.from_numpy(np.stack(rows)))
        for _ in range(images):
            row = alike or random_thresholds(generator, head)
            by_class = np.maximum(row[0], generator.choice([0, 0.5, NOT_REPORTED], classes))
            by_class[generator.integers(classes)] = row[0]
            nms_rows.append(row)
            class_rows.append(by_class)
    asked_for, by_class = np.array(nms_rows, np.float32), np.array(class_rows, np.float32)
    placement = generator.uniform(1, 900, (sum(requests), 6)).astype(np.float32)
    batch = BatchThresholds.from_arrays(asked_for, by_class, placement)
    flags = {"best_class_only": head == "reduced", "end_to_end": head == "end-to-end"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_suppression, "_ON_CPU", limits)
        patch.setattr(candidates, "_ROWS_TOGETHER", together)
        found = nms.detect(outputs, batch, **flags)
    at = 0
    for image, rows in enumerate(rows for output in outputs for rows in output):
        one = slice(image, image + 1)
        own = BatchThresholds.from_arrays(asked_for[one], by_class[one], placement[one])
        alone = nms.detect([rows[None]], own, **flags)
        assert found.counts[image] == alone.counts[0]
        part = slice(at, at := at + alone.counts[0])
        np.testing.assert_array_equal(found.boxes[part], alone.boxes)
        np.testing.assert_array_equal(found.scores[part], alone.scores)
        np.testing.assert_array_equal(found.classes[part], alone.classes)
    assert at == len(found.scores)


def operations(images: int, classes: int, rows: int) -> list[str]:
    """The names of torch's operations for a batch, with those that wait for a device."""
    one = torch.rand((rows, 5 + classes), generator=torch.Generator().manual_seed(0))
    one[:, :4] *= 200
    one[:, 4:] = one[:, 4:] / 10 + 0.8  # all count
    outputs = [one[None]] * images
    given = asked(images, classes)
    with profile() as recorded:
        found = nms.detect(outputs, given)
    assert len(set(found.counts)) == 1 and found.counts[0] > 1
    return sorted(event.key for event in recorded.key_averages() for _ in range(event.count))


@pytest.mark.parametrize(("limits", "rows"), [("_ON_CPU", 8), ("_ON_GPU", 100)])
def test_number_of_operations_depends_neither_on_images_nor_on_classes(
    limits: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU for images with so few candidates that they are faster together than one by one."""
    monkeypatch.setattr(batch_suppression, "_ON_CPU", getattr(batch_suppression, limits))
    needed = operations(8, 1, rows)
    print(len(needed))
    for images, classes in ((8, 80), (32, 1), (32, 80)):
        assert operations(images, classes, rows) == needed
    # A single image needs no images kept apart.
    assert len(operations(1, 80, rows)) == len(operations(1, 1, rows)) < len(needed)


def test_waiting_for_a_device_depends_neither_on_images_nor_on_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_suppression, "_ON_CPU", batch_suppression._ON_GPU)
    waits = ("aten::nonzero", "aten::_local_scalar_dense", "aten::item", "torchvision::nms")
    counts = {
        (images, classes): sum(name in waits for name in operations(images, classes, 50))
        for images in (8, 32)
        for classes in (1, 80)
    }
    print(counts)
    assert len(set(counts.values())) == 1


def test_overlap_next_to_the_threshold_is_judged_image_by_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An IoU of exactly iou_thres: the joint pass cannot tell."""
    undecided = []
    together = batch_suppression._Batch._suppress_together

    def spy(self: object, first: int, end: int) -> Tensor | None:
        undecided.append((result := together(self, first, end)) is None)  # type: ignore[arg-type]
        return result

    monkeypatch.setattr(batch_suppression._Batch, "_suppress_together", spy)
    rows = torch.tensor([[10.0, 10, 20, 20, 1, 0.9], [10, 15, 20, 10, 1, 0.8]])
    for iou_thres, count in ((0.5, 2), (0.499, 1), (0.501, 2)):
        found = nms.detect([rows[None]] * 2, asked(2, 1, *[[0.25, iou_thres, 300, 0, 0]] * 2))
        assert found.counts == [count, count]
    assert undecided == [True, False, False]


def test_a_request_at_fault_is_named_whatever_it_was_batched_with() -> None:
    good = torch.tensor([[[9.0, 9, 4, 4, 0.9, 1]]])
    wrong = torch.tensor([[[9.0, 9, 4, 4, 0.9, 3]]])
    assert nms.detect([good, good], asked(2, 3), best_class_only=True).counts == [1, 1]
    with pytest.raises(InputError, match="a row's class is none of the 3"):
        nms.detect([good, wrong], asked(2, 3), best_class_only=True)


def test_all_rows_of_many_images_are_filtered_before_they_are_joined() -> None:
    generator = np.random.default_rng(0)
    outputs = [torch.from_numpy(random_rows(generator, 6000, 3, "full"))[None] for _ in range(2)]
    for output in outputs:
        output[0, ::2, 4] = 0
    rows = candidates.select_rows(outputs, torch.tensor([0.5, 0.75]))
    for image, limit in enumerate((0.5, 0.75)):
        own = outputs[image][0]
        assert torch.equal(rows.values[rows.images == image], own[own[:, 4] > limit])


# -- on a GPU that is not there ----------------------------------------------------------------


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """Fake tensors have a device, a shape and a type, and no values."""
    import torchvision  # noqa: F401  (says which shape its operators return)
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        yield torch.device("cuda", 0)


def thresholds_on(gpu: torch.device) -> BatchThresholds:
    rows = np.array([DEFAULTS] * 2, np.float32)
    by_class = np.full((2, 3), 0.25, np.float32)
    return BatchThresholds.from_arrays(rows, by_class, np.zeros((2, 6), np.float32), gpu)


def test_rows_on_a_gpu_are_selected_there(gpu: torch.device) -> None:
    outputs = [torch.zeros((1, 8, 8), device=gpu), torch.zeros((1, 9, 8), device=gpu)]
    rows = candidates.join_rows(outputs)
    selected = candidates.over(rows, thresholds_on(gpu).conf_thres)
    assert {part.device for part in (*rows, *selected)} == {gpu}


@pytest.mark.parametrize("find", [candidates._best_label, candidates._several_labels])
def test_candidates_on_a_gpu_are_found_there(find: object, gpu: torch.device) -> None:
    rows = candidates.join_rows([torch.zeros((2, 8, 8), device=gpu)])
    found = find(rows, thresholds_on(gpu))  # type: ignore[operator]
    columns = nms.as_columns(found._replace(boxes=nms.corners(found.boxes)))
    assert {part.device for part in (*found, columns)} == {gpu}


def test_boxes_on_a_gpu_are_moved_apart_there(gpu: torch.device) -> None:
    found = candidates.Candidates(
        torch.zeros((8, 4), device=gpu),
        torch.zeros(8, device=gpu),
        torch.zeros(8, dtype=torch.int64, device=gpu),
        torch.zeros(8, dtype=torch.int64, device=gpu),
    )
    boxes = batch_suppression.with_offsets(found, thresholds_on(gpu).agnostic_nms)
    moved, is_sound = batch_suppression.apart(boxes, found.images, 2)
    kept = torch.ops.torchvision.nms(moved, found.scores.double(), 0.5)
    assert {part.device for part in (boxes, moved, is_sound, kept)} == {gpu}
