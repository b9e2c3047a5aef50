"""Open an ONNX Runtime session with the options of Triton's C++ backend."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnxruntime
from config_check import ConfigError
from executor import thread_counts

_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}
_CUDA_OPTIONS = (
    "cudnn_conv_algo_search",
    "gpu_mem_limit",
    "arena_extend_strategy",
    "do_copy_in_default_stream",
    "use_tf32",
)
# TF32 rounds the factors of a convolution to 10 bits; by default the numbers are the reference's.
_CUDA_DEFAULTS = {"use_tf32": "0"}
# Configurations for the C++ backend use the C API's numbers; Python wants names.
_CUDA_NAMES = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
}
CUDA = "CUDAExecutionProvider"
Provider = tuple[str, dict[str, Any]]


def open_session(
    config: Mapping[str, Any],
    path: Path,
    fixed: Mapping[str, int] = MappingProxyType({}),
    *,
    kind: str,
    device: int,
    threads: int = 1,
) -> onnxruntime.InferenceSession:
    """Load the model.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
        fixed: sizes of dimensions that the graph names and leaves open.
        kind, device: of the instance: "GPU" with a device number, or "CPU".
        threads: number of threads of one run on the CPU.

    Raises:
        ConfigError: the file is missing or not an ONNX model, or an option is not valid.
    """
    model = config["name"]
    if not path.is_file():
        raise ConfigError(f"unable to find '{path.name}' for model '{model}'")
    options = session_options(config, threads=threads)
    for name, size in fixed.items():
        options.add_free_dimension_override_by_name(name, size)
    try:
        return onnxruntime.InferenceSession(
            path,
            options,
            providers=providers(config, onnxruntime.get_available_providers(), kind, device),
        )
    except ConfigError:
        raise
    except Exception as error:  # ONNX Runtime raises a class of its own for each cause
        raise ConfigError(f"onnx runtime error loading model '{model}': {error}") from None


def session_options(config: Mapping[str, Any], *, threads: int) -> onnxruntime.SessionOptions:
    """Execution mode, memory and graph optimization from the configuration."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    # Spinning between two layers saves an image that has all cores 4 ms of 32; spinning after the
    # last layer would take the cores from the other steps.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.inter_op_num_threads = _number(config, "inter_op_thread_count", 0)
    if _number(config, "execution_mode", 0, most=1):
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = bool(_number(config, "enable_mem_arena", 1, most=1))
    options.enable_mem_pattern = bool(_number(config, "enable_mem_pattern", 1, most=1))
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    if level not in _LEVELS:
        raise ConfigError(f"optimization graph level is {level}; allowed: -1, 0, 1")
    options.graph_optimization_level = _LEVELS[level]
    return options


def providers(
    config: Mapping[str, Any], available: Sequence[str], kind: str, device: int
) -> list[Provider]:
    """Execution providers in order of preference; the CPU's is always last.

    Raises:
        ConfigError: the configuration asks for an accelerator that is unknown or not installed.
    """
    chosen: list[Provider] = []
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    if kind == "GPU":
        for accelerator in accelerators.get("gpu_execution_accelerator", []):
            if accelerator["name"] == "tensorrt":
                options = {"device_id": device, **_tensorrt(accelerator.get("parameters", {}))}
                chosen.append(("TensorrtExecutionProvider", options))
            elif accelerator["name"] != "cuda":
                raise ConfigError(f"unknown execution accelerator '{accelerator['name']}'")
        if CUDA in available:
            chosen.append((CUDA, {"device_id": device, **_cuda(config)}))
    else:
        for accelerator in accelerators.get("cpu_execution_accelerator", []):
            if accelerator["name"] != "openvino":
                raise ConfigError(f"unknown execution accelerator '{accelerator['name']}'")
            chosen.append(("OpenVINOExecutionProvider", {}))
    for name, _ in chosen:
        if name not in available:
            raise ConfigError(f"{name} is not part of the onnxruntime package that is installed")
    return [*chosen, ("CPUExecutionProvider", {})]


def why_not_on_cuda() -> str:
    """Why a session that asked for CUDA got none, as far as the libraries tell."""
    if CUDA not in onnxruntime.get_available_providers():
        return "the installed onnxruntime has no CUDA provider, onnxruntime-gpu has one"
    if error := _load_provider("cuda"):
        return f"its CUDA provider cannot be loaded: {error}"
    return "its CUDA provider refused; the log may say why"


def without_missing_tensorrt(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """The configuration without TensorRT if its libraries are missing; and which one that is.

    ONNX Runtime itself would print a block of lines, and then do the same.
    """
    optimization = config.get("optimization", {})
    accelerators = optimization.get("execution_accelerators", {})
    wanted = accelerators.get("gpu_execution_accelerator", [])
    others = [one for one in wanted if one["name"] != "tensorrt"]
    if len(others) == len(wanted) or (error := _load_provider("tensorrt")) is None:
        return config, None
    accelerators = {**accelerators, "gpu_execution_accelerator": others}
    changed = {**optimization, "execution_accelerators": accelerators}
    return {**config, "optimization": changed}, error


def _load_provider(name: str) -> str | None:
    """Load a provider's library as ONNX Runtime will; the loader's message if it cannot."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        # A provider finds the functions of the first library only if they are global.
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"))
    except OSError as error:
        return str(error)
    return None


def configured_thread_counts(config: Mapping[str, Any], cpus: int) -> list[int]:
    """Numbers of threads to load the network for on the CPU; one if the configuration states it.

    Args:
        cpus: number of cores of this instance.
    """
    given = _number(config, "intra_op_thread_count", 0)
    return [given] if given else thread_counts(cpus)


def _number(config: Mapping[str, Any], name: str, default: int, *, most: int = 1024) -> int:
    text = config.get("parameters", {}).get(name, {}).get("string_value", str(default))
    if not text.isdecimal() or int(text) > most:
        raise ConfigError(f"parameter '{name}' is '{text}'; allowed: 0 to {most}")
    return int(text)


def _cuda(config: Mapping[str, Any]) -> dict[str, str]:
    given = config.get("parameters", {})
    values = {n: given[n].get("string_value", "") for n in _CUDA_OPTIONS if n in given}
    named = {name: _CUDA_NAMES.get(name, {}).get(text, text) for name, text in values.items()}
    return {**_CUDA_DEFAULTS, **named}


def _tensorrt(parameters: Mapping[str, str]) -> dict[str, str]:
    """ONNX Runtime's options from the C++ backend's, two of which have other names."""
    options = dict(parameters)
    if "max_workspace_size_bytes" in options:
        options["trt_max_workspace_size"] = options.pop("max_workspace_size_bytes")
    precision = options.pop("precision_mode", "FP32")
    if precision not in ("FP32", "FP16", "INT8"):
        raise ConfigError(f"precision_mode is '{precision}'; allowed: FP32, FP16, INT8")
    if precision != "FP32":
        options[f"trt_{precision.lower()}_enable"] = "1"
    return options
