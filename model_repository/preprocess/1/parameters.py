"""Request parameters: their names, kinds and ranges, and the only place where they are read.

A parameter comes under its own name (`conf_thres`) or, with a raw HTTP body, as a header
(`X-Yolo-Conf-Thres: 0.4`), which is always text and in any letter case.

One thread reads the parameters of all requests, so their length is limited.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from thresholds import MAX_DET, NOT_REPORTED, Thresholds

# Parameters that Triton itself adds or reads; `id` is the id of a request in a body of /generate.
_RESERVED = re.compile(
    r"sequence_\w+|triton_\w+|priority|timeout|headers|binary_data(_size|_output)?|classification"
    # The header of a gRPC request, which the launcher has Triton forward if traces are on.
    r"|traceparent"
    r"|shared_memory_\w+|id",
    re.IGNORECASE,
)
_HEADER = re.compile(r"x-yolo-", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_WHOLE_NUMBER = re.compile(r"\d+", re.ASCII)

MAX_BYTES = 4096  # of one parameter, in UTF-8
# Characters of all parameters as JSON: more than the longest valid ones, with every character
# escaped.
_MAX_TEXT = 256 * 1024


class ParameterError(ValueError):
    """A request parameter is refused; the message names it and says what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Parameters(Thresholds):
    """How the detections of one request are chosen: the thresholds, and the classes.

    Attributes:
        classes: indices of the classes to report; empty for all.
        class_conf_thres: by the index of a class, its confidence in place of `conf_thres`.
    """

    classes: frozenset[int]
    class_conf_thres: Mapping[int, float]

    def as_rows(self, count: int) -> tuple[tuple[float, ...], list[float]]:
        """One row of each of the tensors `nms` and `class_conf_thres`.

        Args:
            count: of the model's classes.
        """
        by_class = [
            self.class_conf_thres.get(index, self.conf_thres)
            if not self.classes or index in self.classes
            else NOT_REPORTED
            for index in range(count)
        ]
        return replace(self, conf_thres=min(by_class)).as_row(), by_class


def read_json(text: str) -> dict[str, object]:
    """Read the JSON object in which Triton hands over the parameters of a request.

    Raises:
        ParameterError: the text is too long.
    """
    if len(text) > _MAX_TEXT:
        raise ParameterError(
            f"the parameters are {len(text)} characters long; allowed: at most {_MAX_TEXT}"
        )
    given: dict[str, object] = json.loads(text)
    return given


def parse_parameters(
    given: Mapping[str, object],
    class_names: Sequence[str],
    defaults: Parameters,
    *,
    best_class_only: bool = False,
    end_to_end: bool = False,
) -> Parameters:
    """Read one request's parameters.

    Args:
        given: as Triton passes them: name -> str, int, float or bool.
        class_names: of the model; `classes` and `class_conf_thres` may contain them.
        defaults: values of the parameters that are not given.
        best_class_only: the model reports only the best class of a box, and multi_label is
            impossible.
        end_to_end: the model chooses its boxes itself, and agnostic_nms is impossible.

    Raises:
        ParameterError: an unknown name, a wrong kind, a value out of range, or a name given twice.
    """
    parameters = replace(defaults, **_read(given, class_names))
    return _check_head(parameters, best_class_only=best_class_only, end_to_end=end_to_end)


def read_defaults(
    given: Mapping[str, object],
    class_names: Sequence[str],
    *,
    best_class_only: bool = False,
    end_to_end: bool = False,
) -> Parameters:
    """Read the defaults from `config.pbtxt`, which must hold all but those about classes.

    Raises:
        ParameterError: as for `parse_parameters`, or a default is missing.
    """
    values = {"classes": frozenset(), "class_conf_thres": {}, **_read(given, class_names)}
    for name in PARAMETER_NAMES:
        if name not in values:
            raise ParameterError(f"{name} has no default; allowed: one for each parameter")
    parameters = Parameters(**values)
    return _check_head(parameters, best_class_only=best_class_only, end_to_end=end_to_end)


def _check_head(parameters: Parameters, *, best_class_only: bool, end_to_end: bool) -> Parameters:
    """Refuse what the model's head cannot do.

    An `iou_thres` is accepted of any head: every request has one, if only the default.
    """
    if parameters.multi_label and best_class_only:
        raise ParameterError(
            "multi_label is true, but this model tells only the best class of each box;"
            " allowed: false"
        )
    if parameters.agnostic_nms and end_to_end:
        raise ParameterError(
            "agnostic_nms is true, but this model suppresses overlapping boxes itself;"
            " allowed: false"
        )
    return parameters


def _read(given: Mapping[str, object], class_names: Sequence[str]) -> dict[str, Any]:
    values: dict[str, object] = {}
    for key, value in given.items():
        if _RESERVED.fullmatch(key):
            continue
        name = _HEADER.sub("", key, count=1).lower().replace("-", "_")
        reader = _READERS.get(name)
        # Only headers may be spelt in any letter case.
        if reader is None or (name != key and not _HEADER.match(key)):
            raise ParameterError(
                f"parameter {_quoted(key)} is unknown; allowed: {', '.join(_READERS)}"
            )
        if name in values:
            raise ParameterError(f"parameter '{name}' is given twice; allowed: once")
        if isinstance(value, str) and len(value.encode("utf-8", "replace")) > MAX_BYTES:
            raise ParameterError(f"{name} is too long; allowed: at most {MAX_BYTES} bytes")
        values[name] = reader(name, value, class_names)
    return values


