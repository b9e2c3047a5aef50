"""Traces by OpenTelemetry: one trace from the caller to the steps, in a collector of the test."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from api_service import RunningApi, running_api
from gateways import NGINX, running_gateway
from opentelemetry.sdk.trace import TracerProvider
from support import (
    PHOTO,
    TRITON,
    RunningServer,
    image_tensor,
    post,
    post_raw,
    running_server,
)
from trace_collector import Collector, Span, draw, running_collector

from yolov5_client import Client

IMAGE = PHOTO.read_bytes()
STEPS = {
    "preprocess: queue",
    "preprocess: decode",
    "preprocess: letterbox",
    "preprocess: pack",
    "postprocess: nms",
    "postprocess: pack",
}
NETWORK = set() if TRITON else {"yolov5: wait", "yolov5: run"}
ENSEMBLE = {"InferRequest", "yolov5_ensemble", "preprocess", "yolov5", "postprocess"}
ALL = STEPS | NETWORK | ENSEMBLE
REST = STEPS | NETWORK | {"api: POST /detect"}
# Triton sends its spans every five seconds.
SENT = 7.0


class Caller:
    """A caller with a span of its own.

    Attributes:
        headers: that a traced request carries.
    """

    def __init__(self, sampled: bool = True) -> None:
        self.trace, self.span = secrets.token_hex(16), secrets.token_hex(8)
        self.headers = {"traceparent": f"00-{self.trace}-{self.span}-0{int(sampled)}"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # milliseconds, for the SDK of Python
        yield running


@pytest.fixture(scope="module")
def traced(collector: Collector, bundled_repository: Path) -> Iterator[RunningServer]:
    with running_server(
        f"--repository={bundled_repository}", f"--trace={collector.address}", "--trace-ratio=0"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def api(collector: Collector, traced: RunningServer) -> Iterator[RunningApi]:
    with running_api(traced, f"--trace={collector.address}", "--trace-ratio=0") as running:
        yield running


def ask_grpc(address: str, headers: Mapping[str, str], **flags: str) -> None:
    with triton.InferenceServerClient(address) as client:
        client.infer("yolov5_ensemble", [image_tensor(triton, [IMAGE])], headers=headers, **flags)


def check_chain(spans: list[Span], root: str) -> None:
    """The steps' spans lie below Triton's own, and those below `root`.

    Without spans of Triton, which may be missing over gRPC, the steps' lie directly below `root`.
    """
    by_id = {span.id: span for span in spans}
    steps = [span for span in spans if span.scope in ("preprocess", "yolov5", "postprocess")]
    for span in spans:
        assert span.started <= span.ended
    if not any(span.scope == "triton-server" for span in spans):
        assert {span.parent for span in steps} == {root}, draw(spans)
        return
    for span in steps:
        assert by_id[span.parent].name == span.scope, draw(spans)
        assert by_id[by_id[span.parent].parent].name == "yolov5_ensemble"
    (first,) = [span for span in spans if span.name == "InferRequest"]
    (ensemble,) = [span for span in spans if span.name == "yolov5_ensemble"]
    assert ensemble.parent == first.id
    assert first.parent == root


def wait_for_grpc(
    collector: Collector, trace: str, root: str = "", titles: set[str] = STEPS | NETWORK
) -> list[Span]:
    """Wait for a trace over gRPC: with Triton's spans, unless Triton overlooked the header.

    Args:
        root: the last span before the server; by default that of the REST service.
        titles: of the spans that come in any case.
    """
    spans = collector.wait_for(trace, titles)
    root = root or next(span.id for span in spans if span.scope == "api")
    if {span.parent for span in spans if span.title in STEPS} != {root}:
        spans = collector.wait_for(trace, titles | ALL)  # Triton's come by themselves
    return spans


@pytest.mark.server
def test_trace_of_an_http_caller_reaches_the_steps(
    traced: RunningServer, collector: Collector
) -> None:
    caller = Caller()
    assert post_raw(traced.http, IMAGE, caller.headers).status == 200
    spans = collector.wait_for(caller.trace, ALL)
    check_chain(spans, caller.span)
    assert {span.service for span in spans} == {"yolov5-triton"}
    assert collector.paths == {"/v1/traces"}
    (decode,) = [span for span in spans if span.title == "preprocess: decode"]
    assert decode.facts == {"image": 1, "bytes": len(IMAGE)}


@pytest.mark.server
def test_trace_of_a_grpc_caller_reaches_the_steps(
    traced: RunningServer, collector: Collector
) -> None:
    """Triton 2.51 overlooks the header of some requests; even those have spans of the steps."""
    callers = [Caller() for _ in range(24)]
    for caller in callers:
        ask_grpc(traced.grpc, caller.headers)
    for caller in callers:
        check_chain(wait_for_grpc(collector, caller.trace, caller.span), caller.span)
    with_triton = [caller for caller in callers if len(collector.trace(caller.trace)) >= len(ALL)]
    assert len(with_triton) >= 12


@pytest.mark.server
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_client_continues_the_span_of_its_caller(
    traced: RunningServer, collector: Collector, scheme: str
) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    address = traced.grpc if scheme == "grpc" else traced.http
    with Client(address) as client, tracer.start_as_current_span("caller") as span:
        client.detect(PHOTO)
    context = span.get_span_context()
    trace, root = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    check_chain(wait_for_grpc(collector, trace, root), root)


@pytest.mark.server
def test_trace_of_a_rest_caller_reaches_the_steps(api: RunningApi, collector: Collector) -> None:
    caller = Caller()
    reply = post(f"{api.url}/detect", IMAGE, caller.headers)
    assert reply.status == 200
    spans = wait_for_grpc(collector, caller.trace, titles=REST)
    (own,) = [span for span in spans if span.scope == "api"]
    check_chain(spans, own.id)
    assert own.parent == caller.span
    assert own.service == "yolov5-api"
    assert own.facts["http.response.status_code"] == 200
    answered = {name.lower(): value for name, value in reply.headers.items()}
    assert own.facts["yolov5.request_id"] == answered["x-request-id"]


@pytest.mark.server
def test_images_of_a_rest_request_are_in_one_trace(api: RunningApi, collector: Collector) -> None:
    caller = Caller()
    body, kind = two_images()
    assert post(f"{api.url}/detect", body, {**kind, **caller.headers}).status == 200
    collector.wait_for(caller.trace, REST)
    time.sleep(1)
    spans = collector.trace(caller.trace)
    assert len([span for span in spans if span.title == "postprocess: nms"]) == 2
    (own,) = [span for span in spans if span.scope == "api"]
    assert own.parent == caller.span


def two_images() -> tuple[bytes, dict[str, str]]:
    part = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n%s\r\n'
    body = part % IMAGE * 2 + b"--edge--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=edge"}


@pytest.mark.server
def test_refused_image_says_so_in_its_trace(traced: RunningServer, collector: Collector) -> None:
    caller = Caller()
    assert post_raw(traced.http, b"no image", caller.headers).status == 400
    spans = collector.wait_for(caller.trace, {"InferRequest", "preprocess: rejected"})
    (refusal,) = [span for span in spans if span.title == "preprocess: rejected"]
    assert refusal.facts["reason"] == "format"
    assert str(refusal.facts["error"]).startswith("image 1 of 1: ")
    assert "postprocess" not in {span.name for span in spans}


@pytest.mark.server
def test_request_that_is_not_sampled_leaves_no_span(
    traced: RunningServer, api: RunningApi, collector: Collector
) -> None:
    """A caller's flag counts in the REST service; without a header, only the ratio does."""
    before = len(collector.spans)
    caller, last = Caller(sampled=False), Caller()
    assert post(f"{api.url}/detect", IMAGE, caller.headers).status == 200
    assert post(f"{api.url}/detect", IMAGE).status == 200
    assert post_raw(traced.http, IMAGE).status == 200
    ask_grpc(traced.grpc, {})
    assert post_raw(traced.http, IMAGE, last.headers).status == 200
    collector.wait_for(last.trace, ALL)
    time.sleep(1)  # for the spans of the service
    assert {span.trace for span in collector.spans[before:]} == {last.trace}


