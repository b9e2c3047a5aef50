"""Requests over gRPC: what is sent, and what is made of each answer and each failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from hostile import over_grpc, tensors
from tritonclient.grpc import service_pb2

from yolov5_client import (
    TLS,
    AsyncClient,
    Client,
    Detections,
    InvalidRequestError,
    ServerError,
    ServerStatus,
    TimedOutError,
)
from yolov5_client import _grpc as transport
from yolov5_client._connection import Call, Connection


class Recorder(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers as Triton does, and records what came.

    Attributes:
        answers: message by the name of the call.
        seen: name, message and metadata of each call.
    """

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {
            "ServerMetadata": service_pb2.ServerMetadataResponse(
                version="2.51.0\n"
            ).SerializeToString(),
            "ServerReady": service_pb2.ServerReadyResponse(ready=True).SerializeToString(),
            "ModelReady": service_pb2.ModelReadyResponse(ready=True).SerializeToString(),
            "ModelInfer": over_grpc([*tensors().values()]),
        }
        self.seen: list[tuple[str, bytes, dict[str, str]]] = []

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]

        def answer(request: bytes, context: Any) -> bytes:
            self.seen.append((name, request, dict(details.invocation_metadata)))
            return self.answers[name]

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def recorder() -> Iterator[tuple[str, Recorder]]:
    recorder = Recorder()
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[recorder])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", recorder
    server.stop(None)


def detect(address: str, **parameters: Any) -> Detections:
    with Client(address, timeout=10, headers={"X-Api-Key": "A key"}) as client:
        return client.detect(b"an image", **parameters)


def detect_async(address: str, **parameters: Any) -> Detections:
    async def asking() -> Detections:
        async with AsyncClient(address, timeout=10, headers={"X-Api-Key": "A key"}) as client:
            return await client.detect(b"an image", **parameters)

    return asyncio.run(asking())


def status(address: str) -> ServerStatus:
    with Client(address, timeout=10, headers={"X-Api-Key": "A key"}) as client:
        return client.status()


def status_async(address: str) -> ServerStatus:
    async def asking() -> ServerStatus:
        async with AsyncClient(address, timeout=10, headers={"X-Api-Key": "A key"}) as client:
            return await client.status()

    return asyncio.run(asking())


BOTH = pytest.mark.parametrize("asking", [detect, detect_async])
STATUS = pytest.mark.parametrize("asking", [status, status_async])


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_named_network_is_asked_at_its_own_endpoint(
    recorder: tuple[str, Recorder], kind: type[Client] | type[AsyncClient]
) -> None:
    address, server = recorder

    async def asking() -> ServerStatus:
        async with AsyncClient(address, model="plates") as client:
            await client.detect(b"an image")
            return await client.status()

    if kind is AsyncClient:
        found = asyncio.run(asking())
    else:
        with Client(address, model="plates") as client:
            client.detect(b"an image")
            found = client.status()
    assert found.models == {"plates_ensemble": True}
    infer, ready = server.seen[0][1], server.seen[-1][1]
    assert service_pb2.ModelInferRequest.FromString(infer).model_name == "plates_ensemble"
    assert service_pb2.ModelReadyRequest.FromString(ready).name == "plates_ensemble"


@BOTH
def test_image_and_parameters_are_sent(
    recorder: tuple[str, Recorder], asking: Callable[..., Detections]
) -> None:
    address, server = recorder
    found = asking(address, conf_thres=0.5, max_det=3, classes=[0, "bus"], multi_label=True)
    assert found.labels == ("RBC", "WBC")
    ((name, message, metadata),) = server.seen
    assert name == "ModelInfer"
    assert metadata["x-api-key"] == "A key"
    request = service_pb2.ModelInferRequest.FromString(message)
    assert request.model_name == "yolov5_ensemble"
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, [*tensor.shape]) == ("image", "BYTES", [1, 1])
    assert [*request.raw_input_contents] == [b"\x08\0\0\0an image"]
    parameters = request.parameters
    assert parameters["conf_thres"].double_param == 0.5
    assert parameters["max_det"].int64_param == 3
    assert parameters["classes"].string_param == "0,bus"
    assert parameters["multi_label"].bool_param is True


