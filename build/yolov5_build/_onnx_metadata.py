"""What the metadata of an ONNX file says: class names, stride, size, task; all read as data.

Exporters write them in many formats; the `ultralytics` package writes values as Python prints them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ._errors import BuildError
from ._labels import as_labels, is_name
from ._onnx_rows import Layout
from .metadata import as_size

_GIVE_NAMES = "give them with --names FILE, one a line"
MAX_CHARACTERS = 1 << 18  # of all names together
_USUAL_STRIDE = 32
_OTHER_TASKS = {
    "segment": "segmentation",
    "pose": "poses",
    "obb": "oriented boxes",
    "classify": "classification",
}


def check_task(name: str, metadata: Mapping[str, str]) -> None:
    """Refuse networks that are not made for detection.

    Raises:
        BuildError: the metadata state another task; the message begins with `name`.
    """
    task = metadata.get("task", "").strip().lower()
    if task in _OTHER_TASKS:
        raise BuildError(
            f"{name} is a network for {_OTHER_TASKS[task]} (task '{task}'); only detection networks"
            " are supported."
        )


def chooses_boxes(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata say that the network chooses its boxes itself."""
    arguments = _parse(metadata.get("args"))
    with_nms = isinstance(arguments, dict) and arguments.get("nms") is True
    return with_nms or _parse(metadata.get("end2end")) is True


def exported_size(text: str | None, step: int) -> tuple[int, int] | None:
    """Height and width in pixels that the metadata state; None if they are not multiples of `step`.

    Args:
        text: such as `[480, 640]`, `[640]` or `640`.
    """
    size = as_size(_parse(text))
    return None if size is None or any(side % step for side in size) else size


def class_names(
    name: str, given: Sequence[str] | None, text: str | None, classes: int | None
) -> list[str]:
    """One name for each class.

    Args:
        name: of the file, for error messages.
        given: names to use instead of those in the metadata.
        text: the names in the metadata.
        classes: how many names are needed; None if the network does not tell, and then as many as
            the metadata have.

    Raises:
        BuildError: names are missing, too few or too many.
    """
    labels: list[Any] = list(given) if given is not None else _parse_names(name, text)
    hint = "" if given is not None else f"; {_GIVE_NAMES}"
    if classes is None:
        classes = class_count(text) or len(labels)
    if len(labels) != classes:
        raise BuildError(f"{name} has {classes} classes but {len(labels)} class names{hint}.")
    return list(as_labels(labels))


def class_count(text: str | None) -> int | None:
    """The number of class names in the metadata; None if there are none."""
    try:
        return len(_parse_names("", text)) or None
    except BuildError:
        return None


def _parse(text: str | None) -> Any:
    """A value in the syntax of Python or JSON; None if it is none."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse((text or "")[:MAX_CHARACTERS])
        except Exception:  # they raise more types than are documented
            continue
    return None


def _parse_names(name: str, text: str | None) -> list[Any]:
    """Names from a list or a dict by index, in the syntax of Python or JSON."""
    names = _parse(text)
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


def largest_stride(text: str | None, layout: Layout | None, height: int, width: int) -> int:
    """The largest stride: that in the metadata if it is possible, else the layout's.

    Without a layout it is the usual one, or less if the size is not a multiple of that.
    """
    least = layout.strides[-1] if layout else 1
    try:
        stride = int(text or "")
    except ValueError:
        stride = 0
    if stride in range(least, 129) and height % stride == width % stride == 0:
        return stride
    stride = least if layout else _USUAL_STRIDE
    while height % stride or width % stride:
        stride //= 2
    return stride
