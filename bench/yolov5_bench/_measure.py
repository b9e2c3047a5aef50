"""Interleaved rounds, in each of which every contender is measured once."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._contenders import Contender, Running, started
from ._load import MODEL
from ._pipeline import Answer, Pipeline


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One contender in one round, with one number of callers.

    Attributes:
        rate: images per second.
        p50, p95, p99, longest: milliseconds.
        server_ms, client_ms: milliseconds of CPU for an image.
        wire: bytes for an image, both ways.
        steps: milliseconds for an image in each step's queue and in its work; only for ours.
    """

    contender: str
    callers: int
    round: int
    rate: float
    p50: float
    p95: float
    p99: float
    longest: float
    server_ms: float
    client_ms: float
    wire: float
    steps: dict[str, float]


class LoadGenerator:
    """The process of the load generator.

    Args:
        module: a module beside this one that answers JSON with JSON.
    """

    def __init__(self, module: str = "_load") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"yolov5_bench.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def request(self, **request: Any) -> Any:
        """Send the process a request and return its answer.

        Raises:
            RuntimeError: the process has failed; its standard error says why.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator has failed")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@contextmanager
def start_all(
    contenders: Sequence[Contender],
    *,
    network: Path,
    repositories: Mapping[tuple[str, ...], Path],
    model: str = MODEL,
) -> Iterator[list[tuple[Running, LoadGenerator]]]:
    """Start all contenders; those with the same repository, precision and flags share a server.

    Args:
        network: the ONNX file, for contenders without Triton.
        repositories: the model repositories by a contender's `build`.
        model: name of the network in them.
    """
    with ExitStack() as stack:
        tritons: dict[tuple[str, ...], Running] = {}
        entries = []
        for contender in contenders:
            served = (contender.precision, *contender.build, *contender.flags)
            if contender.service is None and served in tritons:
                running = tritons[served].asked_as(contender)
            else:
                repository = repositories[contender.build]
                running = stack.enter_context(
                    started(contender, network=network, repository=repository, model=model)
                )
                if contender.service is None:
                    tritons[served] = running
            generator = LoadGenerator()
            stack.callback(generator.close)
            entries.append((running, generator))
        yield entries


def check(
    entries: Sequence[tuple[Running, LoadGenerator]], photos: Sequence[Path], network: Path
) -> None:
    """Check that all contenders give the answers of the bare functions.

    Raises:
        RuntimeError: a contender gives another answer. The message names the difference.
    """
    pipeline = Pipeline(network)
    wanted = [pipeline(photo.read_bytes()) for photo in photos]
    for running, generator in entries:
        answers = generator.request(
            sender=running.sender, model=running.model, photos=[*map(str, photos)], check=True
        )
        for photo, answer, right in zip(photos, answers, wanted):
            found = Answer.from_dict(answer)
            exact = running.contender.is_exact
            if how := found.difference_from(right) if exact else found.missing_from(right):
                raise RuntimeError(f"{running.contender.name}, {photo.name}: {how}")


def accuracy(
    entries: Sequence[tuple[Running, LoadGenerator]], data: Path
) -> dict[str, tuple[float, float]]:
    """Measure mAP50 and mAP50-95 on labelled photos through each of our servers, by contender."""
    found: dict[str, tuple[float, float]] = {}
    for running, _ in entries:
        if running.contender.service is not None or running.contender.sender[0] != "http":
            continue
        with tempfile.TemporaryDirectory() as folder:
            client = Path(sys.executable).with_name("yolov5-client")
            command = [str(client), "eval", str(data), f"--server={running.places['GRPC']}"]
            if running.model != MODEL:
                command.append(f"--model={running.model}")
            output = subprocess.run(
                [*command, "--json", f"--project={folder}"],
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        figures = json.loads(output.stdout)["all"]
        found[running.contender.name] = figures["map50"], figures["map50_95"]
    return found


def measure(
    entries: Sequence[tuple[Running, LoadGenerator]],
    photos: Sequence[Path],
    *,
    callers: int,
    turn: int,
    seconds: float,
    warm: float,
) -> list[Sample]:
    """Measure each contender once.

    Args:
        turn: number of the round, by which the order is rotated.
    """
    samples = []
    shift = turn % len(entries)  # no contender always follows the same other
    for running, generator in [*entries[shift:], *entries[:shift]]:
        with ExitStack() as stack:
            others = {other.process: other for other, _ in entries}
            others.pop(running.process, None)
            for other in others.values():
                stack.enter_context(other.paused())
            report = generator.request(
                sender=running.sender,
                model=running.model,
                photos=[*map(str, photos)],
                callers=running.contender.callers or callers,
                seconds=seconds,
                warm=warm,
                server=running.process,
                metrics=running.places["METRICS"] if running.contender.service is None else "",
            )
        name = running.contender.name
        samples.append(_sample(report, name, callers=callers, turn=turn, seconds=seconds))
    return samples


def _sample(
    report: dict[str, Any], contender: str, *, callers: int, turn: int, seconds: float
) -> Sample:
    """Make a sample from the report of the load generator."""
    latencies = np.array([x for caller in report["latencies"] for x in caller]) * 1000
    p50, p95, p99 = np.quantile(latencies, [0.5, 0.95, 0.99]).tolist()
    images = report["images"]
    return Sample(
        contender=contender,
        callers=callers,
        round=turn,
        rate=images / seconds,
        p50=p50,
        p95=p95,
        p99=p99,
        longest=float(latencies.max()),
        server_ms=1000 * report["server_cpu"] / images,
        client_ms=1000 * report["client_cpu"] / images,
        wire=report["wire"],
        steps=report["steps"],
    )
