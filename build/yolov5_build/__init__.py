"""From trained YOLOv5 weights to the served model: read, export, install."""

from ._candidates import export_candidates
from ._checkpoint import Checkpoint, load_checkpoint
from ._errors import BuildError
from ._export import export_onnx
from ._install import Installed, install_onnx
from ._onnx_import import import_onnx
from ._safetensors import load_safetensors, save_safetensors

__all__ = [
    "BuildError",
    "Checkpoint",
    "Installed",
    "export_candidates",
    "export_onnx",
    "import_onnx",
    "install_onnx",
    "load_checkpoint",
    "load_safetensors",
    "save_safetensors",
]