@STATUS
def test_status_is_asked_of_the_server_and_the_endpoint(
    recorder: tuple[str, Recorder], asking: Callable[[str], ServerStatus]
) -> None:
    address, server = recorder
    for ready, model in ((True, True), (True, False), (False, True)):
        for name, kind, value in (
            ("ServerReady", service_pb2.ServerReadyResponse, ready),
            ("ModelReady", service_pb2.ModelReadyResponse, model),
        ):
            server.answers[name] = kind(ready=value).SerializeToString()
        assert asking(address) == ServerStatus(
            address=address, version="2.51.0", ready=ready, models={"yolov5_ensemble": model}
        )
    assert [name for name, *_ in server.seen[:3]] == ["ServerMetadata", "ServerReady", "ModelReady"]
    assert all(metadata["x-api-key"] == "A key" for *_, metadata in server.seen)
    request = service_pb2.ModelReadyRequest.FromString(server.seen[2][1])
    assert request.name == "yolov5_ensemble"


@BOTH
def test_parameter_that_tritons_client_refuses_is_an_error_of_the_request(
    recorder: tuple[str, Recorder], asking: Callable[..., Detections]
) -> None:
    with pytest.raises(InvalidRequestError, match="reserved parameter"):
        asking(recorder[0], priority=3)
    assert not recorder[1].seen


@BOTH
def test_bytes_that_are_no_message_are_refused(
    recorder: tuple[str, Recorder], asking: Callable[..., Detections]
) -> None:
    address, server = recorder
    server.answers["ModelInfer"] = b"\xff" * 10
    with pytest.raises(ServerError):
        asking(address)
    message = service_pb2.ModelInferResponse.FromString(over_grpc([*tensors().values()]))
    message.raw_output_contents.append(b"one more")
    server.answers["ModelInfer"] = message.SerializeToString()
    with pytest.raises(ServerError, match="it has 6 outputs, and the contents of 7"):
        asking(address)


def connection(address: str = "127.0.0.1:8001", **changes: Any) -> Connection:
    arguments: dict[str, Any] = {"timeout": 5, "retry_for": 0, "in_flight": 1}
    return Connection(address=address, **{**arguments, "tls": None, "keepalive": None, **changes})


def test_closed_client_asks_nothing(recorder: tuple[str, Recorder]) -> None:
    closed = transport.GrpcTransport(connection(recorder[0]))
    closed.close()
    with pytest.raises(ValueError, match="closed channel"):
        closed.infer(b"", Call(endpoint="x", parameters={}, request_id=""))

    async def closing() -> None:
        closed = transport.AsyncGrpcTransport(connection(recorder[0]))
        await closed.close()
        with pytest.raises(Exception, match=r"(?i)closed"):
            await closed.infer(b"", Call(endpoint="x", parameters={}, request_id=""))

    asyncio.run(closing())
    assert not recorder[1].seen


def test_calls_of_a_status_share_one_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    budget = transport._TimeBudget(connection(headers={"X-A": "B"}), 2.0)
    assert budget.options() == {"client_timeout": 2.0, "headers": {"x-a": "B"}}
    now[0] += 1.5
    assert budget.options()["client_timeout"] == 0.5
    now[0] += 0.5
    with pytest.raises(TimedOutError, match=r"^no answer within the timeout\.$"):
        budget.options()


def test_channel_is_set_up_for_large_images_and_small_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    options = transport._channel(connection())
    assert options.keys() == {"url", "channel_args"}
    wanted = {
        "grpc.max_send_message_length": 2147483647,
        "grpc.max_receive_message_length": 16777216,
        "grpc.compression_enabled_algorithms_bitset": 1,
        "grpc.enable_http_proxy": 0,
        "grpc.lb_policy_name": "round_robin",
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.min_reconnect_backoff_ms": 1000,
        "grpc.max_reconnect_backoff_ms": 250,
        "grpc.use_local_subchannel_pool": 1,
    }
    assert dict(options["channel_args"]) == wanted
    kept = dict(transport._channel(connection(keepalive=2.5))["channel_args"])
    assert kept == {
        **wanted,
        "grpc.keepalive_time_ms": 2500,
        "grpc.keepalive_timeout_ms": 2500,
        "grpc.http2.ping_timeout_ms": 2500,
        "grpc.http2.max_pings_without_data": 0,
    }
    monkeypatch.setenv("http_proxy", "http://between:3128")
    through = dict(transport._channel(connection("there:8001"))["channel_args"])
    assert through == {**wanted, "grpc.enable_http_proxy": 1}


def test_channel_is_encrypted_if_asked_for() -> None:
    options = transport._channel(connection(tls=TLS()))
    assert options["ssl"] is True
    assert (options["root_certificates"], options["private_key"]) == (None, None)
