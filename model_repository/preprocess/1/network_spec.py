"""What the network's folder says of it, read and checked when the server starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

LETTERBOX_MODES = ("square", "rect", "stretch")
HEADS = ("full", "reduced")


class NetworkSpecError(ValueError):
    """The files of the network do not fit each other; the message is one sentence."""


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What the steps know of the network.

    Attributes:
        height, width: of its input, in pixels; with letterbox `rect` the most it may be.
        letterbox: how a picture is fitted into that.
        stride: with letterbox `rect`, what height and width must be multiples of.
        best_class_only: its rows hold the best class and score alone (a reduced head).
        names: class names, index = class.
    """

    height: int
    width: int
    letterbox: str
    stride: int
    best_class_only: bool
    names: tuple[str, ...]


def read_network_spec(folder: Path) -> NetworkSpec:
    """Read `config.pbtxt` and `labels.txt` of the network in this folder.

    Raises:
        NetworkSpecError: a file is missing, or they contradict each other.
    """
    model = folder.name
    try:
        config = text_format.Parse(
            (folder / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig()
        )
        names = tuple((folder / "labels.txt").read_text("utf-8").splitlines())
    except OSError as error:
        raise NetworkSpecError(
            f"{model}/{Path(error.filename).name} cannot be read: {error.strerror}"
        ) from None
    except text_format.ParseError as error:
        raise NetworkSpecError(f"{model}/config.pbtxt is not valid: {error}") from None
    if len(config.input) != 1 or len(config.output) != 1:
        raise NetworkSpecError(f"{model}/config.pbtxt must state one input and one output")
    image, rows = config.input[0], config.output[0]
    for kind, tensor in (("input", image), ("output", rows)):
        if tensor.data_type != model_config_pb2.TYPE_FP32:
            raise NetworkSpecError(
                f"{model}/config.pbtxt: {kind} '{tensor.name}' must be TYPE_FP32"
            )
    given = {key: value.string_value for key, value in config.parameters.items()}
    letterbox = _one_of(model, given, "letterbox", LETTERBOX_MODES)
    best_class_only = _one_of(model, given, "head", HEADS) == "reduced"
    columns = 6 if best_class_only else 5 + len(names)
    if len(rows.dims) != 2 or rows.dims[1] != columns:
        raise NetworkSpecError(
            f"{model}: output '{rows.name}' has dims {list(rows.dims)}, but the last one must be"
            f" {columns}, as its head is {'reduced' if best_class_only else 'full'} and labels.txt"
            f" has {len(names)} names"
        )
    dims = tuple(image.dims)
    if letterbox == "rect":
        if dims != (3, -1, -1):
            raise NetworkSpecError(
                f"{model}/config.pbtxt: input '{image.name}' has dims {list(dims)};"
                " allowed with letterbox rect: [3, -1, -1]"
            )
        height, width, stride = (
            *_whole_numbers(model, given, "imgsz", 2),
            *_whole_numbers(model, given, "stride", 1),
        )
        if height % stride or width % stride:
            raise NetworkSpecError(
                f"{model}/config.pbtxt: imgsz is '{given['imgsz']}';"
                f" allowed: multiples of the stride, {stride}"
            )
    else:
        if len(dims) != 3 or dims[0] != 3 or min(dims) < 1:
            raise NetworkSpecError(
                f"{model}/config.pbtxt: input '{image.name}' has dims {list(dims)};"
                f" allowed with letterbox {letterbox}: [3, H, W]"
            )
        _, height, width = dims
        stride = 1
    return NetworkSpec(
        height=height,
        width=width,
        letterbox=letterbox,
        stride=stride,
        best_class_only=best_class_only,
        names=names,
    )


def _one_of(model: str, given: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    value = given.get(name) or allowed[0]
    if value not in allowed:
        raise NetworkSpecError(
            f"{model}/config.pbtxt: {name} is '{value}'; allowed: {', '.join(allowed)}"
        )
    return value


def _whole_numbers(model: str, given: Mapping[str, str], name: str, count: int) -> list[int]:
    words = given.get(name, "").split()
    if len(words) != count or not all(w.isdecimal() and 0 < int(w) <= 8192 for w in words):
        raise NetworkSpecError(
            f"{model}/config.pbtxt: {name} is '{given.get(name, '')}'; allowed with letterbox rect:"
            f" {count} whole number{'s' * (count > 1)} from 1 to 8192"
        )
    return [int(word) for word in words]
