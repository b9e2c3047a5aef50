"""The dialect of DeepStack and CodeProject.AI, which recorders and home automation speak.

Their clients cannot be changed, so what they send is taken as they send it: a form with the file
`image`, `min_confidence` and `api_key`; other fields are ignored. An answer has the members that
either server documents. docs/api.md lists the clients that were read.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .._detections import Detections
from .._version import __version__
from . import request_images
from .problems import CLOSE, ProblemError
from .record import RequestRecord
from .service import Service, unless_hung_up

PREFIX = "/v1/"  # of all paths of the dialect

# What both servers take if a client names none, and what Frigate relies on.
DEFAULT_CONFIDENCE = 0.4

_CONFIDENCE = "min_confidence"
_THRESHOLD = "conf_thres"
_FORM = "multipart/form-data"


def routes() -> list[Route]:
    """Return the routes; any other path under the prefix is answered with 404."""
    found = [
        Route("/v1/vision/detection", _detection, methods=["POST"]),
        # Before the networks: one called `list` could not be asked.
        Route("/v1/vision/custom/list", _list, methods=["GET", "POST"]),
        Route("/v1/vision/custom/{model}", _detection, methods=["POST"]),
    ]
    probes = {"ping": {"success": True}, "updateavailable": update_available()}
    for name, members in probes.items():
        found.append(Route(f"/v1/status/{name}", JSONResponse(members), methods=["GET"]))
    return found


def error_response(problem: ProblemError, request_id: str) -> Response:
    """Return the answer that tells the problem; its id is in the header of every answer."""
    return JSONResponse(failure(problem), status_code=problem.status, headers=problem.headers)


async def _detection(request: Request) -> Response:
    started = time.perf_counter()
    service = Service.of(request)
    with service.reader(request) as reader:
        if (kind := request_images.media_type(request.headers)) != _FORM:
            raise ProblemError(
                HTTPStatus.BAD_REQUEST,
                f"the body is {kind[:60]!a}; allowed: {_FORM} with the file image",
                CLOSE,
            )
        form = await request_images.read_form(request, reader)
        _check_key(request, form)
        texts = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        given = parameters(texts, request.query_params.multi_items())
        network = service.model(request, request.path_params.get("model"))
        images = await request_images.form_images(form)
        if len(images) != 1:
            raise ProblemError(
                HTTPStatus.BAD_REQUEST, f"the form has {len(images)} files image; allowed: 1"
            )
        RequestRecord.of(request.scope).facts["images"] = 1
        answered = await unless_hung_up(request, service.ask(request, images[0], network, given))
    seconds = time.perf_counter() - started
    return JSONResponse(
        answer(
            answered.detections,
            network=network,
            inference_seconds=answered.milliseconds / 1000,
            seconds=seconds,
        )
    )


async def _list(request: Request) -> Response:
    service, form = Service.of(request), FormData()
    if service.settings.keys and request_images.media_type(request.headers) == _FORM:
        with service.reader(request) as reader:  # there may be a key in it
            form = await request_images.read_form(request, reader)
    _check_key(request, form)
    names = [model.name for model in await service.models(request)]
    return JSONResponse(model_list(names, service.settings.model))


def _check_key(request: Request, form: FormData) -> None:
    """Look for the key in the form, if the request came with none in a header.

    Raises:
        ProblemError: the key is missing or not known.
    """
    record = RequestRecord.of(request.scope)
    if not record.caller:
        key = form.get("api_key")
        keys = Service.of(request).keys
        record.caller = keys.caller(key if isinstance(key, str) else None, "the field api_key")


def parameters(form: Iterable[tuple[str, str]], query: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the parameters of the endpoint for a request in this dialect.

    Args:
        form: the form's text fields; only `min_confidence` counts. Empty is the same as absent.
        query: the address's; `min_confidence`, or parameters under the endpoint's names, for a
            client in which only the address can be set.

    Raises:
        ProblemError: `min_confidence` is no number from 0 to 1, or a parameter is given twice.
    """
    given: dict[str, Any] = {}
    fields = [(name, text) for name, text in form if name == _CONFIDENCE]
    for name, text in [*fields, *query]:
        if name == _CONFIDENCE and not text:
            continue
        known = _THRESHOLD if name == _CONFIDENCE else name
        if known in given:
            shown = f"{_CONFIDENCE} or {known}" if known == _THRESHOLD else ascii(known[:60])
            raise ProblemError(HTTPStatus.BAD_REQUEST, f"{shown} is given twice; allowed: once")
        given[known] = _confidence(text) if name == _CONFIDENCE else text
    return {_THRESHOLD: DEFAULT_CONFIDENCE, **given}


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        shown = ascii(text) if len(text) <= 40 else f"{text[:40]!a}..."
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, f"{_CONFIDENCE} is {shown}; allowed: a number from 0 to 1"
        )
    return value


