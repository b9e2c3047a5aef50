"""The balancer: fewest requests, one retry, and leaving out servers that have gone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random

from simpy import Environment

from ._clock import call_later
from ._server import Answer, Outcome, Server


@dataclass(frozen=True, kw_only=True)
class Balancing:
    """Settings of the balancer; the defaults are those of deploy/envoy, but for `choices`.

    Attributes:
        choices: servers that it draws, of which the one with the fewest requests gets the next
            one; 0 stands for all.
        retries: further attempts, with another server, of what was refused or lost.
        backoff_seconds: the longest pause before one.
        connect_seconds: after which a request fails that is sent to a server that has gone.
        stalled_seconds: the same for those that it already had: nothing says that it has gone.
        failures: of one server in a row after which it is left out.
        health_seconds: after which the health check leaves out a server that has gone.
    """

    choices: int = 2
    retries: int = 1
    backoff_seconds: float = 0.025
    connect_seconds: float = 1.0
    stalled_seconds: float = 25.0
    failures: int = 3
    health_seconds: float = 12.0


_REPEATED = (Outcome.LOST, Outcome.REFUSED)


class _Backend:
    """A server as the balancer sees it."""

    __slots__ = ("active", "failures", "gone", "server")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.active = 0  # requests
        self.failures = 0  # in a row
        self.gone = False


class Balancer:
    """Sends each request to the server with the fewest requests of some that it draws.

    It is that of Envoy: `least_request` with `N_CHOICES` or `FULL_SCAN`.
    """

    def __init__(self, env: Environment, random: Random, settings: Balancing) -> None:
        self._env = env
        self._random = random
        self._settings = settings
        self._backends: list[_Backend] = []
        self._by_server: dict[Server, _Backend] = {}

    def add(self, server: Server) -> None:
        """Let a server have requests."""
        backend = self._by_server[server] = _Backend(server)
        self._backends.append(backend)

    def remove(self, server: Server) -> None:
        """Send a server no more requests; those that it has are answered."""
        backend = self._by_server.pop(server)
        if backend in self._backends:
            self._backends.remove(backend)

    def lose(self, server: Server) -> None:
        """The server does not answer any more, and nobody has said so."""
        backend = self._by_server[server]
        backend.gone = True
        stalled = self._settings.stalled_seconds
        for answer in server.vanish():
            call_later(self._env, stalled, partial(answer, Outcome.LOST))
        call_later(self._env, self._settings.health_seconds, lambda: self._leave_out(backend))

    def send(self, scale: float, answer: Answer) -> None:
        """Have a request answered.

        Args:
            scale: its work, relative to the usual one.
            answer: called once, with the outcome of the last attempt.
        """
        self._attempt(scale, answer, None, self._settings.retries)

    def _attempt(self, scale: float, answer: Answer, last: _Backend | None, retries: int) -> None:
        backend = self._choose(last)
        if backend is None:
            answer(Outcome.LOST)
            return
        backend.active += 1

        def ended(outcome: Outcome) -> None:
            backend.active -= 1
            if outcome is Outcome.LOST:
                self._note_failure(backend)
            else:
                backend.failures = 0
            if outcome in _REPEATED and retries and self._has_another(backend):
                pause = self._random.random() * self._settings.backoff_seconds
                again = partial(self._attempt, scale, answer, backend, retries - 1)
                call_later(self._env, pause, again)
            else:
                answer(outcome)

        if backend.gone:
            call_later(self._env, self._settings.connect_seconds, partial(ended, Outcome.LOST))
        else:
            backend.server.submit(scale, ended)

    def _has_another(self, backend: _Backend) -> bool:
        return len(self._backends) > (backend in self._backends)

    def _choose(self, last: _Backend | None) -> _Backend | None:
        """The best one of those that are drawn, but not the last one if there is another."""
        number = len(self._backends)
        if number <= 1:
            return self._backends[0] if number else None
        if not self._settings.choices or number <= self._settings.choices:
            return self._best_of_all(last)
        draw = self._random.random
        while True:
            chosen = self._backends[int(draw() * number)]
            for _ in range(self._settings.choices - 1):
                other = self._backends[int(draw() * number)]
                if other.active < chosen.active:
                    chosen = other
            if chosen is not last:
                return chosen

    def _best_of_all(self, last: _Backend | None) -> _Backend:
        others = [backend for backend in self._backends if backend is not last]
        fewest = min(backend.active for backend in others)
        return self._random.choice([one for one in others if one.active == fewest])

    def _note_failure(self, backend: _Backend) -> None:
        backend.failures += 1
        if backend.failures >= self._settings.failures:
            self._leave_out(backend)

    def _leave_out(self, backend: _Backend) -> None:
        if backend in self._backends:
            self._backends.remove(backend)
