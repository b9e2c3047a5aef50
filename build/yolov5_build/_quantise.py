"""Quantise a network to INT8 (Q/DQ ONNX), with ONNX Runtime's tool and calibration photos."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from ._contract import INPUT, INT8_SYMMETRIC, INT8_TARGETS, PRECISION_KEY, SQUARE
from ._errors import BuildError
from .photos import PhotoLoader

CALIBRATION_PHOTOS = 64


def quantise(
    source: Path,
    target: Path,
    photos: Sequence[Path],
    *,
    device: str = "cpu",
    letterbox: str = SQUARE,
) -> None:
    """Write an INT8 version of an FP32 network from `export_onnx`.

    The last convolutions, which compute boxes and scores, and the decoding after them stay in FP32:
    the coordinates of a box need more than 256 steps.

    Args:
        photos: calibration photos, similar to those that the network will see.
        device: one of `INT8_TARGETS`.
        letterbox: the mode in which the network will be served.

    Raises:
        BuildError: the input has an open size, or a photo cannot be used.
    """
    model = onnx.load(source)
    sides = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[2:]]
    if not all(sides):
        raise BuildError("INT8 needs a fixed input size, which letterbox rect does not have.")
    precision = INT8_TARGETS[device]
    # Unsigned numbers with a zero point use all 256 steps, and CPUs multiply them fast. TensorRT
    # takes only signed numbers around zero.
    symmetric = precision == INT8_SYMMETRIC
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            _Reader(photos, PhotoLoader(*sides, letterbox=letterbox)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_decoding_nodes(onnx.load(prepared).graph),
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": not symmetric,  # TensorRT has no INT32 biases
            },
        )
    _copy_metadata(model, target, precision)


def _copy_metadata(model: onnx.ModelProto, target: Path, precision: str) -> None:
    quantised = onnx.load(target)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(quantised, {**metadata, PRECISION_KEY: precision})
    onnx.save(quantised, target)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, photos: Sequence[Path], loader: PhotoLoader) -> None:
        self._images: Iterator[NDArray[Any]] = (loader.load(photo)[0] for photo in photos)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: image[None]}


def _decoding_nodes(graph: onnx.GraphProto) -> list[str]:
    """The names of the nodes from the last convolution on, along every path to the output."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    before: set[str] = set()  # nodes that a convolution follows
    for node in reversed(graph.node):  # readers come first, as the nodes are sorted
        behind = [reader for name in node.output for reader in readers.get(name, [])]
        if any(reader.op_type == "Conv" or reader.name in before for reader in behind):
            before.add(node.name)
    return [node.name for node in graph.node if node.name not in before]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the tool's advice on how to use it."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
