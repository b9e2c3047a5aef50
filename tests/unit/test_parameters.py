from __future__ import annotations

import json
import math
import string
from dataclasses import replace
from time import thread_time
from typing import Any

import pytest
from default_parameters import DEFAULTS
from parameters import (
    PARAMETER_NAMES,
    ParameterError,
    Parameters,
    parse_parameters,
    read_defaults,
    read_json,
)

LABELS = ("person", "bus", "fire hydrant")


def parse(given: dict[str, Any], defaults: Parameters = DEFAULTS) -> Parameters:
    return parse_parameters(given, LABELS, defaults)


def test_defaults_apply_if_nothing_is_given() -> None:
    defaults = replace(DEFAULTS, conf_thres=0.1, classes=frozenset({1}))
    assert parse({}, defaults) == defaults


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"conf_thres": 0.4}, {"conf_thres": 0.4}),
        ({"conf_thres": "0.4"}, {"conf_thres": 0.4}),
        ({"conf_thres": 1}, {"conf_thres": 1.0}),
        ({"iou_thres": " 1e-1 "}, {"iou_thres": 0.1}),
        ({"iou_thres": 0, "conf_thres": "1"}, {"iou_thres": 0.0, "conf_thres": 1.0}),
        ({"iou_thres": "0", "conf_thres": "+.5E0"}, {"iou_thres": 0.0, "conf_thres": 0.5}),
        ({"max_det": 1000}, {"max_det": 1000}),
        ({"max_det": "1"}, {"max_det": 1}),
        ({"max_det": " 7 "}, {"max_det": 7}),
        ({"max_det": "7".zfill(19)}, {"max_det": 7}),
        ({"classes": "1".zfill(9)}, {"classes": {1}}),
        ({"classes": "0"}, {"classes": {0}}),
        ({"classes": "[0]"}, {"classes": {0}}),
        ({"classes": ",".join(["0"] * 2048) + "0"}, {"classes": {0}}),  # 4096 bytes
        ({"agnostic_nms": " 1 ", "multi_label": "False"}, {"agnostic_nms": True}),
        ({"max_det": 1}, {"max_det": 1}),
        ({"max_det": "1000"}, {"max_det": 1000}),
        ({"classes": "0,2"}, {"classes": {0, 2}}),
        ({"classes": " bus , fire hydrant,0"}, {"classes": {0, 1, 2}}),
        (
            {"agnostic_nms": True, "multi_label": "TRUE"},
            {"agnostic_nms": True, "multi_label": True},
        ),
        ({"agnostic_nms": "0"}, {"agnostic_nms": False}),
        ({"class_conf_thres": "person:0.6"}, {"class_conf_thres": {0: 0.6}, "conf_thres": 0.25}),
        ({"class_conf_thres": "2:1,person:0"}, {"class_conf_thres": {2: 1.0, 0: 0.0}}),
        (
            {"class_conf_thres": " fire hydrant : 1e-1 ,1:.5"},
            {"class_conf_thres": {2: 0.1, 1: 0.5}},
        ),
        ({"class_conf_thres": '{"bus": 0.6, "2": 1}'}, {"class_conf_thres": {1: 0.6, 2: 1.0}}),
        ({"class_conf_thres": ' {"bus": "0.6"} '}, {"class_conf_thres": {1: 0.6}}),
        ({"X-Yolo-Class-Conf-Thres": "bus:0.6"}, {"class_conf_thres": {1: 0.6}}),
        # 4096 bytes
        ({"class_conf_thres": f"0:0.{'0' * 4092}"}, {"class_conf_thres": {0: 0.0}}),
        ({"X-Yolo-Conf-Thres": "0.4"}, {"conf_thres": 0.4}),
        ({"x-YOLO-max-DET": "7"}, {"max_det": 7}),
        ({"x-yolo-agnostic_nms": "true"}, {"agnostic_nms": True}),
    ],
)
def test_valid_parameter_is_read(given: dict[str, Any], expected: dict[str, Any]) -> None:
    parsed = parse(given)
    assert {name: getattr(parsed, name) for name in expected} == expected


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"conf_thres": 1.01}, "conf_thres is 1.01; allowed: a number from 0 to 1"),
        ({"conf_thres": -0.1}, "conf_thres is -0.1;"),
        ({"conf_thres": True}, "conf_thres is True;"),
        ({"conf_thres": "nan"}, "conf_thres is 'nan';"),
        ({"conf_thres": float("nan")}, "conf_thres is nan;"),
        ({"conf_thres": "inf"}, "conf_thres is 'inf';"),
        ({"conf_thres": "0x1"}, "conf_thres is '0x1';"),
        ({"conf_thres": "٠.٥"}, "conf_thres is '\\u0660.\\u0665';"),
        ({"conf_thres": None}, "conf_thres is None;"),
        ({"max_det": 1.0}, "max_det is 1.0; allowed: a whole number from 1 to 1000"),
        ({"max_det": "1e2"}, "max_det is '1e2';"),
        ({"max_det": 0}, "max_det is 0;"),
        ({"max_det": 1001}, "max_det is 1001;"),
        ({"max_det": True}, "max_det is True;"),
        ({"max_det": "7".zfill(20)}, "max_det is '00000000000000000007';"),
        ({"max_det": "x" * 58}, f"max_det is '{'x' * 58}';"),
        ({"max_det": "x" * 59}, f"max_det is '{'x' * 55}...';"),
        ({"classes": "1".zfill(10)}, "classes names '0000000001';"),
        ({"classes": '["0000000001"]'}, "classes names '0000000001';"),
        ({"classes": "[1"}, "classes is '[1'; allowed where it begins with '[': a JSON list"),
        ({"classes": "{}"}, "classes names '{}';"),
        ({"agnostic_nms": "2"}, "agnostic_nms is '2';"),
        ({"max_det": "9" * 4000}, "max_det is '99999"),
        ({"max_det": "9" * 4097}, "max_det is too long; allowed: at most 4096 bytes"),
        ({"classes": "0," * 2048 + "0"}, "classes is too long; allowed: at most 4096 bytes"),
        ({"X-Yolo-Classes": "ä" * 2049}, "classes is too long; allowed: at most 4096 bytes"),
        ({"classes": "[" * 4096}, "classes is '[[["),
        ({"classes": "[]"}, "classes is '[]'; allowed where it begins with '[': a JSON list"),
        ({"classes": "[0"}, "classes is '[0'; allowed where it begins with '[': a JSON list"),
        ({"classes": "[3]"}, "classes names 3; allowed: indices from 0 to 2 or class names"),
        ({"classes": "[-1]"}, "classes names -1;"),
        ({"classes": "[1.0]"}, "classes names 1.0;"),
        ({"classes": "[true]"}, "classes names True;"),
        ({"classes": "[[0]]"}, "classes names [0];"),
        ({"classes": '["bus "]'}, "classes names 'bus ';"),
        ({"classes": 0}, "classes is 0; allowed: a string of indices or names"),
        ({"classes": ""}, "classes names ''; allowed: indices from 0 to 2 or class names"),
        ({"classes": "3"}, "classes names '3';"),
        ({"classes": "-1"}, "classes names '-1';"),
        ({"agnostic_nms": 1}, "agnostic_nms is 1; allowed: true or false"),
        (
            {"class_conf_thres": "dog:0.6"},
            "class_conf_thres names 'dog'; allowed: indices from 0 to 2 or class names such as"
            " 'person'",
        ),
        ({"class_conf_thres": "3:0.6"}, "class_conf_thres names '3'; allowed: indices from 0 to 2"),
        ({"class_conf_thres": "-1:0.6"}, "class_conf_thres names '-1';"),
        ({"class_conf_thres": ":0.6"}, "class_conf_thres names '';"),
        ({"class_conf_thres": "bus:0.6:0.7"}, "class_conf_thres names 'bus:0.6';"),
        ({"class_conf_thres": "0000000001:1"}, "class_conf_thres names '0000000001';"),
        (
            {"class_conf_thres": "bus:1.01"},
            "class_conf_thres for 'bus' is '1.01'; allowed: a number from 0 to 1",
        ),
        ({"class_conf_thres": "bus:-0.1"}, "class_conf_thres for 'bus' is '-0.1';"),
        ({"class_conf_thres": "bus:nan"}, "class_conf_thres for 'bus' is 'nan';"),
        ({"class_conf_thres": "bus:inf"}, "class_conf_thres for 'bus' is 'inf';"),
        ({"class_conf_thres": "bus:"}, "class_conf_thres for 'bus' is '';"),
        ({"class_conf_thres": "0:0.6, :"}, "class_conf_thres names '';"),
        (
            {"class_conf_thres": "bus:0.6,"},
            "class_conf_thres is 'bus:0.6,'; allowed: a string of indices or names with numbers,"
            " such as '0:0.6,2:0.3', or a JSON object",
        ),
        ({"class_conf_thres": ""}, "class_conf_thres is ''; allowed: a string of indices or names"),
        ({"class_conf_thres": "bus"}, "class_conf_thres is 'bus';"),
        ({"class_conf_thres": "bus:0.6,,0:0.6"}, "class_conf_thres is 'bus:0.6,,0:0.6';"),
        ({"class_conf_thres": '["bus", 0.6]'}, "class_conf_thres is '[\"bus\", 0.6]';"),
        ({"class_conf_thres": 0.6}, "class_conf_thres is 0.6; allowed: a string of indices"),
        ({"class_conf_thres": True}, "class_conf_thres is True;"),
        (
            {"class_conf_thres": "bus:0.6,0:0.5,bus:0.6"},
            "class_conf_thres names 'bus', a class that has a number already; allowed: one number"
            " for each class",
        ),
        ({"class_conf_thres": "bus:0.6,1:0.6"}, "class_conf_thres names '1', a class that has"),
        ({"class_conf_thres": '{"bus": 1, "bus": 1}'}, "class_conf_thres names 'bus', a class"),
        ({"class_conf_thres": '{"1": 1, "bus": 1}'}, "class_conf_thres names 'bus', a class that"),
        ({"class_conf_thres": '{"dog": 0.6}'}, "class_conf_thres names 'dog';"),
        ({"class_conf_thres": '{"bus ": 0.6}'}, "class_conf_thres names 'bus ';"),
        ({"class_conf_thres": '{"3": 0.6}'}, "class_conf_thres names '3';"),
        ({"class_conf_thres": '{"bus": NaN}'}, "class_conf_thres for 'bus' is nan;"),
        ({"class_conf_thres": '{"bus": -1e-9}'}, "class_conf_thres for 'bus' is -1e-09;"),
        ({"class_conf_thres": '{"bus": 1e999}'}, "class_conf_thres for 'bus' is inf;"),
        ({"class_conf_thres": f'{{"bus": {"9" * 4000}}}'}, "class_conf_thres for 'bus' is 99999"),
        ({"class_conf_thres": '{"bus": true}'}, "class_conf_thres for 'bus' is True;"),
        ({"class_conf_thres": '{"bus": null}'}, "class_conf_thres for 'bus' is None;"),
        ({"class_conf_thres": '{"bus": {"0": 1}}'}, "class_conf_thres for 'bus' is [('0', 1)];"),
        ({"class_conf_thres": '{"bus": [0.6]}'}, "class_conf_thres for 'bus' is [0.6];"),
        (
            {"class_conf_thres": "{}"},
            "class_conf_thres is '{}'; allowed where it begins with '{': a JSON object of names or"
            " indices with numbers, such as '{\"a,b\": 0.6}'",
        ),
        ({"class_conf_thres": "{bus: 0.6}"}, "class_conf_thres is '{bus: 0.6}'; allowed where"),
        ({"class_conf_thres": '{"bus": 0.6} x'}, "allowed where it begins with '{': a JSON"),
        ({"class_conf_thres": '{"a":' * 800}, "allowed where it begins with '{': a JSON"),
        (
            {"class_conf_thres": f"0:0.{'0' * 4093}"},
            "class_conf_thres is too long; allowed: at most 4096 bytes",
        ),
        (
            {"class_conf_thres": "0:1", "X-Yolo-Class-Conf-Thres": "0:1"},
            "parameter 'class_conf_thres' is given twice;",
        ),
        ({"conf": 0.4}, "parameter 'conf' is unknown; allowed: conf_thres, iou_thres, max_det,"),
        ({"Conf_Thres": 0.4}, "parameter 'Conf_Thres' is unknown;"),
        ({"conf-thres": 0.4}, "parameter 'conf-thres' is unknown;"),
        ({"x-yolo-x-yolo-conf-thres": "1"}, "is unknown;"),
        ({"a\nb": 1}, "parameter 'a\\nb' is unknown;"),
        ({"conf_thres": 0.4, "X-Yolo-Conf-Thres": "0.4"}, "parameter 'conf_thres' is given twice;"),
    ],
)
def test_invalid_parameter_is_refused_with_what_is_allowed(
    given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ParameterError) as caught:
        parse(given)
    message = str(caught.value)
    assert sentence in message
    assert len(message) < 250
    assert all(character in string.printable and character != "\n" for character in message)


