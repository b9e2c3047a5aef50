"""Who may ask the service: no page of another site, and only by a name of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from yolov5_client import _cli
from yolov5_client._api.app import create_app
from yolov5_client._api.settings import ApiSettings

OTHER_SITE = "the request comes from a page of another site; allowed: this service's own page"


def ask(
    headers: Mapping[str, str], path: str = "/detect", method: str = "POST", **settings: Any
) -> httpx.Response:
    """Send a request to a service that has no server behind it; Host is 127.0.0.1:8080."""

    async def asking() -> httpx.Response:
        app = create_app(ApiSettings(server="127.0.0.1:9", **settings))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client,
        ):
            kind = {"Content-Type": "application/json"}
            return await client.request(method, path, headers={**kind, **headers}, content=b"{}")

    return asyncio.run(asking())


def passed(answer: httpx.Response) -> bool:
    """Whether a request reached its handler, which then misses the image."""
    return answer.status_code == 400 and answer.json()["detail"].startswith("there is no image")


REFUSED = {
    "other host": ({"Host": "rebound.example:8080"}, "the header Host names another machine"),
    "no host": ({"Host": ""}, "the header Host names another machine"),
    "begins like one": ({"Host": "127.0.0.1.example"}, "the header Host names another machine"),
    "other origin": ({"Origin": "http://evil.example"}, OTHER_SITE),
    "no origin": ({"Origin": "null"}, OTHER_SITE),
    "other port": ({"Origin": "http://127.0.0.1:1"}, OTHER_SITE),
    "other site": ({"Sec-Fetch-Site": "cross-site"}, OTHER_SITE),
    "same site": ({"Sec-Fetch-Site": "same-site"}, OTHER_SITE),
}


@pytest.mark.parametrize(("headers", "sentence"), REFUSED.values(), ids=REFUSED)
def test_request_from_another_site_is_refused_with_a_sentence(
    headers: dict[str, str], sentence: str
) -> None:
    assert passed(ask({}))
    answer = ask(headers)
    assert answer.status_code == 403
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["detail"].startswith(sentence)
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("host", ["localhost:8080", "LOCALHOST", "127.0.0.1", "[::1]:8080"])
def test_local_host_names_are_served(host: str) -> None:
    own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert passed(ask(own))


def test_any_host_name_is_served_when_other_machines_can_ask() -> None:
    assert passed(ask({"Host": "detect.example"}, host="0.0.0.0"))


def test_page_may_be_linked_to_from_elsewhere_but_not_under_another_name() -> None:
    linked = {"Sec-Fetch-Site": "cross-site"}
    assert ask(linked, "/?from=elsewhere", "GET").status_code == 200
    assert ask({"Host": "rebound.example"}, "/", "GET").status_code == 403


def test_page_of_a_site_that_the_operator_names_may_ask() -> None:
    site = "https://example.com"
    origins = frozenset({site})
    headers = {"Origin": site, "Sec-Fetch-Site": "cross-site"}
    answer = ask(headers, origins=origins)
    assert passed(answer)
    assert answer.headers["Access-Control-Allow-Origin"] == site
    preflight = {
        **headers,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-api-key",
    }
    allowed = ask(preflight, method="OPTIONS", origins=origins)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == site
    other = ask({**headers, "Origin": "https://example.org"}, origins=origins)
    assert other.status_code == 403
    assert "Access-Control-Allow-Origin" not in other.headers


def test_path_with_a_slash_too_many_is_not_redirected_to_the_host_that_the_caller_names() -> None:
    answer = ask({"Host": "example.com"}, "/detect/", host="0.0.0.0")
    assert (answer.status_code, "location" in answer.headers) == (404, False)
    assert answer.json()["detail"].startswith("no such path; allowed: POST /detect, ")


def test_key_that_a_file_holds_twice_ends_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{'k' * 16} camera\n# a comment\n{'k' * 16} door\n")
    assert _cli.main(["api", f"--api-keys={keys}", "--port=70000"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: --api-keys: line 3 of {keys} has a key that an earlier line has.\n"
