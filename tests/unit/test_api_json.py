"""JSON that is made to cost the REST service far more than its size."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from typing import Any

import pytest
from prometheus_client import Gauge
from starlette.requests import Request

from yolov5_client._api import request_images
from yolov5_client._api.limits import BodyReader, ByteBudget
from yolov5_client._api.problems import ProblemError
from yolov5_client._api.request_images import ImageRequest


def read(body: bytes) -> ImageRequest:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/detect",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    budget = ByteBudget(64 << 20, Gauge("buffered", "", registry=None))
    with BodyReader(budget, None, 30) as reader:
        return asyncio.run(request_images.read(Request(scope, receive), reader))


@pytest.mark.parametrize("part", ["[],", "{},", "0,", '"",', "[[[]]],"])
def test_json_of_many_small_parts_is_refused_before_it_is_parsed(part: str) -> None:
    body = b'{"image": [%s""]}' % (part.encode() * ((8 << 20) // len(part)))
    tracemalloc.start()
    started = time.thread_time()
    try:
        with pytest.raises(ProblemError, match="^the JSON has too many parts; allowed: 65536$"):
            read(body)
        assert time.thread_time() - started < 0.5
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body)
    finally:
        tracemalloc.stop()


def test_large_images_and_class_lists_are_no_parts() -> None:
    given = {"image": ["QUJD" * (1 << 20)] * 8, "classes": ",".join(["car"] * 1000)}
    asked = read(json.dumps(given).encode())
    assert [len(image) for image in asked.images] == [4 << 20] * 8
    assert asked.parameters["classes"].count(",") == 999
