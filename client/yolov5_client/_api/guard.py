"""Who may ask: keys, a gateway's word, and no pages of other sites."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .problems import CLOSE, ProblemError
from .record import RequestRecord
from .settings import ApiSettings

ENDPOINTS = "X-Yolov5-Endpoints"  # set by the gateway: those that the caller may ask

# Without a key: probes, metrics, and what a browser loads before it can send one.
PUBLIC = ("/", "/docs", "/openapi.json", "/live", "/ready", "/metrics")
# DeepStack's clients send their key as a field of the form; the handler looks for it there.
_KEY_IN_FORM = "/v1/"


class Keys:
    """The keys of an operator's file, by their digests, so that none can be guessed by timing.

    Args:
        names: name of the caller, by key. Without any, everybody may ask.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = {_digest(key): name for key, name in names.items()}

    def caller(self, key: str | None, place: str = "the header X-Api-Key") -> str:
        """Return the name of the caller with this key.

        Args:
            place: where it is looked for, for the message.

        Raises:
            ProblemError: the key is missing or not known.
        """
        if not self._names:
            return ""
        name = self._names.get(_digest(key)) if key else None
        if name is None:
            raise ProblemError(
                HTTPStatus.UNAUTHORIZED,
                f"no API key, or one that is not known; allowed: one in {place}",
                {"WWW-Authenticate": 'ApiKey realm="yolov5"', **CLOSE},
            )
        return name


class Guard:
    """ASGI middleware: refuses requests that must not reach their handler."""

    def __init__(self, app: ASGIApp, settings: ApiSettings, keys: Keys) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers, record = Headers(scope=scope), RequestRecord.of(scope)
            self._check_host(headers)
            if scope["path"] not in PUBLIC:
                self._check_site(headers)
                key = key_in(headers)
                if key is not None or not scope["path"].startswith(_KEY_IN_FORM):
                    record.caller = self._keys.caller(key)
                if self._settings.gateway:
                    record.endpoints = _endpoints(headers)
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        allowed = self._settings.local_hosts
        host = re.sub(r":\d+\Z", "", headers.get("Host", "")).lower()
        if allowed is not None and host not in allowed and not self._settings.gateway:
            raise ProblemError(
                HTTPStatus.FORBIDDEN,
                "the header Host names another machine; allowed: " + ", ".join(sorted(allowed)),
                CLOSE,
            )

    def _check_site(self, headers: Headers) -> None:
        """Check that the request comes from no page of another site; a program says nothing."""
        host, origin = headers.get("Host", ""), headers.get("Origin")
        if origin in self._settings.origins:
            return
        site = headers.get("Sec-Fetch-Site", "none")
        own = (None, f"http://{host}", f"https://{host}")
        if origin not in own or site not in ("none", "same-origin"):
            raise ProblemError(
                HTTPStatus.FORBIDDEN,
                "the request comes from a page of another site; allowed: this service's own page,"
                " and the origins that its operator names with --allow-origin",
                CLOSE,
            )


def key_in(headers: Headers) -> str | None:
    """Return the key that a request came with, if there is one."""
    if (key := headers.get("X-Api-Key")) is not None:
        return key
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _endpoints(headers: Headers) -> frozenset[str]:
    listed = headers.get(ENDPOINTS)
    if listed is None:
        raise ProblemError(
            HTTPStatus.FORBIDDEN, "the request did not come through the gateway", CLOSE
        )
    return frozenset(name.strip() for name in listed.split(","))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
