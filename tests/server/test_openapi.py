"""The server answers as docs/openapi-triton.yaml says, and the advice of api.md works."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests
import yaml
from jsonschema import Draft202012Validator
from markdown_blocks import read_blocks
from support import PHOTO, ROOT, RunningServer, infer, running_server
from tritonclient.grpc import InferenceServerClient

T = TypeVar("T")

DOCUMENT = yaml.safe_load((ROOT / "docs" / "openapi-triton.yaml").read_text())
ENDPOINT = "/v2/models/yolov5_ensemble"
JPEG = PHOTO.read_bytes()
TEXT = base64.b64encode(JPEG).decode()
RAW = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}


def validate(instance: object, schema: Any) -> None:
    # References start at the root of the document.
    validator = Draft202012Validator({**schema, "components": DOCUMENT["components"]})
    validator.validate(instance)


def resolved(part: Any) -> Any:
    while "$ref" in part:
        place = DOCUMENT
        for step in part["$ref"].removeprefix("#/").split("/"):
            place = place[step]
        part = place
    return part


def check(answer: requests.Response, path: str, method: str = "post") -> Any:
    """Check an answer against the description, and return its JSON, if any."""
    path = path.replace("/yolov5_ensemble", "/{endpoint}")
    described = resolved(DOCUMENT["paths"][path][method]["responses"][str(answer.status_code)])
    if not answer.content:
        assert "content" not in described
        return None
    kind = answer.headers["Content-Type"]
    schema = described["content"][kind]["schema"]
    if kind == "application/octet-stream":
        length = int(answer.headers["Inference-Header-Content-Length"])
        head = json.loads(answer.content[:length])
        validate(head, {"$ref": "#/components/schemas/BinaryHead"})
        sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
        assert length + sum(sizes) == len(answer.content)
        return head
    if kind == "text/plain":
        schema = resolved(schema)
        assert schema["contentMediaType"] == "application/json"
        schema = schema["contentSchema"]
    validate(answer.json(), schema)
    return answer.json()


def examples() -> Iterator[Any]:
    for name, response in DOCUMENT["components"]["responses"].items():
        for kind, content in response["content"].items():
            for example in content.get("examples", {}).values():
                value = example["value"]
                error = json.loads(value) if kind == "text/plain" else value
                yield name, error["error"]


EXAMPLES = list(examples())


def infer_json(**parameters: Any) -> dict[str, Any]:
    image = {"name": "image", "datatype": "BYTES", "shape": [2, 1], "data": [TEXT, TEXT]}
    return {"id": "x", "inputs": [image], "parameters": parameters}


@pytest.mark.parametrize("path", ["", "/ready"])
def test_metadata_and_readiness_follow_the_document(server: RunningServer, path: str) -> None:
    check(requests.get(server.http + ENDPOINT + path), ENDPOINT + path, "get")


def test_answer_of_an_endpoint_that_is_not_there_follows_the_document(
    server: RunningServer,
) -> None:
    for path in ("/infer", "/generate"):
        answer = requests.post(f"{server.http}/v2/models/plates_ensemble{path}", JPEG, headers=RAW)
        assert "'plates_ensemble' is not found" in check(answer, ENDPOINT + path)["error"]
        assert answer.status_code == 400
    answer = requests.get(f"{server.http}/v2/models/plates_ensemble")
    assert "'plates_ensemble' is not found" in check(answer, ENDPOINT, "get")["error"]
    check(
        requests.get(f"{server.http}/v2/models/plates_ensemble/ready"), f"{ENDPOINT}/ready", "get"
    )


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_follows_the_document(server: RunningServer, path: str) -> None:
    check(requests.get(server.http + path), path, "get")


@pytest.mark.parametrize("conf_thres", [0.25, 0.999])
def test_answer_to_a_raw_image_follows_the_document(
    server: RunningServer, conf_thres: float
) -> None:
    headers = {**RAW, "X-Yolo-Conf-Thres": str(conf_thres)}
    head = check(
        requests.post(f"{server.http}{ENDPOINT}/infer", JPEG, headers=headers), f"{ENDPOINT}/infer"
    )
    scores = next(output for output in head["outputs"] if output["name"] == "det_scores")
    assert scores["shape"] == [1, 11 if conf_thres == 0.25 else 0]


@pytest.mark.parametrize("max_det", [1, 300])
def test_answer_to_json_follows_the_document(server: RunningServer, max_det: int) -> None:
    body = infer_json(max_det=max_det, classes="RBC", agnostic_nms=True)
    validate(body, {"$ref": "#/components/schemas/InferRequest"})
    answer = requests.post(f"{server.http}{ENDPOINT}/infer", json=body)
    assert check(answer, f"{ENDPOINT}/infer")["id"] == "x"


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"max_det": 1},
        {"conf_thres": 0.999},
        {"parameters": {"multi_label": True}},
        {"class_conf_thres": '{"RBC": 0.6, "0": 1}'},
    ],
    ids=["several", "one", "none", "nested", "by class"],
)
def test_answer_of_generate_follows_the_document(
    server: RunningServer, parameters: dict[str, Any]
) -> None:
    body = {"image": TEXT, **parameters}
    validate(body, {"$ref": "#/components/schemas/GenerateRequest"})
    answer = requests.post(f"{server.http}{ENDPOINT}/generate", json=body)
    assert check(answer, f"{ENDPOINT}/generate")["num_dets"] >= 0


def test_errors_in_the_document_are_the_servers(server: RunningServer) -> None:
    infer, generate = f"{ENDPOINT}/infer", f"{ENDPOINT}/generate"
    bad_batch = infer_json()
    bad_batch["inputs"][0]["data"][1] = "aGVsbG8="
    answers = [
        (infer, requests.post(server.http + infer, b"hello", headers=RAW)),
        (
            infer,
            requests.post(server.http + infer, JPEG, headers={**RAW, "X-Yolo-Conf-Thres": "2"}),
        ),
        (generate, requests.post(server.http + generate, json={"image": "x", "conf_thresh": 1})),
        (infer, requests.post(server.http + infer, json=bad_batch)),
        (generate, requests.post(server.http + generate, "{", headers={"Content-Type": "a/b"})),
    ]
    seen = {(answer.status_code, check(answer, path)["error"]) for path, answer in answers}
    status = {"Refused": 400, "Fault": 500}
    assert seen == {(status[name], text) for name, text in EXAMPLES if name in status}


@pytest.fixture(scope="module")
def saturated(
    bundled_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server that queues one image at most."""
    models = tmp_path_factory.mktemp("saturated") / "models"
    repository = shutil.copytree(bundled_repository, models, symlinks=True)
    config = repository / "preprocess" / "config.pbtxt"
    text = config.read_text()
    setting = 'key: "max_queued_images" value: { string_value: '
    limited = text.replace(f'{setting}"64"', f'{setting}"1"')
    assert limited != text
    config.unlink()
    config.write_text(limited)
    with running_server(f"--repository={repository}") as server:
        yield server


