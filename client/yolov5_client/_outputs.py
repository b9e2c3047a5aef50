"""The result files of a run of `detect`, apart from the journal."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._detections import Detections
from ._journal import Progress, line_stem
from ._sources import IMAGE_SUFFIXES, safe_name

if TYPE_CHECKING:
    from ._draw import Picture

_DRAWN = IMAGE_SUFFIXES - {".mpo"}  # OpenCV reads MPO but does not write it
CSV_COLUMNS = ("image", "frame", "label", "class", "score", "x1", "y1", "x2", "y2")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Which results to write; the flags of `detect` have the same names."""

    pictures: bool
    save_txt: bool = False
    save_conf: bool = False
    save_crop: bool = False
    save_csv: bool = False
    save_json: bool = False
    save_jsonl: bool = False
    line_thickness: int | None = None
    hide_labels: bool = False
    hide_conf: bool = False

    @property
    def needs_folder(self) -> bool:
        """Whether any file is to be written."""
        files = (self.save_txt, self.save_crop, self.save_csv, self.save_json, self.save_jsonl)
        return self.pictures or any(files)

    @property
    def needs_picture(self) -> bool:
        """Whether the picture has to be decoded."""
        return self.pictures or self.save_crop


class UniqueStems:
    """Unique names for the results of each image and video: `photo`, then `photo-2`.

    The frames of a video `clip` are called `clip_1`, `clip_2` and so on, which an image must avoid.
    """

    def __init__(self, done: Progress) -> None:
        self._taken = done.image_stems | done.video_stems
        self._videos = set(done.video_stems)
        self._numbered = {self._base(stem) for stem in done.image_stems}

    def allocate(self, stem: str, *, video: bool = False) -> str:
        name, number = stem, 2
        while (
            name in self._taken
            or self._base(name) in self._videos
            or (video and name in self._numbered)
        ):
            name, number = f"{stem}-{number}", number + 1
        self._taken.add(name)
        if video:
            self._videos.add(name)
        else:
            self._numbered.add(self._base(name))
        return name

    @staticmethod
    def _base(stem: str) -> str | None:
        match = re.fullmatch(r"(.+)_\d+", stem)
        return match[1] if match else None


class ResultWriter:
    """Writes the results of single images."""

    def __init__(self, folder: Path, output_options: OutputOptions) -> None:
        self._folder = folder
        self._output_options = output_options

    def write(
        self, stem: str, detections: Detections, load_picture: Callable[[], Picture]
    ) -> Picture | None:
        """Write the text file and the crops of one image, and return the annotated picture.

        Args:
            load_picture: returns the picture, which is then drawn into.

        Raises:
            ValueError: the picture cannot be decoded. The text file is written all the same.
            OSError: a file cannot be written.
        """
        output_options = self._output_options
        if output_options.save_txt:
            lines = detections.yolo_lines(confidence=output_options.save_conf)
            text = "".join(f"{line}\n" for line in lines)
            (self._made("labels") / f"{stem}.txt").write_text(text)
        if not output_options.needs_picture:
            return None
        from ._draw import draw

        picture = load_picture()
        if output_options.save_crop:
            self._write_crops(stem, detections, picture)
        if output_options.pictures:
            draw(
                picture,
                detections,
                line=output_options.line_thickness,
                labels=not output_options.hide_labels,
                confidences=not output_options.hide_conf,
            )
        return picture

    def write_picture(self, stem: str, suffix: str, picture: Picture) -> None:
        from ._draw import write

        write(picture, self._folder / f"{stem}{suffix if suffix in _DRAWN else '.jpg'}")

    def video_path(self, stem: str) -> Path:
        return self._folder / f"{stem}.mp4"

    def _write_crops(self, stem: str, detections: Detections, picture: Picture) -> None:
        from ._draw import crop, write

        counts: Counter[str] = Counter()
        for box, label in zip(detections.boxes, detections.labels):
            kind = safe_name(label)
            counts[kind] += 1
            cut = crop(picture, box)
            if cut.size:
                name = crop_name(stem, counts[kind])
                write(cut, self._made("crops", kind) / f"{name}.jpg")

    def _made(self, *parts: str) -> Path:
        folder = self._folder.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def crop_name(stem: str, number: int) -> str:
    """Return `photo`, then `photo.2`, `photo.3`, never the name of another image's crop."""
    if number == 1 and not re.search(r"\.\d+$", stem):
        return stem
    return f"{stem}.{number}"


def frame_stem(stem: str, frame: int | None) -> str:
    """Return the name of the results of one frame of a video, as YOLOv5 forms it."""
    return stem if frame is None else f"{stem}_{frame}"


def write_csv(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a row for each detection in the journal's lines."""

    def rows() -> Iterator[str]:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        writer.writerow(CSV_COLUMNS)
        for line in lines:
            for box, score, index, label in _found(line):
                place = (line["image"], line.get("frame", ""))
                writer.writerow((*place, label, index, score, *box))
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
        yield buffer.getvalue()

    _write_text(path, rows())


def write_coco(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write the detections in the journal's lines in COCO's form for results."""

    def parts() -> Iterator[str]:
        separator = "["
        for line in lines:
            stem = frame_stem(line_stem(line), line.get("frame"))
            # YOLOv5's validation writes a number if the name is one.
            image = int(stem) if stem.isdecimal() else stem
            for (x1, y1, x2, y2), score, index, _ in _found(line):
                result = {
                    "image_id": image,
                    "category_id": index,
                    "bbox": [x1, y1, round(x2 - x1, 4), round(y2 - y1, 4)],
                    "score": score,
                }
                yield f"{separator}\n{json.dumps(result)}"
                separator = ","
        yield "[]\n" if separator == "[" else "\n]\n"

    _write_text(path, parts())


def _found(line: dict[str, Any]) -> Iterator[tuple[list[float], float, int, str]]:
    if "error" not in line:
        yield from zip(line["boxes"], line["scores"], line["classes"], line["labels"])


def _write_text(path: Path, parts: Iterable[str]) -> None:
    part = path.with_name(path.name + ".part")
    # A path on disk need not be valid UTF-8.
    with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.writelines(parts)
    part.replace(path)
