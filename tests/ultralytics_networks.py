"""Networks as the `ultralytics` package pickles them, and what they compute.

The plans are those of the published descriptions of YOLOv5u, YOLOv8 and YOLO11; the published
numbers of parameters show whether they are. `expected` computes with arithmetic of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from foreign_layers import conv, original, ran
from torch import Tensor, nn

MODULES = "ultralytics.nn.modules."
BINS = 16  # numbers over which the distance of a side is distributed
Source = int | list[int]


# ---------------------------------------------------------------------------------------------
# Layers


def unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, **options: Any) -> Any:
    """A convolution, its batch norm, and SiLU."""
    return conv(inputs, outputs, kernel, stride, name=f"{MODULES}conv.Conv", **options)


def linear(inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> Any:
    """The same without an activation."""
    return unit(inputs, outputs, kernel, groups=groups, act=nn.Identity())


def depthwise(channels: int) -> Any:
    return conv(channels, channels, 3, groups=channels, name=f"{MODULES}conv.DWConv")


def block(name: str, **attributes: Any) -> Any:
    return original(f"{MODULES}block.{name}", **attributes)


def bottleneck(channels: int, add: bool, *, first: int = 3, share: float = 1.0) -> Any:
    inner = int(channels * share)
    return block(
        "Bottleneck", cv1=unit(channels, inner, first), cv2=unit(inner, channels, 3), add=add
    )


def c3(name: str, inputs: int, outputs: int, count: int, add: bool, first: int) -> Any:
    inner = outputs // 2
    return block(
        name,
        cv1=unit(inputs, inner),
        cv2=unit(inputs, inner),
        cv3=unit(2 * inner, outputs),
        m=nn.Sequential(*(bottleneck(inner, add, first=first) for _ in range(count))),
    )


def c2f(name: str, inputs: int, outputs: int, inner: int, middle: Sequence[Any]) -> Any:
    return block(
        name,
        c=inner,
        cv1=unit(inputs, 2 * inner),
        cv2=unit((2 + len(middle)) * inner, outputs),
        m=nn.ModuleList(middle),
    )


def c3k2(inputs: int, outputs: int, count: int, deep: bool, share: float) -> Any:
    inner = int(outputs * share)
    middle = [
        c3("C3k", inner, inner, 2, True, 3) if deep else bottleneck(inner, True, share=0.5)
        for _ in range(count)
    ]
    return c2f("C3k2", inputs, outputs, inner, middle)


def sppf(inputs: int, outputs: int, **attributes: Any) -> Any:
    inner = inputs // 2
    return block(
        "SPPF",
        cv1=unit(inputs, inner),
        cv2=unit((1 + attributes.get("n", 3)) * inner, outputs),
        m=nn.MaxPool2d(5, 1, 2),
        **attributes,
    )


def attention(channels: int, heads: int) -> Any:
    each = channels // heads
    key = each // 2
    return block(
        "Attention",
        num_heads=heads,
        head_dim=each,
        key_dim=key,
        scale=key**-0.5,
        qkv=linear(channels, channels + 2 * heads * key),
        proj=linear(channels, channels),
        pe=linear(channels, channels, 3, groups=channels),
    )


def psa_block(channels: int, heads: int, add: bool = True) -> Any:
    ffn = nn.Sequential(unit(channels, 2 * channels), linear(2 * channels, channels))
    return block("PSABlock", attn=attention(channels, heads), ffn=ffn, add=add)


def c2psa(channels: int, count: int) -> Any:
    inner = channels // 2
    heads = max(inner // 64, 1)
    return block(
        "C2PSA",
        c=inner,
        cv1=unit(channels, 2 * inner),
        cv2=unit(2 * inner, channels),
        m=nn.Sequential(*(psa_block(inner, heads) for _ in range(count))),
    )


def detect(
    channels: Sequence[int], strides: Sequence[int], classes: int, *, light: bool = False
) -> Any:
    """A head as a trained checkpoint holds it.

    Args:
        light: as in YOLO11, whose branch for classes has depthwise convolutions.
    """
    boxes = max(16, channels[0] // 4, 4 * BINS)
    scores = max(channels[0], min(classes, 100))

    def class_branch(inputs: int) -> nn.Sequential:
        last = nn.Conv2d(scores, classes, 1)
        if not light:
            return nn.Sequential(unit(inputs, scores, 3), unit(scores, scores, 3), last)
        first = nn.Sequential(depthwise(inputs), unit(inputs, scores))
        return nn.Sequential(first, nn.Sequential(depthwise(scores), unit(scores, scores)), last)

    numbers = nn.Conv2d(BINS, 1, 1, bias=False).requires_grad_(False)
    numbers.weight.data = torch.arange(BINS, dtype=torch.float).view(1, BINS, 1, 1)
    return original(
        f"{MODULES}head.Detect",
        nc=classes,
        nl=len(channels),
        no=classes + 4 * BINS,
        reg_max=BINS,
        stride=torch.tensor([float(stride) for stride in strides]).half(),
        inplace=True,
        anchors=torch.zeros(2, 84),
        strides=torch.zeros(1, 84),
        shape=torch.Size([1, 3, 64, 64]),
        cv2=nn.ModuleList(
            nn.Sequential(unit(c, boxes, 3), unit(boxes, boxes, 3), nn.Conv2d(boxes, 4 * BINS, 1))
            for c in channels
        ),
        cv3=nn.ModuleList(class_branch(c) for c in channels),
        dfl=block("DFL", conv=numbers, c1=BINS),
    )


def concat() -> Any:
    return original(f"{MODULES}conv.Concat", d=1)


def double() -> nn.Module:
    return nn.Upsample(None, 2.0, "nearest")


def vary(layer: nn.Module, gain: float = 1.5) -> None:
    """Give a layer weights with which its answer depends on the image even behind many layers.

    With PyTorch's own, a deep network answers the same whatever it sees. Each filter's weights have
    a sum of 0, as inputs have a mean, and a variance that nearly makes up for what SiLU takes.
    Those of the last convolutions are less, for logits of moderate size.

    Args:
        gain: with more, a large network magnifies rounding errors.
    """
    for one in layer.modules():
        if isinstance(one, nn.Conv2d) and one.weight.requires_grad:
            weight = one.weight.data
            scale = gain if one.bias is None else 0.2
            nn.init.normal_(weight, std=scale / weight[0].numel() ** 0.5)
            weight -= weight.mean((1, 2, 3), keepdim=True)
        elif isinstance(one, nn.BatchNorm2d):
            for tensor in (one.running_mean, one.bias):
                nn.init.uniform_(tensor, -0.3, 0.3)  # type: ignore[arg-type]
            for tensor in (one.running_var, one.weight):
                nn.init.uniform_(tensor, 0.7, 1.3)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------
# Networks


def network(
    *steps: tuple[Source, Any], names: Sequence[str] = ("a", "b"), gain: float = 1.5
) -> Any:
    """A network of layers, each with its sources; the last one is a head."""
    for _, layer in steps:
        vary(layer, gain)
    save = set()
    for index, (source, layer) in enumerate(steps):
        layer.i, layer.f, layer.type, layer.np = index, source, "layer", 0
        save |= {j % index for j in ([source] if isinstance(source, int) else source) if j != -1}
    return original(
        "ultralytics.nn.tasks.DetectionModel",
        model=nn.Sequential(*(layer for _, layer in steps)),
        save=sorted(save),
        names=dict(enumerate(names)),
        nc=len(names),
        yaml={"nc": len(names), "backbone": [[-1, 1, "Conv", [64, 3, 2]]], "head": []},
        args={"task": "detect", "imgsz": 640, "conf": None},
        stride=torch.tensor([8.0, 16.0, 32.0]),
        inplace=True,
        criterion=None,
    )


@dataclass(frozen=True)
class Size:
    """A size of a family.

    Attributes:
        depth, width, widest: factors of the plan, and the limit of its channels.
        millions: published number of parameters with 80 classes, batch norms folded.
    """

    depth: float
    width: float
    widest: int
    millions: float


SIZES: dict[str, dict[str, Size]] = {
    "yolov5u": {
        "n": Size(0.33, 0.25, 1024, 2.6),
        "s": Size(0.33, 0.50, 1024, 9.1),
        "m": Size(0.67, 0.75, 1024, 25.1),
        "l": Size(1.00, 1.00, 1024, 53.2),
        "x": Size(1.33, 1.25, 1024, 97.2),
    },
    "yolov5u-p6": {
        "n": Size(0.33, 0.25, 1024, 4.3),
        "s": Size(0.33, 0.50, 1024, 15.3),
        "m": Size(0.67, 0.75, 1024, 41.2),
        "l": Size(1.00, 1.00, 1024, 86.1),
        "x": Size(1.33, 1.25, 1024, 155.4),
    },
    "yolov8": {
        "n": Size(0.33, 0.25, 1024, 3.2),
        "s": Size(0.33, 0.50, 1024, 11.2),
        "m": Size(0.67, 0.75, 768, 25.9),
        "l": Size(1.00, 1.00, 512, 43.7),
        "x": Size(1.00, 1.25, 512, 68.2),
    },
    "yolo11": {
        "n": Size(0.50, 0.25, 1024, 2.6),
        "s": Size(0.50, 0.50, 1024, 9.4),
        "m": Size(0.50, 1.00, 512, 20.1),
        "l": Size(1.00, 1.00, 512, 25.3),
        "x": Size(1.00, 1.50, 512, 56.9),
    },
}
# Rows are source, kind, channels, and options; as many blocks as the depth says. The layers of the
# path down are written once for every stride, and those of the path back up and down likewise.
BACKBONES = {
    "yolov5u": "Stem 64 | Down 128 | C3 128 3 | Down 256 | C3 256 6 | Down 512 | C3 512 9"
    " | Down 1024 | C3 1024 3 | SPPF 1024",
    "yolov5u-p6": "Stem 64 | Down 128 | C3 128 3 | Down 256 | C3 256 6 | Down 512 | C3 512 9"
    " | Down 768 | C3 768 3 | Down 1024 | C3 1024 3 | SPPF 1024",
    "yolov8": "Down 64 | Down 128 | C2f 128 3 | Down 256 | C2f 256 6 | Down 512 | C2f 512 6"
    " | Down 1024 | C2f 1024 3 | SPPF 1024",
    "yolo11": "Down 64 | Down 128 | C3k2 256 2 .25 | Down 256 | C3k2 512 2 .25 | Down 512"
    " | C3k2d 512 2 | Down 1024 | C3k2d 1024 2 | SPPF 1024 | C2PSA 1024 2",
}
NECKS = {
    "yolov5u": "Flat 512 | Up | Cat 6 | C3 512 3 | Flat 256 | Up | Cat 4 | C3 256 3 | Down 256"
    " | Cat 14 | C3 512 3 | Down 512 | Cat 10 | C3 1024 3 | Detect 17 20 23",
    "yolov5u-p6": "Flat 768 | Up | Cat 8 | C3 768 3 | Flat 512 | Up | Cat 6 | C3 512 3 | Flat 256"
    " | Up | Cat 4 | C3 256 3 | Down 256 | Cat 20 | C3 512 3 | Down 512 | Cat 16 | C3 768 3"
    " | Down 768 | Cat 12 | C3 1024 3 | Detect 23 26 29 32",
    "yolov8": "Up | Cat 6 | C2f 512 3 | Up | Cat 4 | C2f 256 3 | Down 256 | Cat 12 | C2f 512 3"
    " | Down 512 | Cat 9 | C2f 1024 3 | Detect 15 18 21",
    "yolo11": "Up | Cat 6 | C3k2 512 2 | Up | Cat 4 | C3k2 256 2 | Down 256 | Cat 13 | C3k2 512 2"
    " | Down 512 | Cat 10 | C3k2d 1024 2 | Detect 16 19 22",
}


def build(family: str, letter: str, names: Sequence[str] = ("a", "b")) -> Any:
    """A network of this family and size with random weights."""
    size = SIZES[family][letter]
    gain = 1.4 if "yolov5u" in family and letter in "lx" else 1.5
    return sized(family, size, names, deep=letter in "mlx", gain=gain)


def sized(
    family: str, size: Size, names: Sequence[str], *, deep: bool = False, gain: float = 1.5
) -> Any:
    """The same of any size.

    Args:
        deep: YOLO11's larger sizes have blocks of blocks everywhere.
        gain: as of `vary`.
    """
    steps: list[tuple[Source, Any]] = []
    channels: list[int] = []
    for backbone, plan in ((True, BACKBONES[family]), (False, NECKS[family])):
        for words in (row.split() for row in plan.split("|")):
            kind, numbers = words[0], [float(word) for word in words[1:]]
            sources = [int(number) for number in numbers]
            if kind == "Detect":
                read = [channels[j] for j in sources]
                strides = [2**k for k in range(3, 3 + len(read))]
                head = detect(read, strides, len(names), light=family == "yolo11")
                steps.append((list(sources), head))
            elif kind == "Cat":
                steps.append(([-1, sources[0]], concat()))
                channels.append(channels[-1] + channels[sources[0]])
            elif kind == "Up":
                steps.append((-1, double()))
                channels.append(channels[-1])
            else:
                inputs = channels[-1] if channels else 3
                outputs = math.ceil(min(numbers[0], size.widest) * size.width / 8) * 8
                count = max(round(numbers[1] * size.depth), 1) if len(numbers) > 1 else 1
                share = numbers[2] if len(numbers) > 2 else 0.5
                layer = made(kind, inputs, outputs, count, share, shortcut=backbone, deep=deep)
                steps.append((-1, layer))
                channels.append(outputs)
    return network(*steps, names=names, gain=gain)


def made(
    kind: str,
    inputs: int,
    outputs: int,
    count: int,
    share: float,
    *,
    shortcut: bool,
    deep: bool,
) -> Any:
    if kind == "Stem":
        return unit(inputs, outputs, 6, 2, padding=2)
    if kind in ("Down", "Flat"):
        return unit(inputs, outputs, *((3, 2) if kind == "Down" else (1, 1)))
    if kind == "C3":
        return c3("C3", inputs, outputs, count, shortcut, 1)
    if kind == "C2f":
        inner = outputs // 2
        middle = [bottleneck(inner, shortcut) for _ in range(count)]
        return c2f("C2f", inputs, outputs, inner, middle)
    if kind.startswith("C3k2"):
        return c3k2(inputs, outputs, count, deep or kind == "C3k2d", share)
    if kind == "SPPF":
        return sppf(inputs, outputs)
    assert kind == "C2PSA"
    return c2psa(outputs, count)


def parameters(model: nn.Module) -> int:
    """Their number, a batch norm and its convolution counted as a convolution with a bias."""
    norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm2d)]
    total = sum(one.numel() for one in model.parameters())
    return total - sum(one.num_features for one in norms)


# ---------------------------------------------------------------------------------------------
# What they compute


def expected(layer: Any, x: Any) -> Any:
    """What a layer makes of its input, or a sequence of layers."""
    kind = type(layer).__name__
    if kind in ("Sequential", "Conv2d", "Identity", "Upsample", "Concat"):
        return _plain(kind, layer, x)
    if kind in ("Conv", "DWConv"):
        return ran(layer, x)
    if kind == "Bottleneck":
        y = ran(layer.cv2, ran(layer.cv1, x))
        return x + y if layer.add else y
    if kind in ("C3", "C3k"):
        parts = [expected(layer.m, ran(layer.cv1, x)), ran(layer.cv2, x)]
        return ran(layer.cv3, torch.cat(parts, 1))
    if kind in ("C2f", "C3k2", "C2PSA"):
        both = ran(layer.cv1, x)
        parts = [both[:, : layer.c], both[:, layer.c :]]
        if kind == "C2PSA":
            parts[1] = expected(layer.m, parts[1])
        else:
            for inner in layer.m:
                parts.append(expected(inner, parts[-1]))
        return ran(layer.cv2, torch.cat(parts, 1))
    if kind == "SPPF":  # n pools of 5 pixels in a row are pools of 5, 9, 13 ...
        y = ran(layer.cv1, x)
        sides = [5 + 4 * k for k in range(getattr(layer, "n", 3))]
        pools = [F.max_pool2d(y, side, 1, side // 2) for side in sides]
        y = ran(layer.cv2, torch.cat([y, *pools], 1))
        return x + y if getattr(layer, "add", False) else y
    if kind == "PSABlock":
        for part in (layer.attn, layer.ffn):
            y = expected(part, x)
            x = x + y if layer.add else y
        return x
    assert kind == "Attention", kind
    return _attended(layer, x)


def _plain(kind: str, layer: Any, x: Any) -> Any:
    if kind == "Sequential":
        for inner in layer:
            x = expected(inner, x)
        return x
    if kind == "Conv2d":
        return F.conv2d(x, layer.weight, layer.bias)
    if kind == "Upsample":
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return torch.cat(x, 1) if kind == "Concat" else x


def _attended(layer: Any, x: Tensor) -> Tensor:
    """Attention, computed separately for each head and each pixel that asks."""
    batch, _, rows, columns = x.shape
    channels = ran(layer.qkv, x).reshape(batch, -1, rows * columns)
    each = 2 * layer.key_dim + layer.head_dim
    found, values = [], []
    for head in range(layer.num_heads):
        own = channels[:, head * each : (head + 1) * each]
        query = own[:, : layer.key_dim]
        key = own[:, layer.key_dim : 2 * layer.key_dim]
        value = own[:, 2 * layer.key_dim :]
        answers = []
        for pixel in range(rows * columns):
            score = (query[:, :, pixel, None] * key).sum(1) / layer.key_dim**0.5
            weight = torch.exp(score - score.amax(1, keepdim=True))
            weight = weight / weight.sum(1, keepdim=True)
            answers.append((value * weight[:, None]).sum(2))
        found.append(torch.stack(answers, 2))
        values.append(value)
    whole, plain = (
        torch.cat(parts, 1).reshape(batch, -1, rows, columns) for parts in (found, values)
    )
    return ran(layer.proj, whole + ran(layer.pe, plain))


def decoded(head: Any, maps: Sequence[Tensor]) -> Tensor:
    """The rows of feature maps, from the corners of each box."""
    found = []
    for level, x in enumerate(maps):
        batch, _, rows, columns = x.shape
        stride = float(head.stride[level])
        boxes, classes = (expected(branch[level], x) for branch in (head.cv2, head.cv3))
        logits = boxes.reshape(batch, 4, BINS, rows, columns)
        chances = torch.exp(logits - logits.amax(2, keepdim=True))
        chances = chances / chances.sum(2, keepdim=True)
        sides = sum(number * chances[:, :, number] for number in range(BINS))
        assert isinstance(sides, Tensor)
        x_centre = torch.arange(columns) + 0.5
        y_centre = (torch.arange(rows) + 0.5)[:, None]
        x1, y1 = (x_centre - sides[:, 0]) * stride, (y_centre - sides[:, 1]) * stride
        x2, y2 = (x_centre + sides[:, 2]) * stride, (y_centre + sides[:, 3]) * stride
        box = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, torch.ones_like(x1)], 1)
        scores = 1 / (1 + torch.exp(-classes))
        found.append(torch.cat([box, scores], 1).flatten(2).transpose(1, 2))
    return torch.cat(found, 1)


def answer(model: Any, images: Tensor) -> Tensor:
    """What a network answers: rows [B, N, 5 + C]."""
    x: Any = images
    kept: list[Any] = []
    *body, head = model.model
    for layer in body:
        sources = layer.f if isinstance(layer.f, list) else [layer.f]
        read = [x if j == -1 else kept[j] for j in sources]
        x = expected(layer, read if isinstance(layer.f, list) else read[0])
        kept.append(x)
    return decoded(head, [kept[j] for j in head.f])


def without_norms(model: Any) -> Iterator[Any]:
    """Fold the batch norms of a network's convolutions, as the package does before inference."""
    for layer in model.modules():
        if hasattr(layer, "bn"):
            layer.conv = nn.utils.fusion.fuse_conv_bn_eval(layer.conv.eval(), layer.bn.eval())
            del layer.bn
            yield layer
