"""Forms that are made to cost the REST service far more than their size."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from prometheus_client import Gauge
from starlette.requests import Request

from yolov5_client._api import request_images
from yolov5_client._api.limits import BodyReader, ByteBudget
from yolov5_client._api.problems import ProblemError
from yolov5_client._api.request_images import ImageRequest

FIELD = b'--B\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'


def read(charset: str, text: bytes) -> ImageRequest:
    body = FIELD % (b"image", b"QUJD") + FIELD % (b"classes", text) + b"--B--\r\n"

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    kind = f"multipart/form-data; boundary=B; charset={charset}"
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/detect",
        "query_string": b"",
        "headers": [(b"content-type", kind.encode())],
    }
    budget = ByteBudget(64 << 20, Gauge("buffered", "", registry=None))
    with BodyReader(budget, None, 30) as reader:
        return asyncio.run(request_images.read(Request(scope, receive), reader))


@pytest.mark.parametrize("charset", ["punycode", "idna", "utf-7", "zip", "none-such", "a\\0b"])
def test_form_in_a_rare_charset_is_refused_before_it_is_decoded(charset: str) -> None:
    started = time.thread_time()
    with pytest.raises(ProblemError, match=r"^the form's charset is '.*'; allowed: utf-8, us-asci"):
        read(charset, b"b" * 100_000)  # of punycode this much takes a second, and twice it four
    assert time.thread_time() - started < 0.5


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", '"utf-8"', "us-ascii", "iso-8859-1"])
def test_form_in_a_common_charset_is_read(charset: str) -> None:
    assert read(charset, b"car").parameters == {"classes": "car"}
