"""Install a network in the model repository, as the one that is served."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from . import _contract as contract
from ._config import NetworkConfig, config_texts
from ._errors import BuildError
from ._version import new_version
from .metadata import read_metadata

MAX_BATCH_SIZE = 8
_BATCH_LINE = re.compile(r"(?m)^max_batch_size: (\d+)$")


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A network that has been installed.

    Attributes:
        version: one more than that of the network installed before.
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
) -> Installed:
    """Write configurations, labels and weights of `yolov5` together, as a new version.

    Args:
        weights: ONNX from `export_onnx` or `import_onnx`.
        repository: the model repository.
        letterbox: `square`, `rect` or `stretch`.
        imgsz: height and width in pixels, if the network leaves them open (default: what
            it was exported for, else 640 x 640).
        bf16: also write the configuration with which the embedded server computes in BF16.
        prefiltered: ONNX from `export_prefiltered`, for the embedded server.

    Raises:
        BuildError: the network does not support this letterbox mode, a class name cannot be
            written as a line, or the repository cannot be written to. The installed network
            stays as it is.
    """
    network = _network_config(onnx.load(weights), letterbox, imgsz)
    configs = config_texts(network, bf16=bf16, prefiltered=prefiltered is not None)
    labels = network.metadata.names
    with new_version(repository, partial(_batch_limit, repository, network.max_batch_size)) as (
        folder,
        version,
    ):
        shutil.copyfile(weights, version / contract.WEIGHTS_FILE)
        if prefiltered:
            shutil.copyfile(prefiltered, version / contract.PREFILTERED_FILE)
        lines = "".join(f"{label}\n" for label in labels)
        (folder / contract.LABELS_FILE).write_text(lines, "utf-8")
        for name, text in configs.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, "utf-8")
    return Installed(
        version=int(version.name), height=network.height, width=network.width, names=labels
    )


def _network_config(
    model: onnx.ModelProto, letterbox: str, imgsz: tuple[int, int] | None
) -> NetworkConfig:
    """Collect and check the facts that a network's configurations state.

    A network with open sides is served with fixed ones, except for letterbox `rect`, which needs
    them open. The number of rows then depends on the sides, and is not known here.

    Raises:
        BuildError: as `install_onnx`.
    """
    metadata = read_metadata(model)
    if any(len(label.splitlines()) != 1 for label in metadata.names):
        raise BuildError("a class name is empty or has a line break, so it cannot be a label.")
    _, _, fixed_height, fixed_width = _shape(model.graph.input, contract.INPUT)
    _, rows, columns = _shape(model.graph.output, contract.OUTPUT)
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
        rows=rows or None,
        columns=columns,
        max_batch_size=metadata.max_batch_size or MAX_BATCH_SIZE,
    )


@contextmanager
def _batch_limit(repository: Path, new: int) -> Iterator[None]:
    """Set the batch limit of the endpoint to that of the network, which is exchanged in the block.

    Triton refuses an endpoint with a larger limit than its network's. Until the network is
    exchanged, the limit is therefore the smaller one of the old and the new network's. All
    configurations of the ensemble are changed, whichever the server will choose. A smaller limit
    that an operator has set stays as it is.
    """
    ensemble = repository / contract.ENSEMBLE
    configs = (ensemble / contract.CONFIG_FILE, *ensemble.glob("configs/*.pbtxt"))
    limits = {config: limit for config in configs if (limit := _read_limit(config))}
    before = _read_limit(repository / contract.MODEL / contract.CONFIG_FILE)
    following = [config for config, now in limits.items() if now > new or now == before]
    _write_limit(following, min(new, before or new))
    yield
    _write_limit(following, new)


def _read_limit(config: Path) -> int | None:
    found = _BATCH_LINE.search(config.read_text("utf-8")) if config.is_file() else None
    return int(found[1]) if found else None


def _write_limit(configs: Iterable[Path], limit: int) -> None:
    for config in configs:
        text = config.read_text("utf-8")
        changed = _BATCH_LINE.sub(f"max_batch_size: {limit}", text)
        if changed != text:
            new = config.with_name(f".{config.name}.new")
            new.write_text(changed, "utf-8")
            new.replace(config)


def _shape(tensors: object, name: str) -> list[int]:
    """The dimensions of a tensor, 0 for open ones."""
    for tensor in tensors:  # type: ignore[attr-defined]
        if tensor.name == name:
            return [side.dim_value for side in tensor.type.tensor_type.shape.dim]
    raise BuildError(f"the network has no tensor called {name!r}.")
