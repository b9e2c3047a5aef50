"""Where the photos of a job are, found without holding the list of them in memory.

- A folder or prefix, such as `photos` or `s3://bucket/photos`: its images, and those of all folders
  in it.
- A glob, such as `photos/*.jpg`: the images, lists, tables and archives that it names.
- A list: one address in each line (`.txt`), or columns or members `url` and `key` (`.csv`,
  `.jsonl`).
- A table (`.parquet`): the column `url`, or the photos themselves in `bytes`; `key` names them.
- An archive (`.tar`), as WebDataset has it: the images in it.

Addresses in a list are paths or URLs of fsspec; relative ones are relative to the list.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow.parquet as pq

from .._sources import IMAGE_SUFFIXES

LISTS = (".txt", ".csv", ".jsonl")
TABLE, ARCHIVE = ".parquet", ".tar"
URL, KEY, BYTES = "url", "key", "bytes"
_BATCH = 4096  # rows of a table that are in memory at a time


class SourceError(ValueError):
    """A source cannot be read as what it is; the message is one sentence."""


@dataclass(frozen=True)
class Photo:
    """One photo, which is fetched from its address."""

    key: str
    url: str


@dataclass(frozen=True)
class Container:
    """A file that holds photos, which is read as a whole by one worker.

    Attributes:
        url: an archive, or a table.
        row_group: of the table; None for an archive.
        photos: how many it holds; None if only reading it would tell.
    """

    url: str
    row_group: int | None = None
    photos: int | None = None


def expand(source: str) -> Iterator[Photo | Container]:
    """Yield what a source holds.

    Raises:
        SourceError: it does not exist, holds no photos, or is not in a known form.
    """
    try:
        found = False
        for one in _expand(source):
            found = True
            yield one
    except FileNotFoundError as error:
        raise SourceError(f"{source} does not exist: {error}") from None
    except PermissionError as error:
        raise SourceError(f"{source} cannot be read: {error}") from None
    if not found:
        raise SourceError(f"{source} holds no photos.")


def _expand(source: str) -> Iterator[Photo | Container]:
    system, path = fsspec.core.url_to_fs(source)
    if "*" in path or "?" in path or "[" in path:
        for one in sorted(system.glob(path)):
            yield from _file(system.unstrip_protocol(one), strict=False)
    elif _suffix(path) in (*LISTS, TABLE, ARCHIVE) and not system.isdir(path):
        yield from _file(source, strict=True)
    elif system.isdir(path):
        yield from _folder(system, path)
    else:
        yield from _file(source, strict=True)


def _folder(system: Any, path: str) -> Iterator[Photo]:
    for folder, _, names in system.walk(path):
        for name in sorted(names):
            if _suffix(name) in IMAGE_SUFFIXES:
                url = system.unstrip_protocol(posixpath.join(folder, name))
                yield Photo(_key(url), url)


def _file(url: str, *, strict: bool) -> Iterator[Photo | Container]:
    suffix = _suffix(url)
    if suffix in LISTS:
        yield from _list(url, suffix)
    elif suffix == TABLE:
        yield from _table(url)
    elif suffix == ARCHIVE:
        yield Container(url)
    elif suffix in IMAGE_SUFFIXES or strict:
        system, path = fsspec.core.url_to_fs(url)
        if strict and not system.exists(path):
            raise SourceError(f"{url} does not exist.")
        yield Photo(_key(url), url)


def _list(url: str, suffix: str) -> Iterator[Photo]:
    with fsspec.open(url, "rb") as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            for number, one in enumerate(_lines(text, suffix, url), 1):
                yield _photo(one, url, number)
        except UnicodeDecodeError:
            raise SourceError(f"{url} is not a list of addresses in UTF-8.") from None


def _lines(text: io.TextIOWrapper, suffix: str, url: str) -> Iterator[dict[str, Any]]:
    if suffix == ".csv":
        yield from csv.DictReader(text)
        return
    for line in text:
        if not (line := line.strip()):
            continue
        if suffix == ".txt":
            yield {URL: line}
            continue
        try:
            members = json.loads(line)
        except (ValueError, RecursionError):
            members = None
        if not isinstance(members, dict):
            raise SourceError(f"{url} has a line that is not a JSON object.")
        yield members


def _photo(row: dict[str, Any], listed_in: str, number: int) -> Photo:
    url = row.get(URL)
    if not isinstance(url, str) or not url:
        raise SourceError(f"{listed_in} has no {URL!r} in row {number}.")
    key = row.get(KEY) or url
    if "://" not in url and not posixpath.isabs(url):
        url = posixpath.join(posixpath.dirname(listed_in), url)
    return Photo(str(key), url)


def _table(url: str) -> Iterator[Photo | Container]:
    with fsspec.open(url, "rb") as file:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        if BYTES in names:
            for group in range(table.num_row_groups):
                yield Container(url, group, table.metadata.row_group(group).num_rows)
            return
        if URL not in names:
            raise SourceError(f"{url} has neither the column {URL!r} nor {BYTES!r}.")
        columns = [name for name in (KEY, URL) if name in names]
        number = 0
        for batch in table.iter_batches(_BATCH, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield _photo(row, url, number)


def _key(url: str) -> str:
    return url.removeprefix("file://")


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