def test_parameters_of_triton_are_ignored() -> None:
    for name in (
        "sequence_id",
        "priority",
        "id",
        "timeout",
        "binary_data_output",
        "triton_final_response",
    ):
        assert parse({name: 1}) == DEFAULTS
        assert parse({name: 1, "max_det": 7}) == replace(DEFAULTS, max_det=7)


ODD = ("a,b", " blank ", "1", '"q" \\ {x}:', "Katze 猫", "dog", "dog", "[x]", "")


@pytest.mark.parametrize(
    "classes, expected",
    [
        ('["a,b", 2]', {0, 2}),
        (' ["a,b"]', {0}),
        ('[" blank "]', {1}),
        ("[1]", {1}),  # a number is an index
        ('["1"]', {2}),  # a string is a name
        ('["7"]', {7}),  # or an index, if there is no such name
        ("1", {1}),  # without JSON it is an index first
        (json.dumps([ODD[3]]), {3}),
        ('["Katze \\u732b"]', {4}),  # ASCII, as for a header
        ("Katze 猫", {4}),
        ('["Katze 猫", "dog", 0, 0]', {0, 4, 5, 6}),
        ("dog", {5, 6}),
        ('["[x]", ""]', {7, 8}),
    ],
)
@pytest.mark.parametrize("key", ["classes", "X-Yolo-Classes"])
def test_classes_of_any_name_can_be_chosen(key: str, classes: str, expected: set[int]) -> None:
    assert parse_parameters({key: classes}, ODD, DEFAULTS).classes == expected


