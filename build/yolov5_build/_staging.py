"""Temporary folders, of which those of killed processes are removed by the next process."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def staging_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Create a folder in `parent`, and remove it at the end of the block.

    Folders that killed processes have left there are removed first. The owner of a folder holds a
    lock on it, which the system releases when the process ends. A folder that can be locked is
    therefore abandoned.

    Raises:
        OSError: the folder cannot be created.
    """
    remove_abandoned(parent, prefix)
    folder, lock = _locked_folder(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_abandoned(parent: Path, prefix: str) -> None:
    for folder in abandoned(parent, prefix):
        shutil.rmtree(folder, ignore_errors=True)


def abandoned(parent: Path, prefix: str) -> Iterator[Path]:
    """The folders in `parent` whose owner is gone; each stays locked until the next one is
    requested."""
    for folder in parent.glob(f"{prefix}????????"):
        with suppress(OSError):  # of another user, or on a file system without such locks
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield folder
            finally:
                os.close(lock)


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks never yields abandoned folders
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # no other process removed it before it was locked
            return folder, lock
        os.close(lock)
