"""Save and load a network as safetensors: tensors, and a description of the layers as JSON.

Use this format to share weights. A checkpoint is a pickle, which is a program; a safetensors file
holds only numbers and a description, which can name only layers from `KNOWN_LAYERS`. The
description is the metadata entry `yolov5`:

    {"names": [...], "network": {"layer": "models.yolo.Model", "values": {"save": [4, 6]},
     "tensors": {"parameters": ["weight"], "buffers": [], "values": []},
     "absent": ["bias"], "children": {"model": {...}}}}

A tensor's key is the path of its layer and its own name, such as `model.0.conv.weight`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import layers
from ._checkpoint import Checkpoint, checkpoint_from
from ._errors import BuildError
from .anchor_free import KNOWN_LAYERS

SUFFIX = ".safetensors"
_KEY = "yolov5"
MAX_HEADER_BYTES = 4 << 20  # the bundled network's has 126 kB
_BASE = frozenset(nn.Module().__dict__)  # attributes that every module has, such as hooks
_NAMES = {cls: name for name, cls in reversed(KNOWN_LAYERS.items())}


def save_safetensors(checkpoint: Checkpoint, path: Path) -> None:
    """Write the network of a checkpoint in FP32, with its batch norms folded.

    Raises:
        BuildError: the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    description = {
        "names": checkpoint.names,
        "network": _describe(checkpoint.network, "", tensors),
    }
    try:
        save_file(tensors, path, {_KEY: json.dumps(description)})
    except (OSError, SafetensorError) as error:
        raise BuildError(f"{path.name} cannot be written: {error}.") from None


def load_safetensors(path: Path, *, names: Sequence[str] | None = None) -> Checkpoint:
    """Read a file that `save_safetensors` wrote.

    Args:
        names: class names to use instead of those in the file.

    Raises:
        BuildError: the file is of another kind, or damaged.
    """
    try:
        _check_header(path)
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise BuildError(
                    f"{path.name} holds weights without a description of their network; make one"
                    " that has it with `make model WEIGHTS=best.pt ARGS='--save best.safetensors'`."
                )
            description = json.loads(text)
            network = _build(description["network"], "", file, set())
        if not isinstance(network, layers.DetectionModel):
            raise ValueError("not a network")
        network.names = description["names"]
    except BuildError:
        raise
    except OSError as error:
        raise BuildError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    except Exception:  # a foreign description may lack anything, or have any type
        raise BuildError(f"{path.name} is not a YOLOv5 safetensors file, or is damaged.") from None
    return checkpoint_from(path, network, names)


def _describe(module: nn.Module, path: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    own = {name: value for name, value in vars(module).items() if name not in _BASE}
    groups: dict[str, dict[str, Tensor]] = {
        "parameters": dict(module.named_parameters(recurse=False)),
        "buffers": dict(module.named_buffers(recurse=False)),
        "values": {name: value for name, value in own.items() if isinstance(value, Tensor)},
    }
    for group in groups.values():
        tensors |= {
            path + name: value.detach().contiguous().clone() for name, value in group.items()
        }
    return {
        "layer": _NAMES[type(module)],
        "values": {name: value for name, value in own.items() if _is_plain(value)},
        "tensors": {kind: list(group) for kind, group in groups.items()},
        "absent": [name for name, value in module._parameters.items() if value is None],
        "children": {
            name: _describe(child, f"{path}{name}.", tensors)
            for name, child in module.named_children()
        },
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _check_header(path: Path) -> None:
    """Check the length of the header, since the library parses a header of any size as JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER_BYTES:
        raise ValueError("a huge header")


def _build(description: dict[str, Any], path: str, file: Any, seen: set[str]) -> nn.Module:
    """Create the layer under `path`. Each tensor of the file may occur in one place only."""

    def tensor(name: str) -> Tensor:
        if path + name in seen:
            raise ValueError("a tensor in two places")
        seen.add(path + name)
        return cast(Tensor, file.get_tensor(path + name))

    cls = KNOWN_LAYERS[description["layer"]]
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    for name, value in description["values"].items():
        if name in _BASE or not _is_plain(value):
            raise ValueError(name)
        module.__dict__[name] = _as_tuple(value)
    tensors = description["tensors"]
    for name in tensors["parameters"]:
        module._parameters[name] = nn.Parameter(tensor(name), requires_grad=False)
    for name in tensors["buffers"]:
        module._buffers[name] = tensor(name)
    for name in tensors["values"]:
        if name in _BASE:
            raise ValueError(name)
        module.__dict__[name] = tensor(name)
    for name in description["absent"]:
        module._parameters[name] = None
    for name, child in description["children"].items():
        module._modules[name] = _build(child, f"{path}{name}.", file, seen)
    return module


def _as_tuple(value: Any) -> Any:
    """Lists as tuples, since torch wants sizes as tuples, and JSON has only lists."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
