"""Putting a network into the model repository, as the one that is served."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from . import _contract as contract
from ._errors import BuildError
from ._metadata import read_metadata
from ._version import new_version

_TEMPLATE = Path(__file__).with_name("config.pbtxt")
MAX_BATCH_SIZE = 8
_BATCH_LINE = re.compile(r"(?m)^max_batch_size: (\d+)$")
_COLUMNS = {
    contract.FULL: "objectness, one score for each line of labels.txt.",
    contract.REDUCED: "the best class's score, its line in labels.txt.",
}
_OPEN_SIZE = """
# The input's largest height and width, and what both are multiples of.
parameters { key: "imgsz" value: { string_value: "$height $width" } }
parameters { key: "stride" value: { string_value: "$stride" } }
"""
_NORMALISED = """# RGB 0..1, letterboxed.
  { name: "images" data_type: TYPE_FP32 dims: [ $dims ] }"""
_COMPACT = """# RGB 0..1, letterboxed; or the same as 0..255, which is a quarter of the bytes.
  { name: "images" data_type: TYPE_FP32 dims: [ $dims ] optional: true },
  { name: "pixels" data_type: TYPE_UINT8 dims: [ $dims ] optional: true },
  # The first of the five is conf_thres; rows whose objectness is not over it are left out.
  { name: "nms" data_type: TYPE_FP32 dims: [ 5 ] optional: true }"""
_PREFILTERED = """\
# Who sends pixels and nms is answered by this variant of the network, which decodes no more rows.
parameters { key: "prefiltered" value: { string_value: "prefiltered.onnx" } }

