"""The OpenAPI document of the service: what it takes and what it answers."""

from __future__ import annotations

from typing import Any

from .._version import __version__
from . import deepstack_openapi
from .openapi_parts import NETWORK, NOT_HTTP, REFUSALS, UNIT, json_object, reference
from .problems import MEDIA_TYPE
from .settings import MAX_BODY_BYTES, MAX_IMAGES

_INFO = f"""\
An image in, the objects found in it out. Boxes are x1, y1, x2, y2 in pixels of the image as it is
displayed (EXIF orientation applied), best detection first.

An image is JPEG, PNG, WebP, BMP or TIFF, at most 32 MiB; a request has at most {MAX_IMAGES} of them
and {MAX_BODY_BYTES >> 20} MiB. Every answer has the header X-Request-Id: the one of the request, or
one that was made; the logs have it too."""

_PARAMETERS: dict[str, dict[str, Any]] = {
    "conf_thres": {**UNIT, "description": "Least confidence of a detection (default 0.25)."},
    "iou_thres": {
        **UNIT,
        "description": "Overlap above which the weaker of two boxes is dropped (default 0.45).",
    },
    "max_det": {
        "type": "integer",
        "minimum": 1,
        "maximum": 1000,
        "description": "Most detections of an image (default 300).",
    },
    "classes": {
        "type": "string",
        "maxLength": 4096,
        "description": "Only these classes: `0,2,7`, `person,bus`, or a JSON list.",
    },
    "agnostic_nms": {
        "type": "boolean",
        "description": "Suppress overlapping boxes of different classes, too (default false).",
    },
    "multi_label": {
        "type": "boolean",
        "description": "Several classes for one box (default false).",
    },
    "class_conf_thres": {
        "type": "string",
        "maxLength": 4096,
        "description": "Least confidence by class: `person:0.6,car:0.3`, or a JSON object.",
    },
    "model": {
        **NETWORK,
        "description": "The network, if it is not the default one; `/models` lists them.",
    },
}

_IMAGE_TEXT = {"type": "string", "description": "Base64 text, or a `data:image/...;base64,` URI."}
_URL = {"type": "string", "format": "uri", "description": "From a host that the operator allows."}


