"""Convert an ONNX export of a detection network by another tool to the interface served here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from . import _contract as contract
from ._errors import BuildError
from ._onnx_file import read_onnx, short_reason
from ._onnx_graph import (
    Port,
    declare_open_batch,
    make_batch_dynamic,
    opset,
    precision_from,
    set_interface,
    transpose_channels,
)
from ._onnx_limits import check_costs, check_operators
from ._onnx_metadata import (
    check_task,
    chooses_boxes,
    class_count,
    class_names,
    exported_size,
    largest_stride,
)
from ._onnx_network import ImageInput, Network, image_input, open_session
from ._onnx_prefiltered import write_prefiltered
from ._onnx_rows import CHANNELS, CHOSEN, Form, Outputs, find_rows

MAX_SIDE = 4096
SIDE_STEP = 32  # open sides must be a multiple of it
LEAST_OPSET = 11  # of a network whose output has to be transposed
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
    prefiltered: Path | None = None,
) -> None:
    """Convert `source` to `images` [batch,3,H,W] FP32 -> `output0` [batch,N,5+C] FP32.

    The rows of a network without anchors are transposed, and get an objectness of 1. Those of a
    network that chooses its boxes itself stay as they are, [batch,N,6], and the metadata say so
    (`head`).

    H, W and N are fixed, or open dimensions `height`, `width` and `rows` if the network takes any
    size. The batch is open; if the network is correct only for single images, the metadata say so
    (`max_batch_size`). Both properties are determined by running the network on photos.

    Args:
        source: ONNX of any exporter.
        target: the file to write, which includes all data.
        names: class names to use instead of those in the metadata.
        imgsz: height and width in pixels, for a network that leaves them open.
        prefiltered: where to write the prefiltered variant.

    Raises:
        BuildError: `source` is damaged, is not a detection network with decoded rows, or does not
            fit `names` or `imgsz`.
        OSError: `target` cannot be written.
    """
    with _one_sentence(source):
        converted = _convert(source, names, imgsz)
        data = converted.model.SerializeToString()
    target.write_bytes(data)
    if prefiltered:
        _write_prefiltered(source, prefiltered, target, converted)


def _write_prefiltered(source: Path, path: Path, full: Path, converted: _Converted) -> None:
    """Write the prefiltered variant, and check that it answers as the full network does.

    If it does not, one is written that leaves the graph as it is and chooses rows behind it.
    """
    try:
        with _one_sentence(source):
            tolerance = _tolerance(converted.model)
            write_prefiltered(path, full, converted.channels, tolerance=tolerance)
    except BuildError as error:
        if not converted.channels:
            raise
        print(f"All rows are transposed, and chosen from then: {error}", file=sys.stderr)
        with _one_sentence(source):
            write_prefiltered(path, full)


@contextmanager
def _one_sentence(source: Path) -> Iterator[None]:
    """Report any error as a `BuildError`."""
    try:
        yield
    except (BuildError, MemoryError):
        raise
    except Exception as error:  # onnx and ONNX Runtime can raise anything on a malformed file
        raise BuildError(f"{source.name} cannot be imported: {short_reason(error)}.") from None


@dataclass(frozen=True, kw_only=True)
class _Converted:
    """A converted network.

    Attributes:
        model: with the interface and the metadata that are served.
        channels: name of the value [B, 4 + C, N] that the rows are made of, if they are.
        size: height and width in pixels at which it was tried.
    """

    model: ModelProto
    channels: str | None
    size: tuple[int, int]


def _convert(
    source: Path, names: Sequence[str] | None, imgsz: tuple[int, int] | None
) -> _Converted:
    name = source.name
    model, sha256 = read_onnx(source)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if metadata.get(contract.HEAD_KEY) == contract.REDUCED:
        raise BuildError(f"{name} has a 'reduced' head; only a full one is read.")
    check_task(name, metadata)
    image = image_input(name, model.graph)
    own_size = exported_size(metadata.get(contract.IMGSZ_KEY), SIDE_STEP)
    size = height, width = _size(name, image, imgsz, own_size)
    check_operators(name, model)
    check_costs(name, model, (image.batch or 1, 3, height, width))
    network = Network(name, model, image)
    trial = _try(network, height, width, metadata)
    labels = _labels(name, names, metadata.get(contract.NAMES_KEY), trial)
    stride = largest_stride(metadata.get(contract.STRIDE_KEY), trial.form.layout, height, width)

    trials = [(trial.photos, trial.rows)]
    if image.height is None and image.width is None:
        trials += _trial_of_another_size(network, trial, width + 2 * stride)
    is_open = len(trials) > 1
    channels = _declare_interface(name, model, image, trial, open_size=is_open)
    model, single = _open_batch(name, model, network.batch, trials)
    onnx.helper.set_model_props(
        model,
        {
            contract.NAMES_KEY: str(dict(enumerate(labels))),
            contract.STRIDE_KEY: str(stride),
            contract.HEAD_KEY: contract.END2END if trial.form.kind == CHOSEN else contract.FULL,
            **({contract.PADDING_KEY: contract.WHOLE} if trial.form.anchor_free else {}),
            contract.PRECISION_KEY: precision_from(model),
            contract.SOURCE_KEY: contract.FROM_ONNX,
            contract.PROVENANCE_KEY: f"From {name}, sha256 {sha256}.",
            **({contract.MAX_BATCH_KEY: "1"} if single else {}),
            **({contract.IMGSZ_KEY: str([*own_size])} if is_open and own_size else {}),
        },
    )
    onnx.checker.check_model(model)
    return _Converted(model=model, channels=channels, size=size)


def _labels(
    name: str, given: Sequence[str] | None, text: str | None, trial: _Trial
) -> Sequence[str]:
    """The class names; a network that chooses its boxes itself does not tell how many it has."""
    if trial.form.kind != CHOSEN:
        return class_names(name, given, text, trial.rows.shape[2] - 5)
    labels = class_names(name, given, text, None)
    scores, classes = trial.rows[..., 4], trial.rows[..., 5]
    largest = int(classes[scores > 0].max(initial=0))
    if largest >= len(labels):
        raise BuildError(f"{name} answers with class {largest}, but has {len(labels)} class names.")
    return labels


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """The result of running a network on photos.

    Attributes:
        photos: float32 [B,3,H,W], RGB 0..1.
        output: the name of the output that holds the detections.
        outputs: all outputs, and what is known of the network.
        form: of the output.
        rows: of all photos, as they are served, float32 [B,N,5+C] or [B,N,6].
    """

    photos: Array
    output: str
    outputs: Outputs
    form: Form
    rows: Array


def _try(network: Network, height: int, width: int, metadata: Mapping[str, str]) -> _Trial:
    """Run a network on photos, and find its detections.

    Raises:
        BuildError: it cannot be run, or has no output with detections.
    """
    photos = network.photos(height, width)
    outputs = Outputs(
        tensors=network.run(photos[: network.batch]),
        has_nms=network.has_nms,
        chooses=chooses_boxes(metadata),
        classes=class_count(metadata.get(contract.NAMES_KEY)),
        batch=network.batch,
        height=height,
        width=width,
    )
    output, form = find_rows(network.name, outputs)
    array = network.rows(photos, output)
    problem = form.problem_with(array, outputs)
    if problem:
        raise BuildError(f"{network.name} {problem}.")
    return _Trial(
        photos=photos, output=output, outputs=outputs, form=form, rows=form.as_served(array)
    )


def _declare_interface(
    name: str, model: ModelProto, image: ImageInput, trial: _Trial, *, open_size: bool
) -> str | None:
    """Give the graph the input and the output that are served here.

    Returns:
        The name of the value [B, 4 + C, N] that the rows are made of, if they are.

    Raises:
        BuildError: the graph is too old to be changed.
    """
    array, outputs = trial.outputs.tensors[trial.output], trial.outputs
    sides: tuple[int | str, int | str] = (outputs.height, outputs.width)
    rows: list[int | str] = ["batch", *trial.rows.shape[1:]]
    if open_size:
        sides, rows[1] = ("height", "width"), "rows"
    transposed = trial.form.kind == CHANNELS
    if transposed and opset(model) < LEAST_OPSET:
        raise BuildError(
            f"{name} uses opset {opset(model)} of ONNX; {LEAST_OPSET} or newer is needed."
        )
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    shape = ["batch", array.shape[1], rows[1]] if transposed else rows
    set_interface(
        model,
        Port(name=image.name, type=image.type, shape=("batch", 3, *sides)),
        Port(name=trial.output, type=kind, shape=shape),
    )
    return transpose_channels(model, rows) if transposed else None


def _size(
    name: str,
    image: ImageInput,
    imgsz: tuple[int, int] | None,
    own: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """The height and width in pixels at which to run the network.

    Args:
        imgsz: what is asked for.
        own: what a network that leaves them open was exported for.
    """
    wanted = imgsz or own or contract.DEFAULT_SIZE
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
    network: Network, trial: _Trial, width: int
) -> list[tuple[Array, Array]]:
    """Photos of another width and their rows; empty if the network takes no other size."""
    form, outputs = trial.form, replace(trial.outputs, width=width)
    photos = network.photos(outputs.height, width)
    try:
        array = network.rows(photos, trial.output)
    except BuildError:
        return []
    fits = form.fits(array, outputs.height, width) and not form.problem_with(array, outputs)
    return [(photos, form.as_served(array))] if fits else []


def _open_batch(
    name: str, model: ModelProto, batch: int, trials: Sequence[tuple[Array, Array]]
) -> tuple[ModelProto, bool]:
    """Make the batch dynamic, and compare the rows of a batch with those of its images.

    Returns:
        The model, and whether it is correct only for single images.

    Raises:
        BuildError: the batch is fixed to several images, or the network is not deterministic.
    """
    tolerance = _tolerance(model)
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


def _tolerance(model: ModelProto) -> float:
    return TOLERANCE if precision_from(model) == contract.FP32 else TOLERANCE_FP16


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
