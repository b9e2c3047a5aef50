"""`python -m yolov5_build.engine`: a TensorRT plan of the served network, and the way back.

Everything that needs TensorRT is in `_tensorrt.py` and has not run on hardware.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from tritonclient.grpc.model_config_pb2 import ModelConfig

from yolov5_client.stdio import prepare_stdio

from . import BuildError, _plan, _tensorrt
from .__main__ import REPOSITORY
from ._errors import no_room
from ._names import CONFIG_FILE, MODEL, PRECISION_KEY, PRECISIONS, WEIGHTS_FILE
from ._photos import example_images
from ._quantise import TARGETS
from ._version import copy_weights, new_version, version_folder

_DOCKERFILE = Path(__file__).parents[1] / "Dockerfile"


@dataclass(frozen=True, kw_only=True)
class Served:
    """The model as it is installed.

    Attributes:
        config: the text of config.pbtxt, for ONNX Runtime or for a plan.
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
        help="auto is fp16 with TensorRT 10, else what the installed ONNX file is (%(default)s)",
    )
    parser.add_argument(
        "--opt-batch", type=int, help="the batch to be fastest with (the largest one)"
    )
    parser.add_argument(
        "--workspace", type=int, metavar="MB", help="GPU memory for a layer (all there is)"
    )
    parser.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="kernel timings, read and written"
    )
    parser.add_argument(
        "--target-tensorrt",
        metavar="VERSION",
        help="the version that will run the plan (in a Triton container: that container's)",
    )
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="the model repository to work on"
    )
    options = parser.parse_args(arguments)
    try:
        if options.undo:
            undo(options.repository)
        else:
            make_plan(options)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {no_room(error)}; what was served still is.", file=sys.stderr)
        return 1
    return 0


def undo(repository: Path) -> None:
    """Install the ONNX file of the served plan as the model again.

    Raises:
        BuildError: what is served is no plan, or its ONNX file is gone.
    """
    served = read_served(repository)
    if not _plan.is_plan(served.config):
        raise BuildError(f"{MODEL} is not served as a TensorRT plan, so nothing is to be undone.")
    install(repository, _plan.to_onnx(served.config))
    print(f"{MODEL} is served by ONNX Runtime again.")


def make_plan(options: argparse.Namespace) -> None:
    """Build, try and install a plan of the installed ONNX file.

    Raises:
        BuildError: any of these cannot be done; what is installed stays.
    """
    served = read_served(options.repository)
    text = _plan.to_onnx(served.config) if _plan.is_plan(served.config) else served.config
    config = _plan.parse_config(text)
    profile = _plan.profile_of(config, options.opt_batch)
    trt = _tensorrt.load()
    target = options.target_tensorrt or target_version()
    major = _plan.check_versions(trt.__version__, target)
    precision = _plan.choose_precision(options.precision, graph_precision(served.weights), major)
    gpu = _tensorrt.gpu()
    tied = f"TensorRT {trt.__version__}, {gpu.name} (compute capability {gpu.capability})"
    switched = _plan.to_plan(text, f"{tied}, {precision.name}.")
    print(f"Building {precision.name} with {tied}; this takes minutes ...", flush=True)
    plan = _tensorrt.build(
        trt,
        served.weights,
        precision,
        config.input[0].name,
        profile,
        workspace=None if options.workspace is None else options.workspace << 20,
        timing_cache=options.timing_cache or default_timing_cache(trt.__version__, gpu),
    )
    tolerance = _plan.TOLERANCES[precision.name]
    error = try_plan(trt, plan, served.weights, config, profile, tolerance)
    install(options.repository, switched, plan)
    print(
        f"{MODEL} is a TensorRT plan now, for batches up to {config.max_batch_size}; its answers"
        f" to the example photos are within {error:.2g} of ONNX Runtime's.\n"
        f"It runs only with {tied}."
    )
    if target is None:
        print(
            "Whether the Triton that will serve it has that TensorRT was not checked."
            f" `docker run --rm --entrypoint printenv {container()} TRT_VERSION` names its version,"
            " for --target-tensorrt."
        )


