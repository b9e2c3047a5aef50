"""The bound on what is decoded at the same time."""

from __future__ import annotations

from collections import deque
from threading import Lock


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
        # What each thread waits for, and a lock of its own that is released when it has it: a
        # thread is woken once, and never in vain.
        self._waiting: deque[tuple[int, Lock]] = deque()
        self._lock = Lock()

    def acquire(self, pixels: int) -> None:
        """Wait until so many are free and no earlier thread waits, and take them."""
        with self._lock:
            if not self._waiting and pixels <= self._free:
                self._free -= pixels
                return
            taken = Lock()
            taken.acquire()
            self._waiting.append((pixels, taken))
        taken.acquire()

    def release(self, pixels: int) -> None:
        """Give back what was acquired."""
        with self._lock:
            self._free += pixels
            while self._waiting and self._waiting[0][0] <= self._free:
                wanted, taken = self._waiting.popleft()
                self._free -= wanted
                taken.release()
