"""The form in which a network is served: bytes in, few rows out.

Triton copies every tensor between two steps. As float32, images are four times as large as their
pixels, and of the 25,200 rows of a network of 640x640 almost all are background. This variant
takes pixels, and decodes only the rows whose objectness is over the requested confidence, or whose
best class is if the network has no objectness; postprocess drops the others anyway. It also
replaces some layers by cheaper equivalents. `_onnx_prefiltered` makes it of an ONNX file.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import _contract as contract
from ._checkpoint import Checkpoint
from ._errors import BuildError
from ._export import TOLERANCE, best_class, image_size, largest_difference, write_onnx
from .layers import Conv, DetectionModel, Focus
from .photos import example_images


def export_prefiltered(
    checkpoint: Checkpoint,
    path: Path,
    full: Path,
    *,
    imgsz: int | tuple[int, int] = contract.DEFAULT_SIZE,
    dynamic: bool = False,
    reduced_head: bool = False,
) -> float:
    """Write the prefiltered variant of `checkpoint` as ONNX.

    Inputs are `pixels` [B,3,H,W] UINT8, RGB 0..255, and `nms` [B,5] FP32, beginning with the
    conf_thres of each image. The output is `output0` [B,K,5+C] FP32: the rows that can have a score
    over that, in the order of the full network. K is the most rows of an image and at least 1;
    images with fewer are padded with zeros.

    Args:
        full: the FP32 file that `export_onnx` wrote of the same checkpoint.
        imgsz, dynamic, reduced_head: as for `export_onnx`.

    Returns:
        The largest relative difference from `full` on photos.

    Raises:
        BuildError: `imgsz` does not fit the network, or the variant differs too much from `full`.
    """
    images = example_images(*image_size(checkpoint, imgsz))
    pixels = np.rint(images * 255).astype(np.uint8)
    write_onnx(
        _Prefiltered(checkpoint.network, reduced_head=reduced_head),
        {
            contract.PIXELS: torch.from_numpy(pixels[:1]),
            contract.NMS: torch.tensor([[0.25, 0.0, 0.0, 0.0, 0.0]]),
        },
        path,
        open_sides={
            contract.PIXELS: {0: "batch", **({2: "height", 3: "width"} if dynamic else {})},
            contract.NMS: {0: "batch"},
            contract.OUTPUT: {0: "batch", 1: "kept"},
        },
    )
    model = onnx.load(path)
    columns = onnx.load(full).graph.output[0].type.tensor_type.shape.dim[2]
    model.graph.output[0].type.tensor_type.shape.dim[2].CopyFrom(columns)
    onnx.helper.set_model_props(
        model, {contract.FULL_KEY: hashlib.sha256(full.read_bytes()).hexdigest()}
    )
    onnx.save(model, path)
    return verify(path, full, images, pixels, reduced_head=reduced_head)


def verify(
    path: Path,
    full: Path,
    images: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    *,
    reduced_head: bool,
    batch: int | None = None,
    tolerance: float = TOLERANCE,
) -> float:
    """Run the variant and the full network on the same images, and compare their rows.

    Args:
        images: [B,3,H,W], RGB 0..1.
        pixels: the same as 0..255.
        batch: how many of them to run at a time; all unless given.
        tolerance: the largest relative difference allowed.

    Returns:
        The largest relative difference.

    Raises:
        BuildError: it is too large.
    """
    session, whole = (
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for file in (path, full)
    )
    difference = 0.0
    size = batch or len(images)
    for start in range(0, len(images) - size + 1, size):
        several = slice(start, start + size)
        (expected,) = whole.run([contract.OUTPUT], {contract.INPUT: images[several]})
        nms = np.zeros((len(expected), 5), np.float32)
        nms[:, 0] = -1  # every score is over it
        inputs = {contract.PIXELS: pixels[several], contract.NMS: nms}
        (found,) = session.run([contract.OUTPUT], inputs)
        if found.shape != expected.shape:
            raise BuildError("the network's prefiltered variant returns rows of another shape.")
        difference = max(difference, largest_difference(found, expected, reduced_head=reduced_head))
    if not difference <= tolerance:
        raise BuildError(
            f"the network's prefiltered variant differs from it by {difference:.2g} (allowed"
            f" {tolerance})."
        )
    return difference


class _Prefiltered(nn.Module):
    """A network with the inputs and outputs of its prefiltered variant."""

    def __init__(self, network: DetectionModel, *, reduced_head: bool) -> None:
        super().__init__()
        self.network = _lighter(network)
        self.reduced_head = reduced_head

    def forward(self, pixels: Tensor, nms: Tensor) -> Tensor:
        maps = self.network.maps(pixels.float() / 255)
        rows = self.network.head.rows_above(maps, nms[:, 0])
        return best_class(rows) if self.reduced_head else rows


def _lighter(network: DetectionModel) -> DetectionModel:
    """A copy in which some layers are replaced by cheaper equivalents."""
    copied = copy.deepcopy(network)
    for index, layer in enumerate(copied.model):
        if isinstance(layer, Focus) and (stem := _without_gathering(layer)):
            stem.f, stem.i = layer.f, layer.i
            copied.model[index] = stem
        elif isinstance(layer, nn.Upsample) and layer.scale_factor == 2:
            # Upsample by the factor, rather than to a size that is computed first.
            layer.recompute_scale_factor = None
    return copied


def _without_gathering(focus: Focus) -> Conv | None:
    """A `Focus` as one convolution over the image, without gathering 2x2 squares first.

    It has twice the kernel size, stride and padding, and each weight is at the place of the pixel
    that it belongs to. None if the original convolution is of an unusual kind.
    """
    stem = focus.conv
    gathered = stem.conv if isinstance(stem, Conv) else None
    if (
        not isinstance(gathered, nn.Conv2d)
        or gathered.groups > 1
        or gathered.dilation != (1, 1)
        or isinstance(gathered.padding, str)
    ):
        return None
    out, channels, *size = gathered.weight.shape
    squares = gathered.weight.reshape(out, 2, 2, channels // 4, *size)  # out, column, row, in
    weight = squares.permute(0, 3, 4, 2, 5, 1).reshape(out, channels // 4, *(2 * n for n in size))
    new = nn.Conv2d(
        channels // 4,
        out,
        (2 * size[0], 2 * size[1]),
        (2 * gathered.stride[0], 2 * gathered.stride[1]),
        (2 * gathered.padding[0], 2 * gathered.padding[1]),
        bias=False,
    )
    new.weight = nn.Parameter(weight)
    new.bias = gathered.bias
    stem.conv = new
    return stem
