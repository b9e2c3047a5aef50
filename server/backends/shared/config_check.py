"""Check a configuration against its graph, as Triton's own ONNX Runtime backend does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DATA_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}
# Fields of a tensor's configuration that change its meaning and are not implemented here.
_UNSUPPORTED = ("reshape", "is_shape_tensor", "allow_ragged_batch")


class ConfigError(ValueError):
    """The configuration does not fit the graph, or asks for something unsupported; one sentence."""


def dims(shape: Sequence[Any]) -> list[int]:
    """A graph's shape, with -1 for every dynamic dimension."""
    return [side if isinstance(side, int) and side >= 0 else -1 for side in shape]


def check_config(config: Mapping[str, Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Compare a model's configuration with its graph.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
        inputs, outputs: tensors of the graph: objects with `name`, `type` and `shape`.

    Raises:
        ConfigError: names, number, data types or dims differ, or batching is not possible.
    """
    model = config["name"]
    if len(config["input"]) != len(inputs):
        raise ConfigError(
            f"unable to load model '{model}': the configuration expects {len(config['input'])}"
            f" inputs, the model provides {len(inputs)}"
        )
    if not config["output"]:
        raise ConfigError(f"unable to load model '{model}': the configuration names no output")
    batching = int(config["max_batch_size"]) > 0
    for kind, stated, present in (
        ("input", config["input"], inputs),
        ("output", config["output"], outputs),
    ):
        by_name = {tensor.name: tensor for tensor in present}
        for tensor in stated:
            if tensor["name"] not in by_name:
                raise ConfigError(
                    f"unexpected inference {kind} '{tensor['name']}' for model '{model}',"
                    f" allowed {kind}s are: {', '.join(by_name)}"
                )
            _check_tensor(model, kind, tensor, by_name[tensor["name"]], batching)


def _check_tensor(
    model: str, kind: str, stated: Mapping[str, Any], present: Any, batching: bool
) -> None:
    name = stated["name"]
    for field in _UNSUPPORTED:
        if stated.get(field):
            raise ConfigError(f"model '{model}', {kind} '{name}': '{field}' is not supported")
    data_type = DATA_TYPES.get(present.type)
    if data_type is None:
        raise ConfigError(
            f"model '{model}', {kind} '{name}': the data type {present.type} is not supported"
        )
    if stated["data_type"] != data_type:
        raise ConfigError(
            f"unexpected datatype {stated['data_type']} for inference {kind} '{name}',"
            f" expecting {data_type} for model '{model}'"
        )
    expected = dims(present.shape)
    if batching and (not expected or expected[0] != -1):
        raise ConfigError(
            f"model '{model}', {kind} '{name}': batching needs a first dimension that is variable,"
            f" but the model expects shape {expected}; state max_batch_size 0"
        )
    configured = [-1] * batching + [int(side) for side in stated["dims"]]
    fits = len(configured) == len(expected) and all(
        side in (-1, wanted) for side, wanted in zip(expected, configured)
    )
    if not fits:
        raise ConfigError(
            f"model '{model}', tensor '{name}': the model expects {len(expected)} dimensions"
            f" (shape {expected}) but the model configuration specifies {len(configured)}"
            f" dimensions (shape {configured})"
        )
