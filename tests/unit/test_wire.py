"""Parameters, answers and errors in the form in which they travel. No server is needed."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hostile import strings, tensors

from yolov5_client import (
    DeniedError,
    ImageTypeError,
    InvalidRequestError,
    ServerError,
    TimedOutError,
    UnavailableError,
    UnknownModelError,
)
from yolov5_client import _wire as wire

# -- images ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "one"),
    [
        (np.zeros(3, np.uint8), True),
        (np.array(["a.jpg", "b.jpg"]), False),
        (np.array([b"a", b"b"], np.object_), False),
        ("photo.jpg", True),
        (b"data", True),
        (lambda: b"data", True),
        (["photo.jpg"], False),
        (iter(["photo.jpg"]), False),
    ],
)
def test_one_image_is_told_from_several(image: Any, one: bool) -> None:
    assert wire.is_one_image(image) is one


def test_bytes_of_any_flat_array_are_sent() -> None:
    for data in (np.zeros(0, np.uint8), np.arange(3, dtype=np.int8), np.zeros((1, 3), np.uint8)):
        assert wire.read(data) == data.tobytes()


@pytest.mark.parametrize(
    "odd", [np.zeros(3, np.bool_), np.array(7, np.uint8), np.zeros(0, np.int16), np.zeros((2, 3))]
)
def test_array_that_cannot_be_a_file_is_refused(odd: Any) -> None:
    with pytest.raises(ImageTypeError, match="an array of .* values"):
        wire.read(odd)


def test_file_that_is_not_there_keeps_its_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: 'none\.jpg'"):
        wire.read("none.jpg")


# -- parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "over_grpc", "over_http"),
    [
        ({"classes": "x" * 4096}, "x" * 4096, "x" * 4096),
        ({"max_det": 2**63 - 1}, 2**63 - 1, "9223372036854775807"),
        ({"max_det": -(2**63)}, -(2**63), "-9223372036854775808"),
        ({"max_det": 1e30}, 1e30, "1e+30"),
        ({"classes": np.int64(2)}, 2, "2"),
        ({"classes": np.str_("bus")}, "bus", "bus"),
        ({"agnostic_nms": np.bool_(False)}, False, "false"),
        ({"classes": ["a,b", "123456789"]}, '["a,b", 123456789]', None),
        ({"classes": ["a,b", "1234567890"]}, '["a,b", "1234567890"]', None),
        ({"classes": ' ["Löwe"]'}, ' ["Löwe"]', '["L\\u00f6we"]'),
        ({"class_conf_thres": '{"Löwe": 0.5}'}, '{"Löwe": 0.5}', '{"L\\u00f6we": 0.5}'),
        ({"class_conf_thres": {"0": 1, 2: 0.5}}, "0:1,2:0.5", None),
        ({"class_conf_thres": {np.int64(1): np.float32(0.5)}}, "1:0.5", None),
        ({"class_conf_thres": {"{bus": 0.5}}, '{"{bus": 0.5}', None),
        ({"class_conf_thres": "bus:0.5, 0:1"}, "bus:0.5, 0:1", None),
        ({"class_conf_thres": np.str_("bus:0.5")}, "bus:0.5", None),
        (
            {"class_conf_thres": "Löwe:0.5, a:b : 1"},
            "Löwe:0.5, a:b : 1",
            '{"L\\u00f6we": "0.5", "a:b": " 1"}',
        ),
    ],
)
def test_parameter_is_sent_as_the_server_reads_it(
    given: dict[str, Any], over_grpc: Any, over_http: str | None
) -> None:
    (name,) = given
    sent = wire.parameters_for_grpc(given)
    assert sent == {name: over_grpc}
    assert type(sent[name]) is type(over_grpc)
    assert [*wire.headers_for_http(given).values()] == [over_http or over_grpc]


def test_text_that_is_far_too_long_is_refused_at_once() -> None:
    started = time.thread_time()
    with pytest.raises(InvalidRequestError, match="^classes is 50331648 bytes long"):
        wire.parameters_for_grpc({"classes": "x" * (48 << 20)})
    assert time.thread_time() - started < 0.5  # other callers of the REST service wait meanwhile


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"classes": "x" * 4097}, "classes is 4097 bytes long; allowed: at most 4096."),
        ({"max_det": 2**63}, "max_det is a number of more than 64 bits."),
        ({"max_det": -(2**63) - 1}, "max_det is a number of more than 64 bits."),
        ({"classes": {0: 1}}, "classes is {0: 1}; allowed: a list, or text."),
        ({"classes": b"x" * 57}, f"classes is b'{'x' * 57}'; allowed: a list, or text."),
        ({"classes": b"x" * 58}, f"classes is b'{'x' * 54}...; allowed: a list, or text."),
        (
            {"class_conf_thres": {"bus": True}},
            "class_conf_thres has True for 'bus'; allowed: a number.",
        ),
        (
            {"class_conf_thres": {0: "x"}},
            "class_conf_thres has 'x' for '0'; allowed: a number.",
        ),
        ({"class_conf_thres": 0.5}, "class_conf_thres is 0.5; allowed: a dict, or text."),
        ({"class_conf_thres": ["bus"]}, "class_conf_thres is ['bus']; allowed: a dict, or text."),
        (
            {"class_conf_thres": {1.5: 0.5}},
            "class_conf_thres has 1.5; allowed: indices, and names of classes as text.",
        ),
        (
            {"class_conf_thres": {"0": 0.5, 0: 0.5}},
            "class_conf_thres has a class twice; allowed: one number for each class.",
        ),
        ({"x" * 101: 1}, f"parameter '{'x' * 60}' is unknown."),
    ],
)
def test_refusal_names_parameter_and_value(given: dict[str, Any], sentence: str) -> None:
    for send in (wire.parameters_for_grpc, wire.headers_for_http):
        with pytest.raises(InvalidRequestError) as caught:
            send(given)
        assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"conf_thres": "½"}, "conf_thres has letters that only gRPC can send."),
        # In JSON, the digits would be a name first, and then an index.
        (
            {"class_conf_thres": "2:0.5,Löwe:0.5"},
            "class_conf_thres has letters that only gRPC can send.",
        ),
        ({"class_conf_thres": "Löwe"}, "class_conf_thres has letters that only gRPC can send."),
        (
            {"class_conf_thres": "Löwe:0.5,Löwe:0.6"},
            "class_conf_thres has a class twice; allowed: one number for each class.",
        ),
        (
            {"class_conf_thres": '{"Löwe": 0.5, "Löwe": 0.6}'},
            "class_conf_thres has a class twice; allowed: one number for each class.",
        ),
        ({"classes": "[Löwe"}, "classes begins like JSON but is not valid JSON."),
        ({"class_conf_thres": "{Löwe"}, "class_conf_thres begins like JSON but is not valid JSON."),
    ],
)
def test_text_that_no_header_can_hold_is_refused_over_http_only(
    given: dict[str, Any], sentence: str
) -> None:
    assert wire.parameters_for_grpc(given) == given
    with pytest.raises(InvalidRequestError) as caught:
        wire.headers_for_http(given)
    assert str(caught.value) == sentence


# -- text of others --------------------------------------------------------------------------


def test_foreign_text_becomes_one_line_of_limited_length() -> None:
    assert wire.one_line(" a\n b\t") == "a b"
    assert wire.one_line("\x1b[31mü\x07") == "\\x1b[31mü\\x07"
    assert wire.one_line("x" * 2000) == "x" * 2000
    assert wire.one_line("x" * 2001) == "x" * 1997 + "..."
    assert wire.one_line(" " * 3999 + "x") == "x"
    assert wire.one_line(" " * 4000 + "x") == "", "no more is looked at"


def test_version_is_read_from_the_metadata() -> None:
    assert wire.version_from_json(b'{"version": "2.51.0\\n"}') == "2.51.0"
    for body in (b"", b"{}", b"[]", b"3", b"[" * 100_000):
        with pytest.raises(ValueError, match=r".+"):
            wire.version_from_json(body)


# -- answers over HTTP -----------------------------------------------------------------------


def output(name: str, datatype: Any, shape: Any, size: Any) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}


def body_of(*outputs: dict[str, Any], data: bytes = b"") -> tuple[bytes, int]:
    head = json.dumps({"outputs": outputs}).encode()
    return head + data, len(head)


def test_tensors_are_taken_from_the_body_in_order() -> None:
    body = body_of(
        output("later", "UINT8", [1], 1),
        output("num_dets", "INT32", [1, 2], 8),
        output("det_labels", "BYTES", [2], 9),
        data=b"x" + np.array([3, 4], "<i4").tobytes() + strings(b"a", b""),
    )
    found = wire.outputs_from_http(*body)
    assert [*found] == ["num_dets", "det_labels"]
    assert found["num_dets"].tolist() == [[3, 4]]
    assert found["det_labels"].tolist() == [b"a", b""]
    assert wire.outputs_from_http(*body_of()) == {}
    empty = wire.outputs_from_http(*body_of(output("num_dets", "INT32", [0], 0)))
    assert empty["num_dets"].shape == (0,)


ONE = output("num_dets", "INT32", [1], 4)


@pytest.mark.parametrize(
    ("body", "length", "sentence"),
    [
        (b"", 0, "its JSON does not describe outputs"),
        (b'{"outputs": []}x', -1, "it claims -1 bytes of JSON"),
        (b"{}", 3, "it claims 3 bytes of JSON, and has 2 bytes in all"),
        (*body_of(output("x", "INT32", [0], -1), output("y", "INT32", [0], 1)), "size of an out"),
        (*body_of(output("x", "INT32", [1], True), data=b"x"), "size of an output is not a number"),
        (*body_of(output("x", "INT32", [1], 1.0), data=b"x"), "size of an output is not a number"),
        (*body_of(ONE, data=b"xxx"), "4 bytes of outputs are described, and 3 came"),
        (*body_of(ONE, data=b"xxxxx"), "4 bytes of outputs are described, and 5 came"),
    ],
)
def test_body_that_does_not_add_up_is_refused(body: bytes, length: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        wire.outputs_from_http(body, length)


def test_output_as_large_as_the_whole_body_does_not_add_up() -> None:
    length = body_of(output("num_dets", "INT32", [1], 100))[1]
    body = body_of(output("num_dets", "INT32", [1], length))
    assert body[1] == length
    with pytest.raises(ValueError, match=f"^{length} bytes of outputs are described, and 0 came"):
        wire.outputs_from_http(*body)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "sentence"),
    [
        ("INT32", None, bytes(4), "num_dets has no shape"),
        ("INT32", {"1": 1}, bytes(4), "num_dets has no shape"),
        ("INT32", [True], bytes(4), "num_dets has no shape"),
        ("INT32", [-1, -1], bytes(4), "num_dets has no shape"),
        ("INT32", [2**31], b"", "num_dets has no shape"),
        ("INT32", [2**31 - 1], b"", r"0 bytes, which do not make \[2147483647\] values"),
        ("INT32", [3], bytes(4), r"4 bytes, which do not make \[3\] values"),
        ("INT32", [3], bytes(7), r"7 bytes, which do not make \[3\] values"),
        (["INT32"], [1], bytes(4), r"num_dets is of the type \['INT32'\]"),
        ("INT64", [1], bytes(8), "num_dets is of the type 'INT64'"),
        ("BYTES", [2], strings(b"a"), r"5 bytes, which do not make \[2\] values"),
        ("BYTES", [1], strings(b"a", b"b"), r"10 bytes, which do not make \[1\] values"),
        ("BYTES", [1], b"\5\0\0\0abcd", "a string that is longer than its bytes"),
        ("BYTES", [1], b"\0\0\0", "a string that is longer than its bytes"),
    ],
)
def test_tensor_whose_bytes_do_not_fit_is_refused(
    datatype: Any, shape: Any, data: bytes, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        wire.tensors([("num_dets", datatype, shape, data)])


def test_large_tensor_is_read() -> None:
    found = wire.tensors([("det_boxes", "FP32", [1, 100, 4], bytes(1600))])
    assert found["det_boxes"].shape == (1, 100, 4)
    words = [b"%d" % number for number in range(300)]
    found = wire.tensors([("det_labels", "BYTES", [1, 300], strings(*words))])
    assert found["det_labels"].tolist() == [words]


def test_first_missing_output_is_named() -> None:
    outputs = wire.tensors((t.name, t.datatype, [*t.shape], t.data) for t in tensors().values())
    assert wire.detections(outputs).labels == ("RBC", "WBC")
    rest = {name: outputs[name] for name in ("num_dets", "det_labels")}
    with pytest.raises(ServerError, match=r"^the answer has no output 'det_boxes'\.$"):
        wire.detections(rest)


# -- errors ----------------------------------------------------------------------------------

VIA = " (through the proxy)"
NO_MODEL = "Request for unknown model: 'plates_ensemble' is not found"
UNKNOWN = "the server has no endpoint 'plates_ensemble', or has not loaded it yet"
NOT_LOADED = "Request for unknown model: 'plates_ensemble' has no available versions"


@pytest.mark.parametrize(
    ("status", "message", "kind", "sentence"),
    [
        ("INVALID_ARGUMENT", "image 1: no", InvalidRequestError, "image 1: no"),
        ("UNAVAILABLE", "gone", UnavailableError, "gone" + VIA),
        ("NOT_FOUND", "no model", UnavailableError, "no model" + VIA),
        ("INVALID_ARGUMENT", NO_MODEL, UnknownModelError, f"{UNKNOWN}{VIA}."),
        ("NOT_FOUND", NO_MODEL, UnknownModelError, f"{UNKNOWN}{VIA}."),
        ("NOT_FOUND", NOT_LOADED, UnavailableError, NOT_LOADED + VIA),
        ("CANCELLED", "ends", UnavailableError, "ends" + VIA),
        ("DEADLINE_EXCEEDED", "late", TimedOutError, "late" + VIA),
        ("UNAUTHENTICATED", "who", DeniedError, "who"),
        ("PERMISSION_DENIED", "", DeniedError, "the server answers with PERMISSION_DENIED."),
        ("INTERNAL", "in ensemble 'yolov5_ensemble', bad", ServerError, "bad"),
        ("INTERNAL", "in ensemble 'plates-2_ensemble', bad", ServerError, "bad"),
        (
            "RESOURCE_EXHAUSTED",
            "CLIENT: Sent message larger than max",
            ServerError,
            "the answer is larger than this client takes: CLIENT: Sent message larger than max",
        ),
        ("RESOURCE_EXHAUSTED", "SERVER: larger", InvalidRequestError, "SERVER: larger"),
        (
            "UNAVAILABLE",
            "Decompressed message larger than max",
            UnavailableError,
            "Decompressed message larger than max" + VIA,
        ),
    ],
)
def test_grpc_status_becomes_an_error_and_a_sentence(
    status: str, message: str, kind: type[Exception], sentence: str
) -> None:
    error = wire.error_from_grpc(f"StatusCode.{status}", message, via=VIA)
    assert (type(error), str(error)) == (kind, sentence)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, InvalidRequestError) for status in (400, 413, 415)),
        *((status, DeniedError) for status in (401, 403, 407)),
        *((status, UnavailableError) for status in (404, 429, 502, 503)),
        (504, TimedOutError),
        *((status, ServerError) for status in (402, 405, 414, 428, 500, 501, 505)),
    ],
)
def test_http_status_becomes_an_error(status: int, kind: type[Exception]) -> None:
    error = wire.error_from_http(status, "Why", b"<html>", via=VIA)
    assert (type(error), str(error)) == (kind, f"HTTP {status} Why{VIA}")
    error = wire.error_from_http(status, "Why", b'{"error": "because"}', via=VIA)
    assert (type(error), str(error)) == (kind, "because"), "the server's own words: no proxy's"
    assert str(wire.error_from_http(status, "Why", b'{"error": ""}')) == f"HTTP {status}"


def test_endpoint_that_the_server_does_not_have_is_named() -> None:
    body = json.dumps({"error": NO_MODEL}).encode()
    error = wire.error_from_http(400, "Bad Request", body, via=VIA)
    assert (type(error), str(error)) == (UnknownModelError, f"{UNKNOWN}.")
    assert isinstance(error, UnavailableError), "a client that waits for the network goes on"
    error = wire.error_from_http(400, "", json.dumps({"error": NOT_LOADED}).encode())
    assert (type(error), str(error)) == (UnavailableError, NOT_LOADED)


def test_image_of_a_list_is_named_by_its_position() -> None:
    error = wire.for_list_position(InvalidRequestError("image 1 of 1: not an image"), 3)
    assert type(error) is InvalidRequestError
    assert str(error) == "image 3 of the list: not an image"
