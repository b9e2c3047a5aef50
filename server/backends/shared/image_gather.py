"""Run the images of a request one by one and gather their outputs into one answer.

If the images have different numbers of rows, shorter ones are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
from executor import Run
from gather import Gather

Tensors = Mapping[str, Any]  # NumPy arrays by name; the first dimension is the batch


def image_tasks(
    inputs: Tensors, *, batching: bool, respond: Callable[[Tensors | Exception], None]
) -> Iterator[Callable[[Run], None]]:
    """Split a request into one task for each image, to be called in any order and on any thread.

    Args:
        inputs: of the request.
        batching: whether the first dimension is the batch; else the request is one piece.
        respond: called once, with the outputs by name or with the first image's exception.
    """
    images = len(next(iter(inputs.values()))) if batching else 1
    outputs = _Outputs(images)

    def run_image(index: int, run: Run) -> None:
        piece = inputs
        if images > 1:
            piece = {name: array[index : index + 1] for name, array in inputs.items()}
        outputs.add(index, run(piece))

    def answer(results: Sequence[Exception | None]) -> None:
        respond(next(filter(None, results), outputs.by_name))

    return Gather(images, work=run_image, answer=answer).tasks()


class _Outputs:
    """The outputs of several images, joined.

    Args:
        images: number of images.
    """

    def __init__(self, images: int) -> None:
        self.by_name: dict[str, Any] = {}
        self._images = images
        self._lock = Lock()

    def add(self, index: int, outputs: Tensors) -> None:
        if self._images == 1:
            self.by_name = dict(outputs)
            return
        # Copied, because the next run on this thread may write to the same memory.
        with self._lock:
            for name, (piece, *_) in outputs.items():
                self.by_name[name] = whole = self._with_room_for(name, piece)
                if piece.ndim:
                    whole[index, : len(piece)] = piece
                else:
                    whole[index] = piece

    def _with_room_for(self, name: str, piece: Any) -> Any:
        whole = self.by_name.get(name)
        if whole is None:
            return np.zeros((self._images, *piece.shape), piece.dtype)
        if not piece.ndim or len(piece) <= whole.shape[1]:
            return whole
        longer = np.zeros((self._images, *piece.shape), piece.dtype)
        longer[:, : whole.shape[1]] = whole
        return longer