def _quoted(value: object) -> str:
    """A caller's value, for a message: on one line, printable, short."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:56]}...'"


def _read_unit_interval(name: str, value: object, class_names: Sequence[str]) -> float:
    number = math.nan
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        number = float(value)
    elif isinstance(value, (int, float)) and _is_number(value):
        number = value  # a whole number may be too large for a float
    if not 0 <= number <= 1:
        raise ParameterError(f"{name} is {_quoted(value)}; allowed: a number from 0 to 1")
    return float(number)


def _read_max_det(name: str, value: object, class_names: Sequence[str]) -> int:
    number = 0
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value.strip()) and len(value) < 20:
        number = int(value)
    elif isinstance(value, int) and _is_number(value):
        number = value
    if not 1 <= number <= MAX_DET:
        raise ParameterError(
            f"{name} is {_quoted(value)}; allowed: a whole number from 1 to {MAX_DET}"
        )
    return number


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read_flag(name: str, value: object, class_names: Sequence[str]) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        flag = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
        if flag is not None:
            return flag
    raise ParameterError(f"{name} is {_quoted(value)}; allowed: true or false")


def _read_classes(name: str, value: object, class_names: Sequence[str]) -> frozenset[int]:
    if not isinstance(value, str):
        raise ParameterError(
            f"{name} is {_quoted(value)}; allowed: a string of indices or names, such as '0,2'"
        )
    if value.lstrip().startswith("["):
        items, find = _read_json_list(name, value), _classes_from_json
    else:
        items, find = [item.strip() for item in value.split(",")], _classes_from_text
    named, count = _indices_by_name(class_names), len(class_names)
    chosen: set[int] = set()
    for item in items:
        indices = find(item, named, count)
        if not indices:
            raise ParameterError(
                f"{name} names {_quoted(item)}; allowed: indices from 0 to {count - 1} or class"
                f" names such as {_quoted(class_names[0])}, separated by commas or as a JSON list"
            )
        chosen |= indices
    return frozenset(chosen)


def _indices_by_name(class_names: Sequence[str]) -> dict[str, set[int]]:
    """The indices of the classes of each name; several may have the same."""
    named: dict[str, set[int]] = {}
    for index, label in enumerate(class_names):
        named.setdefault(label, set()).add(index)
    return named


def _read_json_list(name: str, value: str) -> list[object]:
    """Read the form for names that contain commas, or begin or end with a blank."""
    try:
        items = json.loads(value)
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list) or not items:
        raise ParameterError(
            f"{name} is {_quoted(value)}; allowed where it begins with '[': a JSON list of indices"
            " and names, such as '[\"a,b\", 2]'"
        )
    return items


def _classes_from_json(item: Any, named: Mapping[str, set[int]], count: int) -> set[int]:
    """Indices of the classes that an item of a JSON list means.

    A number is an index. A string is a name, or an index if no class has that name.
    """
    if isinstance(item, str):
        return named.get(item) or _classes_from_index(item, count)
    return {item} if type(item) is int and 0 <= item < count else set()


def _classes_from_text(item: Any, named: Mapping[str, set[int]], count: int) -> set[int]:
    """Indices of the classes that an item of a comma-separated list means.

    Digits are an index, or a name if there is no such index.
    """
    return _classes_from_index(item, count) or named.get(item, set())


def _classes_from_index(item: str, count: int) -> set[int]:
    is_index = _WHOLE_NUMBER.fullmatch(item) and len(item) < 10 and int(item) < count
    return {int(item)} if is_index else set()


def _read_class_conf_thres(
    name: str, value: object, class_names: Sequence[str]
) -> dict[int, float]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        pairs, find = _read_json_object(name, value), _classes_from_json
    else:
        pairs, find = _read_text_pairs(name, value), _classes_from_text
    named, count = _indices_by_name(class_names), len(class_names)
    thresholds: dict[int, float] = {}
    for item, number in pairs:
        indices = find(item, named, count)
        if not indices:
            raise ParameterError(
                f"{name} names {_quoted(item)}; allowed: indices from 0 to {count - 1} or class"
                f" names such as {_quoted(class_names[0])}"
            )
        if indices & thresholds.keys():
            raise ParameterError(
                f"{name} names {_quoted(item)}, a class that has a number already; allowed: one"
                " number for each class"
            )
        threshold = _read_unit_interval(f"{name} for {_quoted(item)}", number, class_names)
        thresholds.update(dict.fromkeys(indices, threshold))
    return thresholds


def _read_text_pairs(name: str, value: object) -> list[tuple[str, object]]:
    """Read `person:0.6,2:0.3`; the last colon of a part is the one before the number."""
    parts = [part.rpartition(":") for part in value.split(",")] if isinstance(value, str) else []
    if not parts or not all(colon for _, colon, _ in parts):
        raise ParameterError(
            f"{name} is {_quoted(value)}; allowed: a string of indices or names with numbers,"
            " such as '0:0.6,2:0.3', or a JSON object"
        )
    return [(item.strip(), number) for item, _, number in parts]


def _read_json_object(name: str, value: str) -> list[tuple[str, object]]:
    """Read the form for names that contain commas, or begin or end with a blank."""
    try:
        # As pairs, since a name may be there twice.
        pairs = json.loads(value, object_pairs_hook=list)
    except (ValueError, RecursionError):
        pairs = None
    if not pairs:
        raise ParameterError(
            f"{name} is {_quoted(value)}; allowed where it begins with '{{': a JSON object of"
            " names or indices with numbers, such as '{\"a,b\": 0.6}'"
        )
    found: list[tuple[str, object]] = pairs
    return found


_READERS: dict[str, Callable[[str, object, Sequence[str]], object]] = {
    "conf_thres": _read_unit_interval,
    "iou_thres": _read_unit_interval,
    "max_det": _read_max_det,
    "classes": _read_classes,
    "agnostic_nms": _read_flag,
    "multi_label": _read_flag,
    "class_conf_thres": _read_class_conf_thres,
}
PARAMETER_NAMES = tuple(_READERS)
