"""List the installed networks and their versions, and what a running server serves of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yolov5_client.stdio import prepare_stdio

from ._listing import Version, read_versions
from ._networks import endpoint_faults, endpoint_name, installed_networks, printable
from ._record import as_values
from ._served import Served, Server, ask_server
from .paths import REPOSITORY

# Of a version: a server serves it; it is installed, but a server has not taken it over or none
# runs; it is an earlier one.
SERVED, INSTALLED, KEPT = "served", "installed", "kept"

_COLUMNS = (
    *("NAME", "VERSION", "STATE", "CLASSES", "SIZE", "LETTERBOX", "PRECISION", "SOURCE"),
    *("INSTALLED (UTC)", "MAP50-95", "MEMORY"),
)
_UNKNOWN = "-"
_CLASSES_WIDTH = 32  # characters


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    prepare_stdio()
    options = _parser().parse_args(arguments)
    port = options.health_port or options.metrics_port + 1
    server = ask_server(options.host, port)
    networks = {
        name: read_versions(options.repository / name)
        for name in installed_networks(options.repository)
    }
    notes = [
        *_faults(networks),
        *endpoint_faults(options.repository),
        *_differences(networks, server, f"{options.host}:{port}"),
    ]
    if options.json:
        print(json.dumps(_as_json(networks, server) | {"notes": notes}, indent=1))
        return 0
    rows = [row for name, versions in networks.items() for row in _rows(name, versions, server)]
    print("\n".join(_table([_COLUMNS, *rows])))
    if server and server.steps:
        shared = (f"{name} {_megabytes(memory)}" for name, memory in server.steps.items())
        notes.append(f"All networks share {', '.join(shared)}.")
    for note in notes:
        print(printable(note))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="yolov5_build.models", description=__doc__)
    parser.add_argument("--json", action="store_true", help="as JSON instead of a table")
    parser.add_argument("--host", default="127.0.0.1", help="of the server (default: %(default)s)")
    parser.add_argument(
        "--metrics-port", type=int, default=8002, help="of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--health-port", type=int, help="of the server (default: that of the metrics plus 1)"
    )
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="model repository to list"
    )
    return parser


def _state(version: Version, served: Served | None) -> str:
    if served is not None and version.number is not None and version.number == served.version:
        return SERVED
    return KEPT if version.kept else INSTALLED


def _rows(name: str, versions: Sequence[Version], server: Server | None) -> Iterator[list[str]]:
    """The lines of a network in the table, one for each version."""
    served = server.networks.get(name) if server else None
    for index, version in enumerate(versions):
        state = _state(version, served)
        record = version.record
        accuracy = record.accuracy if record else None
        yield [
            name if index == 0 else "",
            str(version.number or _UNKNOWN),
            state,
            _classes(version.classes),
            "x".join(map(str, version.size)) if version.size else _UNKNOWN,
            version.letterbox or _UNKNOWN,
            _precision(version, served if state == SERVED else None),
            version.file or _UNKNOWN,
            printable(record.installed[:16].replace("T", " ")) if record else _UNKNOWN,
            f"{accuracy.map50_95:.4f}" if accuracy else _UNKNOWN,
            _megabytes(served.memory) if served and state == SERVED else _UNKNOWN,
        ]


def _classes(names: Sequence[str] | None) -> str:
    """The number of classes, and as many names as fit."""
    if names is None:
        return _UNKNOWN
    text = f"{len(names)}: {', '.join(names)}"
    return text if len(text) <= _CLASSES_WIDTH else f"{text[: _CLASSES_WIDTH - 4]} ..."


def _precision(version: Version, served: Served | None) -> str:
    """The server's choice, or what there is to choose from."""
    if served and served.precision:
        return printable(served.precision)
    return f"{version.precision} or bf16" if version.bf16 else version.precision or _UNKNOWN


def _megabytes(memory: int | None) -> str:
    return _UNKNOWN if memory is None else f"{memory / 1e6:.0f} MB"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def _faults(networks: dict[str, list[Version]]) -> Iterator[str]:
    """Sentences on files that are missing or damaged."""
    for name, versions in networks.items():
        for version in versions:
            if version.fault:
                yield f"{name}, version {version.number or _UNKNOWN}: {version.fault}"


def _differences(
    networks: dict[str, list[Version]], server: Server | None, address: str
) -> Iterator[str]:
    """Sentences on what the server does not serve as it is installed."""
    if server is None:
        yield f"No server answers at {address}."
        return
    for name, (current, *_) in networks.items():
        yield from _difference(name, current, server.networks.get(name))
    for name in sorted(server.networks.keys() - networks.keys()):
        yield f"{name}: the server still serves it, but it is not installed any more."


def _difference(name: str, current: Version, served: Served | None) -> Iterator[str]:
    """Whether the server serves this network as it is installed, and if not, why."""
    because = f": {served.reason}" if served and served.reason else "."
    if served is None:
        yield f"{name}: the server does not know it."
    elif served.version is None:
        yield f"{name}: the server does not serve it{because}"
    elif served.version != current.number:
        yield (f"{name}: the server serves version {served.version}, not {current.number}{because}")
    elif served.reason:
        yield f"{name}: version {served.version} is not ready{because}"


def _as_json(networks: dict[str, list[Version]], server: Server | None) -> dict[str, Any]:
    return {
        "server": server is not None,
        "models": [
            {
                "name": name,
                "endpoint": endpoint_name(name),
                "served": asdict(server.networks[name])
                if server and name in server.networks
                else None,
                "versions": list(_versions_as_json(name, versions, server)),
            }
            for name, versions in networks.items()
        ],
        "steps": server.steps if server else {},
    }


def _versions_as_json(
    name: str, versions: Iterable[Version], server: Server | None
) -> Iterator[dict[str, Any]]:
    served = server.networks.get(name) if server else None
    for version in versions:
        yield {
            "version": version.number,
            "state": _state(version, served),
            "classes": version.classes,
            "size": version.size,
            "letterbox": version.letterbox,
            "precision": version.precision,
            "bf16": version.bf16,
            "fault": version.fault,
            "file": version.file,
            **(as_values(version.record) if version.record else {}),
        }


if __name__ == "__main__":
    sys.exit(main())
