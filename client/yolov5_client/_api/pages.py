"""What a browser loads: the page to try images on, the documentation, and the OpenAPI document."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .._contract import NETWORK
from .docs_page import render
from .openapi import document
from .settings import ApiSettings

# Where the page has the name of the network that it asks at first.
_DEFAULT = 'data-model="%s"'


def routes(settings: ApiSettings) -> list[BaseRoute]:
    """Make the routes. The pages are prepared once."""
    page = files(__package__).joinpath("page.html").read_text("utf-8")
    page = page.replace(_DEFAULT % NETWORK, _DEFAULT % settings.model)
    described = document()
    docs = render(described)

    async def openapi(request: Request) -> Response:
        return JSONResponse(described)

    return [
        _page("/", page),
        _page("/docs", docs),
        Route("/openapi.json", openapi),
    ]


def _page(path: str, html: str) -> Route:
    headers = {
        "Content-Security-Policy": _content_security_policy(html),
        "Cache-Control": "no-store",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def send(request: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    return Route(path, send)


def _content_security_policy(html: str) -> str:
    """Return the Content-Security-Policy, which allows only the page's own script and style."""

    def sources(tag: str) -> str:
        found = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = (hashlib.sha256(text.encode()).digest() for text in found)
        hashes = " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
        return hashes or "'none'"

    return (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')};"
        " img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    )
