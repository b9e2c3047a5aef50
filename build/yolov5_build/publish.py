"""Publish an installed network to a bucket or a folder, from which servers fetch it.

A server that runs with this place as its MODEL_SOURCE takes the network over by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from yolov5_client.stdio import prepare_stdio
from yolov5_server._source_url import safe_url, url_fault
from yolov5_server.source import (
    MANIFEST_FILE,
    Manifest,
    SourceError,
    SourceFile,
    SourceNetwork,
    check_configs,
    check_network,
    object_name,
    parse_manifest,
)

from . import _contract as contract
from ._errors import BuildError
from ._manage import check_installed
from ._networks import endpoint_name
from ._version import is_complete, version_folder
from .paths import REPOSITORY

_CONFIGS = ("config.pbtxt", "configs/*.pbtxt")
_WEIGHTS = (contract.WEIGHTS_FILE, contract.SERVED_FILE, contract.PLAN_FILE, "installed.json")


class _Place(Protocol):
    """Where the networks are published."""

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is none."""

    def size(self, name: str) -> int | None:
        """The bytes of an object; None if there is none."""

    def put(self, path: Path, name: str) -> None:
        """Write an object, which appears in one moment."""


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        path = self._folder / name
        return path.read_bytes() if path.exists() else None

    def size(self, name: str) -> int | None:
        path = self._folder / name
        return path.stat().st_size if path.exists() else None

    def put(self, path: Path, name: str) -> None:
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not a link: the repository may be on the same disk, and its files may be changed.
        descriptor, new = tempfile.mkstemp(prefix=".new-", dir=target.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(path.read_bytes())
            os.fchmod(descriptor, 0o644)
            file.flush()
            os.fsync(descriptor)
        Path(new).replace(target)


class _Bucket:
    def __init__(self, url: str) -> None:
        self._place = url.removeprefix("s3://").rstrip("/")
        self._fs: Any = importlib.import_module("s3fs").S3FileSystem(
            config_kwargs={"retries": {"total_max_attempts": 4, "mode": "standard"}},
            use_listings_cache=False,
        )

    def read(self, name: str) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(f"{self._place}/{name}"))
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        try:
            return int(self._fs.info(f"{self._place}/{name}", refresh=True)["size"])
        except FileNotFoundError:
            return None

    def put(self, path: Path, name: str) -> None:
        self._fs.put_file(str(path), f"{self._place}/{name}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    prepare_stdio()
    options = _parser().parse_args(arguments)
    try:
        place = _open(options.destination)
        if options.remove:
            _remove(place, options.name)
            print(f"Removed {options.name} from {safe_url(options.destination)}.")
            return 0
        check_installed(options.repository, options.name)
        network = publish(place, options.repository, options.name)
        print(
            f"Published version {network.version} of {network.name}, {network.size / 1e6:.1f} MB,"
            f" to {safe_url(options.destination)}. Servers with this MODEL_SOURCE take it over."
        )
    except KeyboardInterrupt:
        print("error: interrupted; what was published before is unchanged.", file=sys.stderr)
        return 130
    except Exception as error:  # of the libraries of a bucket, without a common class
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0


def publish(place: _Place, repository: Path, name: str) -> SourceNetwork:
    """Publish one network and its endpoint beside those that are published.

    Its files are written first, under names of their own, and the manifest last.

    Raises:
        BuildError, SourceError: the network is not one that a server would take, or what is
            published there is no manifest.
    """
    network = read_network(repository, name)
    check_network(network)
    check_configs(repository, name)
    published = _published(place)
    if name != contract.MODEL and contract.MODEL not in published:
        raise BuildError(
            f"{contract.MODEL} is not published there, and every server needs it; publish it first."
        )
    for file in network.files:
        if place.size(object_name(file.sha256)) != file.size:
            place.put(repository / file.path, object_name(file.sha256))
    _write(place, {**published, name: network})
    return network


def read_network(repository: Path, name: str) -> SourceNetwork:
    """The files of an installed network and of its endpoint.

    Raises:
        BuildError: the network is not complete.
    """
    version = version_folder(repository / name)
    if version is None or not is_complete(repository / name):
        raise BuildError(f"{repository.name}/{name} is not complete; `make model` installs it.")
    paths = [version / file for file in _WEIGHTS if (version / file).is_file()]
    paths.append(repository / name / contract.LABELS_FILE)
    for model in (name, endpoint_name(name)):
        paths += [path for pattern in _CONFIGS for path in (repository / model).glob(pattern)]
    return SourceNetwork(
        name=name,
        files=tuple(_source_file(repository, path) for path in sorted(paths)),
        published=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _source_file(repository: Path, path: Path) -> SourceFile:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return SourceFile(
        path=path.relative_to(repository).as_posix(),
        size=path.stat().st_size,
        sha256=digest.hexdigest(),
    )


def _remove(place: _Place, name: str) -> None:
    """Take a further network out of the manifest; its files stay."""
    published = _published(place)
    if name == contract.MODEL or name not in published:
        further = ", ".join(one for one in published if one != contract.MODEL)
        raise BuildError(f"{name!r} cannot be removed; allowed: {further or 'none is published'}.")
    _write(place, {one: network for one, network in published.items() if one != name})


def _published(place: _Place) -> dict[str, SourceNetwork]:
    content = place.read(MANIFEST_FILE)
    return {} if content is None else dict(parse_manifest(content, needs_first=False).networks)


def _write(place: _Place, networks: dict[str, SourceNetwork]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, MANIFEST_FILE)
        manifest.write_text(Manifest(networks=networks).text(), "utf-8")
        place.put(manifest, MANIFEST_FILE)


def _open(destination: str) -> _Place:
    if fault := url_fault(destination):
        raise BuildError(f"DEST {fault}.")
    if not destination:
        raise BuildError("DEST is empty; allowed: s3://bucket/prefix or a folder.")
    if destination.startswith("https://"):
        raise BuildError(
            "DEST is an https address, which can only be read; publish into the folder or bucket"
            " that it shows."
        )
    return _Bucket(destination) if "://" in destination else _Folder(Path(destination))


def _sentence(error: Exception) -> str:
    text = safe_url(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, (BuildError, SourceError)):
        return text
    return f"It cannot be published: {text.rstrip('.')}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="yolov5_build.publish", description=__doc__)
    parser.add_argument("destination", metavar="DEST", help="s3://bucket/prefix or a folder")
    parser.add_argument(
        "--name", default=contract.MODEL, help="of the network (default: %(default)s)"
    )
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="model repository to publish from"
    )
    parser.add_argument(
        "--remove", action="store_true", help="take a further network out of what is published"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
