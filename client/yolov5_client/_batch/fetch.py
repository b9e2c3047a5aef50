"""The bytes of photos, from wherever they are."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from .._sources import IMAGE_SUFFIXES
from .sources import BYTES, KEY, Container, Photo
from .storage import FINAL

Load = Callable[[], Awaitable[bytes]]

_ROWS = 16  # of a table that are in memory at a time


class UnreadableError(Exception):
    """A file that holds photos is damaged, or not there.

    Attributes:
        url: the file.
    """

    def __init__(self, url: str, reason: object) -> None:
        super().__init__(f"{url} cannot be read: {reason}")
        self.url = url


class ContainerError(Exception):
    """A file that holds photos could not be read this time."""


class Fetcher:
    """Reads photos in threads of its own, since most file systems block."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, "fetch")

    async def photos(self, part: list[Photo] | Container) -> AsyncIterator[tuple[str, str, Load]]:
        """Yield for each photo its key, its address, and a function that reads it.

        Raises:
            UnreadableError, ContainerError: the file that holds the photos cannot be read.
        """
        if not isinstance(part, Container):
            for photo in part:
                yield photo.key, photo.url, self._loader(photo.url)
            return
        inside = _rows(part) if part.row_group is not None else _members(part.url)
        loop = asyncio.get_running_loop()
        while found := await loop.run_in_executor(self._threads, _next, inside, part.url):
            key, data = found
            yield key, part.url, _given(data)

    def _loader(self, url: str) -> Load:
        async def load() -> bytes:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, _read, url)

        return load


def _next(inside: Iterator[tuple[str, bytes]], url: str) -> tuple[str, bytes] | None:
    try:
        return next(inside, None)
    except (*FINAL, tarfile.TarError, EOFError, pa.ArrowInvalid) as error:
        raise UnreadableError(url, error) from error
    except Exception as error:  # file systems pass on what their libraries raise
        raise ContainerError(f"{url} cannot be read: {error}") from error


def _given(data: bytes) -> Load:
    async def load() -> bytes:
        return data

    return load


def _read(url: str) -> bytes:
    system, path = fsspec.core.url_to_fs(url)
    if isinstance(system, LocalFileSystem):  # whose own way costs more than the read
        return Path(path).read_bytes()
    return cast(bytes, system.cat_file(path))


def _rows(part: Container) -> Iterator[tuple[str, bytes]]:
    """Yield the photos of one row group of a table."""
    with fsspec.open(part.url, "rb") as file:
        table = pq.ParquetFile(file)
        columns = [name for name in (KEY, BYTES) if name in table.schema_arrow.names]
        number = 0
        for batch in table.iter_batches(_ROWS, row_groups=[part.row_group], columns=columns):
            for row in batch.to_pylist():
                key = row.get(KEY) or f"{part.url}#{part.row_group}/{number}"
                number += 1
                yield str(key), row[BYTES] or b""


def _members(url: str) -> Iterator[tuple[str, bytes]]:
    """Yield the images of a tar archive, which is read once from its begin to its end."""
    with fsspec.open(url, "rb") as file, tarfile.open(fileobj=cast(Any, file), mode="r|*") as tar:
        for member in tar:
            if member.isfile() and PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES:
                content = tar.extractfile(member)
                assert content is not None  # it is a file
                yield f"{url}/{member.name}", content.read()