@pytest.mark.parametrize(
    "thresholds, expected",
    [
        ('{"a,b": 0.5, "7": 0.25}', {0: 0.5, 7: 0.25}),
        ('{" blank ": 0.5}', {1: 0.5}),
        ('{"1": 0.5}', {2: 0.5}),  # a string is a name
        ("1:0.5", {1: 0.5}),  # without JSON it is an index first
        (json.dumps({ODD[3]: 0.5}), {3: 0.5}),
        ('{"Katze \\u732b": 0.5}', {4: 0.5}),  # ASCII, as for a header
        ("Katze 猫:0.5", {4: 0.5}),
        ('{"Katze 猫": 0.5, "dog": 0.25}', {4: 0.5, 5: 0.25, 6: 0.25}),
        ("dog:0.5", {5: 0.5, 6: 0.5}),
        ('{"[x]": 0.5, "": 0.25}', {7: 0.5, 8: 0.25}),
        ("[x]:0.5,:0.25", {7: 0.5, 8: 0.25}),
        (f"{ODD[3]}:0.5", {3: 0.5}),  # the last colon is the one before the number
    ],
)
@pytest.mark.parametrize("key", ["class_conf_thres", "X-Yolo-Class-Conf-Thres"])
def test_classes_of_any_name_can_have_a_threshold(
    key: str, thresholds: str, expected: dict[int, float]
) -> None:
    assert parse_parameters({key: thresholds}, ODD, DEFAULTS).class_conf_thres == expected


