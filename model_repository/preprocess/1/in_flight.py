"""Requests between their admission by the queue and their arrival at `postprocess`.

Nothing tells the first step how many images the later steps still hold, which determines their
memory. So each request carries an admission id along, and `postprocess` sends it back. Some never
get there: when a caller cancels a request, Triton drops it between two steps, without notice.
Therefore a completion also retires every request admitted before it; and if no completion comes for
several times as long as usual, all requests in flight are presumed lost. That is looked at only
while another request waits for them.

Each network has an `InFlight` of its own: a request of one does not overtake those of another, and
if one network hangs, only its requests are presumed lost. `AllInFlight` is what they share. While
networks take turns, the completions of each come in bursts, and the interval between two says
little. Its requests are then presumed lost only after twice the time that one usually takes.
"""

from __future__ import annotations

from time import monotonic

# How long to wait for a completion: before the first one, at least, and at most. A batch of 8 takes
# seconds on a slow machine; to presume it lost too early would admit others out of turn. But if
# cancelled requests hold all places, no other is admitted for that long.
_FIRST_TIMEOUT, MIN_TIMEOUT, _MAX_TIMEOUT = 1.0, 0.05, 3.0  # seconds
_MIN_TIMEOUT_WHEN_DOWN = 1.0  # seconds; the least while the network is down
_TIMEOUT_FACTOR = 4  # times the usual interval
_DURATION_FACTOR = 2  # times the usual duration
_SMOOTHING = 0.2  # weight of the newest interval
_REMEMBERED = 1000  # requests presumed lost that may still be completed


class AllInFlight:
    """What all networks of a server have in flight together.

    Attributes:
        images: in flight now.
        admitted_images: since the start.
        networks: by admission id, the network of each request that may still be completed.
    """

    def __init__(self) -> None:
        self.images = 0
        self.admitted_images = 0
        self.networks: dict[int, str] = {}


