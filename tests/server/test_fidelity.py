"""Answers match those of the reference implementation: counts, classes, boxes, scores."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import (
    BUNDLED,
    PHOTOS,
    SHARED,
    Difference,
    RunningServer,
    ask_grpc,
    compare,
    make_repository,
    reference,
    running_server,
)

DATA = Path(__file__).parents[1] / "data"


def difference(server: RunningServer, photos: Iterable[Path], answers: Path) -> Difference:
    wanted = reference(answers)
    paths = [path for path in photos if path.name in wanted]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda path: ask_grpc(server.grpc, [path.read_bytes()]), paths)
        return compare(dict(zip((path.name for path in paths), found)), wanted)


def assert_faithful(result: Difference) -> None:
    print(result)
    assert result.unmatched <= 0.002 * result.detections
    assert result.box <= 0.1
    assert result.score <= 1e-3


def test_bundled_photos_match_the_reference(server: RunningServer) -> None:
    result = difference(server, PHOTOS.iterdir(), DATA / "bccd_reference.json")
    assert (result.images, result.detections) == (8, 130)
    assert_faithful(result)


def test_bundled_photos_match_the_reference_with_rect(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, BUNDLED, "--letterbox=rect")
    with running_server(f"--repository={repository}") as rect:
        result = difference(rect, PHOTOS.iterdir(), DATA / "bccd_reference_rect.json")
        assert (result.images, result.detections) == (8, 153)
        assert_faithful(result)
        if SHARED.exists():
            photos = (SHARED / "bccd" / "images" / "test").iterdir()
            result = difference(rect, photos, SHARED / "reference" / "bccd_yolov5n_rect.json")
            assert result.images == 72
            assert_faithful(result)


@pytest.mark.skipif(not SHARED.exists(), reason="the whole test split is not at hand")
def test_blood_cell_test_split_matches_the_reference(server: RunningServer) -> None:
    photos = (SHARED / "bccd" / "images" / "test").iterdir()
    result = difference(server, photos, SHARED / "reference" / "bccd_yolov5n_square.json")
    assert result.images == 72
    assert_faithful(result)


@pytest.mark.skipif(not SHARED.exists(), reason="the COCO photos and weights are not at hand")
@pytest.mark.parametrize(
    ("weights", "letterbox"),
    [
        ("yolov5n_v7.0", "square"),
        ("yolov5s_v5.0", "rect"),
        # Each weight and each letterbox is tried above.
        pytest.param("yolov5n_v7.0", "rect", marks=pytest.mark.slow),
        pytest.param("yolov5s_v5.0", "square", marks=pytest.mark.slow),
    ],
)
def test_coco_photos_match_the_reference(tmp_path: Path, weights: str, letterbox: str) -> None:
    path = SHARED / "weights" / f"{weights}.pt"
    repository = make_repository(tmp_path, path, f"--letterbox={letterbox}")
    photos = [*(SHARED / "coco" / "images").iterdir(), *(SHARED / "photos").iterdir()]
    with running_server(f"--repository={repository}") as coco:
        answers = SHARED / "reference" / f"{weights}_{letterbox}.json"
        result = difference(coco, photos, answers)
    assert result.images == 73
    assert_faithful(result)
