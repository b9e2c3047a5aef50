from __future__ import annotations

import json
import ssl
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from yolov5_client import (
    TLS,
    AsyncClient,
    Client,
    DeniedError,
    InvalidRequestError,
    ServerError,
    TimedOutError,
    UnavailableError,
)
from yolov5_client._connection import LARGEST_ANSWER, Backoff, Connection
from yolov5_client._wire import (
    detections,
    error_from_grpc,
    error_from_http,
    headers_for_http,
    outputs_from_http,
    parameters_for_grpc,
)

YEAR = 366 * 24 * 3600.0  # seconds


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"timeout": 0}, "timeout is 0; allowed: more than 0 seconds"),
        ({"retry_for": -1}, "retry_for is -1; allowed: 0 seconds or more"),
        ({"in_flight": 0}, "in_flight is 0; allowed: 1 or more"),
        ({"timeout": float("nan")}, "timeout is nan; allowed: more than 0 seconds, at most a year"),
        ({"timeout": float("inf")}, "timeout is inf; allowed"),
        ({"retry_for": float("nan")}, "retry_for is nan; allowed: 0 seconds or more"),
        ({"keepalive": 1e9}, "keepalive is 1000000000.0; allowed"),
        ({"address": "http://"}, "'http://' is no address"),
        ({"keepalive": 0}, "keepalive is 0; allowed: more than 0 seconds, or None"),
        ({"address": "http://there", "tls": True}, "tls needs an https:// address"),
        ({"address": "http://there", "tls": TLS()}, "tls needs an https:// address"),
        ({"address": "http://there:0"}, "'http://there:0' is no address"),
        ({"address": "http://the re"}, "'http://the re' is no address"),
        ({"timeout": YEAR + 1}, "timeout is 31622401.0; allowed: more than 0 seconds, at most"),
        ({"retry_for": YEAR + 1}, "retry_for is 31622401.0; allowed: 0 seconds or more, at most"),
        ({"keepalive": 86401}, "keepalive is 86401; allowed: .* at most a day"),
    ],
)
def test_unusable_arguments_of_a_client_are_refused(
    kind: Any, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**arguments)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "name",
    [
        *("", "Plates", "pla tes", "-plates", "_plates", "plätes", "a/b", "plates.2", "a" * 41),
        *("plates_ensemble", "preprocess", "postprocess", "plates\n", None, 7),
    ],
)
def test_name_that_no_network_can_have_is_refused(kind: Any, name: Any) -> None:
    with pytest.raises(ValueError, match=r"^model is .*; allowed: up to 40 lower-case letters, .*"):
        kind(model=name)


@pytest.mark.parametrize("name", ["yolov5", "a", "7", "plates-2_b", "a" * 40, "preprocess2"])
def test_endpoint_is_named_after_the_network(name: str) -> None:
    assert connection(model=name).endpoint == f"{name}_ensemble"


def test_tls_files_are_checked_when_they_are_given(tmp_path: Path) -> None:
    pem = tmp_path / "one.pem"
    pem.touch()
    with pytest.raises(ValueError, match="certificate and its key belong together"):
        TLS(certificate=pem)
    with pytest.raises(FileNotFoundError):
        TLS(ca=tmp_path / "none.pem")


def test_every_file_of_tls_is_read(tmp_path: Path) -> None:
    pem = tmp_path / "one.pem"
    pem.touch()
    with pytest.raises(ValueError, match="certificate and its key belong together"):
        TLS(key=pem)
    for certificate, key in ((pem, "none"), ("none", pem)):
        with pytest.raises(FileNotFoundError, match="'none'"):
            TLS(certificate=certificate, key=key)


def test_certificate_of_a_client_is_loaded(tmp_path: Path) -> None:
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    ca, certificate, key = (tmp_path / name for name in ("ca", "certificate", "key"))
    authority.cert_pem.write_to_path(ca)
    own.cert_chain_pems[0].write_to_path(certificate)
    own.private_key_pem.write_to_path(key)
    context = TLS(ca=ca, certificate=certificate, key=key).context()
    assert len(context.get_ca_certs()) == 1
    with pytest.raises(ssl.SSLError):
        TLS(certificate=certificate, key=ca).context()


def connection(address: str = "127.0.0.1:8001", **changes: Any) -> Connection:
    """The arguments of a client, unless changed."""
    arguments: dict[str, Any] = {
        "address": address,
        "timeout": 1.0,
        "retry_for": 0.0,
        "in_flight": 1,
        "tls": None,
        "keepalive": None,
    }
    return Connection(**{**arguments, **changes})


