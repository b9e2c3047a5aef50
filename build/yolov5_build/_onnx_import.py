"""Convert an ONNX export of YOLOv5 by another tool to the interface that is served here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from . import _contract as contract
from ._errors import BuildError
from ._onnx_file import quoted, read_onnx, short_reason
from ._onnx_graph import (
    Port,
    declare_open_batch,
    make_batch_dynamic,
    precision_from,
    set_interface,
)
from ._onnx_limits import check_costs, check_operators
from ._onnx_metadata import class_names, largest_stride
from ._onnx_network import ImageInput, Network, image_input, open_session
from ._onnx_rows import Layout, Outputs, find_rows, problem_with

MAX_SIDE = 4096
SIDE_STEP = 32  # open sides must be a multiple of it
MAX_PIXELS = 1 << 25  # in a batch of fixed size: 81 images of 640x640
# Largest relative difference of a coordinate. The rows of all networks tried in FP32 were identical
# to the bit. In FP16, just rounding the photos to it moved coordinates of yolov5n by up to 0.04.
TOLERANCE = 1e-3
TOLERANCE_FP16 = 5e-2

Array = NDArray[Any]


def import_onnx(
    source: Path,
    target: Path,
    *,
    names: Sequence[str] | None = None,
    imgsz: tuple[int, int] | None = None,
) -> None:
    """Convert `source` to `images` [batch,3,H,W] FP32 -> `output0` [batch,N,5+C] FP32.

    H, W and N are fixed, or open dimensions `height`, `width` and `rows` if the network takes any
    size. The batch is open; if the network is correct only for single images, the metadata say so
    (`max_batch_size`). Both properties are determined by running the network on photos.

    Args:
        source: ONNX of any exporter.
        target: the file to write, which includes all data.
        names: class names to use instead of those in the metadata.
        imgsz: height and width in pixels, for a network that leaves them open.

    Raises:
        BuildError: `source` is damaged, is not a YOLOv5 detection network with decoded rows, or
            does not fit `names` or `imgsz`.
        OSError: `target` cannot be written.
    """
    try:
        data = _convert(source, names, imgsz).SerializeToString()
    except (BuildError, MemoryError):
        raise
    except Exception as error:  # onnx and ONNX Runtime can raise anything on a malformed file
        raise BuildError(f"{source.name} cannot be imported: {short_reason(error)}.") from None
    target.write_bytes(data)


def _convert(
    source: Path, names: Sequence[str] | None, imgsz: tuple[int, int] | None
) -> ModelProto:
    name = source.name
    model, sha256 = read_onnx(source)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if metadata.get(contract.HEAD_KEY, contract.FULL) != contract.FULL:
        raise BuildError(
            f"{name} has a {quoted(metadata[contract.HEAD_KEY])} head; only a full one is read."
        )
    image = image_input(name, model.graph)
    height, width = _size(name, image, imgsz)
    check_operators(name, model)
    check_costs(name, model, (image.batch or 1, 3, height, width))
    network = Network(name, model, image)
    trial = _try(network, height, width)
    labels = class_names(name, names, metadata.get(contract.NAMES_KEY), trial.columns - 5)
    stride = largest_stride(metadata.get(contract.STRIDE_KEY), trial.layout, height, width)
    problem = problem_with(trial.rows, height, width)
    if problem:
        raise BuildError(f"{name} {problem}.")

    trials = [(trial.photos, trial.rows)]
    if image.height is None and image.width is None:
        trials += _trial_of_another_size(network, trial.output, trial.layout, height, width)
    _declare_interface(model, image, trial, (height, width), open_size=len(trials) > 1)
    model, single = _open_batch(name, model, network.batch, trials)
    onnx.helper.set_model_props(
        model,
        {
            contract.NAMES_KEY: str(dict(enumerate(labels))),
            contract.STRIDE_KEY: str(stride),
            contract.HEAD_KEY: contract.FULL,
            contract.PRECISION_KEY: precision_from(model),
            contract.SOURCE_KEY: contract.FROM_ONNX,
            contract.PROVENANCE_KEY: f"From {name}, sha256 {sha256}.",
            **({contract.MAX_BATCH_KEY: "1"} if single else {}),
        },
    )
    onnx.checker.check_model(model)
    return model


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """The result of running a network on photos.

    Attributes:
        photos: float32 [B,3,H,W], RGB 0..1.
        output: the name of the output that holds the rows.
        layout: the order of the rows.
        dtype: of the output.
        rows: of all photos, float32 [B,N,5+C].
    """

    photos: Array
    output: str
    layout: Layout
    dtype: np.dtype[Any]
    rows: Array

    @property
    def columns(self) -> int:
        return int(self.rows.shape[2])


def _try(network: Network, height: int, width: int) -> _Trial:
    """Run a network on photos, and find its rows."""
    photos = network.photos(height, width)
    tensors = network.run(photos[: network.batch])
    output, layout = find_rows(
        network.name,
        Outputs(
            tensors=tensors,
            has_nms=network.has_nms,
            batch=network.batch,
            height=height,
            width=width,
        ),
    )
    return _Trial(
        photos=photos,
        output=output,
        layout=layout,
        dtype=tensors[output].dtype,
        rows=network.rows(photos, output),
    )


def _declare_interface(
    model: ModelProto, image: ImageInput, trial: _Trial, size: tuple[int, int], *, open_size: bool
) -> None:
    """Give the graph the input and the output that are served here."""
    sides: tuple[int | str, int | str] = ("height", "width") if open_size else size
    count = "rows" if open_size else trial.rows.shape[1]
    kind = onnx.helper.np_dtype_to_tensor_dtype(trial.dtype)
    set_interface(
        model,
        Port(name=image.name, type=image.type, shape=("batch", 3, *sides)),
        Port(name=trial.output, type=kind, shape=("batch", count, trial.columns)),
    )


def _size(name: str, image: ImageInput, imgsz: tuple[int, int] | None) -> tuple[int, int]:
    """The height and width in pixels at which to run the network."""
    wanted = imgsz or contract.DEFAULT_SIZE
    size = (image.height or wanted[0], image.width or wanted[1])
    if imgsz and size != imgsz:
        raise BuildError(
            f"{name} takes images of {size[0]}x{size[1]} pixels (height x width) and cannot be set"
            f" to {imgsz[0]}x{imgsz[1]}; export it again at that size."
        )
    if max(size) > MAX_SIDE:
        raise BuildError(
            f"{name} takes images of {size[0]}x{size[1]} pixels; at most {MAX_SIDE} a side"
            " are allowed."
        )
    for fixed, side in zip((image.height, image.width), size):
        if fixed is None and (side <= 0 or side % SIDE_STEP):
            raise BuildError(f"{name} needs sides that are multiples of {SIDE_STEP}, not {side}.")
    if image.batch and image.batch > 1 and image.batch * size[0] * size[1] > MAX_PIXELS:
        raise _fixed_batch(name, image.batch)
    return size


def _fixed_batch(name: str, batch: int) -> BuildError:
    return BuildError(
        f"{name} takes exactly {batch} images at a time; export it with a dynamic batch."
    )


def _trial_of_another_size(
    network: Network, output: str, layout: Layout, height: int, width: int
) -> list[tuple[Array, Array]]:
    """Wider photos and their rows; empty if the network takes no other size."""
    width += 2 * layout.strides[-1]
    photos = network.photos(height, width)
    try:
        rows = network.rows(photos, output)
    except BuildError:
        return []
    fits = rows.ndim == 3 and rows.shape[1] == layout.rows(height, width)
    return [(photos, rows)] if fits and not problem_with(rows, height, width) else []


def _open_batch(
    name: str, model: ModelProto, batch: int, trials: Sequence[tuple[Array, Array]]
) -> tuple[ModelProto, bool]:
    """Make the batch dynamic, and compare the rows of a batch with those of its images.

    Returns:
        The model, and whether it is correct only for single images.

    Raises:
        BuildError: the batch is fixed to several images, or the network is not deterministic.
    """
    tolerance = TOLERANCE if precision_from(model) == contract.FP32 else TOLERANCE_FP16
    if _largest_error(model, trials, (2, 3, 1)) <= tolerance:
        return model, False
    freed = ModelProto()
    freed.CopyFrom(model)
    make_batch_dynamic(freed, batch)
    if _largest_error(freed, trials, (2, 3, 1)) <= tolerance:
        return freed, False
    if batch != 1:
        raise _fixed_batch(name, batch)
    declare_open_batch(model)
    error = _largest_error(model, trials, (1,))
    if error > tolerance:
        raise BuildError(f"{name} returns rows that differ by {error:.2g} when it is run again.")
    return model, True


def _largest_error(
    model: ModelProto, trials: Sequence[tuple[Array, Array]], counts: Sequence[int]
) -> float:
    """The largest difference from the expected rows; infinite if the model cannot be run."""
    worst = 0.0
    try:
        session = open_session(model)
        for photos, expected in trials:
            for count in counts:
                (rows,) = session.run([contract.OUTPUT], {contract.INPUT: photos[:count]})
                wanted = expected[:count]
                if rows.shape != wanted.shape or not np.isfinite(rows).all():
                    return np.inf
                difference = np.abs(rows - wanted) / np.maximum(np.abs(wanted), 1)
                worst = max(worst, float(difference.max()))
    except Exception:  # a fixed batch causes many kinds of error
        return np.inf
    return worst
