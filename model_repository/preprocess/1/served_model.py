"""What `yolov5/` says of the network that is served, read and checked when the server starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

MODEL = "yolov5"
LETTERBOX_MODES = ("square", "stretch")


class ServedModelError(ValueError):
    """The files in `yolov5/` do not fit each other; the message is one sentence."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The network's side of the bargain.

    Attributes:
        height, width: of its input, in pixels.
        letterbox: how a picture is fitted into that.
        names: class names, index = class.
    """

    height: int
    width: int
    letterbox: str
    names: tuple[str, ...]


def read_served_model(repository: Path) -> ServedModel:
    """Read `yolov5/config.pbtxt` and `yolov5/labels.txt` below the model repository.

    Raises:
        ServedModelError: a file is missing, or they contradict each other.
    """
    folder = repository / MODEL
    try:
        config = text_format.Parse(
            (folder / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig()
        )
        names = tuple((folder / "labels.txt").read_text("utf-8").splitlines())
    except OSError as error:
        raise ServedModelError(
            f"{MODEL}/{Path(error.filename).name} cannot be read: {error.strerror}"
        ) from None
    except text_format.ParseError as error:
        raise ServedModelError(f"{MODEL}/config.pbtxt is not valid: {error}") from None
    if len(config.input) != 1 or len(config.output) != 1:
        raise ServedModelError(f"{MODEL}/config.pbtxt must state one input and one output")
    image, rows = config.input[0], config.output[0]
    if image.data_type != model_config_pb2.TYPE_FP32:
        raise ServedModelError(f"{MODEL}/config.pbtxt: input '{image.name}' must be TYPE_FP32")
    dims = tuple(image.dims)
    if len(dims) != 3 or dims[0] != 3 or min(dims) < 1:
        raise ServedModelError(
            f"{MODEL}/config.pbtxt: input '{image.name}' has dims {list(dims)}; allowed: [3, H, W]"
        )
    if len(rows.dims) != 2 or rows.dims[1] != 5 + len(names):
        raise ServedModelError(
            f"{MODEL}: output '{rows.name}' has dims {list(rows.dims)}, but labels.txt has"
            f" {len(names)} names; the last dimension must be 5 more than that"
        )
    letterbox = config.parameters["letterbox"].string_value or "square"
    if letterbox not in LETTERBOX_MODES:
        raise ServedModelError(
            f"{MODEL}/config.pbtxt: letterbox is '{letterbox}';"
            f" allowed: {', '.join(LETTERBOX_MODES)}"
        )
    return ServedModel(height=dims[1], width=dims[2], letterbox=letterbox, names=names)
