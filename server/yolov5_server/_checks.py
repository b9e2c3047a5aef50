"""Checks before Triton is started: Triton itself would report these errors late, or at length."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from math import prod
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from ._errors import SettingError, StartError
from ._repository import (
    ENSEMBLE,
    FIRST,
    LAST,
    MODELS,
    NETWORK,
    chosen_configs,
    config_path,
    endpoint_name,
    network_precision,
    read_config,
    read_network_config,
    step_function,
)
from ._settings import Settings

SHARED_MEMORY = Path("/dev/shm")
_BYTES = {
    model_config_pb2.TYPE_FP32: 4,
    model_config_pb2.TYPE_FP16: 2,
    model_config_pb2.TYPE_UINT8: 1,
}


def check_repository(settings: Settings) -> None:
    """Check that the repository is complete and can be served with these settings.

    Further networks are checked when they are loaded: one that cannot be served is left out.

    Raises:
        StartError: it is not.
    """
    configs = chosen_configs(settings)
    for model in MODELS:
        read_config(settings.repository, model, configs)
    _check_precision_of(settings, NETWORK, configs)
    _check_room_for(settings, NETWORK)
    if settings.steps:
        check_steps(settings)


def check_steps(settings: Settings) -> None:
    """Check the settings that are to replace those of `preprocess`, with its own code.

    Raises:
        StartError: one cannot be used with the network that has no name.
    """
    check = step_function(settings.repository, "endpoint_check", "check_settings")
    endpoint = settings.repository / ENSEMBLE
    try:
        check(endpoint, {})
    except ValueError as error:
        raise StartError(f"{settings.repository.name}/{FIRST}/config.pbtxt: {error}.") from None
    for name, value in settings.steps.items():
        try:
            check(endpoint, {name: value})
        except ValueError as error:
            flag = f"--{name.replace('_', '-')}"
            raise SettingError(f"{flag}: {error}.", {name: flag}) from None
    _check_endpoint(settings, endpoint)


def check_network(settings: Settings, network: str) -> None:
    """Check what Triton would not notice when it loads a network and its endpoint.

    Raises:
        StartError: the network cannot be served.
    """
    configs = chosen_configs(settings, network)
    config = _check_precision_of(settings, network, configs)
    endpoint = settings.repository / endpoint_name(network)
    for one in dict.fromkeys((None, configs)):
        check_endpoint_config(settings.repository, network, one, config.max_batch_size)
    _check_endpoint(settings, endpoint)
    _check_room_for(settings, network)


def _check_endpoint(settings: Settings, endpoint: Path) -> None:
    """Check that the shared steps can serve the endpoint in this folder."""
    check = step_function(settings.repository, "endpoint_check", "check_endpoint")
    try:
        check(endpoint, settings.steps)
    except ValueError as error:
        raise StartError(f"{error}.") from None


def _check_precision_of(
    settings: Settings, network: str, configs: str | None
) -> model_config_pb2.ModelConfig:
    """Check that an installed network is complete and has the wanted precision."""
    config = read_network_config(
        settings.repository, configs, network=network, plans=not settings.has_own_backends
    )
    check_precision(config, settings.precision)
    return config


def _check_room_for(settings: Settings, network: str) -> None:
    config = read_config(settings.repository, network)
    check_shared_memory(config, shutil.disk_usage(SHARED_MEMORY).free)


def check_endpoint_config(
    repository: Path, network: str, configs: str | None, largest_batch: int
) -> None:
    """Check one configuration of an endpoint: Triton does not always say why it cannot load one.

    Args:
        configs: as in `read_config`.
        largest_batch: of the network.

    Raises:
        StartError: it does not fit the models that it connects.
    """
    endpoint = endpoint_name(network)
    config = read_config(repository, endpoint, configs)
    largest = min(
        largest_batch, *(read_config(repository, s).max_batch_size for s in (FIRST, LAST))
    )
    steps = [step.model_name for step in config.ensemble_scheduling.step]
    fault = None
    if config.name not in ("", endpoint):
        fault = f"name is {config.name!r}; allowed: {endpoint!r}"
    elif sorted(steps) != sorted((FIRST, network, LAST)):
        fault = f"its steps are {steps}; allowed: {[FIRST, network, LAST]}"
    elif not 1 <= config.max_batch_size <= largest:
        fault = f"max_batch_size is {config.max_batch_size}; allowed: 1 to {largest}"
    if fault:
        path = config_path(repository, endpoint, configs).relative_to(repository.parent)
        raise StartError(f"{path}: {fault}.")


def check_ports(settings: Settings) -> None:
    """
    Raises:
        StartError: a port cannot be used; the message names its variable.
    """
    for name, port in settings.ports.items():
        with socket.socket(settings.family, socket.SOCK_STREAM) as probe:
            # As Triton does: a port whose last connections are in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
                probe.listen()
            except OSError as error:
                raise port_error(settings, name, error) from None


def port_error(settings: Settings, name: str, error: OSError) -> StartError:
    """The error for a port that cannot be bound; `name` is its variable."""
    return SettingError(
        f"Port {settings.ports[name]} on {settings.host} cannot be used ({error.strerror});"
        f" set {name} to another one.",
        {name.lower(): name},
    )


def check_precision(config: model_config_pb2.ModelConfig, wanted: str) -> None:
    """
    Raises:
        StartError: the installed network does not have the wanted precision.
    """
    found = network_precision(config)
    if wanted != "auto" and found != wanted:
        remedy = "`make model` without --half and --int8 installs one in FP32"
        if config.parameters["source"].string_value == "onnx":
            remedy = "so is the imported .onnx file; export it in FP32 and install that file"
        raise StartError(f"PRECISION is {wanted}, but the installed network is {found}; {remedy}.")


def check_shared_memory(config: model_config_pb2.ModelConfig, free: int) -> None:
    """Check that /dev/shm has room for a full batch, into the network and out of it.

    Args:
        config: of the network.
        free: bytes.

    Raises:
        StartError: it has not.
    """
    imgsz = config.parameters["imgsz"].string_value
    if not all(side.isdecimal() for side in imgsz.split()):
        raise StartError(
            f"imgsz in {config.name}/config.pbtxt is {imgsz!r}; allowed: height and width."
        )
    sides = [int(side) for side in imgsz.split()] or list(config.input[0].dims[1:])
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
    """Count a tensor's values; dynamic height and width count as the largest image's, and a dynamic
    number of rows as three for each cell of 8, 16 and 32 pixels, as YOLOv5 has them."""
    if list(dims[1:]) == [-1, -1]:
        dims = [dims[0], *largest]
    elif len(dims) == 2 and dims[0] == -1:
        dims = [3 * sum(prod(largest) // stride**2 for stride in (8, 16, 32)), dims[1]]
    return prod(abs(side) for side in dims)
