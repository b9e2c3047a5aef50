from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
from yolov5_client._connection import Backoff
from yolov5_client._wire import (
    detections,
    error_from_grpc,
    error_from_http,
    headers_for_http,
    outputs_from_http,
    parameters_for_grpc,
)


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
    ],
)
def test_unusable_arguments_of_a_client_are_refused(
    kind: Any, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(**arguments)


def test_tls_files_are_checked_when_they_are_given(tmp_path: Path) -> None:
    pem = tmp_path / "one.pem"
    pem.touch()
    with pytest.raises(ValueError, match="certificate and its key belong together"):
        TLS(certificate=pem)
    with pytest.raises(FileNotFoundError):
        TLS(ca=tmp_path / "none.pem")


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
