"""`yolov5-client detect`: find objects in images and videos, print and write the results."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from .._journal import RunRecord
from .._outputs import OutputOptions
from .._sources import STDIN, expand
from . import UsageError, connect, model_flag, result_flags, result_folder
from ._report import Report
from ._run import NO_OPENCV, Run
from .status import require_ready

PROJECT = "runs/detect"
_NO_OPENCV_CROPS = "--save-crop needs OpenCV: pip install opencv-python-headless"
_NO_OPENCV_PICTURES = (
    "No pictures are drawn: OpenCV is missing (pip install opencv-python-headless)."
)
_NEW_ON_RESUME = {"json", "quiet", "retry_for", "resume"}  # options that a resumed run sets anew
_FOLDER_OPTIONS = {"project", "name", "exist_ok"}


def add_parser(commands: Any, connection: argparse.ArgumentParser) -> None:
    detect = commands.add_parser(
        "detect", parents=[connection], help="find objects in images and videos"
    )
    _add_source_flags(detect)
    model_flag(detect)
    add_parameter_flags(detect.add_argument_group("detections (default: the server's settings)"))
    _add_sending_flags(detect.add_argument_group("sending"))
    _add_output_flags(detect.add_argument_group("output"))
    defaults = vars(detect.parse_args([]))
    kept = {
        name: default
        for name, default in defaults.items()
        if name not in {*vars(connection.parse_args([])), *_NEW_ON_RESUME, "also"}
    }
    detect.set_defaults(run=lambda options: run(options, kept))


def _add_source_flags(detect: argparse.ArgumentParser) -> None:
    detect.add_argument(
        "source",
        nargs="*",
        metavar="SOURCE",
        help="image or video files, folders, globs, URLs, a .txt list of these, - for standard"
        " input (an image, or a list), a webcam's index, rtsp:// and other streams",
    )
    detect.add_argument(
        "--source",
        dest="also",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="further sources; the flag of YOLOv5",
    )
    detect.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="FOLDER",
        help=f"continue the run in this folder (default: the newest in {PROJECT})",
    )


def add_parameter_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--conf-thres", type=float, metavar="0..1", help="minimum confidence")
    group.add_argument(
        "--iou-thres",
        type=float,
        metavar="0..1",
        help="IoU above which the weaker of two boxes is dropped",
    )
    group.add_argument("--max-det", type=int, metavar="N", help="maximum detections in an image")
    group.add_argument("--classes", nargs="+", metavar="CLASS", help="only these indices or names")
    group.add_argument(
        "--agnostic-nms", action="store_true", default=None, help="compare boxes across classes"
    )
    group.add_argument(
        "--multi-label", action="store_true", default=None, help="allow several classes per box"
    )
    add_class_conf_thres(group)


def add_class_conf_thres(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--class-conf-thres",
        metavar="CLASS:0..1,...",
        help="minimum confidence of single classes, such as person:0.6,2:0.3, or a JSON object;"
        " the others keep --conf-thres",
    )


def _add_sending_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--in-flight",
        type=whole_number,
        default=16,
        metavar="N",
        help="concurrent requests (%(default)s)",
    )
    add_retry_flag(group)
    group.add_argument(
        "--vid-stride",
        type=whole_number,
        default=1,
        metavar="N",
        help="send every Nth frame of a video (%(default)s)",
    )
    group.add_argument(
        "--jpeg-quality",
        type=quality,
        default=95,
        metavar="1..100",
        help="quality of the frames of a video (%(default)s)",
    )


def add_retry_flag(group: argparse._ArgumentGroup) -> None:
    """Add --retry-for, for commands that send many images."""
    group.add_argument(
        "--retry-for",
        type=seconds,
        default=300.0,
        metavar="SECONDS",
        help="how long to wait for a server that goes away during the run (%(default)g)",
    )


def _add_output_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--nosave", action="store_true", help="write no annotated pictures and videos"
    )
    group.add_argument("--save-txt", action="store_true", help="write YOLO text files")
    group.add_argument("--save-conf", action="store_true", help="add confidences to these files")
    group.add_argument("--save-crop", action="store_true", help="write a picture of each object")
    group.add_argument("--save-csv", action="store_true", help="write results.csv")
    group.add_argument("--save-json", action="store_true", help="write results.json, as COCO")
    group.add_argument(
        "--save-jsonl", action="store_true", help="write results.jsonl even with --nosave"
    )
    group.add_argument(
        "--line-thickness", type=whole_number, metavar="N", help="width of the boxes in pixels"
    )
    group.add_argument("--hide-labels", action="store_true", help="draw boxes without labels")
    group.add_argument("--hide-conf", action="store_true", help="draw labels without confidences")
    show = group.add_mutually_exclusive_group()
    show.add_argument("--json", action="store_true", help="print a line of JSON for each image")
    show.add_argument("--quiet", action="store_true", help="print only errors")
    result_flags(group, PROJECT)


def run(options: argparse.Namespace, defaults: dict[str, Any]) -> int:
    """Run the command and return its exit status.

    Args:
        defaults: the options that a resumed run takes from its record, with their defaults.
    """
    options.source = [*options.source, *options.also]
    record = None
    if options.resume is not None:
        folder, record = _record(options, defaults)
        for name in defaults.keys() - _FOLDER_OPTIONS:
            setattr(options, name, record.options.get(name, defaults[name]))
    else:
        if not options.source:
            raise UsageError("no source was given; allowed: files, folders, URLs and others.")
        folder = result_folder(options)
    sources, total = expand(
        # Sources of a resumed run that are finished may have been removed.
        options.source,
        stdin=sys.stdin.buffer,
        exclude=folder,
        strict=record is None,
    )
    if total is not None:
        sources = list(sources)
        if record and any(source.kind == "stream" for source in sources):
            raise UsageError("a run on a live stream cannot be resumed; start another.")
    kinds = {source.kind for source in sources} if isinstance(sources, list) else set()
    output_options = _output_options(options, video=bool(kinds - {"image"}))
    with connect(options) as client:
        require_ready(client)
    if record is None:
        kept = {name: getattr(options, name) for name in defaults if name not in _FOLDER_OPTIONS}
        record = RunRecord(kept, str(Path.cwd()))
    report = Report(options, total)
    work = Run(
        options, output_options, record, folder if options.resume is not None else None, report
    )
    with (
        closing(report),
        closing(work),
        connect(options, retry_for=options.retry_for, in_flight=options.in_flight) as client,
    ):
        return work.execute(client, enumerate(sources, 1))


def _record(options: argparse.Namespace, defaults: dict[str, Any]) -> tuple[Path, RunRecord]:
    """Return the folder and the record of the run to be resumed.

    Raises:
        UsageError: there is no such run, or it cannot be resumed as asked.
    """
    given = sorted(
        "SOURCE" if name == "source" else f"--{name.replace('_', '-')}"
        for name, default in defaults.items()
        if getattr(options, name) != default
    )
    if given:
        raise UsageError(f"--resume takes all from the run itself; without it: {', '.join(given)}.")
    if options.resume:
        folder = Path(options.resume)
    else:
        runs = [path.parent for path in Path(PROJECT).glob("*/run.json")]
        if not runs:
            raise UsageError(f"no run in {PROJECT} that could be resumed.")
        folder = max(runs, key=lambda run: (run / "run.json").stat().st_mtime)
    try:
        record = RunRecord.read(folder)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    if Path(record.directory) != Path.cwd():
        raise UsageError(f"the run was started in {record.directory}; resume it there.")
    if STDIN in record.options.get("source", []):
        raise UsageError("a run on standard input cannot be resumed; start another.")
    return folder, record


def _output_options(options: argparse.Namespace, *, video: bool) -> OutputOptions:
    pictures = not options.nosave
    if pictures or options.save_crop or video:
        try:
            import cv2  # noqa: F401
        except ImportError:
            if options.save_crop or video:
                raise UsageError(NO_OPENCV if video else _NO_OPENCV_CROPS) from None
            print(_NO_OPENCV_PICTURES, file=sys.stderr)
            pictures = False
    return OutputOptions(
        pictures=pictures,
        save_txt=options.save_txt,
        save_conf=options.save_conf,
        save_crop=options.save_crop,
        save_csv=options.save_csv,
        save_json=options.save_json,
        save_jsonl=options.save_jsonl,
        line_thickness=options.line_thickness,
        hide_labels=options.hide_labels,
        hide_conf=options.hide_conf,
    )


def whole_number(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is not allowed; allowed: 1 or more")
    return value


def seconds(text: str) -> float:
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{value} is not allowed; allowed: 0 or more seconds")
    return value


def quality(text: str) -> int:
    if not 1 <= (value := int(text)) <= 100:
        raise argparse.ArgumentTypeError(f"{value} is not allowed; allowed: 1 to 100")
    return value