@pytest.mark.server
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_gateway_passes_a_sampled_trace_on(
    traced: RunningServer, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLOV5_API_TRACE", collector.address)
    monkeypatch.setenv("YOLOV5_API_TRACE_RATIO", "0")
    infer = "/v2/models/yolov5_ensemble/infer"
    raw = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
    with running_gateway(traced, tmp_path) as gateway:
        before = len(collector.spans)
        for caller in (Caller(sampled=False), Caller(sampled=False)):
            assert gateway.ask(infer, IMAGE, {**raw, **caller.headers}).status == 200
            assert gateway.ask("/detect", IMAGE, caller.headers).status == 200
            with gateway.client("", {**gateway.key, **caller.headers}) as client:
                client.detect(PHOTO)
        plain, rest, grpc = Caller(), Caller(), Caller()
        assert gateway.ask(infer, IMAGE, {**raw, **plain.headers}).status == 200
        assert gateway.ask("/detect", IMAGE, rest.headers).status == 200
        with gateway.client("", {**gateway.key, **grpc.headers}) as client:
            client.detect(PHOTO)
        check_chain(collector.wait_for(plain.trace, ALL), plain.span)
        check_chain(wait_for_grpc(collector, grpc.trace, grpc.span), grpc.span)
        spans = collector.wait_for(rest.trace, REST)
        assert {span.parent for span in spans if span.scope == "api"} == {rest.span}
        traces = {span.trace for span in collector.spans[before:]}
        assert traces == {plain.trace, rest.trace, grpc.trace}


@pytest.mark.server
def test_trace_settings_are_closed_to_callers(traced: RunningServer) -> None:
    url = f"{traced.http}/v2/trace/setting"
    for body in (None, json.dumps({"trace_rate": "1"}).encode()):
        request = urllib.request.Request(url, body)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        assert refused.value.code == 403


@pytest.mark.server
def test_share_of_the_requests_is_traced_and_a_collector_that_is_gone_costs_no_request(
    bundled_repository: Path,
) -> None:
    with running_collector() as collector:
        flags = (f"--trace={collector.address}", "--trace-ratio=0.25")
        with running_server(f"--repository={bundled_repository}", *flags) as server:
            for _ in range(16):
                assert post_raw(server.http, IMAGE).status == 200
            time.sleep(SENT)
            traces = {span.trace for span in collector.spans if span.name == "InferRequest"}
            # The launcher's own images count as well.
            assert 4 <= len(traces) <= 6
            for trace in traces:
                check_chain(collector.trace(trace), "")
            collector.close()
            for _ in range(16):
                assert post_raw(server.http, IMAGE).status == 200
            time.sleep(SENT)
            assert "spans are lost" in server.log.read_text()
            assert post_raw(server.http, IMAGE).status == 200
            assert server.stop() < 10


@pytest.mark.server
def test_nothing_traces_without_a_collector(server: RunningServer, traced: RunningServer) -> None:
    assert post_raw(server.http, IMAGE, Caller().headers).status == 200
    (pid,) = server.processes("bin/tritonserver")
    assert "--trace-config" not in Path("/proc", str(pid), "cmdline").read_text()
    assert {*told_to_trace(server)} == {False}
    assert {*told_to_trace(traced)} == {True}


def told_to_trace(server: RunningServer) -> list[bool]:
    """Whether the environment of each process of a model names a collector."""
    pids = server.processes("triton_python_backend_stub")
    return [b"YOLOV5_TRACE=" in Path("/proc", str(pid), "environ").read_bytes() for pid in pids]
