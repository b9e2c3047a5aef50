"""Install trained weights as the served model: the work behind `make model`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from yolov5_client import DataError
from yolov5_client.evaluation import Split, read_split
from yolov5_client.stdio import prepare_stdio
from yolov5_server.hardware import cpu_has_bf16

from . import _contract as contract
from ._checkpoint import Checkpoint, load_checkpoint
from ._download import fetch_release, is_release_name
from ._endpoint import new_slot
from ._errors import BuildError, report_failure
from ._evaluate import Measurement, evaluate
from ._export import export_onnx
from ._install import Installed, install_onnx
from ._labels import read_names_file
from ._limits import limited, run_in_child
from ._manage import manage
from ._networks import check_target, endpoint_name, printable
from ._onnx_import import import_onnx
from ._onnx_prefiltered import write_prefiltered
from ._options import manages, parse
from ._prefiltered import export_prefiltered
from ._quantise import CALIBRATION_PHOTOS, quantise
from ._record import Accuracy
from ._runtimes import ONNX_RUNTIME, OPENVINO_BF16
from ._safetensors import SUFFIX, load_safetensors, save_safetensors
from .metadata import read_metadata
from .paths import BUNDLED, BUNDLED_DATA

ALLOWED_MAP_LOSS = 0.005  # of mAP50-95


def run(arguments: list[str] | None = None) -> int:
    """Run the command in a child process, so that a hostile file can crash or exhaust only that."""
    options = parse(arguments)
    if manages(options):
        return main(arguments)  # no file of somebody else's is read
    try:
        return run_in_child(lambda: main(arguments), Path(options.weights))
    except OSError as error:
        return report_failure(error)


def main(arguments: list[str] | None = None) -> int:
    """Run the command in this process.

    Args:
        arguments: the command line's; those of this process if left out.

    Returns:
        The exit status; the sentence to a status other than 0 is on stderr.
    """
    prepare_stdio()
    options = parse(arguments)
    if manages(options):
        return manage(options)
    try:
        if options.save:
            weights = _find_weights(options.weights)
            with limited(weights):
                checkpoint = _load_checkpoint(weights, options.names)
            save_safetensors(checkpoint, options.save)
            print(f"Wrote {options.save}.")
        else:
            _report(options, _install(options))
    except (BuildError, DataError, OSError) as error:
        return report_failure(error)
    except KeyboardInterrupt:
        print("error: interrupted; the installed model is unchanged.", file=sys.stderr)
        return 130
    return 0


def _find_weights(weights: str) -> Path:
    """The file of this name; if there is none, the release of this name, downloaded."""
    if is_release_name(weights) and not Path(weights).exists():
        return fetch_release(weights)
    return Path(weights)


def _load_checkpoint(path: Path, names_file: Path | None) -> Checkpoint:
    names = read_names_file(names_file) if names_file else None
    load = load_safetensors if path.suffix.lower() == SUFFIX else load_checkpoint
    return load(path, names=names)


def _install(options: argparse.Namespace) -> Installed:
    imgsz = _imgsz(options.imgsz)
    check_target(options.repository, options.name)
    new_slot(options.repository, options.name)  # refuses at once, not after minutes of export
    if options.name != contract.MODEL and not options.weights_given:
        raise BuildError(
            f"NAME is {options.name!r}, but WEIGHTS is missing; only {contract.MODEL} is restored"
            " to the bundled network."
        )
    weights = _find_weights(options.weights)
    measured = None
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder, contract.WEIGHTS_FILE)
        prefiltered = Path(folder, contract.SERVED_FILE)
        if weights.suffix.lower() == ".onnx":
            for flag in ("half", "int8", "reduced_head"):
                if getattr(options, flag):
                    raise BuildError(
                        f"--{flag.replace('_', '-')} needs the best.pt; an ONNX file such as"
                        f" {weights.name} is served unchanged."
                    )
            names = read_names_file(options.names) if options.names else None
            with limited(weights):
                import_onnx(weights, exported, names=names, imgsz=imgsz, prefiltered=prefiltered)
        else:
            exported, measured = _export_and_quantise(options, weights, imgsz, Path(folder))
        bf16, measured_now = _measure_bf16(options, exported)
        return install_onnx(
            exported,
            options.repository,
            letterbox=options.letterbox,
            imgsz=imgsz,
            bf16=bf16,
            prefiltered=prefiltered,
            name=options.name,
            options=_options_given(options),
            accuracy=_accuracy(measured_now or measured),
        )


def _options_given(options: argparse.Namespace) -> list[str]:
    """The options that change what is served, as on the command line; of paths only the names."""
    given = [f"--{name}" for name in ("half", "accept_loss", "reduced_head") if vars(options)[name]]
    if options.imgsz:
        given += ["--imgsz", *map(str, options.imgsz)]
    if options.letterbox != contract.SQUARE:
        given += ["--letterbox", options.letterbox]
    if options.int8:
        given += ["--int8", options.int8]
    for name in ("names", "data"):
        if vars(options)[name]:
            given += [f"--{name}", vars(options)[name].name]
    return [word.replace("_", "-") if word.startswith("--") else word for word in given]


def _accuracy(measured: Measurement | None) -> Accuracy | None:
    if measured is None:
        return None
    return Accuracy(
        map50=round(measured.map50, 4),
        map50_95=round(measured.map50_95, 4),
        photos=measured.photos,
    )


def _export_and_quantise(
    options: argparse.Namespace, weights: Path, imgsz: tuple[int, int] | None, folder: Path
) -> tuple[Path, Measurement | None]:
    """Make the file to serve of a checkpoint; FP16 and INT8 are measured if there are labels."""
    if options.half and options.int8:
        raise BuildError("--half and --int8 exclude each other.")
    if options.int8 and not options.data:
        raise BuildError(
            "--int8 needs --data data.yaml: photos to calibrate with, and labels to measure"
            " the loss of mAP."
        )
    validation = read_split(options.data, "val", "test") if options.data else None
    measured = validation is not None and bool(options.half or options.int8)
    if validation is not None and measured:
        _print_notes(validation)
    with limited(weights):
        exported, full = _export_checkpoint(options, weights, imgsz, folder, compare=measured)
    if validation is None or not measured:
        return exported, None
    if options.int8:
        exported = folder / "int8.onnx"
        training = read_split(options.data, "train")
        _print_notes(training)
        photos = training.photos
        step = -(-len(photos) // CALIBRATION_PHOTOS)  # spread over the whole folder
        quantise(full, exported, photos[::step], device=options.int8, letterbox=options.letterbox)
        write_prefiltered(folder / contract.SERVED_FILE, exported)
    before, after = (_measure(options, path, validation) for path in (full, exported))
    lost = before.map50_95 - after.map50_95
    if options.int8 and lost > ALLOWED_MAP_LOSS and not options.accept_loss:
        raise BuildError(
            f"INT8 loses {lost:.4f} of mAP50-95, more than {ALLOWED_MAP_LOSS}, so it was not"
            " installed; --accept-loss installs it anyway."
        )
    return exported, after


def _print_notes(split: Split) -> None:
    for note in split.notes:
        print(f"warning: {printable(note)}", file=sys.stderr)


def _export_checkpoint(
    options: argparse.Namespace,
    weights: Path,
    imgsz: tuple[int, int] | None,
    folder: Path,
    *,
    compare: bool,
) -> tuple[Path, Path]:
    """Export a checkpoint as it will be served, and in FP32 if the two are compared.

    Returns:
        The file to serve, and the one in FP32; the same file if it is FP32 or nothing is compared.
    """
    checkpoint = _load_checkpoint(weights, options.names)
    settings: dict[str, Any] = {
        "imgsz": imgsz or checkpoint.imgsz or contract.DEFAULT_SIZE,
        "dynamic": options.letterbox == contract.RECT,
        "reduced_head": options.reduced_head,
    }

    def export(name: str, *, half: bool = False) -> Path:
        path = folder / name
        provenance = f"From {weights.name}, sha256 {checkpoint.sha256}."
        export_onnx(checkpoint, path, half=half, provenance=provenance, **settings)
        return path

    exported = export(contract.WEIGHTS_FILE, half=options.half)
    if options.half:
        write_prefiltered(folder / contract.SERVED_FILE, exported)
    elif not options.int8:
        export_prefiltered(checkpoint, folder / contract.SERVED_FILE, exported, **settings)
    return exported, export("fp32.onnx") if options.half and compare else exported


def _measure_bf16(options: argparse.Namespace, exported: Path) -> tuple[bool, Measurement | None]:
    """Whether OpenVINO in BF16 is faster than ONNX Runtime here and keeps the mAP.

    Measures both if there are labels, and prints the decision.

    Returns:
        The decision, and what was measured of the form that is served.
    """
    bf16 = cpu_has_bf16()
    bundled = options.weights == str(BUNDLED)
    data = options.data or (BUNDLED_DATA if bundled and bf16 else None)
    before = split = None
    if data is not None and not (options.half or options.int8):  # measured before
        split = read_split(data, "val", "test")
        _print_notes(split)
        before = _measure(options, exported, split)
    if read_metadata(exported).precision != contract.FP32:
        return False, before
    if not bf16:
        print("Served in FP32: this CPU has no BF16.")
        return False, before
    if before is None or split is None:
        print(
            "Served in FP32: the loss of mAP in BF16 is not known for this network. With"
            " ARGS='--data data.yaml' it is measured, and BF16 is served if it keeps the mAP and is"
            " faster."
        )
        return False, None
    after = _measure(options, exported, split, OPENVINO_BF16)
    good = _replaces(after, before)
    print(f"BF16 is {'served, unless PRECISION=fp32' if good else 'not served'}.")
    return good, after if good else before


def _replaces(after: Measurement, before: Measurement) -> bool:
    """Whether the second choice keeps the mAP within `ALLOWED_MAP_LOSS` and is faster."""
    lost = before.map50_95 - after.map50_95
    return lost <= ALLOWED_MAP_LOSS and after.milliseconds < before.milliseconds


def _measure(
    options: argparse.Namespace, path: Path, split: Split, runtime: str = ONNX_RUNTIME
) -> Measurement:
    imgsz = _imgsz(options.imgsz) or read_metadata(path).imgsz or contract.DEFAULT_SIZE
    measured = evaluate(path, split, imgsz=imgsz, letterbox=options.letterbox, runtime=runtime)
    precision = contract.BF16 if runtime == OPENVINO_BF16 else read_metadata(path).precision
    print(
        f"{precision}: mAP50 {measured.map50:.4f},"
        f" mAP50-95 {measured.map50_95:.4f}, {measured.bytes / 1e6:.1f} MB,"
        f" {measured.milliseconds:.1f} ms an image on this CPU ({len(split.photos)} photos)",
        flush=True,
    )
    return measured


def _imgsz(given: list[int] | None) -> tuple[int, int] | None:
    if given is None:
        return None
    if len(given) > 2:
        raise BuildError("--imgsz takes height and width, or one number for both.")
    return given[0], given[-1]


def _report(options: argparse.Namespace, installed: Installed) -> None:
    further = options.name != contract.MODEL
    print(
        f"Installed {Path(options.weights).name} as version {installed.version}"
        f"{f' of {options.name}' if further else ''}:"
        f" {len(installed.names)} classes, {installed.height}x{installed.width},"
        f" letterbox {options.letterbox}."
        f"{f' Its endpoint is {endpoint_name(options.name)}.' if further else ''}"
        " A server that runs on this repository takes it over within seconds."
    )
