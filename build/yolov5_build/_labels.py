"""Class names as `labels.txt` needs them: one line of text each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from yolov5_client.evaluation import read_names

from ._errors import BuildError

MAX_FILE_BYTES = 1 << 20
_YAML = (".yaml", ".yml")


def is_name(value: object) -> bool:
    """Whether a data set may have this as a class name: YAML reads 0 and 1.5 as numbers, yes and no
    as booleans, and an empty value as None."""
    return value is None or isinstance(value, (str, int, float))


def as_labels(names: Sequence[object]) -> tuple[str, ...]:
    """The names as non-empty texts of one line; reports changed ones on stderr.

    Numbers and booleans are written as Python writes them, as in YOLOv5's own pictures. A line
    break becomes a space. A class without a name is named after its index, `class3`.
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
    """Class names from a text file, one per line, or from the `names` of a data-set YAML.

    Blank lines at the end are ignored.

    Raises:
        BuildError: the file cannot be read, or holds no names.
        DataError: the same, for a YAML file.
    """
    if path.suffix.lower() in _YAML:
        return read_names(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")  # without the byte order mark that Windows writes
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
