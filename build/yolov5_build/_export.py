"""A PyTorch network to ONNX, checked against itself."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from ._checkpoint import Checkpoint
from ._errors import BuildError
from ._names import INPUT, OUTPUT

OPSET = 17  # old enough to be read widely; run here with ONNX Runtime 1.23 and 1.31
TOLERANCE = 1e-3  # relative to a coordinate's magnitude, FP32


def export_onnx(checkpoint: Checkpoint, path: Path, *, imgsz: int = 640) -> None:
    """Write `checkpoint` as ONNX: `images` [B,3,imgsz,imgsz] FP32 -> `output0` [B,N,5+C] FP32.

    The batch is dynamic. Class names, stride and the checkpoint's hash go into the metadata under
    the keys that YOLOv5's exporter uses (`names`, `stride`), so that other tools find them.

    Raises:
        BuildError: `imgsz` does not fit the network, or the export does not answer as it does.
    """
    if imgsz <= 0 or imgsz % checkpoint.stride:
        raise BuildError(f"image size {imgsz} is not a positive multiple of {checkpoint.stride}.")
    example = torch.rand((1, 3, imgsz, imgsz), generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's notes about shapes, which are meant static
        torch.onnx.export(
            checkpoint.network,
            (example,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
        # Two images against the one that was traced, so that a batch baked into the graph shows.
        images = torch.rand((2, 3, imgsz, imgsz), generator=torch.Generator().manual_seed(1))
        expected = checkpoint.network(images)
    _describe(checkpoint, path, expected.shape[1:])
    _check(path, images.numpy(), expected.numpy())


def _describe(checkpoint: Checkpoint, path: Path, rows: torch.Size) -> None:
    """State what the tracer left open, the output's shape, and add the metadata."""
    model = onnx.load(path)
    for side, size in zip(model.graph.output[0].type.tensor_type.shape.dim[1:], rows):
        side.dim_value = size
    onnx.helper.set_model_props(
        model,
        {
            "names": str(dict(enumerate(checkpoint.names))),
            "stride": str(checkpoint.stride),
            "checkpoint_sha256": checkpoint.sha256,
        },
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _check(path: Path, images: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run([OUTPUT], {INPUT: images})
    error = np.max(np.abs(answer - expected) / np.maximum(np.abs(expected), 1))
    if not error <= TOLERANCE:
        raise BuildError(
            f"the exported model differs from the checkpoint by {error:.2g} (allowed {TOLERANCE})."
        )
