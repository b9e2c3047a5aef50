"""Class names and stride in the metadata of an ONNX file, which exporters write in many formats."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from ._errors import BuildError
from ._labels import as_labels, is_name
from ._onnx_rows import Layout

_GIVE_NAMES = "give them with --names FILE, one a line"
MAX_CHARACTERS = 1 << 18  # of all names together


def class_names(
    name: str, given: Sequence[str] | None, text: str | None, classes: int
) -> list[str]:
    """One name for each class.

    Args:
        name: of the file, for error messages.
        given: names to use instead of those in the metadata.
        text: the names in the metadata.
        classes: how many names are needed.

    Raises:
        BuildError: names are missing, too few or too many.
    """
    labels: list[Any] = list(given) if given is not None else _parse_names(name, text)
    hint = "" if given is not None else f"; {_GIVE_NAMES}"
    if len(labels) != classes:
        raise BuildError(f"{name} has {classes} classes but {len(labels)} class names{hint}.")
    return list(as_labels(labels))


def _parse_names(name: str, text: str | None) -> list[Any]:
    """Names from a list or a dict by index, in the syntax of Python or JSON."""
    names: Any = None
    for parse in (json.loads, ast.literal_eval):
        try:
            names = parse((text or "")[:MAX_CHARACTERS])
            break
        except Exception:  # they raise more types than are documented
            continue
    try:
        if isinstance(names, dict):
            by_index = {int(index): label for index, label in names.items()}
            if sorted(by_index) != list(range(len(names))):
                raise BuildError(
                    f"{name} has class names that are not numbered from 0 without a gap;"
                    f" {_GIVE_NAMES}."
                )
            names = [by_index[index] for index in range(len(names))]
    except (TypeError, ValueError):
        names = None
    if not isinstance(names, (list, tuple)) or not all(is_name(label) for label in names):
        raise BuildError(f"{name} has no class names in it; {_GIVE_NAMES}.")
    return list(names)


def largest_stride(text: str | None, layout: Layout, height: int, width: int) -> int:
    """The largest stride: that in the metadata if it is possible, else the layout's."""
    try:
        stride = int(text or "")
    except ValueError:
        stride = 0
    valid = stride in range(layout.strides[-1], 129) and height % stride == width % stride == 0
    return stride if valid else layout.strides[-1]
