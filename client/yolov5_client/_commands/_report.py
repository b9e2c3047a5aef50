"""The output of `detect`: results, progress, errors and a summary."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .._journal import Progress

_FAILURES_SHOWN = 20


class Report:
    """Prints results to stdout, errors and a progress bar to stderr.

    Attributes:
        total: number of sources, if it is known.
        failures: name of each image that failed, and why.
    """

    def __init__(self, options: argparse.Namespace, total: int | None) -> None:
        self._json = options.json
        self._quiet = options.quiet
        self.total = total
        self.failures: list[tuple[str, str]] = []
        self._finished = 0
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit="image", file=sys.stderr) if terminal else None

    def extend_total(self, more: int) -> None:
        """Add further images of a source, such as a video's, to the progress bar's total."""
        if self._bar is not None and self._bar.total is not None and more > 0:
            self._bar.total += more

    def resume(self, done: Progress) -> None:
        """Start from the progress of an earlier run."""
        self.failures += done.refused
        self._finished = done.lines
        if self._bar is not None:
            self.extend_total(done.lines - done.images.total() - done.videos.total())
            self._bar.n = self._bar.initial = done.lines  # excluded from the rate shown

    def advance(self) -> None:
        """Count one more image as finished."""
        self._finished += 1
        if self._bar is not None:
            self._bar.update()

    def result(self, text: str | None, line: dict[str, Any]) -> None:
        """Print the result of one image.

        Args:
            text: for a person; None for an image that was refused.
            line: as the journal has it.
        """
        if self._json:
            self._print(json.dumps(line), sys.stdout)
        elif text and not self._quiet:
            self._print(text, sys.stdout)

    def failure(self, name: str, sentence: str) -> None:
        self.failures.append((name, sentence))
        self.note(f"error: {printable(name)}: {sentence}")

    def note(self, text: str) -> None:
        self._print(text, sys.stderr)

    def _print(self, text: str, file: Any) -> None:
        if self._bar is None:
            print(text, file=file, flush=True)
        else:
            tqdm.write(text, file=file)

    def end(self, folder: Path | None, error: str) -> None:
        """Print what failed and where the results are, and write `failures.txt`."""
        self.close()
        lines = [f"{printable(name)}: {sentence}" for name, sentence in self.failures]
        if folder and lines:
            (folder / "failures.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        elif folder:
            (folder / "failures.txt").unlink(missing_ok=True)
        if folder and not self._quiet:
            self._print(f"Results saved to {folder}", sys.stderr if self._json else sys.stdout)
        if lines:
            self.note(f"error: {len(lines)} of {self._finished} images failed.")
            for line in lines[:_FAILURES_SHOWN]:
                self.note(f"  {line}")
            if len(lines) > _FAILURES_SHOWN:
                where = f"; all are in {folder / 'failures.txt'}" if folder else ""
                self.note(f"  and {len(lines) - _FAILURES_SHOWN} more{where}")
        if error:
            self.note(f"error: {error}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def printable(name: str) -> str:
    """Escape what cannot be printed; a path on disk need not be valid UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
