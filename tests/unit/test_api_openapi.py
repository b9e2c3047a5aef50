"""The REST service's OpenAPI document, and its copy in docs/openapi.yaml."""

from __future__ import annotations

import os
import re
from typing import Any

import yaml
from parameters import PARAMETER_NAMES
from support import REPOSITORY, ROOT

from yolov5_client._api.openapi import document

DOCUMENT = document()
HEAD = """\
# The REST service's document, as `make api` serves it at /openapi.json. Triton's own form is in
# openapi-triton.yaml. `UPDATE=1 .venv/bin/pytest tests/unit/test_api_openapi.py` writes it anew.
"""
COPY = ROOT / "docs" / "openapi.yaml"


def as_yaml(described: dict[str, Any]) -> str:
    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return HEAD + yaml.dump(described, Dumper=Plain, sort_keys=False, width=100)


def test_docs_have_a_copy_of_the_document() -> None:
    if os.environ.get("UPDATE"):
        COPY.write_text(as_yaml(DOCUMENT))
    assert COPY.read_text() == as_yaml(DOCUMENT)


def test_every_parameter_of_the_endpoint_is_in_the_query_the_form_and_the_json() -> None:
    wanted = {*PARAMETER_NAMES, "model"}
    assert DOCUMENT["components"]["parameters"].keys() == wanted
    operation = DOCUMENT["paths"]["/detect"]["post"]
    assert {one["$ref"].rpartition("/")[2] for one in operation["parameters"]} == wanted
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"].keys() == {*wanted, "image"}
    assert DOCUMENT["components"]["schemas"]["Request"]["properties"].keys() == {
        *wanted,
        "image",
        "url",
    }


def test_defaults_in_the_descriptions_are_those_of_the_endpoint() -> None:
    config = (REPOSITORY / "preprocess" / "config.pbtxt").read_text()
    shown = {
        name: found[1]
        for name, parameter in DOCUMENT["components"]["parameters"].items()
        if (found := re.search(r"\(default (.*)\)", parameter["description"]))
    }
    assert {"conf_thres", "iou_thres", "max_det", "agnostic_nms", "multi_label"} == shown.keys()
    for name, value in shown.items():
        given = re.search(rf'key: "{name}"\s*value: {{ string_value: "([^"]*)"', config)
        assert given and given[1] == value, name
