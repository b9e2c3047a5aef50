"""The configurations of a network, as Triton reads them."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from yolov5_build._config import NetworkConfig, config_texts
from yolov5_build.metadata import Metadata

BF16 = "configs/bf16.pbtxt"


def network(**changes: Any) -> NetworkConfig:
    metadata = {
        "names": ("car", "bus"),
        "stride": 64,
        "head": "full",
        "precision": "fp16",
        "provenance": "From a test.",
        "source": "onnx",
        "max_batch_size": None,
        "padding": "exact",
    }
    values = {
        "letterbox": "square",
        "height": 448,
        "width": 640,
        "columns": 7,
        "max_batch_size": 5,
    }
    metadata |= {name: changes.pop(name) for name in list(changes) if name in metadata}
    return NetworkConfig(metadata=Metadata(**metadata), **values | changes)  # type: ignore[arg-type]


def configs(made: NetworkConfig, *, bf16: bool = False) -> dict[str, Any]:
    texts = config_texts(made, bf16=bf16)
    return {
        name: text_format.Parse(text, model_config_pb2.ModelConfig())
        for name, text in texts.items()
    }


def ends(config: Any) -> list[tuple[str, list[int], bool]]:
    return [(one.name, list(one.dims), one.optional) for one in config.input] + [
        (one.name, list(one.dims), False) for one in config.output
    ]


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


ALWAYS = {
    "letterbox": "square",
    "head": "full",
    "precision": "fp16",
    "source": "onnx",
    "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
}


def test_padding_is_stated_if_it_is_whole() -> None:
    for made in configs(network(padding="whole"), bf16=True).values():
        assert parameters(made)["padding"] == "whole"
    for made in configs(network(), bf16=True).values():
        assert "padding" not in parameters(made)


ON_ONNX_RUNTIME = {**ALWAYS, "intra_op_thread_count": "0", "full": "model.onnx"}
ENDS = [("pixels", [3, 448, 640], False), ("nms", [5], False), ("output0", [-1, 7], False)]


def test_configuration_takes_pixels_and_answers_some_rows() -> None:
    made = configs(network())
    assert list(made) == ["config.pbtxt"]
    config = made["config.pbtxt"]
    assert (config.name, config.backend, config.max_batch_size) == ("yolov5", "onnxruntime", 5)
    assert config.default_model_filename == "served.onnx"
    assert ends(config) == ENDS
    assert parameters(config) == ON_ONNX_RUNTIME
    assert [one.batch_size for one in config.model_warmup] == [1, 5]
    for warmup in config.model_warmup:
        assert sorted(warmup.inputs) == ["nms", "pixels"]
        assert list(warmup.inputs["pixels"].dims) == [3, 448, 640]


def test_bf16_has_a_configuration_of_its_own() -> None:
    made = configs(network(precision="fp32"), bf16=True)
    assert list(made) == ["config.pbtxt", BF16]
    assert made[BF16].backend == "openvino"
    assert made[BF16].default_model_filename == "model.onnx"
    assert parameters(made[BF16]) == {**ALWAYS, "precision": "bf16", "HINT_BF16": "YES"}
    assert parameters(made["config.pbtxt"])["precision"] == "fp32"
    assert ends(made[BF16]) == ENDS


def test_open_size_is_stated_with_rect() -> None:
    for config in configs(network(letterbox="rect")).values():
        assert ends(config)[0][:2] == ("pixels", [3, -1, -1])
        assert ends(config)[-1][1] == [-1, 7]
        said = parameters(config)
        assert (said["letterbox"], said["imgsz"], said["stride"]) == ("rect", "448 640", "64")


def test_comments_say_what_the_network_is() -> None:
    text = config_texts(network(), bf16=False)["config.pbtxt"]
    assert "\n# From a test.\n" in text and "one score for each line of labels.txt." in text
    text = config_texts(network(head="reduced"), bf16=False)["config.pbtxt"]
    assert "the best class's score, its line in labels.txt." in text
    assert "iou_thres" not in text


def test_configurations_say_that_a_network_chooses_its_boxes_itself() -> None:
    made = network(head="end2end", columns=6)
    for text in config_texts(made, bf16=True).values():
        assert "\n  # x1, y1, x2, y2 in model pixels, score, its line in labels.txt.\n" in text
        assert (
            "\n# The network chooses its boxes itself, and they are served as they are: conf_thres,"
            " classes and\n# max_det apply, iou_thres has no effect, and agnostic_nms and"
            " multi_label are refused.\n"
        ) in text
    assert all(parameters(one)["head"] == "end2end" for one in configs(made).values())


def test_text_that_triton_could_not_read_is_not_written() -> None:
    with pytest.raises(text_format.ParseError):
        config_texts(network(source='a"b'), bf16=False)
