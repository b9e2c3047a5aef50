"""Turn trained YOLOv5 weights into the served model: read them, export ONNX, install it."""

from ._checkpoint import Checkpoint, load_checkpoint
from ._errors import BuildError
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
