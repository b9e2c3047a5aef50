"""The input and the outputs of an ONNX network as it is in the file, before any change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto

from ._errors import BuildError
from ._limits import memory_limit
from ._onnx_file import quoted, short_reason
from ._onnx_graph import all_nodes
from ._onnx_rows import BUILT_IN_NMS
from .photos import example_images

Array = NDArray[Any]

LOADING_BYTES, LOADING_BYTES_PER_BYTE = 192 << 20, 8  # measured: yolov5s of 27 MB needs 106 MB

# Operator domains of ONNX Runtime itself, which a Triton server supports too.
_DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """The input of a network: its ONNX data type, and its sizes, None if open."""

    name: str
    type: int
    batch: int | None
    height: int | None
    width: int | None


def image_input(name: str, graph: GraphProto) -> ImageInput:
    """The only input.

    Raises:
        BuildError: it does not take RGB images as float32 or float16 [B,3,H,W], or there are
            several inputs; the message begins with `name`.
    """
    inputs = graph.input
    if len(inputs) != 1:
        listed = ", ".join(quoted(value.name) for value in inputs[:4])
        raise BuildError(f"{name} has {len(inputs)} inputs ({listed}) instead of one.")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise BuildError(f"{name} takes {kind} images; float32 or float16 is needed.")
    sides = [side.dim_value if side.dim_value > 0 else None for side in tensor.shape.dim]
    shape = "[" + ", ".join(str(side or "?") for side in sides) + "]"
    if len(sides) != 4:
        raise BuildError(f"{name} takes a tensor {shape}; [batch, 3, height, width] is needed.")
    batch, channels, height, width = sides
    if width == 3 and channels != 3:
        raise BuildError(
            f"{name} takes images with the channels last (NHWC), {shape};"
            " [batch, 3, height, width] is needed."
        )
    if channels not in (3, None):
        plural = "" if channels == 1 else "s"
        raise BuildError(
            f"{name} takes images of {channels} channel{plural}, {shape}; 3 are needed."
        )
    return ImageInput(
        name=inputs[0].name, type=tensor.elem_type, batch=batch, height=height, width=width
    )


class Network:
    """Runs a network on photos, in batches of its fixed size, else one by one."""

    def __init__(self, name: str, model: ModelProto, image: ImageInput) -> None:
        """
        Raises:
            BuildError: ONNX Runtime cannot load it.
        """
        self.name = name
        self.image = image
        self.batch = image.batch or 1
        self.has_nms = any(_is_nms(node.op_type) for node in all_nodes(model.graph.node))
        self._type = onnx.helper.tensor_dtype_to_np_dtype(image.type)
        foreign = [node for node in all_nodes(model.graph.node) if node.domain not in _DOMAINS]
        if foreign:
            operator = quoted(f"{foreign[0].domain}:{foreign[0].op_type}")
            raise self._refused(f"uses the operator {operator}, which ONNX Runtime does not have")
        try:
            self._session = open_session(model)
        except Exception as error:
            raise self._refused(
                f"cannot be loaded by ONNX Runtime: {short_reason(error)}"
            ) from None

    def _refused(self, reason: str) -> BuildError:
        # A network that cannot be loaded usually has NMS as a plug-in of TensorRT.
        return BuildError(f"{self.name} {BUILT_IN_NMS if self.has_nms else reason}.")

    def photos(self, height: int, width: int) -> NDArray[np.float32]:
        """At least 3 different photos, float32 [B,3,H,W], in complete batches.

        They are rounded to the input's type, since ONNX Runtime may omit a cast to float16 and
        back.
        """
        count = -(-3 // self.batch) * self.batch
        photos = example_images(height, width, count)
        photos = np.resize(photos, (count, *photos.shape[1:]))
        return photos.astype(self._type).astype(np.float32)

    def run(
        self, photos: NDArray[np.float32], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run one batch, and return the outputs that are tensors, or the given ones.

        Raises:
            BuildError: the network cannot be run.
        """
        wanted = list(outputs or [output.name for output in self._session.get_outputs()])
        try:
            arrays = self._session.run(wanted, {self.image.name: photos.astype(self._type)})
        except Exception as error:
            size = "x".join(str(side) for side in photos.shape[2:])
            raise BuildError(
                f"{self.name} cannot be run at {size} pixels: {short_reason(error)}."
            ) from None
        return {n: array for n, array in zip(wanted, arrays) if isinstance(array, np.ndarray)}

    def rows(self, photos: NDArray[np.float32], output: str) -> NDArray[np.float32]:
        """One output for all photos, computed batch by batch."""
        groups = [photos[i : i + self.batch] for i in range(0, len(photos), self.batch)]
        answers = [self.run(group, [output])[output] for group in groups]
        return np.concatenate(answers).astype(np.float32)


def _is_nms(operator: str) -> bool:
    return "nms" in operator.lower() or operator == "NonMaxSuppression"


def open_session(model: ModelProto) -> onnxruntime.InferenceSession:
    """Load a model for the CPU, without logging.

    Memory is limited meanwhile, since ONNX Runtime computes constants when it loads a model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    # Threads that wait without sleeping would use up the CPU seconds that `_limits.py` allows.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = model.SerializeToString()
    with memory_limit(LOADING_BYTES + LOADING_BYTES_PER_BYTE * len(data)):
        return onnxruntime.InferenceSession(
            data,
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # there is no other provider, and trying one prints a message
        )
