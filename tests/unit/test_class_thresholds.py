"""A threshold for each class gives the candidates of one run for each class, joined before
suppression: from the text of the parameter to the boxes, also if the network drops rows first."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import candidates
import nms
import numpy as np
import pytest
import torch
from default_parameters import DEFAULTS
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from nms import InputError
from numpy.typing import NDArray
from one_image import asked, detect, placement_of
from parameters import parse_parameters
from prefilter import with_prefilter
from thresholds import Thresholds
from torch import Tensor
from torchvision.ops import batched_nms

IDENTITY = placement_of([1, 1, 0, 0, 640, 640])
Detections = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The parameters of a request, and what they mean for each class."""

    conf_thres: float
    class_conf_thres: dict[int, float]
    classes: frozenset[int]
    iou_thres: float
    max_det: int
    agnostic_nms: bool
    multi_label: bool
    count: int

    def threshold(self, index: int) -> float:
        return self.class_conf_thres.get(index, self.conf_thres)

    @property
    def reported(self) -> frozenset[int]:
        return self.classes or frozenset(range(self.count))

    def tensors(self, as_json: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The tensors between the steps, made of the request's parameters as text."""
        text = {
            "conf_thres": str(self.conf_thres),
            "iou_thres": str(self.iou_thres),
            "max_det": str(self.max_det),
            "agnostic_nms": str(self.agnostic_nms),
            "multi_label": str(self.multi_label),
        }
        if self.classes:
            text["classes"] = ",".join(map(str, self.classes))
        if self.class_conf_thres:
            pairs = [f"{index}:{value}" for index, value in self.class_conf_thres.items()]
            text["class_conf_thres"] = (
                json.dumps(self.class_conf_thres) if as_json else ",".join(pairs)
            )
        names = [f"class {index}" for index in range(self.count)]
        rows = parse_parameters(text, names, DEFAULTS).as_rows(self.count)
        return np.array([rows[0]], np.float32), np.array([rows[1]], np.float32)


def candidates_of(
    rows: NDArray[np.float32], index: int, conf_thres: float, *, multi_label: bool
) -> list[tuple[int, int, np.float32]]:
    """Row, class and score of what one run with this threshold, for this class alone, considers."""
    found = []
    for number, row in enumerate(rows):
        scores = row[5:] * row[4]
        best = multi_label or int(scores.argmax()) == index
        if row[4] > np.float32(conf_thres) and best and scores[index] > np.float32(conf_thres):
            found.append((number, index, scores[index]))
    return found


def joined_runs(rows: NDArray[np.float32], request: Request) -> Detections:
    """The detections of one run for each class, joined before torchvision's suppression."""
    joined = sorted(
        candidate
        for index in request.reported
        for candidate in candidates_of(
            rows, index, request.threshold(index), multi_label=request.multi_label
        )
    )
    numbers = [number for number, _, _ in joined]
    classes = torch.tensor([index for _, index, _ in joined], dtype=torch.int64)
    scores = torch.tensor(np.array([score for _, _, score in joined], np.float32))
    centre, half = torch.from_numpy(rows[numbers, :2]), torch.from_numpy(rows[numbers, 2:4]) / 2
    boxes = torch.cat((centre - half, centre + half), 1)
    groups = torch.zeros_like(classes) if request.agnostic_nms else classes
    kept = batched_nms(boxes, scores, groups, float(np.float32(request.iou_thres))).sort().values
    kept = kept[scores[kept].sort(descending=True, stable=True).indices][: request.max_det]
    return boxes[kept].clamp(0, 640), scores[kept], classes[kept]


# Eighths multiply without rounding, so that many scores are equal to each other or to a threshold.
EIGHTHS = st.integers(0, 8).map(lambda eighths: eighths / 8)
THRESHOLDS = st.one_of(EIGHTHS, st.floats(0, 1, width=32))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    count = draw(st.integers(1, 5))
    indices = st.integers(0, count - 1)
    return Request(
        conf_thres=draw(THRESHOLDS),
        class_conf_thres=draw(st.dictionaries(indices, THRESHOLDS)),
        classes=draw(st.frozensets(indices)),
        iou_thres=draw(st.sampled_from([0.0, 0.25, 0.45, 1.0])),
        max_det=draw(st.sampled_from([1, 5, 1000])),
        agnostic_nms=draw(st.booleans()),
        multi_label=draw(st.booleans()),
        count=count,
    )


def random_rows(classes: int, count: int, seed: int) -> NDArray[np.float32]:
    """Rows [N, 5 + C] with boxes of which many overlap.

    Some class scores are over 1, as of a foreign network: then a score may be over a threshold that
    the objectness is not over.
    """
    generator = np.random.default_rng(seed)
    boxes = generator.integers(1, 12, (count, 4)) * 8
    objectness = generator.integers(0, 9, (count, 1)) / 8
    scores = generator.integers(0, 13, (count, classes)) / 8
    rows: NDArray[np.float32] = np.concatenate((boxes, objectness, scores), 1).astype(np.float32)
    return rows


def found_by_the_step(
    rows: NDArray[np.float32],
    tensors: tuple[NDArray[np.float32], NDArray[np.float32]],
    *,
    best_class_only: bool = False,
) -> Detections:
    thresholds, by_class = tensors
    return detect(
        torch.from_numpy(rows),
        Thresholds.from_row(thresholds[0].tolist()),
        torch.from_numpy(by_class[0]),
        IDENTITY,
        best_class_only=best_class_only,
    )


def assert_equal(one: Detections, other: Detections) -> None:
    for part, same in zip(one, other):
        assert torch.equal(part, same)


@fuzz(max_examples=150)
@given(
    request=requests(),
    count=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
    as_json=st.booleans(),
)
def test_detections_are_those_of_one_run_for_each_class(
    request: Request, count: int, seed: int, as_json: bool
) -> None:
    rows, tensors = random_rows(request.count, count, seed), request.tensors(as_json)
    wanted = joined_runs(rows, request)
    assert_equal(found_by_the_step(rows, tensors), wanted)
    # The network leaves out rows that are not over the lowest threshold.
    network = with_prefilter(lambda inputs: {"output0": rows[None]})
    few = network({"images": rows, "nms": tensors[0]})["output0"][0]
    assert_equal(found_by_the_step(few, tensors), wanted)


@fuzz(max_examples=60)
@given(request=requests(), count=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
def test_detections_without_an_objectness_are_those_of_one_run_for_each_class(
    request: Request, count: int, seed: int
) -> None:
    """The network leaves out rows whose best score is not over the lowest threshold."""
    rows, tensors = random_rows(request.count, count, seed), request.tensors(as_json=False)
    rows[:, 4] = 1
    network = with_prefilter(lambda inputs: {"output0": rows[None]}, full_head=True)
    few = network({"images": rows, "nms": tensors[0]})["output0"][0]
    assert (few[:, 5:].max(1) > tensors[0][0, 0]).all()
    assert_equal(found_by_the_step(few, tensors), joined_runs(rows, request))


@fuzz(max_examples=60)
@given(request=requests(), count=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
def test_detections_of_a_reduced_head_are_those_of_one_run_for_each_class(
    request: Request, count: int, seed: int
) -> None:
    """The full head that has the same rows has one score that is not 0, and an objectness of 1."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, request.count, count)
    full = random_rows(request.count, count, seed)
    scores = full[:, 4].copy()
    full[:, 4], full[:, 5:] = 1, 0
    full[range(count), 5 + classes] = scores
    reduced = np.concatenate((full[:, :4], scores[:, None], classes[:, None]), 1)
    request = Request(**{**vars(request), "multi_label": False})
    # Of a row of zeros, the best class is the first.
    wanted = joined_runs(full[scores > 0], request)
    found = found_by_the_step(
        reduced.astype(np.float32), request.tensors(as_json=False), best_class_only=True
    )
    assert_equal(found, wanted)


@pytest.mark.parametrize("multi_label", [False, True])
def test_objectness_must_exceed_the_threshold_of_the_class(multi_label: bool) -> None:
    rows = torch.tensor([[9.0, 9.0, 4.0, 4.0, 0.5, 1.5, 0.25]])
    for conf_thres, count in ((0.5, 0), (0.4375, 1)):
        request = Thresholds.from_row([0.25, 0.45, 300, 0, multi_label])
        by_class = torch.tensor([conf_thres, 0.25])
        assert len(detect(rows, request, by_class, IDENTITY)[0]) == count


def test_lowest_threshold_is_that_of_the_classes_reported() -> None:
    given: dict[str, Any] = {"conf_thres": 0.5, "class_conf_thres": "a:0.25,c:0.75"}
    for classes, lowest in (("a,b,c", 0.25), ("b,c", 0.5), ("c", 0.75)):
        parsed = parse_parameters({**given, "classes": classes}, "abc", DEFAULTS)
        assert parsed.as_rows(3)[0][0] == lowest
    every = parse_parameters({"conf_thres": 0.125, "class_conf_thres": "0:1,1:1"}, "ab", DEFAULTS)
    assert every.as_rows(2) == ((1, 0.45, 300, False, False), [1, 1])


def test_network_must_have_been_given_the_lowest_threshold() -> None:
    by_class = np.array([[0.25, np.inf], [0.75, 0.5]])
    nms.check_lowest(np.array([0.25, 0.5]), by_class)
    for wrong in ([0.25, 0.75], [0.5, 0.5], [0.125, 0.5], [np.nan, 0.5]):
        with pytest.raises(InputError, match="conf_thres is not the lowest of class_conf_thres"):
            nms.check_lowest(np.array(wrong), by_class)
    with pytest.raises(InputError):
        nms.check_lowest(np.array([0.25]), np.array([[0.25, np.nan]]))


@pytest.mark.parametrize("multi_label", [False, True])
def test_best_candidates_of_all_classes_together_enter_the_suppression(multi_label: bool) -> None:
    """As many as of a single run: classes with low thresholds do not add theirs on top."""
    count = 20_000 if multi_label else candidates.MAX_CANDIDATES + 5000
    rows = torch.rand((count, 8), generator=torch.Generator().manual_seed(0))
    rows[:, 4] = 1
    by_class = torch.tensor([0.0, 0.5, 0.25])
    request = Thresholds.from_row([0, 0.45, 300, 0, multi_label])
    given = asked(request, by_class, IDENTITY)
    selected = candidates.select_rows([rows[None]], given.conf_thres)
    _, found, classes, _ = candidates.find_candidates(selected, given, reduced=False)
    scores, best = rows[:, 5:], rows[:, 5:].argmax(1, keepdim=True)
    wanted = scores > by_class
    if not multi_label:
        wanted &= torch.zeros_like(wanted).scatter(1, best, True)
    assert int(wanted.sum()) > candidates.MAX_CANDIDATES
    lowest = scores[wanted].sort(descending=True).values[candidates.MAX_CANDIDATES - 1]
    number, index = (wanted & (scores >= lowest)).nonzero(as_tuple=True)
    assert len(found) == candidates.MAX_CANDIDATES
    assert torch.equal(classes, index)
    assert torch.equal(found, scores[number, index])