def document() -> dict[str, Any]:
    """Return the document, OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "YOLOv5 on Triton",
            "version": __version__,
            "summary": "An image in, the objects found in it out.",
            "description": _INFO,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"key": []}, {"bearer": []}],
        "tags": [
            {"name": "detection"},
            deepstack_openapi.TAG,
            {"name": "operation", "description": "For probes and monitoring."},
        ],
        "paths": {
            "/detect": {"post": _detect()},
            "/detect.jpg": {"post": _detect_jpg()},
            **deepstack_openapi.paths(name for name in _PARAMETERS if name != "model"),
            "/models": {"get": _get("models", "List the networks", "Models", keys=True)},
            "/live": {"get": _get("live", "Whether the service runs", "Live")},
            "/ready": {"get": _get("ready", "Whether an image would be answered", "Ready")},
            "/metrics": {"get": _metrics()},
        },
        "components": {
            "schemas": {**_schemas(), **deepstack_openapi.schemas()},
            "parameters": {
                name: {"name": name, "in": "query", "description": text, "schema": schema}
                for name, schema, text in _query_parameters()
            },
            "responses": {
                "Problem": _answer(
                    "The request is not answered; `detail` says why.",
                    {MEDIA_TYPE: {"schema": reference("Problem")}, **NOT_HTTP},
                ),
                "Later": {
                    "description": "The server is saturated or being brought back.",
                    "headers": {
                        "X-Request-Id": _ID_HEADER,
                        "Retry-After": {"description": "Seconds.", "schema": {"type": "string"}},
                    },
                    "content": {MEDIA_TYPE: {"schema": reference("Problem")}},
                },
                **deepstack_openapi.responses(),
            },
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


_ID_HEADER = {"description": "The request's id.", "schema": {"type": "string"}}
_PICTURE = {"type": "string", "format": "binary"}


def _answer(description: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {"X-Request-Id": _ID_HEADER},
        "content": content,
    }


def _query_parameters() -> list[tuple[str, dict[str, Any], str]]:
    found = []
    for name, schema in _PARAMETERS.items():
        bare = {key: value for key, value in schema.items() if key != "description"}
        found.append((name, bare, schema["description"]))
    return found


def _problems(*statuses: int) -> dict[str, Any]:
    answers: dict[str, Any] = {
        str(status): reference("Problem", "responses") for status in statuses
    }
    return {**answers, "503": reference("Later", "responses")}


def _request_body(most: int) -> dict[str, Any]:
    """The body of a request with at most so many images."""
    return {
        "required": True,
        "description": "The image itself, a form, or JSON.",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary", "minLength": 1}},
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary", "minLength": 1}
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                            "maxItems": most,
                        },
                        **_PARAMETERS,
                    },
                    "additionalProperties": False,
                }
            },
            "application/json": {"schema": reference("Request")},
        },
    }


def _detect() -> dict[str, Any]:
    return {
        "operationId": "detect",
        "tags": ["detection"],
        "summary": "Detect objects in one image or in several",
        "description": "The header Accept chooses the form of the answer.",
        "parameters": [reference(name, "parameters") for name in _PARAMETERS],
        "requestBody": _request_body(MAX_IMAGES),
        "responses": {
            "200": _answer(
                "The detections. In NDJSON one line for each image, as soon as it is done; as a"
                " picture, drawn into the image.",
                {
                    "application/json": {"schema": reference("Answer")},
                    "application/x-ndjson": {"schema": reference("Line")},
                    "image/jpeg": {"schema": _PICTURE},
                },
            ),
            **_problems(*REFUSALS),
        },
    }


def _detect_jpg() -> dict[str, Any]:
    return {
        "operationId": "detectJpg",
        "tags": ["detection"],
        "summary": "Detect objects in one image and draw them into it",
        "parameters": [reference(name, "parameters") for name in _PARAMETERS],
        "requestBody": _request_body(1),
        "responses": {
            "200": _answer("The picture with boxes.", {"image/jpeg": {"schema": _PICTURE}}),
            **_problems(*REFUSALS),
        },
    }


def _get(operation: str, summary: str, schema: str, *, keys: bool = False) -> dict[str, Any]:
    return {
        "operationId": operation,
        "tags": ["operation"],
        "summary": summary,
        **({} if keys else {"security": []}),
        "responses": {
            "200": _answer("As it is now.", {"application/json": {"schema": reference(schema)}}),
            **_problems(*((401, 403, 500) if keys else (403, 500))),
        },
    }


def _metrics() -> dict[str, Any]:
    return {
        "operationId": "metrics",
        "tags": ["operation"],
        "summary": "Metrics of this service for Prometheus",
        "security": [],
        "responses": {
            "200": _answer("The text format.", {"text/plain": {"schema": {"type": "string"}}}),
            **_problems(403, 500),
        },
    }


def _one_or_several(one: dict[str, Any]) -> dict[str, Any]:
    several = {"type": "array", "items": one, "minItems": 1, "maxItems": MAX_IMAGES}
    return {"oneOf": [one, several]}


def _schemas() -> dict[str, Any]:
    side = {"type": "number", "minimum": 0}
    version = {"type": ["string", "null"], "description": "Of the network, if it is known."}
    milliseconds = {"type": "number", "minimum": 0}
    image = {
        "width": {"type": "integer", "minimum": 1},
        "height": {"type": "integer", "minimum": 1},
        "detections": {"type": "array", "items": reference("Detection")},
    }
    line = {
        "index": {"type": "integer", "minimum": 0, "description": "Of the image, from 0."},
        "model": {"type": "string"},
        "version": version,
    }
    return {
        "Request": {
            **json_object(
                {
                    "image": _one_or_several(_IMAGE_TEXT),
                    "url": _one_or_several(_URL),
                    **_PARAMETERS,
                },
                "image",
                "url",
                *_PARAMETERS,
            ),
            "oneOf": [{"required": ["image"]}, {"required": ["url"]}],
            "additionalProperties": False,
        },
        "Answer": json_object(
            {
                "model": {"type": "string"},
                "version": version,
                "milliseconds": milliseconds,
                "images": {"type": "array", "items": reference("Image")},
            }
        ),
        "Image": json_object(image),
        "Line": {
            "oneOf": [
                json_object({**line, "milliseconds": milliseconds, **image}),
                json_object({**line, "problem": reference("Problem")}),
            ]
        },
        "Detection": json_object(
            {
                "label": {"type": "string"},
                "class_id": {"type": "integer", "minimum": 0},
                "score": UNIT,
                "box": json_object({"x1": side, "y1": side, "x2": side, "y2": side}),
            }
        ),
        "Problem": json_object(
            {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string", "description": "One sentence for people."},
                "request_id": {"type": "string"},
            }
        ),
        "Models": json_object(
            {
                "default": {"type": "string"},
                "models": {"type": "array", "items": reference("Model")},
            }
        ),
        "Model": json_object(
            {
                "name": {"type": "string"},
                "version": version,
                "precision": {"type": ["string", "null"]},
                "ready": {"type": "boolean"},
            }
        ),
        "Live": json_object({"live": {"const": True}}),
        "Ready": json_object({"ready": {"const": True}}),
    }
