"""Read a request's inputs, and answer one that failed: the same on a CPU and on a GPU."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils


class InputError(ValueError):
    """A request's inputs cannot be run; one sentence."""


def read_inputs(
    request: Any, names: Sequence[str], take: Callable[[Any], Any]
) -> Mapping[str, Any] | Exception:
    """The inputs of a request by name, or why it cannot be run.

    Args:
        names: the inputs that the configuration states.
        take: makes an array of one of Triton's tensors.
    """
    given = {}
    try:
        for name in names:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:  # None: optional, and left out
                given[name] = take(tensor)
        if not given:
            raise InputError("an input is needed")
    except Exception as error:
        return error
    return given


def error_response(model: str, error: Exception) -> Any:
    """The response to a request that failed. Only the log says what a fault was."""
    if isinstance(error, InputError):
        message, code = str(error), pb_utils.TritonError.INVALID_ARG
    else:
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
        message, code = f"error running model '{model}'", pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