"""
_ONNX_RUNTIME = """# Another number than 0 is how many threads each image gets.
parameters { key: "intra_op_thread_count" value: { string_value: "0" } }"""
# What one image is, for the calls before the first; of the thresholds only conf_thres is read.
_IMAGE = """
      key: "images"
      value: { data_type: TYPE_FP32 dims: [ 3, $height, $width ] random_data: true }"""
_COMPACT_IMAGE = """
      key: "pixels"
      value: { data_type: TYPE_UINT8 dims: [ 3, $height, $width ] random_data: true }
    }
    inputs {
      key: "nms"
      value: { data_type: TYPE_FP32 dims: [ 5 ] zero_data: true }"""
_OPENVINO_BF16 = """# By the name and value that Triton's own backend has.
parameters { key: "HINT_BF16" value: { string_value: "YES" } }"""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What is served from now on.

    Attributes:
        version: its number, one up from what was served before.
        height, width: of the input in pixels; with letterbox `rect` the most it may be.
        names: class names, index = class.
    """

    version: int
    height: int
    width: int
    names: tuple[str, ...]


def install_onnx(
    weights: Path,
    repository: Path,
    *,
    letterbox: str = contract.SQUARE,
    imgsz: tuple[int, int] | None = None,
    bf16: bool = False,
    prefiltered: Path | None = None,
) -> Installed:
    """Write config, labels and weights of `yolov5` together, as a new version of what is there.

    Args:
        weights: ONNX from `export_onnx` or `import_onnx`.
        repository: the model repository.
        letterbox: `square`, `rect` or `stretch`.
        imgsz: height and width where the network leaves them open (640 x 640 unless given).
        bf16: also write the configuration with which the embedded server computes in BF16.
        prefiltered: from `export_prefiltered`, for the embedded server as well.

    Raises:
        BuildError: the network cannot do this letterbox mode, a class name cannot be written as a
            line, or the repository cannot be written to. What was served stays.
    """
    model = onnx.load(weights)
    metadata = read_metadata(model)
    if any(len(label.splitlines()) != 1 for label in metadata.names):
        raise BuildError("a class name is empty or has a line break, so it cannot be a label.")
    max_batch_size = metadata.max_batch_size or MAX_BATCH_SIZE
    stride = metadata.stride
    _, _, fixed_height, fixed_width = _shape(model.graph.input, contract.INPUT)
    _, rows, columns = _shape(model.graph.output, contract.OUTPUT)
    height, width = imgsz or contract.DEFAULT_SIZE
    if fixed_height:
        height, width = fixed_height, fixed_width
    if letterbox == contract.RECT and fixed_height:
        raise BuildError(
            f"letterbox rect needs a network with open height and width; these are fixed to"
            f" {height}x{width}."
        )
    if height % stride or width % stride:
        raise BuildError(f"image size {height}x{width} is not a multiple of the stride, {stride}.")
    # A network with open sides is served with fixed ones unless it is rect that wants them open;
    # the rows then follow from the sides, but are not known here.
    rect = letterbox == contract.RECT
    template = _TEMPLATE.read_text("utf-8").replace("$open_size", _OPEN_SIZE if rect else "")
    dims = "3, -1, -1" if rect else f"3, {height}, {width}"
    sides = {"height": height, "width": width}
    config = partial(
        Template(template).substitute,
        provenance=metadata.provenance,
        max_batch_size=max_batch_size,
        columns_are="cx, cy, w, h in model pixels, " + _COLUMNS[metadata.head],
        **sides,
        stride=stride,
        letterbox=letterbox,
        head=metadata.head,
        source=metadata.source,
    )
    compact = partial(
        config,
        inputs=Template(_COMPACT).substitute(dims=dims),
        output_dims=f"-1, {columns}",
        image=Template(_COMPACT_IMAGE).substitute(sides),
    )
    by_onnx_runtime = {"backend": "onnxruntime", "precision": metadata.precision}
    configs = {
        contract.CONFIG_FILE: config(
            inputs=Template(_NORMALISED).substitute(dims=dims),
            output_dims=f"{rows or -1}, {columns}",
            image=Template(_IMAGE).substitute(sides),
            runtime=_ONNX_RUNTIME,
            **by_onnx_runtime,
        ),
        contract.EMBEDDED_CONFIG_FILE: compact(
            runtime=_PREFILTERED * bool(prefiltered) + _ONNX_RUNTIME, **by_onnx_runtime
        ),
    }
    if bf16:
        configs[contract.EMBEDDED_BF16_CONFIG_FILE] = compact(
            backend="openvino", runtime=_OPENVINO_BF16, precision=contract.BF16
        )
    for text in configs.values():
        text_format.Parse(text, model_config_pb2.ModelConfig())
    with new_version(repository) as (folder, version):
        shutil.copyfile(weights, version / contract.WEIGHTS_FILE)
        if prefiltered:
            shutil.copyfile(prefiltered, version / contract.PREFILTERED_FILE)
        (folder / contract.LABELS_FILE).write_text(
            "".join(f"{name}\n" for name in metadata.names), "utf-8"
        )
        for name, text in configs.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, "utf-8")
        _limit_batches(repository, max_batch_size)
    return Installed(version=int(version.name), height=height, width=width, names=metadata.names)


def _limit_batches(repository: Path, new: int) -> None:
    """Keep the endpoint's limit at the network's: Triton does not start with a larger one.

    A smaller one that an operator has set stays as it is.
    """
    ensemble = repository / contract.ENSEMBLE / contract.CONFIG_FILE
    served = repository / contract.MODEL / contract.CONFIG_FILE
    if not ensemble.is_file():
        return
    text = ensemble.read_text("utf-8")
    now = _BATCH_LINE.search(text)
    before = _BATCH_LINE.search(served.read_text("utf-8")) if served.is_file() else None
    if now and (int(now[1]) > new or (before and now[1] == before[1])):
        changed = _BATCH_LINE.sub(f"max_batch_size: {new}", text)
        if changed != text:
            ensemble.write_text(changed, "utf-8")


def _shape(tensors: object, name: str) -> list[int]:
    """The sides of a tensor, 0 for those that are open."""
    for tensor in tensors:  # type: ignore[attr-defined]
        if tensor.name == name:
            return [side.dim_value for side in tensor.type.tensor_type.shape.dim]
    raise BuildError(f"the network has no tensor called {name!r}.")
