"""Requests between their admission by the queue and their arrival at `postprocess`.

Nothing tells the first step how many images the later steps still hold, which determines their
memory. So each request carries an admission id along, and `postprocess` sends it back. Some never
get there: when a caller cancels a request, Triton drops it between two steps, without notice.
Therefore a completion also retires every request admitted before it; and if no completion comes for
several times as long as usual, all requests in flight are presumed lost. That is looked at only
while another request waits for them.
"""

from __future__ import annotations

from time import monotonic

# How long to wait for a completion: before the first one, at least, and at most. A batch of 8 takes
# seconds on a slow machine; to presume it lost too early would admit others out of turn. But if
# cancelled requests hold all places, no other is admitted for that long.
_FIRST_TIMEOUT, _MIN_TIMEOUT, _MAX_TIMEOUT = 1.0, 0.05, 3.0  # seconds
_MIN_TIMEOUT_WHEN_DOWN = 1.0  # seconds; the least while the network is down
_TIMEOUT_FACTOR = 4  # times the usual interval
_SMOOTHING = 0.2  # weight of the newest interval
_REMEMBERED = 1000  # requests presumed lost that may still be completed


class InFlight:
    """Keeps count of the images in flight. Not thread-safe: the queue calls it under its lock.

    Args:
        down_after: how many images lost in a row mean that the network is down.

    Attributes:
        images: in flight now.
        admitted_images: since the start.
        usual_interval: seconds from one completion to the next, a moving average.
    """

    def __init__(self, *, down_after: int) -> None:
        self.images = 0
        self.admitted_images = 0
        self.usual_interval = _FIRST_TIMEOUT / _TIMEOUT_FACTOR
        self._down_after = down_after
        self._admitted: dict[int, tuple[int, float]] = {}  # by admission id: images, time
        self._presumed_lost: dict[int, float] = {}  # by admission id: time of its admission
        self._lost_images = 0  # since the last completion
        self._last_completion = 0.0  # time

    def admit(self, images: int) -> int:
        """Count a request; return its admission id, the images admitted so far with its own."""
        self.admitted_images += images
        self._admitted[self.admitted_images] = (images, monotonic())
        self.images += images
        return self.admitted_images

    def complete(self, admission_id: int) -> bool:
        """Retire this request and every one admitted before it.

        Returns:
            Whether that changed anything: an unknown id does not.
        """
        if admission_id > self.admitted_images:
            return False
        retired = [other for other in self._admitted if other <= admission_id]
        lost_since = self._presumed_lost.get(admission_id)
        for other in [other for other in self._presumed_lost if other <= admission_id]:
            del self._presumed_lost[other]
        if not retired and lost_since is None:
            return False
        now = monotonic()
        if lost_since is not None:
            # It was slow, not lost: the next ones are given more time.
            self.usual_interval = now - max(self._last_completion, lost_since)
        else:
            _, since = self._admitted[retired[0]]
            interval = now - max(self._last_completion, since)
            self.usual_interval += _SMOOTHING * (interval - self.usual_interval)
        self._last_completion, self._lost_images = now, 0
        for other in retired:
            self.release(other)
        return True

    def release(self, admission_id: int) -> None:
        """Retire this request alone, if it is in flight."""
        images, _ = self._admitted.pop(admission_id, (0, 0.0))
        self.images -= images

    def give_up_overdue(self) -> bool:
        """Presume all requests in flight lost if no completion has come for too long.

        Returns:
            Whether it did.
        """
        _, last_admission = [*self._admitted.values()][-1]
        if monotonic() - max(self._last_completion, last_admission) < self.timeout():
            return False
        self._lost_images += self.images
        self._presumed_lost.update((lost, since) for lost, (_, since) in self._admitted.items())
        for oldest in [*self._presumed_lost][:-_REMEMBERED]:
            del self._presumed_lost[oldest]
        self._admitted.clear()
        self.images = 0
        return True

    def timeout(self) -> float:
        """Seconds without a completion after which requests are presumed lost."""
        is_down = self._lost_images >= self._down_after
        least = _MIN_TIMEOUT_WHEN_DOWN if is_down else _MIN_TIMEOUT
        return min(_MAX_TIMEOUT, max(least, _TIMEOUT_FACTOR * self.usual_interval))
