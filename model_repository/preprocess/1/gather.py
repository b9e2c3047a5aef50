"""Prepare the images of a request in parallel, and answer when the last one is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class Gather(Generic[T]):
    """Collects the results of a request's images.

    Args:
        count: number of images.
        prepare: called for each image with its index, on several threads.
        answer: called once, on one of these threads, with the result or the exception of `prepare`
            for each image. Must not raise.
    """

    def __init__(
        self,
        count: int,
        *,
        prepare: Callable[[int], T],
        answer: Callable[[Sequence[T | Exception]], None],
    ) -> None:
        self._prepare = prepare
        self._answer = answer
        self._results: list[T | Exception] = [Exception("not prepared")] * count
        self._left = count
        self._lock = Lock()

    def start(self, pool: Executor) -> None:
        """Submit all images to the pool."""
        for index in range(len(self._results)):
            pool.submit(partial(self._do, index))

    def _do(self, index: int) -> None:
        try:
            self._results[index] = self._prepare(index)
        except Exception as error:
            self._results[index] = error
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._answer(self._results)
