"""`POST /detect`: images in, a list of objects for each out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from .. import Detections
from . import problems, request_images
from .drawing import draw_jpeg
from .limits import BodyReader
from .problems import ProblemError
from .record import RequestRecord
from .request_images import ImageRequest
from .service import Answer, Service, unless_hung_up
from .url_images import fetch

T = TypeVar("T")

NDJSON = "application/x-ndjson"
JPEG = "image/jpeg"

_PIECE = 256 << 10  # bytes


async def detect(request: Request) -> Response:
    """Answer in the form that the header Accept names: JSON, NDJSON, or a drawn picture."""
    accepted = [
        one.partition(";")[0].strip().lower()
        for one in request.headers.get("Accept", "").split(",")
    ]
    form = next((one for one in accepted if one in ("application/json", NDJSON, JPEG)), "")
    return await _detect(request, form)


async def detect_jpg(request: Request) -> Response:
    """Answer with the drawn picture, for callers that cannot set the header Accept."""
    return await _detect(request, JPEG)


def image_members(found: Detections) -> dict[str, Any]:
    """Return the detections of one image for `to_json`: a list of objects, best first.

    Boxes are in pixels of the image as it is displayed.
    """
    height, width = found.image_size
    rows = zip(found.labels, found.classes.tolist(), found.scores, found.boxes)
    return {
        "width": width,
        "height": height,
        "detections": [
            {
                "label": label,
                "class_id": class_id,
                "score": score,
                "box": {"x1": x1, "y1": y1, "x2": x2, "y2": y2},
            }
            for label, class_id, score, (x1, y1, x2, y2) in rows
        ],
    }


def to_json(members: dict[str, Any]) -> bytes:
    """Write an answer. A float32 becomes the shortest decimal that converts back to it."""
    return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY)


async def _detect(request: Request, form: str) -> Response:
    service = Service.of(request)
    with ExitStack() as held:
        reader = held.enter_context(service.reader(request))
        asked = await request_images.read(request, reader)
        model = service.model(request, asked.model)
        RequestRecord.of(request.scope).facts["images"] = len(asked.images) + len(asked.urls)
        question = _Question(request, service, reader, asked, model)
        if form == NDJSON:
            return _LinesResponse(question, held.pop_all())
        if form == JPEG:
            drawn = await unless_hung_up(request, _picture(question))
            reader.give_back()
            reader.take(len(drawn))
            headers = {"Content-Length": str(len(drawn))}
            return _HeldResponse(held.pop_all(), _pieces(drawn), headers, JPEG)
        return await unless_hung_up(request, _one_answer(question))


@dataclass(frozen=True)
class _Question:
    """One request with all that is needed to answer it."""

    request: Request
    service: Service
    reader: BodyReader
    asked: ImageRequest
    model: str

    async def images(self) -> list[bytes]:
        """Return the images; those of addresses are fetched."""
        return self.asked.images or await _all([self.fetch(url) for url in self.asked.urls])

    async def fetch(self, url: str) -> bytes:
        return await fetch(self.service.settings, url, self.reader.take)

    async def ask(self, image: bytes, number: int = 1, of: int = 1) -> Answer:
        """Ask about one image; an error names it by its place in the request."""
        try:
            return await self.service.ask(self.request, image, self.model, self.asked.parameters)
        except ProblemError as problem:
            sentence = str(problem).replace("image 1 of 1: ", f"image {number} of {of}: ", 1)
            raise ProblemError(problem.status, sentence, problem.headers) from problem

    async def version(self) -> str | None:
        return await self.service.served.version(self.model)


class _HeldResponse(StreamingResponse):
    """An answer that holds the memory of its request until it has been sent."""

    def __init__(
        self,
        held: ExitStack,
        parts: AsyncIterator[bytes],
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(parts, headers=headers, media_type=media_type)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self.end()

    async def end(self) -> None:
        """End what still works for the answer."""


class _LinesResponse(_HeldResponse):
    """An answer in lines, each of which is sent as soon as it is there."""

    def __init__(self, question: _Question, held: ExitStack) -> None:
        self._tasks: list[asyncio.Future[bytes]] = []
        # Otherwise nginx would collect the lines before it passes any of them on.
        headers = {"X-Accel-Buffering": "no"}
        super().__init__(held, _lines(question, self._tasks), headers, NDJSON)

    async def end(self) -> None:
        # Not in the generator: Starlette cancels that again and again until it returns.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _one_answer(question: _Question) -> Response:
    started = time.perf_counter()
    images = await question.images()
    count = len(images)
    answers = await _all([question.ask(image, i, count) for i, image in enumerate(images, 1)])
    members = {
        "model": question.model,
        "version": await question.version(),
        "milliseconds": round(1000 * (time.perf_counter() - started), 1),
        "images": [image_members(answer.detections) for answer in answers],
    }
    return Response(to_json(members), media_type="application/json")


async def _picture(question: _Question) -> bytes:
    images = await question.images()
    if len(images) != 1:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST,
            f"there are {len(images)} images; allowed: 1, if the answer is a picture",
        )
    answer = await question.ask(images[0])
    return await _draw(question.service, images[0], answer.detections)


async def _draw(service: Service, image: bytes, found: Detections) -> bytes:
    """Draw one picture at a time. A thread goes on, with its memory, if the caller hangs up."""
    async with service.drawing:
        drawing = asyncio.ensure_future(asyncio.to_thread(draw_jpeg, image, found))
        try:
            return await asyncio.shield(drawing)
        finally:
            await asyncio.wait([drawing])


async def _pieces(drawn: bytes) -> AsyncIterator[bytes]:
    """Yield what the connection takes before it waits for its reader.

    A whole picture would lie in the connection's own buffer, which has no limit.
    """
    for start in range(0, len(drawn), _PIECE):
        yield drawn[start : start + _PIECE]


async def _lines(question: _Question, tasks: list[asyncio.Future[bytes]]) -> AsyncIterator[bytes]:
    """Yield a line of JSON for each image, as soon as it is answered.

    Args:
        tasks: gets those that make the lines; the caller ends them.
    """
    version = await question.version()
    request_id = RequestRecord.of(question.request.scope).request_id

    async def line(index: int, image: bytes | str) -> bytes:
        members: dict[str, Any] = {"index": index, "model": question.model, "version": version}
        try:
            data = await question.fetch(image) if isinstance(image, str) else image
            answer = await question.ask(data, index + 1, len(tasks))
            members["milliseconds"] = answer.milliseconds
            members |= image_members(answer.detections)
        except ProblemError as problem:
            members["problem"] = problems.details(problem, request_id)
        return to_json(members) + b"\n"

    everything: list[bytes | str] = [*question.asked.images, *question.asked.urls]
    tasks += [asyncio.ensure_future(line(index, one)) for index, one in enumerate(everything)]
    for task in asyncio.as_completed(tasks):
        yield await task


async def _all(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Wait for all; the first error cancels the others."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return [*await asyncio.gather(*tasks)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
