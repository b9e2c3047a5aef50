"""A detection network of a few weights, as a checkpoint holds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from yolov5_build.anchor_free import KNOWN_LAYERS
from yolov5_build.layers import DetectionModel


def ours(layer: nn.Module) -> nn.Module:
    """A layer of torch as the class without a constructor that is read for it."""
    kind = type(layer)
    cls = KNOWN_LAYERS[f"{kind.__module__}.{kind.__name__}"]
    made = cls.__new__(cls)
    made.__dict__.update(vars(layer))
    return made


def layer(name: str, **attributes: Any) -> nn.Module:
    cls = KNOWN_LAYERS[name]
    made = cls.__new__(cls)
    nn.Module.__init__(made)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def conv(read: int, made: int, side: int) -> nn.Module:
    """A convolution of squares that do not overlap, its batch norm and its activation."""
    norm = nn.BatchNorm2d(made)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
    plain = ours(nn.Conv2d(read, made, side, side, bias=False))
    return layer("models.common.Conv", conv=plain, bn=ours(norm), act=ours(nn.SiLU()))


def network(channels: int = 3) -> DetectionModel:
    """Two classes, one anchor, feature maps of strides 8 and 16."""
    torch.manual_seed(0)
    heads = [ours(nn.Conv2d(4, 7, 1)), ours(nn.Conv2d(4, 7, 1))]
    head = layer(
        "models.yolo.Detect",
        nc=2,
        no=7,
        nl=2,
        na=1,
        m=ours(nn.ModuleList(heads)),
        stride=torch.tensor([8.0, 16.0]),
    )
    head.register_buffer("anchors", torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
    layers = [conv(channels, 4, 8), conv(4, 4, 2), head]
    for index, one in enumerate(layers):
        one.__dict__.update(i=index, f=[0, 1] if one is head else -1)
    model = ours(nn.Sequential(*layers))
    made = layer("models.yolo.Model", model=model, save=[0, 1], names=["car", "bus"])
    assert isinstance(made, DetectionModel)
    return made


def tensors(model: nn.Module) -> int:
    """The number of values in the tensors of a network."""
    return sum(one.numel() for one in (*model.parameters(), *model.buffers()))
