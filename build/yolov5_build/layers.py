"""The network layers a YOLOv5 checkpoint names, rebuilt around the attributes it carries.

A checkpoint holds the whole module tree, every layer with its trained attributes. None of these
classes therefore has a constructor: the unpickler creates the object and fills in its state, and
only `forward` is defined here. Names and attributes are those of the file format; `LAYERS` maps
the names in the file to the classes here, and is the list to extend for further releases.

Shapes are NCHW throughout.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class Conv(nn.Module):
    """Convolution, batch norm (absent once fused), activation."""

    conv: nn.Conv2d
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if isinstance(bn := getattr(self, "bn", None), nn.BatchNorm2d):
            x = bn(x)
        return cast(Tensor, self.act(x))


class Bottleneck(nn.Module):
    """Two convolutions, with the input added back where `add` says so."""

    cv1: Conv
    cv2: Conv
    add: bool

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.cv2(self.cv1(x)))
        return x + y if self.add else y


class C3(nn.Module):
    """Cross-stage partial block: a chain of bottlenecks beside a shortcut convolution."""

    cv1: Conv
    cv2: Conv
    cv3: Conv
    m: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1)))


class SPPF(nn.Module):
    """Spatial pyramid pooling: one max-pool applied three times in a row, all stages kept."""

    cv1: Conv
    cv2: Conv
    m: nn.MaxPool2d

    def forward(self, x: Tensor) -> Tensor:
        stages = [self.cv1(x)]
        for _ in range(3):
            stages.append(self.m(stages[-1]))
        return cast(Tensor, self.cv2(torch.cat(stages, 1)))


class SPP(nn.Module):
    """Spatial pyramid pooling, up to release 5.0: max-pools of several sizes side by side."""

    cv1: Conv
    cv2: Conv
    m: nn.ModuleList

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        return cast(Tensor, self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1)))


class Focus(nn.Module):
    """The stem up to release 5.0: every 2x2 square of pixels becomes one pixel of 4 times the
    channels, first along the height, then along the width."""

    conv: Conv

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return cast(Tensor, self.conv(torch.cat(parts, 1)))


class Upsample(nn.Upsample):
    """torch's, for checkpoints older than its attribute `recompute_scale_factor`."""

    recompute_scale_factor: bool | None = None


class Concat(nn.Module):
    """Concatenation of several layers' outputs along dimension `d`."""

    d: int

    def forward(self, xs: list[Tensor]) -> Tensor:
        return torch.cat(xs, self.d)


class Detect(nn.Module):
    """The head: one 1x1 convolution per feature map, decoded to boxes in model pixels.

    For a cell (i, j), stride s and anchor (aw, ah), with t the sigmoid of the convolution's output:
    cx = (2 tx - 0.5 + j) s, cy = (2 ty - 0.5 + i) s, w = (2 tw)^2 aw, h = (2 th)^2 ah
    (the decoding published with YOLOv5, "Architecture Summary", section 4.3 "Eliminate Grid
    Sensitivity"). `anchors` are stored in units of the stride.
    """

    nc: int  # classes
    no: int  # values per anchor: 5 + nc
    nl: int  # feature maps
    na: int  # anchors per cell
    m: nn.ModuleList
    anchors: Tensor  # [nl, na, 2]
    stride: Tensor  # [nl]

    def forward(self, xs: list[Tensor]) -> Tensor:
        """Feature maps -> [B, N, 5 + nc]: cx, cy, w, h in pixels, objectness, class scores."""
        return torch.cat([self._decode(level, x) for level, x in enumerate(xs)], 1)

    def _decode(self, level: int, x: Tensor) -> Tensor:
        x = self.m[level](x)
        batch, _, rows, cols = x.shape
        t = x.view(batch, self.na, self.no, rows, cols).permute(0, 1, 3, 4, 2).sigmoid()
        xy, wh, scores = torch.split(t, [2, 2, self.nc + 1], 4)
        stride = self.stride[level]
        anchors = (self.anchors[level] * stride).view(1, self.na, 1, 1, 2)
        y, x_ = torch.meshgrid(
            torch.arange(rows, dtype=t.dtype, device=t.device),
            torch.arange(cols, dtype=t.dtype, device=t.device),
            indexing="ij",
        )
        grid = torch.stack((x_, y), 2).view(1, 1, rows, cols, 2) - 0.5
        boxes = torch.cat(((xy * 2 + grid) * stride, (wh * 2) ** 2 * anchors), 4)
        return torch.cat((boxes, scores), 4).view(batch, -1, self.no)


class DetectionModel(nn.Module):
    """The whole network: layers run in order, each reading the earlier ones its `f` names."""

    model: nn.Sequential
    save: list[int]
    names: list[str] | dict[int, str]

    def forward(self, images: Tensor) -> Tensor:
        """RGB images [B, 3, H, W] in 0..1 -> rows [B, N, 5 + nc] in model pixels."""
        x: Tensor = images
        kept: list[Tensor | None] = []
        for layer in self.model:
            source = cast("int | list[int]", layer.f)
            if isinstance(source, int):
                x = layer(x if source == -1 else kept[source])
            else:
                x = layer([x if j == -1 else kept[j] for j in source])
            kept.append(x if layer.i in self.save else None)
        return x


def _without_constructor(cls: type[nn.Module]) -> type[nn.Module]:
    """torch's layer for the unpickler; with its constructor a file could ask for any memory."""

    def refuse(self: nn.Module, *arguments: object, **named: object) -> None:
        raise TypeError("layers are filled in, not constructed")

    return type(cls.__name__, (cls,), {"__init__": refuse})


LAYERS: dict[str, type[nn.Module]] = {
    "models.common.Bottleneck": Bottleneck,
    "models.common.C3": C3,
    "models.common.Concat": Concat,
    "models.common.Conv": Conv,
    "models.common.Focus": Focus,
    "models.common.SPP": SPP,
    "models.common.SPPF": SPPF,
    "models.yolo.Detect": Detect,
    "models.yolo.DetectionModel": DetectionModel,
    "models.yolo.Model": DetectionModel,
    **{
        f"{cls.__module__}.{cls.__name__}": _without_constructor(cls)
        for cls in (
            nn.BatchNorm2d,
            nn.Conv2d,
            nn.Identity,
            nn.MaxPool2d,
            nn.ModuleList,
            nn.Sequential,
            nn.SiLU,
        )
    },
    "torch.nn.modules.upsampling.Upsample": _without_constructor(Upsample),
}
