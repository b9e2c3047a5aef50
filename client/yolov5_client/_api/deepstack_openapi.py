"""The part of the OpenAPI document about `deepstack.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .deepstack import DEFAULT_CONFIDENCE
from .openapi_parts import NETWORK, NOT_HTTP, REFUSALS, UNIT, json_object, reference

TAG = {
    "name": "deepstack",
    "description": "For programs that are clients of DeepStack or CodeProject.AI.",
}


def paths(parameters: Iterable[str]) -> dict[str, Any]:
    """Return the paths of the dialect.

    Args:
        parameters: names, in the document's components, of those that an address may have.
    """
    query = [reference(name, "parameters") for name in parameters]
    network = {
        "name": "model",
        "in": "path",
        "required": True,
        "description": "The network.",
        "schema": NETWORK,
    }
    summary = "Detect objects in one image"
    return {
        "/v1/vision/detection": {"post": _detection("deepstackDetect", summary, query)},
        "/v1/vision/custom/{model}": {
            "post": _detection("deepstackCustom", f"{summary} with a network", [network, *query])
        },
        "/v1/vision/custom/list": {
            "get": _get("deepstackList", "List the networks", "DeepStackList"),
            "post": _get("deepstackListPost", "List the networks", "DeepStackList"),
        },
        "/v1/status/ping": {
            "get": _get("deepstackPing", "Whether the service runs", "DeepStackPing")
            | {"security": []}
        },
        "/v1/status/updateavailable": {
            "get": _get("deepstackUpdate", "Whether there is an update", "DeepStackUpdate")
            | {"security": []}
        },
    }


def responses() -> dict[str, Any]:
    """Return the components for answers that are no detections."""
    return {
        "DeepStackError": {
            "description": "The request is not answered; `error` says why.",
            "content": {**_json("DeepStackError"), **NOT_HTTP},
        }
    }


def schemas() -> dict[str, Any]:
    """Return the components for forms and answers."""
    text, count = {"type": "string"}, {"type": "integer", "minimum": 0}
    module = {
        "code": {"const": 200},
        "command": text,
        "moduleId": {**text, "description": "The network."},
        "moduleName": text,
        "executionProvider": text,
        "canUseGPU": {"type": "boolean"},
        "analysisRoundTripMs": count,
    }
    version = {"major": count, "minor": count, "patch": count}
    return {
        "DeepStackForm": {
            "type": "object",
            "required": ["image"],
            "properties": {
                "image": {"type": "string", "format": "binary", "minLength": 1},
                "min_confidence": {**UNIT, "default": DEFAULT_CONFIDENCE},
                "api_key": {"description": "In place of a header; text."},
            },
        },
        "DeepStackAnswer": json_object(
            {
                "success": {"const": True},
                "message": text,
                "predictions": {"type": "array", "items": reference("DeepStackPrediction")},
                "count": count,
                **module,
                "inferenceMs": count,
                "processMs": count,
            }
        ),
        "DeepStackPrediction": json_object(
            {
                "label": text,
                "confidence": UNIT,
                "x_min": count,
                "y_min": count,
                "x_max": count,
                "y_max": count,
            }
        ),
        "DeepStackError": json_object(
            {"success": {"const": False}, "error": text, "code": {"type": "integer"}}
        ),
        "DeepStackList": json_object(
            {"success": {"const": True}, "models": {"type": "array", "items": text}, **module}
        ),
        "DeepStackPing": json_object({"success": {"const": True}}),
        "DeepStackUpdate": json_object(
            {
                "success": {"const": True},
                "message": text,
                "current": json_object(version),
                "latest": json_object(version),
                "updateAvailable": {"const": False},
            }
        ),
    }


def _detection(operation: str, summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "operationId": operation,
        "tags": [TAG["name"]],
        "summary": summary,
        "description": "`conf_thres` is `min_confidence`, and 0.4 if neither is given.",
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": reference("DeepStackForm")}},
        },
        "responses": {
            "200": {"description": "The detections.", "content": _json("DeepStackAnswer")},
            **_errors(*sorted({*REFUSALS, 503})),
        },
    }


def _get(operation: str, summary: str, schema: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "tags": [TAG["name"]],
        "summary": summary,
        "responses": {
            "200": {"description": "As it is now.", "content": _json(schema)},
            **_errors(400, 401, 403, 408, 413, 415, 500, 503),
        },
    }


def _errors(*statuses: int) -> dict[str, Any]:
    return {str(status): reference("DeepStackError", "responses") for status in statuses}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": reference(schema)}}
