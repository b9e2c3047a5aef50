"""A collector for tests: takes spans by OTLP over HTTP, as protobuf and as JSON, and keeps them."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support import wait_until

_IDS = ("traceId", "spanId", "parentSpanId")


@dataclass(frozen=True)
class Span:
    """A span.

    Attributes:
        parent: id of the span above; empty without one.
        started, ended: in nanoseconds since 1970.
    """

    trace: str
    id: str
    parent: str
    service: str
    scope: str
    name: str
    started: int
    ended: int
    facts: dict[str, Any]

    @property
    def title(self) -> str:
        """The scope and the name; the name alone for Triton's own spans."""
        return self.name if self.scope == "triton-server" else f"{self.scope}: {self.name}"


@dataclass
class Collector:
    """What has been received.

    Attributes:
        address: for `--trace`.
        close: ends it, so that nobody listens any more.
        paths: of the requests.
        headers: of each request, with names in lower case.
    """

    address: str
    close: Callable[[], None]
    paths: set[str] = field(default_factory=set)
    headers: list[dict[str, str]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def trace(self, trace_id: str) -> list[Span]:
        """The spans so far of a trace, by their start."""
        found = [span for span in self.spans if span.trace == trace_id]
        return sorted(found, key=lambda span: (span.started, -span.ended))

    def wait_for(self, trace_id: str, titles: set[str], timeout: float = 20) -> list[Span]:
        """Wait until a trace has spans with these titles.

        Raises:
            AssertionError: it does not get them in time.
        """

        def has_all() -> bool:
            return titles <= {span.title for span in self.trace(trace_id)}

        wait_until(has_all, timeout)
        return self.trace(trace_id)


def draw(spans: Sequence[Span]) -> str:
    """The tree of a trace as text: titles, when each span began, and how long it took."""
    first = min(span.started for span in spans)
    known = {span.id for span in spans}
    lines: list[str] = []

    def add(parents: set[str], depth: int) -> None:
        for span in spans:
            if span.parent in parents:
                title = "  " * depth + span.title
                begins, takes = (
                    nanoseconds / 1e6
                    for nanoseconds in (span.started - first, span.ended - span.started)
                )
                lines.append(f"{title:<36} at {begins:7.2f} ms, {takes:7.2f} ms  [{span.service}]")
                add({span.id}, depth + 1)

    add({span.parent for span in spans} - known, 0)
    return "\n".join(lines)


@contextmanager
def running_collector() -> Iterator[Collector]:
    """Listen on a free port until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    collector = Collector(f"http://127.0.0.1:{server.server_port}", close)
    server.collector = collector  # type: ignore[attr-defined]
    thread.start()
    try:
        yield collector
    finally:
        close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        collector: Collector = self.server.collector  # type: ignore[attr-defined]
        collector.paths.add(self.path)
        collector.headers.append({name.lower(): one for name, one in self.headers.items()})
        if self.headers["Content-Type"] == "application/json":
            message = _from_json(json.loads(body))
        else:
            message = ExportTraceServiceRequest.FromString(body)
        collector.spans += _spans(message)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def _from_json(members: Any) -> ExportTraceServiceRequest:
    """OTLP writes ids in hexadecimal digits where protobuf's own JSON has base64."""

    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [*map(convert, value)]
        if isinstance(value, dict):
            return {
                key: b64encode(bytes.fromhex(one)).decode() if key in _IDS else convert(one)
                for key, one in value.items()
            }
        return value

    return json_format.ParseDict(
        convert(members), ExportTraceServiceRequest(), ignore_unknown_fields=True
    )


def _spans(message: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in message.resource_spans:
        facts = _facts(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    service=str(facts.get("service.name")),
                    scope=scope.scope.name,
                    name=span.name,
                    started=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                    facts=_facts(span.attributes),
                )


def _facts(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
