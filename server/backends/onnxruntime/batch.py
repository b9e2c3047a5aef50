"""Several requests, one run; and when the run fails, each request for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

Tensors = Mapping[str, Any]  # by name; arrays of NumPy or torch, the first dimension the batch


def run_batch(
    run: Callable[[Tensors], Tensors],
    requests: Sequence[Tensors],
    *,
    join: Callable[[list[Any]], Any] | None,
) -> list[Tensors | Exception]:
    """Answer every request.

    Args:
        run: the model: inputs by name -> outputs by name.
        requests: their inputs.
        join: concatenates arrays along the batch; None where the model does not batch.

    Returns:
        For each request its outputs, or the exception that its own run raised.
    """
    if join is None or len(requests) == 1:
        return [_attempt(run, inputs) for inputs in requests]
    rows = [len(next(iter(inputs.values()))) for inputs in requests]
    try:
        outputs = run({name: join([inputs[name] for inputs in requests]) for name in requests[0]})
    except Exception:
        # One of them is at fault; alone, each gets what it deserves.
        return [_attempt(run, inputs) for inputs in requests]
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for count, end in zip(rows, accumulate(rows))
    ]


def _attempt(run: Callable[[Tensors], Tensors], inputs: Tensors) -> Tensors | Exception:
    try:
        return run(inputs)
    except Exception as error:
        return error
