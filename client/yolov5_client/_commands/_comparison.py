"""The results of `compare`: figures, a table, and pictures of the largest disagreements."""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .._agreement import Agreement, Figures, PhotoAgreement, match
from .._client import Client
from .._detections import Detections
from .._sources import Source, safe_name
from . import OK, SOME_FAILED
from ._report import printable

_COLUMNS = {
    "A": "found_a",
    "B": "found_b",
    "matched": "matched",
    "other class": "other_class",
    "only A": "only_a",
    "only B": "only_b",
    "agreement": "agreement",
    "score B-A": "score_shift_mean",
    "median": "score_shift_median",
    "max": "score_shift_max",
    "IoU": "mean_iou",
}


@dataclass
class Side:
    """One of the two networks.

    Attributes:
        letter: A or B.
    """

    letter: str
    model: str
    server: str
    client: Client

    def __str__(self) -> str:
        return f"{self.letter}, {self.model} at {self.server}"


class Photo:
    """A photo to send. It is read once, by the first client that needs it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._lock = threading.Lock()
        self._data: bytes | None = None

    def __call__(self) -> bytes:
        with self._lock:
            if self._data is None:
                if self.source.kind != "image":
                    raise OSError(f"a {self.source.kind}; allowed: images")
                self._data = self.source.read()
            return self._data

    def release(self) -> None:
        """Forget the file's bytes."""
        self._data = None


@dataclass
class Answered:
    """A photo, and for each of A and B its detections, or why there are none."""

    photo: Photo
    a: Detections | str
    b: Detections | str


@dataclass(order=True)
class _Kept:
    """One of the photos with the largest disagreement, with its file for drawing."""

    rank: tuple[int, float]
    place: int  # negative: of equal photos the first is kept
    name: str = field(compare=False)
    stem: str = field(compare=False)
    photo: PhotoAgreement = field(compare=False)
    data: bytes = field(compare=False)


