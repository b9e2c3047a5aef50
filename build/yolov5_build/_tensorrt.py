"""All calls of the `tensorrt` package, versions 10 and 11.

This code has not been run on hardware. Names and signatures are those of NVIDIA's Python bindings
10.16.1 and 11.4.0.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ._errors import BuildError
from ._plan import BuildPrecision, Profile


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPU that a plan is built for, such as `NVIDIA H200` with compute capability `9.0`."""

    name: str
    capability: str


def load() -> ModuleType:
    """Import the package.

    Raises:
        BuildError: the package or one of its libraries is missing.
    """
    try:
        return importlib.import_module("tensorrt")
    except ModuleNotFoundError:
        raise BuildError(
            "The Python package tensorrt, which builds plans, is not installed; install the version"
            " of the Triton server that will serve the plan."
        ) from None
    except (ImportError, OSError) as error:
        raise BuildError(
            f"The Python package tensorrt cannot be loaded: {_one_line(error)}."
        ) from None


def gpu() -> Gpu:
    """The GPU of this machine.

    Raises:
        BuildError: there is none.
    """
    if not torch.cuda.is_available():
        raise BuildError("Building a plan needs an NVIDIA GPU, and none was found here.")
    major, minor = torch.cuda.get_device_capability()
    return Gpu(name=torch.cuda.get_device_name(), capability=f"{major}.{minor}")


def build(
    trt: ModuleType,
    weights: Path,
    precision: BuildPrecision,
    profiles: Mapping[str, Profile],
    *,
    workspace: int | None,
    timing_cache: Path,
) -> bytes:
    """Build a plan, which takes minutes.

    Args:
        trt: the package.
        weights: an ONNX file.
        profiles: for each input.
        workspace: limit on the GPU memory of a layer in bytes; None for no limit.
        timing_cache: file with kernel timings, which is read if it fits, and written.

    Raises:
        BuildError: TensorRT cannot start, read the file or build the plan.
    """
    log = _logger(trt)
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError):  # pybind11 raises these for a null pointer
        raise BuildError(f"TensorRT cannot use this GPU: {log.cause()}.") from None
    # The parser owns the network's weights, so it has to live until the plan is built.
    network, parser = _read_network(trt, builder, log, weights, precision)
    config = _builder_config(trt, builder, precision, workspace)
    _add_profiles(builder, config, log, profiles)
    _use_timing_cache(config, timing_cache)
    log.errors.clear()  # an unsuitable cache is not the cause of a later failure
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"TensorRT {trt.__version__} cannot build the plan: {log.cause()}.")
    del parser
    _keep_timing_cache(config, timing_cache)
    return bytes(plan)


def _read_network(
    trt: ModuleType, builder: Any, log: Any, weights: Path, precision: BuildPrecision
) -> tuple[Any, Any]:
    """The network of an ONNX file, and the parser that owns its weights."""
    flags = 0
    if precision.strongly_typed:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(weights)):
        cause = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise BuildError(
            f"TensorRT {trt.__version__} cannot read {weights.name}: {_one_line(cause)}."
        )
    return network, parser


def _builder_config(
    trt: ModuleType, builder: Any, precision: BuildPrecision, workspace: int | None
) -> Any:
    config = builder.create_builder_config()
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    if precision.fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    if not precision.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    return config


def _add_profiles(builder: Any, config: Any, log: Any, profiles: Mapping[str, Profile]) -> None:
    shapes = builder.create_optimization_profile()
    try:
        for name, profile in profiles.items():
            shapes.set_shape(name, profile.min, profile.opt, profile.max)
        accepted = config.add_optimization_profile(shapes) >= 0
    except ValueError:
        accepted = False
    if not accepted:
        described = " and ".join(f"{n} from {p.min} to {p.max}" for n, p in profiles.items())
        raise BuildError(f"TensorRT does not take {described}: {log.cause()}.")


def run(
    trt: ModuleType, plan: bytes, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[np.float32]]:
    """Run the plan on inputs by name, and return its outputs by name.

    Raises:
        BuildError: the plan cannot be run here.
    """
    log = _logger(trt)
    try:
        return _run(trt, log, plan, inputs)
    except (TypeError, RuntimeError) as error:  # TypeError is pybind11's, for a null pointer
        raise BuildError(f"The plan that was built cannot be run: {log.cause(error)}.") from None


def _run(
    trt: ModuleType, log: Any, plan: bytes, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[np.float32]]:
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    context = engine and engine.create_execution_context()
    if not context or not all(
        context.set_input_shape(name, array.shape) for name, array in inputs.items()
    ):
        raise RuntimeError("TensorRT does not accept it, or not this batch")
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
        for index in range(engine.num_io_tensors):
            tensor = engine.get_tensor_name(index)
            if tensor not in tensors:
                shape = tuple(context.get_tensor_shape(tensor))
                dtype = trt.nptype(engine.get_tensor_dtype(tensor))
                tensors[tensor] = torch.from_numpy(np.zeros(shape, dtype)).cuda()
            context.set_tensor_address(tensor, tensors[tensor].data_ptr())
        done = context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    if not done:
        raise RuntimeError("TensorRT did not start it")
    return {name: value.cpu().numpy() for name, value in tensors.items() if name not in inputs}


def _use_timing_cache(config: Any, path: Path) -> None:
    """Attach the cache in the file, or an empty one if that is damaged or for another GPU."""
    with contextlib.suppress(OSError):
        cache = config.create_timing_cache(path.read_bytes())
        if cache is not None and config.set_timing_cache(cache, False):
            return
    config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timing_cache(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is not None:
        with contextlib.suppress(OSError):  # the cache only saves time
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cache.serialize())


def _logger(trt: ModuleType) -> Any:
    """A logger for TensorRT that keeps errors, and discards other messages."""
    wrong = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

    base: Any = trt.ILogger

    class Log(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in wrong:
                self.errors.append(msg)

        def cause(self, otherwise: object = "no reason given") -> str:
            """The first error, as later ones are usually its consequences."""
            return _one_line(self.errors[0] if self.errors else otherwise)

    return Log()


def _one_line(message: object) -> str:
    return " ".join(str(message).split()).rstrip(".")
