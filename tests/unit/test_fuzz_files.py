"""Files and settings that people write, and answers that arrive: read, or refused in a sentence."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import fuzz, is_sentence, spoilt, spoilt_text
from hypothesis import example, given
from hypothesis import strategies as st
from support import REPOSITORY

from yolov5_client import ServerError
from yolov5_client._contract import OUTPUTS
from yolov5_client._dataset import read_names, read_split
from yolov5_client._errors import DataError
from yolov5_client._journal import JOURNAL, RECORD, Journal, RunRecord
from yolov5_client._wire import detections, outputs_from_http
from yolov5_server import Settings, StartError
from yolov5_server._checks import check_precision, check_shared_memory
from yolov5_server._repository import MODELS, NETWORK, read_config, read_network_config

# ---------------------------------------------------------------------------------------------
# The launcher

PORTS = st.one_of(st.integers(-1, 65537), st.integers())
HOSTS = st.one_of(
    st.sampled_from(("127.0.0.1", "localhost", "0.0.0.0", "::", "::1", "fe80::1%lo", "1.2.3", "")),
    st.ip_addresses().map(str),
    st.text(max_size=40),
)


@fuzz(max_examples=40)
@given(
    host=HOSTS,
    http_port=PORTS,
    grpc_port=PORTS,
    metrics_port=PORTS,
    precision=st.one_of(st.sampled_from(("auto", "fp32")), st.text(max_size=20)),
)
def test_any_settings_are_valid_or_refused(**values: Any) -> None:
    try:
        settings = Settings(**values)
    except StartError as error:
        assert is_sentence(str(error))
    else:
        assert all(1 <= port <= 65535 for port in settings.ports.values())
        assert settings.url(settings.http_port).endswith(f":{settings.http_port}")


CONFIGS = {
    model: (REPOSITORY / model / "config.pbtxt").read_text().partition("model_warmup")[0]
    for model in MODELS
}
# What a hand might write into them.
SLIPS = [
    'parameters { key: "imgsz" value: { string_value: "640" } }',
    'parameters { key: "imgsz" value: { string_value: "large" } }',
    "max_batch_size: -1",
    "max_batch_size: 99999999999999999999",
    'default_model_filename: "model.onnx"',
    'name: "\\377"',
    "input [ { dims: [] } ]",
    "input [ { dims: [ -9223372036854775808 ] } ]",
    "input [ { dims: [ 3, -1, -1 ] } ]",
    'default_model_filename: "%s"' % ("x" * 300),
    "\0",
    "\x80",
]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "model_repository"
    for model, text in CONFIGS.items():
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text(text)
    (folder / NETWORK / "1" / "model.onnx").touch()
    return folder


def read_or_refuse(repository: Path) -> None:
    """All that is read of the configurations before Triton is started."""
    try:
        for model in MODELS:
            read_config(repository, model)
        network = read_network_config(repository)
        check_precision(network, "fp32")
        check_shared_memory(network, 1 << 30)
    except StartError as error:
        assert is_sentence(str(error))


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("model", MODELS)
def test_a_slip_in_a_configuration_is_read_or_refused(
    repository: Path, model: str, slip: str
) -> None:
    with (repository / model / "config.pbtxt").open("ab") as file:
        file.write(slip.encode("latin-1"))
    read_or_refuse(repository)


@fuzz(max_examples=40)
@given(model=st.sampled_from(MODELS), data=st.data())
def test_any_configuration_is_read_or_refused(
    repository: Path, model: str, data: st.DataObject
) -> None:
    path = repository / model / "config.pbtxt"
    path.write_bytes(data.draw(spoilt_text([CONFIGS[model]])))
    read_or_refuse(repository)
    path.write_text(CONFIGS[model])


# ---------------------------------------------------------------------------------------------
# The client


def answer(**changes: Any) -> bytes:
    """An answer with one detection, in Triton's binary form, behind the length of its JSON."""
    tensors: list[tuple[str, str, list[int], bytes]] = [
        ("num_dets", "INT32", [1, 1], struct.pack("<i", 1)),
        ("det_boxes", "FP32", [1, 1, 4], struct.pack("<4f", 1, 2, 3, 4)),
        ("det_scores", "FP32", [1, 1], struct.pack("<f", 0.5)),
        ("det_classes", "INT32", [1, 1], struct.pack("<i", 1)),
        ("det_labels", "BYTES", [1, 1], struct.pack("<I", 3) + b"RBC"),
        ("image_size", "INT32", [1, 2], struct.pack("<2i", 480, 640)),
    ]
    outputs = [
        {
            "name": name,
            "datatype": kind,
            "shape": shape,
            "parameters": {"binary_data_size": len(data)},
            **changes,
        }
        for name, kind, shape, data in tensors
    ]
    head = json.dumps({"outputs": outputs}).encode()
    return b"%d\n" % len(head) + head + b"".join(data for *_, data in tensors)


ODD: list[Any] = [
    None,
    [],
    {},
    "",
    "x",
    True,
    -1,
    1.5,
    10**30,
    [10**30],
    [-1],
    [[1]],
    ["a"],
    1 << 40,
    "FP32",
]
ANSWERS = [
    answer(),
    *(answer(**{key: odd}) for key in ("name", "datatype", "shape", "parameters") for odd in ODD),
    *(answer(parameters={"binary_data_size": odd}) for odd in ODD),
    b"200000\n" + b"[" * 200_000,
]


def read_answer(data: bytes) -> None:
    length, _, body = data.partition(b"\n")
    try:
        outputs = outputs_from_http(body, int(length) if length.isdigit() else -1)
    except ValueError:
        return
    try:
        detections(outputs)
    except ServerError as error:
        assert is_sentence(str(error))


