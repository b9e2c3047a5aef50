"""The progress of a run of `detect` on disk: `results.jsonl`, and `run.json` beside it.

A line of the journal is written after all other results of its image. A run that is cut short at
any point can therefore go on with the sources that have no line.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ._sources import Source

JOURNAL = "results.jsonl"
RECORD = "run.json"


@dataclass
class RunRecord:
    """How a run was started.

    Attributes:
        options: the command's options by name, without those of the connection.
        directory: the working directory, to which the paths are relative.
        videos: the stems of the results of complete videos.
    """

    options: dict[str, Any]
    directory: str
    videos: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read the record of the run in a folder.

        Raises:
            FileNotFoundError, ValueError: there is none, or it is malformed. The message is a
                sentence.
        """
        path = folder / RECORD
        try:
            record = cls(**json.loads(path.read_bytes()))
            texts = [record.directory, *record.videos]
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{folder} is not a run's folder: no {RECORD}.") from None
        except (ValueError, TypeError, RecursionError):
            raise ValueError(f"{path} is not what a run has written.") from None
        if not isinstance(record.options, dict) or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"{path} is not what a run has written.")
        return record

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2) + "\n"
        replace_file(folder / RECORD, text.encode())


@dataclass
class Progress:
    """What a journal contains.

    Attributes:
        images, videos: how often each source is finished; a path may be given twice.
        image_stems, video_stems: the names of their results.
        refused: name and reason of each image that the server refused.
        lines: number of finished images and frames.
    """

    images: Counter[str] = field(default_factory=Counter)
    videos: Counter[str] = field(default_factory=Counter)
    image_stems: set[str] = field(default_factory=set)
    video_stems: set[str] = field(default_factory=set)
    refused: list[tuple[str, str]] = field(default_factory=list)
    lines: int = 0


class Journal:
    """The journal of one folder, locked by one process.

    Raises:
        BlockingIOError: another process has locked it. The message is a sentence.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._file = self._open_locked()

    def _open_locked(self) -> int:
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                raise BlockingIOError(f"another process writes to {self._path.parent}.") from None
            # The previous holder may have replaced the file in the meantime.
            if self._path.exists() and os.path.samestat(os.fstat(file), self._path.stat()):
                return file
            os.close(file)

    def clear(self) -> None:
        os.ftruncate(self._file, 0)

    def append(self, line: str) -> None:
        """Write one line completely or not at all.

        Raises:
            OSError: the line cannot be written.
        """
        data = line.encode() + b"\n"
        before = os.fstat(self._file).st_size
        if os.write(self._file, data) != len(data):
            os.ftruncate(self._file, before)
            raise OSError(f"{self._path} cannot be written: the disk is full.")

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the parsed lines.

        Raises:
            ValueError: a line is malformed. The message is a sentence.
        """
        return (line for line, _ in self._parsed())

    def recover(self, videos: list[str]) -> Progress:
        """Remove an incomplete last line and the lines of incomplete videos.

        Args:
            videos: the stems of complete videos.

        Returns:
            The progress that is left.

        Raises:
            ValueError: as for `lines`.
        """
        done, complete, dropped = Progress(), set(videos), False
        spans: list[tuple[int, int]] = []  # begin and end of the bytes to keep
        for line, (start, end) in self._parsed():
            stem, video = line_stem(line), "frame" in line
            if video and stem not in complete:
                dropped = True
                continue
            if spans and spans[-1][1] == start:
                start = spans.pop()[0]
            spans.append((start, end))
            done.lines += 1
            if "error" in line:
                done.refused.append((line["image"], str(line["error"])))
            if not video:
                done.images[line["image"]] += 1
                if "error" not in line:
                    done.image_stems.add(stem)
            elif stem not in done.video_stems:
                done.videos[line["image"]] += 1
                done.video_stems.add(stem)
        if dropped:
            self._rewrite(spans)
        else:
            os.ftruncate(self._file, spans[-1][1] if spans else 0)
        return done

    def _rewrite(self, spans: list[tuple[int, int]]) -> None:
        part = self._path.with_suffix(".part")
        file = os.open(
            part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666
        )
        fcntl.flock(file, fcntl.LOCK_EX)
        for start, end in spans:
            while start < end:
                start += os.write(file, os.pread(self._file, min(end - start, 1 << 20), start))
        part.replace(self._path)
        os.close(self._file)
        self._file = file

    def _parsed(self) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
        with self._path.open("rb") as file:
            start = 0
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    return
                try:
                    line = json.loads(text)
                    if not isinstance(line["image"], str) or not isinstance(
                        line.get("stem", ""), str
                    ):
                        raise TypeError
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise ValueError(
                        f"{self._path}, line {number} is not what a run has written."
                    ) from None
                yield line, (start, start + len(text))
                start += len(text)

    def close(self) -> None:
        os.close(self._file)


def line_stem(line: dict[str, Any]) -> str:
    """Return the name of the results of a line's image or video."""
    stem: str = line.get("stem") or Source(line["image"]).stem
    return stem


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file atomically: readers see the old content or the new."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
