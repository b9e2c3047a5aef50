"""The report of `make bench ARGS=--ceiling`: tables in Markdown, and a CSV file of all rounds."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import median

HERE, AGAINST = "here", "against"  # the trees
NAME = "ceiling"
_OURS = ("preprocess", "postprocess", "tritonserver")
_CPU = ("ours", *_OURS, "network", "launcher", "load")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One server in one round of one case.

    Attributes:
        tree: whose server.
        rows: what the network hands out, `full` or `prefiltered`.
        sure: number of detections.
        megapixels: of the picture.
        transport: HTTP or GRPC.
        rate: images per second.
        p50, p99: milliseconds for a request.
        preprocess, postprocess, tritonserver, network, launcher, load: milliseconds of CPU for an
            image, by process; the last is the load generator.
    """

    tree: str
    rows: str
    sure: int
    megapixels: float
    transport: str
    callers: int
    round: int
    rate: float
    p50: float
    p99: float
    preprocess: float
    postprocess: float
    tritonserver: float
    network: float
    launcher: float
    load: float

    @property
    def ours(self) -> float:
        """What is ours in an image: both steps and the server, in milliseconds of CPU."""
        return float(sum(getattr(self, name) for name in _OURS))

    @property
    def case(self) -> tuple[object, ...]:
        return self.transport, self.callers, self.megapixels, self.rows, self.sure


@dataclass(frozen=True, kw_only=True)
class Held:
    """For how long the steps hold their interpreters' locks, in milliseconds for an image.

    Attributes:
        images: in a request.
        rate: images per second meanwhile.
    """

    tree: str
    rows: str
    sure: int
    megapixels: float
    callers: int
    images: int
    rate: float
    preprocess: float
    postprocess: float

    @property
    def case(self) -> tuple[object, ...]:
        return self.callers, self.images, self.megapixels, self.rows, self.sure


@dataclass(frozen=True, kw_only=True)
class Bare:
    """The bare functions in one process, in milliseconds of CPU for an image.

    Attributes:
        rows: that the last function gets.
        decode: JPEG -> picture.
        place: picture -> the network's input.
        postprocess: rows -> detections.
    """

    megapixels: float
    rows: str
    decode: float
    place: float
    postprocess: float


def write(
    folder: Path,
    title: str,
    sizes: Mapping[float, int],
    points: Sequence[Point],
    held: Sequence[Held],
    reason: str,
    bare: Sequence[Bare],
) -> str:
    """Write `ceiling.md` and `ceiling.csv`, and return the text.

    Args:
        sizes: bytes of the pictures, by megapixels.
        reason: why there is nothing in `held`; empty if there is.
    """
    described = ", ".join(f"{size:g} Mpx: {count / 1000:.0f} kB" for size, count in sizes.items())
    text = f"{title}\n\nPictures: {described}. CPU in milliseconds for an image.\n\n{table(points)}"
    text += "\nThe bare functions in one process, milliseconds of CPU for an image:\n\n"
    text += bare_table(bare)
    text += "\nHow long each interpreter's lock is held, milliseconds for an image:\n\n"
    text += held_table(held) if held else f"Left out: {reason}.\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.md").write_text(text, "utf-8")
    with (folder / f"{NAME}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Point)])
        for point in points:
            values = astuple(point)
            writer.writerow([round(v, 3) if isinstance(v, float) else v for v in values])
    return text


def table(points: Sequence[Point]) -> str:
    """Return the medians of the rounds as a Markdown table, with a line for each tree."""
    several = any(p.tree == AGAINST for p in points)
    heads = ["", "callers", "Mpx", "rows", "detections", *(["tree"] if several else [])]
    heads += ["images/s", *(["here to against"] if several else []), "p50 ms", "p99 ms"]
    heads += ["**the three**", *(f"`{name}`" for name in _OURS), "network", "launcher"]
    rows = []
    for case, tree in dict.fromkeys((p.case, p.tree) for p in points):
        mine = [p for p in points if (p.case, p.tree) == (case, tree)]
        row = [*map(str, case), *([tree] if several else []), _median(mine, "rate", 0)]
        row += [_ratio(points, case) if tree == HERE else ""] if several else []
        row += [_median(mine, "p50", 1), _median(mine, "p99", 1)]
        rows.append([*row, *(_median(mine, name, 2) for name in _CPU)])
    return _markdown([*heads, "load generator"], rows)


def _median(items: Sequence[object], name: str, digits: int) -> str:
    return f"{median(getattr(item, name) for item in items):.{digits}f}"


def _ratio(points: Sequence[Point], case: tuple[object, ...]) -> str:
    """Images/s here divided by those of the other tree: the median of the rounds, and all of it."""
    rates = {(p.tree, p.round): p.rate for p in points if p.case == case}
    found = [
        rate / rates[AGAINST, number]
        for (tree, number), rate in rates.items()
        if tree == HERE and (AGAINST, number) in rates
    ]
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})" if found else ""


def bare_table(bare: Sequence[Bare]) -> str:
    """Return a Markdown table of the bare functions."""
    heads = ["Mpx", "rows", "decode", "letterbox and put", "postprocess"]
    rows = [
        [f"{b.megapixels:g}", b.rows, f"{b.decode:.2f}", f"{b.place:.2f}", f"{b.postprocess:.2f}"]
        for b in bare
    ]
    return _markdown(heads, rows)


def held_table(held: Sequence[Held]) -> str:
    """Return the medians of the rounds as a Markdown table."""
    heads = ["callers", "images in a request", "Mpx", "rows", "detections", "tree", "images/s"]
    rows = []
    for case, tree in dict.fromkeys((h.case, h.tree) for h in held):
        mine = [h for h in held if (h.case, h.tree) == (case, tree)]
        row = [*map(str, case), tree, _median(mine, "rate", 0)]
        rows.append([*row, _median(mine, "preprocess", 2), _median(mine, "postprocess", 2)])
    return _markdown([*heads, "`preprocess`", "`postprocess`"], rows)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
