"""A clock for the modules of the queue that goes on only when a test says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import fair_queue
import fair_share
import in_flight
import pytest


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def virtual_time() -> Iterator[Clock]:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        for module in (fair_queue, fair_share, in_flight):
            patch.setattr(module, "monotonic", clock)
        yield clock
