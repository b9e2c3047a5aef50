"""Read the network of a `.pt`, and check it before computing anything with it."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from . import layers
from ._errors import BuildError
from ._families import head_refusal
from ._labels import as_labels, is_name
from ._unpickler import unpickle
from .anchor_free import Attention
from .metadata import as_size

# Values in one layer's output for a 640-pixel image: enough for attention with 4 heads over a map
# of stride 8, and 32 times as many as the largest official network has.
MAX_LAYER_VALUES = 1 << 28
MAX_LAYER_CALLS = 1 << 14  # a layer may occur in several places, and run in each
# Values and multiplications of all layers together, for a 640-pixel image: yolov5n computes 150
# million values by 2.3 billion multiplications, 1,200 for each of its weights.
MAX_VALUES = 1 << 33
MULTIPLICATIONS = 1 << 34
MULTIPLICATIONS_PER_WEIGHT = 1 << 13
MAX_TRAINING_SIDE = 4096  # pixels; of a larger one 640 are served unless another size is asked for
MAX_CHANNELS = 16  # numbers of channels to try, for an error that names the right one


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network, ready to be exported.

    Attributes:
        network: FP32, in eval mode, batch norms folded into their convolutions.
        names: class names, index = class.
        stride: the largest stride of the network, in pixels; input sides are multiples of it.
        sha256: of the file that it was read from.
        imgsz: height and width in pixels of the training, if the `ultralytics` package has noted
            them, which predicts in that size if no other is asked for; multiples of the stride.
    """

    network: layers.DetectionModel
    names: tuple[str, ...]
    stride: int
    sha256: str
    imgsz: tuple[int, int] | None = None


def load_checkpoint(path: Path, *, names: Sequence[str] | None = None) -> Checkpoint:
    """Read a checkpoint that a trainer of YOLOv5, YOLOv5u, YOLOv8 or YOLO11 wrote, without running
    any code in it.

    Args:
        names: class names to use instead of those in the file.

    Raises:
        BuildError: the file is not a checkpoint, names an unknown class, or holds a network that
            cannot be run.
    """
    content = unpickle(path)
    checkpoint = checkpoint_from(path, _find_network(path.name, content), names)
    return replace(checkpoint, imgsz=_training_size(content, checkpoint.stride))