def read_served(repository: Path) -> Served:
    """
    Raises:
        BuildError: a file is missing.
    """
    folder = repository / MODEL
    version = version_folder(folder)
    if version is None or not (version / WEIGHTS_FILE).is_file():
        raise BuildError(
            f"{repository.name}/{MODEL} holds no {WEIGHTS_FILE}; `make model` installs one."
        )
    try:
        # As bytes, because reading text would change line ends.
        config = (folder / CONFIG_FILE).read_bytes().decode("utf-8")
    except OSError as error:
        raise BuildError(f"{MODEL}/{CONFIG_FILE} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise BuildError(f"{MODEL}/{CONFIG_FILE} is not UTF-8.") from None
    return Served(config=config, weights=version / WEIGHTS_FILE)


def graph_precision(weights: Path) -> str:
    """Which of `_plan.PRECISIONS` the ONNX file is in; `make model` notes it, else it is FP32.

    Raises:
        BuildError: it is no ONNX file, or says something else.
    """
    try:
        model = onnx.load(weights, load_external_data=False)
    except (DecodeError, OSError):
        raise BuildError(
            f"{weights.name} cannot be read as ONNX; `make model` renews it."
        ) from None
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    noted = metadata.get(PRECISION_KEY, PRECISIONS[0])
    if noted == TARGETS["cpu"]:
        raise BuildError(
            f"{weights.name} is INT8 for CPUs, which TensorRT does not take; install it anew with"
            " --int8 tensorrt."
        )
    if noted not in PRECISIONS:
        raise BuildError(
            f"{weights.name} says that its precision is '{noted}';"
            f" allowed: {', '.join(PRECISIONS)}."
        )
    return "int8" if noted == TARGETS["tensorrt"] else noted


def target_version() -> str | None:
    """The TensorRT of the Triton container that this runs in, or None outside of one."""
    if "NVIDIA_TRITON_SERVER_VERSION" not in os.environ:
        return None
    return os.environ.get("TRT_VERSION")


def container() -> str:
    """The image that `build/Dockerfile` begins with."""
    text = _DOCKERFILE.read_text("utf-8")
    default = re.search(r"^ARG TRITON=(\S+)", text, re.MULTILINE)
    image = re.search(r"^FROM (\S+)", text, re.MULTILINE)
    assert default is not None and image is not None
    return image[1].replace("${TRITON}", default[1])


def default_timing_cache(version: str, gpu: _tensorrt.Gpu) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    device = re.sub(r"\W+", "-", gpu.name)
    return Path(base, "yolov5-triton", f"timing-{version}-{device}-{gpu.capability}.cache")


def try_plan(
    trt: ModuleType,
    plan: bytes,
    weights: Path,
    config: ModelConfig,
    profile: _plan.Profile,
    tolerance: float,
) -> float:
    """How far the plan's answers to photos are from those of ONNX Runtime on the CPU.

    Raises:
        BuildError: further than `tolerance`.
    """
    source, output = config.input[0].name, config.output[0].name
    batch, _, height, width = profile.largest
    images = example_images(height, width, min(2, batch))
    session = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"])
    (wanted,) = session.run([output], {source: images})
    answer = _tensorrt.run(trt, plan, source, images)[output]
    if config.parameters["head"].string_value == "reduced":
        # The last column is a class's number; where two are as good, either may be named.
        answer, wanted = answer[..., :-1], wanted[..., :-1]
    error = _plan.relative_error(answer, wanted)
    if not error <= tolerance:  # NaN is no answer either
        raise BuildError(
            f"The plan's answers to the example photos differ from ONNX Runtime's by {error:.2g}"
            f" of their size, and {tolerance:g} is allowed, so it was not installed."
        )
    return error


def install(repository: Path, config: str, plan: bytes | None = None) -> None:
    """Put a new version in place: all that is served now, with this configuration and plan."""
    served = repository / MODEL
    current = version_folder(served)
    assert current is not None
    with new_version(repository) as (new, version):
        for source, target in ((served, new), (current, version)):
            for path in source.iterdir():
                if path.is_file() and path.name not in (CONFIG_FILE, _plan.PLAN_FILE):
                    copy_weights(path, target / path.name)
                elif path.is_dir() and not path.name.isdecimal():
                    shutil.copytree(path, target / path.name)
        (new / CONFIG_FILE).write_bytes(config.encode())
        if plan is not None:
            (version / _plan.PLAN_FILE).write_bytes(plan)


if __name__ == "__main__":
    sys.exit(main())
