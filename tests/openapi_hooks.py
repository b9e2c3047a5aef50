"""What Schemathesis, which loads this by name, cannot know: what an image is, and the like."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import schemathesis
from hypothesis import strategies as st

PIXELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
ENCODED = [
    cv2.imencode(suffix, PIXELS)[1].tobytes()
    for suffix in (".jpg", ".png", ".webp", ".bmp", ".tiff")
]

for kind in ("image/jpeg", "image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, st.sampled_from(ENCODED) | st.binary(max_size=64))


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Leave out an empty list in a form, which is the same as no field."""
    return not (isinstance(case.body, dict) and [] in case.body.values())


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Let most requests that are meant to be valid come as far as the server.

    A parameter both in the query and in the body is refused, and so is a network that there is not.
    """
    if case.meta is None or case.meta.generation.mode != schemathesis.GenerationMode.POSITIVE:
        return case
    query, body = case.query or {}, case.body
    if isinstance(body, dict):
        for name in [name for name in query if name in body and len(str(body)) % 8]:
            del query[name]
    for given in (query, body):
        if isinstance(given, dict) and isinstance(given.get("model"), str):
            given["model"] = "yolov5" if len(str(body)) % 4 else given["model"]
            for name in ("classes", "class_conf_thres"):
                if isinstance(given.get(name), str) and len(str(body)) % 2:
                    del given[name]
    return case


@schemathesis.deserializer("application/x-ndjson")
def first_line(context: Any, response: Any) -> Any:
    """A line of the answer, which the document describes."""
    return json.loads(response.content.splitlines()[0])
