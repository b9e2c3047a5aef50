"""Reading a YOLOv5 `.pt` without running anything that is in it."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import layers
from ._errors import BuildError


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network, ready to be exported.

    Attributes:
        network: FP32, in eval mode, batch norms folded into their convolutions.
        names: class names, index = class.
        stride: the largest stride of the network, in pixels; input sides are multiples of it.
        sha256: of the file it was read from.
    """

    network: layers.DetectionModel
    names: tuple[str, ...]
    stride: int
    sha256: str


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that YOLOv5's trainer wrote.

    The file is a pickle of live objects. torch's restricted unpickler creates tensors and the
    classes listed in `layers.LAYERS`, nothing else; any other name in the file is refused.

    Raises:
        BuildError: not a checkpoint, or one that names something unknown.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path.name} cannot be read: {error.strerror}.") from None
    network = _network(path.name, _unpickle(path))
    head = network.model[-1]
    if not isinstance(head, layers.Detect):
        raise BuildError(f"{path.name} does not end in a detection head but in {head}.")
    names = _names(path.name, network.names, head.nc)
    network.float().eval()
    _fuse(network)
    return Checkpoint(
        network=network,
        names=names,
        stride=int(head.stride.max()),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _unpickle(path: Path) -> object:
    allowed: list[Any] = [(cls, name) for name, cls in layers.LAYERS.items()]
    allowed += [set, (set, "__builtin__.set")]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise BuildError(
                f"{path.name} names {named[1]!r}, which is not among the layers that are supported."
            ) from None
        raise BuildError(f"{path.name} is not a YOLOv5 checkpoint, or is damaged.") from None
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        raise BuildError(f"{path.name} is not a YOLOv5 checkpoint, or is damaged.") from None


def _network(name: str, checkpoint: object) -> layers.DetectionModel:
    """The averaged weights (`ema`) where the file has them, else the last ones (`model`)."""
    if isinstance(checkpoint, dict):
        for key in ("ema", "model"):
            if isinstance(checkpoint.get(key), layers.DetectionModel):
                network: layers.DetectionModel = checkpoint[key]
                return network
    raise BuildError(f"{name} holds no YOLOv5 detection network.")


def _names(name: str, names: object, classes: int) -> tuple[str, ...]:
    """Class names as a tuple; the file has a list, or from v6.2 on a dict by index."""
    if isinstance(names, dict):
        names = [names.get(i) for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise BuildError(f"{name} has no usable class names.")
    if len(names) != classes:
        raise BuildError(f"{name} has {classes} classes but {len(names)} class names.")
    return tuple(names)


def _fuse(network: nn.Module) -> None:
    for module in network.modules():
        bn = getattr(module, "bn", None)
        if isinstance(module, layers.Conv) and isinstance(bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, bn)
            del module.bn
