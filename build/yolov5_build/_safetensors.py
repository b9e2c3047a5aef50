"""A network as safetensors: weights without a program, and the layers as JSON beside them.

This is the form to share weights in. A pickle is a program; this is numbers, and a description
that names only layers from `layers.LAYERS`. The description is the metadata entry `yolov5`:

    {"names": [...], "network": {"layer": "models.yolo.Model", "values": {"save": [4, 6]},
     "tensors": {"parameters": ["weight"], "buffers": [], "values": []},
     "absent": ["bias"], "children": {"model": {...}}}}

A layer's tensors lie in the file under its path and their name, `model.0.conv.weight`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import layers
from ._checkpoint import Checkpoint, checkpoint_of
from ._errors import BuildError

SUFFIX = ".safetensors"
_KEY = "yolov5"
_MAX_DESCRIPTION = 8 << 20
_BASE = frozenset(nn.Module().__dict__)  # what every module has, hooks included
_NAMES = {cls: name for name, cls in reversed(layers.LAYERS.items())}


def save_safetensors(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint's network, batch norms folded, in FP32.

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


def load_safetensors(path: Path) -> Checkpoint:
    """Read what `save_safetensors` wrote.

    Raises:
        BuildError: not such a file, or a damaged one.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise BuildError(
                    f"{path.name} holds weights without a description of their network; make one"
                    " that has it with `make model WEIGHTS=best.pt ARGS='--save best.safetensors'`."
                )
            if len(text) > _MAX_DESCRIPTION:
                raise ValueError("a huge description")
            description = json.loads(text)
            network = _build(description["network"], "", file)
        if not isinstance(network, layers.DetectionModel):
            raise ValueError("not a network")
        network.names = description["names"]
    except BuildError:
        raise
    except OSError as error:
        raise BuildError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    except Exception:  # whatever is missing, or of another kind, in a description from elsewhere
        raise BuildError(f"{path.name} is not a YOLOv5 safetensors file, or is damaged.") from None
    return checkpoint_of(path, network)


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


def _build(description: dict[str, Any], path: str, file: Any) -> nn.Module:
    cls = layers.LAYERS[description["layer"]]
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    for name, value in description["values"].items():
        if name in _BASE or not _is_plain(value):
            raise ValueError(name)
        module.__dict__[name] = _as_tuple(value)
    tensors = description["tensors"]
    for name in tensors["parameters"]:
        data = file.get_tensor(path + name)
        module._parameters[name] = nn.Parameter(data, requires_grad=False)
    for name in tensors["buffers"]:
        module._buffers[name] = file.get_tensor(path + name)
    for name in tensors["values"]:
        if name in _BASE:
            raise ValueError(name)
        module.__dict__[name] = file.get_tensor(path + name)
    for name in description["absent"]:
        module._parameters[name] = None
    for name, child in description["children"].items():
        module._modules[name] = _build(child, f"{path}{name}.", file)
    return module


def _as_tuple(value: Any) -> Any:
    """JSON has one kind of list; torch wants its sizes as tuples."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
