"""Replace the served network atomically: prepare a new version, and exchange the folders.

Earlier versions are kept inside the network's folder, in `versions/`: each holds what the folder
held. They are linked into the new folder before the exchange, so that no process that is killed can
leave a network without them.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from ._contract import CONFIG_FILE, MODEL
from ._errors import BuildError
from ._staging import abandoned, staging_folder

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OLD = "old"
VERSIONS = "versions"  # Triton takes only folders with a number for versions that it may load
KEPT = 3  # earlier versions, beside the served one


def version_folder(model: Path) -> Path | None:
    """The folder of the newest version of a model, or None if it has none."""
    return max(_numbered(model), key=lambda path: int(path.name), default=None)


def kept_versions(model: Path) -> list[Path]:
    """The folders of the earlier versions of a model that are kept, oldest first."""
    return sorted(_numbered(model / VERSIONS), key=lambda path: int(path.name))


def _numbered(folder: Path) -> list[Path]:
    return [path for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]


def is_complete(model: Path) -> bool:
    """Whether this folder of a network, served or kept, can be served."""
    version = version_folder(model)
    return (model / CONFIG_FILE).is_file() and version is not None and any(version.iterdir())


@contextmanager
def new_version(
    repository: Path,
    exchanging: Callable[[], AbstractContextManager[None]] = nullcontext,
    *,
    name: str = MODEL,
    keep: bool = True,
) -> Iterator[tuple[Path, Path]]:
    """Provide an empty folder to fill in, which replaces the served one at the end of the block.

    Other processes see either the old folder or the new one, complete; on a file system without
    an atomic exchange, for a moment neither. If the block raises an exception, the old one stays.

    Args:
        exchanging: entered around the exchange, while no server loads the network.
        name: of the network.
        keep: the served version, if it is another network and not another form of the same.

    Yields:
        The folder of the new model, and in it that of its version, one more than the highest that
        is served or kept.

    Raises:
        BuildError: the repository cannot be written to.
    """
    served = repository / name
    with staged_folder(repository, name) as new:
        version = new / str(_next_number(served))
        version.mkdir()
        yield new, version
        with locked(repository), exchanging():
            number = _next_number(served)  # another one if another process has been faster
            if version.name != str(number):
                version.rename(new / str(number))
            carry_versions(served, new, keep_served=keep)
            replace_folder(new, served)


def _next_number(served: Path) -> int:
    numbers = [int(path.name) for path in (*_numbered(served), *kept_versions(served))]
    return max(numbers, default=0) + 1


@contextmanager
def staged_folder(repository: Path, name: str) -> Iterator[Path]:
    """Provide an empty folder on the file system of the repository, for the network's new files.

    Raises:
        BuildError: the repository cannot be written to, in the block too.
    """
    try:
        _restore_interrupted(repository / name)
        # Beside the repository: inside it, Triton would take the staging folder for a model.
        with staging_folder(repository.parent, staging_prefix(name)) as staging:
            new = staging / MODEL  # whatever the network's name is: one may be called _OLD
            new.mkdir()
            yield new
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


def carry_versions(
    served: Path, new: Path, *, keep_served: bool = True, without: int | None = None
) -> None:
    """Link the versions that are kept into a new folder: the served one, and the newest others.

    Args:
        served: the network's folder, which need not exist.
        new: the folder that replaces it.
        keep_served: also keep the version that is served, if it is complete.
        without: number of a version that is not kept.
    """
    kept = {int(path.name): path for path in kept_versions(served)}
    current = version_folder(served)
    room = KEPT
    if keep_served and current and is_complete(served):
        others = {path.name for path in _numbered(served)} - {current.name}
        link_tree(served, new / VERSIONS / current.name, without={VERSIONS, *others})
        kept.pop(int(current.name), None)
        room -= 1
    for number in sorted(kept.keys() - {without})[-room:]:
        link_tree(kept[number], new / VERSIONS / str(number))


def link_tree(source: Path, target: Path, without: Collection[str] = ()) -> None:
    """Copy a folder of a network, with links in place of copies of its files if possible.

    Args:
        target: may exist.
        without: names in the folder that are left out.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        copy = target / path.name
        if path.name in without:
            continue
        if path.is_symlink():
            copy.symlink_to(path.readlink())
        elif path.is_dir():
            link_tree(path, copy)
        else:
            copy_weights(path, copy)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
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


def replace_folder(new: Path, served: Path) -> None:
    """Put the new folder in the place of the served one, if there is one. The caller holds the
    lock."""
    if served.exists():
        _exchange(new, served)
    else:
        new.rename(served)


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
