"""Export a PyTorch network to ONNX, and compare the two on photos."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import _contract as contract
from . import anchor_free
from ._checkpoint import Checkpoint
from ._errors import BuildError
from .layers import DetectionModel
from .photos import example_images

OPSET = 17  # old enough for most readers; run here with ONNX Runtime 1.23 and 1.31
# Largest difference from the PyTorch network on photos, relative to the value, or to 1 if that is
# less.
TOLERANCE = 1e-3
HALF_TOLERANCE = 0.2  # the sides of a box are squares of FP16 numbers

_OPEN_BATCH = {contract.INPUT: {0: "batch"}, contract.OUTPUT: {0: "batch"}}
_OPEN_SIDES = {
    contract.INPUT: {0: "batch", 2: "height", 3: "width"},
    contract.OUTPUT: {0: "batch", 1: "rows"},
}


def export_onnx(
    checkpoint: Checkpoint,
    path: Path,
    *,
    imgsz: int | tuple[int, int] = contract.DEFAULT_SIZE,
    dynamic: bool = False,
    half: bool = False,
    reduced_head: bool = False,
    provenance: str | None = None,
) -> float:
    """Write `checkpoint` as ONNX: `images` [B,3,H,W] FP32 -> `output0` [B,N,5+C] FP32.

    The batch is dynamic. The metadata hold class names and stride, under the keys of YOLOv5's own
    exporter so that other tools find them, and also head, padding, precision and provenance.

    Args:
        imgsz: height and width in pixels, or one number for both.
        dynamic: leave height and width open, for letterbox `rect`.
        half: compute in FP16. Boxes are still decoded in FP32, since FP16 resolves coordinates
            over 512 only to half a pixel.
        reduced_head: return rows [B,N,6] with the best class only: its score times objectness,
            and its index.
        provenance: where the network comes from, in one line.

    Returns:
        The largest relative difference from the PyTorch network on photos.

    Raises:
        BuildError: `imgsz` does not fit the network, or the export differs from it too much.
    """
    size = image_size(checkpoint, imgsz)
    images = example_images(*size)
    network = _half_precision(checkpoint.network) if half else checkpoint.network
    write_onnx(
        _ExportedNetwork(network, reduced_head=reduced_head, half=half),
        {contract.INPUT: torch.from_numpy(images[:1])},
        path,
        open_sides=_OPEN_SIDES if dynamic else _OPEN_BATCH,
    )
    shape, difference = _verify(
        checkpoint, path, images, dynamic=dynamic, half=half, reduced_head=reduced_head
    )
    entries = _metadata(checkpoint, half=half, reduced_head=reduced_head, provenance=provenance)
    if dynamic:
        entries[contract.IMGSZ_KEY] = str([*size])
    _write_metadata(path, (None if dynamic else shape[1], shape[2]), entries)
    return difference


def _metadata(
    checkpoint: Checkpoint, *, half: bool, reduced_head: bool, provenance: str | None
) -> dict[str, str]:
    entries = {
        contract.NAMES_KEY: str(dict(enumerate(checkpoint.names))),
        contract.STRIDE_KEY: str(checkpoint.stride),
        contract.HEAD_KEY: contract.REDUCED if reduced_head else contract.FULL,
        contract.PRECISION_KEY: contract.FP16 if half else contract.FP32,
        contract.PROVENANCE_KEY: provenance or f"From a checkpoint, sha256 {checkpoint.sha256}.",
    }
    if isinstance(checkpoint.network.head, anchor_free.Detect):
        entries[contract.PADDING_KEY] = contract.WHOLE
    return entries


def _verify(
    checkpoint: Checkpoint,
    path: Path,
    images: NDArray[np.float32],
    *,
    dynamic: bool,
    half: bool,
    reduced_head: bool,
) -> tuple[tuple[int, ...], float]:
    """Run the export, and compare it with the checkpoint.

    Returns:
        The shape of its rows, and their largest relative difference.

    Raises:
        BuildError: the difference is too large.
    """
    # Two images, although one was traced, to detect a batch size that is fixed in the graph.
    shape, difference = _compare(checkpoint, path, images, reduced_head=reduced_head)
    if dynamic:  # another shape than the traced one as well
        lower = np.ascontiguousarray(images[:, :, checkpoint.stride :])
        if lower.size:
            _, other = _compare(checkpoint, path, lower, reduced_head=reduced_head)
            difference = max(difference, other)
    allowed = HALF_TOLERANCE if half else TOLERANCE
    if not difference <= allowed:
        raise BuildError(
            f"the exported model differs from the checkpoint by {difference:.2g} (allowed"
            f" {allowed})."
        )
    return shape, difference


def image_size(checkpoint: Checkpoint, imgsz: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels.

    Raises:
        BuildError: the network cannot take images of this size.
    """
    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    for side in (height, width):
        if side <= 0 or side % checkpoint.stride:
            raise BuildError(
                f"image size {side} is not a positive multiple of {checkpoint.stride}."
            )
    return height, width


