"""Pieces of the OpenAPI document that both of its modules use."""

from __future__ import annotations

from typing import Any

from .._contract import NETWORK_PATTERN

UNIT = {"type": "number", "minimum": 0, "maximum": 1}
NETWORK = {"type": "string", "pattern": f"^{NETWORK_PATTERN}$"}  # its name
# What uvicorn says of a head that is no HTTP, or over 64 kB.
NOT_HTTP = {"text/plain": {"schema": {"type": "string"}}}

# Of requests with images. 503 comes with them, and has a form of its own in `openapi.py`.
REFUSALS = (400, 401, 403, 404, 408, 413, 415, 500, 502, 504)


def reference(name: str, kind: str = "schemas") -> dict[str, str]:
    """Return the reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def json_object(members: dict[str, Any], *optional: str) -> dict[str, Any]:
    """Return the schema of an object, which has all members but perhaps the optional ones."""
    return {
        "type": "object",
        "required": [name for name in members if name not in optional],
        "properties": members,
    }
