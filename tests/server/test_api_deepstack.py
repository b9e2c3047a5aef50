"""Programs that speak DeepStack's dialect, in front of the real server.

What they send and read are facts about their sources: deepstack-python 0.8 (that of Home
Assistant's HASS-Deepstack-object) and deepstack-sdk 0.2.1 from PyPI, and the detector `deepstack`
of Frigate. Blue Iris is closed; its requests are those for which blue-onyx, a server made for
it, has routes.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
import requests
from api_service import RunningApi, running_api
from numpy.typing import NDArray
from support import PHOTO, ROOT, RunningServer, wait_until

from yolov5_client import Client, Detections

IMAGE = PHOTO.read_bytes()
KEY = "a-key-of-sixteen-characters"
SIDES = ("x_min", "y_min", "x_max", "y_max")


@pytest.fixture(scope="module")
def url(api: RunningApi) -> str:
    return api.url


@pytest.fixture(scope="module")
def guarded(
    server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningApi]:
    """A service that wants a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY} camera\n")
    with running_api(server, f"--api-keys={keys}") as running:
        yield running


def wanted(server: RunningServer, image: bytes, conf_thres: float) -> Detections:
    with Client(server.grpc) as client:
        return client.detect(image, conf_thres=conf_thres)


def assert_predicted(predictions: Sequence[Mapping[str, Any]], found: Detections) -> None:
    """Check that these are the detections, best first, in whole pixels."""
    assert [one["label"] for one in predictions] == [*found.labels]
    assert np.allclose([one["confidence"] for one in predictions], found.scores, atol=1e-4)
    boxes = np.array([[one[side] for side in SIDES] for one in predictions]).reshape(-1, 4)
    assert boxes.dtype.kind == "i"
    assert np.abs(boxes - found.boxes).max(initial=0) <= 0.501


def ask(
    url: str, image: bytes = IMAGE, path: str = "/v1/vision/detection", **fields: str
) -> requests.Response:
    """Send what deepstack-python, deepstack-sdk and Frigate send: the file has no type of its own.

    All three call `requests.post` in this way.
    """
    return requests.post(url + path, files={"image": image}, data=fields, timeout=60)


def frigate_sees(
    url: str, pixels: NDArray[np.uint8], labels: Mapping[int, str]
) -> NDArray[np.float32]:
    """Send a region of a frame as Frigate does, and read the answer as it does.

    Returns:
        float32 [20, 6]: index of the label, confidence, then y1, x1, y2, x2 as shares of the
        region's sides. All that Frigate has room for; unused rows are 0.
    """
    height, width = pixels.shape[:2]
    answer = ask(url, cv2.imencode(".jpg", pixels)[1].tobytes(), api_key="").json()
    rows = np.zeros((20, 6), np.float32)
    for row, one in enumerate(answer["predictions"]):
        index = next((i for i, label in labels.items() if label == one["label"].lower()), None)
        if one["confidence"] < 0.4 or index is None:
            break
        shares = [one[side] / size for side, size in zip(SIDES, (width, height) * 2)]
        rows[row] = [index, one["confidence"], *(shares[i] for i in (1, 0, 3, 2))]
    return rows


def region() -> NDArray[np.uint8]:
    """A region of the size that Frigate's own network takes."""
    photo = cv2.imread(str(PHOTO))
    assert photo is not None
    return np.asarray(cv2.resize(photo, (320, 320)), np.uint8)


def test_frigate_reads_the_boxes(server: RunningServer, url: str) -> None:
    encoded = cv2.imencode(".jpg", region())[1].tobytes()
    found = wanted(server, encoded, 0.4)
    assert len(found) > 3
    rows = frigate_sees(url, region(), {7: "platelets", 8: "rbc", 9: "wbc"})
    rows = rows[rows[:, 1] > 0]
    assert np.allclose(rows[:, 1], found.scores, atol=1e-4)
    assert [*rows[:, 0]] == [7 + index for index in found.classes]
    assert np.abs(rows[:, 2:] * 320 - found.boxes[:, [1, 0, 3, 2]]).max() <= 0.501


def test_frigate_stops_at_a_label_that_it_lacks_unless_the_address_names_the_others(
    url: str,
) -> None:
    labels = {8: "rbc"}
    everything = frigate_sees(url, region(), labels)
    with requests.Session() as session:  # as newer versions do
        body = {"image": cv2.imencode(".jpg", region())[1].tobytes()}
        address = f"{url}/v1/vision/detection?classes=RBC&max_det=2"
        answer = session.post(address, files=body, data={"api_key": ""}, timeout=60).json()
    assert not everything.any(), "the best one is a WBC"
    assert [one["label"] for one in answer["predictions"]] == ["RBC", "RBC"]


def test_frigate_notices_an_error(url: str) -> None:
    answer = ask(url, b"no image", api_key="")
    assert answer.json().get("predictions") is None
    assert answer.status_code == 400


