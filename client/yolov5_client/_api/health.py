"""Probes, metrics, and the list of networks."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from .. import YoloClientError
from .._contract import endpoint_for
from .problems import RETRY_AFTER, ProblemError
from .service import Service

_READY_SECONDS = 5.0


async def live(request: Request) -> Response:
    """Say that the service itself runs."""
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    """Say whether an image would be answered now.

    Raises:
        ProblemError: it would not.
    """
    service = Service.of(request)
    endpoint = endpoint_for(service.settings.model)
    reason = "the server did not answer in time"
    with contextlib.suppress(asyncio.TimeoutError):
        try:
            status = await asyncio.wait_for(service.client.status(), _READY_SECONDS)
            if status.ready and status.models[endpoint]:
                reason = await _reason(service)
            else:
                reason = f"the server has no endpoint {endpoint} that is ready"
        except YoloClientError as error:
            reason = str(error)
    if reason:
        raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, reason, RETRY_AFTER)
    return JSONResponse({"ready": True})


async def metrics(request: Request) -> Response:
    """Answer in the text format of Prometheus."""
    registry = Service.of(request).metrics.registry
    return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


async def models(request: Request) -> Response:
    """List the networks that the caller may ask."""
    service = Service.of(request)
    return JSONResponse(
        {
            "default": service.settings.model,
            "models": [
                {
                    "name": model.name,
                    "version": None if model.version is None else str(model.version),
                    "precision": model.precision,
                    "ready": model.ready,
                }
                for model in await service.models(request)
            ],
        }
    )


async def _reason(service: Service) -> str:
    """Return why the default network does not answer; Triton does not see a step that is dead."""
    for model in await service.served.all():
        if model.name == service.settings.model and not model.ready:
            return model.reason or "the network is not ready"
    return ""
