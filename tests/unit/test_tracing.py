"""Spans of the steps, the flags that turn them on, and the context that the client sends along."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from default_parameters import DEFAULTS
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState
from parameters import parse_parameters
from span_exporter import OtlpExporter
from support import ROOT
from trace_collector import Collector, draw, running_collector
from tracing import NOT_TRACED, VARIABLE, open_tracer

from yolov5_client import AsyncClient
from yolov5_client._api import otlp
from yolov5_client._api.settings import ApiSettings
from yolov5_client._connection import Connection
from yolov5_client._trace_context import trace_headers
from yolov5_server import Settings, StartError
from yolov5_server import _tracing as launcher

TRACE, SPAN = "1" * 32, "a" * 16
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


def request_with(context: str | None, parameters: str = "") -> Any:
    """A request of Triton with this context, and these parameters as JSON."""
    trace_of_it = SimpleNamespace(get_context=lambda: context)
    return SimpleNamespace(trace=lambda: trace_of_it, parameters=lambda: parameters)


def imported_by(code: str) -> list[str]:
    """Modules of OpenTelemetry that a new interpreter has imported after this code."""
    code += "; import sys; print([one for one in sys.modules if 'opentelemetry' in one])"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return [*json.loads(run.stdout.replace("'", '"'))]


@pytest.mark.unit
def test_step_without_a_collector_asks_nothing_and_imports_nothing() -> None:
    def not_to_be_asked() -> None:
        raise AssertionError

    logged: list[str] = []
    tracer = open_tracer("preprocess", logged.append, {})
    trace_of_it = tracer.trace_of(SimpleNamespace(trace=not_to_be_asked))
    assert trace_of_it is NOT_TRACED
    assert not trace_of_it.traced
    trace_of_it.record("decode", 0.0, image=1)
    tracer.close()
    assert logged == []
    steps = f"import sys; sys.path.append('{ROOT}/model_repository/preprocess/1')"
    assert imported_by(f"{steps}; import tracing; tracing.open_tracer('m', print, {{}})") == []


@pytest.mark.unit
def test_spans_of_a_step_lie_below_the_one_of_triton(collector: Collector) -> None:
    environment = {
        VARIABLE: f"{collector.address}/v1/traces",
        "OTEL_SERVICE_NAME": "plates",
    }
    tracer = open_tracer("preprocess", pytest.fail, environment)
    assert tracer.trace_of(request_with(None)) is NOT_TRACED
    assert tracer.trace_of(request_with("")) is NOT_TRACED
    found = tracer.trace_of(request_with(json.dumps({"traceparent": PARENT})))
    assert found.traced
    now = time.monotonic()
    found.record("queue", now - 0.5, now - 0.25)
    found.record("decode", now - 0.25, image=1)
    tracer.close()
    queue, decode = collector.trace(TRACE)
    assert (queue.title, queue.parent, queue.service) == ("preprocess: queue", SPAN, "plates")
    assert queue.ended - queue.started == pytest.approx(250e6, abs=1e3)
    assert queue.ended == pytest.approx(time.time_ns() - 250e6, abs=5e9)
    assert queue.facts == {}
    assert decode.facts == {"image": 1}
    assert decode.ended - decode.started >= 250e6
    assert collector.paths == {"/v1/traces"}


@pytest.mark.unit
def test_header_that_triton_has_overlooked_is_read_of_the_parameters(collector: Collector) -> None:
    tracer = open_tracer("preprocess", pytest.fail, {VARIABLE: f"{collector.address}/v1/traces"})
    for other in ("{}", '{"conf_thres":0.3}', json.dumps({"traceparent": PARENT[:-1] + "0"}), "x"):
        assert tracer.trace_of(request_with(None, other)) is NOT_TRACED
    text = json.dumps({"conf_thres": 0.3, "traceparent": PARENT}, separators=(",", ":"))
    tracer.trace_of(request_with(None, text)).record("queue", time.monotonic())
    tracer.close()
    (span,) = collector.trace(TRACE)
    assert span.parent == SPAN
    assert parse_parameters({"traceparent": PARENT}, ["a"], DEFAULTS) == DEFAULTS


@pytest.mark.unit
def test_step_without_the_packages_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.delitem(sys.modules, "span_exporter")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    tracer = open_tracer("preprocess", logged.append, {VARIABLE: "http://localhost:1/v1/traces"})
    assert tracer.trace_of(request_with(json.dumps({"traceparent": PARENT}))) is NOT_TRACED
    assert logged == ["the steps send no spans: the package opentelemetry-sdk is not installed"]


@pytest.mark.unit
@pytest.mark.parametrize("module", ["steps", "api"])
def test_failures_of_the_collector_are_logged_once_and_followed_by_a_pause(
    collector: Collector, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    url = f"{collector.address}/v1/traces"
    if module == "steps":
        exporter: Any = OtlpExporter(url, {}, logged.append)
        clock = "span_exporter.time.monotonic"
    else:
        exporter = otlp.OtlpExporter(url, logged.append)
        clock = "yolov5_client._api.otlp.time.monotonic"
    assert exporter.export([]) == SpanExportResult.SUCCESS
    collector.close()
    now = time.monotonic()
    for later in (0.0, 1.0, 6.0, 12.0):
        monkeypatch.setattr(clock, lambda later=later: now + later)
        assert exporter.export([]) == SpanExportResult.FAILURE
    (line,) = logged
    assert line.startswith(f"spans are lost, {url} does not take them: ")


@pytest.mark.unit
def test_collector_gets_the_headers_of_the_environment(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20s3cret,x-team=vision"}
    tracer = open_tracer(
        "preprocess", pytest.fail, {VARIABLE: f"{collector.address}/v1/traces", **secret}
    )
    found = tracer.trace_of(request_with(json.dumps({"traceparent": PARENT})))
    found.record("queue", time.monotonic())
    tracer.close()
    monkeypatch.setenv(*secret.popitem())
    exporter = otlp.OtlpExporter(f"{collector.address}/v1/traces", pytest.fail)
    assert exporter.export([]) == SpanExportResult.SUCCESS
    assert len(collector.headers) == 2
    for headers in collector.headers:
        assert headers["authorization"] == "Bearer s3cret"
        assert headers["x-team"] == "vision"


@pytest.mark.unit
def test_launcher_turns_its_settings_into_flags_and_environment() -> None:
    settings = Settings(trace="http://collector:4318", trace_ratio=0.01)
    environment = launcher.trace_environment(settings, {"PATH": "/bin"})
    assert environment == {
        "PATH": "/bin",
        "YOLOV5_TRACE": "http://collector:4318/v1/traces",
        "OTEL_SERVICE_NAME": "yolov5-triton",
    }
    assert launcher.trace_flags(settings, environment) == [
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=100",
        "--trace-config=opentelemetry,url=http://collector:4318/v1/traces",
        "--trace-config=opentelemetry,resource=service.name=yolov5-triton",
        "--grpc-header-forward-pattern=^traceparent$",
    ]


@pytest.mark.unit
def test_launcher_without_a_collector_turns_the_steps_off() -> None:
    """Also if the variable is there, and the command line says otherwise."""
    assert launcher.trace_environment(Settings(), {"YOLOV5_TRACE": "http://x"}) == {}
    assert launcher.trace_flags(Settings(), {}) == []


@pytest.mark.unit
@pytest.mark.parametrize(
    ("ratio", "rate"), [(0, 0), (1e-12, 0), (1, 1), (0.5, 2), (0.3, 3), (0.001, 1000)]
)
def test_ratio_becomes_one_of_so_many(ratio: float, rate: int) -> None:
    settings = Settings(trace="http://collector:4318", trace_ratio=ratio)
    environment = launcher.trace_environment(settings, {"OTEL_SERVICE_NAME": "plates"})
    flags = launcher.trace_flags(settings, environment)
    assert f"--trace-config=rate={rate}" in flags
    assert any(flag.endswith("=plates") for flag in flags)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/otlp/v1/traces", "https://c/otlp/v1/traces"),
    ],
)
def test_path_of_the_collector_may_be_left_out(address: str, url: str) -> None:
    assert launcher.collector_url(address) == url
    provider = otlp.make_provider(address, 1.0, pytest.fail)
    (processor,) = provider._active_span_processor._span_processors
    assert processor.span_exporter._url == url  # type: ignore[attr-defined]
    provider.shutdown()


@pytest.mark.unit
def test_launcher_needs_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> None:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.util.find_spec", find)
    with pytest.raises(StartError, match=r"--trace needs the package opentelemetry\.sdk, which"):
        launcher.trace_environment(Settings(trace="http://c:4318"), {})


@pytest.mark.unit
@pytest.mark.parametrize("make", [Settings, ApiSettings])
@pytest.mark.parametrize(
    "address", ["c:4318", "grpc://c:4317", "http://u:secret@c", "http://c,x", "http://c/?a=b", "h"]
)
def test_address_that_is_none_is_refused_without_showing_it(make: Any, address: str) -> None:
    with pytest.raises((StartError, ValueError), match="--trace is not the address") as refused:
        make(trace=address)
    assert "secret" not in str(refused.value)


@pytest.mark.unit
@pytest.mark.parametrize("make", [Settings, ApiSettings])
@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_ratio_out_of_range_is_refused(make: Any, ratio: float) -> None:
    with pytest.raises((StartError, ValueError), match=r"--trace-ratio is .*; allowed: 0 to 1\."):
        make(trace_ratio=ratio)


def call_headers() -> dict[str, str]:
    connection = Connection(
        address="localhost:1", timeout=1, retry_for=0, in_flight=1, tls=False, keepalive=None
    )
    return dict(connection.call(None, "", {}).trace)


@pytest.mark.unit
def test_client_tells_the_span_that_is_current() -> None:
    assert trace_headers() == call_headers() == {}
    state = TraceState([("vendor", "x")])
    flags = TraceFlags(TraceFlags.SAMPLED)
    context = SpanContext(int(TRACE, 16), int(SPAN, 16), False, flags, state)
    with trace.use_span(NonRecordingSpan(context)):
        assert (
            trace_headers()
            == call_headers()
            == {
                "traceparent": PARENT,
                "tracestate": "vendor=x",
            }
        )
    assert trace_headers() == {}


@pytest.mark.unit
def test_client_does_not_tell_a_span_that_is_not_sampled() -> None:
    tracer = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("caller") as span:
        assert span.get_span_context().is_valid
        assert trace_headers() == {}


@pytest.mark.unit
def test_client_and_service_import_nothing_of_opentelemetry() -> None:
    assert AsyncClient.__module__ in sys.modules
    service = (
        "from yolov5_client._api.app import create_app; import yolov5_client._commands.api;"
        "from yolov5_client._api.settings import ApiSettings; create_app(ApiSettings())"
    )
    client = "import yolov5_client; yolov5_client.Client('localhost:1')"
    assert imported_by(f"{client}; {service}") == []


@pytest.mark.unit
def test_tree_of_a_trace_is_drawn(collector: Collector) -> None:
    tracer = open_tracer("preprocess", pytest.fail, {VARIABLE: f"{collector.address}/v1/traces"})
    found = tracer.trace_of(request_with(json.dumps({"traceparent": PARENT})))
    found.record("queue", 1.0, 1.25)
    tracer.close()
    assert draw(collector.spans) == (
        "preprocess: queue                    at    0.00 ms,  250.00 ms  [yolov5-triton]"
    )
