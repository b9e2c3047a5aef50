"""`python -m yolov5_bench`: throughput, latency and CPU time of all contenders in one run."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from yolov5_build.cli import main as build
from yolov5_build.paths import BUNDLED_PHOTOS
from yolov5_build.photos import photos_in

from ._ceiling import measure_ceiling
from ._checkout import HERE
from ._contenders import CONTENDERS, Contender, on_triton
from ._load import MODEL
from ._measure import Sample, accuracy, check, measure, start_all
from ._report import REFERENCE, accuracy_table, plot, step_table, table, write_csv, write_ratios
from ._scaling import measure_scaling

BUNDLED = HERE.root / "examples" / "bccd" / "best.pt"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write the reports, and return an exit status."""
    options = _options(arguments)
    if options.ceiling:
        return measure_ceiling(options, machine())
    options.callers = options.callers or [1, 2, 4, 8, 16, 32]
    photos = photos_in(options.photos)[:8] if options.photos.is_dir() else [options.photos]
    wanted = [one for one in CONTENDERS if one.name in options.contenders]
    wanted += [contender for triton in options.triton for contender in on_triton(*triton)]
    with tempfile.TemporaryDirectory(prefix="yolov5-bench-") as folder:
        repositories = _repositories(options, wanted, Path(folder))
        if repositories is None:
            return 1
        network = repositories[()] / options.model / "1" / "model.onnx"
        if options.scaling:
            return measure_scaling(options, network, repositories[()], machine())
        samples = []
        with start_all(
            wanted, network=network, repositories=repositories, model=options.model
        ) as entries:
            check(entries, photos, network)
            print(f"{len(wanted)} contenders give the same answers; measuring.", flush=True)
            accuracies = accuracy(entries, options.data) if options.data else {}
            for number in range(options.rounds):
                for callers in options.callers:
                    samples += measure(
                        entries,
                        photos,
                        callers=callers,
                        turn=number,
                        seconds=options.seconds,
                        warm=options.warm,
                    )
                print(f"round {number + 1} of {options.rounds}", flush=True)
    _write_report(options, len(photos), samples, accuracies)
    return 0


def _write_report(
    options: argparse.Namespace,
    photos: int,
    samples: Sequence[Sample],
    accuracies: Mapping[str, tuple[float, float]],
) -> None:
    title = f"{options.weights.stem}, {photos} photos from {options.photos.name}, {machine()}"
    text = f"{title}; medians of {options.rounds} rounds of {options.seconds:.0f} s\n\n"
    text += f"{table(samples)}\nMilliseconds for an image in ours, in Triton's statistics"
    text += f" (of preprocess and {options.model} the handing over only):\n\n"
    text += step_table(samples)
    if accuracies:
        text += f"\nThrough the server, on {options.data.parent.name}/{options.data.name}:\n\n"
        text += accuracy_table(accuracies)
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / options.name
    stem.with_suffix(".md").write_text(text)
    write_csv(samples, stem.with_suffix(".csv"))
    write_ratios(samples, stem.with_suffix(".json"), machine())
    plot(samples, stem.with_suffix(".png"), title)
    print(text)


def _repositories(
    options: argparse.Namespace, wanted: list[Contender], folder: Path
) -> dict[tuple[str, ...], Path] | None:
    """Build a model repository for each form of the network that a contender needs.

    Returns:
        The repositories by a contender's `build`; None if a build fails.
    """
    found: dict[tuple[str, ...], Path] = {}
    for flags in dict.fromkeys([(), *(one.build for one in wanted)]):
        repository = folder / f"{len(found)}" / "model_repository"
        HERE.copy_steps(repository, options.model)
        more = [*flags, f"--repository={repository}"]
        if options.data:
            more.append(f"--data={options.data}")
        if options.model != MODEL:
            more.append(f"--name={options.model}")
        if build([str(options.weights), *more]):
            return None
        found[flags] = repository
    return found


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="yolov5_bench", description=__doc__)

    names = [one.name for one in CONTENDERS]
    usual = [one.name for one in CONTENDERS if not one.build]

    def several(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(names):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return [REFERENCE, *chosen]  # all are compared with it

    parser.add_argument(
        "--weights", type=Path, default=BUNDLED, help="the network (default: the bundled one)"
    )
    parser.add_argument(
        "--model",
        default=MODEL,
        metavar="NAME",
        help="name under which the network is served and asked (%(default)s)",
    )
    parser.add_argument(
        "--data", type=Path, help="labelled photos, for accuracy, and to decide on BF16 or INT8"
    )
    parser.add_argument("--photos", type=Path, default=BUNDLED_PHOTOS, help="a file or a folder")
    _add_load_options(parser)
    parser.add_argument("--contenders", type=several, default=usual, help=", ".join(names))
    parser.add_argument(
        "--triton",
        type=_named_folder,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="ours on this Triton too, as NAME, and as NAME-own with this project's backends",
    )
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="measure ours alone, by callers, sizes of photos and requests, detections, cores",
    )
    parser.add_argument(
        "--ceiling",
        action="store_true",
        help="measure all but the network: ours with networks that only hand out stored rows",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="with --ceiling: another checkout, whose server takes turns with this one's",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/bench"), help="folder for reports (%(default)s)"
    )
    parser.add_argument("--name", default="bundled", help="name of the reports (%(default)s)")
    return parser.parse_args(arguments)


def _named_folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not Path(folder, "bin", "tritonserver").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER with the folder of a Triton")
    return name, Path(folder).resolve()


def _add_load_options(parser: argparse.ArgumentParser) -> None:
    def numbers(text: str) -> list[int]:
        return [int(one) for one in text.split(",")]

    parser.add_argument(
        "--callers",
        type=numbers,
        help="numbers of concurrent callers (1,2,4,8,16,32; with --ceiling also 64)",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often all are measured (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="length of a measurement (%(default)s)"
    )
    parser.add_argument(
        "--warm", type=float, default=1.5, help="seconds of load before each (%(default)s)"
    )


def machine() -> str:
    """Describe the machine for which the figures hold."""
    return f"{len(os.sched_getaffinity(0))} cores, {_processor()}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
