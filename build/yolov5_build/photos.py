"""Photos, decoded and letterboxed by the modules of the step `preprocess`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _contract as contract
from ._errors import BuildError
from .paths import BUNDLED_PHOTOS
from .steps import step_module


def photos_in(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, sorted.

    Raises:
        BuildError: there are none.
    """
    kinds = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in kinds)
    if not paths:
        raise BuildError(f"{folder.name} holds no pictures.")
    return paths


class PhotoLoader:
    """Loads photos for a network's input.

    Args:
        height, width: of the input in pixels.
        letterbox: one of `LETTERBOX_MODES`.
        stride: with letterbox `rect`, sides are padded to a multiple of it.
        padding: `EXACT` or `WHOLE`, how the placement states it.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        letterbox: str = contract.SQUARE,
        stride: int = 32,
        padding: str = contract.EXACT,
    ) -> None:
        self._decode = step_module("preprocess", "decode")
        self._decoder = self._decode.Decoder(
            self._decode.ImageLimits(bytes=1 << 30, pixels=1 << 28)
        )
        self._letterbox = partial(
            step_module("preprocess", "letterbox").letterbox,
            height=height,
            width=width,
            mode=letterbox,
            stride=stride,
            whole_padding=padding == contract.WHOLE,
        )

    def load(self, path: Path) -> tuple[NDArray[np.float32], Any]:
        """Read a photo as RGB 0..1, float32 [3, H, W], with its `Placement` in that.

        Raises:
            BuildError: it cannot be read or decoded.
        """
        try:
            picture = self._decoder.decode(path.read_bytes())
        except (OSError, self._decode.ImageError) as error:
            raise BuildError(f"{path.name} cannot be used as a photo: {error}.") from None
        canvas, placement = self._letterbox(picture)
        planes = np.ascontiguousarray(canvas[..., ::-1].transpose(2, 0, 1))
        return np.divide(planes, np.float32(255), dtype=np.float32), placement


def example_images(height: int, width: int, count: int = 2) -> NDArray[np.float32]:
    """The first `count` bundled photos: float32 [count, 3, height, width], RGB 0..1."""
    loader = PhotoLoader(height, width)
    return np.stack([loader.load(path)[0] for path in photos_in(BUNDLED_PHOTOS)[:count]])
