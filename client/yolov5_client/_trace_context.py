"""The trace of the caller's own code, sent along so that the server's spans become a part of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def trace_headers() -> Mapping[str, str]:
    """W3C headers for the span that is current in this thread or task; none without a span.

    OpenTelemetry is no dependency: a process that has not imported it has no span. A span that is
    not sampled is not told, since Triton 2.51 would trace the request all the same.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return {}
    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return {}
    headers = {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-01"}
    if state := context.trace_state.to_header():
        headers["tracestate"] = state
    return headers
