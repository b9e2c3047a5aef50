"""All that can be checked before Triton is started, because Triton says it late or at length."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import socket
import sys
import sysconfig
from collections.abc import Sequence
from math import prod
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ._errors import StartError
from ._settings import Settings

NETWORK = "yolov5"
STEPS = ("preprocess", NETWORK, "postprocess")
ENSEMBLE = "yolov5_ensemble"
MODELS = (*STEPS, ENSEMBLE)
SHARED_MEMORY = Path("/dev/shm")
# Configurations of the network of these names, which `make model` writes, stand in for its
# config.pbtxt on a CPU: the second where that has BF16, for a network that keeps its mAP so.
EMBEDDED_CONFIGS = "embedded"
EMBEDDED_BF16_CONFIGS = "embedded-bf16"
_BYTES = {model_config_pb2.TYPE_FP32: 4, model_config_pb2.TYPE_FP16: 2}


def check(settings: Settings) -> None:
    """
    Raises:
        StartError: the first thing found that would keep the server from starting.
    """
    check_ports(settings)
    check_repository(settings)


def check_repository(settings: Settings) -> None:
    """
    Raises:
        StartError: what is to be served is not as it should be, or not what was asked for.
    """
    configs = chosen_configs(settings)
    for model in MODELS:
        read_config(settings.repository, model, configs)
    config = read_network_config(settings.repository, configs, plans=settings.triton is not None)
    check_precision(config, settings.precision)
    # The other one leaves the number of rows open.
    check_shared_memory(
        read_config(settings.repository, NETWORK), shutil.disk_usage(SHARED_MEMORY).free
    )


def check_ports(settings: Settings) -> None:
    for name, port in settings.ports.items():
        with socket.socket(settings.family, socket.SOCK_STREAM) as probe:
            # As Triton binds: a port that only waits for its last connections to fade is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
                probe.listen()
            except OSError as error:
                raise port_error(settings, name, error) from None


def port_error(settings: Settings, name: str, error: OSError) -> StartError:
    return StartError(
        f"Port {settings.ports[name]} on {settings.host} cannot be used ({error.strerror});"
        f" set {name} to another one."
    )


def chosen_configs(settings: Settings) -> str | None:
    """The name of the configurations that go before config.pbtxt, for the models that have one."""
    if settings.triton is not None or _has_gpu():
        return None
    fit = {EMBEDDED_CONFIGS}
    if settings.precision == "auto" and _cpu_has_bf16() and importlib.util.find_spec("openvino"):
        fit.add(EMBEDDED_BF16_CONFIGS)
    config = read_config(settings.repository, NETWORK)
    if is_plan(config):
        return None
    folder = settings.repository / NETWORK / "configs"
    there = [name for name in sorted(fit) if (folder / f"{name}.pbtxt").is_file()]
    return there[-1] if there else None


def is_plan(config: model_config_pb2.ModelConfig) -> bool:
    """Whether it is TensorRT's."""
    return bool(config.platform == "tensorrt_plan" or config.backend == "tensorrt")


def _cpu_has_bf16() -> bool:
    """Whether this machine multiplies such numbers itself; OpenVINO imitates it elsewhere."""
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()


def read_config(
    repository: Path, model: str, configs: str | None = None
) -> model_config_pb2.ModelConfig:
    """
    Args:
        configs: see `chosen_configs`.

    Raises:
        StartError: it is missing or not valid.
    """
    path = repository / model / "configs" / f"{configs}.pbtxt"
    if not path.is_file():
        path = repository / model / "config.pbtxt"
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(path.read_text("utf-8"), config)
    except OSError:
        raise StartError(
            f"{repository.name}/{model}/config.pbtxt is missing;"
            " `git checkout model_repository` or `make model` brings it back."
        ) from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        fault = "".join(c if c.isprintable() else "?" for c in str(error)).rstrip(".")
        raise StartError(f"{path.relative_to(repository.parent)} is not valid: {fault}.") from None
    return config


def read_network_config(
    repository: Path, configs: str | None = None, *, plans: bool = False
) -> model_config_pb2.ModelConfig:
    """The configuration of the served network, whose files are all there.

    Args:
        configs: see `chosen_configs`.
        plans: whether the server can run a TensorRT plan.

    Raises:
        StartError: something is missing or cannot be run.
    """
    config = read_config(repository, NETWORK, configs)
    weights = config.default_model_filename or "model.onnx"
    if not any((version / weights).is_file() for version in (repository / NETWORK).glob("[0-9]*")):
        raise StartError(f"{repository.name}/yolov5 holds no {weights}; `make model` installs one.")
    if not plans and is_plan(config):
        raise StartError(
            f"{repository.name}/yolov5 is a TensorRT plan, which the embedded server cannot run;"
            " `make engine ARGS=--undo` goes back to ONNX, a Triton container runs the plan."
        )
    return config


def network_precision(config: model_config_pb2.ModelConfig) -> str:
    """What the network computes in: fp32, fp16, bf16, int8 or int8-symmetric."""
    return config.parameters["precision"].string_value or "fp32"


def check_precision(config: model_config_pb2.ModelConfig, wanted: str) -> None:
    found = network_precision(config)
    if wanted != "auto" and found != wanted:
        remedy = "`make model` without --half and --int8 installs one in FP32"
        if config.parameters["source"].string_value == "onnx":
            remedy = "so was the .onnx file that was imported; export it in FP32, and install that"
        raise StartError(f"PRECISION is {wanted}, but the installed network is {found}; {remedy}.")


def check_shared_memory(config: model_config_pb2.ModelConfig, free: int) -> None:
    """A full batch crosses from step to step in /dev/shm: into the network and out of it."""
    imgsz = config.parameters["imgsz"].string_value
    if not all(side.isdecimal() for side in imgsz.split()):
        raise StartError(f"imgsz in yolov5/config.pbtxt is {imgsz!r}; allowed: height and width.")
    sides = [int(side) for side in imgsz.split()]
    needed = 2 * max(1, config.max_batch_size)
    needed *= sum(
        _BYTES.get(tensor.data_type, 8) * _values(tensor.dims, sides)
        for tensor in (*config.input, *config.output)
    )
    if free < needed:
        raise StartError(
            f"{SHARED_MEMORY} has {free >> 20} MB free, but batches of this model need"
            f" {needed >> 20} MB; in a container, start it with a larger --shm-size."
        )


def _values(dims: Sequence[int], largest: list[int]) -> int:
    """Numbers in a tensor whose open sides, if they are an image's, have these largest sizes."""
    if list(dims[1:]) == [-1, -1]:
        dims = [dims[0], *largest]
    return prod(abs(side) for side in dims)


def python_library() -> Path | None:
    """The shared library of this interpreter, which Triton's Python stub needs.

    Returns:
        The file, or None where the system's own search finds it.

    Raises:
        StartError: this Python has no shared library.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    library = f"libpython{version}.so.1.0"
    # An interpreter that was moved after it was built, such as one of uv, may name a folder that
    # is not there.
    folders = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix, "lib")]
    for folder in filter(None, folders):
        if (found := Path(folder, library)).exists():
            return found
    try:
        ctypes.CDLL(library)
    except OSError:
        raise StartError(
            f"{library} is not installed, and Triton's Python backend needs it;"
            f" on Debian and Ubuntu: apt install libpython{version}."
        ) from None
    return None
