"""What the handlers share: the client, the limits, the metrics, and how an image is asked about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from .. import AsyncClient, Detections, YoloClientError
from .._contract import check_network, endpoint_for
from .._served import ServedModel
from .cancelling import Cancelling
from .guard import Keys
from .limits import BodyReader, ByteBudget
from .metrics import Metrics
from .problems import RETRY_AFTER, ProblemError, from_client_error
from .record import RequestRecord
from .served import ServedModels
from .settings import ApiSettings

T = TypeVar("T")

# Arguments of `AsyncClient.detect`; callers know no parameters of these names.
_ARGUMENTS = frozenset({"self", "image", "model", "request_id"})


@dataclass(frozen=True)
class Answer:
    """The answer about one image.

    Attributes:
        milliseconds: that the server took, with the way to it.
    """

    detections: Detections
    milliseconds: float


class Service:
    """Everything that lives as long as the service. It must be made inside the event loop."""

    def __init__(self, settings: ApiSettings, metrics: Metrics, keys: Keys) -> None:
        self.settings = settings
        self.metrics = metrics
        self.keys = keys
        self.served = ServedModels(settings.health, settings.model)
        self.drawing = asyncio.Semaphore(1)  # a picture in memory takes far more than its file
        self._budget = ByteBudget(settings.max_buffered_bytes, metrics.buffered)
        self._asking = 0
        self.client = AsyncClient(
            settings.server,
            model=settings.model,
            timeout=settings.timeout,
            in_flight=settings.in_flight,
            headers=settings.headers,
            tls=settings.tls,
        )
        # Behind a gateway callers are strangers. Images of cancelled calls stay in Triton's queue,
        # where no limit would count them.
        self._cancelling = Cancelling(self.client, allowed=not settings.gateway)

    @classmethod
    def of(cls, request: Request) -> Service:
        """Return the service that has the request."""
        service: Service = request.app.state.service
        return service

    def reader(self, request: Request) -> BodyReader:
        """Return the reader for the body of a request.

        Raises:
            ProblemError: the body is too large.
        """
        declared = request.headers.get("Content-Length")
        return BodyReader(self._budget, declared, self.settings.upload_timeout)

    def model(self, request: Request, name: Any) -> str:
        """Return the network that a request is for.

        Args:
            name: as the caller gave it; None asks the default network.

        Raises:
            ProblemError: no network can have that name, or the caller has no right to it.
        """
        try:
            model = check_network(self.settings.model if name is None else name)
        except ValueError as error:
            raise ProblemError(HTTPStatus.BAD_REQUEST, str(error).rstrip(".")) from None
        record = RequestRecord.of(request.scope)
        if not record.may_ask(endpoint_for(model)):
            raise ProblemError(
                HTTPStatus.FORBIDDEN,
                "the caller has no right to this endpoint; allowed: "
                + (", ".join(sorted(record.endpoints or ())) or "none"),
            )
        record.facts["model"] = model
        return model

    async def models(self, request: Request) -> list[ServedModel]:
        """Return the networks that the caller may ask."""
        record = RequestRecord.of(request.scope)
        return [model for model in await self.served.all() if record.may_ask(model.endpoint)]

    async def ask(
        self, request: Request, image: bytes, model: str, parameters: Mapping[str, Any]
    ) -> Answer:
        """Ask the server about one image.

        Raises:
            ProblemError: it gives no detections.
        """
        if taken := _ARGUMENTS & parameters.keys():
            raise ProblemError(HTTPStatus.BAD_REQUEST, f"parameter {min(taken)!r} is unknown")
        if self._asking >= self.settings.in_flight:
            raise ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"saturated: {self._asking} images are in progress; try again later",
                RETRY_AFTER,
            )
        self._asking += 1
        started = time.perf_counter()
        try:
            request_id = RequestRecord.of(request.scope).request_id
            call = self._counted(
                self.client.detect(image, model=model, request_id=request_id, **parameters)
            )
            found = await (call if self._cancelling.is_safe() else _to_its_end(call))
        except YoloClientError as error:
            raise from_client_error(error) from error
        return Answer(found, round(1000 * (time.perf_counter() - started), 1))

    async def _counted(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return await call
        finally:
            self._asking -= 1


async def _to_its_end(call: Coroutine[Any, Any, T]) -> T:
    """Wait for a call, also if the waiting is cancelled."""
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()  # if this was cancelled once more, at the end of the service
            await asyncio.gather(task, return_exceptions=True)
        raise


async def unless_hung_up(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, or cancel it as soon as the caller hangs up. The body must have been read.

    Raises:
        ClientDisconnect: the caller hung up.
    """
    task = asyncio.current_task()
    assert task is not None
    watcher = asyncio.ensure_future(request.receive())  # the next message is the hanging up

    is_done = False

    def hang_up(watcher: asyncio.Future[Any]) -> None:
        # Both may come in the same moment; later, the cancelling would hit what answers.
        if not is_done and not watcher.cancelled():
            task.cancel()

    watcher.add_done_callback(hang_up)
    try:
        return await work
    except asyncio.CancelledError:
        if watcher.done() and not watcher.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        is_done = True
        watcher.cancel()
