"""What a TensorRT plan is to be, worked out without TensorRT: sizes, precision, configuration."""

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
    ONNX_RUNTIME_BACKEND,
    PLAN_FILE,
    STRIDE_KEY,
    WEIGHTS_FILE,
)
from ._errors import BuildError

PRECISIONS = (FP32, FP16, INT8)
OLDEST_MAJOR = 10  # major version of TensorRT, and the last whose networks may be weakly typed

# How far a plan's answers may be from ONNX Runtime's to the same file, as `relative_error` says it:
# a plan that is wrong is off by about 1. Three networks wholly in FP16 were off by 0.003 to 0.018
# (bundled, yolov5n v7.0, yolov5s v5.0; 2 photos, PyTorch on a CPU); INT8 has not been measured.
TOLERANCES = {FP32: 1e-3, FP16: 0.1, INT8: 0.3}
_SMALLEST_SCALE = 0.01  # of a score

_BACKEND = ("backend", ONNX_RUNTIME_BACKEND, "platform", "tensorrt_plan")
_FILE = ("default_model_filename", WEIGHTS_FILE, "default_model_filename", PLAN_FILE)
_NOTE = "# Made from model.onnx by `make engine`: "


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes [B,3,H,W] that a plan takes, and the one that it is made fastest for."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


def profile_for(config: model_config_pb2.ModelConfig, opt_batch: int | None = None) -> Profile:
    """The profile for the model's one input, as large as `config.pbtxt` allows.

    Sizes that the configuration leaves open go from one stride to `imgsz`, and the plan is made
    for `imgsz` itself: the one size that favours neither upright photos nor wide ones.

    Raises:
        BuildError: `opt_batch` is out of range, or the configuration does not say the sizes.
    """
    largest = config.max_batch_size
    if largest < 1 or len(config.input) != 1 or len(config.input[0].dims) != 3:
        raise BuildError(
            f"{MODEL}/{CONFIG_FILE} must state a max_batch_size and one input with three dims."
        )
    batch = largest if opt_batch is None else opt_batch
    if not 1 <= batch <= largest:
        raise BuildError(f"--opt-batch is {batch}; {MODEL}/{CONFIG_FILE} allows 1 to {largest}.")
    channels, *sides = config.input[0].dims
    low, high = sides, sides
    if min(sides) < 1:
        try:
            high = [int(side) for side in config.parameters[IMGSZ_KEY].string_value.split()]
            stride = int(config.parameters[STRIDE_KEY].string_value)
        except ValueError:
            high = []
        if len(high) != 2:
            raise BuildError(
                f"{MODEL}/{CONFIG_FILE} leaves the input's size open without the parameters imgsz"
                " and stride; `make model` writes them."
            )
        low = [stride, stride]
    return Profile(
        min=(1, channels, *low),
        opt=(batch, channels, *high),
        max=(largest, channels, *high),
    )


@dataclass(frozen=True, kw_only=True)
class BuildPrecision:
    """How TensorRT is told what to calculate in.

    Attributes:
        name: fp32, fp16 or int8.
        strongly_typed: ask for a network whose tensors keep the types of the ONNX file. Only in
            version 10: there is nothing else from 11 on.
        fp16: let TensorRT take FP16 where that is faster. Only in version 10, weakly typed.
        tf32: let FP32 convolutions round their inputs to 10 bits.
    """

    name: str
    strongly_typed: bool
    fp16: bool = False
    tf32: bool = True


