"""Request parameters become rows of tensors, and are read once if they are short."""

from __future__ import annotations

import json

import numpy as np
import pytest
from default_parameters import DEFAULTS
from parameter_reader import ParameterReader
from parameters import ParameterError, parse_parameters

NAMES = ("cat", "dog")


def test_rows_are_those_of_the_parameters() -> None:
    given = {"conf_thres": 0.3, "classes": "dog", "class_conf_thres": "dog:0.7"}
    rows = ParameterReader(NAMES, DEFAULTS).read(json.dumps(given))
    nms, class_conf_thres = parse_parameters(given, NAMES, DEFAULTS).as_rows(2)
    assert rows.nms.dtype == rows.class_conf_thres.dtype == np.float32
    np.testing.assert_array_equal(rows.nms, np.array([nms], np.float32))
    np.testing.assert_array_equal(rows.class_conf_thres, np.array([class_conf_thres], np.float32))


@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_repeated_for_each_image(count: int) -> None:
    rows = ParameterReader(NAMES, DEFAULTS).read("")
    nms, class_conf_thres = rows.repeat(count)
    assert nms.shape == (count, 5) and class_conf_thres.shape == (count, 2)
    assert (nms == rows.nms).all() and (class_conf_thres == rows.class_conf_thres).all()
    assert nms.flags.c_contiguous and class_conf_thres.flags.c_contiguous


def test_equal_requests_share_rows_and_others_do_not() -> None:
    reader = ParameterReader(NAMES, DEFAULTS)
    assert reader.read("{}") is reader.read("{}")
    low, high = (reader.read(json.dumps({"conf_thres": value})) for value in (0.1, 0.9))
    assert low.nms[0, 0] == np.float32(0.1) and high.nms[0, 0] == np.float32(0.9)


def test_only_so_many_and_no_long_ones_are_remembered() -> None:
    reader = ParameterReader(NAMES, DEFAULTS)
    first = reader.read("{}")
    for number in range(300):
        reader.read(json.dumps({"conf_thres": number / 1000}))
    assert reader.read("{}") is not first
    long = json.dumps({"classes": "cat," * 400 + "dog"})
    assert reader.read(long) is not reader.read(long)


def test_wrong_parameter_is_refused_each_time() -> None:
    reader = ParameterReader(NAMES, DEFAULTS, best_class_only=True)
    for _ in range(2):
        with pytest.raises(ParameterError, match="multi_label"):
            reader.read('{"multi_label": true}')
        with pytest.raises(ParameterError, match="conf_thres is 7"):
            reader.read('{"conf_thres": 7}')
