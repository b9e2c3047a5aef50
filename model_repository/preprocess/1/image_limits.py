"""The largest image that is accepted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageLimits:
    """The largest image allowed.

    Attributes:
        bytes: of the encoded file.
        pixels: of the decoded picture. It also limits the pixels decoded at the same time, and the
            scans of a JPEG.
    """

    bytes: int
    pixels: int
