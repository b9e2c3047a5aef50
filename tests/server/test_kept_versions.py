"""Kept versions lie in the folder of a network, where a plain Triton does not mind them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support import ready_triton

from yolov5_build._version import kept_versions, link_tree, new_version, version_folder


def test_plain_triton_serves_a_copied_network_with_kept_versions(
    tmp_path: Path, bundled_repository: Path
) -> None:
    repository = tmp_path / "models"
    link_tree(bundled_repository / "yolov5", repository / "yolov5")
    for _ in range(2):
        served = version_folder(repository / "yolov5")
        assert served is not None
        with new_version(repository) as (folder, version):
            link_tree(repository / "yolov5", folder, without=["versions", served.name])
            link_tree(served, version)
    assert len(kept_versions(repository / "yolov5")) == 2
    subprocess.run(["cp", "-r", "models", "copy"], cwd=tmp_path, check=True)
    newest = version_folder(tmp_path / "copy" / "yolov5")
    assert newest is not None
    with ready_triton(tmp_path / "copy") as client:
        (model,) = client.get_model_repository_index().models
        assert (model.name, model.version, model.state) == ("yolov5", newest.name, "READY")
