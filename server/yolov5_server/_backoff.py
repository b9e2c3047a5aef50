"""Pauses before a server that has ended is restarted."""

from __future__ import annotations

# In seconds, by the number of recent ends. The first two restarts are not delayed, because a short
# time to recovery is promised.
_PAUSES = (0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_STEADY_MINUTE = 60.0


class Backoff:
    """Pauses that grow with every end and shrink with the time that the server was ready.

    Each end goes one step up, towards the longest pause. While the server is ready, the step falls
    evenly: by one in 7.5 seconds, from the last to the first in a minute. A fault every ten seconds
    is therefore always repaired at once. A server that ends as soon as it is ready is restarted
    after growing pauses, in the end once in half a minute.
    """

    def __init__(self) -> None:
        self._level = 0.0

    def next_pause(self, uptime: float) -> float:
        """Seconds to wait before the next start; counts the end that has just happened.

        Args:
            uptime: seconds for which the ended server was ready; 0 if it never was.
        """
        longest = len(_PAUSES) - 1
        self._level = max(0.0, self._level - uptime * longest / _STEADY_MINUTE)
        pause = _PAUSES[min(int(self._level), longest)]
        self._level = min(self._level + 1.0, longest)
        return pause