def test_answer_of_16_mib_is_the_largest() -> None:
    assert LARGEST_ANSWER == 16 * 1024 * 1024


def test_extreme_values_are_accepted() -> None:
    extreme = connection(timeout=YEAR, retry_for=YEAR, in_flight=1, keepalive=86400)
    assert (extreme.timeout, extreme.retry_for, extreme.keepalive) == (YEAR, YEAR, 86400)
    smallest = connection("http://there:1", timeout=1e-9, retry_for=0, keepalive=1e-9, tls=False)
    assert smallest.retry_for == 0
    assert connection(headers={"X-Key": "a b\tc~"}).headers == {"X-Key": "a b\tc~"}


def test_kind_of_connection_follows_from_the_address_and_tls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert connection().encryption is None
    assert connection(tls=False).encryption is None
    assert connection(tls=True).encryption == TLS()
    tls = TLS()
    assert connection("https://there", tls=tls).encryption is tls
    assert [connection(a).http for a in ("there:1", "http://there", "https://there")] == [
        *(False, True, True)
    ]
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert connection("http://there").via == ""
    monkeypatch.setenv("http_proxy", "http://user:word@between:3128")
    through = " (through the proxy http://between:3128 that http_proxy names)"
    assert connection("http://there").via == through
    assert connection("http://127.0.0.1").via == ""


def test_pauses_double_up_to_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[tuple[float, float]] = []

    def longest(low: float, high: float) -> float:
        ends.append((low, high))
        return high

    monkeypatch.setattr("random.uniform", longest)
    backoff = iter(Backoff(1000))
    highs = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert [next(backoff) for _ in highs] == highs
    assert ends == [(high / 2, high) for high in highs]


def test_pauses_end_with_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr("yolov5_client._connection.time.monotonic", lambda: now[0])
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    backoff = iter(Backoff(0.25))
    assert next(backoff) == 0.1
    now[0] += 0.125
    assert next(backoff) == 0.125, "no longer than the budget"
    now[0] += 0.125
    assert next(backoff, None) is None
    assert [*Backoff(0)] == []


def test_backoff_grows_and_ends() -> None:
    assert list(Backoff(0)) == []
    backoff = iter(Backoff(1000))
    delays = [next(backoff) for _ in range(8)]
    for delay, longest in zip(delays, (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0)):
        assert longest / 2 <= delay <= longest
    started = time.monotonic()
    for delay in Backoff(0.3):
        time.sleep(delay)
    assert 0.3 <= time.monotonic() - started < 5


def test_parameters_keep_their_types_over_grpc() -> None:
    given = {"conf_thres": 0.4, "classes": [0, "bus"], "max_det": np.int64(3), "multi_label": True}
    wire = {"conf_thres": 0.4, "classes": "0,bus", "max_det": 3, "multi_label": True}
    assert parameters_for_grpc(given) == wire
    assert json.dumps(parameters_for_grpc(given)) == json.dumps(wire)
    assert parameters_for_grpc({"classes": "0,2"}) == {"classes": "0,2"}


def test_parameters_become_headers_over_http() -> None:
    given = {"conf_thres": np.float32(0.5), "classes": [0, "bus"], "multi_label": True}
    assert headers_for_http(given) == {
        "X-Yolo-Conf-Thres": "0.5",
        "X-Yolo-Classes": "0,bus",
        "X-Yolo-Multi-Label": "true",
    }
    with pytest.raises(InvalidRequestError, match="conf_thres has letters"):
        headers_for_http({"conf_thres": "0.5\r\nX-Evil: 1"})


CLASSES = [
    # The argument, its form over gRPC, and its form over HTTP if that differs.
    ([0, "bus"], "0,bus", None),
    (["0", np.int64(2)], "0,2", None),
    (("traffic light",), "traffic light", None),
    (["a,b", 2], '["a,b", 2]', None),
    (["a,b", "2"], '["a,b", 2]', None),
    ([" outer "], '[" outer "]', None),
    (["[x"], '["[x"]', None),
    ([""], '[""]', None),
    (['say "hi"'], 'say "hi"', None),
    (["Löwe", 1], "Löwe,1", '["L\\u00f6we", 1]'),
    (["two\nlines"], "two\nlines", '["two\\nlines"]'),
    ("0,2", "0,2", None),
    ("Löwe, 2", "Löwe, 2", '["L\\u00f6we", 2]'),
    ('["Löwe", "2"]', '["Löwe", "2"]', '["L\\u00f6we", "2"]'),
    ("a\r\nX-Evil: 1", "a\r\nX-Evil: 1", '["a\\r\\nX-Evil: 1"]'),
]


