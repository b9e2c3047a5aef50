"""Temporary folders that do not outlive a killed process for long: the next one removes them."""

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
    """A new folder in `parent`, removed at the end; and those that killed processes have left there
    are removed before.

    Its owner holds a lock on it, which ends with the process. A folder whose lock can be had has
    therefore no owner.

    Raises:
        OSError: it cannot be made.
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
    """The folders in `parent` that have no owner any more; each is locked until the next is asked
    for."""
    for folder in parent.glob(f"{prefix}????????"):
        with suppress(OSError):  # somebody else's, or a file system without such locks
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
        with suppress(OSError):  # a file system without such locks: nobody else gets one either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # not removed by somebody who saw it before it was locked
            return folder, lock
        os.close(lock)
