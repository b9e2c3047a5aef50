"""Sends spans to a collector by OTLP over HTTP. Imported only if traces are on."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.util.re import parse_env_headers

SERVICE = "yolov5-api"
_PATH = "/v1/traces"  # of a collector, in the specification of OTLP
_SECONDS = 2.0  # for the collector to take a batch; the service's end waits for the last one
_PAUSE = 5.0  # seconds after a failure, in which the end need not wait for many batches


def make_provider(address: str, ratio: float, log: Callable[[str], None]) -> TracerProvider:
    """Make what samples spans and sends them.

    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and OTEL_EXPORTER_OTLP_HEADERS have their usual
    meaning.

    Args:
        address: of the collector; without a path it gets that of OTLP.
        ratio: share of the requests without a trace of their own that are sampled. A request with
            one is sampled if its caller's span is.
        log: called with a line for the log.
    """
    service = os.environ.get("OTEL_SERVICE_NAME") or SERVICE
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        resource=Resource.create({SERVICE_NAME: service}),
        shutdown_on_exit=False,
    )
    has_path = urlsplit(address).path.strip("/")
    url = address if has_path else address.rstrip("/") + _PATH
    provider.add_span_processor(BatchSpanProcessor(OtlpExporter(url, log)))
    return provider


class OtlpExporter(SpanExporter):
    """Sends spans. Those that the collector does not take are lost; its first failure is logged.

    Args:
        url: of the collector, with its path.
    """

    def __init__(self, url: str, log: Callable[[str], None]) -> None:
        headers = os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "")
        self._url = url
        self._headers = {
            "Content-Type": "application/x-protobuf",
            **parse_env_headers(headers, liberal=True),
        }
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
