"""From trained YOLOv5 weights to the served model: read, export, install."""

from ._checkpoint import Checkpoint, load_checkpoint
from ._errors import BuildError
from ._export import export_onnx
from ._install import install_onnx

__all__ = ["BuildError", "Checkpoint", "export_onnx", "install_onnx", "load_checkpoint"]
