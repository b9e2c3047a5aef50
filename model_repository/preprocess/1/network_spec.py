"""What both steps need to know about the network, read from its folder and checked.

Both steps read it with this module when the server starts; `postprocess` links to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

LETTERBOX_MODES = ("square", "rect", "stretch")
HEADS = ("full", "reduced", "end2end")
PADDINGS = ("exact", "whole")


class NetworkSpecError(ValueError):
    """The files of the network do not fit each other; the message is one sentence."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What the steps know of the network.

    Attributes:
        height, width: of its input, in pixels; with letterbox `rect` the largest allowed.
        letterbox: how a picture is fitted into the input, one of `LETTERBOX_MODES`.
        stride: with letterbox `rect`, height and width are multiples of it; otherwise 1.
        best_class_only: a row holds the score and the index of its best class, in place of
            objectness and one score for each class (a reduced or end-to-end head).
        end_to_end: rows are boxes that the network itself has chosen, x1, y1, x2, y2; they are not
            suppressed again.
        whole_padding: boxes are mapped back with the padding in whole pixels, as the picture was
            placed; YOLOv5 itself does not round it.
        class_names: index = class.
    """

    height: int
    width: int
    letterbox: str
    stride: int
    best_class_only: bool
    class_names: tuple[str, ...]
    end_to_end: bool = False
    whole_padding: bool = False

    @property
    def columns(self) -> int:
        """Values in a row of the output."""
        return 6 if self.best_class_only else 5 + len(self.class_names)

    @property
    def head(self) -> dict[str, bool]:
        """What the reading of parameters and of rows needs to know, by the argument's name."""
        return {"best_class_only": self.best_class_only, "end_to_end": self.end_to_end}


def read_network_spec(folder: Path) -> NetworkSpec:
    """Read `config.pbtxt` and `labels.txt` (one class name a line) of the network in this folder.

    Raises:
        NetworkSpecError: a file is missing, or they contradict each other.
    """
    network = folder.name
    config, class_names = _read_files(folder)
    image, rows = _tensors(network, config)
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    letterbox = _choice(network, parameters, "letterbox", LETTERBOX_MODES)
    if letterbox == "rect":
        height, width, stride = _open_size(network, image, parameters)
    else:
        height, width = _fixed_size(network, image, letterbox)
        stride = 1
    head = _choice(network, parameters, "head", HEADS)
    padding = _choice(network, {"padding": "exact", **parameters}, "padding", PADDINGS)
    spec = NetworkSpec(
        height=height,
        width=width,
        letterbox=letterbox,
        stride=stride,
        best_class_only=head != "full",
        class_names=class_names,
        end_to_end=head == "end2end",
        whole_padding=padding == "whole",
    )
    _check_columns(network, rows, spec, head)
    return spec


def _read_files(folder: Path) -> tuple[Any, tuple[str, ...]]:
    """The configuration, and the class names."""
    config, labels = (_read_text(folder / name) for name in ("config.pbtxt", "labels.txt"))
    try:
        found = text_format.Parse(config, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise NetworkSpecError(f"{folder.name}/config.pbtxt is not valid: {error}") from None
    return found, tuple(labels.splitlines())


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        reason = error.strerror
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is no text; allowed: UTF-8"
    raise NetworkSpecError(f"{path.parent.name}/{path.name} cannot be read: {reason}")


def _tensors(network: str, config: Any) -> tuple[Any, Any]:
    """The image and the rows: `pixels` beside `nms`, or a single input of any name."""
    inputs = {tensor.name: tensor for tensor in config.input}
    image = inputs.get("pixels") if "nms" in inputs else None
    if len(inputs) != (1 if image is None else 2) or len(config.output) != 1:
        raise NetworkSpecError(
            f"{network}/config.pbtxt must state one input, or pixels and nms, and one output"
        )
    rows = config.output[0]
    if image is None:
        (image,) = inputs.values()
        _check_type(network, "input", image, "TYPE_FP32")
    else:
        _check_type(network, "input", image, "TYPE_UINT8")
        _check_type(network, "input", inputs["nms"], "TYPE_FP32")
    _check_type(network, "output", rows, "TYPE_FP32")
    return image, rows


def _check_type(network: str, kind: str, tensor: Any, wanted: str) -> None:
    if tensor.data_type != model_config_pb2.DataType.Value(wanted):
        raise NetworkSpecError(f"{network}/config.pbtxt: {kind} '{tensor.name}' must be {wanted}")


def _fixed_size(network: str, image: Any, letterbox: str) -> tuple[int, int]:
    """Height and width of an input that has one size."""
    dims = tuple(image.dims)
    if len(dims) != 3 or dims[0] != 3 or min(dims) < 1:
        raise NetworkSpecError(
            f"{network}/config.pbtxt: input '{image.name}' has dims {list(dims)};"
            f" allowed with letterbox {letterbox}: [3, H, W]"
        )
    return dims[1], dims[2]


def _open_size(network: str, image: Any, parameters: Mapping[str, str]) -> tuple[int, int, int]:
    """The largest height and width of an input that has no size of its own, and the stride."""
    dims = tuple(image.dims)
    if dims != (3, -1, -1):
        raise NetworkSpecError(
            f"{network}/config.pbtxt: input '{image.name}' has dims {list(dims)};"
            " allowed with letterbox rect: [3, -1, -1]"
        )
    height, width = _whole_numbers(network, parameters, "imgsz", 2)
    (stride,) = _whole_numbers(network, parameters, "stride", 1)
    if height % stride or width % stride:
        raise NetworkSpecError(
            f"{network}/config.pbtxt: imgsz is '{parameters['imgsz']}';"
            f" allowed: multiples of the stride, {stride}"
        )
    return height, width, stride


def _check_columns(network: str, rows: Any, spec: NetworkSpec, head: str) -> None:
    if len(rows.dims) != 2 or rows.dims[1] != spec.columns:
        raise NetworkSpecError(
            f"{network}: output '{rows.name}' has dims {list(rows.dims)}, but the last one must be"
            f" {spec.columns}, as its head is {head} and labels.txt has {len(spec.class_names)}"
            " names"
        )


def _choice(
    network: str, parameters: Mapping[str, str], name: str, allowed: tuple[str, ...]
) -> str:
    value = parameters.get(name) or allowed[0]
    if value not in allowed:
        raise NetworkSpecError(
            f"{network}/config.pbtxt: {name} is '{value}'; allowed: {', '.join(allowed)}"
        )
    return value


def _whole_numbers(network: str, parameters: Mapping[str, str], name: str, count: int) -> list[int]:
    text = parameters.get(name, "")
    words = text.split()
    if len(words) != count or not all(w.isdecimal() and 0 < int(w) <= 8192 for w in words):
        raise NetworkSpecError(
            f"{network}/config.pbtxt: {name} is '{text}'; allowed with letterbox rect:"
            f" {count} whole number{'s' * (count > 1)} from 1 to 8192"
        )
    return [int(word) for word in words]
