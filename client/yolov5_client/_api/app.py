"""The service as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import deepstack, health, pages
from .detect import detect, detect_jpg
from .guard import Guard, Keys
from .metrics import Metrics
from .observe import ERROR_LOG, REQUEST_ID, Observe
from .problems import ProblemError
from .service import Service
from .settings import ApiSettings

_ROUTES = "POST /detect, /detect.jpg, /v1/vision/detection; GET /, /docs, /openapi.json, /models"


def create_app(settings: ApiSettings) -> Starlette:
    """Put the service together. It opens no connection before the first request."""
    metrics, keys = Metrics(), Keys(settings.keys)
    traces = _Traces(settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.service = Service(settings, metrics, keys)
        try:
            yield
        finally:
            await app.state.service.client.close()
            traces.close()

    layers = [
        Middleware(Observe, metrics, {deepstack.PREFIX: deepstack.error_response}),
        Middleware(Guard, settings, keys),
    ]
    if settings.origins:
        # The outermost: `Observe` answers errors, which these pages should be able to read, too.
        layers.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=sorted(settings.origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=[REQUEST_ID, "Retry-After"],
            ),
        )
    layers[:0] = traces.layers
    app = Starlette(
        routes=[
            Route("/detect", detect, methods=["POST"]),
            Route("/detect.jpg", detect_jpg, methods=["POST"]),
            Route("/models", health.models),
            Route("/live", health.live),
            Route("/ready", health.ready),
            Route("/metrics", health.metrics),
            *deepstack.routes(),
            *pages.routes(settings),
        ],
        middleware=layers,
        exception_handlers={HTTPException: _no_route},
        lifespan=lifespan,
    )
    # A path with a slash too many would be redirected to the host that the caller names in Host,
    # over plain HTTP, and curl would print nothing.
    app.router.redirect_slashes = False
    return app


class _Traces:
    """What traces requests; nothing of OpenTelemetry is imported without a collector."""

    def __init__(self, settings: ApiSettings) -> None:
        self.layers: list[Middleware] = []
        self.close: Callable[[], None] = lambda: None
        if settings.trace:
            from .otlp import make_provider
            from .tracing import Trace

            provider = make_provider(settings.trace, settings.trace_ratio, ERROR_LOG.warning)
            self.layers = [Middleware(Trace, provider)]
            self.close = provider.shutdown


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    sentence = f"no such path; allowed: {_ROUTES}"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        sentence = (
            f"{request.url.path} is not asked for with {request.method}; allowed: {allowed}, as"
            " /docs says"
        )
    raise ProblemError(status, sentence, error.headers)
