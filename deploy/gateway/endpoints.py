"""The list of endpoints that the gateway lets through, made from the model repository.

`make gateway` keeps it up to date. Where nginx runs by itself, this program does, with any Python:
`python endpoints.py REPOSITORY FOLDER`, where FOLDER is the folder of `nginx.conf`.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

LIST = Path("endpoints", "list")  # in nginx's folder; inspect.js reads it for each request
SUFFIX = "_ensemble"
LOOK_SECONDS = 1.0  # between two looks at the repository
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_STEPS = ("preprocess", "postprocess")


def find_endpoints(repository: Path) -> list[str]:
    """Return the endpoints of a model repository, sorted.

    There is one for each NAME that has a folder for the network, `NAME`, and one for the endpoint,
    `NAME_ensemble`.

    Raises:
        OSError: the repository cannot be read.
    """
    folders = {entry.name for entry in repository.iterdir() if entry.is_dir()}
    return sorted(
        name + SUFFIX for name in folders if _is_network(name) and name + SUFFIX in folders
    )


def _is_network(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name not in _STEPS and not name.endswith(SUFFIX)


class EndpointList:
    """The list in nginx's folder, which follows a model repository.

    A network that is replaced has no folder for a moment. An endpoint therefore leaves the list
    only after two looks in a row without it.

    Attributes:
        names: the endpoints in the list.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        self.names: list[str] = []
        self._repository = repository
        self._path = folder / LIST
        self._last: list[str] = []
        self._next_look = 0.0

    def update(self) -> None:
        """Look at the repository, and write the list if it has changed.

        Raises:
            OSError: the repository cannot be read or the list cannot be written; it stays as it is.
        """
        found = find_endpoints(self._repository)
        names = sorted({*found, *self._last})
        if names != self.names or not self._path.exists():
            self._write(names)
            self.names = names
        self._last = found

    def refresh(self) -> None:
        """Update the list once every `LOOK_SECONDS`. If that fails, it stays as it is."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            with suppress(OSError):
                self.update()

    def _write(self, names: Sequence[str]) -> None:
        """Replace the file in one step: a request reads the old list or the new one."""
        self._path.parent.mkdir(exist_ok=True)
        draft = self._path.with_suffix(".new")
        draft.write_text("".join(f"{name}\n" for name in names), "utf-8")
        draft.replace(self._path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the list, and return the exit status."""
    parser = argparse.ArgumentParser(prog="endpoints.py", description=__doc__)
    parser.add_argument("repository", type=Path, help="the model repository")
    parser.add_argument("folder", type=Path, help="the folder of nginx.conf")
    parser.add_argument("--watch", action="store_true", help="follow the repository until Ctrl-C")
    options = parser.parse_args(arguments)
    endpoints = EndpointList(options.repository, options.folder)
    try:
        endpoints.update()
        print("\n".join(endpoints.names), flush=True)
        while options.watch:
            time.sleep(LOOK_SECONDS)
            endpoints.refresh()
    except OSError as error:
        print(f"error: {error.filename} cannot be used ({error.strerror}).", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
