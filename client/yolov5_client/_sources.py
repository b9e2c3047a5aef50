"""What `detect SOURCE...` means: the image files it names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".jpe", ".png", ".tif", ".tiff", ".webp"})


def find_images(sources: Iterable[str]) -> list[Path]:
    """The files that `sources` name, in order.

    A file is taken whatever it is called, for the server to judge; from a folder come the files
    with an image's ending, sorted by name.

    Raises:
        FileNotFoundError: a source does not exist, or a folder has no image in it.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            images = sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES)
            if not images:
                raise FileNotFoundError(f"no image in the folder {source}")
            found += images
        elif source.exists():
            found.append(source)
        else:
            raise FileNotFoundError(f"no such file or folder: {source}")
    return found
