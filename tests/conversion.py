"""Convert graphs that were made in a test, as `make model` does with an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto

from yolov5_build import BuildError
from yolov5_build._onnx_import import import_onnx


def convert(made: ModelProto, folder: Path, **options: Any) -> ModelProto:
    path, target = folder / "them.onnx", folder / "ours.onnx"
    path.write_bytes(made.SerializeToString())
    import_onnx(path, target, **options)
    return onnx.load(target)


def refusal(made: ModelProto, folder: Path, **options: Any) -> str:
    """The sentence with which the graph is refused, without its subject."""
    with pytest.raises(BuildError) as caught:
        convert(made, folder, **options)
    assert not (folder / "ours.onnx").exists()
    assert str(caught.value).startswith("them.onnx ")
    return str(caught.value).removeprefix("them.onnx ")
