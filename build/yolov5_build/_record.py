"""installed.json: what was installed as a version of a network, when, and what it achieved."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RECORD_FILE = "installed.json"

_PROVENANCE = re.compile(r"From (?P<file>.+), sha256 (?P<sha256>[0-9a-f]{64})\.")
_LARGEST = 1 << 16  # bytes


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What the served form of a network achieved on labelled photos.

    Attributes:
        map50, map50_95: mean average precision at IoU 0.5, and over 0.5 to 0.95.
        photos: their number.
    """

    map50: float
    map50_95: float
    photos: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """The content of installed.json.

    Attributes:
        installed: the time, in UTC, as 2026-11-26T17:00:00Z.
        file: name of the file of weights.
        sha256: of that file, in hexadecimal digits.
        options: those of the command that change what is served.
        accuracy: None if it was not measured in the form that is served.
    """

    installed: str
    file: str
    sha256: str
    options: tuple[str, ...] = ()
    accuracy: Accuracy | None = None


def new_record(provenance: str, options: Sequence[str], accuracy: Accuracy | None) -> Record | None:
    """A record of this moment; None if the provenance does not name a file.

    Args:
        provenance: as in the metadata of an exported network.
    """
    found = _PROVENANCE.fullmatch(provenance)
    if found is None:
        return None
    return Record(
        installed=_now(),
        file=found["file"],
        sha256=found["sha256"],
        options=tuple(options),
        accuracy=accuracy,
    )


def renewed(record: Record) -> Record:
    """The record of the same weights in another form, of which no accuracy is known."""
    return replace(record, installed=_now(), accuracy=None)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def write_record(version: Path, record: Record) -> None:
    """Write a record into the folder of a version."""
    (version / RECORD_FILE).write_text(json.dumps(as_values(record), indent=1) + "\n", "utf-8")


def as_values(record: Record) -> dict[str, Any]:
    """The keys and values of the JSON object."""
    values = asdict(record)
    accuracy = values.pop("accuracy")
    return values | (accuracy or {})


def read_record(version: Path) -> Record | None:
    """Read the record of a version; None if it has none that can be used."""
    try:
        with (version / RECORD_FILE).open("rb") as file:
            values = json.loads(file.read(_LARGEST))
        return _parsed(values)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _parsed(values: Any) -> Record:
    """Raises ValueError, KeyError or TypeError for anything that `write_record` does not write."""
    texts = [values[key] for key in ("installed", "file", "sha256")]
    options = values.get("options", [])
    if not isinstance(options, list) or not all(isinstance(one, str) for one in texts + options):
        raise TypeError
    accuracy = None
    if "map50_95" in values:
        accuracy = Accuracy(
            map50=float(values["map50"]),
            map50_95=float(values["map50_95"]),
            photos=int(values["photos"]),
        )
    installed, file, sha256 = texts
    return Record(
        installed=installed, file=file, sha256=sha256, options=tuple(options), accuracy=accuracy
    )