def test_home_assistant_gets_all_over_its_least_confidence(server: RunningServer, url: str) -> None:
    # It always asks for 0.1, and filters by itself.
    answer = ask(url, api_key="", min_confidence="0.1")
    assert answer.status_code == 200
    found = wanted(server, IMAGE, 0.1)
    assert found.scores.min() < 0.25
    assert_predicted(answer.json()["predictions"], found)


def test_named_network_is_asked(server: RunningServer, url: str) -> None:
    answer = ask(url, path="/v1/vision/custom/yolov5", min_confidence="0.6")
    assert_predicted(answer.json()["predictions"], wanted(server, IMAGE, 0.6))


def test_blue_iris_finds_probe_list_and_detections(server: RunningServer, url: str) -> None:
    probe = requests.get(f"{url}/v1/status/updateavailable", timeout=60)
    assert (probe.status_code, probe.json()["success"]) == (200, True)
    listed = requests.post(f"{url}/v1/vision/custom/list", timeout=60)
    assert (listed.status_code, listed.json()["models"]) == (200, ["yolov5"])
    assert requests.get(f"{url}/v1/vision/custom/list", timeout=60).json() == listed.json()
    answer = requests.post(
        f"{url}/v1/vision/detection",
        files={"image": ("camera.20261126_120000.jpg", IMAGE, "image/jpeg")},
        data={"min_confidence": "0.40"},
        timeout=60,
    )
    assert answer.headers["Content-Type"] == "application/json"
    assert_predicted(answer.json()["predictions"], wanted(server, IMAGE, 0.4))
    assert answer.json()["count"] == len(answer.json()["predictions"])


def test_image_without_objects_has_an_empty_list(url: str) -> None:
    black = cv2.imencode(".png", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    answer = ask(url, black)
    assert answer.status_code == 200
    assert answer.json()["predictions"] == []


def refusal(answer: requests.Response, status: int) -> str:
    """Check that it is an error as DeepStack writes it; return its sentence."""
    assert answer.status_code == status
    members = answer.json()
    assert members["success"] is False
    assert members["code"] == status
    assert "predictions" not in members
    return str(members["error"])


@pytest.mark.parametrize("value", ["45", "-0.1", "0,4"])
def test_confidence_out_of_range_is_refused_by_name(url: str, value: str) -> None:
    answer = ask(url, min_confidence=value)
    assert refusal(answer, 400) == f"min_confidence is '{value}'; allowed: a number from 0 to 1"


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?max_det=0", "max_det is '0'; allowed: a whole number from 1 to 1000"),
        ("?confidence=0.4", "parameter 'confidence' is unknown; allowed: conf_thres"),
        ("?conf_thres=0.4&min_confidence=0.4", "min_confidence or conf_thres is given twice"),
    ],
)
def test_bad_parameter_in_the_address_is_refused_by_name(
    url: str, query: str, sentence: str
) -> None:
    assert refusal(ask(url, path=f"/v1/vision/detection{query}"), 400).startswith(sentence)


@pytest.mark.parametrize("path", ["/v1/vision/detection", "/detect"])
@pytest.mark.parametrize("name", ["self", "image", "request_id"])
def test_parameter_with_the_name_of_an_argument_is_unknown(url: str, path: str, name: str) -> None:
    answer = ask(url, path=f"{path}?{name}=1")
    assert answer.status_code == 400
    assert f"parameter '{name}' is unknown" in answer.text


def test_bad_image_is_refused(url: str) -> None:
    assert "not an image of a supported format" in refusal(ask(url, b"no image"), 400)


def test_form_without_one_image_is_refused(url: str) -> None:
    address = f"{url}/v1/vision/detection"
    none = requests.post(address, files={"file": IMAGE}, timeout=60)
    assert refusal(none, 400) == "the form has 0 files image; allowed: 1"
    two = requests.post(address, files=[("image", IMAGE)] * 2, timeout=60)
    assert refusal(two, 400) == "the form has 2 files image; allowed: 1"
    raw = requests.post(address, IMAGE, headers={"Content-Type": "image/jpeg"}, timeout=60)
    assert refusal(raw, 400).startswith("the body is 'image/jpeg'; allowed: multipart/form-data")


def test_network_that_is_not_served_is_not_found(url: str) -> None:
    assert "plates_ensemble" in refusal(ask(url, path="/v1/vision/custom/plates"), 404)
    assert "model is 'Plates.pt'" in refusal(ask(url, path="/v1/vision/custom/Plates.pt"), 400)


def test_route_of_deepstack_that_is_not_here_is_not_found(url: str) -> None:
    assert "no such path" in refusal(ask(url, path="/v1/vision/face"), 404)


def test_lost_server_is_an_error_of_the_dialect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with running_api(f"127.0.0.1:{port}", "--timeout=5") as api:
        answer = ask(api.url)
    assert refusal(answer, 503)
    assert answer.headers["Retry-After"]


