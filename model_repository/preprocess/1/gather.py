"""Work on the images of a request in parallel, and answer when the last one is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Lock
from typing import Concatenate, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Gather(Generic[P, T]):
    """Collects the results of a request's images.

    Args:
        count: number of images.
        work: called for each image with its index, on several threads.
        answer: called once, on one of these threads, with the result or the exception of `work` for
            each image. Must not raise.
    """

    def __init__(
        self,
        count: int,
        *,
        work: Callable[Concatenate[int, P], T],
        answer: Callable[[Sequence[T | Exception]], None],
    ) -> None:
        self._work = work
        self._answer = answer
        self._results: list[T | Exception] = [Exception("not begun")] * count
        self._left = count
        self._lock = Lock()

    def tasks(self) -> Iterator[Callable[P, None]]:
        """One task for each image, to be called in any order and on any thread.

        What a task is called with goes on to `work`, after the index.
        """
        for index in range(len(self._results)):
            yield partial(self._do, index)

    def _do(self, index: int, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            self._results[index] = self._work(index, *args, **kwargs)
        except Exception as error:
            self._results[index] = error
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._answer(self._results)
