"""Folders and files of the project that the build tool reads or writes."""

from pathlib import Path

_ROOT = Path(__file__).parents[2]

REPOSITORY = _ROOT / "model_repository"
DOCKERFILE = _ROOT / "build" / "Dockerfile"
BUNDLED = _ROOT / "examples" / "bccd" / "best.pt"
BUNDLED_DATA = BUNDLED.with_name("data.yaml")
BUNDLED_PHOTOS = BUNDLED.with_name("photos")
