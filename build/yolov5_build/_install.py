"""Putting an exported network into the model repository, as the model that is served."""

from __future__ import annotations

import ast
import shutil
import tempfile
from pathlib import Path
from string import Template

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ._errors import BuildError
from ._names import INPUT, LABELS_FILE, MODEL, OUTPUT, WEIGHTS_FILE

_TEMPLATE = Path(__file__).with_name("config.pbtxt")


def install_onnx(
    weights: Path, repository: Path, *, provenance: str, letterbox: str = "square"
) -> None:
    """Write config, labels and weights of `yolov5` together, replacing what is there.

    Args:
        weights: ONNX from `export_onnx`.
        repository: the model repository.
        provenance: one line for the head of the configuration: where the network comes from.
        letterbox: `square` or `stretch`.

    Raises:
        BuildError: a class name cannot be written as a line.
    """
    model = onnx.load(weights)
    height, width = _shape(model.graph.input, INPUT)[2:]
    rows, columns = _shape(model.graph.output, OUTPUT)[1:]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    names = list(ast.literal_eval(metadata["names"]).values())
    if any(len(name.splitlines()) != 1 for name in names):
        raise BuildError("A class name is empty or has a line break, so it cannot be a label.")
    config = Template(_TEMPLATE.read_text("utf-8")).substitute(
        provenance=" ".join(provenance.split()),
        height=height,
        width=width,
        rows=rows,
        columns=columns,
        letterbox=letterbox,
    )
    text_format.Parse(config, model_config_pb2.ModelConfig())

    # Beside the old folder first, so that there is never half a model under its name.
    with tempfile.TemporaryDirectory(prefix=f".{MODEL}-", dir=repository.parent) as staging:
        new = Path(staging, MODEL)
        (new / "1").mkdir(parents=True)
        shutil.copyfile(weights, new / "1" / WEIGHTS_FILE)
        (new / LABELS_FILE).write_text("".join(f"{name}\n" for name in names), "utf-8")
        (new / "config.pbtxt").write_text(config, "utf-8")
        served = repository / MODEL
        if served.exists():
            served.rename(Path(staging, "old"))
        new.rename(served)


def _shape(tensors: object, name: str) -> list[int]:
    for tensor in tensors:  # type: ignore[attr-defined]
        if tensor.name == name:
            return [side.dim_value for side in tensor.type.tensor_type.shape.dim]
    raise BuildError(f"The model has no tensor called {name!r}.")
