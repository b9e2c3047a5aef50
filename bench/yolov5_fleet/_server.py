"""One simulated server: its queue, the cores, and the three steps.

The model is as simple as the check against real servers allows. Left out are batches, requests of
several images or for several networks, the threads that limit decoding, and the one process of
`postprocess`: on a CPU none of these decides how long a request takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from simpy import Environment

from yolov5_build.steps import step_module

from ._cores import Cores

_NETWORK = "yolov5"
_RECENT_IMAGES = 4  # as in executor.py: images for which recent concurrency is taken to go on


class Outcome(Enum):
    """How a request ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # the queue had no room
    EXPIRED = "expired"  # it waited too long in the queue
    LOST = "lost"  # the server has gone


Answer = Callable[[Outcome], None]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Seconds of CPU that an image takes, on one core.

    Attributes:
        prepare: Triton and `preprocess`.
        network: if other images are in the network too: one core for each.
        network_alone: if none is: seconds on all cores.
        finish: `postprocess`.
        refuse: a refusal.
    """

    prepare: float
    network: float
    network_alone: float
    finish: float
    refuse: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The settings of the queue, as in docs/operations.md."""

    max_queued_images: int = 64
    max_queue_seconds: float = 20.0
    max_in_flight_images: int = 6


class _Request:
    """A request in a server.

    Attributes:
        scale: its work, relative to the usual one.
        expires: when it has waited too long.
    """

    __slots__ = ("answer", "expires", "scale")

    def __init__(self, scale: float, expires: float, answer: Answer) -> None:
        self.scale = scale
        self.expires = expires
        self.answer = answer


class Server:
    """A server in simulated time.

    Args:
        cores: the processor; several servers may share one.
        workers: images in the network at the same time.

    Attributes:
        in_flight: images between admission and `postprocess`.
    """

    def __init__(
        self, env: Environment, cores: Cores, work: Work, limits: Limits, *, workers: int
    ) -> None:
        self._env = env
        self._cores = cores
        self._work = work
        self._limits = limits
        self._workers = workers
        self._queue: deque[_Request] = deque()
        self._network_queue: deque[tuple[_Request, bool]] = deque()
        self._running = 0  # images that the network works on
        self._recent: deque[int] = deque(maxlen=_RECENT_IMAGES)
        self._held: set[_Request] = set()
        # The saturation is calculated by the very code of the server.
        signals = step_module("preprocess", "load_signals")
        self._signals = signals.LoadSignals(parallel=workers, now=env.now)
        self._load = self._signals.add(_NETWORK)
        self.in_flight = 0
        self._done = 0  # images that have left the network

    @property
    def queued(self) -> int:
        """Images that wait to be admitted."""
        return len(self._queue)

    @property
    def requests(self) -> int:
        """Requests without an answer."""
        return len(self._held)

    def submit(self, scale: float, answer: Answer) -> None:
        """Take a request, or refuse it.

        Args:
            scale: its work, relative to the usual one.
            answer: called once, at its end.
        """
        expires = self._env.now + self._limits.max_queue_seconds
        request = _Request(scale, expires, answer)
        self._held.add(request)
        if self.in_flight < self._limits.max_in_flight_images:
            self._admit(request)
        elif len(self._queue) < self._limits.max_queued_images:
            self._queue.append(request)
            self._record()
        else:
            self._load.unmet += 1
            self._cores.run(self._work.refuse, lambda: self._end(request, Outcome.REFUSED))

    def read_saturation(self) -> float:
        """What `yolov5_saturation` would say. Call it once a second, as the server does."""
        reading: float = self._signals.read(self._env.now)[_NETWORK].saturation
        return reading

    def vanish(self) -> list[Answer]:
        """Forget all requests, as if the machine were gone; return who still waits for them."""
        waiting = [request.answer for request in self._held]
        self._held.clear()
        self._queue.clear()
        return waiting

    def _admit(self, request: _Request) -> None:
        self.in_flight += 1
        self._record()
        seconds = self._work.prepare * request.scale
        self._cores.run(seconds, lambda: self._enter_network(request))

    def _enter_network(self, request: _Request) -> None:
        self._recent.append(self._running + len(self._network_queue) + 1)
        self._network_queue.append((request, max(self._recent) == 1))
        self._run_network()

    def _run_network(self) -> None:
        while self._network_queue and self._running < self._workers:
            request, alone = self._network_queue.popleft()
            self._running += 1
            seconds = self._work.network_alone if alone else self._work.network
            self._cores.run(
                seconds * request.scale,
                lambda request=request: self._leave_network(request),  # type: ignore[misc]
                threads=self._workers if alone else 1,
            )

    def _leave_network(self, request: _Request) -> None:
        self._running -= 1
        self.in_flight -= 1
        self._done += 1
        self._record()
        self._run_network()
        seconds = self._work.finish * request.scale
        self._cores.run(seconds, lambda: self._end(request, Outcome.ANSWERED))
        self._admit_next()

    def _admit_next(self) -> None:
        while self._queue and self.in_flight < self._limits.max_in_flight_images:
            request = self._queue.popleft()
            if request.expires < self._env.now:  # the real one is told at once
                self._load.unmet += 1
                self._end(request, Outcome.EXPIRED)
            else:
                self._admit(request)

    def _record(self) -> None:
        self._signals.record(
            self._load,
            queued=len(self._queue),
            in_flight=self.in_flight,
            overtaken=0,
            done=self._done,
            now=self._env.now,
        )

    def _end(self, request: _Request, outcome: Outcome) -> None:
        if request in self._held:
            self._held.remove(request)
            request.answer(outcome)
