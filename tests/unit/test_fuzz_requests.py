"""Any parameters and any bytes that a caller sends are answered or refused."""

from __future__ import annotations

import base64
import json
import string
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from decode import REASONS
from decoding import LIMITS, decoding_process, prepare
from default_parameters import DEFAULTS
from fuzzing import fuzz, is_sentence, spoilt
from hypothesis import example, given
from hypothesis import strategies as st
from parameters import PARAMETER_NAMES, ParameterError, Parameters, parse_parameters, read_defaults

LABELS = ("person", "bus", "fire hydrant", "a,b", "7", "自転車")


@st.composite
def letter_case(draw: st.DrawFn, text: str) -> str:
    upper = draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    return "".join(c.upper() if up else c.lower() for c, up in zip(text, upper))


HEADERS = st.sampled_from(PARAMETER_NAMES).flatmap(
    lambda n: letter_case(f"x-yolo-{n.replace('_', '-')}")
)
KEYS = st.one_of(
    st.sampled_from(PARAMETER_NAMES),
    HEADERS,
    HEADERS.map(lambda name: name.replace("-", "_")),
    st.sampled_from(("sequence_id", "triton_x", "priority", "id", "timeout", "X-Yolo-", "conf")),
    st.text(max_size=20),
    st.sampled_from(("x" * 300, "\0" * 300, "x-yolo-" * 40)),
)
NUMBERS = st.one_of(
    st.integers(-(10**400), 10**400),
    st.integers(-2, 1002),
    st.floats(),
    st.floats(-0.1, 1.1),
)
WORDS = st.one_of(
    NUMBERS.map(str),
    st.sampled_from(
        ("true", "FALSE", "0", "1", "1e400", "-0", "0x1", "1_0", "٣", "½", "\0", "nan")
    ),
    st.lists(st.sampled_from((*LABELS, "0", "5", "6", " ", "-1")), max_size=4).map(",".join),
    st.lists(
        st.tuples(st.sampled_from((*LABELS, "0", "5", "6", " ", "-1")), NUMBERS.map(str)),
        max_size=4,
    ).map(lambda pairs: ",".join(":".join(pair) for pair in pairs)),
    st.dictionaries(st.sampled_from((*LABELS, "0", "5", "6")), NUMBERS, max_size=3).map(json.dumps),
    st.text(max_size=20),
    st.sampled_from(("9" * 300, "é" * 300, "," * 300, ":" * 300, "{" * 300)),
    st.text(string.digits + "+-.eE ", max_size=8),
)
VALUES = st.one_of(NUMBERS, WORDS, st.booleans(), st.none(), st.lists(st.integers(), max_size=2))


def in_range(parameters: Parameters) -> bool:
    return (
        0 <= parameters.conf_thres <= 1
        and 0 <= parameters.iou_thres <= 1
        and 1 <= parameters.max_det <= 1000
        and parameters.classes <= frozenset(range(len(LABELS)))
        and parameters.class_conf_thres.keys() <= frozenset(range(len(LABELS)))
        and all(
            type(one) is float and 0 <= one <= 1 for one in parameters.class_conf_thres.values()
        )
        and all(type(flag) is bool for flag in (parameters.agnostic_nms, parameters.multi_label))
        and all(type(one) is float for one in (parameters.conf_thres, parameters.iou_thres))
        and type(parameters.max_det) is int
    )


def names_one_of(message: str, given: dict[str, Any]) -> bool:
    """Whether the message names a parameter that was given, as it was spelt or by its own name."""
    written = (ascii(key)[:50] for key in given)
    called = (
        name for name in PARAMETER_NAMES for key in given if key.lower().endswith(spellings(name))
    )
    return any(name in message for name in (*written, *called))


def spellings(name: str) -> tuple[str, ...]:
    return name, name.replace("_", "-")


@fuzz(max_examples=80)
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.booleans())
@example({"conf_thres": 10**400}, False)
@example({"max_det": -(10**400)}, False)
@example({"class_conf_thres": f'{{"bus": {10**400}}}'}, False)
def test_any_parameters_are_valid_or_refused(given: dict[str, Any], best: bool) -> None:
    try:
        parsed = parse_parameters(given, LABELS, DEFAULTS, best_class_only=best)
    except ParameterError as error:
        message = str(error)
        assert is_sentence(message)
        assert len(message) < 250
        assert names_one_of(message, given)
    else:
        assert in_range(parsed)


