"""Write pictures into the network's input: BGR uint8 [H, W, 3] -> RGB 0..1, float32 [3, H, W].

Three classes with the same methods. `HostNormaliser` does all of it on the host, `DeviceNormaliser`
(in `device_normaliser.py`) on the network's GPU. `PlaneSplitter` leaves the division to the
network's process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from device_normaliser import DeviceNormaliser


def make_normaliser(gpu: int | None) -> HostNormaliser | DeviceNormaliser:
    """The normaliser for an instance on this GPU; on the host if torch cannot use the GPU."""
    if gpu is not None:
        import torch  # slow to import, and not needed on a CPU

        # Triton may see a GPU whose driver is too old for torch.
        if torch.cuda.is_available():
            from device_normaliser import DeviceNormaliser

            return DeviceNormaliser(torch.device("cuda", gpu))
    return HostNormaliser()


class HostNormaliser:
    """Normalises each picture directly into its place in the batch."""

    def allocate(self, count: int, height: int, width: int) -> NDArray[np.float32]:
        """An uninitialised batch for `count` pictures."""
        return np.empty((count, 3, height, width), np.float32)

    def put(self, picture: NDArray[np.uint8], batch: NDArray[np.float32], index: int) -> None:
        """Write one picture to its place in the batch; may be called from several threads."""
        # Split first: dividing contiguous planes is nearly twice as fast as strided ones.
        for plane, values in zip(batch[index], reversed(cv2.split(picture))):
            np.divide(values, np.float32(255), out=plane, dtype=np.float32)

    def pack(self, tensor_type: Any, name: str, batch: NDArray[np.float32]) -> Any:
        """The batch as Triton's tensor, float32 [B, 3, H, W]."""
        return tensor_type(name, batch)


class PlaneSplitter:
    """Keeps the values as uint8 0..255, a quarter of the bytes to pass to the network."""

    def allocate(self, count: int, height: int, width: int) -> NDArray[np.uint8]:
        """An uninitialised batch for `count` pictures."""
        return np.empty((count, 3, height, width), np.uint8)

    def put(self, picture: NDArray[np.uint8], batch: NDArray[np.uint8], index: int) -> None:
        """Write one picture to its place in the batch; may be called from several threads."""
        red, green, blue = batch[index]
        cv2.split(picture, [blue, green, red])  # writes into these

    def pack(self, tensor_type: Any, name: str, batch: NDArray[np.uint8]) -> Any:
        """The batch as Triton's tensor, uint8 [B, 3, H, W]."""
        return tensor_type(name, batch)
