"""A yolov5s or yolov5m with random weights, made from the bundled yolov5n: for its speed alone.

The sizes of YOLOv5 are one structure with other numbers of channels and of bottlenecks. The answers
mean nothing, but there are as many rows over the threshold as in a photo with many objects.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import cv2
import torch
from torch import Tensor, nn

from yolov5_build import load_checkpoint
from yolov5_build._safetensors import save_safetensors
from yolov5_build.layers import C3, Detect, DetectionModel
from yolov5_build.paths import BUNDLED, BUNDLED_PHOTOS

# Channels and bottlenecks, as multiples of those of yolov5n.
SIZES = {"yolov5s": (2, 1), "yolov5m": (3, 2)}
_ROWS = 100  # with an objectness over a half, in one of the bundled photos
_CONFIDENT = 3.0  # a logit


def write_random_network(size: str, path: Path) -> None:
    """Write a safetensors file, which `make model` reads.

    Args:
        size: a key of `SIZES`.
    """
    checkpoint = load_checkpoint(BUNDLED)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = enlarged(checkpoint.network, *SIZES[size])
        image = _image(sorted(BUNDLED_PHOTOS.iterdir())[0])
        _spread_values(network, image)
        _shift_scores(network, image)
    save_safetensors(replace(checkpoint, network=network), path)


def enlarged(network: DetectionModel, width: int, depth: int) -> DetectionModel:
    """A network of the same structure, with random weights.

    Args:
        width: factor for the channels between the layers.
        depth: factor for the bottlenecks of a block.
    """
    network = copy.deepcopy(network)
    for block in network.modules():
        if isinstance(block, C3):
            assert isinstance(block.m, nn.Sequential)
            chain = [copy.deepcopy(one) for one in block.m for _ in range(depth)]
            for index, bottleneck in enumerate(chain):
                block.m._modules[str(index)] = bottleneck
    last = {id(convolution) for convolution in _head(network).m}
    first = True
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            inputs = layer.in_channels * (1 if first else width)
            outputs = layer.out_channels * (1 if id(layer) in last else width)
            _randomise(layer, inputs, outputs)
            first = False
    return network


def _randomise(layer: nn.Conv2d, inputs: int, outputs: int) -> None:
    weight = torch.randn(outputs, inputs, *layer.kernel_size)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(torch.zeros(outputs), requires_grad=False)
    layer.in_channels, layer.out_channels = inputs, outputs


def _image(photo: Path) -> Tensor:
    """[1, 3, 640, 640], RGB 0..1; not letterboxed."""
    picture = cv2.imread(str(photo))
    assert picture is not None
    picture = cv2.resize(picture, (640, 640))
    return torch.from_numpy(picture[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255


def _spread_values(network: DetectionModel, image: Tensor) -> None:
    """Scale each layer so that its values spread by 1: without it they vanish or explode."""

    def scale(layer: nn.Module, inputs: object, values: Tensor) -> Tensor:
        assert isinstance(layer, nn.Conv2d)
        spread = values.std()
        layer.weight /= spread
        return values / spread

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    handles = [layer.register_forward_hook(scale) for layer in layers]
    network(image)
    for handle in handles:
        handle.remove()


def _shift_scores(network: DetectionModel, image: Tensor) -> None:
    """Let some rows of the image be over the threshold, and no others."""
    head = _head(network)
    logits = [convolution(x) for convolution, x in zip(head.m, network.maps(image))]
    objectness = torch.cat([_of_rows(head, values)[:, :, 4].flatten() for values in logits])
    for convolution in head.m:
        assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
        bias = convolution.bias.view(head.na, head.no)
        bias[:, 4] -= objectness.topk(_ROWS).values[-1]
        bias[:, 5:] += _CONFIDENT


def _of_rows(head: Detect, values: Tensor) -> Tensor:
    """[1, A * C, H, W] -> [1, A, C, H * W]."""
    return values.view(1, head.na, head.no, -1)


def _head(network: DetectionModel) -> Detect:
    assert isinstance(network.head, Detect)
    return network.head
