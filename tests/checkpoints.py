"""Networks as the releases of YOLOv5 save them, and a small one, also as others export it."""

from __future__ import annotations

import functools
import io
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from foreign_layers import conv, original, saved
from onnx import ModelProto, helper
from torch import nn

from yolov5_build import Checkpoint, load_checkpoint

Source = int | list[int]
CHANNELS = 8


def detect(channels: Sequence[int], strides: Sequence[int], classes: int) -> Any:
    """A head with the attributes of the releases up to v5.0; later ones have them too."""
    levels = len(channels)
    head = original(
        "models.yolo.Detect",
        nc=classes,
        no=classes + 5,
        nl=levels,
        na=3,
        grid=[torch.zeros(1)] * levels,
        m=nn.ModuleList(nn.Conv2d(c, 3 * (classes + 5), 1) for c in channels),
        stride=torch.tensor(strides, dtype=torch.float32),
        export=False,
    )
    head.register_buffer("anchors", torch.rand(levels, 3, 2) + 1)
    head.register_buffer("anchor_grid", head.anchors.clone().view(levels, 1, 3, 1, 1, 2))
    return head


def model(*steps: tuple[Source, Any], name: str = "models.yolo.Model") -> Any:
    """A network of layers, each with its sources; the last one is a head for 2 classes."""
    save = set()
    for index, (source, layer) in enumerate(steps):
        layer.i, layer.f, layer.type = index, source, "layer"
        sources = [source] if isinstance(source, int) else source
        save |= {j % index for j in sources if j != -1}
    return original(
        name,
        yaml={"nc": 2},
        model=nn.Sequential(*(layer for _, layer in steps)),
        save=sorted(save),
        names=["a", "b"],
        hyp={"lr0": np.float64(0.01)},
    )


def chain(*layers: Any, **named: Any) -> Any:
    """A model of one level: a stem that divides the image's sides by 16, these layers (which may
    halve them in between), and a head."""
    return model(
        (-1, conv(3, CHANNELS, 3, 16)),
        *((-1, layer) for layer in layers),
        ([-1], detect([CHANNELS], [32], 2)),
        **named,
    )


LABELS = ("Platelets", "RBC", "WBC")
EXPORT_SIZE = (64, 96)  # height and width in pixels


def small_network() -> Any:
    """The structure of a YOLOv5 in few layers: strides 8, 16 and 32, three anchors, three classes,
    and maps that are enlarged and concatenated. Objectness and scores are spread over 0 to 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = detect([CHANNELS] * 3, [8, 16, 32], 3)
        for convolution in head.m:
            convolution.weight.data *= 8
        made = model(
            (-1, conv(3, CHANNELS, 3, 8)),
            (-1, conv(CHANNELS, CHANNELS, 3, 2)),
            (-1, conv(CHANNELS, CHANNELS, 3, 2)),
            (-1, nn.Upsample(None, 2, "nearest")),
            ([-1, 1], original("models.common.Concat", d=1)),
            (-1, conv(2 * CHANNELS, CHANNELS)),
            ([0, -1, 2], head),
        )
    made.names = [*LABELS]
    return made


def small_checkpoint(path: Path) -> Path:
    """Save `small_network`: a file that is read, exported and imported much sooner than a real one,
    for tests of what happens with any network."""
    return saved(path, {"model": small_network().half()})


@functools.cache
def read_small() -> Checkpoint:
    """The small network as it is read again. No test may change it."""
    with tempfile.TemporaryDirectory() as folder:
        return load_checkpoint(small_checkpoint(Path(folder, "best.pt")))


@functools.cache
def _exported(batch: int, opset: int, open_size: bool) -> bytes:
    target = io.BytesIO()
    axes = {"images": {0: "b", 2: "h", 3: "w"}, "output": {0: "b", 1: "n"}} if open_size else {}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            read_small().network,
            (torch.zeros(batch, 3, *EXPORT_SIZE),),
            target,  # type: ignore[arg-type]  # also takes a stream
            dynamo=False,
            opset_version=opset,
            input_names=["images"],
            output_names=["output"],
            dynamic_axes=axes,
        )
    return target.getvalue()


def export(batch: int = 1, opset: int = 12, open_size: bool = False) -> ModelProto:
    """The small network as others export it: names in the metadata, one output, `output`."""
    model = ModelProto.FromString(_exported(batch, opset, open_size))
    helper.set_model_props(model, {"names": str([*LABELS])})
    return model


def unsorted() -> ModelProto:
    """The same with its nodes in reverse order."""
    model = export()
    nodes = list(reversed(model.graph.node))
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model
