"""Tell a hung server from a busy one."""

from __future__ import annotations

BUSY_SECONDS = 60.0  # for which a server may compute without finishing an image
_BUSY_SHARE = 0.1  # of a core; a hung server uses nearly none
# Seconds for which a server may use less than that before it counts as hung. `preprocess` waits for
# up to 3 s for the completion of requests that their callers have cancelled (in_flight.py).
_IDLE_SECONDS = 4.0


class HangDetector:
    """Judges a server by the canaries, images of one pixel, that it does not answer.

    One failure may be chance, such as a machine that was suspended. A server that does not answer
    in time but computes is busy: with eight images of 64 megapixels, say. But an endless loop
    computes as well: after a minute without a decoded or answered image, the server is hung.
    """

    def __init__(self) -> None:
        self._failed_at: float | None = None  # the last judgement, if it was a failure
        self._cpu = 0.0
        self._finished = 0.0
        self._progress_at = 0.0
        self._computed_at = 0.0

    @property
    def is_failing(self) -> bool:
        """Whether the last canary was not answered."""
        return self._failed_at is not None

    def reset(self) -> None:
        """Forget earlier failures: a canary was answered, or cannot be judged now."""
        self._failed_at = None

    def judge(
        self, reason: str, *, may_be_busy: bool, now: float, cpu: float, finished: float
    ) -> str | None:
        """Judge a canary that was not answered.

        Args:
            reason: why it was not answered.
            may_be_busy: whether an overloaded server could fail in this way.
            now: seconds.
            cpu: CPU time that the server has used so far, in seconds.
            finished: images that it has decoded or answered so far.

        Returns:
            Why the server should be ended; None if it should not.
        """
        last, used = self._failed_at, cpu - self._cpu
        if last is None or finished != self._finished:
            self._progress_at = self._computed_at = now
        self._failed_at, self._cpu, self._finished = now, cpu, finished
        if last is None or used < 0:  # a process has ended, and its CPU time no longer counts
            return None
        if used >= _BUSY_SHARE * (now - last):
            self._computed_at = now
        if not may_be_busy or now - self._computed_at >= _IDLE_SECONDS:
            return reason
        if now - self._progress_at > BUSY_SECONDS:
            return f"{reason}, and nothing was finished for {BUSY_SECONDS:.0f} s"
        return None
