"""The network layers that a YOLOv5 checkpoint names, with `forward` for the attributes it carries.

A checkpoint holds the whole module tree, including the trained attributes of every layer. These
classes therefore have no constructors: the unpickler creates an object and fills in its state, and
only `forward` is defined here. Names and attributes are those of the file format of YOLOv5 v3.0 to
v7.0. `LAYERS` maps the names in the file to the classes; add a line there to support another layer.
`anchor_free` has the layers of later networks.

Shapes are NCHW throughout.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

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
    """Two convolutions; the input is added to the result if `add` is true."""

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
    m: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1)))


class BottleneckCSP(nn.Module):
    """The `C3` up to release 3.1: plain convolutions, and one batch norm over both branches."""

    cv1: Conv
    cv2: nn.Conv2d
    cv3: nn.Conv2d
    cv4: Conv
    bn: nn.BatchNorm2d
    act: nn.Module
    m: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)
        return cast(Tensor, self.cv4(self.act(self.bn(both))))


class TransformerLayer(nn.Module):
    """Self-attention, then two linear maps, each added to its input; [N, B, C] -> [N, B, C]."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    ma: nn.MultiheadAttention
    fc1: nn.Linear
    fc2: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        # Request the weights of every head, so that `_checkpoint` can count them.
        attended, _ = self.ma(self.q(x), self.k(x), self.v(x), average_attn_weights=False)
        x = x + attended
        return x + cast(Tensor, self.fc2(self.fc1(x)))


class TransformerBlock(nn.Module):
    """Transformer layers over the pixels of a map, with a linear map of each as its position."""

    conv: Conv | None  # if the number of channels changes
    linear: nn.Linear
    tr: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            x = self.conv(x)
        pixels = x.flatten(2).permute(2, 0, 1)
        pixels = cast(Tensor, self.tr(pixels + self.linear(pixels)))
        return pixels.permute(1, 2, 0).reshape(x.shape)


class GhostConv(nn.Module):
    """A convolution, with a cheap convolution of its output concatenated to it."""

    cv1: Conv
    cv2: Conv

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        return torch.cat((x, self.cv2(x)), 1)


class GhostBottleneck(nn.Module):
    """A chain of ghost convolutions, added to a shortcut."""

    conv: nn.Sequential
    shortcut: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x) + self.shortcut(x))


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
    """The stem up to release 5.0: gathers every 2x2 square of pixels into one pixel with 4 times
    the channels, first along the height, then along the width, and convolves the result."""

    conv: Conv

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return cast(Tensor, self.conv(torch.cat(parts, 1)))


