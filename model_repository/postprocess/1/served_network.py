"""The class names of the network that is served."""

from __future__ import annotations

from pathlib import Path


def read_labels(repository: Path) -> tuple[str, ...]:
    """`yolov5/labels.txt` below the model repository: one name a line, line 0 = class 0.

    That it fits the network is checked by `preprocess`.
    """
    return tuple((repository / "yolov5" / "labels.txt").read_text("utf-8").splitlines())
