"""Run the images of a request one by one and gather their outputs into one answer.

If the images have different numbers of rows, shorter ones are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from executor import Run

Tensors = Mapping[str, Any]  # NumPy arrays by name; the first dimension is the batch


class ImageGather:
    """Gathers the outputs of a request's images.

    Args:
        inputs: of the request.
        batching: whether the first dimension is the batch; else the request is one piece.
        respond: called once, with the outputs by name or with the first exception.
    """

    def __init__(
        self, inputs: Tensors, *, batching: bool, respond: Callable[[Tensors | Exception], None]
    ) -> None:
        self._inputs = inputs
        self._images = len(next(iter(inputs.values()))) if batching else 1
        self._respond = respond
        self._lock = Lock()
        self._outputs: dict[str, Any] = {}
        self._error: Exception | None = None
        self._remaining = self._images

    def tasks(self) -> Iterator[Callable[[Run], None]]:
        """One task for each image, to be run in any order and on any thread."""
        for index in range(self._images):
            yield partial(self._run_image, index)

    def _run_image(self, index: int, run: Run) -> None:
        try:
            outputs = run(self._piece(index))
            with self._lock:
                self._store(outputs, index)
        except Exception as error:
            self._error = self._error or error
        with self._lock:
            self._remaining -= 1
            if self._remaining:
                return
        self._respond(self._error or self._outputs)

    def _piece(self, index: int) -> Tensors:
        if self._images == 1:
            return self._inputs
        return {name: array[index : index + 1] for name, array in self._inputs.items()}

    def _store(self, outputs: Tensors, index: int) -> None:
        if self._images == 1:
            self._outputs = dict(outputs)
            return
        # Copied, because the next run on this thread may write to the same memory.
        for name, (piece, *_) in outputs.items():
            whole = self._outputs.get(name)
            if whole is None:
                whole = np.zeros((self._images, *piece.shape), piece.dtype)
            elif piece.ndim and len(piece) > whole.shape[1]:
                shorter = whole
                whole = np.zeros((self._images, *piece.shape), piece.dtype)
                whole[:, : shorter.shape[1]] = shorter
            self._outputs[name] = whole
            if piece.ndim:
                whole[index, : len(piece)] = piece
            else:
                whole[index] = piece
