"""What is known of a request while it is answered, and is logged at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

_KEY = "yolov5_client.record"


@dataclass
class RequestRecord:
    """The record of one request.

    Attributes:
        request_id: the caller's, or one made here; Triton gets it as the id of its requests.
        caller: name of the key that the request came with; empty without keys.
        endpoints: the only ones that the caller may ask; None allows all.
        facts: further members of the line in the access log.
    """

    request_id: str
    caller: str = ""
    endpoints: frozenset[str] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def attach(self, scope: Scope) -> None:
        """Let the request's handler find the record."""
        scope[_KEY] = self

    def may_ask(self, endpoint: str) -> bool:
        """Whether the caller has a right to an endpoint."""
        return self.endpoints is None or endpoint in self.endpoints

    @classmethod
    def of(cls, scope: Scope) -> RequestRecord:
        """Return the record that was attached."""
        record: RequestRecord = scope[_KEY]
        return record
