"""Size, precision and configuration of a TensorRT plan, determined without TensorRT."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from ._contract import (
    CONFIG_FILE,
    FP16,
    FP32,
    IMGSZ_KEY,
    INT8,
    MODEL,
    NMS,
    ONNX_RUNTIME_BACKEND,
    OUTPUT,
    PIXELS,
    PLAN_FILE,
    SERVED_FILE,
    STRIDE_KEY,
    WEIGHTS_FILE,
)
from ._errors import BuildError

PRECISIONS = (FP32, FP16, INT8)
OLDEST_MAJOR = 10  # oldest version of TensorRT, and the last with weakly typed networks

# Largest `relative_error` of a plan against ONNX Runtime with the same file. A wrong plan has about
# 1. Three networks entirely in FP16 had 0.003 to 0.018 (bundled, yolov5n v7.0, yolov5s v5.0; 2
# photos, PyTorch on a CPU). INT8 has not been measured.
TOLERANCES = {FP32: 1e-3, FP16: 0.1, INT8: 0.3}
_SMALLEST_SCALE = 0.01  # for columns of scores

_BACKEND = ("backend", ONNX_RUNTIME_BACKEND, "platform", "tensorrt_plan")
_FILE = ("default_model_filename", SERVED_FILE, "default_model_filename", PLAN_FILE)
_NOTE = "# Made from model.onnx by `make engine`: "


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The smallest and largest shape of a plan's input, and the one to optimise for."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


def profiles_for(
    config: model_config_pb2.ModelConfig, opt_batch: int | None = None
) -> dict[str, Profile]:
    """The profile for each input, `pixels` [B,3,H,W] and `nms` [B,5], as large as `config.pbtxt`
    allows.

    Open sizes range from one stride to `imgsz`, and the plan is optimised for `imgsz` itself, as
    that favours neither upright photos nor wide ones.

    Args:
        opt_batch: the batch to optimise for (default: the largest).

    Raises:
        BuildError: `opt_batch` is out of range, or the configuration does not state the sizes.
    """
    largest, place = config.max_batch_size, f"{config.name}/{CONFIG_FILE}"
    inputs = {tensor.name: list(tensor.dims) for tensor in config.input}
    if largest < 1 or inputs.keys() != {PIXELS, NMS} or len(inputs[PIXELS]) != 3:
        raise BuildError(
            f"{place} must state a max_batch_size, the input {PIXELS} with three dims, and {NMS};"
            " `make model` writes it so."
        )
    batch = largest if opt_batch is None else opt_batch
    if not 1 <= batch <= largest:
        raise BuildError(f"--opt-batch is {batch}; {place} allows 1 to {largest}.")
    channels, *sides = inputs[PIXELS]
    low, high = sides, sides
    if min(sides) < 1:
        try:
            high = [int(side) for side in config.parameters[IMGSZ_KEY].string_value.split()]
            stride = int(config.parameters[STRIDE_KEY].string_value)
        except ValueError:
            high = []
        if len(high) != 2:
            raise BuildError(
                f"{place} leaves the input's size open without the parameters imgsz and stride;"
                " `make model` writes them."
            )
        low = [stride, stride]
    pixels = Profile(
        min=(1, channels, *low),
        opt=(batch, channels, *high),
        max=(largest, channels, *high),
    )
    values = inputs[NMS]
    nms = Profile(min=(1, *values), opt=(batch, *values), max=(largest, *values))
    return {PIXELS: pixels, NMS: nms}


@dataclass(frozen=True, kw_only=True)
class BuildPrecision:
    """TensorRT's settings for a precision.

    Attributes:
        name: fp32, fp16 or int8.
        strongly_typed: request a network whose tensors keep the types of the ONNX file. Set only
            for version 10; from 11 on, all networks are strongly typed.
        fp16: let TensorRT use FP16 if that is faster. Only in version 10, weakly
            typed.
        tf32: let FP32 convolutions round their inputs to 10 bits.
    """

    name: str
    strongly_typed: bool
    fp16: bool = False
    tf32: bool = True


def choose_precision(requested: str, graph: str, major: int) -> BuildPrecision:
    """Choose the precision of a plan.

    Args:
        requested: `auto` or one of `PRECISIONS`.
        graph: the precision of the ONNX file, one of `PRECISIONS`.
        major: version of TensorRT. From 11 on, the precision is always that of the file.

    Raises:
        BuildError: this TensorRT cannot build the requested precision from this file.
    """
    if graph == FP32 and requested in ("auto", FP16) and major == OLDEST_MAJOR:
        # The decoded coordinates are in FP16 too, which rounds those from 512 px on to half pixels.
        # A file exported with --half decodes in FP32.
        return BuildPrecision(name=FP16, strongly_typed=False, fp16=True)
    if requested not in ("auto", graph):
        means = {
            FP32: "install an FP32 file, by `make model` without --half",
            FP16: "install an FP16 file, by `make model WEIGHTS=... ARGS=--half`",
            INT8: "install an ONNX file that is quantised (Q/DQ)",
        }
        raise BuildError(
            f"The installed {WEIGHTS_FILE} is {graph}, and TensorRT {major} cannot build"
            f" {requested} from it; {means[requested]}, or leave --precision out."
        )
    # TF32 is TensorRT's default, but FP32 is requested to get the reference's numbers.
    return BuildPrecision(name=graph, strongly_typed=major == OLDEST_MAJOR, tf32=graph != FP32)


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers in a version of TensorRT: 10.13.3.9, 10.13.3, 11.2.1.2+cuda13.3.

    Raises:
        BuildError: the text is not a version.
    """
    found = re.match(r"\d+\.\d+\.\d+(\.\d+)?", text)
    if found is None:
        raise BuildError(f"'{text}' is not a version of TensorRT; one looks like 10.13.3.9.")
    return tuple(int(number) for number in found[0].split("."))