class Contract(nn.Module):
    """Gathers every `gain` x `gain` square into one pixel: C channels of its first pixel, then C of
    the next, row by row."""

    gain: int

    def forward(self, x: Tensor) -> Tensor:
        # `pixel_unshuffle` has another order of channels, and exports with a fixed batch.
        batch, channels, rows, columns = x.shape
        g = self.gain
        squares = x.view(batch, channels, rows // g, g, columns // g, g)
        return squares.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


class Expand(nn.Module):
    """The reverse of `Contract`."""

    gain: int

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, rows, columns = x.shape
        g = self.gain
        squares = x.view(batch, g, g, channels // g**2, rows, columns)
        return squares.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class ZeroPad2d(nn.Module):
    """Padding with zeros."""

    padding: tuple[int, int, int, int]  # left, right, top, bottom

    def forward(self, x: Tensor) -> Tensor:
        # Instead of torch's padding: ONNX Runtime 1.31 pads with -inf if a max-pool follows.
        left, right, top, bottom = self.padding
        before, after = (x.new_zeros(*x.shape[:3], width) for width in (left, right))
        x = torch.cat((before, x, after), 3)
        before, after = (x.new_zeros(*x.shape[:2], height, x.shape[3]) for height in (top, bottom))
        return torch.cat((before, x, after), 2)


class Concat(nn.Module):
    """Concatenation of several layers' outputs along dimension `d`."""

    d: int

    def forward(self, xs: list[Tensor]) -> Tensor:
        return torch.cat(xs, self.d)


class Sum(nn.Module):
    """The sum of several layers' outputs; if `weight` is true, all but the first are multiplied by
    a trained weight in 0..2."""

    weight: bool
    w: Tensor  # [n - 1], only if `weight` is true

    def forward(self, xs: list[Tensor]) -> Tensor:
        total, *others = xs
        for index, x in enumerate(others):
            total = total + (x * (2 * self.w[index].sigmoid()) if self.weight else x)
        return total


class FReLU(nn.Module):
    """The elementwise maximum of the input and a depthwise convolution of it."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.bn(self.conv(x)))


class AconC(nn.Module):
    """A smooth maximum of p1 x and p2 x, with a trained `beta` as its sharpness."""

    p1: Tensor  # [1, C, 1, 1]
    p2: Tensor
    beta: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return _smooth_maximum(x, self.p1, self.p2, self.beta)


class MetaAconC(nn.Module):
    """As `AconC`, with a sharpness computed from the mean of each channel."""

    p1: Tensor  # [1, C, 1, 1]
    p2: Tensor
    fc1: nn.Conv2d
    fc2: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        beta = self.fc2(self.fc1(x.mean((2, 3), keepdim=True))).sigmoid()
        return _smooth_maximum(x, self.p1, self.p2, beta)


def _smooth_maximum(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Tensor:
    above = (p1 - p2) * x
    return above * (beta * above).sigmoid() + p2 * x


class Head(nn.Module):
    """The last layer of a detection network, which computes rows from feature maps."""

    branches: ClassVar[tuple[str, ...]]  # convolutions for each map, whose outputs are decoded
    decoding: ClassVar[tuple[str, ...]]  # what decodes them

    nc: int  # classes
    stride: Tensor  # [nl]

    def forward(self, xs: list[Tensor]) -> Tensor:
        """Feature maps -> [B, N, 5 + nc]: cx, cy, w, h in pixels, objectness, class scores."""
        return torch.cat([self._rows(level, x) for level, x in enumerate(xs)], 1)

    def rows_above(self, xs: list[Tensor], conf_thres: Tensor) -> Tensor:
        """Feature maps, thresholds [B] -> [B, K, 5 + nc]: of each image the rows that can have a
        score over its threshold, in the same order, then zeros. Other rows are not decoded. K is
        the most rows of an image, and at least 1."""
        parts = [self._rows_above(level, x, conf_thres) for level, x in enumerate(xs)]
        image, rows = (torch.cat(part) for part in zip(*parts))
        of_image = (image[:, None] == torch.arange(conf_thres.shape[0])).to(torch.int32)
        place = of_image.cumsum(0).gather(1, image[:, None])[:, 0] - 1
        # The best class of no rows at all would have a wrong shape in ONNX Runtime.
        longest = of_image.sum(0).max().clamp(min=1)
        padded = rows.new_zeros((conf_thres.shape[0], longest, rows.shape[1]))  # type: ignore[arg-type]
        return padded.index_put((image, place.long()), rows)

    def _rows(self, level: int, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _rows_above(self, level: int, x: Tensor, conf_thres: Tensor) -> tuple[Tensor, Tensor]:
        """A feature map's rows over the thresholds [B]: the image of each [n], and [n, 5 + nc]."""
        raise NotImplementedError


def gather_cells(x: Tensor, image: Tensor, first: Tensor | int, count: int, cell: Tensor) -> Tensor:
    """Channels of some cells of a feature map [B, C, rows, columns] -> [n, count].

    Args:
        image, cell: of each result [n]; cells are counted row by row.
        first: the first of `count` channels.
    """
    channels = (image * x.shape[1] + first)[:, None] + torch.arange(count, device=x.device)
    # With one index into all values; with three, the exporter transposes the whole map first.
    return x.flatten()[channels * (x.shape[2] * x.shape[3]) + cell[:, None]]


class Detect(Head):
    """The head: one 1x1 convolution per feature map, decoded to boxes in model pixels.

    For a cell (i, j), stride s and anchor (aw, ah), with t the sigmoid of the convolution's output:
    cx = (2 tx - 0.5 + j) s, cy = (2 ty - 0.5 + i) s, w = (2 tw)^2 aw, h = (2 th)^2 ah
    (the decoding published with YOLOv5, "Architecture Summary", section 4.3 "Eliminate Grid
    Sensitivity"). `anchors` are stored in units of the stride.
    """

    branches = ("m",)
    decoding = ("anchors", "stride")

    no: int  # values per anchor: 5 + nc
    nl: int  # feature maps
    na: int  # anchors per cell
    m: nn.ModuleList
    anchors: Tensor  # [nl, na, 2]

    def _rows(self, level: int, x: Tensor) -> Tensor:
        x = self.m[level](x)
        batch, _, rows, cols = x.shape
        t = x.view(batch, self.na, self.no, rows, cols).permute(0, 1, 3, 4, 2).sigmoid()
        y, x_ = torch.meshgrid(
            torch.arange(rows, dtype=t.dtype, device=t.device),
            torch.arange(cols, dtype=t.dtype, device=t.device),
            indexing="ij",
        )
        cells = torch.stack((x_, y), 2).view(1, 1, rows, cols, 2)
        anchors = self._anchors(level).view(1, self.na, 1, 1, 2)
        return self._decoded(level, t, cells, anchors).view(batch, -1, self.no)

    def _rows_above(self, level: int, x: Tensor, conf_thres: Tensor) -> tuple[Tensor, Tensor]:
        x = self.m[level](x)
        batch, _, rows, cols = x.shape
        objectness = x.view(batch, self.na, self.no, rows * cols)[:, :, 4].sigmoid()
        over = objectness > conf_thres[:, None, None]
        image, anchor, cell = over.nonzero(as_tuple=True)
        t = gather_cells(x, image, anchor * self.no, self.no, cell).sigmoid()
        row = torch.div(cell, cols, rounding_mode="floor")
        cells = torch.stack((cell - row * cols, row), 1).to(t.dtype)
        return image, self._decoded(level, t, cells, self._anchors(level)[anchor])

    def _anchors(self, level: int) -> Tensor:
        """[na, 2] in pixels."""
        return self.anchors[level] * self.stride[level]

    def _decoded(self, level: int, t: Tensor, cells: Tensor, anchors: Tensor) -> Tensor:
        """Decode rows [..., 5 + nc].

        Args:
            t: [..., 5 + nc], sigmoids of a convolution's outputs.
            cells: [..., 2], column and row.
            anchors: [..., 2] in pixels.
        """
        xy, wh, scores = torch.split(t, [2, 2, self.nc + 1], -1)
        centres = (xy * 2 + (cells - 0.5)) * self.stride[level]
        return torch.cat((centres, (wh * 2) ** 2 * anchors, scores), -1)


class DetectionModel(nn.Module):
    """The whole network: layers run in order, each reading the earlier ones that its `f` names."""

    model: nn.Sequential
    save: list[int]
    names: list[str] | dict[int, str]

    @property
    def head(self) -> Head:
        return cast(Head, self.model[-1])

    def forward(self, images: Tensor) -> Tensor:
        """RGB images [B, 3, H, W] in 0..1 -> rows [B, N, 5 + nc] in model pixels."""
        return cast(Tensor, self.head(self.maps(images)))

    def maps(self, images: Tensor) -> list[Tensor]:
        """RGB images [B, 3, H, W] in 0..1 -> the feature maps that the head reads."""
        x: Tensor = images
        kept: list[Tensor | None] = []
        save = set(self.save)

        def read(source: int) -> Any:
            return x if source == -1 else kept[source]

        *body, head = self.model
        for layer in body:
            source = cast("int | list[int]", layer.f)
            x = layer(read(source) if isinstance(source, int) else [read(j) for j in source])
            kept.append(x if layer.i in save else None)
        return [read(j) for j in cast(list[int], head.f)]


class Wrapper(nn.Module):
    """A wrapper of a network, such as its attribute `model`; the wrapper is discarded."""


class CompiledNetwork(Wrapper):
    """That of `torch.compile`, which is pickled as a call, or with the attribute `_orig_mod`."""

    def __init__(self, network: object, *_: object) -> None:
        super().__init__()
        self.model = network


def _without_constructor(cls: type[nn.Module], **defaults: object) -> type[nn.Module]:
    """A layer of torch without its constructor, through which a file could allocate any memory.

    Args:
        defaults: values of attributes that older checkpoints lack.
    """

    def refuse(self: nn.Module, *arguments: object, **named: object) -> None:
        raise TypeError("layers are filled in, not constructed")

    return type(cls.__name__, (cls,), {"__init__": refuse, **defaults})


_TORCH = {
    cls: _without_constructor(cls)
    for cls in (
        nn.AvgPool2d,
        nn.BatchNorm2d,
        nn.Conv2d,
        nn.ConvTranspose2d,
        nn.Dropout,
        nn.ELU,
        nn.Identity,
        nn.LeakyReLU,
        nn.Linear,
        nn.MaxPool2d,
        nn.ModuleList,
        nn.PReLU,
        nn.ReLU,
        nn.ReLU6,
        nn.Sequential,
        nn.Sigmoid,
        nn.Tanh,
        nn.Upsample,
    )
} | {
    nn.GELU: _without_constructor(nn.GELU, approximate="none"),
    nn.Hardsigmoid: _without_constructor(nn.Hardsigmoid, inplace=False),
    nn.Hardswish: _without_constructor(nn.Hardswish, inplace=False),
    nn.Mish: _without_constructor(nn.Mish, inplace=False),
    nn.MultiheadAttention: _without_constructor(nn.MultiheadAttention, batch_first=False),
    nn.SiLU: _without_constructor(nn.SiLU, inplace=False),
}

LAYERS: dict[str, type[nn.Module]] = {
    **{f"{cls.__module__}.{cls.__name__}": ours for cls, ours in _TORCH.items()},
    # It averages over several processes in training; in inference it is a usual batch norm.
    "torch.nn.modules.batchnorm.SyncBatchNorm": _TORCH[nn.BatchNorm2d],
    "torch._dynamo.eval_frame.OptimizedModule": CompiledNetwork,
    "torch.nn.modules.padding.ZeroPad2d": ZeroPad2d,
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear": _TORCH[nn.Linear],
    "torch.nn.modules.linear._LinearWithBias": _TORCH[nn.Linear],
    "torch.nn.parallel.data_parallel.DataParallel": Wrapper,
    "torch.nn.parallel.distributed.DistributedDataParallel": Wrapper,
    "models.common.AutoShape": Wrapper,
    "models.common.Bottleneck": Bottleneck,
    "models.common.BottleneckCSP": BottleneckCSP,
    "models.common.C3": C3,
    "models.common.C3Ghost": C3,
    "models.common.C3SPP": C3,
    "models.common.C3TR": C3,
    "models.common.C3x": C3,
    "models.common.Concat": Concat,
    "models.common.Contract": Contract,
    "models.common.Conv": Conv,
    "models.common.CrossConv": Bottleneck,
    "models.common.DWConv": Conv,
    "models.common.DWConvTranspose2d": _TORCH[nn.ConvTranspose2d],
    "models.common.DetectMultiBackend": Wrapper,
    "models.common.Expand": Expand,
    "models.common.Focus": Focus,
    "models.common.GhostBottleneck": GhostBottleneck,
    "models.common.GhostConv": GhostConv,
    "models.common.SPP": SPP,
    "models.common.SPPF": SPPF,
    "models.common.TransformerBlock": TransformerBlock,
    "models.common.TransformerLayer": TransformerLayer,
    "models.common.autoShape": Wrapper,
    "models.experimental.C3": BottleneckCSP,  # in v3.0 and v3.1; later the name meant another layer
    "models.experimental.CrossConv": Bottleneck,
    "models.experimental.GhostBottleneck": GhostBottleneck,
    "models.experimental.GhostConv": GhostConv,
    "models.experimental.Sum": Sum,
    "models.yolo.Detect": Detect,
    "models.yolo.DetectionModel": DetectionModel,
    "models.yolo.Model": DetectionModel,
    "utils.activations.AconC": AconC,
    "utils.activations.FReLU": FReLU,
    "utils.activations.Hardswish": _TORCH[nn.Hardswish],
    "utils.activations.MemoryEfficientMish": _TORCH[nn.Mish],
    "utils.activations.MemoryEfficientSwish": _TORCH[nn.SiLU],
    "utils.activations.MetaAconC": MetaAconC,
    "utils.activations.Mish": _TORCH[nn.Mish],
    "utils.activations.SiLU": _TORCH[nn.SiLU],
    "utils.activations.Swish": _TORCH[nn.SiLU],
}
