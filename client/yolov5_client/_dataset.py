"""Reader of data-set YAML and label files, which follows YOLOv5 v7.0.

Relative paths in a YAML are relative to its `path`, which is relative to the file itself, or else
to the working directory.
"""

from __future__ import annotations

import codecs
import datetime
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _yaml
from ._errors import DataError
from ._sources import IMAGE_SUFFIXES

# YOLOv5 accepts two more, which the server refuses; a refusal is better than a silent gap.
_PICTURES = IMAGE_SUFFIXES | {".dng", ".pfm"}
_NAMES_BYTES, _LABELS_BYTES, _LIST_BYTES = 1 << 20, 16 << 20, 64 << 20
_LABELS_ALLOWED = (
    "allowed: class, x, y, width, height in a line, the last four as parts of the photo's width and"
    " height, from 0 to 1; or a class and the points of a polygon"
)


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a data set: photos and their labels.

    Example:
        >>> label = np.array([[2, 0.5, 0.5, 0.25, 0.5]])
        >>> Split(photos=[Path("photo.jpg")], labels=[label]).notes
        ()

    Attributes:
        photos: the files.
        labels: for each photo float64 [n, 5]: class, centre x, centre y, width, height, the last
            four as fractions of the photo's width and height.
        notes: sentences about what was left out, or may be meant differently.
    """

    photos: list[Path]
    labels: list[NDArray[np.float64]]
    notes: tuple[str, ...] = ()


def read_names(path: Path) -> tuple[str, ...]:
    """Read class names from a text file, one a line, or from the `names` of a data-set YAML.

    Numbers and booleans in a YAML become the text that Python prints for them, as in YOLOv5.

    Example:
        >>> _ = Path("data.yaml").write_text("names: [Platelets, RBC, WBC]")
        >>> read_names(Path("data.yaml"))
        ('Platelets', 'RBC', 'WBC')

    Raises:
        DataError: the file cannot be read, or has no class names.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        names = _names_from_yaml(path, _read_yaml(path).get("names"))
    else:
        text = _decode(_read(path, _NAMES_BYTES), path)
        names = [line.strip() for line in text.rstrip().splitlines()]
    if not names or not all(names):
        raise DataError(f"{path.name} has no class names; allowed: one a line, or a data.yaml.")
    return tuple(names)


def read_split(path: Path, *kinds: str) -> Split:
    """Read the first of the given splits (`train`, `val`, `test`) that a data-set YAML has.

    The labels of `images/a.jpg` are in `labels/a.txt`; a photo without such a file counts as one
    without objects. A photo with unusable labels is left out, and a duplicate row counts once.

    Example:
        >>> Path("images").mkdir()
        >>> _ = Path("images/a.jpg").write_bytes(b"a photo")
        >>> Path("labels").mkdir()
        >>> _ = Path("labels/a.txt").write_text("2 0.5 0.5 0.25 0.5")
        >>> _ = Path("data.yaml").write_text("{val: images, names: [Platelets, RBC, WBC]}")
        >>> split = read_split(Path("data.yaml"), "val", "test")
        >>> split.photos[0].name, split.labels[0].tolist()
        ('a.jpg', [[2.0, 0.5, 0.5, 0.25, 0.5]])

    Raises:
        DataError: the file has none of the splits, names no photos, or all labels are unusable.
        OSError: a folder or file in it cannot be accessed.
    """
    data = _read_yaml(path)
    places: Any = next((data[kind] for kind in kinds if data.get(kind)), None)
    places = [places] if isinstance(places, str) else places
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise DataError(f"{path.name} names no photos under {' or '.join(kinds)}.")
    notes = _ambiguities(path, data)
    root = _root(path, data.get("path"))
    found: list[_Photo] = []
    for place in places:
        found += _photos(path, root, place, notes)
    again = len(found) - len({photo.path for photo in found})
    if again:
        notes.append(f"{_plural(again, 'photo')} named again, and counted again.")
    return _read_all_labels(path, found, notes)


@dataclass(frozen=True)
class _Photo:
    """A photo, and its paths with and without resolved links, in which to look for labels."""

    path: Path
    aliases: tuple[Path, ...]

    def label_file(self) -> Path | None:
        for photo in self.aliases:
            parts = list(photo.parts)
            if "images" in parts:
                parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
            path = Path(*parts[:-1], f"{photo.stem}.txt")
            if os.path.isfile(path):  # noqa: PTH113 (False for what is no path at all)
                return path
        return None


# -- where the photos are --------------------------------------------------------------------


