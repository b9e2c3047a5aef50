from __future__ import annotations

from typing import Any

import numpy as np
from executor import Run
from image_gather import Tensors, image_tasks


def answered(inputs: Tensors, run: Run, *, batching: bool = True) -> Tensors | Exception:
    answers: list[Tensors | Exception] = []
    parts = [*image_tasks(inputs, batching=batching, respond=answers.append)]
    for part in reversed(parts):
        assert not answers
        part(run)
    (found,) = answers
    return found


def test_images_of_a_request_run_one_by_one_and_are_answered_together() -> None:
    memory = np.zeros((1, 2), np.float32)
    rows = []

    def run(inputs: Tensors) -> dict[str, Any]:
        rows.append(len(inputs["x"]))
        memory[:] = inputs["x"] * 2  # into the same memory each time, as OpenVINO does
        return {"y": memory}

    images = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = answered({"x": images}, run)
    assert not isinstance(found, Exception)
    np.testing.assert_array_equal(found["y"], images * 2)
    assert rows == [1, 1, 1]
    rows.clear()
    memory = np.zeros((3, 2), np.float32)
    answered({"x": images}, run, batching=False)
    assert rows == [3]


def test_request_fails_if_one_of_its_images_fails() -> None:
    def run(inputs: Tensors) -> Tensors:
        if inputs["x"][0] == 1:
            raise ValueError("one")
        return inputs

    assert isinstance(answered({"x": np.array([0, 1, 2])}, run), ValueError)
    assert isinstance(answered({"x": np.array([1])}, run), ValueError)


def test_images_with_fewer_rows_are_padded_with_zeros() -> None:
    counts = {0: 2, 1: 0, 2: 3}

    def run(inputs: Tensors) -> dict[str, Any]:
        number = int(inputs["x"][0])
        return {"output0": np.full((1, counts[number], 8), number + 1, np.float32)}

    answers: list[Any] = []
    for part in image_tasks({"x": np.arange(3)}, batching=True, respond=answers.append):
        part(run)
    (found,) = answers
    assert found["output0"].shape == (3, 3, 8)
    assert found["output0"][:, :, 0].tolist() == [[1, 1, 0], [0, 0, 0], [3, 3, 3]]
