"""The data-set YAML and label files that YOLOv5's users have.

Relative paths in a YAML are relative to its `path`, which is relative to the file itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ._errors import DataError
from ._sources import SUFFIXES


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a data set.

    Attributes:
        photos: the files.
        labels: for each of them [n, 5]: class, centre x, centre y, width, height, the last four as
            parts of the photo's width and height.
    """

    photos: list[Path]
    labels: list[NDArray[np.float64]]


def read_names(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, or from the `names` of a data-set YAML.

    Raises:
        DataError: it cannot be read, or has no names.
    """
    if path.suffix in (".yaml", ".yml"):
        found = _read_yaml(path).get("names")
        if isinstance(found, dict):
            found = [found.get(index) for index in range(len(found))]
        names = found if isinstance(found, list) else []
    else:
        names = [line.strip() for line in _read(path).splitlines()]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path.name} has no class names; allowed: one a line, or a data.yaml.")
    return tuple(names)


def read_split(path: Path, *kinds: str) -> Split:
    """The first of these splits (`train`, `val`, `test`) that a data-set YAML has.

    A photo's labels lie under `labels` where it lies under `images`, and may be absent.

    Raises:
        DataError: it has none of them, or photos or labels are not what they should be.
        OSError: a folder or file that it names cannot be looked at.
    """
    data = _read_yaml(path)
    places: Any = next((data[kind] for kind in kinds if data.get(kind)), None)
    places = [places] if isinstance(places, str) else places
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise DataError(f"{path.name} names no photos under {' or '.join(kinds)}.")
    root = path.parent / str(data.get("path") or "")
    photos: list[Path] = []
    for place in places:
        if (root / place).is_dir():
            found = sorted(p for p in (root / place).rglob("*") if p.suffix.lower() in SUFFIXES)
            if not found:
                raise DataError(f"{path.name} names {place!r}, which holds no pictures.")
            photos += found
        elif (root / place).is_file():  # a list of files
            listed = _read(root / place).splitlines()
            photos += [(root / place).parent / line for line in listed if line.strip()]
        else:
            raise DataError(f"{path.name} names {place!r}, which is not there.")
    return Split(photos=photos, labels=[_read_labels(photo) for photo in photos])


def _read_labels(photo: Path) -> NDArray[np.float64]:
    parts = list(photo.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    path = Path(*parts[:-1], f"{photo.stem}.txt")
    if not path.exists():
        return np.zeros((0, 5))
    lines = [line.split() for line in _read(path).splitlines() if line.strip()]
    try:
        rows = np.array(lines, float).reshape(len(lines), 5)
    except ValueError:
        rows = np.full((1, 5), np.nan)
    if not np.isfinite(rows).all():
        raise DataError(
            f"{path.name} is not a file of labels; allowed: class, x, y, width, height in a line."
        )
    return rows


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(_read(path))
    except DataError:
        raise
    except Exception:  # PyYAML lets many kinds through, such as a date's that does not exist
        data = None
    if not isinstance(data, dict):
        raise DataError(f"{path.name} is not a data-set YAML.")
    return data


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(f"{path.name} cannot be read: {reason}.") from None