class InFlight:
    """Keeps count of a network's images in flight.

    Not thread-safe: the queue calls it under its lock.

    Args:
        down_after: how many images lost in a row mean that the network is down.
        network: its name.
        together: where the images of all networks are counted.
        parallel: images that the network works on at the same time, so that one may overtake
            another.

    Attributes:
        images: in flight now.
        preparing: how many of these have not been handed on to the network.
        overtaken: images of requests that were retired with a later one, but may still be worked
            on. They no longer count as in flight.
        admitted_images: since the start.
        lost_images: presumed lost since the last completion.
        usual_interval: seconds from one completion to the next, a moving average.
    """

    def __init__(
        self,
        *,
        down_after: int,
        network: str = "",
        together: AllInFlight | None = None,
        parallel: int = 1,
    ) -> None:
        self.images = 0
        self.preparing = 0
        self.overtaken = 0
        self.admitted_images = 0
        self.usual_interval = _FIRST_TIMEOUT / _TIMEOUT_FACTOR
        self._usual_duration = 0.0  # seconds from admission to completion, a moving average
        self._down_after = down_after
        self._network = network
        self._together = together or AllInFlight()
        self._parallel = parallel
        self._completions = 0
        self._admitted: dict[int, tuple[int, float]] = {}  # by admission id: images, time
        self._preparing: dict[int, int] = {}  # by admission id: images
        # By admission id: images, number of the completion that overtook it.
        self._overtaken: dict[int, tuple[int, int]] = {}
        self._presumed_lost: dict[int, float] = {}  # by admission id: time of its admission
        self.lost_images = 0
        self._last_completion = 0.0  # time

    def admit(self, images: int) -> int:
        """Count a request; return its admission id, the images of all networks admitted so far."""
        self.admitted_images += images
        self._together.admitted_images += images
        admission_id = self._together.admitted_images
        self._together.networks[admission_id] = self._network
        self._admitted[admission_id] = (images, monotonic())
        self._preparing[admission_id] = images
        self.preparing += images
        self._add(images)
        return admission_id

    def hand_on(self, admission_id: int) -> None:
        """Note that this request has been prepared, and goes on to the network."""
        self.preparing -= self._preparing.pop(admission_id, 0)

    def complete(self, admission_id: int) -> bool:
        """Retire this request and every one admitted before it.

        Returns:
            Whether that changed anything: an unknown id does not.
        """
        if admission_id > self._together.admitted_images:
            return False
        retired = [other for other in self._admitted if other <= admission_id]
        lost_since = self._presumed_lost.get(admission_id)
        self._drop_overtaken(admission_id)
        self._forget([other for other in self._presumed_lost if other <= admission_id])
        if not retired and lost_since is None:
            return False
        now = monotonic()
        if lost_since is not None:
            # It was slow, not lost: the next ones are given more time.
            self.usual_interval = now - max(self._last_completion, lost_since)
            self._usual_duration = max(self._usual_duration, now - lost_since)
        else:
            self._observe(now, retired, admission_id)
        self._last_completion, self.lost_images = now, 0
        self._retire(retired, admission_id)
        self._trim_overtaken()
        return True

    def release(self, admission_id: int) -> None:
        """Retire this request alone, if it is in flight."""
        if self._take(admission_id):
            del self._together.networks[admission_id]
            self._trim_overtaken()

    def give_up_overdue(self) -> bool:
        """Presume all requests in flight lost if no completion has come for too long.

        Returns:
            Whether it did.
        """
        if monotonic() < self.overdue_at():
            return False
        self.lost_images += self.images
        self._presumed_lost.update((lost, since) for lost, (_, since) in self._admitted.items())
        self._forget([*self._presumed_lost][:-_REMEMBERED])
        for admission_id in [*self._admitted]:
            self._take(admission_id)
        self._trim_overtaken()
        return True

    def overdue_at(self) -> float:
        """When the requests in flight may be presumed lost if no completion comes before."""
        if not self._admitted:
            return float("inf")
        _, last_admission = next(reversed(self._admitted.values()))
        timeout = self.timeout()
        if self._together.images > self.images:  # others have some in flight
            timeout = min(_MAX_TIMEOUT, max(timeout, _DURATION_FACTOR * self._usual_duration))
        return max(self._last_completion, last_admission) + timeout

    def timeout(self) -> float:
        """Seconds without a completion after which requests are presumed lost."""
        is_down = self.lost_images >= self._down_after
        least = _MIN_TIMEOUT_WHEN_DOWN if is_down else MIN_TIMEOUT
        return min(_MAX_TIMEOUT, max(least, _TIMEOUT_FACTOR * self.usual_interval))

    def close(self) -> None:
        """Forget all requests: the network is no longer served."""
        for admission_id in [*self._admitted]:
            self.release(admission_id)
        self._forget([*self._presumed_lost])

    def _observe(self, now: float, retired: list[int], completed: int) -> None:
        _, oldest = self._admitted[retired[0]]
        interval = now - max(self._last_completion, oldest)
        self.usual_interval += _SMOOTHING * (interval - self.usual_interval)
        if completed == retired[-1]:
            duration = now - self._admitted[completed][1]
            self._usual_duration += _SMOOTHING * (duration - self._usual_duration)

    def _retire(self, retired: list[int], completed: int) -> None:
        self._completions += 1
        for admission_id in retired:
            images = self._take(admission_id)
            if admission_id == completed:
                del self._together.networks[admission_id]
            else:
                self._overtaken[admission_id] = images, self._completions
                self.overtaken += images

    def _trim_overtaken(self) -> None:
        """Forget the requests that are hardly worked on any more, or that are the only ones left.

        A request is seldom overtaken by more than are worked on at the same time.
        """
        while self._overtaken:
            oldest, (_, since) = next(iter(self._overtaken.items()))
            if self.images and self._completions - since < self._parallel:
                return
            self._drop_overtaken(oldest)

    def _take(self, admission_id: int) -> int:
        images, _ = self._admitted.pop(admission_id, (0, 0.0))
        self.hand_on(admission_id)
        self._add(-images)
        return images

    def _drop_overtaken(self, admission_id: int) -> None:
        images, _ = self._overtaken.pop(admission_id, (0, 0))
        self.overtaken -= images
        if images:
            del self._together.networks[admission_id]

    def _add(self, images: int) -> None:
        self.images += images
        self._together.images += images

    def _forget(self, presumed_lost: list[int]) -> None:
        for admission_id in presumed_lost:
            del self._presumed_lost[admission_id]
            del self._together.networks[admission_id]
