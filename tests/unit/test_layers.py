"""Checkpoints of any release of YOLOv5: their layers, what is around them, and other files."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import functools
import os
import pathlib
import tempfile
import types
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from checkpoints import CHANNELS, chain, detect, model
from foreign_layers import ORIGINALS, changed, conv, norm, normed, original, ran, saved
from torch import Tensor, nn

from yolov5_build import (
    BuildError,
    Checkpoint,
    export_onnx,
    export_prefiltered,
    load_checkpoint,
    load_safetensors,
    save_safetensors,
)


def load(path: Path, network: Any) -> Checkpoint:
    """Save a network as a trainer does, and read it again."""
    content = {"epoch": -1, "best_fitness": np.float64(0.5), "model": network.half(), "ema": None}
    saved(path, content)
    network.float()  # rounded to FP16, like the network in the file
    return load_checkpoint(path)


# A layer from CHANNELS to CHANNELS channels, and a function that computes the expected result.
Pair = tuple[Any, Callable[[Tensor], Tensor]]


def plain_conv(name: str = "models.common.Conv", groups: int = 1) -> Pair:
    layer = conv(CHANNELS, CHANNELS, 3, groups=groups, name=name)
    return layer, lambda x: ran(layer, x)


def activation(act: nn.Module, expected: Callable[[Tensor], Tensor]) -> Pair:
    layer = conv(CHANNELS, CHANNELS, act=act)

    def run(x: Tensor) -> Tensor:
        layer.act = nn.Identity()
        return expected(ran(layer, x))

    return layer, run


def frelu() -> Pair:
    bn, inner = norm(CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, groups=CHANNELS, bias=False)
    act = original("utils.activations.FReLU", conv=inner, bn=bn)
    either = types.SimpleNamespace(conv=inner, bn=bn, act=nn.Identity())
    return activation(act, lambda x: torch.where((y := ran(either, x)) > x, y, x))


def acon() -> Pair:
    p1, p2, beta = (nn.Parameter(torch.randn(1, CHANNELS, 1, 1)) for _ in range(3))
    act = original("utils.activations.AconC", p1=p1, p2=p2, beta=beta)
    return activation(
        act, lambda x: (p1 - p2) * x / (1 + torch.exp(-beta * (p1 - p2) * x)) + p2 * x
    )


def meta_acon() -> Pair:
    p1, p2 = (nn.Parameter(torch.randn(1, CHANNELS, 1, 1)) for _ in range(2))
    fc1: Any = nn.Conv2d(CHANNELS, 16, 1)
    fc2: Any = nn.Conv2d(16, CHANNELS, 1)
    act = original("utils.activations.MetaAconC", p1=p1, p2=p2, fc1=fc1, fc2=fc2)

    def run(x: Tensor) -> Tensor:
        means = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
        hidden = means @ fc1.weight[:, :, 0, 0].T + fc1.bias
        beta = torch.sigmoid(hidden @ fc2.weight[:, :, 0, 0].T + fc2.bias)[..., None, None]
        return (p1 - p2) * x * torch.sigmoid(beta * (p1 - p2) * x) + p2 * x

    return activation(act, run)


def crossed(name: str, *, add: bool) -> Pair:
    first, second = conv(CHANNELS, 6, (1, 3)), conv(6, CHANNELS, (3, 1), groups=2)
    layer = original(name, cv1=first, cv2=second, add=add)
    return layer, lambda x: ran(second, ran(first, x)) + (x if add else 0)


def csp(name: str) -> Pair:
    first, last, act = conv(CHANNELS, 4), conv(8, CHANNELS), nn.LeakyReLU(0.1, inplace=True)
    side, after = nn.Conv2d(CHANNELS, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
    inner, bn = conv(4, 4, 3), norm(8)
    layer = original(
        name, cv1=first, cv2=side, cv3=after, cv4=last, bn=bn, act=act, m=nn.Sequential(inner)
    )

    def run(x: Tensor) -> Tensor:
        y = F.conv2d(ran(inner, ran(first, x)), after.weight)
        y = torch.cat([y, F.conv2d(x, side.weight)], 1)
        y = normed(bn, y)
        return ran(last, torch.where(y < 0, y * 0.1, y))

    return layer, run


def c3(name: str, middle: Any, expected: Callable[[Tensor], Tensor]) -> Pair:
    first, side, last = conv(CHANNELS, 4), conv(CHANNELS, 4), conv(8, CHANNELS)
    layer = original(name, cv1=first, cv2=side, cv3=last, m=middle)
    return layer, lambda x: ran(last, torch.cat([expected(ran(first, x)), ran(side, x)], 1))


def c3x() -> Pair:
    inner = [conv(4, 4, (1, 3)), conv(4, 4, (3, 1))]
    cross = original("models.experimental.CrossConv", cv1=inner[0], cv2=inner[1], add=True)
    return c3(
        "models.common.C3x", nn.Sequential(cross), lambda x: x + ran(inner[1], ran(inner[0], x))
    )


def c3spp() -> Pair:
    first, last = conv(4, 2), conv(6, 4)
    pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (3, 5))
    spp = original("models.common.SPP", cv1=first, cv2=last, m=pools)

    def run(x: Tensor) -> Tensor:
        x = ran(first, x)
        parts = [x, *(F.max_pool2d(x, k, 1, k // 2) for k in (3, 5))]
        return ran(last, torch.cat(parts, 1))

    return c3("models.common.C3SPP", spp, run)


def transformer(inputs: int, width: int, heads: int, layers: int) -> Pair:
    """Attention, computed separately for each head."""
    turn = conv(inputs, width) if inputs != width else None
    position = nn.Linear(width, width)
    blocks = []
    for _ in range(layers):
        linear = {k: nn.Linear(width, width, bias=False) for k in ("q", "k", "v", "fc1", "fc2")}
        attention = nn.MultiheadAttention(width, heads)
        nn.init.uniform_(attention.in_proj_bias)
        nn.init.uniform_(attention.out_proj.bias)
        blocks.append(original("models.common.TransformerLayer", **linear, ma=attention))
    tr = nn.Sequential(*blocks)
    block = original("models.common.TransformerBlock", conv=turn, linear=position, tr=tr, c2=width)

    def run(x: Tensor) -> Tensor:
        x = x if turn is None else ran(turn, x)
        rows = x.flatten(2).transpose(1, 2)  # [B, pixels, width]
        rows = rows + rows @ position.weight.T + position.bias
        for b in blocks:
            weights, biases = b.ma.in_proj_weight.chunk(3), b.ma.in_proj_bias.chunk(3)
            q, k, v = (
                rows @ own.weight.T @ w.T + bias
                for own, w, bias in zip((b.q, b.k, b.v), weights, biases)
            )
            step = width // heads
            found = []
            for h in range(heads):
                part = slice(h * step, (h + 1) * step)
                score = torch.exp(q[..., part] @ k[..., part].transpose(1, 2) / step**0.5)
                found.append(score / score.sum(2, keepdim=True) @ v[..., part])
            out = torch.cat(found, 2) @ b.ma.out_proj.weight.T + b.ma.out_proj.bias
            rows = rows + out
            rows = rows + rows @ b.fc1.weight.T @ b.fc2.weight.T
        return rows.transpose(1, 2).reshape(x.shape)

    return block, run


def c3tr() -> Pair:
    return c3("models.common.C3TR", *transformer(4, 4, 2, 2))


def ghost(inputs: int, outputs: int, name: str, act: bool = True) -> Pair:
    kind = None if act else nn.Identity()
    first = conv(inputs, outputs // 2, act=kind)
    cheap = conv(outputs // 2, outputs // 2, 5, groups=outputs // 2, act=kind)
    layer = original(name, cv1=first, cv2=cheap)
    return layer, lambda x: torch.cat([ran(first, x), ran(cheap, ran(first, x))], 1)


def ghost_bottleneck(width: int, where: str) -> Pair:
    name = f"models.{where}.GhostConv"
    (first, run_first), (last, run_last) = ghost(width, 2, name), ghost(2, width, name, act=False)
    layer = original(
        f"models.{where}.GhostBottleneck",
        conv=nn.Sequential(first, nn.Identity(), last),
        shortcut=nn.Identity(),
    )
    return layer, lambda x: run_last(run_first(x)) + x


def strided_ghost() -> Pair:
    """As it halves a map: depthwise convolutions in both ways; and doubled again, for its use."""
    (first, run_first), (last, run_last) = (
        ghost(CHANNELS, 4, "models.common.GhostConv"),
        ghost(4, CHANNELS, "models.common.GhostConv", act=False),
    )
    deep = conv(4, 4, 3, 2, groups=4, act=nn.Identity(), name="models.common.DWConv")
    wide = conv(CHANNELS, CHANNELS, 3, 2, groups=CHANNELS, act=nn.Identity())
    out = conv(CHANNELS, CHANNELS, act=nn.Identity())
    layer = original(
        "models.common.GhostBottleneck",
        conv=nn.Sequential(first, deep, last),
        shortcut=nn.Sequential(wide, out),
    )
    up = nn.Upsample(None, 2, "nearest")
    both = nn.Sequential(layer, up)

    def run(x: Tensor) -> Tensor:
        y = run_last(ran(deep, run_first(x))) + ran(out, ran(wide, x))
        return y.repeat_interleave(2, 2).repeat_interleave(2, 3)

    return both, run


def c3ghost() -> Pair:
    inner, run = ghost_bottleneck(4, "common")
    return c3("models.common.C3Ghost", nn.Sequential(inner), run)


def focus() -> Pair:
    """Of every 2x2 square: (0, 0), below, right, both; and doubled again."""
    inner = conv(4 * CHANNELS, CHANNELS)
    layer = nn.Sequential(original("models.common.Focus", conv=inner), nn.Upsample(scale_factor=2))

    def run(x: Tensor) -> Tensor:
        places = [(0, 0), (1, 0), (0, 1), (1, 1)]
        y = ran(inner, torch.cat([x[:, :, row::2, column::2] for row, column in places], 1))
        return y.repeat_interleave(2, 2).repeat_interleave(2, 3)

    return layer, run


def contract() -> Pair:
    after = conv(4 * CHANNELS, CHANNELS)
    layer = nn.Sequential(
        original("models.common.Contract", gain=2), after, nn.Upsample(scale_factor=2)
    )

    def run(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = torch.empty(b, 4 * c, h // 2, w // 2)
        for row in range(2):
            for column in range(2):
                for channel in range(c):
                    y[:, (2 * row + column) * c + channel] = x[:, channel, row::2, column::2]
        return ran(after, y).repeat_interleave(2, 2).repeat_interleave(2, 3)

    return layer, run


def expand() -> Pair:
    before, after = conv(CHANNELS, 12), conv(3, CHANNELS, 3, 2)
    layer = nn.Sequential(before, original("models.common.Expand", gain=2), after)

    def run(x: Tensor) -> Tensor:
        x = ran(before, x)
        b, _, h, w = x.shape
        y = torch.empty(b, 3, 2 * h, 2 * w)
        for row in range(2):
            for column in range(2):
                for channel in range(3):
                    y[:, channel, row::2, column::2] = x[:, (2 * row + column) * 3 + channel]
        return ran(after, y)

    return layer, run


def transposed(name: str) -> Pair:
    """Every value, times the kernel, is added around twice its place; and halved again."""
    groups = CHANNELS if "DW" in name else 1
    up = nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2, groups=groups)
    weight, bias = up.weight, up.bias
    if groups > 1:
        up = original(name, up)
    after = conv(CHANNELS, CHANNELS, 3, 2)

    def run(x: Tensor) -> Tensor:
        y = torch.empty(x.shape[0], CHANNELS, 2 * x.shape[2], 2 * x.shape[3])
        for row in range(2):
            for column in range(2):
                kernel = weight[:, :, row, column]
                kernel = torch.diag(kernel[:, 0]) if groups > 1 else kernel
                y[:, :, row::2, column::2] = torch.einsum("bchw,cd->bdhw", x, kernel)
        return ran(after, y + bias[:, None, None])  # type: ignore[index]

    return nn.Sequential(up, after), run


def tiny() -> Pair:
    """The uneven padding and pool of YOLOv3-tiny, then an average that keeps the size as well."""
    layer = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.MaxPool2d(2, 1),
        nn.Dropout(0.5),
        nn.AvgPool2d(3, 1, 1),
    )

    def run(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        padded = torch.zeros(b, c, h + 1, w + 1)
        padded[:, :, :h, :w] = x
        corners = [padded[:, :, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)]
        padded = torch.zeros(b, c, h + 2, w + 2)
        padded[:, :, 1:-1, 1:-1] = torch.stack(corners).amax(0)
        return sum(padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9  # type: ignore[return-value]

    return layer, run


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.log(1 + torch.exp(x)))


def hardswish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def old(layer: nn.Module, *missing: str) -> nn.Module:
    """Remove attributes that old versions of PyTorch do not set."""
    for name in missing:
        del layer.__dict__[name]
    return layer


# A new layer gets its line here.
PAIRS: dict[str, Callable[[], Pair]] = {
    "Conv": plain_conv,
    "DWConv": lambda: plain_conv("models.common.DWConv", CHANNELS),
    "yolov5.Conv": lambda: plain_conv("yolov5.models.common.Conv"),
    "BottleneckCSP": lambda: csp("models.common.BottleneckCSP"),
    "experimental.C3": lambda: csp("models.experimental.C3"),
    "CrossConv": lambda: crossed("models.common.CrossConv", add=True),
    "experimental.CrossConv": lambda: crossed("models.experimental.CrossConv", add=False),
    "C3x": c3x,
    "C3TR": c3tr,
    "C3SPP": c3spp,
    "C3Ghost": c3ghost,
    "TransformerBlock": lambda: transformer(CHANNELS, CHANNELS, 4, 1),
    "TransformerBlock.conv": lambda: transformer_between(),
    "GhostConv": lambda: ghost(CHANNELS, CHANNELS, "models.common.GhostConv"),
    "experimental.GhostConv": lambda: ghost(CHANNELS, CHANNELS, "models.experimental.GhostConv"),
    "GhostBottleneck": lambda: ghost_bottleneck(CHANNELS, "common"),
    "GhostBottleneck, strided": strided_ghost,
    "experimental.GhostBottleneck": lambda: ghost_bottleneck(CHANNELS, "experimental"),
    "Focus": focus,
    "Contract": contract,
    "Expand": expand,
    "DWConvTranspose2d": lambda: transposed("models.common.DWConvTranspose2d"),
    "ConvTranspose2d": lambda: transposed("torch.nn.ConvTranspose2d"),
    "ZeroPad2d": tiny,
    "FReLU": frelu,
    "AconC": acon,
    "MetaAconC": meta_acon,
    "Hardswish": lambda: activation(nn.Hardswish(), hardswish),
    "Hardswish 1.6": lambda: activation(old(nn.Hardswish(), "inplace"), hardswish),
    "utils.Hardswish": lambda: activation(original("utils.activations.Hardswish"), hardswish),
    "utils.SiLU": lambda: activation(original("utils.activations.SiLU"), lambda x: x * sigmoid(x)),
    "Swish": lambda: activation(original("utils.activations.Swish"), lambda x: x * sigmoid(x)),
    "utils.Mish": lambda: activation(original("utils.activations.Mish"), mish),
    "MemoryEfficientMish": lambda: activation(
        original("utils.activations.MemoryEfficientMish"), mish
    ),
    "Mish": lambda: activation(nn.Mish(), mish),
    "LeakyReLU": lambda: activation(nn.LeakyReLU(0.2), lambda x: torch.where(x < 0, 0.2 * x, x)),
    "ReLU": lambda: activation(nn.ReLU(inplace=True), lambda x: x.clamp(0)),
    "ReLU6": lambda: activation(nn.ReLU6(), lambda x: x.clamp(0, 6)),
    "ELU": lambda: activation(nn.ELU(), lambda x: torch.where(x < 0, torch.exp(x) - 1, x)),
    "GELU 1.6": lambda: activation(
        old(nn.GELU(), "approximate"), lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2
    ),
    "PReLU": lambda: activation(nn.PReLU(init=0.5), lambda x: torch.where(x < 0, 0.5 * x, x)),
    "Hardsigmoid": lambda: activation(nn.Hardsigmoid(), lambda x: (x + 3).clamp(0, 6) / 6),
    "Sigmoid": lambda: activation(nn.Sigmoid(), sigmoid),
    "Tanh": lambda: activation(nn.Tanh(), lambda x: 2 * sigmoid(2 * x) - 1),
}


def transformer_between() -> Pair:
    block, run = transformer(CHANNELS, 4, 2, 1)
    after = conv(4, CHANNELS)
    return nn.Sequential(block, after), lambda x: ran(after, run(x))


@functools.cache
def loaded(name: str) -> tuple[Checkpoint, Callable[[Tensor], Tensor]]:
    """A checkpoint with this layer as it is read again, and what the layer computes."""
    torch.manual_seed(0)
    layer, expected = PAIRS[name]()
    with tempfile.TemporaryDirectory() as folder:
        return load(Path(folder, "best.pt"), chain(layer)), expected


@pytest.mark.parametrize("name", PAIRS)
def test_layer_computes_the_expected_values(name: str) -> None:
    checkpoint, expected = loaded(name)
    x = torch.randn(2, CHANNELS, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = checkpoint.network.model[1](x)
        torch.testing.assert_close(found, expected(x), rtol=1e-4, atol=1e-4)


def side_by_side(names: Sequence[str], folder: Path) -> Checkpoint:
    """A checkpoint of a network in which all these layers read the same map, and the head reads all
    of them. Each counts for the result as much as it would alone."""
    torch.manual_seed(0)
    count = len(names)
    head = detect([count * CHANNELS], [32], 2)
    head.m[0].weight.data *= count**0.5
    network = model(
        (-1, conv(3, CHANNELS, 3, 16)),
        *((0, PAIRS[name]()[0]) for name in names),
        ([*range(1, count + 1)], original("models.common.Concat", d=1)),
        ([-1], head),
    )
    return load(folder / "best.pt", network)


# To export one network of many layers takes much less time than one for each layer.
GROUPS = [[*PAIRS][start : start + 12] for start in range(0, len(PAIRS), 12)]


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: f"{names[0]} to {names[-1]}")
def test_layers_are_exported(tmp_path: Path, names: list[str]) -> None:
    """The export compares its answer for two images with PyTorch's, and the answer of the
    prefiltered variant with its own."""
    checkpoint = side_by_side(names, tmp_path)
    full = tmp_path / "model.onnx"
    export_onnx(checkpoint, full, imgsz=64)
    export_prefiltered(checkpoint, tmp_path / "prefiltered.onnx", full, imgsz=64)


def test_unusual_focus_is_exported_unchanged(tmp_path: Path) -> None:
    """A dilated convolution, and another layer in place of the usual convolution."""
    torch.manual_seed(0)
    dilated = conv(12, CHANNELS, 3)
    dilated.conv = nn.Conv2d(12, CHANNELS, 3, padding=2, dilation=2, bias=False)
    other = nn.Sequential(conv(12, CHANNELS, 3))
    for inner in (dilated, other):
        network = model(
            (-1, original("models.common.Focus", conv=inner)),
            (-1, conv(CHANNELS, CHANNELS, 3, 16)),
            ([-1], detect([CHANNELS], [32], 2)),
        )
        checkpoint = load(tmp_path / "best.pt", network)
        full = tmp_path / "model.onnx"
        export_onnx(checkpoint, full, imgsz=64)
        export_prefiltered(checkpoint, tmp_path / "prefiltered.onnx", full, imgsz=64)


@pytest.mark.parametrize(
    "kernel, stride, groups", [(3, 1, 1), (1, 1, 1), ((1, 3), 1, 1), (3, 2, 1), (3, 1, 2)]
)
def test_focus_is_one_convolution_in_the_prefiltered_variant(
    tmp_path: Path, kernel: int | tuple[int, int], stride: int, groups: int
) -> None:
    """A stem of the releases up to v5.0, and an upsampling as old versions of PyTorch saved it."""
    torch.manual_seed(0)
    stem = original("models.common.Focus", conv=conv(12, CHANNELS, kernel, stride, groups=groups))
    doubling = nn.Upsample(scale_factor=2)
    doubling.recompute_scale_factor = True
    network = model(
        (-1, stem),
        (-1, conv(CHANNELS, CHANNELS, 3, 16 // stride)),
        (-1, doubling),
        ([-1], detect([CHANNELS], [16], 2)),
    )
    checkpoint = load(tmp_path / "best.pt", network)
    full, prefiltered = tmp_path / "model.onnx", tmp_path / "prefiltered.onnx"
    export_onnx(checkpoint, full, imgsz=(64, 96))
    export_prefiltered(checkpoint, prefiltered, full, imgsz=(64, 96))
    graph = onnx.load(prefiltered).graph
    first = next(node for node in graph.node if node.op_type == "Conv")
    weights = next(values for values in graph.initializer if values.name == first.input[1])
    assert weights.dims[1] == (3 if groups == 1 else 12 // groups)


@pytest.mark.parametrize("name", PAIRS)
def test_layer_survives_safetensors(tmp_path: Path, name: str) -> None:
    checkpoint, _ = loaded(name)
    save_safetensors(checkpoint, tmp_path / "best.safetensors")
    again = load_safetensors(tmp_path / "best.safetensors")
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again.network(images), checkpoint.network(images))


def test_layers_are_exported_for_any_image_size(tmp_path: Path) -> None:
    names = ["Focus", "Contract", "Expand", "C3TR", "DWConvTranspose2d", "ZeroPad2d", "MetaAconC"]
    checkpoint = side_by_side(names, tmp_path)
    export_onnx(checkpoint, tmp_path / "model.onnx", imgsz=96, dynamic=True)


def pyramid(strides: Sequence[int], *, later: bool) -> Any:
    """A map for each stride, to the smallest of which it is added again and again, and a head."""
    count = len(strides)
    weights = nn.Parameter(torch.tensor([0.5, -1]))
    plain = original("models.experimental.Sum", weight=False, iter=range(1))
    weighted = original("models.experimental.Sum", weight=True, iter=range(2), w=weights)
    head = detect([CHANNELS] * count, strides, 2)
    if later:  # v6.0 to v7.0
        del head.anchor_grid, head.export
        head.anchor_grid, head.inplace = [torch.zeros(1)] * count, True
    network = model(
        (-1, conv(3, CHANNELS, 3, strides[0])),
        *((-1, conv(CHANNELS, CHANNELS, 3, 2)) for _ in strides[1:]),
        ([-1, count - 1], plain),
        ([-1, count - 1, -2], weighted),
        ([*range(count - 1), count + 1], head),
        name="models.yolo.DetectionModel" if later else "models.yolo.Model",
    )
    if later:
        network.names = dict(enumerate(network.names))
    return network


@pytest.mark.parametrize(
    "strides, later",
    [([8, 16, 32, 64], False), ([8, 16, 32, 64, 128], True), ([4, 8, 16], True), ([16], False)],
    ids=["P6", "P7", "P2", "one level"],
)
def test_network_with_any_number_of_levels_is_decoded(
    tmp_path: Path, strides: list[int], later: bool
) -> None:
    torch.manual_seed(0)
    network = pyramid(strides, later=later)
    checkpoint = load(tmp_path / "best.pt", network)
    assert (checkpoint.stride, checkpoint.names) == (max(strides), ("a", "b"))
    assert {p.dtype for p in checkpoint.network.parameters()} == {torch.float32}

    height, width = max(strides), 2 * max(strides)
    image = torch.rand(1, 3, height, width)
    *stems, _, weighted, head = network.model
    expected = []
    with torch.no_grad():
        found = checkpoint.network(image)
        for level, stride in enumerate(strides):
            image = ran(stems[level], image)
            last = level == len(strides) - 1
            x = image * (2 + 2 * sigmoid(weighted.w).sum()) if last else image
            y = sigmoid(F.conv2d(x, head.m[level].weight, head.m[level].bias))
            for a in range(3):
                for i in range(height // stride):
                    for j in range(width // stride):
                        t = y[0, 7 * a : 7 * a + 7, i, j]
                        centre = (2 * t[:2] - 0.5 + torch.tensor([j, i])) * stride
                        sides = (2 * t[2:4]) ** 2 * head.anchors[level, a] * stride
                        expected.append(torch.cat([centre, sides, t[4:]]))
    torch.testing.assert_close(found[0], torch.stack(expected), rtol=1e-4, atol=1e-3)
    full = tmp_path / "model.onnx"
    export_onnx(checkpoint, full, imgsz=max(strides))
    export_prefiltered(checkpoint, tmp_path / "prefiltered.onnx", full, imgsz=max(strides))


def test_layer_with_a_huge_output_is_refused(tmp_path: Path) -> None:
    block, _ = transformer(3, 4, 2, 1)  # attention between all pixels of the image
    with pytest.raises(BuildError, match="makes 335544320000 values .* at most 268435456 are all"):
        load(tmp_path / "best.pt", model((-1, block), ([-1], detect([4], [1], 2))))


# ---------------------------------------------------------------------------------------------
# Data around the network


def test_attributes_missing_in_old_checkpoints_get_defaults(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, expected = c3tr()
    for block in layer.m.tr:
        old(block.ma, "batch_first")
    upsample = old(nn.Upsample(None, 2, "nearest"), "recompute_scale_factor")
    path = tmp_path / "best.pt"
    load(path, chain(layer, upsample, nn.MaxPool2d(2)))
    changed(path, b"linear\nNonDynamicallyQuantizableLinear\n", b"linear\n_LinearWithBias\n")
    network = load_checkpoint(path).network
    x = torch.randn(2, CHANNELS, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(network.model[1](x), expected(x), rtol=1e-4, atol=1e-4)
        assert (
            network.model[2](x).tolist()
            == x.repeat_interleave(2, 2).repeat_interleave(2, 3).tolist()
        )


def attempt_load() -> None:
    """A function that the wrapper of PyTorch Hub keeps."""


def wrapped_in_hub(network: Any) -> Any:
    """Fuse the network, which leaves methods in its layers, and wrap it twice."""
    layer = network.model[0]
    type(layer).fuseforward = lambda self, x: x
    layer.forward = layer.fuseforward
    attempt_load.__module__ = "models.experimental"
    ORIGINALS["models.experimental.attempt_load"] = attempt_load
    backend = original(
        "models.common.DetectMultiBackend", model=network, device=torch.device("cpu")
    )
    backend.__dict__ |= {"attempt_load": attempt_load, "self": backend, "w": pathlib.Path("x.pt")}
    return original("models.common.AutoShape", model=backend)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda network: network,
    "autoShape": lambda network: original("models.common.autoShape", model=network),
    "hub": wrapped_in_hub,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.DataParallel,  # renamed in the file
    "averaged, and their number": lambda network: (network, 100),
}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_of_a_network_are_removed(tmp_path: Path, kind: str, alone: bool) -> None:
    torch.manual_seed(0)
    network = chain()
    stem = network.model[0]
    content = WRAPPERS[kind](network)
    path = saved(tmp_path / "best.pt", content if alone else {"ema": content, "model": None})
    if kind == "DistributedDataParallel":
        changed(path, b"data_parallel\nDataParallel\n", b"distributed\nDistributedDataParallel\n")
    read = load_checkpoint(path).network
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(read.model[0](x), ran(stem, x), rtol=1e-4, atol=1e-4)


LEFTOVERS = {
    "opt": argparse.Namespace(device=torch.device("cuda:0"), dtype=torch.float16),
    "paths": [pathlib.Path("a"), pathlib.PurePath("b"), pathlib.PureWindowsPath("c")],
    "numbers": [np.float32(1), np.arange(3), np.dtype("int64"), np.float64, np.str_("x")],
    "containers": [
        collections.defaultdict(list, a=[1]),
        collections.Counter("aab"),
        collections.deque([1, 2]),
        types.SimpleNamespace(a=1),
        frozenset([1]),
        {1, 2},
        torch.Size([1, 2]),
    ],
    "times": [
        datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
        datetime.date(2020, 1, 1),
    ],
    "builtins": [range(3), slice(1), 1j, b"bytes", b"", bytearray(b"x"), int, str, list, object],
    "method": "text".upper,
}


@pytest.mark.parametrize("key", LEFTOVERS)
def test_other_data_of_a_trainer_are_ignored(tmp_path: Path, key: str) -> None:
    network = chain()
    network.leftover = LEFTOVERS[key]
    path = saved(tmp_path / "best.pt", {"model": network, key: LEFTOVERS[key]})
    assert load_checkpoint(path).names == ("a", "b")
    if key == "numbers":  # as NumPy 2 names them
        changed(path, b"numpy.core.multiarray", b"numpy._core.multiarray")
        assert load_checkpoint(path).names == ("a", "b")


# ---------------------------------------------------------------------------------------------
# Refused files


def script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Identity(), torch.zeros(1)), path)  # type: ignore[no-untyped-call]


WEIGHTS = nn.Linear(2, 2).state_dict()
KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "TorchScript": (
        script,
        "is a TorchScript export; give the best.pt that it was made from, or an ONNX export.",
    ),
    "before 1.6": (
        lambda path: torch.save({}, path, _use_new_zipfile_serialization=False),
        "has the file format of PyTorch before 1.6; load it with a newer PyTorch and save it "
        "again.",
    ),
    "Git LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "is not a YOLOv5 checkpoint but a Git LFS pointer to one; `git lfs pull` fetches the file.",
    ),
    "weights": (
        lambda path: torch.save(WEIGHTS, path),
        "holds weights without the network around them; give the checkpoint that YOLOv5's train.py "
        "wrote.",
    ),
    "weights in a dict": (
        lambda path: torch.save({"epoch": 3, "model": WEIGHTS}, path),
        "holds weights without the network around them; give the checkpoint that YOLOv5's train.py "
        "wrote.",
    ),
    "ultralytics": (
        lambda path: saved(path, {"model": original("ultralytics.nn.tasks.WorldModel")}),
        "is a YOLO-World checkpoint; of the ultralytics package's checkpoints, those of YOLOv5u, "
        "YOLOv8 and YOLO11 are supported; give others as ONNX, which `yolo export model=best.pt "
        "format=onnx` writes.",
    ),
    "segmentation": (
        lambda path: saved(path, {"model": original("models.yolo.SegmentationModel")}),
        "is a segmentation model, not a detection network.",
    ),
    "segmentation head": (
        lambda path: saved(path, {"model": chain(original("models.yolo.Segment"))}),
        "is a segmentation model, not a detection network.",
    ),
    "classification": (
        lambda path: saved(path, {"model": original("models.yolo.ClassificationModel")}),
        "is a classifier, not a detection network.",
    ),
    "classification head": (
        lambda path: saved(path, {"model": chain(original("yolov5.models.common.Classify"))}),
        "is a classifier, not a detection network.",
    ),
    "unknown layer": (
        lambda path: saved(path, {"model": chain(original("models.experimental.MixConv2d"))}),
        "names 'models.experimental.MixConv2d', which is not among the layers that are supported.",
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_error_names_the_kind_of_another_file(tmp_path: Path, kind: str) -> None:
    make, sentence = KINDS[kind]
    make(tmp_path / "best.pt")
    with pytest.raises(BuildError) as caught:
        load_checkpoint(tmp_path / "best.pt")
    assert str(caught.value) == f"best.pt {sentence}"


class Call:
    """Is pickled as a call, and optionally as changes to its result."""

    def __init__(self, function: Any, *arguments: Any, then: tuple[Any, ...] = ()) -> None:
        self._call = (function, arguments, *then)

    def __reduce__(self) -> Any:
        return self._call

    def __call__(self) -> None:
        """Exists because `pickle` refuses to write a call of an object that is not callable."""


@pytest.mark.parametrize(
    "function", [argparse.Namespace, torch.device, np.float64(1).__reduce__()[0], getattr, range]
)
def test_placeholder_does_not_give_access_to_other_names(tmp_path: Path, function: Any) -> None:
    path, mark = tmp_path / "best.pt", tmp_path / "mark"
    torch.save({"x": Call(function, Call(os.system, f"touch {mark}"))}, path)
    with pytest.raises(BuildError, match="names 'posix.system', which is not among the layers"):
        load_checkpoint(path)
    assert not mark.exists()


def storage_of(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor._typed_storage(), 0, (2,), (1,), False, collections.OrderedDict())  # type: ignore[no-untyped-call]


def filled(**then: Any) -> Call:
    """A tensor that the pickle then changes: `state`, `items` of a list, `pairs` of a dict."""
    order = (then.get("state"), then.get("items"), then.get("pairs"))
    make = torch._utils._rebuild_tensor_v2
    return Call(make, *storage_of(torch.zeros(2)), then=order)


def doubled() -> Any:
    layer: Any = nn.Identity()
    for _ in range(40):
        layer = nn.Sequential(layer, layer)
    return layer


def copies() -> list[Call]:
    """Calls that take a few bytes each in the file, and would take 24 kB each in memory."""
    entries = list(range(3000))
    return [Call(list, entries) for _ in range(1000)]


def same_state() -> list[Any]:
    shared = nn.Identity().__dict__ | {str(number): number for number in range(3000)}
    layers = [original("utils.activations.MemoryEfficientSwish") for _ in range(1000)]
    cls = ORIGINALS["utils.activations.MemoryEfficientSwish"]
    cls.__reduce__ = lambda self: (copyreg.__newobj__, (cls,), shared)  # type: ignore[attr-defined]
    return layers


def same_weights() -> Any:
    first, second = conv(CHANNELS, CHANNELS), conv(CHANNELS, CHANNELS)
    second.conv.weight = first.conv.weight
    return chain(first, second)


@pytest.mark.parametrize(
    "content",
    [
        # A layer that is called, a result that is called, and tensors that are changed.
        lambda: Call(nn.Upsample(scale_factor=2), torch.zeros(1, 1, 2, 2)),
        lambda: Call(Call(getattr, "x", "upper")),
        lambda: filled(state=(torch.zeros(2), 0, (2,), (1,))),
        lambda: filled(pairs=iter([(0, 1)])),
        copies,
        same_state,
        lambda: chain(doubled()),
        same_weights,
    ],
    ids=[
        "a layer is run",
        "a result is called",
        "a tensor's state",
        "a tensor as a dict",
        "copies",
        "one state for many",
        "layers within layers",
        "one weight for many",
    ],
)
def test_small_file_cannot_allocate_much_memory(tmp_path: Path, content: Callable[[], Any]) -> None:
    path = saved(tmp_path / "best.pt", {"model": content()})
    with pytest.raises(BuildError, match="damaged"):
        load_checkpoint(path)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "best.pt", {"model": chain()})
    with zipfile.ZipFile(path, "a") as archive:
        info = archive.getinfo("best/data/0")
        archive.writestr("best/data/x", b"")
        for number in range(10_000):
            again = zipfile.ZipInfo(f"best/data/{1000 + number}")
            again.header_offset = info.header_offset
            again.CRC, again.file_size, again.compress_size = (
                info.CRC,
                info.file_size,
                info.file_size,
            )
            archive.filelist.append(again)
    with pytest.raises(BuildError, match="is damaged"):
        load_checkpoint(path)


def test_tensor_cannot_be_filled_like_a_set(tmp_path: Path) -> None:
    """`add` of a tensor computes a sum, which can be much larger than its operands."""
    path = saved(tmp_path / "best.pt", {"model": filled(items=iter([1, 2]))})
    changed(path, b"(K\x01K\x02e", b"(K\x01K\x02\x90")  # APPENDS becomes ADDITEMS
    with pytest.raises(BuildError, match="is damaged"):
        load_checkpoint(path)
