"""The manifest of a source: which networks it holds, and size and SHA-256 of each of their files.

The manifest is the one object that is replaced. The files lie beside it under their SHA-256, and
are never changed. A reader therefore sees the networks of one manifest, complete.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .._repository import NETWORK, endpoint_name, is_name
from ._errors import printable, refused

MANIFEST_FILE = "models.json"
MOST_MANIFEST_BYTES = 1 << 20
MOST_NETWORK_BYTES = 4 << 30
MOST_NETWORKS = 48  # that a server can have
WEIGHTS = ("model.onnx", "served.onnx", "model.plan")
_FORMAT = 1
_MOST_FILES = 32  # of a network
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONFIG = r"config\.pbtxt|configs/[a-z0-9-]{1,40}\.pbtxt"
_IN_NETWORK = re.compile(
    rf"{_CONFIG}|labels\.txt|(?P<version>[1-9]\d{{0,17}})/(?:installed\.json|"
    rf"{'|'.join(map(re.escape, WEIGHTS))})"
)
_IN_ENDPOINT = re.compile(_CONFIG)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of a network.

    Attributes:
        path: in the model repository, such as `yolov5/3/served.onnx`.
        size: in bytes.
        sha256: in hexadecimal digits.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SourceNetwork:
    """A network and its endpoint.

    Attributes:
        published: the time, in UTC, as 2026-11-26T17:00:00Z; empty if it is not known.
    """

    name: str
    files: tuple[SourceFile, ...]
    published: str = ""

    @property
    def digest(self) -> str:
        """The same for the same files, in hexadecimal digits."""
        lines = sorted(f"{one.sha256} {one.path}\n" for one in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def version(self) -> int:
        """The number of the version."""
        paths = (one.path.removeprefix(f"{self.name}/") for one in self.files)
        numbers = (found["version"] for path in paths if (found := _IN_NETWORK.fullmatch(path)))
        return int(next(number for number in numbers if number))

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(one.size for one in self.files)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of the manifest.

    Attributes:
        networks: by name.
    """

    networks: Mapping[str, SourceNetwork]

    def text(self) -> str:
        """As JSON, as `parse_manifest` reads it."""
        networks = {
            network.name: {
                "version": network.version,
                "published": network.published,
                "files": [vars(one) for one in network.files],
            }
            for network in self.networks.values()
        }
        return json.dumps({"format": _FORMAT, "networks": networks}, indent=1) + "\n"


def object_name(sha256: str) -> str:
    """The name of a file at the source, below the place of the manifest."""
    return f"objects/{sha256}"


def parse_manifest(content: bytes, *, needs_first: bool = True) -> Manifest:
    """Read a manifest.

    Args:
        needs_first: refuse a manifest without `yolov5`, which every server has.

    Raises:
        SourceError: it is not one that can be served.
    """
    if len(content) > MOST_MANIFEST_BYTES:
        raise refused(f"{MANIFEST_FILE} has over {MOST_MANIFEST_BYTES} bytes, the most allowed.")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        raise refused(f"{MANIFEST_FILE} is not JSON.") from None
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise refused(f"{MANIFEST_FILE} is no manifest of format {_FORMAT}, the one allowed.")
    found = values.get("networks")
    if not isinstance(found, dict) or len(found) > MOST_NETWORKS:
        raise refused(f"{MANIFEST_FILE} has no list of at most {MOST_NETWORKS} networks.")
    if needs_first and NETWORK not in found:
        raise refused(f"{MANIFEST_FILE} has no network {NETWORK}, which every server needs.")
    return Manifest(networks={name: _network(name, value) for name, value in found.items()})


def check_network(network: SourceNetwork) -> None:
    """Check names and sizes of a network's files.

    Raises:
        SourceError: one is not allowed, or a file is missing.
    """
    name, files = network.name, network.files
    if name != NETWORK and not is_name(name):
        raise refused(f"{MANIFEST_FILE} has a network {name[:60]!r}, which is no allowed name.")
    if len(files) > _MOST_FILES:
        raise refused(f"{name} has over {_MOST_FILES} files, the most allowed.")
    for one in files:
        if not _is_allowed(one.path, name):
            raise refused(
                f"{name} has a file {one.path[:80]!r}; allowed: config.pbtxt, configs/*.pbtxt,"
                f" labels.txt, installed.json and {', '.join(WEIGHTS)} of one version."
            )
        if not _SHA256.fullmatch(one.sha256) or one.size < 0:
            raise refused(f"{one.path} has no SHA-256 and size in {MANIFEST_FILE}.")
    if network.size > MOST_NETWORK_BYTES:
        raise refused(f"{name} has over {MOST_NETWORK_BYTES >> 30} GiB, the most allowed.")
    _check_complete(name, [one.path for one in files])


def _network(name: str, value: Any) -> SourceNetwork:
    try:
        files = tuple(
            SourceFile(path=str(one["path"]), size=int(one["size"]), sha256=str(one["sha256"]))
            for one in value["files"]
        )
        published = printable(str(value.get("published", ""))[:40])
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        sentence = f"{name[:60]!r} has no list of files with path, size and sha256."
        raise refused(sentence) from None
    network = SourceNetwork(name=name, files=files, published=published)
    check_network(network)
    return network


def _is_allowed(path: str, name: str) -> bool:
    folder, _, rest = path.partition("/")
    if folder == name:
        return bool(_IN_NETWORK.fullmatch(rest))
    return folder == endpoint_name(name) and bool(_IN_ENDPOINT.fullmatch(rest))


def _check_complete(name: str, paths: Iterable[str]) -> None:
    """
    Raises:
        SourceError: a file is missing or there twice, or there is not exactly one version.
    """
    paths = list(paths)
    known = set(paths)
    if len(known) < len(paths):
        raise refused(f"{name} has a file twice.")
    for path in (
        f"{name}/config.pbtxt",
        f"{name}/labels.txt",
        f"{endpoint_name(name)}/config.pbtxt",
    ):
        if path not in known:
            raise refused(f"{path} is missing in {MANIFEST_FILE}.")
    versions = {path.split("/")[1] for path in known if path.endswith(WEIGHTS)}
    others = {path.split("/")[1] for path in known if path.endswith("/installed.json")}
    if len(versions) != 1 or others - versions:
        raise refused(f"{name} has weights of {len(versions)} versions; allowed: one.")