class Comparison:
    """Counts the answers, and keeps the photos with the largest disagreement."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._agreement = Agreement()
        self._largest: list[_Kept] = []  # a heap
        self._left_out: list[dict[str, str | None]] = []
        self._one_sided = 0

    def add(self, answered: Answered) -> None:
        """Count one photo."""
        source, a, b = answered.photo.source, answered.a, answered.b
        if not isinstance(a, Detections) or not isinstance(b, Detections):
            reasons = {
                "a": a if isinstance(a, str) else None,
                "b": b if isinstance(b, str) else None,
            }
            self._left_out.append({"photo": source.name, **reasons})
            self._one_sided += None in reasons.values()
            self._note_left_out(source.name, reasons["a"], reasons["b"])
            return
        photo = match(a, b, self._options.iou)
        self._agreement.add(photo)
        if photo.rank > (0, 0.0):
            place = -self._agreement.photos
            data = answered.photo() if self._options.save else b""
            heapq.heappush(
                self._largest,
                _Kept(photo.rank, place, source.name, safe_name(source.stem), photo, data),
            )
            if len(self._largest) > self._options.pictures:
                heapq.heappop(self._largest)

    @staticmethod
    def _note_left_out(name: str, a: str | None, b: str | None) -> None:
        if a == b:
            sentence = f"{a}"
        else:
            sentence = "; ".join(f"{letter}: {one}" for letter, one in (("A", a), ("B", b)) if one)
        tqdm.write(f"error: {printable(name)}: {sentence}", file=sys.stderr)

    def end(self, sides: tuple[Side, Side]) -> int:
        """Print and write the results, and return the exit status."""
        largest = sorted(self._largest, reverse=True)
        names: list[str | None] = [None] * len(largest)
        if self._options.save:
            names = self._draw(largest, sides)
        figures = self._figures(sides, largest, names)
        text = json.dumps(figures, indent=2) + "\n"
        if self._options.json == "-":
            print(text, end="")
        else:
            _print_table(figures)
            if self._options.json:
                Path(self._options.json).write_text(text, "utf-8")
        return self._status(figures)

    def _status(self, figures: dict[str, Any]) -> int:
        if not figures["photos"]:
            print("error: no photo was answered by both.", file=sys.stderr)
            return SOME_FAILED
        least = self._options.min_agreement
        if least is None:
            return OK
        agreement = self._agreement.total().agreement
        if agreement < least:
            print(f"error: the agreement is {agreement:.6g}, less than {least}.", file=sys.stderr)
        if self._one_sided:
            count = _count(self._one_sided, "photo")
            print(f"error: only one of the two answered {count}.", file=sys.stderr)
        return SOME_FAILED if agreement < least or self._one_sided else OK

    def _figures(
        self, sides: tuple[Side, Side], largest: list[_Kept], pictures: list[str | None]
    ) -> dict[str, Any]:
        total, classes = self._agreement.total(), self._agreement.by_label()
        return {
            **{one.letter.lower(): {"model": one.model, "server": one.server} for one in sides},
            "iou": self._options.iou,
            "photos": self._agreement.photos,
            "left_out": self._left_out,
            "agreement": round(total.agreement, 6) if self._agreement.photos else None,
            "total": _row(total),
            "classes": {label: _row(one) for label, one in classes.items()},
            "labels_only_a": [label for label, one in classes.items() if not one.found_b],
            "labels_only_b": [label for label, one in classes.items() if not one.found_a],
            "largest_disagreements": [
                {
                    "photo": one.name,
                    "differing": one.photo.differing,
                    "only_a": len(one.photo.only_a),
                    "only_b": len(one.photo.only_b),
                    "other_class": int((~one.photo.same).sum()),
                    "picture": picture,
                }
                for one, picture in zip(largest, pictures)
            ],
        }

    def _draw(self, largest: list[_Kept], sides: tuple[Side, Side]) -> list[str | None]:
        """Write the pictures and return their names; None for one that cannot be drawn."""
        from .._agreement_picture import side_by_side
        from .._draw import decode, write

        folder: Path = self._options.save
        titles = (f"A, {sides[0].model}", f"B, {sides[1].model}")
        names: list[str | None] = []
        for number, one in enumerate(largest, 1):
            name = f"{number:0{len(str(len(largest)))}}-{one.stem}.jpg"
            try:
                write(side_by_side(decode(one.data), one.photo, titles), folder / name)
            except (ValueError, OSError) as error:
                print(f"warning: {printable(one.name)}: {error}", file=sys.stderr)
                names.append(None)
            else:
                names.append(name)
        count = _count(len(names) - names.count(None), "picture")
        print(f"{count} saved to {folder}", file=sys.stderr)
        return names


def _row(figures: Figures) -> dict[str, Any]:
    values = {**asdict(figures), "agreement": figures.agreement}
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in values.items()
    }


def _print_table(figures: dict[str, Any]) -> None:
    for letter in "ab":
        side = figures[letter]
        print(f"{letter.upper()}: {side['model']} at {side['server']}")
    rows = [("class", *_COLUMNS)]
    for label, row in (*figures["classes"].items(), ("all", figures["total"])):
        rows.append((printable(label), *(_cell(row[name]) for name in _COLUMNS.values())))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for label, *cells in rows:
        shown = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:]))
        print("  ".join((f"{label:<{widths[0]}}", *shown)))
    for letter in "ab":
        if labels := figures[f"labels_only_{letter}"]:
            print(f"Only {letter.upper()} finds these: {', '.join(map(printable, labels))}")
    for one in figures["largest_disagreements"]:
        print(f"{printable(one['photo'])}: {_difference(one)}")
    left_out = len(figures["left_out"])
    skipped = f", {left_out} left out" if left_out else ""
    agreement = "none" if figures["agreement"] is None else f"{figures['agreement']:.4f}"
    photos = _count(figures["photos"], "photo")
    print(f"Agreement: {agreement} ({photos}{skipped}, IoU {figures['iou']:g})")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _difference(one: dict[str, Any]) -> str:
    names = {"only_a": "only A", "only_b": "only B", "other_class": "of another class"}
    parts = [f"{one[name]} {words}" for name, words in names.items() if one[name]]
    return ", ".join(parts) or "other scores"
