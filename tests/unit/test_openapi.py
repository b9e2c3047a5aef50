"""docs/openapi-triton.yaml is a valid description, and says what the code says."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import settings
import yaml
from google.protobuf import text_format
from jsonschema import Draft202012Validator
from parameters import PARAMETER_NAMES, ParameterError, parse_parameters
from support import REPOSITORY, ROOT
from tritonclient.grpc import model_config_pb2

from yolov5_client._contract import NETWORK, check_network, endpoint_for

DOCUMENT = yaml.safe_load((ROOT / "docs" / "openapi-triton.yaml").read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]
INFER = DOCUMENT["paths"]["/v2/models/{endpoint}/infer"]["post"]


def config(model: str) -> model_config_pb2.ModelConfig:
    text = (REPOSITORY / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def defaults() -> Any:
    given = {name: value.string_value for name, value in config("preprocess").parameters.items()}
    return settings.read_settings(given, ("a", "b", "c")).defaults


def test_it_is_valid() -> None:
    import openapi_spec_validator  # takes a quarter of a second in each process of the tests

    openapi_spec_validator.validate(DOCUMENT)


def test_the_endpoint_is_that_of_any_network_and_the_clients_by_default() -> None:
    paths = [path for path in DOCUMENT["paths"] if "/models/" in path]
    wanted = [{"$ref": "#/components/parameters/endpoint"}]
    assert [DOCUMENT["paths"][path]["parameters"] for path in paths] == [wanted] * len(paths)
    assert SCHEMAS["Endpoint"]["default"] == endpoint_for(NETWORK)
    validator = Draft202012Validator(SCHEMAS["Endpoint"])
    for name in ("yolov5", "plates", "7", "a-b_c", "a" * 40, "a" * 41, "A", "-a", "_a", "", "a.b"):
        try:
            check_network(name)
        except ValueError:
            assert not validator.is_valid(endpoint_for(name)), name
        else:
            assert validator.is_valid(endpoint_for(name)), name


def test_every_parameter_is_in_each_form_of_the_request() -> None:
    wanted = {name: {"$ref": f"#/components/schemas/{name}"} for name in PARAMETER_NAMES}
    assert SCHEMAS["Parameters"]["properties"] == wanted
    flat = SCHEMAS["GenerateRequest"]["properties"]
    assert {name: flat.get(name) for name in PARAMETER_NAMES} == wanted
    assert set(flat) - set(PARAMETER_NAMES) == {"image", "parameters"}
    headers = {f"X-Yolo-{name.replace('_', '-').title()}": ref for name, ref in wanted.items()}
    assert {
        given["name"]: given["schema"]
        for given in INFER["parameters"]
        if given["name"].startswith("X-Yolo-")
    } == headers


def test_the_defaults_are_the_configurations() -> None:
    wanted = asdict(defaults())
    assert wanted.pop("classes") == frozenset()
    assert wanted.pop("class_conf_thres") == {}
    assert not {"default"} & {*SCHEMAS["classes"], *SCHEMAS["class_conf_thres"]}
    assert {name: SCHEMAS[name]["default"] for name in wanted} == wanted


@pytest.mark.parametrize("name", PARAMETER_NAMES)
def test_a_value_is_allowed_where_the_code_allows_it(name: str) -> None:
    validator = Draft202012Validator(SCHEMAS[name])
    values: tuple[Any, ...] = (-1, -0.01, 0, 0.5, 1, 1.01, 2, 1000, 1001, True, "a,2", "b")
    if name == "class_conf_thres":
        values = (*values, "a:0.5,2:1", '{"a": 1}')
    accepted = []
    for value in values:
        try:
            parse_parameters({name: value}, ("a", "b", "c"), defaults())
        except ParameterError:
            continue
        accepted.append(value)
    assert [value for value in values if validator.is_valid(value)] == accepted


def test_the_batch_is_the_endpoints() -> None:
    tensor = SCHEMAS["InferRequest"]["properties"]["inputs"]["items"]["properties"]
    limit = config("yolov5_ensemble").max_batch_size
    assert tensor["shape"]["prefixItems"][0]["maximum"] == limit
    assert tensor["data"]["maxItems"] == limit


def test_the_tensors_are_the_endpoints() -> None:
    names = {tensor.name for tensor in config("yolov5_ensemble").output}
    assert set(SCHEMAS["OutputName"]["enum"]) == names
    assert set(SCHEMAS["GenerateAnswer"]["required"]) == names
    for answer in ("InferAnswer", "BinaryHead"):
        assert SCHEMAS[answer]["properties"]["outputs"]["minItems"] == len(names)
