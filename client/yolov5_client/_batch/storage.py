"""Files of a job, in any file system that fsspec knows."""

from __future__ import annotations

import posixpath
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from .._connection import Backoff

T = TypeVar("T")

# What asking again does not change.
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Folder:
    """A folder, local or in a bucket.

    Attributes:
        url: such as `results` or `s3://bucket/results`.
        retry_for: seconds for which storage that does not answer is asked again.
    """

    url: str
    retry_for: float = 0.0

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        system, path = fsspec.core.url_to_fs(self.url)
        return system, path.rstrip("/")

    def names(self, folder: str) -> set[str]:
        """Return the names of the files in a folder of this one; none if it does not exist."""
        system, path = self._opened

        def names() -> list[str]:
            system.invalidate_cache()
            found: list[str] = system.ls(posixpath.join(path, folder), detail=False)
            return found

        try:
            found = self._repeated(names)
        except FileNotFoundError:
            return set()
        return {posixpath.basename(one) for one in found}

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            OSError: it does not exist, or cannot be read.
        """
        system, path = self._opened

        def content() -> bytes:
            system.invalidate_cache()
            found: bytes = system.cat_file(posixpath.join(path, name))
            return found

        return self._repeated(content)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which nobody ever sees in part.

        Raises:
            OSError: it cannot be written.
        """
        system, root = self._opened
        path = posixpath.join(root, name)
        if not isinstance(system, LocalFileSystem):
            # Object storage shows an object when it is complete.
            self._repeated(lambda: system.pipe_file(path, content))
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_bytes(content)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _repeated(self, call: Callable[[], T]) -> T:
        backoff = iter(Backoff(self.retry_for))
        while True:
            try:
                return call()
            except FINAL:
                raise
            except Exception as error:  # file systems pass on what their libraries raise
                if (pause := next(backoff, None)) is None:
                    raise OSError(f"{self.url} cannot be reached: {error}") from error
            time.sleep(pause)
