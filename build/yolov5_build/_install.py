"""Install a network in the model repository, as the one that is served."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from . import _contract as contract
from ._config import NetworkConfig, config_texts
from ._endpoint import endpoint_for
from ._errors import BuildError
from ._networks import check_target
from ._onnx_prefiltered import prefiltered_from
from ._record import Accuracy, new_record, write_record
from ._version import new_version, version_folder
from .metadata import read_metadata

MAX_BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A network that has been installed.

    Attributes:
        version: one more than the highest that was served or kept.
        height, width: of the input in pixels; with letterbox `rect` the largest.
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
    name: str = contract.MODEL,
    options: Sequence[str] = (),
    accuracy: Accuracy | None = None,
) -> Installed:
    """Write configurations, labels and weights of a network together, as a new version.

    A network without an endpoint gets one.

    Args:
        weights: ONNX from `export_onnx` or `import_onnx`.
        repository: the model repository.
        letterbox: `square`, `rect` or `stretch`.
        imgsz: height and width in pixels if the network leaves them open; by default its own.
        bf16: also write the configuration with which the embedded server computes in BF16.
        prefiltered: ONNX from `export_prefiltered` or `write_prefiltered`; unless given, it is made
            of `weights`, without comparing the two.
        name: of the network.
        options: those of the command, for the record.
        accuracy: in the form that is served, for the record.

    Raises:
        BuildError: the network does not support this letterbox mode, a class name cannot be
            written as a line, the name is not allowed, there are as many networks as a server
            takes, or the repository cannot be written to. The installed network stays as it is.
    """
    check_target(repository, name)
    network = _network_config(onnx.load(weights), letterbox, imgsz, name)
    configs = config_texts(network, bf16=bf16)
    labels = network.metadata.names
    exchanging = partial(endpoint_for, repository, name, network.max_batch_size)
    with new_version(repository, exchanging, name=name) as (folder, version):
        _write_weights(version, weights, prefiltered)
        texts = {contract.LABELS_FILE: "".join(f"{label}\n" for label in labels), **configs}
        _write_texts(folder, texts)
        if record := new_record(network.metadata.provenance, options, accuracy):
            write_record(version, record)
    # Another process may have installed one meanwhile, so that this one got another number.
    installed = version_folder(repository / name) or version
    return Installed(
        version=int(installed.name), height=network.height, width=network.width, names=labels
    )


def _write_weights(version: Path, weights: Path, prefiltered: Path | None) -> None:
    shutil.copyfile(weights, version / contract.WEIGHTS_FILE)
    if prefiltered:
        shutil.copyfile(prefiltered, version / contract.SERVED_FILE)
    else:
        onnx.save(prefiltered_from(onnx.load(weights)), version / contract.SERVED_FILE)


def _write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    for file, text in texts.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, "utf-8")


def _network_config(
    model: onnx.ModelProto, letterbox: str, imgsz: tuple[int, int] | None, name: str
) -> NetworkConfig:
    """Collect and check the facts that a network's configurations state.

    A network with open sides is served with fixed ones, except for letterbox `rect`, which needs
    them open.

    Raises:
        BuildError: as `install_onnx`.
    """
    metadata = read_metadata(model)
    if any(len(label.splitlines()) != 1 for label in metadata.names):
        raise BuildError("a class name is empty or has a line break, so it cannot be a label.")
    _, _, fixed_height, fixed_width = _shape(model.graph.input, contract.INPUT)
    _, _, columns = _shape(model.graph.output, contract.OUTPUT)
    height, width = imgsz or metadata.imgsz or contract.DEFAULT_SIZE
    if fixed_height:
        height, width = fixed_height, fixed_width
    if letterbox == contract.RECT and fixed_height:
        raise BuildError(
            f"letterbox rect needs a network with open height and width; these are fixed to"
            f" {height}x{width}."
        )
    stride = metadata.stride
    if height % stride or width % stride:
        raise BuildError(f"image size {height}x{width} is not a multiple of the stride, {stride}.")
    return NetworkConfig(
        metadata=metadata,
        letterbox=letterbox,
        height=height,
        width=width,
        columns=columns,
        max_batch_size=metadata.max_batch_size or MAX_BATCH_SIZE,
        name=name,
    )


def _shape(tensors: object, name: str) -> list[int]:
    """The dimensions of a tensor, 0 for open ones."""
    for tensor in tensors:  # type: ignore[attr-defined]
        if tensor.name == name:
            return [side.dim_value for side in tensor.type.tensor_type.shape.dim]
    raise BuildError(f"the network has no tensor called {name!r}.")
