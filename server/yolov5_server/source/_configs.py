"""Which configurations a source may hold: those that make Triton run nothing but a network.

A configuration can name a backend, a library, an environment of Python or files of the machine.
Those of `make model` do not, and no other ones are taken from a source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from .._repository import endpoint_name
from ._errors import refused
from ._manifest import WEIGHTS

_MOST_BYTES = 1 << 20
_BACKENDS = ("onnxruntime", "openvino", "tensorrt")
_PLATFORMS = ("onnxruntime_onnx", "tensorrt_plan")
_COMMON = {"name", "platform", "backend", "max_batch_size", "input", "output", "parameters"}
_NETWORK_FIELDS = _COMMON | {
    *("default_model_filename", "dynamic_batching", "instance_group", "model_warmup"),
}
_ENDPOINT_FIELDS = _COMMON | {"ensemble_scheduling"}
# What `make model` writes, and what docs/operations.md and docs/models.md name for it.
_PARAMETERS = {
    *("full", "head", "imgsz", "letterbox", "padding", "precision", "source", "stride"),
    *("FORCE_CPU_ONLY_INPUT_TENSORS", "HINT_BF16"),
    *("inter_op_thread_count", "intra_op_thread_count", "use_tf32"),
}


def check_configs(folder: Path, name: str) -> None:
    """Check the configurations of a network and its endpoint.

    Args:
        folder: that holds both, as a model repository does.
        name: of the network.

    Raises:
        SourceError: one of them has what only the machine's own administrator may write.
    """
    for model, check in ((name, _check_network), (endpoint_name(name), _check_endpoint)):
        for path in sorted((folder / model).rglob("*.pbtxt")):
            place = path.relative_to(folder).as_posix()
            if fault := check(_parsed(path, place), model):
                raise refused(f"{place} {fault}.")


def _parsed(path: Path, place: str) -> Any:
    if path.stat().st_size > _MOST_BYTES:
        raise refused(f"{place} has over {_MOST_BYTES} bytes, the most allowed.")
    config = model_config_pb2.ModelConfig()
    try:
        return text_format.Parse(path.read_text("utf-8"), config)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise refused(f"{place} is not valid: {str(error)[:200].rstrip('.')}.") from None


def _check_network(config: Any, name: str) -> str | None:
    """Why this configuration of a network is refused; None if it is not."""
    if fault := _common_fault(config, name, _NETWORK_FIELDS):
        return fault
    if config.backend not in ("", *_BACKENDS) or config.platform not in ("", *_PLATFORMS):
        runs = config.backend or config.platform
        return f"wants the backend {runs[:60]!r}; allowed: {', '.join(_BACKENDS)}"
    if not (config.backend or config.platform):
        return f"names no backend; allowed: {', '.join(_BACKENDS)}"
    if unknown := config.parameters.keys() - _PARAMETERS:
        allowed = ", ".join(sorted(_PARAMETERS))
        return f"has the parameter {min(unknown)[:60]!r}; allowed: {allowed}"
    for file in (config.default_model_filename, config.parameters["full"].string_value):
        if file not in ("", *WEIGHTS):
            return f"names the file {file[:60]!r}; allowed: {', '.join(WEIGHTS)}"
    for warmup in config.model_warmup:
        if any(one.input_data_file for one in warmup.inputs.values()):
            return "warms up with a file; allowed: zero_data, random_data"
    return None


def _check_endpoint(config: Any, name: str) -> str | None:
    """Why this configuration of an endpoint is refused; None if it is not."""
    if fault := _common_fault(config, name, _ENDPOINT_FIELDS):
        return fault
    if config.backend or config.platform != "ensemble":
        return "is no ensemble"
    return None


def _common_fault(config: Any, name: str, allowed: set[str]) -> str | None:
    if config.name not in ("", name):
        return f"has the name {config.name[:60]!r}; allowed: {name!r}"
    if unknown := {field.name for field, _ in config.ListFields()} - allowed:
        return f"has the field {min(unknown)}; allowed: {', '.join(sorted(allowed))}"
    return None