@pytest.mark.parametrize(
    ("method", "path", "schema"),
    [
        ("POST", "/v1/vision/detection", "DeepStackAnswer"),
        ("POST", "/v1/vision/custom/yolov5", "DeepStackAnswer"),
        ("POST", "/v1/vision/custom/plates", "DeepStackError"),
        ("GET", "/v1/vision/custom/list", "DeepStackList"),
        ("GET", "/v1/status/ping", "DeepStackPing"),
        ("GET", "/v1/status/updateavailable", "DeepStackUpdate"),
    ],
)
def test_answer_is_as_the_services_own_document_says(
    url: str, method: str, path: str, schema: str
) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=60).json()
    files = {"image": IMAGE} if method == "POST" else None
    answer = requests.request(method, url + path, files=files, timeout=60)
    described = path if path in document["paths"] else "/v1/vision/custom/{model}"
    assert method.lower() in document["paths"][described]
    jsonschema.validate(answer.json(), {"$ref": f"#/components/schemas/{schema}", **document})


def test_key_may_be_in_the_form(guarded: RunningApi) -> None:
    assert ask(guarded.url, api_key=KEY).status_code == 200
    wait_until(lambda: bool(guarded.access_log), 10)
    assert guarded.access_log[-1]["caller"] == "camera"
    assert KEY not in guarded.output.read_text()
    address = f"{guarded.url}/v1/vision/custom/list"
    listed = requests.post(address, files={"api_key": (None, KEY)}, timeout=60)
    assert listed.json()["models"] == ["yolov5"]
    header = requests.get(address, headers={"X-Api-Key": KEY}, timeout=60)
    assert header.status_code == 200


def test_wrong_or_missing_key_is_refused(guarded: RunningApi) -> None:
    for answer in (
        ask(guarded.url),
        ask(guarded.url, api_key=""),
        ask(guarded.url, api_key="another-key-of-some-length"),
        requests.post(f"{guarded.url}/v1/vision/custom/list", timeout=60),
    ):
        assert refusal(answer, 401).endswith("allowed: one in the field api_key")


def test_probe_needs_no_key(guarded: RunningApi) -> None:
    assert requests.get(f"{guarded.url}/v1/status/ping", timeout=60).json() == {"success": True}


REAL_CLIENTS = """
import json, sys
from pathlib import Path
import deepstack.core
from deepstack_sdk import Detection, ServerConfig
port, key, wrong, photo = sys.argv[1:]
image = Path(photo).read_bytes()
seen = {}
def home_assistant(**given):
    return deepstack.core.DeepstackObject(ip="127.0.0.1", port=port, api_key=key, **given)
def sdk(key=key, **given):
    return Detection(ServerConfig(f"http://127.0.0.1:{port}", api_key=key), **given)
def error(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
seen["home assistant"] = home_assistant(min_confidence=0.1).detect(image)
seen["home assistant, custom"] = home_assistant(custom_model="yolov5").detect(image)
found = sdk().detectObject(image, min_confidence=0.6, output="drawn.jpg")
seen["sdk"] = [vars(one) for one in found]
seen["sdk, custom"] = [vars(one) for one in sdk(name="yolov5").detectObject(image)]
seen["errors"] = {
    "home assistant, bad image": error(lambda: home_assistant().detect(b"no image")),
    "home assistant, no network": error(lambda: home_assistant(custom_model="x").detect(image)),
    "sdk, bad image": error(lambda: sdk().detectObject(b"no image")),
    "sdk, wrong key": error(lambda: sdk(wrong).detectObject(image)),
}
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def clients_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clients from PyPI, without what they ask for, which is here already or not imported."""
    pins = re.search(r"^recorders = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert pins
    folder = tmp_path_factory.mktemp("clients")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--no-deps", f"--target={folder}", *re.findall(r'"(.+?)"', pins[1])]
    run = subprocess.run(install, capture_output=True, text=True, timeout=240)
    if run.returncode:
        pytest.skip(f"pip cannot install the clients: {run.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.slow  # it installs packages
def test_clients_from_pypi_read_the_answers(
    server: RunningServer, guarded: RunningApi, clients_folder: Path, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", REAL_CLIENTS, str(guarded.port), KEY, "another-key", str(PHOTO)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(clients_folder), "MPLCONFIGDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert_predicted(seen["home assistant"], wanted(server, IMAGE, 0.1))
    assert_predicted(seen["home assistant, custom"], wanted(server, IMAGE, 0.45))
    assert_predicted(seen["sdk"], wanted(server, IMAGE, 0.6))
    assert_predicted(seen["sdk, custom"], wanted(server, IMAGE, 0.4))
    assert (tmp_path / "drawn.jpg").exists()
    assert seen["errors"] == {
        "home assistant, bad image": "DeepstackException: Error from Deepstack request, status"
        " code: 400",
        "home assistant, no network": "DeepstackException: Bad url supplied, url"
        f" {guarded.url}/v1/vision/custom/x raised error 404",
        "sdk, bad image": "Exception: Invalid image",
        "sdk, wrong key": "Exception: Unknown error : 401 occured",
    }
