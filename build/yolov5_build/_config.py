"""The text of a network's configurations: one for any Triton, another for the embedded server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from . import _contract as contract
from .metadata import Metadata

# Placeholders in capitals, here and in the parts below, are names of `_contract`; the others are
# values of the network.
_TEMPLATE = Path(__file__).with_name("config.pbtxt")
_COLUMNS = {
    contract.FULL: (
        "cx, cy, w, h in model pixels, objectness, one score for each line of labels.txt."
    ),
    contract.REDUCED: (
        "cx, cy, w, h in model pixels, the best class's score, its line in labels.txt."
    ),
    contract.END2END: "x1, y1, x2, y2 in model pixels, score, its line in labels.txt.",
}
_CHOSEN = """
# The network chooses its boxes itself, and they are served as they are: conf_thres, classes and
# max_det apply, iou_thres has no effect, and agnostic_nms and multi_label are refused."""
_WHOLE = """
# Boxes are mapped back with the padding in whole pixels, as the picture was placed (default: exact,
# as YOLOv5 does).
parameters { key: "$PADDING_KEY" value: { string_value: "$WHOLE" } }
"""
_OPEN_SIZE = """
# Largest height and width of the input, and the stride that both are multiples of.
parameters { key: "$IMGSZ_KEY" value: { string_value: "$height $width" } }
parameters { key: "$STRIDE_KEY" value: { string_value: "$stride" } }
"""
_ONNX_RUNTIME = """\
# The network with images of 0..1 and all rows, which the embedded server runs on a GPU.
parameters { key: "$FULL_FILE_KEY" value: { string_value: "$WEIGHTS_FILE" } }

# Threads for each image; 0 leaves the choice to the backend.
parameters { key: "intra_op_thread_count" value: { string_value: "0" } }"""
_OPENVINO_BF16 = """# The parameter of Triton's own OpenVINO backend.
parameters { key: "HINT_BF16" value: { string_value: "YES" } }"""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The facts that a network's configurations state.

    Attributes:
        metadata: of its ONNX file.
        letterbox: one of `LETTERBOX_MODES`; `rect` leaves height and width open.
        height, width: of the input in pixels; with `rect` the largest.
        columns: of the output.
        max_batch_size: images in a batch.
        name: of the network.
    """

    metadata: Metadata
    letterbox: str
    height: int
    width: int
    columns: int
    max_batch_size: int
    name: str = contract.MODEL


def config_texts(network: NetworkConfig, *, bf16: bool) -> dict[str, str]:
    """The text of each configuration, by the name of its file.

    Args:
        bf16: include the configuration with which the embedded server computes in BF16.
    """
    texts = {
        contract.CONFIG_FILE: _render(
            network,
            backend=contract.ONNX_RUNTIME_BACKEND,
            precision=network.metadata.precision,
            file=contract.SERVED_FILE,
            runtime=_ONNX_RUNTIME,
        )
    }
    if bf16:
        texts[contract.BF16_CONFIG_FILE] = _render(
            network,
            backend=contract.OPENVINO_BACKEND,
            precision=contract.BF16,
            file=contract.WEIGHTS_FILE,
            runtime=_OPENVINO_BF16,
        )
    return texts


def _render(
    network: NetworkConfig, *, backend: str, precision: str, file: str, runtime: str
) -> str:
    """Fill in the template, and check that Triton can parse the result."""
    metadata, rect = network.metadata, network.letterbox == contract.RECT
    values = {
        **{name: value for name, value in vars(contract).items() if name.isupper()},
        "name": network.name,
        "provenance": metadata.provenance,
        "backend": backend,
        "precision": precision,
        "file": file,
        "max_batch_size": network.max_batch_size,
        "dims": "3, -1, -1" if rect else f"3, {network.height}, {network.width}",
        "height": network.height,
        "width": network.width,
        "stride": metadata.stride,
        "letterbox": network.letterbox,
        "head": metadata.head,
        "source": metadata.source,
        "columns_are": _COLUMNS[metadata.head],
        "columns": network.columns,
    }
    parts = {
        "chosen": _CHOSEN if metadata.head == contract.END2END else "",
        "padding": _WHOLE if metadata.padding == contract.WHOLE else "",
        "open_size": _OPEN_SIZE if rect else "",
        "runtime": runtime,
    }
    rendered = {name: Template(part).substitute(values) for name, part in parts.items()}
    text = Template(_TEMPLATE.read_text("utf-8")).substitute(values, **rendered)
    text_format.Parse(text, model_config_pb2.ModelConfig())
    return text
