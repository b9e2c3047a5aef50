"""Replace the served network atomically: prepare a new version, and exchange the folders."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from ._contract import MODEL
from ._errors import BuildError
from ._staging import abandoned, staging_folder

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OLD = "old"


def version_folder(model: Path) -> Path | None:
    """The folder of the newest version of a model, or None if it has none."""
    versions = [path for path in model.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
    return max(versions, key=lambda path: int(path.name), default=None)


@contextmanager
def new_version(
    repository: Path,
    exchanging: Callable[[], AbstractContextManager[None]] = nullcontext,
    *,
    name: str = MODEL,
) -> Iterator[tuple[Path, Path]]:
    """Provide an empty folder to fill in, which replaces the served one at the end of the block.

    Other processes see either the old folder or the new one, complete; on a file system without
    an atomic exchange, for a moment neither. If the block raises an exception, the old one stays.

    Args:
        exchanging: entered around the exchange, while no server loads the network.
        name: of the network.

    Yields:
        The folder of the new model, and in it that of its version, one more than the served one.

    Raises:
        BuildError: the repository cannot be written to.
    """
    served = repository / name
    try:
        _restore_interrupted(served)
        newest = version_folder(served)
        number = int(newest.name) + 1 if newest else 1
        # Beside the repository: inside it, Triton would take the staging folder for a model.
        with staging_folder(repository.parent, staging_prefix(name)) as staging:
            new = staging / MODEL  # whatever the network's name is: one may be called _OLD
            version = new / str(number)
            version.mkdir(parents=True)
            yield new, version
            with _locked(repository), exchanging():
                if served.exists():
                    _exchange(new, served)
                else:
                    new.rename(served)
    except OSError as error:
        raise BuildError(
            f"{repository.name} cannot be written to: {error.strerror or error}."
        ) from None


def staging_prefix(name: str) -> str:
    """How the names of a network's temporary folders begin."""
    return f".{MODEL}-" if name == MODEL else f".{MODEL}-{name}-"


def _restore_interrupted(served: Path) -> None:
    """Restore the served network if a process was killed during an exchange that was not atomic,
    between its two renames."""
    for folder in abandoned(served.parent.parent, staging_prefix(served.name)):
        if not served.exists() and (folder / _OLD).is_dir():
            (folder / _OLD).rename(served)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for a server that is loading the installed network; it holds the same lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for a server that is loading the previous model ...", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _exchange(new: Path, served: Path) -> None:
    """Exchange two folders, atomically if the file system supports that."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = hasattr(libc, "renameat2") and not libc.renameat2(
        _AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(served), _RENAME_EXCHANGE
    )
    if not done:
        old = new.with_name(_OLD)
        served.rename(old)
        try:
            new.rename(served)
        except OSError:
            old.rename(served)
            raise


def copy_weights(source: Path, target: Path) -> None:
    """Copy a file of weights, as a hard link if possible."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
