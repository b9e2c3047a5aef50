"""The command `yolov5-client`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ._client import Client
from ._detections import Detections
from ._errors import DataError, InvalidRequestError, YoloClientError
from ._sources import SUFFIXES, find_images
from ._validation import CONF_THRES, IOU_THRES, MAX_DET

# Exit statuses; argparse itself ends with 2 on unusable arguments.
OK, SOME_IMAGES_FAILED, USAGE, NO_SERVER = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except YoloClientError as error:
        print(f"error: {options.server}: {error}", file=sys.stderr)
        return NO_SERVER
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="yolov5-client", description="YOLOv5 behind Triton.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="gRPC side (%(default)s)"
    )
    common.add_argument("--timeout", type=float, default=60.0, help="seconds a request may take")

    detect = commands.add_parser("detect", parents=[common], help="find objects in images")
    detect.set_defaults(command=_detect)
    detect.add_argument("source", nargs="+", metavar="SOURCE", help="image files and folders")
    chosen = detect.add_argument_group("which detections (default: as the server has it)")
    chosen.add_argument("--conf-thres", type=float, metavar="0..1", help="least confidence")
    chosen.add_argument("--iou-thres", type=float, metavar="0..1", help="overlap of two boxes")
    chosen.add_argument("--max-det", type=int, metavar="N", help="most detections in an image")
    chosen.add_argument("--classes", nargs="+", metavar="CLASS", help="indices or names")
    chosen.add_argument("--agnostic-nms", action="store_true", default=None, help="across classes")
    chosen.add_argument("--multi-label", action="store_true", default=None, help="classes per box")
    output = detect.add_argument_group("output")
    output.add_argument("--nosave", action="store_true", help="draw no pictures")
    output.add_argument("--save-txt", action="store_true", help="write YOLO text files")
    output.add_argument("--save-conf", action="store_true", help="with confidences")
    output.add_argument("--project", type=Path, default=Path("runs/detect"), help="(%(default)s)")
    output.add_argument("--name", default="exp", help="folder in the project (%(default)s)")
    output.add_argument("--exist-ok", action="store_true", help="write into it if it exists")

    evaluate = commands.add_parser(
        "eval", parents=[common], help="mAP on a labelled data set, through the server"
    )
    evaluate.set_defaults(command=_eval)
    evaluate.add_argument("data", type=Path, metavar="DATA.YAML", help="as YOLOv5 takes it")
    evaluate.add_argument(
        "--split", nargs="+", default=["val", "test"], help="the first there is (%(default)s)"
    )
    evaluate.add_argument("--conf-thres", type=float, default=CONF_THRES, help="(%(default)s)")
    evaluate.add_argument("--iou-thres", type=float, default=IOU_THRES, help="(%(default)s)")
    evaluate.add_argument("--max-det", type=int, default=MAX_DET, help="(%(default)s)")
    evaluate.add_argument("--json", action="store_true", help="print JSON in place of a table")
    evaluate.add_argument("--project", type=Path, default=Path("runs/eval"), help="(%(default)s)")
    evaluate.add_argument("--name", default="exp", help="folder in the project (%(default)s)")
    evaluate.add_argument("--exist-ok", action="store_true", help="write into it if it exists")

    status = commands.add_parser("status", parents=[common], help="is the server ready?")
    status.set_defaults(command=_status)
    return parser


def _detect(options: argparse.Namespace) -> int:
    images = find_images(options.source)
    parameters = _parameters(options)
    results = _Results(options)
    failed = []
    with Client(options.server, timeout=options.timeout) as client:
        for number, path in enumerate(images, 1):
            started = time.perf_counter()
            try:
                detections = client.detect(path, **parameters)
                milliseconds = (time.perf_counter() - started) * 1000
                results.save(path, detections)
            except (InvalidRequestError, OSError) as error:
                print(f"error: {path}: {error}", file=sys.stderr)
                failed.append(path)
                continue
            height, width = detections.image_size
            print(
                f"image {number}/{len(images)} {path}: {height}x{width}"
                f" {detections.summary()}, {milliseconds:.1f}ms",
                flush=True,
            )
    results.report()
    if failed:
        print(f"error: {len(failed)} of {len(images)} images failed.", file=sys.stderr)
        return SOME_IMAGES_FAILED
    return OK


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    given = {
        name: getattr(options, name)
        for name in ("conf_thres", "iou_thres", "max_det", "agnostic_nms", "multi_label")
    }
    given["classes"] = ",".join(options.classes) if options.classes else None
    return {name: value for name, value in given.items() if value is not None}


class _Results:
    """The folder of one run: annotated pictures in it, text files in `labels/`."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._text = options.save_txt
        self._confidence = options.save_conf
        self._draw: Callable[[Path, Detections, Path], None] | None = None
        if not options.nosave:
            try:
                from ._draw import draw
            except ImportError:
                print(
                    "No pictures are drawn: OpenCV is missing (pip install 'yolov5-client[draw]').",
                    file=sys.stderr,
                )
            else:
                self._draw = draw
        self._folder = options.project / options.name
        if not options.exist_ok:
            self._folder = _first_free(self._folder)
        self._used: set[str] = set()

    def save(self, image: Path, detections: Detections) -> None:
        stem = self._unique(image.stem)
        if self._draw:
            self._folder.mkdir(parents=True, exist_ok=True)
            suffix = image.suffix if image.suffix.lower() in SUFFIXES else ".jpg"
            self._draw(image, detections, self._folder / f"{stem}{suffix}")
        if self._text:
            labels = self._folder / "labels"
            labels.mkdir(parents=True, exist_ok=True)
            lines = detections.yolo_lines(confidence=self._confidence)
            (labels / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))

    def _unique(self, stem: str) -> str:
        """Photos of the same name from two folders must not overwrite each other's results."""
        name, number = stem, 2
        while name in self._used:
            name, number = f"{stem}-{number}", number + 1
        self._used.add(name)
        return name

    def report(self) -> None:
        if self._used and (self._draw or self._text):
            print(f"Results saved to {self._folder}")


def _first_free(folder: Path) -> Path:
    """`exp`, else `exp2`, `exp3`, ...: as YOLOv5 numbers its runs."""
    number = 1
    candidate = folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}{number}")
    return candidate


def _eval(options: argparse.Namespace) -> int:
    try:
        from . import _eval as evaluation
    except ImportError as error:
        print(
            f"error: eval needs {error.name}; pip install 'yolov5-client[eval]' brings it.",
            file=sys.stderr,
        )
        return USAGE
    try:
        folder = options.project / options.name
        evaluation.run(options, folder if options.exist_ok else _first_free(folder))
    except (DataError, InvalidRequestError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    return OK


def _status(options: argparse.Namespace) -> int:
    with Client(options.server, timeout=options.timeout) as client:
        status = client.status()
    print(f"{status.address}: Triton {status.version}, {'ready' if status.ready else 'NOT READY'}")
    for model, ready in status.models.items():
        print(f"  {model}: {'ready' if ready else 'NOT READY'}")
    return OK if status.ready and all(status.models.values()) else NO_SERVER


if __name__ == "__main__":
    sys.exit(main())
