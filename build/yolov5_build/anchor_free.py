"""The network layers that a checkpoint of the `ultralytics` package names: YOLOv5u, YOLOv8, YOLO11.

As in `layers`, the unpickler fills in the attributes of a layer, and only `forward` is defined
here. Many layers are those of YOLOv5 under other names; this module has the others. Sources: the
papers of YOLOv4 (CSP), Generalized Focal Loss (the distributions of box sides) and YOLOv10
(attention), published diagrams of YOLOv8 and YOLO11, and the attributes in the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, repeat
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import layers
from .layers import (
    C3,
    Bottleneck,
    Concat,
    Conv,
    DetectionModel,
    Head,
    Wrapper,
    gather_cells,
)


def _stages(x: Tensor, chain: Iterable[nn.Module]) -> Iterator[Tensor]:
    """The input of a chain of layers, and the output of each."""
    return accumulate(chain, lambda y, layer: cast(Tensor, layer(y)), initial=x)


class C2f(nn.Module):
    """Cross-stage partial block: half of the channels pass through a chain of layers, and the
    result has both halves and the output of every layer."""

    cv1: Conv
    cv2: Conv
    m: nn.ModuleList

    def forward(self, x: Tensor) -> Tensor:
        kept, chained = self.cv1(x).chunk(2, 1)
        return cast(Tensor, self.cv2(torch.cat((kept, *_stages(chained, self.m)), 1)))


class C2PSA(nn.Module):
    """Cross-stage partial block: half of the channels pass through blocks of attention."""

    cv1: Conv
    cv2: Conv
    m: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        kept, attended = self.cv1(x).chunk(2, 1)
        return cast(Tensor, self.cv2(torch.cat((kept, self.m(attended)), 1)))


class PSABlock(nn.Module):
    """Attention, then two convolutions; each is added to its input if `add` is true."""

    attn: Attention
    ffn: nn.Sequential
    add: bool

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.attn, self.ffn):
            y = cast(Tensor, part(x))
            x = x + y if self.add else y
        return x


class Attention(nn.Module):
    """Self-attention between the pixels of a map, with a depthwise convolution of the values as
    their position ("YOLOv10", section 3.2).

    The channels of `qkv` are those of the first head, then those of the next; each has its query
    and its key of `key_dim` channels, and its value of `head_dim`.
    """

    num_heads: int
    key_dim: int
    head_dim: int
    scale: float
    qkv: Conv
    pe: Conv
    proj: Conv

    def forward(self, x: Tensor) -> Tensor:
        _, _, rows, columns = x.shape
        heads = self.qkv(x).flatten(2).unflatten(1, (self.num_heads, -1))  # [B, heads, C, pixels]
        sizes = (self.key_dim, self.key_dim, self.head_dim)
        queries, keys, values = heads.split(sizes, 2)
        weights = (keys.transpose(2, 3) @ queries * self.scale).softmax(2)  # over the keys
        attended, values = (
            part.flatten(1, 2).unflatten(2, (rows, columns)) for part in (values @ weights, values)
        )
        return cast(Tensor, self.proj(attended + self.pe(values)))


class SPPF(layers.SPPF):
    """Spatial pyramid pooling with `n` max-pools; the input is added to the result if `add`."""

    # Older files state neither.
    n = 3
    add = False

    def forward(self, x: Tensor) -> Tensor:
        stages = _stages(self.cv1(x), repeat(self.m, self.n))
        y = cast(Tensor, self.cv2(torch.cat([*stages], 1)))
        return x + y if self.add else y


class DFL(nn.Module):
    """The expectation of a distribution over the numbers that `conv` has as its weights."""

    conv: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """[..., numbers] -> [...]"""
        # The numbers as a matrix. With a vector, or with a product and a sum, ONNX Runtime 1.31 is
        # slower, and fails or answers in a wrong shape if there are no rows.
        return (x.softmax(-1) @ self.conv.weight.flatten()[:, None]).squeeze(-1)


class Detect(Head):
    """The anchor-free head: for each feature map, convolutions for boxes and for classes.

    A box is given by the distances of its left, top, right and bottom side from the centre of its
    cell, in units of the stride. Each is the expectation of a distribution over 0 ... reg_max - 1
    ("Generalized Focal Loss", section 3.2). There is no objectness; it is 1.
    """

    branches = ("cv2", "cv3")
    decoding = ("dfl", "stride")

    reg_max: int  # numbers over which a side is distributed
    cv2: nn.ModuleList  # boxes, 4 reg_max channels
    cv3: nn.ModuleList  # classes, nc channels
    dfl: DFL

    def _rows(self, level: int, x: Tensor) -> Tensor:
        cells = torch.arange(x.shape[2] * x.shape[3], device=x.device)
        boxes, classes = (self._branch(name, level, x) for name in self.branches)
        return self._decoded(level, boxes, classes, self._centres(cells, x.shape[3]))

    def _rows_above(self, level: int, x: Tensor, conf_thres: Tensor) -> tuple[Tensor, Tensor]:
        boxes, classes = (getattr(self, name)[level](x) for name in self.branches)
        over = classes.flatten(2).amax(1).sigmoid() > conf_thres[:, None]
        image, cell = over.nonzero(as_tuple=True)
        boxes = gather_cells(boxes, image, 0, 4 * self.reg_max, cell)
        classes = gather_cells(classes, image, 0, self.nc, cell)
        return image, self._decoded(level, boxes, classes, self._centres(cell, x.shape[3]))

    def _branch(self, name: str, level: int, x: Tensor) -> Tensor:
        """[B, cells, channels]"""
        return cast(Tensor, getattr(self, name)[level](x).flatten(2).transpose(1, 2))

    @staticmethod
    def _centres(cells: Tensor, columns: int) -> Tensor:
        """The centres of cells by their number, [n, 2]."""
        row = torch.div(cells, columns, rounding_mode="floor")
        return torch.stack((cells - row * columns, row), 1) + 0.5

    def _decoded(self, level: int, boxes: Tensor, classes: Tensor, centres: Tensor) -> Tensor:
        """Decode rows [..., 5 + nc].

        Args:
            boxes: [..., 4 reg_max], logits of the distributions.
            classes: [..., nc], logits.
            centres: [n, 2], column and row.
        """
        # Without -1, which ONNX cannot infer if there are no rows.
        distributions = boxes.unflatten(-1, (4, self.reg_max))  # type: ignore[no-untyped-call]
        before, after = self.dfl(distributions).split(2, -1)
        centres = centres + (after - before) / 2
        box = torch.cat((centres, before + after), -1) * float(self.stride[level])
        with_objectness = functional.pad(box, (0, 1), value=1.0)
        return torch.cat((with_objectness, classes.sigmoid()), -1)


_OURS: dict[str, dict[str, type[nn.Module]]] = {
    "block": {
        "Attention": Attention,
        "Bottleneck": Bottleneck,
        "C2PSA": C2PSA,
        "C2f": C2f,
        "C3": C3,
        "C3k": C3,
        "C3k2": C2f,
        "DFL": DFL,
        "PSABlock": PSABlock,
        "SPPF": SPPF,
    },
    "conv": {"Concat": Concat, "Conv": Conv, "DWConv": Conv},
    "head": {"Detect": Detect},
}

LAYERS: dict[str, type[nn.Module]] = {
    "ultralytics.nn.tasks.DetectionModel": DetectionModel,
    "ultralytics.models.yolo.model.YOLO": Wrapper,
    "ultralytics.nn.autobackend.AutoBackend": Wrapper,
    "ultralytics.utils.torch_utils.ModelEMA": Wrapper,
    "ultralytics.yolo.engine.model.YOLO": Wrapper,
    "ultralytics.yolo.utils.torch_utils.ModelEMA": Wrapper,
    **{
        f"ultralytics.nn.modules.{module}{name}": cls
        for part, classes in _OURS.items()
        for name, cls in classes.items()
        # In the first releases, one module had all layers.
        for module in (f"{part}.", "")
    },
}
KNOWN_LAYERS = {**layers.LAYERS, **LAYERS}
