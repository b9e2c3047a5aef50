"""The parts of a job, which are decided once and lie beside its results.

`_plan/part-000000.parquet` and so on hold what to do, `_plan.json` says that the plan is complete,
and for which question; `photos/part-000000.parquet` holds the results of the part.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .rows import read_table
from .settings import BatchSettings
from .sources import Container, Photo, expand
from .storage import Folder

PLAN, RESULTS = "_plan", "photos"
_COMPLETE = "_plan.json"
_SCHEMA = pa.schema(
    [("key", pa.string()), ("url", pa.string()), ("row_group", pa.int32()), ("whole", pa.bool_())]
)


class PlanError(ValueError):
    """The destination holds another job; the message is one sentence."""


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        parts: how many there are.
        photos: how many; None if only reading the archives would tell.
    """

    parts: int
    photos: int | None


def part_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def read_or_make(folder: Folder, settings: BatchSettings) -> tuple[Plan, bool]:
    """Return the plan in the folder, and whether it was there; make it if not.

    Raises:
        PlanError: the folder holds a job that asks otherwise.
        SourceError: a source cannot be read.
    """
    try:
        before = json.loads(folder.read(_COMPLETE))
    except FileNotFoundError:
        return make(folder, settings), False
    differs = [
        name for name, value in settings.question.items() if before["question"].get(name) != value
    ]
    if differs:
        raise PlanError(
            f"{folder.url} holds a job with other {' and '.join(differs)}; choose another"
            " destination, or the same flags to continue it."
        )
    return Plan(before["parts"], before["photos"]), True


def make(folder: Folder, settings: BatchSettings) -> Plan:
    """Divide the photos into parts, one at a time, so that no list of all is in memory."""
    parts, photos, is_known = 0, 0, True
    for part in _parts(settings):
        folder.write(f"{PLAN}/{part_name(parts)}", _to_parquet(part))
        parts += 1
        if isinstance(part, Container):
            is_known = is_known and part.photos is not None
            photos += part.photos or 0
        else:
            photos += len(part)
    plan = Plan(parts, photos if is_known else None)
    complete = {"question": settings.question, "parts": plan.parts, "photos": plan.photos}
    folder.write(_COMPLETE, json.dumps(complete, indent=1).encode())
    return plan


def read_part(folder: Folder, number: int) -> list[Photo] | Container:
    """Return what one part consists of."""
    rows = read_table(folder.read(f"{PLAN}/{part_name(number)}")).to_pylist()
    if rows[0]["whole"]:
        return Container(rows[0]["url"], rows[0]["row_group"])
    return [Photo(row["key"], row["url"]) for row in rows]


def _parts(settings: BatchSettings) -> Iterator[list[Photo] | Container]:
    photos: list[Photo] = []
    for source in settings.sources:
        for one in expand(source):
            if isinstance(one, Container):
                yield one
                continue
            photos.append(one)
            if len(photos) == settings.part_size:
                yield photos
                photos = []
    if photos:
        yield photos


def _to_parquet(part: list[Photo] | Container) -> bytes:
    rows: list[dict[str, Any]]
    if isinstance(part, Container):
        rows = [{"key": None, "url": part.url, "row_group": part.row_group, "whole": True}]
    else:
        rows = [{"key": one.key, "url": one.url, "row_group": None, "whole": False} for one in part]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), file, compression="zstd")
    return file.getvalue()