def write_onnx(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    path: Path,
    *,
    open_sides: Mapping[str, Mapping[int, str]],
) -> None:
    """Trace a network with one output, and write it as ONNX.

    Args:
        inputs: examples by name, in the order of `forward`'s parameters.
        open_sides: names of the dimensions that are not fixed, by input or output and index.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter(
            "ignore"
        )  # the tracer warns about shapes that are constant on purpose
        torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[contract.OUTPUT],
            dynamic_axes=open_sides,
        )


def best_class(rows: Tensor) -> Tensor:
    """Rows [..., 5 + C] -> [..., 6]: box, score of the best class times objectness, its index."""
    scores, classes = (rows[..., 5:] * rows[..., 4:5]).max(-1, keepdim=True)
    return torch.cat((rows[..., :4], scores, classes.to(rows.dtype)), -1)


class _ExportedNetwork(nn.Module):
    """A network with the inputs and outputs of its export."""

    def __init__(self, network: DetectionModel, *, reduced_head: bool, half: bool = False) -> None:
        super().__init__()
        self.network = network
        self.reduced_head = reduced_head
        self.half_inside = half

    def forward(self, images: Tensor) -> Tensor:
        rows = cast(Tensor, self.network(images.half() if self.half_inside else images))
        return best_class(rows) if self.reduced_head else rows


class _ToFloat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def _half_precision(network: DetectionModel) -> DetectionModel:
    """A copy that computes in FP16 up to the convolutions of the head, and decodes in FP32."""
    copied = copy.deepcopy(network)
    head = copied.half().head
    kind = type(head)  # what a file says of its own attributes does not count
    for name in kind.decoding:
        setattr(head, name, getattr(network.head, name))
    for name in kind.branches:
        each = cast(nn.ModuleList, getattr(head, name))
        setattr(head, name, nn.ModuleList(nn.Sequential(one, _ToFloat()) for one in each))
    return copied


def _compare(
    checkpoint: Checkpoint, path: Path, images: NDArray[np.float32], *, reduced_head: bool
) -> tuple[tuple[int, ...], float]:
    """The shape of the export's rows, and their largest difference from the FP32 network's."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run([contract.OUTPUT], {contract.INPUT: images})
    with torch.no_grad():
        network = _ExportedNetwork(checkpoint.network, reduced_head=reduced_head).eval()
        expected = network(torch.from_numpy(images)).numpy()
    if answer.shape != expected.shape:
        raise BuildError("the exported model returns rows of another shape than the checkpoint.")
    return expected.shape, largest_difference(answer, expected, reduced_head=reduced_head)


def largest_difference(
    answer: NDArray[np.float32], expected: NDArray[np.float32], *, reduced_head: bool
) -> float:
    """The largest difference between rows, relative to the value, or to 1 if that is less."""
    if reduced_head:  # of two classes with the same score, either may come out
        answer, expected = answer[..., :5], expected[..., :5]
    return float((np.abs(answer - expected) / np.maximum(np.abs(expected), 1)).max())


def _write_metadata(path: Path, shape: tuple[int | None, int], metadata: dict[str, str]) -> None:
    """Add the metadata, and the rows and columns of the output, which the tracer leaves open."""
    model = onnx.load(path)
    for side, size in zip(model.graph.output[0].type.tensor_type.shape.dim[1:], shape):
        if size is not None:
            side.dim_value = size
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)
