"""One row for each photo: its columns, and how they are written and counted."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .._detections import Detections

_DETECTION = pa.struct(
    [
        ("label", pa.string()),
        ("class_id", pa.int32()),
        ("score", pa.float32()),
        ("x1", pa.float32()),
        ("y1", pa.float32()),
        ("x2", pa.float32()),
        ("y2", pa.float32()),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("detections", pa.list_(_DETECTION)),
        pa.field("model", pa.string(), nullable=False),
        pa.field("version", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("error", pa.string()),
        pa.field("milliseconds", pa.float32()),
    ]
)
_COUNTED = b"yolov5.counts"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one photo.

    Attributes:
        key: path, address or name of the photo, as its source has it.
        found: its detections, boxes in pixels of the photo as it is displayed; None on an error.
        reason: kind of the error: `missing`, `unreadable`, `refused`, `failed`, `timeout`.
        error: the error as a sentence.
        milliseconds: that the server took, with the way to it and repetitions.
    """

    key: str
    found: Detections | None = None
    reason: str | None = None
    error: str | None = None
    milliseconds: float | None = None


def to_parquet(rows: Sequence[Row], model: str, version: str | None) -> bytes:
    """Write the rows of a part as a Parquet file, with their counts in its metadata."""
    counts = Counts()
    for row in rows:
        counts.add(row)
    sizes = [(None, None) if row.found is None else row.found.image_size for row in rows]
    columns = {
        "key": [row.key for row in rows],
        "width": [width for _, width in sizes],
        "height": [height for height, _ in sizes],
        "detections": _detections([row.found for row in rows]),
        "model": [model] * len(rows),
        "version": [version] * len(rows),
        "reason": [row.reason for row in rows],
        "error": [row.error for row in rows],
        "milliseconds": [row.milliseconds for row in rows],
    }
    table = pa.table(columns, SCHEMA).replace_schema_metadata({_COUNTED: counts.to_json()})
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def read_table(content: bytes) -> pa.Table:
    """Read a Parquet file; not by `pq.read_table`, whose threads end the process at its end."""
    return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)


def _detections(photos: Sequence[Detections | None]) -> pa.Array:
    """Make the column as a whole: an object for each detection costs four times as much."""
    starts: list[int | None] = []
    total = 0
    for one in photos:
        starts.append(None if one is None else total)
        total += 0 if one is None else len(one.scores)
    found = [one for one in photos if one is not None]
    boxes = np.concatenate([np.empty((0, 4), np.float32), *(one.boxes for one in found)])
    values = pa.StructArray.from_arrays(
        [
            pa.array([label for one in found for label in one.labels], pa.string()),
            pa.array(np.concatenate([np.empty(0, np.int32), *(one.classes for one in found)])),
            pa.array(np.concatenate([np.empty(0, np.float32), *(one.scores for one in found)])),
            *(pa.array(np.ascontiguousarray(side)) for side in boxes.T),
        ],
        fields=list(_DETECTION),
    )
    offsets = pa.array([*starts, total], pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(_DETECTION))


class Counts:
    """Counts of photos, detections by class and errors by reason, which can be added up."""

    def __init__(self) -> None:
        self.photos = 0
        self.classes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        self.photos += 1
        if row.reason is not None:
            self.errors[row.reason] += 1
        if row.found is not None:
            self.classes.update(row.found.labels)

    def update(self, other: Counts) -> None:
        self.photos += other.photos
        self.classes.update(other.classes)
        self.errors.update(other.errors)

    def to_json(self, indent: int | None = None) -> bytes:
        members = {"photos": self.photos, "classes": self.classes, "errors": self.errors}
        return json.dumps(members, indent=indent).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Counts:
        members = json.loads(text)
        counts = cls()
        counts.photos = members["photos"]
        counts.classes.update(members["classes"])
        counts.errors.update(members["errors"])
        return counts

    @classmethod
    def of_file(cls, content: bytes) -> Counts:
        """Read the counts of a file that `to_parquet` has written."""
        metadata = pq.ParquetFile(pa.BufferReader(content)).schema_arrow.metadata or {}
        return cls.from_json(metadata[_COUNTED])
