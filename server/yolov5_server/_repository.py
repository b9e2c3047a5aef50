"""Read the model repository: names of its models, and their configurations as Triton reads them."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ._errors import StartError
from ._settings import Settings
from .hardware import cpu_has_bf16, has_cuda_provider, wants_gpu

FIRST, LAST = "preprocess", "postprocess"  # the steps that all networks share
NETWORK = "yolov5"  # the network without a name; others have folders of their own
_SUFFIX = "_ensemble"
ENSEMBLE = f"{NETWORK}{_SUFFIX}"
MODELS = (FIRST, NETWORK, LAST, ENSEMBLE)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_NUMBER = re.compile(r"\s*[+-]?(\d+)")  # as Triton reads it
_LARGEST_VERSION = 2**63 - 1
# A configuration of this name replaces config.pbtxt of a network in the embedded server, if it runs
# on a CPU that has BF16. `make model` writes it if the network keeps its mAP in BF16.
BF16_CONFIGS = "bf16"


def endpoint_name(network: str) -> str:
    """Name of the ensemble that is this network's endpoint."""
    return f"{network}{_SUFFIX}"


def installed_networks(repository: Path) -> list[str]:
    """Names of the networks that have an endpoint; the one without a name is the first."""
    names = [NETWORK]
    for config in sorted(repository.glob(f"*{_SUFFIX}/config.pbtxt")):
        name = config.parent.name.removesuffix(_SUFFIX)
        if name != NETWORK and is_name(name):
            # While it is being removed, only one of the two may be there.
            names += [name] * (repository / name / "config.pbtxt").is_file()
    return names


def is_name(name: str) -> bool:
    """Whether a network may have this name, which must not be that of another model."""
    return bool(_NAME.fullmatch(name)) and name not in MODELS and not name.endswith(_SUFFIX)


def read_config(
    repository: Path, model: str, configs: str | None = None
) -> model_config_pb2.ModelConfig:
    """Read the configuration of one model.

    Args:
        configs: see `chosen_configs`.

    Raises:
        StartError: it is missing or not valid.
    """
    path = config_path(repository, model, configs)
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(path.read_text("utf-8"), config)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            place = path.relative_to(repository.parent)
            raise StartError(f"{place} cannot be read: {error.strerror}.") from None
        raise StartError(
            f"{repository.name}/{model}/config.pbtxt is missing;"
            " `git checkout model_repository` or `make model` brings it back."
        ) from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        fault = "".join(c if c.isprintable() else "?" for c in str(error)).rstrip(".")
        raise StartError(f"{path.relative_to(repository.parent)} is not valid: {fault}.") from None
    return config


def config_path(repository: Path, model: str, configs: str | None = None) -> Path:
    """The file that holds the configuration of one model; see `chosen_configs`."""
    path = repository / model / "configs" / f"{configs}.pbtxt"
    return path if path.is_file() else repository / model / "config.pbtxt"


def read_network_config(
    repository: Path,
    configs: str | None = None,
    *,
    network: str = NETWORK,
    plans: bool = False,
) -> model_config_pb2.ModelConfig:
    """Read the configuration of an installed network, and check that its weights are there.

    Args:
        configs: see `chosen_configs`.
        plans: whether the server can run a TensorRT plan.

    Raises:
        StartError: something is missing or cannot be run.
    """
    config = read_config(repository, network, configs)
    weights = config.default_model_filename or "model.onnx"
    folder = f"{repository.name}/{network}"
    name = "" if network == NETWORK else f" NAME={network}"
    _check_versions(repository / network)
    if not any((version / weights).is_file() for version in (repository / network).glob("[0-9]*")):
        raise StartError(f"{folder} holds no {weights}; `make model{name}` installs one.")
    if not plans and is_plan(config):
        raise StartError(
            f"{folder} is a TensorRT plan, which the embedded server cannot run;"
            f" `make engine{name} ARGS=--undo` goes back to ONNX, a Triton container runs the plan."
        )
    return config


def _check_versions(network: Path) -> None:
    """Check the names of a network's folders: a larger number ends Triton (2.51) altogether.

    Raises:
        StartError: a number is too large.
    """
    for path in network.iterdir():
        number = _NUMBER.match(path.name)
        if number and path.is_dir() and int(number[1]) > _LARGEST_VERSION:
            raise StartError(
                f"{network.parent.name}/{network.name}/{path.name} is no version; allowed: a folder"
                f" that has a whole number up to {_LARGEST_VERSION} as its name."
            )


def chosen_configs(settings: Settings, network: str = NETWORK) -> str | None:
    """Name of the configuration that replaces config.pbtxt of this network.

    Returns:
        None if config.pbtxt itself is served.
    """
    config = settings.repository / network / "configs" / f"{BF16_CONFIGS}.pbtxt"
    if not settings.has_own_backends or settings.precision != "auto" or not config.is_file():
        return None
    if is_plan(read_config(settings.repository, network)):
        return None
    on_cpu = not (wants_gpu(settings.gpu) and has_cuda_provider())
    usable = on_cpu and cpu_has_bf16() and importlib.util.find_spec("openvino")
    return BF16_CONFIGS if usable else None


def is_plan(config: model_config_pb2.ModelConfig) -> bool:
    """Whether the network is a TensorRT plan."""
    return bool(config.platform == "tensorrt_plan" or config.backend == "tensorrt")


def network_precision(config: model_config_pb2.ModelConfig) -> str:
    """What the network computes in: fp32, fp16, bf16, int8 or int8-symmetric."""
    return config.parameters["precision"].string_value or "fp32"


def step_function(repository: Path, module: str, function: str) -> Callable[..., Any]:
    """A function of a module of `preprocess`, which holds what the steps require of a network.

    Raises:
        StartError: the repository has no such module.
    """
    folder = str(repository / FIRST / "1")
    sys.path.insert(0, folder)  # its modules import their neighbours, as in the server
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise StartError(f"{FIRST}/1/{module}.py cannot be used: {error}.") from None
    finally:
        sys.path.remove(folder)
    return found
