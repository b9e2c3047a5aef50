"""Class names as they are served: one line of text each, as `labels.txt` needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from yolov5_client.evaluation import read_names

from ._errors import BuildError

MAX_FILE_BYTES = 1 << 20
_YAML = (".yaml", ".yml")


def is_name(value: object) -> bool:
    """Whether a data set or its trainer may have this for a class name: YAML makes numbers of 0 and
    1.5, booleans of yes and no, and None of nothing."""
    return value is None or isinstance(value, (str, int, float))


def as_labels(names: Sequence[object]) -> tuple[str, ...]:
    """The names as texts of one line, none of them empty; says on stderr which were changed.

    A number or boolean is written as Python does, as in YOLOv5's own pictures. A line break becomes
    a blank. A class without a name is called after its number, `class3`.
    """
    labels = []
    for index, name in enumerate(names):
        text = "" if name is None else str(name)
        label = " ".join(text.splitlines()).encode("utf-8", "replace").decode("utf-8")
        if not label.strip():
            label = f"class{index}"
        if label != text:
            print(f"Class {index} is called {label!r} here; its name is {text!r}.", file=sys.stderr)
        labels.append(label)
    return tuple(labels)


def read_names_file(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, or from the `names` of a data-set YAML.

    Blank lines at the end are passed over.

    Raises:
        BuildError: it cannot be read, or holds no names.
        DataError: the same, of a YAML.
    """
    if path.suffix.lower() in _YAML:
        return read_names(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")  # without the mark that Windows puts at the beginning
    except OSError as error:
        raise BuildError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise BuildError(f"{path.name} is not UTF-8 text.") from None
    if len(data) > MAX_FILE_BYTES:
        raise BuildError(f"{path.name} is over the limit of {MAX_FILE_BYTES >> 10} kB for names.")
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise BuildError(f"{path.name} has no class names; allowed: one a line, or a data.yaml.")
    if "" in names:
        raise BuildError(f"{path.name} has no class name in line {names.index('') + 1}.")
    return tuple(names)
