"""How much of the cores each network has used, to admit next the one that has used least.

Images per second say little about that: one network may take ten times as long for an image as
another. The time that a network has images in flight says as little, since it also waits. But the
operating system divides the cores evenly between the threads that can run, and the queue knows how
many those are. Each network has a process with up to one thread for each core, and the images of
all of them are prepared by as many threads in one process. While time passes, each network is
therefore charged for its threads' part of it. On a GPU, this only says how many images each has in
flight.

This is start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", 1996), but the
charge grows while an image is in flight, as nobody knows before what it will cost.
"""

from __future__ import annotations

from time import monotonic

_CREDIT = 0.1  # seconds of all cores


class Usage:
    """What one network has used. Only `FairShare` changes it.

    Attributes:
        weight: the part of the cores that it may use, against the weights of the others.
    """

    def __init__(self) -> None:
        self.weight = 1.0
        self.charged = 0.0  # seconds of all cores, divided by the weight; without what follows
        self.preparing = 0  # images
        self.threads = 0  # of the network's process that can run
        # `FairShare.per_image` and `per_thread` up to which it is charged.
        self.per_image = self.per_thread = 0.0


class FairShare:
    """Charges networks for the cores that they use. Not thread-safe.

    Args:
        cores: how many threads can run at the same time, in each process.

    Attributes:
        per_image: seconds that one image would have been charged if it had been in preparation
            since the start.
        per_thread: the same for a thread of a network's process.
        time: of the last `advance`.
    """

    def __init__(self, cores: int) -> None:
        self.per_image = self.per_thread = 0.0
        self._cores = cores
        self._preparing = 0  # images of all networks
        self._threads = 0  # of all networks' processes
        self.time = monotonic()
        # The charge of the network that was last chosen, and the highest of all.
        self._last_chosen = self._highest = 0.0

    def advance(self) -> None:
        """Let the charges grow up to now."""
        now = monotonic()
        passed, self.time = now - self.time, now
        preparers = min(self._preparing, self._cores)
        if preparers or self._threads:
            self.per_thread += (part := passed / (preparers + self._threads))
            if preparers:
                self.per_image += part * preparers / self._preparing

    def charge(self, usage: Usage) -> float:
        """The network's charge, up to the last `advance`."""
        preparing = usage.preparing * (self.per_image - usage.per_image)
        running = usage.threads * (self.per_thread - usage.per_thread)
        return usage.charged + (preparing + running) / usage.weight

    def record(self, usage: Usage, *, preparing: int, in_network: int) -> None:
        """Charge the network, and note how many of its images are where from now on."""
        self.advance()
        self._settle(usage)
        threads = min(in_network, self._cores)
        self._preparing += preparing - usage.preparing
        self._threads += threads - usage.threads
        usage.preparing, usage.threads = preparing, threads

    def join(self, usage: Usage, weight: float) -> None:
        """Begin to wait for a turn: time in which no request waited has earned no credit.

        Except for a little if the network had images in flight: under full load, all its callers
        may be there for a moment.
        """
        self.set_weight(usage, weight)
        in_flight = usage.preparing or usage.threads
        self.raise_to(usage, self._last_chosen - (_CREDIT / weight if in_flight else 0.0))

    def set_weight(self, usage: Usage, weight: float) -> None:
        if weight != usage.weight:
            self.advance()
            self._settle(usage)
            usage.weight = weight

    def choose(self, usage: Usage) -> None:
        """Note that it is this network's turn."""
        self._last_chosen = max(self._last_chosen, self.charge(usage))

    def raise_to(self, usage: Usage, charge: float) -> None:
        """Raise the network's charge to this one, if it is lower."""
        usage.charged += max(0.0, charge - self.charge(usage))

    def lower_to(self, usage: Usage, charge: float) -> None:
        """Lower the network's charge to this one, if it is higher."""
        usage.charged -= max(0.0, self.charge(usage) - charge)

    def restart(self) -> None:
        """Forget who has used more: nothing waits, and nothing is in flight."""
        self._last_chosen = max(self._last_chosen, self._highest)

    def _settle(self, usage: Usage) -> None:
        usage.charged = self.charge(usage)
        usage.per_image, usage.per_thread = self.per_image, self.per_thread
        self._highest = max(self._highest, usage.charged)
