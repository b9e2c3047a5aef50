"""Against the reference implementation's answers: counts, classes, boxes, scores."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import (
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

COMMITTED = Path(__file__).parents[1] / "data" / "bccd_reference.json"


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


def test_bundled_photos(server: RunningServer) -> None:
    result = difference(server, PHOTOS.iterdir(), COMMITTED)
    assert (result.images, result.detections) == (8, 130)
    assert_faithful(result)


@pytest.mark.skipif(not SHARED.exists(), reason="the whole test split is not at hand")
def test_whole_blood_cell_test_split(server: RunningServer) -> None:
    photos = (SHARED / "bccd" / "images" / "test").iterdir()
    result = difference(server, photos, SHARED / "reference" / "bccd_yolov5n_square.json")
    assert result.images == 72
    assert_faithful(result)


@pytest.mark.skipif(not SHARED.exists(), reason="the COCO photos and weights are not at hand")
@pytest.mark.parametrize("weights", ["yolov5n_v7.0", "yolov5s_v5.0"])
def test_coco_photos(tmp_path: Path, weights: str) -> None:
    repository = make_repository(tmp_path, SHARED / "weights" / f"{weights}.pt")
    photos = [*(SHARED / "coco" / "images").iterdir(), *(SHARED / "photos").iterdir()]
    with running_server(f"--repository={repository}") as coco:
        result = difference(coco, photos, SHARED / "reference" / f"{weights}_square.json")
    assert result.images == 73
    assert_faithful(result)