def test_class_with_a_name_of_several_has_one_threshold() -> None:
    for given in ("dog:0.5,6:0.5", "5:0.5,dog:0.5", '{"dog": 0.5, "dog": 0.5}'):
        with pytest.raises(ParameterError, match="a class that has a number already"):
            parse_parameters({"class_conf_thres": given}, ODD, DEFAULTS)


def test_parameters_that_are_too_long_are_refused_at_once() -> None:
    assert read_json('{"max_det": 7}') == {"max_det": 7}
    for name in ("classes", "triton_x", "x" * 100):
        text = json.dumps({name: "0," * 20_000_000})
        started = thread_time()
        with pytest.raises(ParameterError, match="characters long; allowed: at most 262144"):
            read_json(text)
        assert thread_time() - started < 0.1


def test_parameters_may_be_256_kibibytes_long() -> None:
    text = json.dumps({"triton_x": ""})
    longest = text.replace('""', f'"{"x" * (256 * 1024 - len(text))}"')
    assert len(longest) == 256 * 1024
    assert [*read_json(longest)] == ["triton_x"]
    with pytest.raises(ParameterError, match="262145 characters long"):
        read_json(longest + " ")


def test_defaults_must_hold_every_parameter_but_those_about_classes() -> None:
    about_classes = {"classes", "class_conf_thres"}
    given = {name: getattr(DEFAULTS, name) for name in PARAMETER_NAMES if name not in about_classes}
    assert read_defaults(given, LABELS) == DEFAULTS
    assert read_defaults({**given, "classes": "bus"}, LABELS).classes == {1}
    thresholds = read_defaults({**given, "class_conf_thres": "bus:0.5"}, LABELS)
    assert thresholds.class_conf_thres == {1: 0.5}
    # A request replaces them as a whole; those it does not give stay.
    assert parse({"class_conf_thres": "0:1"}, thresholds).class_conf_thres == {0: 1.0}
    assert parse({"conf_thres": 0.125}, thresholds).class_conf_thres == {1: 0.5}
    for name in given:
        with pytest.raises(ParameterError, match=f"^{name} has no default"):
            read_defaults({key: value for key, value in given.items() if key != name}, LABELS)
    assert read_defaults({**given, "multi_label": True}, LABELS).multi_label
    for best_class_only in (False, True):
        assert read_defaults(given, LABELS, best_class_only=best_class_only) == DEFAULTS


