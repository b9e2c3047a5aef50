"""The steps are closed: a caller can neither run one of them nor learn anything from it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import grpc as grpc_core
import pytest
import tritonclient.grpc as grpc
from support import PHOTO, RunningServer, ask_grpc, assert_same, infer, inferences, post, post_raw
from tritonclient.grpc import service_pb2, service_pb2_grpc

STEPS = ("preprocess", "yolov5", "postprocess")
OTHER_SPELLINGS = ("models::preprocess", "closed::preprocess", "models/preprocess", "preprocess:1")
# Shapes that crashed postprocess: sizes that are negative, or overflow when multiplied.
FORGED_SHAPES = ([1, -2, -8], [1, 2**61 + 2, 8], [1, 25200, 8])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("way", ["infer", "generate", "versions/1/infer", "versions/1/generate"])
def test_step_cannot_be_run_over_http(server: RunningServer, step: str, way: str) -> None:
    before = inferences(server, step)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]}
    body = json.dumps({"inputs": [tensor], "image": "x"}).encode()
    reply = post(f"{server.http}/v2/models/{step}/{way}", body)
    assert reply.status == 400
    assert "2 identifiers of model" in reply.json()["error"]
    assert "/" not in reply.json()["error"]
    assert inferences(server, step) == before


@pytest.mark.parametrize("step", STEPS)
def test_step_cannot_be_run_over_grpc(server: RunningServer, step: str) -> None:
    before = inferences(server, step)
    with (
        grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(grpc.InferenceServerException, match="2 identifiers of model"),
    ):
        infer(client, [PHOTO.read_bytes()], model=step)
    with grpc_core.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (answer,) = stub.ModelStreamInfer(
            iter([service_pb2.ModelInferRequest(model_name=step)]), timeout=20
        )
        assert "2 identifiers of model" in answer.error_message
    assert inferences(server, step) == before


@pytest.mark.parametrize("name", OTHER_SPELLINGS)
def test_no_other_spelling_reaches_a_step(server: RunningServer, name: str) -> None:
    with (
        grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(grpc.InferenceServerException, match="unknown model|not found"),
    ):
        infer(client, [PHOTO.read_bytes()], model=name)


@pytest.mark.parametrize("question", ["", "/ready", "/config", "/stats", "/versions/1/stats"])
@pytest.mark.parametrize("step", STEPS)
def test_step_tells_nothing(server: RunningServer, step: str, question: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{server.http}/v2/models/{step}{question}")
    assert caught.value.code == 400
    assert "dims" not in caught.value.read().decode()


def test_statistics_of_all_models_tell_no_path(server: RunningServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{server.http}/v2/models/stats")
    assert "/" not in json.load(caught.value)["error"]


@pytest.mark.parametrize("shape", FORGED_SHAPES, ids=str)
def test_forged_tensors_do_not_reach_postprocess(server: RunningServer, shape: list[int]) -> None:
    expected = ask_grpc(server.grpc, [PHOTO.read_bytes()])
    request = service_pb2.ModelInferRequest(model_name="postprocess")
    given: dict[str, Any] = {
        "output0": ("FP32", shape, 64),
        "placement": ("FP32", [1, 6], 24),
        "nms": ("FP32", [1, 5], 20),
        "class_conf_thres": ("FP32", [1, 3], 12),
        "admission_id": ("INT64", [1, 2], 16),
    }
    for name, (kind, sides, size) in given.items():
        request.inputs.add(name=name, datatype=kind, shape=sides)
        request.raw_input_contents.append(bytes(size))
    with grpc_core.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc_core.RpcError) as caught:
            stub.ModelInfer(request, timeout=20)
    assert caught.value.code() is grpc_core.StatusCode.INVALID_ARGUMENT
    assert_same(ask_grpc(server.grpc, [PHOTO.read_bytes()]), expected)
    assert post_raw(server.http, PHOTO.read_bytes()).status == 200
