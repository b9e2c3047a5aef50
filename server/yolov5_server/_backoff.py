"""How long to pause before a server that has ended is started again."""

from __future__ import annotations

# After this many ends, in seconds. Time to recovery is promised: the first two are not delayed.
_PAUSES = (0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_STEADY_MINUTE = 60.0


class Backoff:
    """Pauses that grow with every end and shrink with the time that the server was ready.

    Each end takes one step up to the longest pause. Readiness takes the steps back evenly: a minute
    of it forgets all ends, eight seconds forget one. A fault that comes back every ten seconds
    is therefore always healed at once, and a server that ends as soon as it is ready costs at most
    one start in half a minute.
    """

    def __init__(self) -> None:
        self._level = 0.0

    def next_pause(self, uptime: float) -> float:
        """Seconds to wait before the next start.

        Args:
            uptime: seconds that the server which has just ended had been ready; 0 if it never was.
        """
        longest = len(_PAUSES) - 1
        self._level = max(0.0, self._level - uptime * longest / _STEADY_MINUTE)
        pause = _PAUSES[min(int(self._level), longest)]
        self._level = min(self._level + 1.0, longest)
        return pause
