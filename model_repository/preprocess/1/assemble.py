"""The canvases of one request, which become one tensor and must therefore be of one size."""

from __future__ import annotations

from typing import Any

import numpy as np
from letterbox import Placement, enlarge
from normalise import DeviceNormaliser, HostNormaliser
from numpy.typing import NDArray


class Batch:
    """Collects the pictures of one request as they arrive, from several threads.

    Args:
        size: height and width where every canvas has the same; None where they differ (letterbox
            `rect`): then all are padded to the largest height and width among them.
    """

    def __init__(
        self,
        normaliser: HostNormaliser | DeviceNormaliser,
        count: int,
        size: tuple[int, int] | None,
    ) -> None:
        self._normaliser: Any = normaliser
        self._images = None if size is None else normaliser.allocate(count, *size)
        self._canvases: list[NDArray[np.uint8]] = [np.empty((0, 0, 3), np.uint8)] * count

    def put(self, index: int, canvas: NDArray[np.uint8]) -> None:
        """Add the picture with this number."""
        if self._images is None:
            self._canvases[index] = canvas
        else:
            self._normaliser.put(canvas, self._images, index)

    def finish(self, placements: list[Placement]) -> tuple[NDArray[Any], list[Placement]]:
        """The batch, to be packed by the normaliser, and where in it each picture lies now."""
        if self._images is not None:
            return self._images, placements
        height, width = (max(canvas.shape[side] for canvas in self._canvases) for side in (0, 1))
        images = self._normaliser.allocate(len(self._canvases), height, width)
        moved = []
        for index, (canvas, placement) in enumerate(zip(self._canvases, placements)):
            larger, placement = enlarge(canvas, placement, height, width)
            self._normaliser.put(larger, images, index)
            moved.append(placement)
        return images, moved
