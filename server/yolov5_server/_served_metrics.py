"""Metrics of what is served and of its memory, as text for Prometheus."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ._memory import memory_by_process, memory_limit
from ._reload import Served

_Family = tuple[str, str, Sequence[tuple[str, str]]]  # name, help, samples by labels


@dataclass(frozen=True, kw_only=True)
class Record:
    """What `make model` wrote down when it installed a version.

    Attributes:
        installed: in seconds since 1970; None if that is not known.
        sha256: of the file that was installed, the first 12 digits; empty if that is not known.
    """

    installed: float | None = None
    sha256: str = ""


def read_record(repository: Path, network: str, version: int) -> Record:
    """Read the record of a version; an empty one if there is none that can be read."""
    folder = repository / network
    for place in (folder / str(version), folder / "versions" / str(version)):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            found = json.loads((place / "installed.json").read_text("utf-8"))
            installed = datetime.fromisoformat(found["installed"].replace("Z", "+00:00"))
            digits = "".join(one for one in found["sha256"] if one in "0123456789abcdef")
            return Record(installed=installed.timestamp(), sha256=digits[:12])
    return Record()


def served_metrics(
    repository: Path, served: Mapping[str, Served], refused: Collection[str], server: int | None
) -> str:
    """The metrics of the networks, and of the memory of all processes.

    Args:
        served: by the name of the network.
        refused: networks that are not served as they are installed.
        server: Triton's process number; None if none runs.
    """
    return "".join(
        f"# HELP yolov5_{name} {text}\n# TYPE yolov5_{name} gauge\n"
        + "".join(f"yolov5_{name}{labels} {value}\n" for labels, value in samples)
        for name, text, samples in (
            *_model_families(repository, dict(served), {*refused}),
            *_memory_families(server),
        )
    )


def _model_families(
    repository: Path, served: Mapping[str, Served], refused: Collection[str]
) -> Iterator[_Family]:
    records = {name: read_record(repository, name, one.version) for name, one in served.items()}
    yield (
        "model_info",
        "The served network: its version, precision, and the start of its file's SHA-256.",
        [
            (
                f'{{model="{name}",version="{one.version}",precision="{one.staged.precision}",'
                f'sha256="{records[name].sha256}"}}',
                "1",
            )
            for name, one in served.items()
        ],
    )
    yield (
        "model_installed_timestamp_seconds",
        "When the served version was installed.",
        [
            (f'{{model="{name}"}}', f"{record.installed:.0f}")
            for name, record in records.items()
            if record.installed is not None
        ],
    )
    yield (
        "model_refused",
        "Whether the network is not served as it is installed.",
        [
            (f'{{model="{name}"}}', str(int(name in refused)))
            for name in sorted({*served, *refused})
        ],
    )


def _memory_families(server: int | None) -> Iterator[_Family]:
    yield (
        "memory_bytes",
        "Memory of each process; what several share is divided among them.",
        [(f'{{what="{what}"}}', str(size)) for what, size in memory_by_process(server).items()],
    )
    yield "memory_limit_bytes", "Memory that all may have together.", [("", str(memory_limit()))]
