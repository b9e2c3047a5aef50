"""A server whose settings come from the environment, as a container's do."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from support import (
    PHOTO,
    TRITON_FLAGS,
    RunningServer,
    ask_grpc,
    infer,
    running_server,
)
from tritonclient.utils import InferenceServerException

DETECTIONS, CONFIDENT = 11, 5  # of the photo over the usual 0.25, and over 0.5
# The launcher's ports come as variables of make.
SCRIPT = """for one; do export "YOLOV5_$one"; done
exec "$0" -m yolov5_server {flags}"""


@contextmanager
def server_with(*flags: str, wait: bool = True, **variables: str) -> Iterator[RunningServer]:
    """Start the launcher with these variables, and its ports as variables as well."""
    script = SCRIPT.format(flags=" ".join([*TRITON_FLAGS, *flags]))
    named = [f"YOLOV5_{name}={value}" for name, value in variables.items()]
    command = ["env", *named, "sh", "-c", script, sys.executable]
    with running_server(command=command, wait=wait) as server:
        yield server


@pytest.fixture(scope="module")
def server(bundled_repository: Path) -> Iterator[RunningServer]:
    with server_with(
        "--max-queue-seconds=30",
        REPOSITORY=str(bundled_repository),
        PRECISION="fp32",
        CONF_THRES="0.5",
        MAX_QUEUED_IMAGES="4",
        MAX_IN_FLIGHT_IMAGES="1",
        MAX_QUEUE_SECONDS="1",
        MAX_IMAGE_BYTES="200000",
        # As Kubernetes describes a service of the name `yolov5`.
        SERVICE_HOST="10.0.0.1",
        PORT="tcp://10.0.0.1:8000",
    ) as running:
        yield running


def test_settings_and_where_they_came_from_are_logged(server: RunningServer) -> None:
    line = server.log.read_text().splitlines()[0]
    assert line.startswith(f"Settings: http_port={server.ports[0]} (YOLOV5_HTTP_PORT), ")
    assert "conf_thres=0.5 (YOLOV5_CONF_THRES)" in line
    assert "max_queue_seconds=30 (--max-queue-seconds)" in line
    assert line.endswith("; everything else is the default.")
    assert "10.0.0.1" not in line


def test_default_of_a_parameter_is_that_of_the_variable(server: RunningServer) -> None:
    photo = [PHOTO.read_bytes()]
    assert ask_grpc(server.grpc, photo)["num_dets"].item() == CONFIDENT
    own = ask_grpc(server.grpc, photo, {"conf_thres": 0.25})
    assert own["num_dets"].item() == DETECTIONS


def test_limit_of_an_image_is_that_of_the_variable(server: RunningServer) -> None:
    with pytest.raises(InferenceServerException, match="bytes"):
        ask_grpc(server.grpc, [PHOTO.read_bytes() + bytes(200_000)])


def test_queue_is_that_of_the_variable(server: RunningServer) -> None:
    """Two dozen callers at once: five fit into the queue of four and the one in flight."""

    def refused(client: grpc.InferenceServerClient) -> bool:
        try:
            infer(client, [PHOTO.read_bytes()])
        except InferenceServerException as error:
            assert error.status() == "StatusCode.UNAVAILABLE"
            assert "queue of 4 images has no room" in str(error)
            return True
        return False

    with (
        grpc.InferenceServerClient(server.grpc) as client,
        ThreadPoolExecutor(24) as pool,
    ):
        outcomes = [*pool.map(refused, [client] * 24)]
    assert 5 <= outcomes.count(False) < 24


def test_endpoint_keeps_its_own_default_and_the_repository_is_not_changed(
    bundled_repository: Path, tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(bundled_repository, tmp_path / "models"))
    endpoint = repository / "yolov5_ensemble" / "config.pbtxt"
    own = 'parameters { key: "conf_thres" value: { string_value: "0.25" } }\n'
    endpoint.write_text(endpoint.read_text() + own)
    before = {path: path.read_bytes() for path in repository.rglob("*.pbtxt")}
    flags = (f"--repository={repository}", "--precision=fp32")
    with server_with(*flags, CONF_THRES="0.5", MAX_DET="8") as server:
        answer = ask_grpc(server.grpc, [PHOTO.read_bytes()])
        # By the endpoint's threshold, cut to the default of all.
        assert answer["num_dets"].item() == 8
    assert {path: path.read_bytes() for path in repository.rglob("*.pbtxt")} == before


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("MAX_DET", "1001", "YOLOV5_MAX_DET: max_det is '1001'; allowed: a whole number from 1"),
        ("CLASSES", "tram", "YOLOV5_CLASSES: classes names 'tram'; allowed: indices from 0 to 2"),
        ("MAX_QUEUED_IMAGE", "9", "YOLOV5_MAX_QUEUED_IMAGE is no setting; did you mean YOLOV5_MA"),
    ],
)
def test_variable_that_cannot_be_used_ends_the_start(
    bundled_repository: Path, name: str, value: str, sentence: str
) -> None:
    with server_with(f"--repository={bundled_repository}", wait=False, **{name: value}) as server:
        server.process.wait(60)
        assert server.process.returncode == 1
        lines = server.log.read_text().splitlines()
    assert lines[-1].startswith(f"error: {sentence}")
    assert [line for line in lines[:-1] if not line.startswith("Settings: ")] == []
