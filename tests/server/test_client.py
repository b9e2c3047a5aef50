"""The client package and its command against a real server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from docstrings import Docstring, docstrings, failures
from support import PHOTO, PHOTOS, RunningServer, ask_grpc, reference

from yolov5_client import Client, InvalidRequestError
from yolov5_client._cli import main

EXAMPLES = [one for one in docstrings() if one.needs_server]
REFERENCE = reference(Path(__file__).parents[1] / "data" / "bccd_reference.json")


def test_detect_takes_a_path_bytes_or_a_list(server: RunningServer) -> None:
    paths = sorted(PHOTOS.iterdir())
    with Client(server.grpc, in_flight=3) as client:
        one = client.detect(PHOTO)
        assert len(one) == 11
        assert one.image_size == (480, 640)
        assert one.boxes.dtype == np.float32
        np.testing.assert_array_equal(client.detect(PHOTO.read_bytes()).boxes, one.boxes)
        np.testing.assert_array_equal(client.detect(str(PHOTO)).boxes, one.boxes)
        many = client.detect([*paths, PHOTO.read_bytes()])
        assert [len(d) for d in many[:-1]] == [len(REFERENCE[path.name]) for path in paths]
        assert len(many[-1]) == 11
        assert client.detect([]) == []


def test_parameters_reach_the_endpoint(server: RunningServer) -> None:
    with Client(server.grpc) as client:
        found = client.detect(PHOTO, conf_thres=0.4, classes=["RBC"], max_det=2)
        assert found.labels == ("RBC", "RBC")
        assert found.scores.min() > 0.4
        with pytest.raises(InvalidRequestError, match=r"^conf_thres is 1.5; allowed"):
            client.detect(PHOTO, conf_thres=1.5)


def test_refused_image_of_a_list_is_named(server: RunningServer) -> None:
    with (
        Client(server.grpc, in_flight=2) as client,
        pytest.raises(
            InvalidRequestError, match="^image 4 of the list: not an image of a supported"
        ),
    ):
        client.detect([PHOTO, PHOTO, PHOTO, b"hello", PHOTO])


def test_status_names_models_and_version(
    server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(server.grpc) as client:
        status = client.status()
    assert status.ready
    assert status.version.startswith("2.")
    assert list(status.models) == ["yolov5_ensemble"]
    assert main(["status", "--server", server.grpc]) == 0
    assert capsys.readouterr().out.startswith(f"{server.grpc}: Triton 2.")


def test_boxes_follow_the_exif_orientation(server: RunningServer) -> None:
    """A photo stored on its side, as cameras do, gets the boxes of the upright one."""
    upright = cv2.imread(str(PHOTO))
    assert upright is not None
    lying = np.rot90(upright)
    plain = cv2.imencode(".jpg", lying, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    answer = ask_grpc(server.grpc, [plain[:2] + segment + plain[2:]])
    assert answer["image_size"].tolist() == [[480, 640]]
    expected = REFERENCE[PHOTO.name][0]
    np.testing.assert_allclose(answer["det_boxes"][0, 0], expected[:4], atol=5)


def test_slow_source_gets_answers_before_it_ends(server: RunningServer) -> None:
    """The photos come one by one, as from a camera."""
    answered = 0

    def photos() -> Iterator[Path]:
        with Client(server.grpc) as other:
            for taken in range(4):
                assert answered >= taken - 1, "all but the newest have been given out"
                yield PHOTO
                for _ in range(3):  # the time until the next
                    other.detect(PHOTO)

    with Client(server.grpc) as client:
        for found in client.detect_stream(photos()):
            assert len(found) == 11
            answered += 1
    assert answered == 4


@pytest.mark.parametrize("docstring", EXAMPLES, ids=[one.place for one in EXAMPLES])
def test_docstring_example_prints_what_it_shows(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docstring: Docstring
) -> None:
    shutil.copy(PHOTOS / "BloodImage_00007.jpg", tmp_path / "photo.jpg")
    shutil.copy(PHOTOS / "BloodImage_00011.jpg", tmp_path / "other.jpg")
    monkeypatch.chdir(tmp_path)
    assert failures(docstring, server.http, server.grpc) == ""
