"""Run several requests as one batch; if that fails, run each request by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

Tensors = Mapping[str, Any]  # NumPy or torch arrays by name; the first dimension is the batch


def run_batch(
    run: Callable[[Tensors], Tensors],
    requests: Sequence[Tensors | Exception],
    *,
    join: Callable[[list[Any]], Any] | None,
) -> list[Tensors | Exception]:
    """Answer every request.

    Args:
        run: the model: inputs by name -> outputs by name.
        requests: their inputs; or why they cannot be run, which is their answer.
        join: concatenates arrays along the batch; None if the model does not batch.

    Returns:
        For each request its outputs, or the exception that its own run raised.
    """
    answers = iter(_run(run, [one for one in requests if not isinstance(one, Exception)], join))
    return [one if isinstance(one, Exception) else next(answers) for one in requests]


def _run(
    run: Callable[[Tensors], Tensors],
    requests: Sequence[Tensors],
    join: Callable[[list[Any]], Any] | None,
) -> list[Tensors | Exception]:
    alike = all(inputs.keys() == requests[0].keys() for inputs in requests)  # optional ones differ
    if join is None or len(requests) <= 1 or not alike:
        return [_attempt(run, inputs) for inputs in requests]
    rows = [len(next(iter(inputs.values()))) for inputs in requests]
    try:
        outputs = run({name: join([inputs[name] for inputs in requests]) for name in requests[0]})
    except Exception:
        # One request is at fault: run by themselves, the others succeed.
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
