"""What a browser loads: the file of the page, and the facts that it shares with other places."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from google.protobuf import text_format
from parameters import PARAMETER_NAMES
from support import REPOSITORY, ROOT
from tritonclient.grpc import model_config_pb2

from yolov5_client import _contract
from yolov5_client._api.app import create_app
from yolov5_client._api.settings import ApiSettings

PAGE = (ROOT / "client" / "yolov5_client" / "_api" / "page.html").read_text()


def get(path: str, **settings: str) -> httpx.Response:
    """Ask a service without a server behind it."""

    async def asking() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(ApiSettings(**settings)))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)

    return asyncio.run(asking())


def defaults() -> dict[str, str]:
    text = (REPOSITORY / "preprocess" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    return {name: value.string_value for name, value in config.parameters.items()}


def test_page_has_a_control_for_every_parameter_at_its_default() -> None:
    controls = re.findall(r'<input type="(\w+)"[^>]* name="(\w+)"(?:[^>]* value="([^"]*)")?', PAGE)
    assert {name for _, name, _ in controls} == set(PARAMETER_NAMES)
    for kind, name, value in controls:
        if kind == "checkbox":
            assert defaults()[name] == "false"
        else:
            assert value == defaults().get(name, "")


def test_page_begins_with_the_network_that_the_command_names() -> None:
    for name in (_contract.NETWORK, "plates"):
        (found,) = re.findall('data-model="([^"]*)"', get("/", model=name).text)
        assert found == name


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_content_security_policy_allows_only_the_page_itself(path: str) -> None:
    reply = get(path)
    assert reply.status_code == 200
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Cache-Control"] == "no-store"
    policy = reply.headers["Content-Security-Policy"]
    script = "'sha256-" if path == "/" else "'none'"
    assert policy.startswith(f"default-src 'none'; script-src {script}")
    assert "connect-src 'self';" in policy
    assert "unsafe" not in policy


def test_page_refers_to_no_other_site() -> None:
    assert set(re.findall(r"https?://[\w.]+", PAGE)) == {
        "http://www.w3.org"
    }  # the namespace of SVG
    assert not re.search(r"""(src|href)=["'](?!data:|docs")|@import|\burl\(""", PAGE)


def test_wheel_contains_the_page(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT / "client", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "yolov5_client/_api/page.html" in zipfile.ZipFile(wheel).namelist()
