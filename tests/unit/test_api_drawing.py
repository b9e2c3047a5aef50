"""Pictures that the REST service draws, and what they may cost."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from yolov5_client._api import detect
from yolov5_client._api.service import Service


def test_picture_of_a_caller_who_hung_up_still_counts_as_the_one_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, at_a_time = threading.Lock(), [0, 0]  # now, and at most

    def draw_jpeg(image: bytes, found: Any) -> bytes:
        with lock:
            at_a_time[:] = at_a_time[0] + 1, max(at_a_time[1], at_a_time[0] + 1)
        time.sleep(0.2)
        with lock:
            at_a_time[0] -= 1
        return image

    async def five_callers_of_whom_four_hang_up() -> bytes:
        service = cast(Service, SimpleNamespace(drawing=asyncio.Semaphore(1)))
        for _ in range(4):
            caller = asyncio.ensure_future(detect._draw(service, b"", cast(Any, None)))
            await asyncio.sleep(0.05)
            caller.cancel()
        return await detect._draw(service, b"last", cast(Any, None))

    monkeypatch.setattr(detect, "draw_jpeg", draw_jpeg)
    assert asyncio.run(five_callers_of_whom_four_hang_up()) == b"last"
    assert at_a_time == [0, 1]