def choose_precision(requested: str, graph: str, major: int) -> BuildPrecision:
    """What to build, from what is asked for and what the ONNX file is made of.

    Args:
        requested: `auto` or one of `PRECISIONS`.
        graph: which of `PRECISIONS` the ONNX file is in.
        major: of TensorRT. From 11 on, the file alone decides.

    Raises:
        BuildError: this TensorRT cannot make the one of the other.
    """
    if graph == FP32 and requested in ("auto", FP16) and major == OLDEST_MAJOR:
        # The decoded coordinates are FP16 too then, of which those from 512 px on are rounded to
        # half pixels. A file exported with --half decodes in FP32.
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
    # TF32 is TensorRT's default; who asks for FP32 wants the reference's numbers.
    return BuildPrecision(name=graph, strongly_typed=major == OLDEST_MAJOR, tf32=graph != FP32)


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers of a version of TensorRT: 10.13.3.9, 10.13.3, 11.2.1.2+cuda13.3.

    Raises:
        BuildError: it is none.
    """
    found = re.match(r"\d+\.\d+\.\d+(\.\d+)?", text)
    if found is None:
        raise BuildError(f"'{text}' is not a version of TensorRT; one looks like 10.13.3.9.")
    return tuple(int(number) for number in found[0].split("."))


def check_versions(building: str, target: str | None) -> int:
    """Whether a plan built here will be taken there: only by the very same version.

    Args:
        building: the version of TensorRT that builds.
        target: that of the server, where it is known.

    Returns:
        The major version.

    Raises:
        BuildError: they differ, in a number that both state; or it is too old.
    """
    here = parse_version(building)
    if here[0] < OLDEST_MAJOR:
        raise BuildError(f"This is TensorRT {building}; {OLDEST_MAJOR} is the oldest that will do.")
    if target is not None and any(a != b for a, b in zip(here, parse_version(target))):
        raise BuildError(
            f"This is TensorRT {building}, but the plan is to run with {target}, and a plan runs"
            " only with the version that built it; build it with that one."
        )
    return here[0]


def to_plan(config: str, note: str) -> str:
    """The text of an ONNX model's `config.pbtxt`, for the plan made from it.

    Args:
        config: the text for ONNX Runtime.
        note: what the plan is environment to; one line, which becomes a comment.

    Raises:
        BuildError: the text is not as `make model` writes it.
    """
    changed = _replace(_replace(config, *_FILE), *_BACKEND)
    start = re.search(_pattern(*_BACKEND[2:]), changed, re.MULTILINE)
    assert start is not None
    changed = f"{changed[: start.start()]}{_NOTE}{note}\n{changed[start.start() :]}"
    _check_rest_is_same(config, changed)
    return changed


def to_onnx(config: str) -> str:
    """The way back from `to_plan`, to the byte.

    Raises:
        BuildError: the text is not as `to_plan` writes it.
    """
    changed = re.sub(rf"^{re.escape(_NOTE)}.*\n", "", config, flags=re.MULTILINE)
    for key, value, plan_key, plan_value in (_FILE, _BACKEND):
        changed = _replace(changed, plan_key, plan_value, key, value)
    _check_rest_is_same(config, changed)
    return changed


def is_plan(config: str) -> bool:
    return bool(parse_config(config).platform == _BACKEND[3])


def parse_config(text: str) -> model_config_pb2.ModelConfig:
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise BuildError(f"{MODEL}/{CONFIG_FILE} is not valid: {error}.") from None


def relative_error(answer: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """How far rows [B,N,C] are from the reference's: root mean square, relative to the values'.

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


def _replace(text: str, key: str, value: str, new_key: str, new_value: str) -> str:
    changed, count = re.subn(
        _pattern(key, value), rf'\g<1>{new_key}\g<2>"{new_value}"', text, flags=re.MULTILINE
    )
    if count != 1:
        raise BuildError(
            f'{MODEL}/{CONFIG_FILE} must have one line that begins with {key}: "{value}",'
            " as `make model` and `make engine` write it."
        )
    return changed


def _check_rest_is_same(before: str, after: str) -> None:
    configs = [parse_config(before), parse_config(after)]
    for config in configs:
        for name in ("backend", "platform", "default_model_filename"):
            config.ClearField(name)
    if configs[0] != configs[1]:
        raise BuildError(
            f"{MODEL}/{CONFIG_FILE} cannot be switched without changing more than that."
        )
