"""The report of `make gpu-check`: Markdown and CSV, written anew after each phase."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ._gpu_probe import GpuState
from .fidelity import Fidelity


@dataclass(frozen=True, kw_only=True)
class Load:
    """A server under load.

    Attributes:
        rate: images per second.
        p50, p99: milliseconds.
        failed: requests.
        wrong: answers with another number of boxes than a single caller gets.
        gpu: its state meanwhile; None if the driver does not tell.
        cpu: milliseconds of CPU time for an image, by process.
        steps: milliseconds for an image in each step of Triton.
    """

    case: str
    callers: int
    rate: float
    p50: float
    p99: float
    gpu: GpuState | None
    cpu: dict[str, float]
    failed: int = 0
    wrong: int = 0
    steps: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The network alone: images per second of a batch size, and seconds of its first runs."""

    case: str
    batch: int
    rate: float
    warm: float


@dataclass(frozen=True, kw_only=True)
class Started:
    """A server that got ready: after how many seconds, and what its log says runs the network."""

    case: str
    seconds: float
    provider: str


@dataclass
class Report:
    """All that was found out until now.

    Attributes:
        facts: of the machine and its software, by name.
        notes: what failed or was left out, and why.
        failed: whether a check failed.
        recoveries: seconds until a server answered again after `postprocess` was killed, by case.
        kills: the same for the first server, by the killed process.
    """

    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: bool = False
    started: list[Started] = field(default_factory=list)
    fidelity: dict[str, Fidelity] = field(default_factory=dict)
    recoveries: dict[str, float] = field(default_factory=dict)
    kills: dict[str, float] = field(default_factory=dict)
    engines: list[Engine] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)

    def fail(self, note: str) -> None:
        self.failed = True
        self.notes.append(note)


def file_stem(gpu: str) -> str:
    """A file's name for a GPU's: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-") or "unknown"


def write(report: Report, stem: Path) -> None:
    """Write STEM.md and STEM.csv."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text(markdown(report), "utf-8")
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows(report))


def rows(report: Report) -> list[list[str]]:
    """The measurements as a table with one row for each, the names of the columns first."""
    names, steps = _processes(report.loads), _steps(report.loads)
    head = ["what", "case", "callers or batch", "images_per_second", "p50_ms", "p99_ms"]
    head += ["failed", "wrong", "gpu_percent", "gpu_mib", "gpu_watts"]
    head += [f"cpu_ms_{name}" for name in names]
    head += [f"step_ms_{name.replace(' ', '_')}" for name in steps]
    table = [head]
    for load in report.loads:
        gpu = load.gpu
        state = [gpu.percent, gpu.memory, gpu.power] if gpu else ["", "", ""]
        values = [load.rate, load.p50, load.p99, f"{load.failed}", f"{load.wrong}", *state]
        values += [load.cpu.get(name, 0.0) for name in names]
        values += [load.steps.get(name, "") for name in steps]
        table.append(["server", load.case, str(load.callers), *map(_number, values)])
    for engine in report.engines:
        rest = [""] * (len(head) - 4)
        table.append(["engine", engine.case, str(engine.batch), _number(engine.rate), *rest])
    return table


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"


def _processes(loads: Sequence[Load]) -> list[str]:
    return sorted({name for load in loads for name in load.cpu})


def _steps(loads: Sequence[Load]) -> list[str]:
    """Names of the steps' times, in the order of the work."""
    return list(dict.fromkeys(name for load in loads for name in load.steps))


def markdown(report: Report) -> str:
    """The report for people."""
    title = report.facts.get("GPU", "no GPU")
    parts = [
        f"# {title}\n\nWritten by `make gpu-check`; every figure was measured in this run.\n",
        _table(["", ""], [[name, value] for name, value in report.facts.items()]),
        _servers(report),
        _load_table(report),
        _step_table(report),
        _engine_table(report),
        _limit_table(report),
        _kill_table(report),
    ]
    if report.notes:
        notes = "".join(f"- {note}\n" for note in report.notes)
        parts.append(f"## What failed or was left out\n\n{notes}")
    return "\n".join(part for part in parts if part)


