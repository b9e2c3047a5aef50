"""`python -m yolov5_build [WEIGHTS]`: trained weights become the served model."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from . import BuildError, export_onnx, install_onnx, load_checkpoint
from ._names import LETTERBOX_MODES, WEIGHTS_FILE

_ROOT = Path(__file__).parents[2]
BUNDLED = _ROOT / "examples" / "bccd" / "best.pt"
REPOSITORY = _ROOT / "model_repository"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="yolov5_build", description=__doc__)
    parser.add_argument(
        "weights",
        type=Path,
        nargs="?",
        default=BUNDLED,
        help="a best.pt (default: the bundled one)",
    )
    parser.add_argument("--imgsz", type=int, default=640, help="input side in pixels (%(default)s)")
    parser.add_argument(
        "--letterbox", choices=LETTERBOX_MODES, default=LETTERBOX_MODES[0], help="(%(default)s)"
    )
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="the model repository to install into"
    )
    options = parser.parse_args(arguments)
    try:
        checkpoint = load_checkpoint(options.weights)
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder, WEIGHTS_FILE)
            export_onnx(checkpoint, exported, imgsz=options.imgsz)
            install_onnx(
                exported,
                options.repository,
                provenance=f"From {options.weights.name}, sha256 {checkpoint.sha256}.",
                letterbox=options.letterbox,
            )
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Installed {options.weights.name}: {len(checkpoint.names)} classes, {options.imgsz} px.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