def answer(
    found: Detections, *, network: str, inference_seconds: float, seconds: float
) -> dict[str, Any]:
    """Return the detections as both DeepStack's and CodeProject.AI's clients read them.

    Args:
        network: the name of the network that was asked.
        inference_seconds: until the server had answered.
        seconds: since the request came.

    Returns:
        The members of the answer; `predictions` are best first, with whole pixels of the image as
        it is displayed. Frigate stops reading at the first one that is not confident enough.
    """
    labels = list(dict.fromkeys(found.labels))
    numbers = found.to_dict()
    inference = _milliseconds(inference_seconds)
    return {
        "success": True,
        "message": f"Found {', '.join(labels)}" if labels else "No objects found",
        "predictions": [
            {
                "label": label,
                "confidence": score,
                **dict(zip(("x_min", "y_min", "x_max", "y_max"), map(round, box))),
            }
            for label, score, box in zip(found.labels, numbers["scores"], numbers["boxes"])
        ],
        "count": len(found),
        **_module(network, "detect"),
        "inferenceMs": inference,
        "processMs": inference,
        "analysisRoundTripMs": _milliseconds(seconds),
    }


def model_list(networks: Sequence[str], default: str) -> dict[str, Any]:
    """Return the answer to CodeProject.AI's `/v1/vision/custom/list`.

    Args:
        networks: names that may follow `/v1/vision/custom/`.
        default: the network that `/v1/vision/detection` asks.
    """
    return {
        "success": True,
        "models": list(networks),
        **_module(default, "list-custom"),
        "analysisRoundTripMs": 0,
    }


def failure(problem: ProblemError) -> dict[str, Any]:
    """Return the error as both servers write it. It has no `predictions`, as theirs have none."""
    return {"success": False, "error": str(problem), "code": problem.status.value}


def update_available() -> dict[str, Any]:
    """Return the answer to `/v1/status/updateavailable`, which Blue Iris asks as a probe."""
    major, minor, patch = map(int, re.findall(r"\d+", __version__)[:3])
    version = {
        "major": major,
        "minor": minor,
        "patch": patch,
        "preRelease": "",
        "securityUpdate": False,
        "build": 0,
        "file": "",
        "releaseNotes": "",
    }
    return {
        "success": True,
        "message": "You have the latest",
        "version": version,
        "current": version,
        "latest": version,
        "updateAvailable": False,
    }


def _module(network: str, command: str) -> dict[str, Any]:
    """Return the members that say what answered.

    The service does not know what Triton runs on; `canUseGPU` is there for clients that insist on
    each member.
    """
    return {
        "code": HTTPStatus.OK.value,
        "command": command,
        "moduleId": network,
        "moduleName": "YOLOv5 on Triton",
        "executionProvider": "Triton",
        "canUseGPU": False,
    }


def _milliseconds(seconds: float) -> int:
    """Return whole milliseconds, at least one: 0 would say that nothing was done."""
    return max(1, round(1000 * seconds))