@pytest.mark.parametrize(("given", "text", "header"), CLASSES)
def test_class_lists_are_sent_as_text_or_json(given: Any, text: str, header: str | None) -> None:
    """Plain text, which every server reads, if possible; otherwise JSON, in headers in ASCII."""
    assert parameters_for_grpc({"classes": given}) == {"classes": text}
    assert headers_for_http({"classes": given}) == {"X-Yolo-Classes": header or text}


def test_class_thresholds_are_sent_as_text_or_json() -> None:
    for given, text in (
        ({"bus": 0.5, 2: 0.25}, "bus:0.5,2:0.25"),
        ({"a,b": 0.5}, '{"a,b": 0.5}'),
        ({"a:b": 0.5}, '{"a:b": 0.5}'),
    ):
        assert parameters_for_grpc({"class_conf_thres": given}) == {"class_conf_thres": text}
    headers = headers_for_http({"class_conf_thres": {"Löwe": 0.5}})
    assert headers == {"X-Yolo-Class-Conf-Thres": '{"L\\u00f6we": 0.5}'}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"classes": 2}, "classes is 2; allowed: a list, or text"),
        ({"classes": b"RBC"}, "classes is b'RBC'; allowed: a list, or text"),
        ({"classes": [1.5]}, "classes has 1.5; allowed: indices, and names"),
        ({"classes": [True]}, "classes has True; allowed"),
        ({"classes": [None]}, "classes has None; allowed"),
        ({"classes": ["x" * 5000]}, "classes is 5000 bytes long; allowed: at most 4096"),
        ({"classes": "ö" * 2500}, "allowed: at most 4096"),
        ({"max_det": 2**70}, "max_det is a number of more than 64 bits"),
        ({"max_det": None}, "max_det is None; leave it out"),
        ({"max_det": [1]}, r"max_det is \[1\]; allowed: a number, text or a bool"),
        ({"a\r\nb": 1}, "parameter 'a.*' is unknown"),
    ],
)
def test_unsendable_parameter_is_named(given: dict[str, Any], sentence: str) -> None:
    for send in (parameters_for_grpc, headers_for_http):
        with pytest.raises(InvalidRequestError, match=sentence) as caught:
            send(given)
        assert len(str(caught.value)) < 200


def test_each_status_becomes_the_error_a_caller_can_act_on() -> None:
    refused = error_from_grpc(
        "StatusCode.INVALID_ARGUMENT", "in ensemble 'yolov5_ensemble', max_det is 0"
    )
    assert isinstance(refused, InvalidRequestError)
    assert str(refused) == "max_det is 0"
    kinds = {
        "UNAVAILABLE": UnavailableError,
        "DEADLINE_EXCEEDED": TimedOutError,
        "PERMISSION_DENIED": DeniedError,
        "INTERNAL": ServerError,
        "UNIMPLEMENTED": ServerError,
    }
    for status, kind in kinds.items():
        assert type(error_from_grpc(f"StatusCode.{status}", "")) is kind
    body = b'{"error": "in ensemble \'yolov5_ensemble\', max_det is 0"}'
    assert repr(error_from_http(400, "Bad Request", body)) == repr(refused)
    for code, kind in {503: UnavailableError, 401: DeniedError, 500: ServerError}.items():
        error = error_from_http(code, "Some Reason", b"<html>")
        assert type(error) is kind
        assert str(error) == f"HTTP {code} Some Reason"


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"outputs": [{"name": "num_dets"}]}', b'{"outputs": 3}'],
)
def test_malformed_http_answer_is_refused(body: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        outputs_from_http(body, len(body))


def test_answer_without_an_output_is_refused() -> None:
    with pytest.raises(ServerError, match="no output 'num_dets'"):
        detections({})


@pytest.mark.parametrize(
    "headers", [{"X-Api-Key": "secret\n"}, {"X-Name": "Ü"}, {"data-bin": "x"}, {"a b": "x"}]
)
def test_unsendable_header_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot be sent") as caught:
        Client("127.0.0.1:1", headers=headers)
    assert "secret" not in str(caught.value)


def test_unusable_address_is_refused() -> None:
    with pytest.raises(ValueError, match="is no address"):
        Client("http://localhost:port")
