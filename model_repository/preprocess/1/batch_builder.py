"""Build one tensor of the letterboxed pictures (canvases) of a request, all of one size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from letterbox import enlarge
from normalise import HostNormaliser, PlaneSplitter
from numpy.typing import NDArray
from placement import Placement

if TYPE_CHECKING:
    from device_normaliser import DeviceNormaliser

    Normaliser = HostNormaliser | DeviceNormaliser | PlaneSplitter


class BatchBuilder:
    """Collects the canvases of one request, from several threads.

    Args:
        normalisers: by the name of the tensor that each makes.
        count: of the canvases.
        size: height and width of all canvases; None if they differ (letterbox `rect`), and are
            padded to the largest height and the largest width among them.
    """

    def __init__(
        self,
        normalisers: Mapping[str, Normaliser],
        count: int,
        size: tuple[int, int] | None,
    ) -> None:
        self._normalisers: Mapping[str, Any] = normalisers
        self._tensors = None if size is None else self._allocate(count, *size)
        self._canvases: list[NDArray[np.uint8]] = [np.empty((0, 0, 3), np.uint8)] * count

    def add(self, index: int, canvas: NDArray[np.uint8]) -> None:
        """Add the canvas with this index, uint8 [H, W, 3]."""
        if self._tensors is None:
            self._canvases[index] = canvas
        else:
            self._write(canvas, self._tensors, index)

    def build(
        self, placements: list[Placement]
    ) -> tuple[Mapping[str, NDArray[Any]], list[Placement]]:
        """Return the tensors by name, and the placements of the pictures in them.

        Args:
            placements: those in the canvases; padding a canvas changes its placement.
        """
        if self._tensors is not None:
            return self._tensors, placements
        height, width = (max(canvas.shape[side] for canvas in self._canvases) for side in (0, 1))
        tensors = self._allocate(len(self._canvases), height, width)
        moved = []
        for index, (canvas, placement) in enumerate(zip(self._canvases, placements)):
            larger, placement = enlarge(canvas, placement, height, width)
            self._write(larger, tensors, index)
            moved.append(placement)
        return tensors, moved

    def pack(self, tensor_type: Any, tensors: Mapping[str, NDArray[Any]]) -> list[Any]:
        """The result of `build` as Triton's tensors."""
        return [
            normaliser.pack(tensor_type, name, tensors[name])
            for name, normaliser in self._normalisers.items()
        ]

    def _allocate(self, count: int, height: int, width: int) -> Mapping[str, NDArray[Any]]:
        return {
            name: normaliser.allocate(count, height, width)
            for name, normaliser in self._normalisers.items()
        }

    def _write(
        self, canvas: NDArray[np.uint8], tensors: Mapping[str, NDArray[Any]], index: int
    ) -> None:
        for name, normaliser in self._normalisers.items():
            normaliser.put(canvas, tensors[name], index)