def _root(path: Path, given: object) -> Path:
    if given is not None and not isinstance(given, (str, int, float)):
        raise DataError(f"{path.name} has a path that is no folder's name.")
    beside = path.parent / str(given or "")
    # The paths in YOLOv5's own files are relative to its root, from which it is called.
    return Path(str(given)) if given and not _exists(beside) and _exists(str(given)) else beside


def _photos(path: Path, root: Path, place: str, notes: list[str]) -> list[_Photo]:
    """Return the photos of a folder, sorted, or those in a text file, in its order."""
    there = root / place
    if not _exists(there) and place.startswith("../"):
        there = root / place[3:]  # Roboflow writes it like this, and YOLOv5 accepts it
    if os.path.isdir(there):  # noqa: PTH112
        resolved = there.resolve()
        names = sorted(name for name in _walk(there) if Path(name).suffix.lower() in _PICTURES)
        found = [_Photo(there / name, (resolved / name, there / name)) for name in names]
    elif os.path.isfile(there):  # noqa: PTH113
        found = [*_photos_in_list(there, notes)]
    else:
        raise DataError(f"{path.name} names {place[:100]!r}, which is not there.")
    if not found:
        raise DataError(f"{path.name} names {place[:100]!r}, which holds no pictures.")
    return found


def _walk(folder: Path) -> Iterator[str]:
    """Yield the files in a folder and below, relative to it, except hidden ones.

    Links to folders are followed, but each folder is visited once, which ends loops.
    """
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(place)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(place, folder)
        for name in files:
            if not name.startswith("."):
                yield name if inside == "." else os.path.join(inside, name)  # noqa: PTH118


def _photos_in_list(file: Path, notes: list[str]) -> Iterator[_Photo]:
    """Yield the photos that a text file lists, one a line.

    As in YOLOv5, a line that begins with `./` is relative to the file, any other to the working
    directory; a file that does not exist there is also looked for beside the list.
    """
    data = _read(file, _LIST_BYTES)
    # A path need not be valid UTF-8.
    text = _decode(data, file) if _is_utf16(data) else os.fsdecode(_without_bom(data))
    lines = [line.strip() for line in text.splitlines()]
    others = 0
    for line in filter(None, lines):
        if os.path.splitext(line)[1].lower() not in _PICTURES or "\0" in line:  # noqa: PTH122
            others += 1
            continue
        beside = file.parent / line
        photo = (
            beside
            if line.startswith("./") or (not _exists(line) and _exists(beside))
            else Path(line)
        )
        yield _Photo(photo, (photo,))
    if others:
        notes.append(f"{_plural(others, 'line')} of {file.name} passed over: no picture.")


# -- labels ----------------------------------------------------------------------------------


@dataclass
class _LabelIssues:
    """Counts of problems in label files, and the first file that has each problem."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, name: str, number: int = 1) -> None:
        self.counts[kind] += number
        self.first.setdefault(kind, name)

    def notes(self) -> Iterator[str]:
        said = {
            "out": ("photo", "left out; the first: {first}."),
            "missing": ("photo", "without a file of labels, taken as photos of nothing."),
            "twice": ("duplicate row", "of labels left out, the first in {first}."),
            "mixed": (
                "file",
                "of labels with boxes among polygons, the first {first}: there YOLOv5 takes the"
                " four numbers of a box for two points, and so does this.",
            ),
        }
        for kind, number in self.counts.items():
            noun, rest = said[kind]
            yield f"{_plural(number, noun)} {rest.format(first=self.first[kind])}"


def _read_all_labels(path: Path, found: list[_Photo], notes: list[str]) -> Split:
    issues = _LabelIssues()
    photos: list[Path] = []
    labels: list[NDArray[np.float64]] = []
    for photo in found:
        file = photo.label_file()
        try:
            rows = np.zeros((0, 5)) if file is None else _read_labels(file, issues)
        except DataError as error:
            issues.add("out", str(error))
            continue
        if file is None:
            issues.add("missing", photo.path.name)
        photos.append(photo.path)
        labels.append(rows)
    if issues.counts["out"] and not any(len(rows) for rows in labels):
        raise DataError(f"{path.name} has no photo with usable labels: {issues.first['out']}.")
    return Split(photos=photos, labels=labels, notes=(*notes, *issues.notes()))


def _read_labels(path: Path, issues: _LabelIssues) -> NDArray[np.float64]:
    """Rows [n, 5] of a file.

    Raises:
        DataError: YOLOv5 would leave out the photo; the message does not end in a full stop.
    """
    lines = [line.split() for line in _decode(_read(path, _LABELS_BYTES), path).splitlines()]
    lines = [line for line in lines if line]
    try:
        # In YOLOv5 one polygon in a file makes every row of it a polygon.
        if any(len(line) > 6 for line in lines):
            if not all(len(line) > 6 for line in lines):
                issues.add("mixed", path.name)
            rows = np.array([_bounding_box(np.array(line, float)) for line in lines])
        else:
            rows = np.array(lines, float).reshape(len(lines), 5)
    except ValueError:
        rows = np.full((1, 5), np.nan)
    if not np.isfinite(rows).all():
        raise DataError(f"{path.name} is not a file of labels; {_LABELS_ALLOWED}")
    if (odd := rows[(rows[:, 0] < 0) | (rows[:, 0] % 1 != 0)]).size:
        raise DataError(f"{path.name} has class {odd[0, 0]:g}; {_LABELS_ALLOWED}")
    parts = rows[:, 1:].astype(np.float32)  # rounds 1.00000001 to 1, as YOLOv5 does
    if (odd := parts[(parts < 0) | (parts > 1)]).size:
        kind = "as if in pixels" if odd.max() > 2 else "which is out of bounds"
        raise DataError(f"{path.name} has {odd.max():g}, {kind}; {_LABELS_ALLOWED}")
    _, first = np.unique(rows.astype(np.float32), axis=0, return_index=True)
    if len(first) < len(rows):
        issues.add("twice", path.name, len(rows) - len(first))
    return rows[np.sort(first)]


def _bounding_box(row: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the class and the bounding box of a polygon in a row of labels."""
    points = row[1:].reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    return (row[0], *((low + high) / 2), *(high - low))


