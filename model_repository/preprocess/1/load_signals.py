"""How much of what the server can do is asked of it: what an autoscaler reads.

Saturation is demand over capacity during the last five seconds: 0 without requests, 1 when they ask
for all that the server can do, and more when they ask for more than that.

    saturation = busy + (unmet + queued / 1 s) * cost

- `busy` is the part of the server that was in use: the mean of the images in flight divided by the
  images that it works on at the same time (its cores), at most 1. By Little's law this is the
  throughput divided by that of all cores, if an image takes as long alone as beside others. An
  image alone is faster, since it gets the idle cores as well: a caller who sends one image after
  the other on two cores reaches more than half of the full throughput, but shows as half at most.
  The two ends, idle and full, are exact.
  Images in flight divided by their bound would be wrong: under random arrivals it is far from
  linear (a fifth at half load), so that a fleet would shrink right after it has grown.
- `cost` is `busy` divided by the images done in a second: the server-seconds of an image.
- `unmet` is the images per second that did not fit into the queue or waited for too long.
- `queued` is the mean number of waiting images, which another server would have to work off within
  a second.

Callers who wait for their answers before they send again ask for as much as they get; only the
queue shows that they would take more. 32 of them on one server therefore ask for more than one
server, but not for 32 times what one of them asks for.

With several networks, each has its part of the server's saturation; their sum is that of the
server.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

_TICKS = 5  # readings that are averaged; with one a second, five seconds
_DRAIN_SECONDS = 1.0  # in which the queue is to be worked off
_HIGHEST = 10.0  # saturation; more says nothing


class Load(NamedTuple):
    """What a network asks of the server.

    Attributes:
        queued: images that wait for admission now.
        in_flight: images between admission and `postprocess` now.
        saturation: see above.
    """

    queued: int = 0
    in_flight: int = 0
    saturation: float = 0.0


class _Totals(NamedTuple):
    """Sums since the start.

    Attributes:
        busy: seconds of the whole server.
        waited: seconds that images have waited, all together.
        done, unmet: images.
    """

    busy: float = 0.0
    waited: float = 0.0
    done: float = 0.0
    unmet: float = 0.0

    def since(self, earlier: _Totals) -> _Totals:
        return _Totals(*(now - then for now, then in zip(self, earlier)))

    def plus(self, other: _Totals) -> _Totals:
        return _Totals(*(one + another for one, another in zip(self, other)))


class NetworkLoad:
    """What is known of one network. Only `LoadSignals` changes it."""

    def __init__(self) -> None:
        self.queued = self.in_flight = self.working = 0  # images
        self.busy = self.waited = 0.0
        self.done = self.unmet = 0
        self.per_image = self.time = 0.0  # up to which the sums go
        self.readings = deque([_Totals()], _TICKS + 1)


class LoadSignals:
    """Sums up over time what each network has queued and in flight. Not thread-safe.

    Args:
        parallel: images that the server works on at the same time.
        now: the time, in seconds, by the clock of all other calls.
    """

    def __init__(self, *, parallel: int, now: float) -> None:
        self._parallel = parallel
        self._working = 0  # images of all networks
        self._per_image = 0.0  # seconds of the whole server that each image at work has had
        self._time = now
        self._read_at = deque([now], _TICKS + 1)
        self._networks: dict[str, NetworkLoad] = {}

    def add(self, network: str) -> NetworkLoad:
        """Begin with a network, or begin anew."""
        if old := self._networks.get(network):
            self.remove(network, old)
        self._networks[network] = load = NetworkLoad()
        load.per_image, load.time = self._per_image, self._time
        return load

    def remove(self, network: str, load: NetworkLoad) -> None:
        """Forget a network."""
        self._working -= load.working
        del self._networks[network]

    def record(
        self,
        load: NetworkLoad,
        *,
        queued: int,
        in_flight: int,
        overtaken: int,
        done: int,
        now: float,
    ) -> None:
        """Note what a network has from now on.

        Args:
            queued: images that wait.
            in_flight: images between admission and `postprocess`.
            overtaken: images that no longer count as in flight, but are worked on.
            done: images that have left since the start.
            now: the time.
        """
        self._settle(load, now)
        self._working += in_flight + overtaken - load.working
        load.working = in_flight + overtaken
        load.queued, load.in_flight, load.done = queued, in_flight, done

    def read(self, now: float) -> dict[str, Load]:
        """The load of each network. Call it once a second."""
        seconds = now - self._read_at[0]
        self._read_at.append(now)
        recent = {}
        for name, load in self._networks.items():
            self._settle(load, now)
            totals = _Totals(load.busy, load.waited, load.done, load.unmet)
            recent[name] = totals.since(load.readings[0])
            load.readings.append(totals)
        together = _Totals()
        for totals in recent.values():
            together = together.plus(totals)
        return {
            name: Load(load.queued, load.in_flight, saturation(recent[name], together, seconds))
            for name, load in self._networks.items()
        }

    def _settle(self, load: NetworkLoad, now: float) -> None:
        """Bring the network's sums up to now."""
        self._per_image += (now - self._time) / max(self._working, self._parallel)
        self._time = now
        load.busy += load.working * (self._per_image - load.per_image)
        load.waited += load.queued * (now - load.time)
        load.per_image, load.time = self._per_image, now


def saturation(own: _Totals, together: _Totals, seconds: float) -> float:
    """A network's part of the server's saturation, in hundredths.

    Args:
        own: what the network added to its sums.
        together: what all networks added.
        seconds: during which.
    """
    if seconds <= 0:
        return 0.0
    # A network that has done nothing so far is taken to cost as much as the others.
    cost = own.busy / own.done if own.done else together.busy / max(together.done, 1)
    more = own.unmet + own.waited / _DRAIN_SECONDS
    return round(min(_HIGHEST, (own.busy + more * cost) / seconds), 2)