def _servers(report: Report) -> str:
    if not report.started:
        return ""
    lines = []
    for one in report.started:
        found = report.fidelity.get(one.case)
        answers = ["", "", "", ""]
        if found:
            answers = [
                f"{found.found} of {found.wanted}",
                f"{found.unmatched}",
                f"{found.box:.4f}",
                f"{found.score:.6f}",
            ]
        recovery = report.recoveries.get(one.case)
        killed = "" if recovery is None else f"{recovery:.1f}"
        lines.append([one.case, f"{one.seconds:.1f}", one.provider, *answers, killed])
    head = ["server", "ready after s", "network runs on", "detections", "unmatched"]
    head += ["largest box difference px", "largest score difference"]
    head += ["answers again after `kill -9` of postprocess, s"]
    text = "Detections on the bundled photos, compared with the reference's (YOLOv5 v7.0, FP32)."
    return f"## Servers\n\n{text}\n\n{_table(head, lines)}"


def _load_table(report: Report) -> str:
    if not report.loads:
        return ""
    names = _processes(report.loads)
    lines = []
    for load in report.loads:
        gpu = load.gpu
        state = [f"{gpu.percent:.0f}", f"{gpu.memory:.0f}", f"{gpu.power:.0f}"] if gpu else [""] * 3
        figures = [f"{load.rate:.0f}", f"{load.p50:.1f}", f"{load.p99:.1f}"]
        figures += [f"{load.failed}", f"{load.wrong}"]
        cpu = [f"{load.cpu.get(name, 0.0):.2f}" for name in names]
        lines.append([load.case, f"{load.callers}", *figures, *state, *cpu])
    head = ["server", "callers", "images/s", "p50 ms", "p99 ms", "failed", "wrong"]
    head += ["GPU %", "GPU MiB", "GPU W"]
    head += [f"CPU ms, {name}" for name in names]
    text = (
        "JPEG in, boxes out, raw HTTP bodies, each caller sends the next photo as soon as it has"
        " an answer. Wrong are answers with another number of boxes than the same photo has alone."
        " CPU time is that of all processes of a kind, for an image. What nvidia-smi"
        " says of the GPU is a mean over the measurement, of its memory the largest value."
    )
    return f"## Load\n\n{text}\n\n{_table(head, lines)}"


def _step_table(report: Report) -> str:
    names = _steps(report.loads)
    lines = [
        [load.case, f"{load.callers}", *(f"{load.steps.get(name, 0.0):.2f}" for name in names)]
        for load in report.loads
        if load.steps
    ]
    if not lines:
        return ""
    text = "Milliseconds for an image, by Triton's metrics."
    return f"## Steps\n\n{text}\n\n{_table(['server', 'callers', *names], lines)}"


def _engine_table(report: Report) -> str:
    if not report.engines:
        return ""
    best: dict[str, float] = {}
    for engine in report.engines:
        best[engine.case] = max(best.get(engine.case, 0.0), engine.rate)
    lines = [
        [one.case, f"{one.batch}", f"{one.rate:.0f}", f"{one.warm:.1f}"] for one in report.engines
    ]
    text = (
        "ONNX Runtime in one process, input and output on the device, one run after the other:"
        " the limit. Best: " + ", ".join(f"{n} {rate:.0f} images/s" for n, rate in best.items())
    )
    head = ["network alone", "batch", "images/s", "first runs s"]
    return f"## Bare engine\n\n{text}.\n\n{_table(head, lines)}"


def _limit_table(report: Report) -> str:
    """How near each server comes to the bare engine, and which process is in the way."""
    best: dict[str, float] = {}
    for engine in report.engines:
        best[engine.case] = max(best.get(engine.case, 0.0), engine.rate)
    lines = []
    for load in report.loads:
        if load.case not in best or load.callers < 8:
            continue
        cores = {name: load.rate * ms / 1000 for name, ms in load.cpu.items()}
        busiest = max(cores, key=lambda name: cores[name], default="")
        share = f"{load.rate / best[load.case]:.2f}"
        lines.append([load.case, f"{load.callers}", share, busiest, f"{cores.get(busiest, 0):.2f}"])
    if not lines:
        return ""
    text = (
        "What a server reaches of the bare engine at its best batch, and which kind of process"
        " keeps most cores busy. A step in Python that keeps nearly one busy is the limit: it has"
        " one interpreter."
    )
    head = ["server", "callers", "of the bare engine", "busiest process", "cores"]
    return f"## Limit\n\n{text}\n\n{_table(head, lines)}"


def _kill_table(report: Report) -> str:
    lines = [[name, f"{seconds:.1f}"] for name, seconds in report.kills.items()]
    head = ["process killed by `kill -9`", "answers again after s"]
    return f"## Recovery\n\n{_table(head, lines)}" if lines else ""


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    text = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    text += [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join(text) + "\n"
