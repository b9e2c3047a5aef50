"""Turn trained YOLOv5 weights into the served model: read them, export ONNX, install it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ._errors import BuildError

if TYPE_CHECKING:
    from ._checkpoint import Checkpoint, load_checkpoint
    from ._export import export_onnx
    from ._install import Installed, install_onnx
    from ._onnx_import import import_onnx
    from ._prefiltered import export_prefiltered
    from ._safetensors import load_safetensors, save_safetensors

__all__ = [
    "BuildError",
    "Checkpoint",
    "Installed",
    "export_onnx",
    "export_prefiltered",
    "import_onnx",
    "install_onnx",
    "load_checkpoint",
    "load_safetensors",
    "save_safetensors",
]

# Imported when first used: PyTorch and ONNX take seconds, of which `make models` and
# `ARGS=--rollback` have no need.
_PLACES = {
    "Checkpoint": "_checkpoint",
    "Installed": "_install",
    "export_onnx": "_export",
    "export_prefiltered": "_prefiltered",
    "import_onnx": "_onnx_import",
    "install_onnx": "_install",
    "load_checkpoint": "_checkpoint",
    "load_safetensors": "_safetensors",
    "save_safetensors": "_safetensors",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
