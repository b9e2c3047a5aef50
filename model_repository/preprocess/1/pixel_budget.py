"""The bound on what is decoded at the same time."""

from __future__ import annotations

from collections import deque
from threading import Condition


class PixelBudget:
    """A semaphore weighted by pixels, first come, first served.

    Without that order a thread with a large picture would wait for as long as others keep coming
    with small ones.

    Args:
        pixels: of all pictures together. A thread that acquires more waits for ever; `decode.py`
            refuses such a picture beforehand.
    """

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._waiting: deque[object] = deque()  # one of its own for each thread
        self._changed = Condition()

    def acquire(self, pixels: int) -> None:
        """Wait until so many are free and no earlier thread waits, and take them."""
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            self._changed.wait_for(lambda: self._waiting[0] is turn and pixels <= self._free)
            self._waiting.popleft()
            self._free -= pixels
            self._changed.notify_all()  # the next one may fit in as well

    def release(self, pixels: int) -> None:
        """Give back what was acquired."""
        with self._changed:
            self._free += pixels
            self._changed.notify_all()