@fuzz(max_examples=30)
@given(
    st.fixed_dictionaries(
        {name: WORDS for name in PARAMETER_NAMES if name not in ("classes", "class_conf_thres")},
        optional={"class_conf_thres": WORDS},
    )
)
def test_any_defaults_are_valid_or_refused(given: dict[str, str]) -> None:
    try:
        parsed = read_defaults(given, LABELS)
    except ParameterError as error:
        assert is_sentence(str(error))
        assert names_one_of(str(error), given)
    else:
        assert in_range(parsed)


def seeds() -> list[bytes]:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (24, 31, 3), np.uint8)
    plain = np.full((40, 30, 3), 90, np.uint8)
    deep = random.integers(0, 1 << 16, (9, 7, 3)).astype(np.uint16)
    kinds: list[tuple[str, Any, list[int]]] = [
        (".jpg", noise, []),
        (".jpg", plain, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
        (".jpg", noise[..., 0], []),
        (".png", noise, []),
        (".png", plain[..., 0], [cv2.IMWRITE_PNG_BILEVEL, 1]),
        (".png", deep, []),
        (".png", np.dstack([plain, plain[..., 0]]), []),
        (".webp", noise, []),
        (".webp", plain, [cv2.IMWRITE_WEBP_QUALITY, 101]),
        (".bmp", noise, []),
        (".bmp", plain[..., 0], []),
        (".tiff", plain, [cv2.IMWRITE_TIFF_COMPRESSION, 1]),
        (".tiff", noise, [cv2.IMWRITE_TIFF_COMPRESSION, 5]),
        (".tiff", plain, [cv2.IMWRITE_TIFF_COMPRESSION, 7]),
        (".tiff", deep, [cv2.IMWRITE_TIFF_COMPRESSION, 8]),
        (".tiff", plain.astype(np.float32), [cv2.IMWRITE_TIFF_COMPRESSION, 34676]),  # LogLuv
    ]
    return [cv2.imencode(suffix, picture, flags)[1].tobytes() for suffix, picture, flags in kinds]


SEEDS = seeds()
FILES = st.one_of(spoilt(SEEDS), spoilt(SEEDS), st.binary(max_size=200))
TEXTS = st.one_of(
    FILES.map(base64.b64encode),
    FILES.map(base64.encodebytes),
    FILES.map(base64.urlsafe_b64encode),
    st.builds(
        lambda kind, data: b"data:image/%s;base64,%s" % (kind, base64.b64encode(data)),
        st.sampled_from((b"png", b"x", b"", b"svg+xml")),
        FILES,
    ),
)
ELEMENTS = st.one_of(FILES, FILES, TEXTS, spoilt([base64.b64encode(seed) for seed in SEEDS]))


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    with decoding_process() as pool:
        yield pool


def test_seeds_are_pictures(process: ProcessPoolExecutor) -> None:
    outcomes = list(process.map(prepare, SEEDS))
    assert [outcome.message for outcome in outcomes] == [""] * len(SEEDS)


def test_chunk_that_claims_gigabytes_takes_no_memory(process: ProcessPoolExecutor) -> None:
    png = next(seed for seed in SEEDS if seed.startswith(b"\x89PNG"))
    huge = png[:33] + b"\xe0\0\0\0" + png[37:]  # the length of the chunk after the header
    outcome = process.submit(prepare, huge).result(timeout=30)
    assert outcome.reason == "undecodable"
    assert outcome.memory < 200 << 20


@fuzz(max_examples=300)
@given(element=ELEMENTS)
def test_any_bytes_are_decoded_or_refused(process: ProcessPoolExecutor, element: bytes) -> None:
    # A crash of the process fails here, and so does any exception but a refusal.
    outcome = process.submit(prepare, element).result(timeout=30)
    if outcome.shape is None:
        assert outcome.reason in REASONS
        assert is_sentence(outcome.message)
        assert len(outcome.message) < 250
    else:
        height, width, channels = outcome.shape
        assert channels == 3
        assert 0 < height * width <= LIMITS.pixels
    assert outcome.seconds < 2
    assert outcome.memory < 400 << 20
