"""Limit repeated log lines: the first one at once, then how often it was repeated."""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 10.0  # seconds between two lines of one kind
_KINDS = 256  # kinds that are told apart; all further ones share one pause
_OTHERS = "others"


@dataclass
class _Kind:
    until: float  # no line of this kind is shown before
    pause: float = _FIRST_PAUSE
    held: int = 0
    line: str = ""


class RepeatLimiter:
    """Passes at most one line a second of each kind. All times are from one monotonic clock."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def take(self, kind: str, line: str, now: float) -> str | None:
        """The line if it may be shown now. Otherwise None: it is counted, see `due`."""
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind = _OTHERS
        known = self._kinds.get(kind)
        if known is None or (now >= known.until and not known.held):
            self._kinds[kind] = _Kind(until=now + _FIRST_PAUSE)
            return line
        known.held += 1
        known.line = line
        return None

    def next_due(self) -> float | None:
        """When `due` will have a line to show; None if no line is held."""
        return min((kind.until for kind in self._kinds.values() if kind.held), default=None)

    def due(self, now: float) -> list[str]:
        """Held lines that may be shown now, each with its number of repeats."""
        shown = []
        for name, kind in list(self._kinds.items()):
            if now < kind.until:
                continue
            if not kind.held:
                del self._kinds[name]
                continue
            shown.append(_repeated(kind))
            kind.held = 0
            kind.pause = min(2 * kind.pause, _LONGEST_PAUSE)
            kind.until = now + kind.pause
        return shown

    def rest(self) -> list[str]:
        """All held lines, for the end of the log."""
        shown = [_repeated(kind) for kind in self._kinds.values() if kind.held]
        self._kinds.clear()
        return shown


def _repeated(kind: _Kind) -> str:
    return kind.line if kind.held == 1 else f"{kind.line} (repeated {kind.held:,} times)"