def _training_size(content: object, stride: int) -> tuple[int, int] | None:
    arguments = content.get("train_args") if isinstance(content, dict) else None
    if not isinstance(arguments, dict):
        return None
    size = as_size(arguments.get("imgsz"))
    if size is None or max(size) > MAX_TRAINING_SIDE:
        return None
    height, width = (-(-side // stride) * stride for side in size)
    return height, width


def checkpoint_from(
    path: Path, network: layers.DetectionModel, names: Sequence[str] | None = None
) -> Checkpoint:
    """Check a network that was read from the file `path`, and prepare it for export.

    Raises:
        BuildError: the network cannot be run.
    """
    try:
        head = network.model[-1]
        if not isinstance(head, layers.Head):
            raise BuildError(f"{path.name} does not end in a detection head.")
        if sentence := head_refusal(path.name, head):
            raise BuildError(f"{path.name} {sentence}.")
        labels = _class_names(path.name, names or getattr(network, "names", None), head.nc)
        stride = _largest_stride(head.stride)
        # Tensors may share memory in the file, but may not expand to more than the file holds.
        tensors = [*network.parameters(), *network.buffers()]
        if sum(tensor.numel() for tensor in tensors) > path.stat().st_size:
            raise ValueError("more values than bytes")
        _check_shapes(path.name, network, stride, 5 + len(labels))
        network.float().eval()
        _fuse(network)
    except BuildError:
        raise
    except Exception:  # attributes that are missing, of another type, or inconsistent
        raise BuildError(f"{path.name} is damaged: its network cannot be run.") from None
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    sha256 = digest.hexdigest()
    return Checkpoint(network=network, names=labels, stride=stride, sha256=sha256)


def _find_network(name: str, checkpoint: object) -> layers.DetectionModel:
    """The averaged weights (`ema`) if the file has them, else the last ones (`model`), or the
    file's object itself if it is not a dict."""
    parts = checkpoint if isinstance(checkpoint, dict) else {"model": checkpoint}
    for key in ("ema", "model"):
        network = _unwrap(parts.get(key))
        if isinstance(network, layers.DetectionModel):
            return network
    if any(_is_state_dict(part) for part in (parts, *parts.values())):
        raise BuildError(
            f"{name} holds weights without the network around them; give the checkpoint that "
            "YOLOv5's train.py wrote."
        )
    raise BuildError(f"{name} holds no YOLOv5 detection network.")


_WRAPPED = ("ema", "model", "module", "_orig_mod")  # what wrappers call the network


def _unwrap(network: object) -> object:
    if isinstance(network, tuple) and network:  # before v5.0: the averaged weights and their count
        network = network[0]
    for _ in range(4):
        if isinstance(network, layers.Wrapper):
            held = (getattr(network, name, None) for name in _WRAPPED)
            network = next((one for one in held if one is not None), None)
    return network


def _is_state_dict(part: object) -> bool:
    return (
        isinstance(part, dict) and bool(part) and all(isinstance(v, Tensor) for v in part.values())
    )


def wrong_channels(name: str, channels: int) -> BuildError:
    plural = "" if channels == 1 else "s"
    return BuildError(f"{name} takes images of {channels} channel{plural}; 3 are needed.")


def _class_names(name: str, names: object, classes: int) -> tuple[str, ...]:
    """Class names as a tuple; a file has a list, or since v6.2 a dict by index."""
    if isinstance(names, dict):
        names = [names.get(i, names) for i in range(len(names))]
    if not isinstance(names, (list, tuple)) or not all(is_name(label) for label in names):
        raise BuildError(f"{name} has no usable class names; give them with --names FILE.")
    if len(names) != classes:
        raise BuildError(f"{name} has {classes} classes but {len(names)} class names.")
    return as_labels(names)


def _largest_stride(strides: Tensor) -> int:
    stride = float(strides.max())
    if not 1 <= stride <= 1024 or stride != int(stride):
        raise ValueError(stride)
    return int(stride)


def _check_shapes(name: str, network: layers.DetectionModel, stride: int, columns: int) -> None:
    """Infer every layer's shape on the meta device, which needs no memory, before computing any."""
    sketch = copy.deepcopy(network).to("meta").float().eval()
    budget = _Budget(name, sum(tensor.numel() for tensor in network.parameters()))
    for layer in sketch.modules():
        layer.register_forward_hook(budget.spend)
    side = max(stride, 640 // stride * stride)

    def rows(channels: int) -> Tensor:
        with torch.no_grad():
            answer = sketch(torch.zeros(1, channels, side, side, device="meta"))
            return cast(Tensor, answer)

    try:
        answer = rows(3)
    except RuntimeError:
        for channels in range(1, MAX_CHANNELS + 1):
            with contextlib.suppress(RuntimeError):
                rows(channels)
                raise wrong_channels(name, channels) from None
        raise
    if answer.ndim != 3 or answer.shape[2] != columns:
        raise ValueError("the head answers in another shape")


class _Budget:
    """Limits on what a network's layers may compute for one image; each call spends some."""

    def __init__(self, name: str, weights: int) -> None:
        self._name = name
        self._calls = MAX_LAYER_CALLS
        self._values = MAX_VALUES
        self._multiplications = MULTIPLICATIONS + MULTIPLICATIONS_PER_WEIGHT * weights

    def spend(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        """Count one call of a layer; a forward hook.

        Raises:
            BuildError, ValueError: the budget is exceeded.
        """
        self._calls -= 1
        if self._calls < 0:
            raise ValueError("layers within layers")
        for count in _values(layer, inputs, output):
            if count > MAX_LAYER_VALUES:
                raise BuildError(
                    f"{self._name} has a layer that makes {count} values of a 640-pixel "
                    f"image, and at most {MAX_LAYER_VALUES} are allowed."
                )
            self._values -= count
        self._multiplications -= _multiplications(layer, inputs, output)
        if min(self._values, self._multiplications) < 0:
            raise BuildError(
                f"{self._name} computes more for a 640-pixel image than a YOLOv5 network with so"
                " many weights does."
            )


def _values(layer: nn.Module, inputs: Any, output: Any) -> list[int]:
    """Sizes of a layer's outputs, and of an attention's weights, which no layer returns."""
    counts = [each.numel() for each in (output if isinstance(output, tuple) else (output,))]
    return [*counts, _weights(layer, inputs[0])] if isinstance(layer, Attention) else counts


def _weights(attention: Attention, x: Tensor) -> int:
    """For each head, a weight for each pair of pixels."""
    return attention.num_heads * math.prod(x.shape[2:]) ** 2


def _multiplications(layer: nn.Module, inputs: Any, output: Any) -> int:
    """A lower bound of a layer's multiplications; 0 for the kinds that need few."""
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        return int(output.numel() * layer.weight[0].numel())
    if isinstance(layer, nn.ConvTranspose2d):
        return int(inputs[0].numel() * layer.weight[0].numel())
    if isinstance(layer, nn.MultiheadAttention):
        return int(output[1].numel() * layer.head_dim)
    if isinstance(layer, Attention):
        return _weights(layer, inputs[0]) * (layer.key_dim + layer.head_dim)
    return 0


def _fuse(network: nn.Module) -> None:
    """Fold batch norms into the convolutions before them; other batch norms stay."""
    pairs = [
        (module, bn)
        for module in network.modules()
        if isinstance(module, layers.Conv)
        and isinstance(bn := getattr(module, "bn", None), nn.BatchNorm2d)
    ]
    # Folding gives each convolution its own weights, so a small file in which many convolutions
    # share one tensor could need any amount of memory.
    if len({id(module.conv.weight) for module, _ in pairs}) < len(pairs):
        raise ValueError("convolutions that share their weights")
    for module, bn in pairs:
        module.conv = fuse_conv_bn_eval(module.conv, bn)
        del module.bn
