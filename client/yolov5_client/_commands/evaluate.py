"""`yolov5-client eval`: real files to the real endpoint, and what its answers are worth."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .._client import Client
from .._detections import Detections
from .._errors import DataError, InvalidRequestError
from .._validation import CONF_THRES, IOU_THRES, MAX_DET
from . import OK, UsageError, connect, result_flags, result_folder

if TYPE_CHECKING:  # needs the extra `eval`, and the other commands do not
    from ..evaluation import Evaluation, Split


def add_parser(commands: Any, connection: argparse.ArgumentParser) -> None:
    evaluate = commands.add_parser(
        "eval", parents=[connection], help="mAP on a labelled data set, through the server"
    )
    evaluate.set_defaults(run=run)
    evaluate.add_argument("data", type=Path, metavar="DATA.YAML", help="as YOLOv5 takes it")
    evaluate.add_argument(
        "--split", nargs="+", default=["val", "test"], help="the first there is (%(default)s)"
    )
    evaluate.add_argument("--conf-thres", type=float, default=CONF_THRES, help="(%(default)s)")
    evaluate.add_argument("--iou-thres", type=float, default=IOU_THRES, help="(%(default)s)")
    evaluate.add_argument("--max-det", type=int, default=MAX_DET, help="(%(default)s)")
    evaluate.add_argument("--json", action="store_true", help="print JSON in place of a table")
    result_flags(evaluate, "runs/eval")


def run(options: argparse.Namespace) -> int:
    """Ask the server for every photo of the split; print and write down what that is worth.

    Raises:
        UsageError: what it needs is not installed.
        DataError: the data set cannot be used, or is of other classes than the server's model.
        YoloClientError: the server refuses a photo or fails.
    """
    try:
        from .. import evaluation
    except ImportError as error:
        raise UsageError(
            f"eval needs {error.name}; pip install 'yolov5-client[eval]' brings it."
        ) from None
    names = evaluation.read_names(options.data)
    split = evaluation.read_split(options.data, *options.split)
    with connect(options) as client:
        detections, multi_label = _ask(client, split, options)
    _check_names(detections, names)
    found = [
        evaluation.Found(boxes=d.boxes, scores=d.scores, classes=d.classes, size=d.image_size)
        for d in detections
    ]
    result = evaluation.evaluate(found, split, classes=len(names))
    figures = _figures(result, names, len(split.photos), multi_label)
    folder = result_folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    if options.json:
        print(json.dumps(figures))
    else:
        _print_table(figures)
    _draw(result, names, folder)
    print(f"Results saved to {folder}", file=sys.stderr)
    return OK


def _ask(
    client: Client, split: Split, options: argparse.Namespace
) -> tuple[list[Detections], bool]:
    parameters: dict[str, Any] = {
        "conf_thres": options.conf_thres,
        "iou_thres": options.iou_thres,
        "max_det": options.max_det,
        "multi_label": True,
    }
    try:
        client.detect(split.photos[0], **parameters)
    except InvalidRequestError as error:
        if not str(error).startswith("multi_label"):
            raise
        print("The model has a reduced head: measured without multi_label.", file=sys.stderr)
        parameters["multi_label"] = False
    answers = []
    # disable=None: silent unless standard error is a terminal.
    with tqdm(total=len(split.photos), unit="photo", disable=None) as progress:
        for photo, answer in zip(
            split.photos, client.detect_stream(split.photos, return_exceptions=True, **parameters)
        ):
            if isinstance(answer, InvalidRequestError):
                raise InvalidRequestError(f"{photo}: {answer}")
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer)
            progress.update()
    return answers, bool(parameters["multi_label"])


def _check_names(detections: list[Detections], names: tuple[str, ...]) -> None:
    """A model of other classes would be given figures that mean nothing."""
    for one in detections:
        for index, label in zip(one.classes, one.labels):
            if index >= len(names) or label != names[index]:
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

    columns = (result.precision, result.recall, result.ap50, result.ap50_95)
    return {
        "photos": photos,
        "multi_label": multi_label,
        "confidence": round(result.confidence, 3),
        "all": row(int(result.labels.sum()), *(float(np.nanmean(c)) for c in columns)),
        "classes": {
            name: row(int(result.labels[index]), *(column[index] for column in columns))
            for index, name in enumerate(names)
        },
    }


def _print_table(figures: dict[str, Any]) -> None:
    print(f"{'Class':>20} {'Labels':>8} {'P':>8} {'R':>8} {'mAP50':>8} {'mAP50-95':>8}")
    for name, row in (("all", figures["all"]), *figures["classes"].items()):
        if row["labels"]:
            values = (row["precision"], row["recall"], row["map50"], row["map50_95"])
            print(f"{name:>20} {row['labels']:>8} " + " ".join(f"{v:>8.4f}" for v in values))
    print(f"{figures['photos']} photos; P and R at confidence {figures['confidence']}.")


def _draw(result: Evaluation, names: tuple[str, ...], folder: Path) -> None:
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
            few = len(names) <= 20  # more names than that hide the picture
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
