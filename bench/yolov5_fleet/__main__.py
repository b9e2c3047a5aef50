"""`python -m yolov5_fleet`: measure real servers, check the simulation, simulate a fleet."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from yolov5_bench._checkout import HERE

from . import _parameters
from ._measure import CASES, Comparison, Lengths, open_rig
from ._parameters import Parameters
from ._report import WITHIN, comparison_table, parameter_table, scenario_table, verdict
from ._scenarios import run, scenarios

_OUTPUT = HERE.root / "docs" / "performance"
_BUSY_LOAD = 0.5  # load average from which the machine does something else, too
_CHECK = "fleet-check.md"
_FLEET = "fleet.md"


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for, and return an exit status."""
    options = _options(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        status = 0
        if options.command in ("measure", "all"):
            status = measure(options)
        if options.command in ("simulate", "all"):
            simulate(options)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return status


def measure(options: argparse.Namespace) -> int:
    """Measure the parameters, then compare simulation and reality; 1 if they differ too much."""
    began, load = time.monotonic(), os.getloadavg()[0]
    lengths = Lengths().shortened(options.factor)
    comparisons: list[Comparison] = []
    with open_rig(options.precision, lengths) as rig:
        parameters = rig.calibrate(options.precision, load)
        _parameters.write(parameters, options.parameters)
        print(parameter_table(parameters), flush=True)
        for one in rig.compare(CASES, parameters):
            comparisons.append(one)
            print(comparison_table([one]).splitlines()[-1], flush=True)
    good, ratios = verdict(comparisons)
    slowest = max(one.late for one in comparisons)
    speeds = [one.speed for one in comparisons]
    text = (
        "# The simulation against real servers\n\n"
        "Written by `python -m yolov5_fleet measure`; every figure was measured or simulated in"
        f" this run.{_warning(parameters)}\n\n"
        f"## One server\n\n{parameter_table(parameters)}\n"
        "## Simulated / measured\n\n"
        f"{comparison_table(comparisons)}\n"
        f"{good} of {ratios} ratios are within {WITHIN:.0%}. The machine was"
        f" {min(speeds):.2f} to {max(speeds):.2f} times as fast as in the calibration, and no"
        f" request was sent more than {1000 * slowest:.0f} ms after its time. The run took"
        f" {time.monotonic() - began:.0f} s.\n"
    )
    (options.output / _CHECK).write_text(text, "utf-8")
    print(f"{text}\nwritten: {options.parameters}, {options.output / _CHECK}")
    return int(good < ratios)


def simulate(options: argparse.Namespace) -> None:
    """Simulate all scenarios, several at the same time."""
    parameters = _parameters.read(options.parameters)
    work = partial(run, parameters=parameters)
    results = []
    with ProcessPoolExecutor(options.processes) as pool:
        for result in pool.map(work, scenarios(options.scale)):
            results.append(result)
            print(scenario_table([result]).splitlines()[-1], flush=True)
    text = (
        "# A simulated fleet\n\n"
        "Written by `python -m yolov5_fleet simulate`. **All figures are simulated**, with the"
        f" parameters that were measured on one server of {parameters.capacity:.1f} images/s"
        f" ({', '.join(f'{name}: {value}' for name, value in parameters.about.items())})."
        f"{_warning(parameters)}\n\n"
        f"{scenario_table(results)}\n"
        "Latencies, refusals and server hours count from the event on.\n"
    )
    (options.output / _FLEET).write_text(text, "utf-8")
    print(f"{text}\nwritten: {options.output / _FLEET}")


def _warning(parameters: Parameters) -> str:
    load = float(parameters.about.get("load average before", 0))
    if load < _BUSY_LOAD:
        return ""
    return (
        f" **The machine was busy** (load average {load:.1f}): its times and rates are not those"
        " of the hardware, and predictions may miss."
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="yolov5_fleet", description=__doc__)
    parser.add_argument(
        "command",
        nargs="?",
        choices=("all", "measure", "simulate"),
        default="all",
        help="measure and check, simulate, or both (%(default)s)",
    )
    parser.add_argument(
        "--precision", default="auto", help="of the measured servers, as for `make serve`"
    )
    parser.add_argument(
        "--parameters",
        type=Path,
        default=_parameters.MEASURED,
        metavar="FILE",
        help="where the measured parameters are written and read (beside this program)",
    )
    parser.add_argument(
        "--output", type=Path, default=_OUTPUT, help="folder for reports (docs/performance)"
    )
    parser.add_argument(
        "--factor", type=float, default=1.0, help="by which measurements are longer (%(default)s)"
    )
    parser.add_argument(
        "--scale", type=int, default=1, help="by which simulated fleets are larger (%(default)s)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="scenarios that are simulated at the same time (the number of cores)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the servers, too
    sys.exit(main())