def test_an_answer_with_one_odd_part_is_read_or_refused() -> None:
    for data in ANSWERS:
        read_answer(data)


@fuzz(max_examples=60)
@given(spoilt(ANSWERS[:-1]))
def test_any_answer_is_read_or_refused(data: bytes) -> None:
    read_answer(data)


ARRAYS = st.builds(
    lambda value, shape: np.full(shape, value),
    st.sampled_from(
        (
            *(np.int32(value) for value in (0, 1, -1, 3, 2**31 - 1)),
            *(np.float32(value) for value in (0, 1, -1, "inf", "nan")),
            *(np.array(value, np.object_) for value in (b"RBC", b"\xff", b"", 1)),
            np.bytes_(b"1"),
        )
    ),
    st.lists(st.integers(0, 3), max_size=4),
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy's, of an array as a number
@fuzz(max_examples=40)
@given(st.fixed_dictionaries(dict.fromkeys(OUTPUTS, ARRAYS)))
def test_any_outputs_are_detections_or_refused(outputs: dict[str, Any]) -> None:
    try:
        detections(outputs)
    except ServerError as error:
        assert is_sentence(str(error))


DATA_SET = """path: .
train: images
val: images
nc: 3
names:
  0: Platelets
  1: RBC
  2: WBC
"""
# What PyYAML itself does not expect.
YAMLS = [
    DATA_SET,
    "names: [a, b]",
    "{names: 2020-99-99}",
    "names: !!bool maybe",
    "names: !!timestamp no",
    "names: !!int ''",
    "? [a]\n: b",
    "names: &a [*a]",
    "[" * 1000,
]


@fuzz(max_examples=20)
@given(text=spoilt_text(YAMLS[:-1]), suffix=st.sampled_from((".yaml", ".txt")))
def test_any_names_are_read_or_refused(tmp_path: Path, text: bytes, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(text)
    try:
        assert all(read_names(path))
    except DataError as error:
        assert is_sentence(str(error))


@pytest.mark.parametrize("text", YAMLS)
def test_a_yaml_that_pyyaml_does_not_expect(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(text)
    try:
        read_names(path)
    except DataError as error:
        assert is_sentence(str(error))


PLACES = st.one_of(
    st.sampled_from(("images", "list.txt", "labels", ".", "nowhere", "a\0b", "x" * 300)),
    st.lists(st.sampled_from(("images", "list.txt", 3, None)), max_size=3),
    st.none(),
    st.integers(),
)
LABEL_LINES = ["0 0.5 0.5 0.1 0.1\n", "1 .1 .1 .2 .2\n2 0 0 1 1\n", "0 .1 .1 .2 .1 .2 .2 .1 .2\n"]
LISTED = st.sampled_from(("images/a.jpg", "/", ".", "..", "images", "a\0b", "x" * 300, "", " "))


@fuzz(max_examples=20)
@given(
    root=st.sampled_from((".", "", None, 5, ["a"], "nowhere")),
    place=PLACES,
    listed=st.lists(LISTED, max_size=3),
    label=st.one_of(spoilt_text(LABEL_LINES), st.sampled_from((b"nan " * 5, b"1 " * 10, b"inf"))),
)
def test_any_data_set_is_read_or_refused(
    tmp_path: Path, root: Any, place: Any, listed: list[str], label: bytes
) -> None:
    folder = tmp_path / "set"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "images" / "a.jpg").touch()
    (folder / "labels" / "a.txt").write_bytes(label)
    (folder / "list.txt").write_text("\n".join(listed))
    (folder / "data.yaml").write_text(json.dumps({"path": root, "val": place}))
    try:
        split = read_split(folder / "data.yaml", "val")
    except DataError as error:
        assert is_sentence(str(error))
    except OSError as error:  # which the command says in a sentence
        assert error.strerror == "File name too long"
    else:
        assert len(split.photos) == len(split.labels)
        for rows in split.labels:
            assert rows.shape[1:] == (5,)
            assert np.isfinite(rows).all()


LINES = [
    '{"image": "a.jpg", "stem": "a", "boxes": []}\n{"image": "b.jpg", "error": "no image"}\n',
    '{"image": "v.mp4", "stem": "v", "frame": 1}\n{"image": "v.mp4", "stem": "v", "frame": 2}\n',
    '{"image": "a", "stem": ["a"]}\n',
    '{"image": "", "stem": 3, "frame": null}\n',
    '["image"]\n"image"\nnull\n',
]


@fuzz(max_examples=24)
@given(text=spoilt_text(LINES), videos=st.lists(st.sampled_from(("v", "a")), max_size=2))
@example(text=b"[" * 100_000 + b"\n", videos=[])
def test_any_journal_is_taken_up_or_refused(tmp_path: Path, text: bytes, videos: list[str]) -> None:
    (tmp_path / JOURNAL).write_bytes(text)
    journal = Journal(tmp_path)
    try:
        done = journal.recover(videos)
        assert done.lines == sum(1 for _ in journal.lines())
    except ValueError as error:
        assert is_sentence(str(error))
    finally:
        journal.close()


RECORDS = [
    '{"options": {"conf_thres": 0.4}, "directory": "/", "videos": ["v"]}',
    '{"options": {}, "directory": "/"}',
    '{"options": [], "directory": 1, "videos": null}',
    '{"options": {}, "directory": "/", "videos": 3}',
    '{"options": {}, "directory": "/", "more": 3}',
    "[]",
]


@fuzz(max_examples=20)
@given(text=spoilt_text(RECORDS))
@example(text=b"[" * 100_000)
def test_any_record_of_a_run_is_read_or_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / RECORD).write_bytes(text)
    try:
        record = RunRecord.read(tmp_path)
    except ValueError as error:
        assert is_sentence(str(error))
    else:
        assert all(isinstance(video, str) for video in record.videos)
