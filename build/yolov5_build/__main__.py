"""`python -m yolov5_build [WEIGHTS]`: trained weights become the served model.

WEIGHTS is a best.pt, a .safetensors or .onnx file, or the name of an official release such as
yolov5s, which is downloaded; without it the bundled model is restored.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from yolov5_client import DataError
from yolov5_client.evaluation import Split, read_split
from yolov5_client.stdio import prepare_stdio

from . import _names as names
from ._candidates import export_candidates
from ._checkpoint import Checkpoint, load_checkpoint
from ._download import fetch_release, is_release_name
from ._errors import BuildError, no_room
from ._evaluate import Figures, evaluate
from ._export import export_onnx
from ._install import Installed, install_onnx
from ._labels import read_names_file
from ._limits import reading, supervised
from ._metadata import read_metadata
from ._onnx_import import import_onnx
from ._quantise import CALIBRATION_PHOTOS, TARGETS, quantise
from ._runtimes import ONNX_RUNTIME, OPENVINO_BF16, cpu_has_bf16
from ._safetensors import SUFFIX, load_safetensors, save_safetensors

_ROOT = Path(__file__).parents[2]
BUNDLED = _ROOT / "examples" / "bccd" / "best.pt"
BUNDLED_DATA = BUNDLED.with_name("data.yaml")
REPOSITORY = _ROOT / "model_repository"
ALLOWED_LOSS = 0.005  # of mAP50-95


def main(arguments: list[str] | None = None) -> int:
    prepare_stdio()
    options = _parser().parse_args(arguments)
    try:
        if options.save:
            weights = _find(options.weights)
            with reading(weights):
                checkpoint = _checkpoint(weights, options.names)
            save_safetensors(checkpoint, options.save)
            print(f"Wrote {options.save}.")
        else:
            _report(options, _install(options))
    except (BuildError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {no_room(error)}; what was served still is.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; what was served still is.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="yolov5_build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "weights", nargs="?", default=str(BUNDLED), help="default: the bundled best.pt"
    )
    parser.add_argument(
        "--imgsz", type=int, nargs="+", help="height and width, or one number (640 if it is open)"
    )
    parser.add_argument(
        "--letterbox", choices=names.LETTERBOX_MODES, default="square", help="(%(default)s)"
    )
    parser.add_argument(
        "--names", type=Path, help="class names in place of the file's: one a line, or a data.yaml"
    )
    parser.add_argument("--half", action="store_true", help="compute in FP16")
    parser.add_argument(
        "--int8",
        choices=tuple(TARGETS),
        nargs="?",
        const="cpu",
        help="compute in INT8, calibrated on the training photos of --data",
    )
    parser.add_argument(
        "--reduced-head",
        action="store_true",
        help="answer with the best class of each box alone: fewer bytes, no multi_label",
    )
    parser.add_argument(
        "--data", type=Path, help="a data.yaml with labels: measures the mAP before installing"
    )
    parser.add_argument(
        "--accept-loss", action="store_true", help="install even if INT8 loses half a point of mAP"
    )
    parser.add_argument(
        "--save", type=Path, metavar=f"FILE{SUFFIX}", help="write this file, and install nothing"
    )
    parser.add_argument(
        "--repository", type=Path, default=REPOSITORY, help="the model repository to install into"
    )
    return parser


def _find(weights: str) -> Path:
    """A file of this name, else the release that is called so."""
    if is_release_name(weights) and not Path(weights).exists():
        return fetch_release(weights)
    return Path(weights)


def _checkpoint(path: Path, names_file: Path | None) -> Checkpoint:
    given = read_names_file(names_file) if names_file else None
    load = load_safetensors if path.suffix.lower() == SUFFIX else load_checkpoint
    return load(path, names=given)


def _install(options: argparse.Namespace) -> Installed:
    imgsz = _imgsz(options.imgsz)
    weights = _find(options.weights)
    with tempfile.TemporaryDirectory() as folder:
        made, candidates = Path(folder, names.WEIGHTS_FILE), Path(folder, names.CANDIDATES_FILE)
        if weights.suffix.lower() == ".onnx":
            for flag in ("half", "int8", "reduced_head"):
                if getattr(options, flag):
                    raise BuildError(
                        f"--{flag.replace('_', '-')} needs the best.pt; {weights.name} is served as"
                        " it is."
                    )
            given = read_names_file(options.names) if options.names else None
            with reading(weights):
                import_onnx(weights, made, names=given, imgsz=imgsz)
        else:
            made = _export(options, weights, imgsz or (640, 640), Path(folder))
        return install_onnx(
            made,
            options.repository,
            letterbox=options.letterbox,
            imgsz=imgsz,
            bf16=_bf16_is_as_good(options, made),
            candidates=candidates if candidates.exists() else None,
        )


def _export(
    options: argparse.Namespace, weights: Path, imgsz: tuple[int, int], folder: Path
) -> Path:
    if options.half and options.int8:
        raise BuildError("--half and --int8 exclude each other.")
    if options.int8 and not options.data:
        raise BuildError(
            "--int8 needs --data data.yaml: photos to calibrate with, and labels to measure what"
            " it costs."
        )
    validation = read_split(options.data, "val", "test") if options.data else None
    measured = validation is not None and bool(options.half or options.int8)
    if validation is not None and measured:
        _say_doubts(validation)
    with reading(weights):
        made, full = _forms(options, weights, imgsz, folder, compare=measured)
    if validation is None or not measured:
        return made
    if options.int8:
        made = folder / "int8.onnx"
        training = read_split(options.data, "train")
        _say_doubts(training)
        photos = training.photos
        step = -(-len(photos) // CALIBRATION_PHOTOS)  # from all over the folder
        quantise(full, made, photos[::step], device=options.int8, letterbox=options.letterbox)
    before, after = (_measure(options, path, validation) for path in (full, made))
    lost = before.map50_95 - after.map50_95
    if options.int8 and lost > ALLOWED_LOSS and not options.accept_loss:
        raise BuildError(
            f"INT8 loses {lost:.4f} of mAP50-95, more than {ALLOWED_LOSS}, so it was not installed;"
            " --accept-loss installs it all the same."
        )
    return made


def _say_doubts(split: Split) -> None:
    for note in split.notes:
        text = "".join(letter if letter.isprintable() else "?" for letter in note)
        print(f"warning: {text}", file=sys.stderr)


def _forms(
    options: argparse.Namespace,
    weights: Path,
    imgsz: tuple[int, int],
    folder: Path,
    *,
    compare: bool,
) -> tuple[Path, Path]:
    """Export a checkpoint to be served, and, where the two are to be compared, in FP32."""
    checkpoint = _checkpoint(weights, options.names)
    form: dict[str, Any] = {
        "imgsz": imgsz,
        "dynamic": options.letterbox == "rect",
        "reduced_head": options.reduced_head,
    }

    def export(name: str, *, half: bool = False) -> Path:
        path = folder / name
        provenance = f"From {weights.name}, sha256 {checkpoint.sha256}."
        export_onnx(checkpoint, path, half=half, provenance=provenance, **form)
        return path

    made = export(names.WEIGHTS_FILE, half=options.half)
    if not (options.half or options.int8):
        export_candidates(checkpoint, folder / names.CANDIDATES_FILE, made, **form)
    return made, export("fp32.onnx") if options.half and compare else made


def _bf16_is_as_good(options: argparse.Namespace, made: Path) -> bool:
    """Measure where there are labels; whether OpenVINO in BF16 is faster here and keeps the mAP."""
    bf16 = cpu_has_bf16()
    bundled = options.weights == str(BUNDLED)
    data = options.data or (BUNDLED_DATA if bundled and bf16 else None)
    before = split = None
    if data is not None and not (options.half or options.int8):  # those were measured
        split = read_split(data, "val", "test")
        _say_doubts(split)
        before = _measure(options, made, split)
    if read_metadata(made).precision != names.PRECISIONS[0]:
        return False
    if not bf16:
        print("Served in FP32: this CPU has no BF16.")
        return False
    if before is None or split is None:
        print(
            "Served in FP32: what BF16 would cost this network is not known. With"
            " ARGS='--data data.yaml' it is measured, and served where it is as good and faster."
        )
        return False
    after = _measure(options, made, split, OPENVINO_BF16)
    lost = before.map50_95 - after.map50_95
    good = lost <= ALLOWED_LOSS and after.milliseconds < before.milliseconds
    print(f"BF16 is {'served, but for PRECISION=fp32' if good else 'not served'}.")
    return good


def _measure(
    options: argparse.Namespace, path: Path, split: Split, runtime: str = ONNX_RUNTIME
) -> Figures:
    imgsz = _imgsz(options.imgsz) or (640, 640)
    figures = evaluate(path, split, imgsz=imgsz, letterbox=options.letterbox, runtime=runtime)
    precision = names.BF16 if runtime == OPENVINO_BF16 else read_metadata(path).precision
    print(
        f"{precision}: mAP50 {figures.map50:.4f},"
        f" mAP50-95 {figures.map50_95:.4f}, {figures.bytes / 1e6:.1f} MB,"
        f" {figures.milliseconds:.1f} ms an image on this CPU ({len(split.photos)} photos)",
        flush=True,
    )
    return figures


def _imgsz(given: list[int] | None) -> tuple[int, int] | None:
    if given is None:
        return None
    if len(given) > 2:
        raise BuildError("--imgsz takes height and width, or one number for both.")
    return given[0], given[-1]


def _report(options: argparse.Namespace, installed: Installed) -> None:
    print(
        f"Installed {Path(options.weights).name} as version {installed.version}:"
        f" {len(installed.names)} classes, {installed.height}x{installed.width},"
        f" letterbox {options.letterbox}. A server that runs on this repository takes it over"
        " within seconds."
    )


def run(arguments: list[str] | None = None) -> int:
    """The command in a process of its own, so that a file can end neither it nor the machine."""
    options = _parser().parse_args(arguments)
    try:
        return supervised(lambda: main(arguments), Path(options.weights))
    except OSError as error:
        print(f"error: {no_room(error)}; what was served still is.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run())
