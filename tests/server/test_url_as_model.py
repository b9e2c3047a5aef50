"""What YOLOv5's `detect.py` and the `ultralytics` package ask of a URL that they take for a model.

The calls are facts about YOLOv5 7.0 and ultralytics 8.4.190, made here with tritonclient, as both
packages do. docs/api.md says what follows for their users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from support import RunningServer
from tritonclient.utils import InferenceServerException

ENDPOINT = "yolov5_ensemble"
NETWORK = "yolov5"
# The types of an input that ultralytics can send.
SENT_BY_ULTRALYTICS = {"TYPE_FP32", "TYPE_FP16", "TYPE_UINT8"}


class Asker:
    """One of the two clients of tritonclient, with answers of the same form."""

    def __init__(self, package: Any, address: str) -> None:
        self.package = package
        self.client = package.InferenceServerClient(address)
        self.as_json = {"as_json": True} if package is tritonclient.grpc else {}

    def index(self) -> Any:
        return self.client.get_model_repository_index(**self.as_json)

    def metadata(self, model: str) -> Any:
        return self.client.get_model_metadata(model, **self.as_json)

    def config(self, model: str) -> Any:
        found = self.client.get_model_config(model, **self.as_json)
        return found["config"] if self.as_json else found

    def infer(self, model: str, name: str) -> Any:
        """Send a letterboxed image, float32 [1, 3, 640, 640] from 0 to 1."""
        pixels = np.zeros((1, 3, 640, 640), np.float32)
        tensor = self.package.InferInput(name, list(pixels.shape), "FP32")
        tensor.set_data_from_numpy(pixels)
        return self.client.infer(model, [tensor])


@pytest.fixture(params=["http", "grpc"])
def asker(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[Asker]:
    if request.param == "http":
        asker = Asker(tritonclient.http, server.http.removeprefix("http://"))
    else:
        asker = Asker(tritonclient.grpc, server.grpc)
    yield asker
    asker.client.close()


def test_first_question_of_yolov5_is_refused(asker: Asker) -> None:
    # `detect.py --weights http://HOST:8000` takes the first model of the repository's index.
    with pytest.raises(InferenceServerException, match="restricted") as caught:
        asker.index()
    assert caught.value.status() in ("403", "StatusCode.UNAVAILABLE")


def test_metadata_that_yolov5_asks_next_are_those_of_encoded_images(asker: Asker) -> None:
    # It makes its input in the shape and type that stand there.
    (image,) = asker.metadata(ENDPOINT)["inputs"]
    assert (image["name"], image["datatype"]) == ("image", "BYTES")
    assert [int(side) for side in image["shape"]] == [-1, 1]


def test_config_that_ultralytics_asks_states_an_input_of_a_type_unknown_to_it(asker: Asker) -> None:
    # `YOLO("http://HOST:8000/yolov5_ensemble", task="detect")`
    config = asker.config(ENDPOINT)
    assert [tensor["data_type"] for tensor in config["input"]] == ["TYPE_STRING"]
    assert not {tensor["data_type"] for tensor in config["input"]} & SENT_BY_ULTRALYTICS
    assert "metadata" not in config.get("parameters", {}), "from which it would read the classes"


def test_network_itself_tells_neither_of_them_anything(asker: Asker) -> None:
    # `YOLO("http://HOST:8000/yolov5", task="detect")`
    for question in (asker.config, asker.metadata):
        with pytest.raises(InferenceServerException, match="2 identifiers of model 'yolov5'"):
            question(NETWORK)


def test_pixels_that_both_send_are_refused(asker: Asker) -> None:
    with pytest.raises(InferenceServerException, match="2 identifiers of model 'yolov5'"):
        asker.infer(NETWORK, "images")
    with pytest.raises(InferenceServerException, match="'FP32', but model .* expects 'BYTES'"):
        asker.infer(ENDPOINT, "image")
