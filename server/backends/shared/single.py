"""A request's images one by one, and its answer when the last of them is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from lanes import Run

Tensors = Mapping[str, Any]  # by name; NumPy arrays, the first dimension the batch


class Answer:
    """Collects what the images of one request give.

    Args:
        inputs: of the request.
        batching: whether the first dimension is the batch; else all is one piece.
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
        self._left = self._images

    def work(self) -> Iterator[Callable[[Run], None]]:
        """What is to be done, image by image, in any order and on any thread."""
        for index in range(self._images):
            yield partial(self._do, index)

    def _do(self, index: int, run: Run) -> None:
        try:
            outputs = run(self._piece(index))
            with self._lock:
                self._keep(outputs, index)
        except Exception as error:
            self._error = self._error or error
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._respond(self._error or self._outputs)

    def _piece(self, index: int) -> Tensors:
        if self._images == 1:
            return self._inputs
        return {name: array[index : index + 1] for name, array in self._inputs.items()}

    def _keep(self, outputs: Tensors, index: int) -> None:
        if self._images == 1:
            self._outputs = dict(outputs)
            return
        # Copied, since the next run on this thread may write to the same memory.
        for name, array in outputs.items():
            if name not in self._outputs:
                self._outputs[name] = np.empty((self._images, *array.shape[1:]), array.dtype)
            self._outputs[name][index] = array[0]
