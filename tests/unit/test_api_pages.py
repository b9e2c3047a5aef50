"""The file of the page, and the facts that it shares with the model repository."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from google.protobuf import text_format
from parameters import PARAMETER_NAMES
from support import REPOSITORY, ROOT
from tritonclient.grpc import model_config_pb2

from yolov5_client import _contract
from yolov5_client._page import INFER, MAX_BODY, PageServer, RefusedError, Upstream, _check_route

PAGE = (ROOT / "client" / "yolov5_client" / "page.html").read_text()


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


def test_page_body_limit_is_the_servers_image_limit() -> None:
    assert int(defaults()["max_image_bytes"]) == MAX_BODY


def test_page_uses_the_route_that_is_passed_on() -> None:
    assert f'const INFER = "{INFER.removeprefix("/")}";' in PAGE
    for output in _contract.OUTPUTS:
        assert f"outputs.{output}" in PAGE


def test_page_begins_with_the_network_that_the_command_names() -> None:
    upstream = Upstream(address="http://127.0.0.1:9")
    for name in (_contract.NETWORK, "plates"):
        with PageServer("127.0.0.1", 0, upstream, model=name) as server:
            (field,) = re.findall(
                r'<input type="text" id="model" value="([^"]*)"', server.page.decode()
            )
        assert field == name


@pytest.mark.parametrize("name", ["Plates", "", "a%20b", "preprocess", "plates_ensemble"])
def test_route_of_a_network_that_cannot_exist_is_refused(name: str) -> None:
    _check_route("/v2/models/plates_ensemble/infer")
    with pytest.raises(RefusedError, match=f"^model is '{name}'; allowed: up to 40 lower-case"):
        _check_route(f"/v2/models/{name}_ensemble/infer")


def test_page_refers_to_no_other_site() -> None:
    assert set(re.findall(r"https?://[\w.]+", PAGE)) == {
        "http://www.w3.org"
    }  # the namespace of SVG
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", PAGE)


def test_wheel_contains_the_page(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT / "client", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "yolov5_client/page.html" in zipfile.ZipFile(wheel).namelist()
