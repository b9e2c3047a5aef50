"""Throughput and latency of the endpoint as the work grows, one dimension at a time."""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from yolov5_build.photos import photos_in

from ._contenders import CONTENDERS, started
from ._measure import LoadGenerator

_DEFAULT = next(one for one in CONTENDERS if one.name == "default")
_CALLERS = (1, 2, 4, 8, 16, 32, 64)
_MEGAPIXELS = (0.3, 1, 2, 4, 8, 12)
_BATCHES = (1, 2, 4, 8)
_DETECTIONS = (0, 1, 10, 100, 300)
_MANY = 8  # callers that keep two cores busy


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured point.

    Attributes:
        what, value: the dimension that varies, and its value.
        callers: number of concurrent callers.
        rate: images per second.
        p50, p99: milliseconds for a request.
    """

    what: str
    value: float
    callers: int
    rate: float
    p50: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One point to be measured: photos, sender, and images in a request."""

    what: str
    value: float
    callers: int
    photos: Sequence[Path]
    sender: tuple[str, ...] = ("http", "HTTP")
    images: int = 1
    cpus: int


def measure_scaling(
    options: argparse.Namespace, network: Path, repository: Path, machine: str
) -> int:
    """Measure, print, write `<name>-scaling.md` and `.csv`, and return an exit status."""
    cpus = len(os.sched_getaffinity(0))
    photos = photos_in(options.photos)[:8] if options.photos.is_dir() else [options.photos]
    with ExitStack() as stack:
        servers = {
            count: stack.enter_context(
                started(
                    _DEFAULT,
                    network=network,
                    repository=repository,
                    cpus=count,
                    model=options.model,
                )
            )
            for count in _core_counts(cpus)
        }
        generator = LoadGenerator()
        stack.callback(generator.close)
        folder = options.output / "photos"
        folder.mkdir(parents=True, exist_ok=True)
        cases = [*_cases(photos, _enlarged(photos[0], folder), cpus)]
        points = []
        for number in range(options.rounds):
            for case in cases:
                with ExitStack() as pausing:
                    for cores, server in servers.items():
                        if cores != case.cpus:
                            pausing.enter_context(server.paused())
                    points.append(_measure(case, servers[case.cpus].places, generator, options))
            print(f"round {number + 1} of {options.rounds}", flush=True)
    text = (
        f"`make serve` as it comes; {options.weights.stem}, photos from {options.photos.name},"
        f" {machine}; medians of {options.rounds} rounds of {options.seconds:.0f} s\n\n"
        f"{table(points)}"
    )
    stem = options.output / f"{options.name}-scaling"
    stem.with_suffix(".md").write_text(text)
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Point)])
        writer.writerows(astuple(point) for point in points)
    print(text)
    return 0


def _core_counts(cpus: int) -> list[int]:
    """Return the powers of two up to the number of cores, and that number."""
    return sorted({*(1 << n for n in range(cpus.bit_length()) if 1 << n < cpus), cpus})


def _enlarged(photo: Path, folder: Path) -> Mapping[float, Path]:
    """Write the photo as JPEG in other sizes, and return the files by megapixels."""
    picture = cv2.imread(str(photo))
    assert picture is not None
    found = {}
    for size in _MEGAPIXELS:
        factor = (size * 1e6 / (picture.shape[0] * picture.shape[1])) ** 0.5
        other = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        found[size] = folder / f"{size:g}.jpg"
        cv2.imwrite(str(found[size]), other, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return found


def _cases(photos: Sequence[Path], enlarged: Mapping[float, Path], cpus: int) -> Iterator[_Case]:
    for callers in _CALLERS:
        yield _Case(what="callers", value=callers, callers=callers, photos=photos, cpus=cpus)
    for size, photo in enlarged.items():
        for callers in (1, _MANY):
            yield _Case(what="megapixels", value=size, callers=callers, photos=[photo], cpus=cpus)
    for size in _BATCHES:
        yield _Case(
            what="images in a request",
            value=size,
            callers=1,
            photos=photos,
            sender=("batch", "GRPC", str(size)),
            images=size,
            cpus=cpus,
        )
    for count in _DETECTIONS:
        asked = ("Conf-Thres=0.001", f"Max-Det={count}") if count else ("Conf-Thres=1",)
        yield _Case(
            what="detections",
            value=count,
            callers=_MANY,
            photos=photos,
            sender=("http", "HTTP", *asked),
            cpus=cpus,
        )
    for count in _core_counts(cpus):
        for callers in (1, _MANY):
            yield _Case(what="cores", value=count, callers=callers, photos=photos, cpus=count)


def _measure(
    case: _Case, places: Mapping[str, str], generator: LoadGenerator, options: argparse.Namespace
) -> Point:
    report = generator.request(
        sender=[places.get(part, part) for part in case.sender],
        model=options.model,
        photos=[*map(str, case.photos)],
        callers=case.callers,
        seconds=options.seconds,
        warm=options.warm,
        server=0,
        metrics="",
    )
    latencies = np.array([x for caller in report["latencies"] for x in caller]) * 1000
    p50, p99 = np.quantile(latencies, [0.5, 0.99]).tolist()
    return Point(
        what=case.what,
        value=case.value,
        callers=case.callers,
        rate=report["images"] * case.images / options.seconds,
        p50=p50,
        p99=p99,
    )


def table(points: Sequence[Point]) -> str:
    """Return the medians of the rounds as a Markdown table."""
    lines = ["| | | callers | images/s | p50 ms | p99 ms |", "|---|---:|---:|---:|---:|---:|"]
    for key in dict.fromkeys((p.what, p.value, p.callers) for p in points):
        mine = [p for p in points if (p.what, p.value, p.callers) == key]
        rate, p50, p99 = (median(getattr(p, name) for p in mine) for name in ("rate", "p50", "p99"))
        what, value, callers = key
        lines.append(f"| {what} | {value:g} | {callers} | {rate:.1f} | {p50:.0f} | {p99:.0f} |")
    return "\n".join(lines) + "\n"