def test_the_longest_parameters_are_read_quickly() -> None:
    names = [f"class {index}" for index in range(1000)]
    given = {
        "classes": ",".join(["class 999"] * 409),
        "class_conf_thres": ",".join(f"{index}:1" for index in range(700)),
        **{f"triton_{index}": "x" * 4096 for index in range(60)},
    }
    started = thread_time()
    assert parse_parameters(read_json(json.dumps(given)), names, DEFAULTS).classes == {999}
    assert thread_time() - started < 0.1


def test_parameters_become_rows_of_the_tensors() -> None:
    parsed = parse({"max_det": 7, "classes": "bus", "multi_label": True})
    assert parsed.as_rows(3) == ((0.25, 0.45, 7, False, True), [math.inf, 0.25, math.inf])
    assert DEFAULTS.as_rows(2) == ((0.25, 0.45, 300, False, False), [0.25, 0.25])
    parsed = parse({"conf_thres": 0.5, "class_conf_thres": "0:0.125,1:0.75"})
    assert parsed.as_rows(3) == ((0.125, 0.45, 300, False, False), [0.125, 0.75, 0.5])
    parsed = parse({"classes": "1,2", "class_conf_thres": "0:0.125,1:0.75"})
    assert parsed.as_rows(3) == ((0.25, 0.45, 300, False, False), [math.inf, 0.75, 0.25])
    assert sorted(Parameters.__dataclass_fields__) == sorted(PARAMETER_NAMES)


def test_multi_label_is_refused_if_the_model_reports_only_the_best_class() -> None:
    assert not parse_parameters({}, LABELS, DEFAULTS, best_class_only=True).multi_label
    with pytest.raises(ParameterError) as caught:
        parse_parameters({"multi_label": True}, LABELS, DEFAULTS, best_class_only=True)
    assert str(caught.value) == (
        "multi_label is true, but this model tells only the best class of each box; allowed: false"
    )


def test_agnostic_nms_is_refused_if_the_model_chooses_its_boxes_itself() -> None:
    asked = {"agnostic_nms": True}
    assert parse_parameters(asked, LABELS, DEFAULTS, best_class_only=True).agnostic_nms
    with pytest.raises(ParameterError) as caught:
        parse_parameters(asked, LABELS, DEFAULTS, best_class_only=True, end_to_end=True)
    assert str(caught.value) == (
        "agnostic_nms is true, but this model suppresses overlapping boxes itself; allowed: false"
    )
    # Every request has an IoU threshold, and clients send the default.
    parsed = parse_parameters({"iou_thres": 0.3}, LABELS, DEFAULTS, end_to_end=True)
    assert (parsed.iou_thres, parsed.agnostic_nms) == (0.3, False)
