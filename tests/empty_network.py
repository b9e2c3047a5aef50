"""A network without layers, as `make model` has exported it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper

OPEN: tuple[str, str] = ("height", "width")


def write(
    folder: Path,
    *size: int | str,
    rows: int | str = 252,
    columns: int = 7,
    output: str = "output0",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """An ONNX file with no more than what is read of it."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *size])
    made = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", rows, columns])
    model = helper.make_model(helper.make_graph([], "g", [image], [made]))
    entries = {
        "names": "{0: 'car', 1: 'bus'}",
        "stride": "32",
        "head": "full",
        "precision": "fp32",
        "provenance": "From a test.",
        **(metadata or {}),
    }
    helper.set_model_props(model, entries)
    path = folder / "made.onnx"
    onnx.save(model, path)
    return path
