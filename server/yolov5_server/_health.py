"""The health of the service, for the launcher and for probes.

Triton's own readiness is of no use for probes: it stays "ready" when a model's process is dead.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from math import ceil

from ._probe import SATURATED, EndpointProbe
from ._repository import NETWORK, endpoint_name
from ._settings import Settings

_CACHE_SECONDS = 1.0  # that a result stays valid, for each endpoint
DRAINING = "the server is about to end"
_LIVE_SECONDS = 60.0  # without health; then the launcher itself should be restarted


class Health:
    """The health of the service and of each endpoint. Threads may share it.

    Attributes:
        restarts: restarts so far, by what failed and the reason.
        canaries: images of one pixel so far, `sent` and `failed`.
        refused: why a network is not served as it is installed, by its name.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._down_reason: str | None = "it is starting"  # set by the launcher
        self._draining = False
        self._restart_at = float("-inf")  # when the pause before the next start ends
        self._unhealthy_since: float | None = self._clock()
        self._probes: dict[str, EndpointProbe] = {}  # by network
        self.restarts: Counter[tuple[str, str]] = Counter()
        self.canaries: Counter[str] = Counter()
        self.refused: Mapping[str, str] = {}

    def down(self, reason: str, *, pause: float = 0.0) -> None:
        """Report the service as down until `up` is called, whatever the endpoints answer.

        Args:
            reason: a sentence.
            pause: seconds until the next start.
        """
        with self._lock:
            self._down_reason = reason
            self._restart_at = self._clock() + pause
            self._unhealthy_since = self._unhealthy_since or self._clock()

    def drain(self) -> bool:
        """Report the service as not ready from now on, although it answers.

        Returns:
            Whether it answers at all.
        """
        with self._lock:
            self._draining = True
            return self._down_reason is None

    def wait_for(self, reason: str) -> None:
        """Report the service as down, but live: the launcher waits for what a restart cannot mend.

        Args:
            reason: a sentence.
        """
        with self._lock:
            self._down_reason, self._unhealthy_since = reason, None

    def up(self, networks: Collection[str] = (NETWORK,)) -> None:
        """Report the health of these networks' endpoints from now on."""
        probes = {name: self._new_probe(name) for name in networks}
        with self._lock:
            self._down_reason = self._unhealthy_since = None
            self._probes = probes

    def serve(self, networks: Collection[str]) -> None:
        """Report the health of these networks' endpoints, some of which may be new."""
        with self._lock:
            known = self._probes
        probes = {name: known.get(name) or self._new_probe(name) for name in networks}
        with self._lock:
            self._probes = probes

    def replaced(self, network: str) -> None:
        """Judge this network's endpoint anew: it is another one from now on."""
        probe = self._new_probe(network)
        with self._lock:
            if network in self._probes:
                self._probes[network] = probe

    def _new_probe(self, network: str) -> EndpointProbe:
        return EndpointProbe(self._settings, network, self.canaries, self._clock)

    @property
    def networks(self) -> list[str]:
        """Names of the networks whose health is reported."""
        with self._lock:
            return [*self._probes]

    @property
    def is_live(self) -> bool:
        """Whether the launcher may still repair the service by itself."""
        with self._lock:
            if self._unhealthy_since is None:
                return True
            # The launcher chose the pause: restarting it then would only lengthen the wait.
            unhealthy = self._clock() - max(self._unhealthy_since, self._restart_at)
            return unhealthy <= _LIVE_SECONDS

    @property
    def pause(self) -> float:
        """Seconds until the next start; 0 if none is being delayed."""
        with self._lock:
            return self._remaining_pause()

    def _remaining_pause(self) -> float:
        return 0.0 if self._down_reason is None else max(0.0, self._restart_at - self._clock())

    def check(self, network: str | None = None) -> str | None:
        """Check whether an image would be answered now.

        A recent result is reused.

        Args:
            network: whose endpoint is checked; all unless given.

        Returns:
            Why an image would not be answered; None if it would.
        """
        if self._draining:
            return DRAINING
        networks = self.networks if network is None else [network]
        for name in networks:
            if reason := self._check(name):
                if network is None and len(networks) > 1 and not self._is_down():
                    return f"{endpoint_name(name)}: {reason}"
                return reason
        return None if networks else self._down()

    def _check(self, network: str) -> str | None:
        if self._is_down():
            return self._down()
        probe = self._probe_for(network)
        if probe is None:
            return self.refused.get(network, "there is no such network")
        with probe.lock:
            if self._is_down():
                return self._down()
            return probe.reason if self._is_fresh(probe) else self._refresh(probe)

    def _is_down(self) -> bool:
        with self._lock:
            return self._down_reason is not None

    def _down(self) -> str | None:
        with self._lock:
            if self._down_reason is not None and (pause := self._remaining_pause()):
                return f"{self._down_reason} Starting Triton again in {ceil(pause)} s."
            return self._down_reason

    def _probe_for(self, network: str) -> EndpointProbe | None:
        with self._lock:
            return self._probes.get(network)

    def _is_fresh(self, probe: EndpointProbe) -> bool:
        """Whether the last result is still valid; the watchdog probes each endpoint in turn."""
        valid = _CACHE_SECONDS * max(1, len(self.networks))
        return self._clock() - probe.probed_at < valid

    def unanswered_reason(self, network: str = NETWORK) -> str | None:
        """Why the server may have to be ended; None for a healthy or merely saturated server."""
        probe = self._probe_for(network)
        if probe is None or self._is_down():
            return None
        with probe.lock:
            if self._is_fresh(probe) and probe.reason is None:
                return None
            reason = self._refresh(probe)
        waited = self._clock() - probe.answered_at
        if reason == SATURATED and waited < 2 * probe.canary_timeout:
            return None
        return reason

    def finished_images(self, network: str = NETWORK) -> float:
        """Number of images decoded or answered for this network, as far as Triton tells."""
        probe = self._probe_for(network)
        return probe.finished_images() if probe else 0.0

    def _refresh(self, probe: EndpointProbe) -> str | None:
        """Probe the endpoint. The caller holds its lock."""
        found = probe.probe()
        with self._lock:
            if any(one.reason and not self._fails_alone(one) for one in self._probes.values()):
                self._unhealthy_since = self._unhealthy_since or self._clock()
            elif self._down_reason is None:
                self._unhealthy_since = None
        return found

    def is_to_blame(self, network: str) -> bool:
        """Whether this endpoint has never answered while another one does.

        Then its network or its settings are at fault. A restart would not help it, and would harm
        the others.
        """
        with self._lock:
            probe = self._probes.get(network)
            return probe is not None and self._fails_alone(probe)

    def _fails_alone(self, probe: EndpointProbe) -> bool:
        return not probe.has_answered and any(
            one.has_answered and one.reason is None for one in self._probes.values()
        )
