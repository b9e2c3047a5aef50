"""`yolov5-client eval`: mAP, precision and recall of the endpoint on a labelled data set."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .._client import Client
from .._detections import Detections
from .._errors import DataError, InvalidRequestError
from .._val_defaults import CONF_THRES, IOU_THRES, MAX_DET
from . import OK, UsageError, connect, model_flag, result_flags, result_folder
from ._report import printable
from .detect import add_class_conf_thres, whole_number

if TYPE_CHECKING:  # needs the extra `eval`, and the other commands do not
    from .._val_canvas import Placement
    from .._val_metrics import ValFigures
    from ..evaluation import Evaluation, Predictions, Split

_LEAST_SIDE = 10  # pixels; YOLOv5 refuses smaller photos
_LEFT_OUT_SHOWN = 10


def add_parser(commands: Any, connection: argparse.ArgumentParser) -> None:
    evaluate = commands.add_parser(
        "eval", parents=[connection], help="measure mAP on a labelled data set through the server"
    )
    evaluate.set_defaults(run=run)
    evaluate.add_argument(
        "data", type=Path, metavar="DATA.YAML", help="the data set, described as for YOLOv5"
    )
    model_flag(evaluate)
    evaluate.add_argument(
        "--split",
        nargs="+",
        default=["val", "test"],
        help="splits, of which the first that exists is used (val test)",
    )
    evaluate.add_argument(
        "--conf-thres", type=float, default=CONF_THRES, help="minimum confidence (%(default)s)"
    )
    evaluate.add_argument(
        "--iou-thres",
        type=float,
        default=IOU_THRES,
        help="IoU above which the weaker of two boxes is dropped (%(default)s)",
    )
    evaluate.add_argument(
        "--max-det", type=int, default=MAX_DET, help="maximum detections in a photo (%(default)s)"
    )
    add_class_conf_thres(evaluate)
    evaluate.add_argument(
        "--as-val",
        nargs="?",
        choices=("square", "rect"),
        const="square",
        help="prepare photos as YOLOv5's val.py does for exported networks (square) or for PyTorch"
        " weights (rect)",
    )
    evaluate.add_argument(
        "--imgsz",
        type=whole_number,
        default=640,
        help="longest side in pixels, for --as-val (%(default)s)",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of a table")
    result_flags(evaluate, "runs/eval")


def run(options: argparse.Namespace) -> int:
    """Send every photo of the split, measure the answers, and print and write the figures.

    Raises:
        UsageError: a package is not installed.
        DataError: the data set cannot be used, or its classes are not those of the server's model.
        YoloClientError: the server refuses a parameter or fails.
    """
    try:
        from .. import evaluation
    except ImportError as error:
        raise UsageError(
            f"eval needs {error.name}; pip install 'yolov5-client[eval]' brings it."
        ) from None
    names = evaluation.read_names(options.data)
    split = evaluation.read_split(options.data, *options.split)
    for note in split.notes:
        print(f"warning: {printable(note)}", file=sys.stderr)
    photos = _pending_photos(split, options)
    with connect(options) as client:
        answers, multi_label = _detect_all(client, photos, options)
    kept = [index for index, answer in enumerate(answers) if isinstance(answer, Detections)]
    detections = [answer for answer in answers if isinstance(answer, Detections)]
    _report_left_out(split, answers)
    _check_names(detections, names)
    split = evaluation.Split(
        photos=[split.photos[index] for index in kept],
        labels=[split.labels[index] for index in kept],
    )
    found = [photos[index].found(answer) for index, answer in zip(kept, detections)]
    result = evaluation.evaluate(found, split, classes=len(names))
    figures = _figures(result, names, len(split.photos), multi_label)
    figures["left_out"] = len(answers) - len(kept)
    figures["as_val"] = options.as_val
    figures["model"] = options.model
    folder = result_folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    if options.json:
        print(json.dumps(figures))
    else:
        _print_table(figures)
    _plot(result, names, folder)
    print(f"Results saved to {folder}", file=sys.stderr)
    return OK


@dataclass
class _Photo:
    """A photo to send: unchanged, or prepared as `val.py` would."""

    path: Path
    prepare: Callable[[Path], tuple[bytes, Placement]] | None = None
    placement: Placement | None = None

    def __call__(self) -> bytes:
        if self.prepare is None:
            return self.path.read_bytes()
        data, self.placement = self.prepare(self.path)
        return data

    def found(self, answer: Detections) -> Predictions:
        from ..evaluation import Predictions

        boxes, size = answer.boxes, answer.image_size
        if self.placement:
            boxes, size = self.placement.to_photo(boxes), self.placement.size
        return Predictions(boxes=boxes, scores=answer.scores, classes=answer.classes, size=size)


def _pending_photos(split: Split, options: argparse.Namespace) -> list[_Photo]:
    if options.as_val is None:
        return [_Photo(photo) for photo in split.photos]
    try:
        from .. import _draw, _val_canvas
    except ImportError:
        raise UsageError("--as-val needs OpenCV: pip install opencv-python-headless") from None
    canvases = [(options.imgsz, options.imgsz)] * len(split.photos)
    if options.as_val == "rect":
        sizes: list[tuple[int, int]] = []
        for photo in split.photos:
            try:
                height, width, _ = _draw.decode(photo.read_bytes()).shape
                sizes.append((height, width))
            except (OSError, ValueError):  # reported when the photo is sent
                sizes.append((1, 1))
        canvases = _val_canvas.rectangles(options.imgsz, sizes)

    def prepare(canvas: tuple[int, int]) -> Callable[[Path], tuple[bytes, Placement]]:
        def prepared(path: Path) -> tuple[bytes, Placement]:
            try:
                picture = _draw.decode(path.read_bytes())
            except ValueError:
                raise OSError("OpenCV cannot decode it") from None
            result, placement = _val_canvas.place(picture, options.imgsz, canvas)
            return _val_canvas.encode(result), placement

        return prepared

    return [_Photo(photo, prepare(canvas)) for photo, canvas in zip(split.photos, canvases)]


def _detect_all(
    client: Client, photos: Sequence[_Photo], options: argparse.Namespace
) -> tuple[list[Detections | str], bool]:
    """Return for each photo its detections, or a sentence that says why there are none."""
    parameters: dict[str, Any] = {
        "conf_thres": options.conf_thres,
        "iou_thres": options.iou_thres,
        "max_det": options.max_det,
    }
    if options.class_conf_thres is not None:
        parameters["class_conf_thres"] = options.class_conf_thres
    parameters["multi_label"] = _supports_multi_label(client, photos, parameters)
    answers: list[Detections | str] = []
    # disable=None: silent unless standard error is a terminal.
    with tqdm(total=len(photos), unit="photo", disable=None) as progress:
        for answer in client.detect_stream(photos, return_exceptions=True, **parameters):
            if isinstance(answer, Detections) and min(answer.image_size) < _LEAST_SIDE:
                answers.append(f"has a side of fewer than {_LEAST_SIDE} pixels")
            elif isinstance(answer, Detections):
                answers.append(answer)
            elif (reason := _photo_error(answer)) is not None:
                answers.append(reason)
            else:
                raise answer
            progress.update()
    return answers, bool(parameters["multi_label"])


def _supports_multi_label(
    client: Client, photos: Sequence[_Photo], parameters: Mapping[str, Any]
) -> bool:
    """Ask with the first usable photo whether the model has a score for each class."""
    for photo in photos:
        try:
            client.detect(photo, **parameters, multi_label=True)
        except (InvalidRequestError, OSError) as error:
            if str(error).startswith("multi_label"):
                print(
                    "The model tells only one class of each box: measured without multi_label.",
                    file=sys.stderr,
                )
                return False
            if _photo_error(error) is None:
                raise
        else:
            return True
    raise DataError("none of the data set's photos can be used.")


def _photo_error(error: Exception) -> str | None:
    """Return why a photo cannot be used; None if the error has another cause."""
    if isinstance(error, InvalidRequestError) and str(error).startswith("image "):
        return str(error).partition(": ")[2].rstrip(".")
    if isinstance(error, (OSError, ValueError)):
        return getattr(error, "strerror", None) or str(error)
    return None


def _report_left_out(split: Split, answers: Sequence[Detections | str]) -> None:
    lost = [(path, one) for path, one in zip(split.photos, answers) if isinstance(one, str)]
    for path, sentence in lost[:_LEFT_OUT_SHOWN]:
        print(f"warning: {printable(str(path))}: {sentence}", file=sys.stderr)
    if lost:
        count = f"{len(lost)} of {len(answers)}"
        print(f"warning: {count} photos left out; they cannot be used.", file=sys.stderr)


def _check_names(detections: list[Detections], names: tuple[str, ...]) -> None:
    """Refuse a model with other classes, for which the figures would be meaningless.

    Names that are only their own index (`names: [0, 1, 2]`) fit any model.
    """
    numbers = all(name == str(index) for index, name in enumerate(names))
    for one in detections:
        for index, label in zip(one.classes, one.labels):
            if index >= len(names) or (label != names[index] and not numbers):
                mine = repr(names[index]) if index < len(names) else "none"
                raise DataError(
                    f"the server's class {index} is {label!r}, the data set's is {mine}."
                )


def _figures(
    result: Evaluation, names: tuple[str, ...], photos: int, multi_label: bool
) -> dict[str, Any]:
    def row(labels: int, *values: float) -> dict[str, Any]:
        keys = ("precision", "recall", "map50", "map50_95")
        return {
            "labels": labels,
            **{k: None if math.isnan(v) else round(float(v), 4) for k, v in zip(keys, values)},
        }

    def rows(source: Evaluation | ValFigures) -> dict[str, Any]:
        columns = (source.precision, source.recall, source.ap50, source.ap50_95)
        return {
            "confidence": round(source.confidence, 3),
            "all": row(int(result.labels.sum()), *(float(np.nanmean(c)) for c in columns)),
            "classes": {
                name: row(int(result.labels[index]), *(column[index] for column in columns))
                for index, name in enumerate(names)
            },
        }

    head = {"photos": photos, "multi_label": multi_label}
    return {**head, **rows(result), "yolov5": rows(result.val)}


def _print_table(figures: dict[str, Any]) -> None:
    keys = ("precision", "recall", "map50", "map50_95")
    ways = (figures, figures["yolov5"])
    print(f"{'':>29} {'COCO (pycocotools)':>35} {'YOLOv5 (val.py)':>36}")
    print(f"{'Class':>20} {'Labels':>8}" + f" {'P':>8} {'R':>8} {'mAP50':>8} {'mAP50-95':>8} " * 2)
    for name in (None, *figures["classes"]):
        rows = [way["all"] if name is None else way["classes"][name] for way in ways]
        if rows[0]["labels"]:
            parts = (" ".join(f"{row[key]:>8.4f}" for key in keys) for row in rows)
            print(
                f"{'all' if name is None else name:>20} {rows[0]['labels']:>8} " + "  ".join(parts)
            )
    at = " and ".join(str(way["confidence"]) for way in ways)
    print(f"{figures['photos']} photos; P and R at confidence {at}.")


def _plot(result: Evaluation, names: tuple[str, ...], folder: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("No pictures are drawn: matplotlib is missing.", file=sys.stderr)
        return
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot(
        xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="IoU 0.5"
    )
    recall = np.linspace(0, 1, 101)
    for index, name in enumerate(names):
        if result.labels[index]:
            few = len(names) <= 20  # a longer legend would cover the plot
            label = f"{name} {result.ap50[index]:.3f}" if few else None
            axes.plot(recall, result.curve[index], linewidth=1, label=label)
    mean = np.nanmean(result.curve, axis=0)
    axes.plot(recall, mean, linewidth=3, color="black", label=f"all {result.map50:.3f}")
    axes.legend()
    figure.savefig(folder / "PR_curve.png", dpi=150)

    kept = [*np.flatnonzero(result.confusion.sum(0) + result.confusion.sum(1)).tolist()]
    matrix = result.confusion[np.ix_(kept, kept)]
    shares = matrix / np.maximum(matrix.sum(0, keepdims=True), 1)
    side = 4 + 0.4 * len(kept)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    labels = [(*names, "background")[index] for index in kept]
    axes = figure.add_subplot(
        xlabel="label", ylabel="detection", title="confidence 0.25, IoU 0.45; share of the column"
    )
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(kept)), labels, rotation=90)
    axes.set_yticks(range(len(kept)), labels)
    for i, j in np.argwhere(matrix).tolist():
        colour = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(folder / "confusion_matrix.png", dpi=150)
