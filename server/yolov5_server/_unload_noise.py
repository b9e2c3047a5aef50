"""Drop what Triton's Python stub writes whenever a model is unloaded, and nothing else.

The stub of 26.07 and 26.08 releases its Python objects after its interpreter has ended, for which
Python writes two lines of a fatal error. All work is done by then. The second line tells such an
end from that of a stub that dies while it serves: only here the interpreter is "finalizing".
"""

from __future__ import annotations

import re

_SECONDS = 1.0  # from the first line to the second, at most
_MOST_LINES = 64
_FATAL, _STATE = "Fatal Python error:", "Python runtime state:"
_FINALIZING = "finalizing (tstate=0x"
# Python writes them piece by piece, and stubs that end together may mix their pieces.
_PIECES = re.compile(
    rf"(?:{_FATAL}|{_STATE}|{re.escape(_FINALIZING)}|PyThreadState_Get|:| |\)|[0-9a-f]{{16}}"
    r"|the function must be called with the GIL held[^()]*"
    r"\(the current Python thread state is NULL\))+"
)


class UnloadNoise:
    """Holds such lines until it is known why they came. All times are from one monotonic clock."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._until = 0.0

    def take(self, line: str, now: float) -> list[str]:
        """The lines to show now: this one, if need be after those that were held, or none."""
        if not self._held and not line.startswith(_FATAL):
            return [line]
        if _PIECES.fullmatch(line):
            if not self._held:
                self._until = now + _SECONDS
            self._held.append(line)
            told = "".join(self._held)
            if told.count(_FINALIZING) == told.count(_FATAL):
                self._held.clear()
            return self.rest() if len(self._held) > _MOST_LINES else []
        # Of an interpreter that is not ending: what was held is a fault.
        return [*self.rest(), line] if line.startswith(_STATE) else [line]

    def next_due(self) -> float | None:
        """When `due` will have lines to show; None if no line is held."""
        return self._until if self._held else None

    def due(self, now: float) -> list[str]:
        """Held lines whose second half did not come in time."""
        return self.rest() if now >= self._until else []

    def rest(self) -> list[str]:
        """All held lines, for the end of the log."""
        held, self._held = self._held, []
        return held