# -- class names -----------------------------------------------------------------------------


def _names_from_yaml(path: Path, names: object) -> list[str]:
    if isinstance(names, dict):
        named = {_index(key): name for key, name in names.items()}
        if None in named or len(named) < len(names):
            raise DataError(
                f"{path.name} has class names under a key that is not an index; allowed: 0, 1 and"
                " so on."
            )
        gaps = [index for index in range(len(named)) if index not in named]
        if gaps:
            raise DataError(
                f"{path.name} has no class name for {gaps[0]}; allowed: one for each index from 0"
                " to the last."
            )
        names = [named[index] for index in range(len(named))]
    if not isinstance(names, list):
        return []
    scalars = (str, int, float, datetime.date)  # bool is an int
    return [str(name).strip() if isinstance(name, scalars) else "" for name in names]


def _index(key: object) -> int | None:
    if isinstance(key, str) and key.isdecimal() and len(key) < 10:
        return int(key)
    return key if isinstance(key, int) and not isinstance(key, bool) else None


def _ambiguities(path: Path, data: dict[str, Any]) -> list[str]:
    """Describe what YOLOv5 accepts silently although it may be meant differently."""
    notes = []
    names = data.get("names")
    listed = [*names.values()] if isinstance(names, dict) else names
    listed = listed if isinstance(listed, list) else []
    odd = next((name for name in listed if isinstance(name, (bool, datetime.date))), None)
    if odd is not None:
        notes.append(
            f"a class of {path.name} is called {str(odd)!r}, as YAML reads a word that is not in"
            " quotes."
        )
    count = data.get("nc")
    if listed and isinstance(count, int) and count != len(listed):
        notes.append(f"{path.name} has nc {count} but {len(listed)} names; the names count.")
    return notes


# -- files -----------------------------------------------------------------------------------


def _read_yaml(path: Path) -> dict[str, Any]:
    raw = _read(path, _yaml.MAX_BYTES)
    # YOLOv5 drops bytes that are not UTF-8, from class names too.
    utf8 = _without_bom(raw).decode("utf-8", "ignore")
    text = _decode(raw, path) if _is_utf16(raw) else utf8
    try:
        data = _yaml.load(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise DataError(f"{path.name} is not a data-set YAML.")
    return data


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no path"
        raise DataError(f"{path.name} cannot be read: {reason}.") from None
    if len(data) > limit:
        raise DataError(f"{path.name} is too large; allowed: {limit >> 10} kB.")
    return data


def _is_utf16(data: bytes) -> bool:
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _without_bom(data: bytes) -> bytes:
    return data.removeprefix(codecs.BOM_UTF8)


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-16" if _is_utf16(data) else "utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path.name} cannot be read: it is no text.") from None


def _exists(path: str | Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (False for what is no path at all)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