def check_versions(building: str, target: str | None) -> int:
    """Check that the server has the TensorRT that builds, since a plan runs only with that version.

    Args:
        building: version of TensorRT that builds.
        target: version of the server, None if unknown.

    Returns:
        The major version.

    Raises:
        BuildError: the versions differ in a number that both state, or the version is too old.
    """
    here = parse_version(building)
    if here[0] < OLDEST_MAJOR:
        raise BuildError(
            f"This is TensorRT {building}; {OLDEST_MAJOR} is the oldest supported version."
        )
    if target is not None and any(a != b for a, b in zip(here, parse_version(target))):
        raise BuildError(
            f"This is TensorRT {building}, but the plan is to run with {target}, and a plan runs"
            " only with the version that built it; build it with that one."
        )
    return here[0]


def to_plan(config: str, note: str, rows: int | None = None, name: str = MODEL) -> str:
    """Convert the `config.pbtxt` of an ONNX model to one for the plan made from it.

    Args:
        config: the text for ONNX Runtime.
        note: what the plan depends on, in one line; it becomes a comment.
        rows: in the output of the plan, if their number is fixed. A plan answers with all of them.
        name: of the network, for errors.

    Raises:
        BuildError: the text differs from what `make model` writes.
    """
    changed = _replace(_replace(config, *_FILE, name=name), *_BACKEND, name=name)
    start = re.search(_pattern(*_BACKEND[2:]), changed, re.MULTILINE)
    assert start is not None
    changed = f"{changed[: start.start()]}{_NOTE}{note}\n{changed[start.start() :]}"
    if rows is not None:
        changed = _replace_rows(changed, str(rows))
    _check_rest_is_same(config, changed, name)
    return changed


def to_onnx(config: str, name: str = MODEL) -> str:
    """Convert a text from `to_plan` back, identical to the byte.

    Raises:
        BuildError: the text differs from what `to_plan` writes.
    """
    changed = re.sub(rf"^{re.escape(_NOTE)}.*\n", "", config, flags=re.MULTILINE)
    for key, value, plan_key, plan_value in (_FILE, _BACKEND):
        changed = _replace(changed, plan_key, plan_value, key, value, name=name)
    if f'"{PIXELS}"' not in config:  # installed by an earlier version of the project
        return changed.replace(f'"{SERVED_FILE}"', f'"{WEIGHTS_FILE}"')
    changed = _replace_rows(changed, "-1")
    _check_rest_is_same(config, changed, name)
    return changed


def is_plan(config: str, name: str = MODEL) -> bool:
    return bool(parse_config(config, name).platform == _BACKEND[3])


def parse_config(text: str, name: str = MODEL) -> model_config_pb2.ModelConfig:
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise BuildError(f"{name}/{CONFIG_FILE} is not valid: {error}.") from None


def relative_error(answer: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """The error of rows [B,N,C]: root mean square difference, relative to that of the values.

    The worst column counts, because coordinates are hundreds and scores below one. A column whose
    values are below `_SMALLEST_SCALE`, such as the scores of a class that is not in the photos,
    counts as if of that size. NaN if either has one.
    """
    if answer.shape != reference.shape:
        return float("inf")
    columns = reference.shape[-1]
    wanted = reference.astype(np.float64).reshape(-1, columns)
    distance = answer.astype(np.float64).reshape(-1, columns) - wanted
    sizes = np.maximum(np.sqrt(np.mean(wanted**2, axis=0)), _SMALLEST_SCALE)
    return float(np.max(np.sqrt(np.mean(distance**2, axis=0)) / sizes))


def _pattern(key: str, value: str) -> str:
    return rf'^([ \t]*){key}([ \t]*:[ \t]*)"{re.escape(value)}"'


def _replace(text: str, key: str, value: str, new_key: str, new_value: str, *, name: str) -> str:
    changed, count = re.subn(
        _pattern(key, value), rf'\g<1>{new_key}\g<2>"{new_value}"', text, flags=re.MULTILINE
    )
    if count != 1:
        raise BuildError(
            f'{name}/{CONFIG_FILE} must have one line that begins with {key}: "{value}",'
            " as `make model` and `make engine` write it."
        )
    return changed


def _replace_rows(text: str, rows: str) -> str:
    return re.sub(rf'(name: "{OUTPUT}" .*dims: \[ )-?\d+,', rf"\g<1>{rows},", text)


def _check_rest_is_same(before: str, after: str, name: str) -> None:
    configs = [parse_config(before, name), parse_config(after, name)]
    for config in configs:
        for name in ("backend", "platform", "default_model_filename"):
            config.ClearField(name)
        for output in config.output:
            del output.dims[:1]
    if configs[0] != configs[1]:
        raise BuildError(
            f"{name}/{CONFIG_FILE} cannot be switched without changing more than that."
        )
