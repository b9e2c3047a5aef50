"""A span for each request to the service; the client sends its context on to the server.

Imported only if traces are on.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .observe import QUIET, REQUEST_ID

_LARGEST = 512  # bytes of a header; the trace of a longer one is not continued


class Trace:
    """ASGI middleware, the outermost layer.

    Args:
        app: the layers within.
        provider: takes the spans.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer("api")
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        carrier = {
            name: headers[name]
            for name in ("traceparent", "tracestate")
            if len(headers.get(name, "")) in range(1, _LARGEST)
        }
        with self._tracer.start_as_current_span(
            scope["method"],
            self._propagator.extract(carrier),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": scope["method"]},
        ) as span:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _note(span, scope, message)
                await send(message)

            await self._app(scope, receive, send_and_note)


def _note(span: trace.Span, scope: Scope, message: Message) -> None:
    """Add what is known when the answer begins: the route, the status and the request's id."""
    if not span.is_recording():
        return
    route, status = getattr(scope.get("route"), "path", ""), message["status"]
    if route:  # a path that is no route could be anything
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if request_id := Headers(raw=message["headers"]).get(REQUEST_ID):
        span.set_attribute("yolov5.request_id", request_id)
    if status >= 500:
        span.set_status(trace.StatusCode.ERROR)
