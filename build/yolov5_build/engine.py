"""Serve the installed network as a TensorRT plan, or as ONNX again."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from yolov5_client.stdio import prepare_stdio

from . import BuildError, _plan, _tensorrt
from ._contract import (
    CONFIG_FILE,
    END2END,
    FP32,
    HEAD_KEY,
    INT8,
    INT8_SYMMETRIC,
    MODEL,
    NMS,
    PIXELS,
    PLAN_FILE,
    PRECISION_KEY,
    PRECISIONS,
    REDUCED,
    WEIGHTS_FILE,
)
from ._errors import report_failure
from ._manage import check_installed
from ._onnx_prefiltered import prefiltered_from
from ._record import RECORD_FILE, read_record, renewed, write_record
from ._version import VERSIONS, link_tree, new_version, version_folder
from .paths import DOCKERFILE, REPOSITORY
from .photos import example_images


@dataclass(frozen=True, kw_only=True)
class Served:
    """The installed model.

    Attributes:
        config: text of config.pbtxt, for ONNX Runtime or for a plan.
        weights: the ONNX file.
    """

    config: str
    weights: Path


def main(arguments: list[str] | None = None) -> int:
    prepare_stdio()
    parser = argparse.ArgumentParser(prog="yolov5_build.engine", description=__doc__)
    parser.add_argument("--undo", action="store_true", help="serve with ONNX Runtime again")
    parser.add_argument(
        "--precision",
        choices=("auto", *_plan.PRECISIONS),
        default="auto",
        help="auto: fp16 with TensorRT 10, otherwise that of the ONNX file (default: %(default)s)",
    )
    parser.add_argument(
        "--opt-batch", type=int, help="batch to optimise for (default: the largest)"
    )
    parser.add_argument(
        "--workspace", type=int, metavar="MB", help="GPU memory limit for a layer (default: none)"
    )
    parser.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="kernel timings to read and write"
    )
    parser.add_argument(
        "--target-tensorrt",
        metavar="VERSION",
        help="version that will run the plan (default: in a Triton container, that container's)",
    )
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="model repository to work on"
    )
    parser.add_argument("--name", default=MODEL, help="name of the network (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.name != MODEL:
            check_installed(options.repository, options.name)
        if options.undo:
            undo(options.repository, options.name)
        else:
            make_plan(options)
    except (BuildError, OSError) as error:
        return report_failure(error)
    return 0


def undo(repository: Path, name: str = MODEL) -> None:
    """Install the ONNX file of the served plan as the model again.

    Raises:
        BuildError: the served model is not a plan, or its ONNX file is missing.
    """
    served = read_served(repository, name)
    if not _plan.is_plan(served.config, name):
        raise BuildError(f"{name} is not served as a TensorRT plan, so there is nothing to undo.")
    install(repository, _plan.to_onnx(served.config, name), name=name)
    print(f"{name} is served by ONNX Runtime again.")


def make_plan(options: argparse.Namespace) -> None:
    """Build, verify and install a plan of the installed ONNX file.

    Raises:
        BuildError: one of these failed, or the network has an end-to-end head; the installed model
            stays as it is.
    """
    name = options.name
    served = read_served(options.repository, name)
    text = served.config
    if _plan.is_plan(text, name):
        text = _plan.to_onnx(text, name)
    config = _plan.parse_config(text, name)
    if config.parameters[HEAD_KEY].string_value == END2END:
        raise BuildError(
            f"{name} chooses its boxes itself, and such a choice cannot be compared with that of a"
            " plan; install an export without that."
        )
    profiles = _plan.profiles_for(config, options.opt_batch)
    trt = _tensorrt.load()
    target = options.target_tensorrt or target_version()
    major = _plan.check_versions(trt.__version__, target)
    precision = _plan.choose_precision(options.precision, graph_precision(served.weights), major)
    gpu = _tensorrt.gpu()
    environment = f"TensorRT {trt.__version__}, {gpu.name} (compute capability {gpu.capability})"
    # No shape of a plan may depend on values: the other rows are zeros, and not dropped.
    model = prefiltered_from(onnx.load(served.weights), keep_all=True)
    rows = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value or None
    switched = _plan.to_plan(text, f"{environment}, {precision.name}.", rows, name)
    print(f"Building {precision.name} with {environment}; this takes minutes ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, WEIGHTS_FILE)
        onnx.save(model, weights)
        plan = _tensorrt.build(
            trt,
            weights,
            precision,
            profiles,
            workspace=None if options.workspace is None else options.workspace << 20,
            timing_cache=options.timing_cache or default_timing_cache(trt.__version__, gpu),
        )
        tolerance = _plan.TOLERANCES[precision.name]
        error = verify_plan(trt, plan, weights, config, profiles[PIXELS], tolerance)
    install(options.repository, switched, plan, name)
    print(
        f"{name} is now served as a TensorRT plan for batches up to {config.max_batch_size}; its"
        f" rows for the example photos are within {error:.2g} of ONNX Runtime's.\n"
        f"It runs only with {environment}."
    )
    if target is None:
        _say_unchecked()


def _say_unchecked() -> None:
    print(
        "It was not checked that the Triton server has that TensorRT."
        f" `docker run --rm --entrypoint printenv {container()} TRT_VERSION` prints its version"
        " for --target-tensorrt."
    )


def read_served(repository: Path, name: str = MODEL) -> Served:
    """Read the installed model.

    Raises:
        BuildError: a file is missing.
    """
    folder = repository / name
    version = version_folder(folder)
    if version is None or not (version / WEIGHTS_FILE).is_file():
        raise BuildError(
            f"{repository.name}/{name} holds no {WEIGHTS_FILE}; `make model` installs one."
        )
    try:
        # As bytes, because reading text would convert line ends.
        config = (folder / CONFIG_FILE).read_bytes().decode("utf-8")
    except OSError as error:
        raise BuildError(f"{name}/{CONFIG_FILE} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise BuildError(f"{name}/{CONFIG_FILE} is not UTF-8.") from None
    return Served(config=config, weights=version / WEIGHTS_FILE)


def graph_precision(weights: Path) -> str:
    """The precision in the metadata of an ONNX file, one of `_plan.PRECISIONS` (default: FP32).

    Raises:
        BuildError: the file is not ONNX, or has another precision.
    """
    try:
        model = onnx.load(weights, load_external_data=False)
    except (DecodeError, OSError):
        raise BuildError(
            f"{weights.name} cannot be read as ONNX; `make model` installs it again."
        ) from None
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    noted = metadata.get(PRECISION_KEY, FP32)
    if noted == INT8:
        raise BuildError(
            f"{weights.name} is INT8 for CPUs, which TensorRT does not support; install it again"
            " with --int8 tensorrt."
        )
    if noted not in PRECISIONS:
        raise BuildError(
            f"{weights.name} says that its precision is '{noted}';"
            f" allowed: {', '.join(PRECISIONS)}."
        )
    return INT8 if noted == INT8_SYMMETRIC else noted


def target_version() -> str | None:
    """The TensorRT version of the surrounding Triton container, or None outside of one."""
    if "NVIDIA_TRITON_SERVER_VERSION" not in os.environ:
        return None
    return os.environ.get("TRT_VERSION")


def container() -> str:
    """The base image of `build/Dockerfile`."""
    text = DOCKERFILE.read_text("utf-8")
    default = re.search(r"^ARG TRITON=(\S+)", text, re.MULTILINE)
    image = re.search(r"^ARG BASE=(\S+)", text, re.MULTILINE)
    assert default is not None and image is not None
    return image[1].replace("${TRITON}", default[1])


def default_timing_cache(version: str, gpu: _tensorrt.Gpu) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    device = re.sub(r"\W+", "-", gpu.name)
    return Path(base, "yolov5-triton", f"timing-{version}-{device}-{gpu.capability}.cache")


def verify_plan(
    trt: ModuleType,
    plan: bytes,
    weights: Path,
    config: ModelConfig,
    profile: _plan.Profile,
    tolerance: float,
) -> float:
    """Compare the plan's rows for photos with those of ONNX Runtime on the CPU.

    Returns:
        The `relative_error`.

    Raises:
        BuildError: it is over `tolerance`.
    """
    output = config.output[0].name
    batch, _, height, width = profile.max
    images = example_images(height, width, min(2, batch))
    nms = np.zeros((len(images), 5), np.float32)
    nms[:, 0] = -1  # every score is over it
    inputs = {PIXELS: np.rint(images * 255).astype(np.uint8), NMS: nms}
    session = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"])
    (wanted,) = session.run([output], inputs)
    answer = _tensorrt.run(trt, plan, inputs)[output]
    if config.parameters[HEAD_KEY].string_value == REDUCED:
        # The last column is a class index; of two classes with the same score, either may come out.
        answer, wanted = answer[..., :-1], wanted[..., :-1]
    error = _plan.relative_error(answer, wanted)
    if not error <= tolerance:  # NaN is refused too
        raise BuildError(
            f"The plan's rows for the example photos differ from ONNX Runtime's by {error:.2g} in"
            f" relation to their values, and {tolerance:g} is allowed, so it was not installed."
        )
    return error


def install(repository: Path, config: str, plan: bytes | None = None, name: str = MODEL) -> None:
    """Install a new version: the files of the served one, with this configuration and plan.

    The served version is not kept: it is the same network, and the way back is `undo`.
    """
    served = repository / name
    current = version_folder(served)
    assert current is not None
    with new_version(repository, name=name, keep=False) as (new, version):
        others = {path.name for path in served.iterdir() if path.name.isdecimal()}
        link_tree(served, new, without={VERSIONS, CONFIG_FILE, PLAN_FILE, *others})
        link_tree(current, version, without={PLAN_FILE, RECORD_FILE})
        (new / CONFIG_FILE).write_bytes(config.encode())
        if plan is not None:
            (version / PLAN_FILE).write_bytes(plan)
        if record := read_record(current):
            write_record(version, renewed(record))


if __name__ == "__main__":
    sys.exit(main())
