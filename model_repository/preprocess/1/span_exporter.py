"""Sends spans to a collector by OTLP over HTTP, as Triton itself does, to the same address.

Imported only if traces are on.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.re import parse_env_headers

SERVICE = "yolov5-triton"
_SECONDS = 2.0  # for the collector to take a batch; the step's end waits for the last one
_PAUSE = 5.0  # seconds after a failure, in which the end need not wait for many batches


class SpanRecorder:
    """Makes spans of finished work, and sends them from a thread of its own.

    Args:
        step: name of the model, which becomes the scope of its spans.
        url: of the collector, with its path.
        log: called with a line for the log.
        environment: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and OTEL_EXPORTER_OTLP_HEADERS
            have their usual meaning.
    """

    def __init__(
        self, step: str, url: str, log: Callable[[str], None], environment: Mapping[str, str]
    ) -> None:
        service = environment.get("OTEL_SERVICE_NAME") or SERVICE
        # Triton has already decided that a request is traced.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource.create({SERVICE_NAME: service}),
            shutdown_on_exit=False,
        )
        headers = parse_env_headers(environment.get("OTEL_EXPORTER_OTLP_HEADERS", ""), liberal=True)
        self._provider.add_span_processor(BatchSpanProcessor(OtlpExporter(url, headers, log)))
        self._tracer = self._provider.get_tracer(step)
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self,
        carrier: Mapping[str, str],
        name: str,
        started: float,
        ended: float,
        facts: Mapping[str, Any],
    ) -> None:
        """Add a span.

        Args:
            carrier: `traceparent` of the span above.
            started, ended: by `time.monotonic()`.
        """
        parent = self._propagator.extract(carrier)
        offset = time.time_ns() - time.monotonic_ns()  # taken anew: the clock may be set
        first, last = (offset + round(1e9 * moment) for moment in (started, ended))
        span = self._tracer.start_span(name, parent, attributes=dict(facts), start_time=first)
        span.end(last)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class OtlpExporter(SpanExporter):
    """Sends spans. Those that the collector does not take are lost; its first failure is logged.

    Args:
        headers: for the collector, such as its key.
    """

    def __init__(self, url: str, headers: Mapping[str, str], log: Callable[[str], None]) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/x-protobuf", **headers}
        self._log = log
        self._is_failing = False
        self._retry_at = 0.0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if time.monotonic() < self._retry_at:
            return SpanExportResult.FAILURE
        body = encode_spans(spans).SerializeToString()
        request = urllib.request.Request(self._url, body, self._headers)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                answer.read(1 << 16)
        except (OSError, HTTPException) as error:
            if not self._is_failing:
                self._log(f"spans are lost, {self._url} does not take them: {error}")
            self._is_failing = True
            self._retry_at = time.monotonic() + _PAUSE
            return SpanExportResult.FAILURE
        self._is_failing = False
        return SpanExportResult.SUCCESS
