"""Spans of a step, below Triton's own span for it: what the time of a traced request went to.

Triton tells a step the trace context of a request that is traced, and only of such a request. The
variable YOLOV5_TRACE, which the launcher sets, holds the collector's address. Without it nothing of
OpenTelemetry is imported, and Triton is not asked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from span_exporter import SpanRecorder

VARIABLE = "YOLOV5_TRACE"
_PARAMETER = "traceparent"
# In the JSON that Triton writes of the parameters.
_SAMPLED = re.compile(r'"traceparent":\s*"(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf])"')
_MISSING = "the steps send no spans: the package opentelemetry-{} is not installed"


class RequestTrace:
    """The trace of one request; this one is of a request that is not traced."""

    traced = False

    def record(self, name: str, started: float, ended: float | None = None, **facts: Any) -> None:
        """Add a span.

        Args:
            started, ended: by `time.monotonic()`; `ended` is now unless given.
            facts: its attributes: numbers, text or bool.
        """


NOT_TRACED = RequestTrace()


class _TracedRequest(RequestTrace):
    traced = True

    def __init__(self, recorder: SpanRecorder, carrier: Mapping[str, str]) -> None:
        self._recorder = recorder
        self._carrier = carrier

    def record(self, name: str, started: float, ended: float | None = None, **facts: Any) -> None:
        until = monotonic() if ended is None else ended
        self._recorder.record(self._carrier, name, started, until, facts)


class Tracer:
    """Finds the trace of a request.

    Args:
        recorder: takes the spans; without one no request is traced.
    """

    def __init__(self, recorder: SpanRecorder | None = None) -> None:
        self._recorder = recorder

    def trace_of(self, request: Any) -> RequestTrace:
        """The trace of one of Triton's requests."""
        if self._recorder is None:
            return NOT_TRACED
        context = request.trace().get_context()  # JSON such as {"traceparent": "00-..."}, or None
        carrier = json.loads(context) if context else _forwarded(request)
        return _TracedRequest(self._recorder, carrier) if carrier else NOT_TRACED

    def close(self) -> None:
        """Send what is left."""
        if self._recorder is not None:
            self._recorder.close()


def _forwarded(request: Any) -> dict[str, str] | None:
    """The header of a gRPC request, if the caller's span is sampled.

    Triton 2.51 overlooks the header of about one such request in twelve, and then has no span of
    its own; those of the steps lie directly below the caller's.
    """
    try:
        text = request.parameters()
    except UnicodeDecodeError:
        return None  # the parameters are refused
    if _PARAMETER not in text:
        return None
    found = _SAMPLED.search(text)
    return {_PARAMETER: found[1]} if found else None


def open_tracer(
    step: str, log: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> Tracer:
    """Make the tracer of a step.

    Args:
        step: name of the model.
        log: called with a line for the log if spans cannot be sent.
    """
    url = environment.get(VARIABLE)
    if not url:
        return Tracer()
    try:
        from span_exporter import SpanRecorder
    except ImportError as error:
        package = "exporter-otlp-proto-common" if "exporter" in str(error.name) else "sdk"
        log(_MISSING.format(package))
        return Tracer()
    return Tracer(SpanRecorder(step, url, log, environment))
