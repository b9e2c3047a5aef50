"""The reports: tables, a CSV file, two plots, and the ratios for later comparison."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import median

from ._measure import Sample

REFERENCE = "ours"


def ratios(samples: Sequence[Sample], value: str = "rate") -> dict[tuple[str, int], list[float]]:
    """Divide ours by each contender, for each number of callers, once for each round."""
    ours = {(s.callers, s.round): getattr(s, value) for s in samples if s.contender == REFERENCE}
    found: dict[tuple[str, int], list[float]] = {}
    for s in samples:
        if (s.callers, s.round) in ours:
            ratio = ours[s.callers, s.round] / getattr(s, value)
            found.setdefault((s.contender, s.callers), []).append(ratio)
    return found


def table(samples: Sequence[Sample]) -> str:
    """Return the medians of the rounds as a Markdown table."""
    lines = [
        "| callers | contender | images/s | ours to it | p50 ms | p95 ms | p99 ms | longest ms"
        " | server CPU ms | client CPU ms | kB |",
        "|---:|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    compared = ratios(samples)
    for callers in sorted({s.callers for s in samples}):
        for name in dict.fromkeys(s.contender for s in samples):
            mine = [s for s in samples if (s.contender, s.callers) == (name, callers)]
            if not mine:
                continue

            def of(value: str, mine: list[Sample] = mine) -> float:
                return float(median(getattr(s, value) for s in mine))

            spread = compared.get((name, callers), [])
            ratio = (
                f"{median(spread):.2f} ({min(spread):.2f} to {max(spread):.2f})"
                if spread and name != REFERENCE
                else ""
            )
            lines.append(
                f"| {callers} | {name} | {of('rate'):.1f} | {ratio} | {of('p50'):.0f}"
                f" | {of('p95'):.0f} | {of('p99'):.0f} | {of('longest'):.0f}"
                f" | {of('server_ms'):.1f} | {of('client_ms'):.1f} | {of('wire') / 1000:.1f} |"
            )
    return "\n".join(lines) + "\n"


def step_table(samples: Sequence[Sample]) -> str:
    """Return the time of an image in each of our steps as a Markdown table of medians."""
    mine = [s for s in samples if s.contender == REFERENCE and s.steps]
    if not mine:
        return ""
    names = [*mine[0].steps]
    lines = [
        "| callers | " + " | ".join(names) + " |",
        "|---:|" + "---:|" * len(names),
    ]
    for callers in sorted({s.callers for s in mine}):
        rows = [s.steps for s in mine if s.callers == callers]
        cells = (f"{median(row[name] for row in rows):.1f}" for name in names)
        lines.append(f"| {callers} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def accuracy_table(accuracies: Mapping[str, tuple[float, float]]) -> str:
    """Return mAP50 and mAP50-95 by contender as a Markdown table."""
    lines = ["| contender | mAP50 | mAP50-95 | against ours |", "|---|---:|---:|---:|"]
    _, ours = accuracies[REFERENCE]
    lines += [
        f"| {name} | {map50:.4f} | {map50_95:.4f} | {map50_95 - ours:+.4f} |"
        for name, (map50, map50_95) in accuracies.items()
    ]
    return "\n".join(lines) + "\n"


def write_csv(samples: Sequence[Sample], path: Path) -> None:
    names = [field.name for field in fields(Sample) if field.name != "steps"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for sample in samples:
            values = (getattr(sample, name) for name in names)
            writer.writerow([round(v, 3) if isinstance(v, float) else v for v in values])


def write_ratios(samples: Sequence[Sample], path: Path, machine: str) -> None:
    """Write the median ratios by contender and callers, to compare later runs on this machine."""
    found: dict[str, dict[str, float]] = {}
    for (name, callers), values in ratios(samples).items():
        if name != REFERENCE:
            found.setdefault(name, {})[str(callers)] = round(median(values), 3)
    path.write_text(json.dumps({"machine": machine, "ratios": found}, indent=2) + "\n")


def regressions(
    found: Mapping[str, Mapping[str, float]],
    kept: Mapping[str, Mapping[str, float]],
    slack: float,
) -> dict[tuple[str, str], tuple[float, float]]:
    """Find the ratios that are less than `slack` times the kept ones.

    Args:
        found, kept: as `write_ratios` writes them; entries of only one of them are ignored.

    Returns:
        The found and the kept ratio by contender and callers.
    """
    return {
        (name, callers): (ratio, kept[name][callers])
        for name, ratios_of in found.items()
        for callers, ratio in ratios_of.items()
        if callers in kept.get(name, {}) and ratio < slack * kept[name][callers]
    }


def plot(samples: Sequence[Sample], path: Path, title: str) -> None:
    """Draw throughput and p99 against the number of callers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
    for name in dict.fromkeys(s.contender for s in samples):
        callers = sorted({s.callers for s in samples if s.contender == name})
        for axis, value in zip(axes, ("rate", "p99")):
            heights = [
                median(getattr(s, value) for s in samples if (s.contender, s.callers) == (name, n))
                for n in callers
            ]
            axis.plot(callers, heights, marker="o", label=name)
    for axis, label in zip(axes, ("images/s", "p99, ms")):
        axis.set_xscale("log", base=2)
        axis.set_xlabel("callers")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