def ask_together(count: int, ask: Callable[[int], T]) -> set[T]:
    with ThreadPoolExecutor(count) as pool:
        return set(pool.map(ask, range(count)))


def test_saturated_server_answers_as_documented(saturated: RunningServer) -> None:
    def ask(_: int) -> tuple[int, str]:
        answer = requests.post(f"{saturated.http}{ENDPOINT}/infer", JPEG, headers=RAW)
        said = check(answer, f"{ENDPOINT}/infer")
        return answer.status_code, said.get("error", "")

    shown = {(503, text.replace("64", "1")) for name, text in EXAMPLES if name == "Saturated"}
    assert ask_together(24, ask) == {(200, ""), *shown}


def test_documented_retries_get_through(saturated: RunningServer) -> None:
    http, rpc = read_blocks(ROOT / "docs" / "api.md", "When to try again")
    given: dict[str, Any] = {}
    for block in (http, rpc):
        code = block.code.replace("http://127.0.0.1:8000", saturated.http)
        exec(code.replace("127.0.0.1:8001", saturated.grpc), given)

    def ask_http(_: int) -> int:
        answer = given["session"].post(f"{saturated.http}{ENDPOINT}/infer", JPEG, headers=RAW)
        return int(answer.status_code)

    with InferenceServerClient(saturated.grpc, channel_args=given["options"]) as client:

        def ask_grpc(_: int) -> int:
            return int(infer(client, [JPEG])["num_dets"].item())

        assert ask_together(16, ask_http) == {200}
        assert ask_together(16, ask_grpc) == {11}
