"""The client package and its command against a real server."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import PHOTO, PHOTOS, RunningServer, ask_grpc, reference

from yolov5_client import Client, InvalidRequestError
from yolov5_client._cli import main

REFERENCE = reference(Path(__file__).parents[1] / "data" / "bccd_reference.json")


def test_a_path_bytes_or_a_list(server: RunningServer) -> None:
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


def test_parameters(server: RunningServer) -> None:
    with Client(server.grpc) as client:
        found = client.detect(PHOTO, conf_thres=0.4, classes=["RBC"], max_det=2)
        assert found.labels == ("RBC", "RBC")
        assert found.scores.min() > 0.4
        with pytest.raises(InvalidRequestError, match=r"^conf_thres is 1.5; allowed"):
            client.detect(PHOTO, conf_thres=1.5)


def test_the_refused_one_of_a_list_is_named(server: RunningServer) -> None:
    with (
        Client(server.grpc, in_flight=2) as client,
        pytest.raises(
            InvalidRequestError, match="^image 4 of the list: not an image of a supported"
        ),
    ):
        client.detect([PHOTO, PHOTO, PHOTO, b"hello", PHOTO])


def test_status(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(server.grpc) as client:
        status = client.status()
    assert status.ready
    assert status.version.startswith("2.")
    assert list(status.models) == ["yolov5_ensemble", "preprocess", "yolov5", "postprocess"]
    assert main(["status", "--server", server.grpc]) == 0
    assert capsys.readouterr().out.startswith(f"{server.grpc}: Triton 2.")


def test_the_command(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(PHOTOS, folder)
    (folder / "broken.jpg").write_bytes(b"hello")
    arguments = ["detect", str(folder), str(PHOTO), "--server", server.grpc]
    arguments += ["--project", str(tmp_path / "runs"), "--save-txt", "--save-conf"]
    assert main(arguments) == 1

    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith(f"image 1/10 {folder / PHOTO.name}: 480x640 1 WBC, 1 Platelets, 9 R")
    assert lines[-1] == f"Results saved to {tmp_path / 'runs' / 'exp'}"
    assert f"error: {folder / 'broken.jpg'}: image 1 of 1: not an image" in captured.err
    assert "error: 1 of 10 images failed." in captured.err

    results = tmp_path / "runs" / "exp"
    assert len(list((results / "labels").iterdir())) == 9, "two photos of one name are kept apart"
    written = (results / "labels" / "BloodImage_00007.txt").read_text().splitlines()
    wanted = REFERENCE["BloodImage_00007.jpg"]
    assert len(written) == len(wanted)
    for line, (x1, y1, x2, y2, score, index) in zip(written, wanted):
        values = [float(part) for part in line.split()]
        centre = [(x1 + x2) / 2 / 640, (y1 + y2) / 2 / 480]
        size = [(x2 - x1) / 640, (y2 - y1) / 480]
        assert values == pytest.approx([index, *centre, *size, score], abs=2e-4)
    picture = cv2.imread(str(results / "BloodImage_00007.jpg"))
    assert picture.shape == (480, 640, 3)

    assert main([*arguments[:1], str(PHOTO), *arguments[3:], "--nosave"]) == 0
    assert (tmp_path / "runs" / "exp2" / "labels").is_dir(), "a second run has its own folder"
    assert not list((tmp_path / "runs" / "exp2").glob("*.jpg"))


def test_a_picture_that_cannot_be_drawn_fails_alone(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, odd = tmp_path / "photo.b64", tmp_path / "photo.upload"
    text.write_bytes(base64.b64encode(PHOTO.read_bytes()))  # for the server an image all the same
    odd.write_bytes(PHOTO.read_bytes())
    arguments = ["detect", str(text), str(odd), "--server", server.grpc]
    assert main([*arguments, "--project", str(tmp_path / "runs")]) == 1
    captured = capsys.readouterr()
    assert f"error: {text}: {text} cannot be decoded for drawing" in captured.err
    assert f"image 2/2 {odd}: 480x640 1 WBC" in captured.out
    assert [path.name for path in (tmp_path / "runs" / "exp").iterdir()] == ["photo-2.jpg"]


def test_exif_orientation_counts_for_the_boxes(server: RunningServer) -> None:
    """A photo stored lying on its side, as cameras do, gets the boxes of the upright one."""
    upright = cv2.imread(str(PHOTO))
    lying = np.rot90(upright)
    plain = cv2.imencode(".jpg", lying, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    answer = ask_grpc(server.grpc, [plain[:2] + segment + plain[2:]])
    assert answer["image_size"].tolist() == [[480, 640]]
    expected = REFERENCE[PHOTO.name][0]
    np.testing.assert_allclose(answer["det_boxes"][0, 0], expected[:4], atol=5)
