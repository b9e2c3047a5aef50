"""Go back to an earlier version of a network, without making it anew."""

from __future__ import annotations

from pathlib import Path

from . import _contract as contract
from ._endpoint import endpoint_for, read_limit
from ._errors import BuildError
from ._version import (
    carry_versions,
    is_complete,
    kept_versions,
    link_tree,
    locked,
    replace_folder,
    staged_folder,
    version_folder,
)


def roll_back(repository: Path, name: str, number: int | None = None) -> int:
    """Serve a kept version of a network again, and keep the one that is served now.

    As after an installation, other processes see either one, complete.

    Args:
        number: of the version (default: of those before the served one, the last).

    Returns:
        The number of the version that is served from now on; it is the one that it always had.

    Raises:
        BuildError: no such version is kept, or the repository cannot be written to. The served
            version stays.
    """
    served = repository / name
    with staged_folder(repository, name) as new, locked(repository):
        version = _choose(served, number)
        limit = read_limit(version / contract.CONFIG_FILE)
        if limit is None or not is_complete(version):
            raise BuildError(f"version {version.name} of {name} is not complete; {_kept(served)}.")
        link_tree(version, new)
        carry_versions(served, new, without=int(version.name))
        with endpoint_for(repository, name, limit):
            replace_folder(new, served)
    return int(version.name)


def _choose(served: Path, number: int | None) -> Path:
    """The folder of a kept version, by its number or as the last one before the served version."""
    current = version_folder(served)
    now = int(current.name) if current else 0
    kept = kept_versions(served)
    if number is None:
        earlier = [path for path in kept if int(path.name) < now]
        if not earlier:
            raise BuildError(
                f"no version of {served.name} before the served one, {now}, is kept;"
                f" {_kept(served)}."
            )
        return earlier[-1]
    if number == now:
        raise BuildError(f"version {number} of {served.name} is served already; {_kept(served)}.")
    found = [path for path in kept if int(path.name) == number]
    if not found:
        raise BuildError(f"there is no version {number} of {served.name}; {_kept(served)}.")
    return found[0]


def _kept(served: Path) -> str:
    """The numbers of all kept versions, newest first, to end a sentence."""
    numbers = [path.name for path in reversed(kept_versions(served))]
    return f"kept: {', '.join(numbers) or 'none'}"
