"""The metadata of an ONNX file that this tool wrote."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from . import _contract as contract


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The metadata of an ONNX file.

    Attributes:
        names: class names, index = class.
        stride: height and width must be multiples of it, in pixels.
        head: one of `HEADS`.
        precision: one of `PRECISIONS`.
        provenance: where the network comes from, in one line.
        source: one of `SOURCES`.
        max_batch_size: images in a batch, None for the repository's default.
        imgsz: height and width in pixels that a network of open size was exported for, if known.
        padding: `EXACT` or `WHOLE`.
    """

    names: tuple[str, ...]
    stride: int
    head: str
    precision: str
    provenance: str
    source: str = contract.FROM_CHECKPOINT
    max_batch_size: int | None
    imgsz: tuple[int, int] | None = None
    padding: str = contract.EXACT


def read_metadata(model: onnx.ModelProto | Path) -> Metadata:
    """Read the metadata of a file that `export_onnx`, `import_onnx` or `quantise` wrote."""
    if isinstance(model, Path):
        model = onnx.load(model, load_external_data=False)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    limit = entries.get(contract.MAX_BATCH_KEY)
    size = entries.get(contract.IMGSZ_KEY)
    return Metadata(
        names=tuple(ast.literal_eval(entries[contract.NAMES_KEY]).values()),
        stride=int(entries[contract.STRIDE_KEY]),
        head=entries[contract.HEAD_KEY],
        precision=entries[contract.PRECISION_KEY],
        provenance=" ".join(entries[contract.PROVENANCE_KEY].split()),
        source=entries.get(contract.SOURCE_KEY, contract.FROM_CHECKPOINT),
        max_batch_size=int(limit) if limit else None,
        imgsz=tuple(ast.literal_eval(size)) if size else None,
        padding=entries.get(contract.PADDING_KEY, contract.EXACT),
    )


def as_size(value: object) -> tuple[int, int] | None:
    """Height and width in pixels from `640`, `[640]` or `[480, 640]`; None for anything else."""
    sides: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    if len(sides) not in (1, 2) or not all(type(side) is int and side > 0 for side in sides):
        return None
    return sides[0], sides[-1]
