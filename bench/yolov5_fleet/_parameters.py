"""The measured parameters of a server, as `python -m yolov5_fleet measure` writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from ._server import Limits, Work

MEASURED = Path(__file__).with_name("parameters.json")
QUANTILES = 101  # of the spread: 0 %, 1 %, ..., 100 %


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What was measured of one server.

    Attributes:
        about: the machine, the server, and when; for readers.
        cores: of the server.
        work: CPU time of an image.
        limits: of the queue.
        limits_of_one_core: of the queue of a server with one core.
        generator: seconds of CPU for a request in the load generator.
        balancer: the same in Envoy.
        spread: quantiles of the work of an image, relative to the mean.
        start_seconds: from starting the launcher until it is ready.
    """

    about: dict[str, str]
    cores: int
    work: Work
    limits: Limits
    limits_of_one_core: Limits
    generator: float
    balancer: float
    spread: list[float]
    start_seconds: float

    @property
    def capacity(self) -> float:
        """Images per second that a server can do on cores of its own."""
        return self.cores / (self.work.prepare + self.work.network + self.work.finish)

    def scales(self, random: Random) -> Callable[[], float]:
        """Draw the work of images, relative to the mean."""
        spread, last = self.spread, len(self.spread) - 1

        def draw() -> float:
            place = random.random() * last
            below = int(place)
            return spread[below] + (place - below) * (spread[below + 1] - spread[below])

        return draw


def read(path: Path = MEASURED) -> Parameters:
    """Read the parameters of a file.

    Raises:
        ValueError: it is not such a file; one sentence.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        kinds = {"work": Work, "limits": Limits, "limits_of_one_core": Limits}
        parts = {name: kind(**found.pop(name)) for name, kind in kinds.items()}
        parameters = Parameters(**parts, **found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is not a file of `yolov5_fleet measure`: {error}") from error
    if len(parameters.spread) < 2 or parameters.cores < 1:
        raise ValueError(f"{path.name} is not a file of `yolov5_fleet measure`: it is incomplete")
    return parameters


def write(parameters: Parameters, path: Path = MEASURED) -> None:
    """Write the parameters to a file."""
    path.write_text(json.dumps(asdict(parameters), indent=2) + "\n", "utf-8")
