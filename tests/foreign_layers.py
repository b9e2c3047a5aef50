"""Layers that are pickled under the names that trainers give to theirs."""

from __future__ import annotations

import sys
import types
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ORIGINALS: dict[str, Any] = {}  # by their names in the file


def original(name: str, base: nn.Module | type = nn.Module, **attributes: Any) -> Any:
    """A layer that is pickled as `name`: a new one with these attributes, or `base` itself."""
    kind = base if isinstance(base, type) else type(base)
    module, _, plain = name.rpartition(".")
    if name not in ORIGINALS:
        ORIGINALS[name] = type(plain, (kind,), {"__module__": module})
    if isinstance(base, nn.Module):
        base.__class__ = ORIGINALS[name]
        return base
    layer = ORIGINALS[name]()
    for key, value in attributes.items():
        setattr(layer, key, value)
    return layer


def saved(path: Path, content: object) -> Path:
    """`torch.save`, with temporary modules that define the layers under their claimed names."""
    modules: dict[str, Any] = {}
    for name, cls in ORIGINALS.items():
        module, _, plain = name.rpartition(".")
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            parent = ".".join(parts[:end])
            modules.setdefault(parent, types.ModuleType(parent))
        setattr(modules[module], plain, cls)
    with patch.dict(sys.modules, modules):
        torch.save(content, path)
    return path


def changed(path: Path, old: bytes, new: bytes) -> None:
    """Replace a text in the pickle."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if name.endswith("/data.pkl"):
                assert old in data
                data = data.replace(old, new)
            archive.writestr(name, data)


def norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm with random statistics."""
    layer = nn.BatchNorm2d(channels, eps=1e-3)
    for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
    return layer


def conv(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int] = 1,
    stride: int = 1,
    *,
    padding: int | None = None,
    groups: int = 1,
    act: nn.Module | None = None,
    name: str = "models.common.Conv",
) -> Any:
    high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    around = (high // 2, wide // 2) if padding is None else padding
    return original(
        name,
        conv=nn.Conv2d(inputs, outputs, kernel, stride, around, groups=groups, bias=False),
        bn=norm(outputs),
        act=nn.SiLU() if act is None else act,
    )


def normed(bn: Any, x: Tensor) -> Tensor:
    each = (slice(None), None, None)
    x = (x - bn.running_mean[each]) / torch.sqrt(bn.running_var[each] + bn.eps)
    return x * bn.weight[each] + bn.bias[each]  # type: ignore[no-any-return]


def ran(layer: Any, x: Tensor) -> Tensor:
    """The result of a `conv`, computed without its layers."""
    inner = layer.conv
    x = F.conv2d(x, inner.weight, None, inner.stride, inner.padding, 1, inner.groups)
    return layer.act(normed(layer.bn, x))  # type: ignore[no-any-return]
