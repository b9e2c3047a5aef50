"""Files of a job, in any file system that fsspec knows."""

from __future__ import annotations

import posixpath
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


@dataclass(frozen=True)
class Folder:
    """A folder, local or in a bucket.

    Attributes:
        url: such as `results` or `s3://bucket/results`.
    """

    url: str

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        system, path = fsspec.core.url_to_fs(self.url)
        return system, path.rstrip("/")

    def path(self, name: str) -> str:
        """Return the address of a file in the folder."""
        return posixpath.join(self.url, name)

    def names(self, folder: str) -> set[str]:
        """Return the names of the files in a folder of this one; none if it does not exist."""
        system, path = self._opened
        try:
            system.invalidate_cache()
            found = system.ls(posixpath.join(path, folder), detail=False)
        except FileNotFoundError:
            return set()
        return {posixpath.basename(one) for one in found}

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            OSError: it does not exist, or cannot be read.
        """
        system, path = self._opened
        system.invalidate_cache()
        content: bytes = system.cat_file(posixpath.join(path, name))
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which nobody ever sees in part.

        Raises:
            OSError: it cannot be written.
        """
        system, root = self._opened
        path = posixpath.join(root, name)
        if not isinstance(system, LocalFileSystem):
            system.pipe_file(path, content)  # object storage shows an object when it is complete
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_bytes(content)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
