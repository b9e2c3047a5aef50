"""`make gpu-check`: tests, fidelity, recovery and throughput on a machine with an NVIDIA GPU.

Needs no network. After each phase it writes docs/performance/NAME-OF-THE-GPU.md and .csv, so that
what was measured is kept if the run is cut off. The most important is measured first; for what the
time is too short is said in the report. The exit status is 0 if every check passed, and nothing of
the first server was left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnxruntime

from yolov5_build.paths import BUNDLED, BUNDLED_PHOTOS, REPOSITORY
from yolov5_build.photos import photos_in

from ._contenders import CONTENDERS, started
from ._gpu_cases import (
    BUNDLED_NETWORK,
    CASES,
    CLIENT_SIDE,
    WITH_TF32,
    Case,
    further_cases,
    tensorrt_cases,
)
from ._gpu_probe import nvidia_smi, tensorrt_library
from ._gpu_report import Engine, Report, Started, file_stem, write
from ._gpu_server import (
    KILLED,
    GpuServer,
    Target,
    answers,
    gpu_server,
    kill_process,
    measure_load,
    use_tensorrt,
)
from ._measure import LoadGenerator
from ._pipeline import CONF_THRES
from ._random_network import SIZES, write_random_network
from .fidelity import compare, read_reference

__all__ = ["CASES", "Case", "Check", "main"]

_ROOT = Path(__file__).parents[2]
_REFERENCE = _ROOT / "tests" / "data" / "bccd_reference.json"
_RECT_REFERENCE = _ROOT / "tests" / "data" / "bccd_reference_rect.json"
_CUDA = "CUDAExecutionProvider"
_TEST_SECONDS, _BUILD_SECONDS, _READY_SECONDS, _RECOVERY_SECONDS = 90, 150, 150, 120
_ENGINE_SECONDS, _TENSORRT_SECONDS = 60, 150
_RESERVE_SECONDS = 20  # to end a server and write the report
_LEAST_SECONDS = 5  # with less, nothing is begun
_GENERATORS = 6


class Check:
    """One run.

    Args:
        options: the command line's.
        gpu: name of the GPU; None for a rehearsal on the CPU.
        folder: an empty folder for model repositories.
    """

    def __init__(self, options: argparse.Namespace, gpu: str | None, folder: Path) -> None:
        self.options = options
        self.gpu = gpu
        self.folder = folder
        self.report = Report(facts=facts(gpu))
        output = options.output or _ROOT / ("docs/performance" if gpu else "runs/gpu-check")
        self.stem = output / file_stem(gpu or "rehearsal on the CPU")
        self._deadline = time.monotonic() + 60 * options.minutes - _RESERVE_SECONDS
        self._repositories: dict[tuple[str, ...], Path] = {}
        self._photos = [path for path in photos_in(BUNDLED_PHOTOS) if path.name in self._wanted()]
        self._counts: list[int] = []  # of the boxes in each photo, in FP32
        self._weights: dict[str, Path | None] = {path.stem: path for path in options.weights}
        if not options.weights:  # None: random ones, made when they are needed
            self._weights = dict.fromkeys(SIZES)
            about = f"{' and '.join(SIZES)} have random weights, for their speed alone"
            self.report.facts["networks"] = f"the bundled yolov5n; {about}"
        else:
            names = ", ".join(path.name for path in options.weights)
            self.report.facts["networks"] = f"the bundled yolov5n; {names}"

    def left(self, most: float) -> float:
        """Seconds that a step may take.

        Raises:
            RuntimeError: the time is over.
        """
        left: float = self._deadline - time.monotonic()
        if left <= _LEAST_SECONDS:
            raise RuntimeError("left out, the time was over")
        return min(most, left)

    def run(self) -> int:
        """Run all phases, whichever fails, and return the exit status."""
        first, *others = CASES[: self.options.cases]
        self._phase("tests", self.tests)
        self._phase(f"server {first.name}", partial(self.server, first))
        self._phase(f"bare engine {first.name}", partial(self.engine, first))
        work = partial(self.server, CLIENT_SIDE)
        self._phase(f"server {CLIENT_SIDE.name}", work, seconds=CLIENT_SIDE.seconds)
        further = self.options.cases >= len(CASES) and not self.options.quick
        networks = [*self._weights] if further else []
        for case in [*others, *(further_cases(networks) if further else [])]:
            work = partial(self.server, case)
            begun = self._phase(f"server {case.name}", work, seconds=case.seconds)
            if begun and not (case.rect or self.options.quick):
                work = partial(self.engine, case)
                self._phase(f"bare engine {case.name}", work, seconds=15)
        self._phase("TensorRT", partial(self.tensorrt, networks))
        if self.gpu and further:
            self._phase(
                f"bare engine {WITH_TF32.name}", partial(self.engine, WITH_TF32), seconds=20
            )
        print(self.stem.with_suffix(".md").read_text("utf-8"))
        return int(self.report.failed)

    def _phase(self, name: str, work: Callable[[], None], *, seconds: float = 0) -> bool:
        """Do a part of the work, unless it takes longer than the time that is left.

        Args:
            seconds: about how long it takes; 0 if the check is nothing without it.

        Returns:
            Whether it was begun.
        """
        started = time.monotonic()
        left = self._deadline - started
        if seconds and left < seconds:
            self.report.notes.append(
                f"{name}: left out, it takes about {seconds:.0f} s, and {max(0.0, left):.0f} s were"
                " left; more --minutes allow it"
            )
            write(self.report, self.stem)
            return False
        print(f"{name} ...", flush=True)
        try:
            work()
        except Exception as error:
            if seconds and self._deadline - time.monotonic() <= _LEAST_SECONDS:
                self.report.notes.append(f"{name}: cut off, the time was over")
            else:
                self.report.fail(f"{name}: {_one_line(error)}")
            print(f"  failed: {error}", flush=True)
        print(f"  {time.monotonic() - started:.1f} s", flush=True)
        write(self.report, self.stem)
        return True

    def tests(self) -> None:
        """Run the tests that need a GPU."""
        marked = [
            str(path)
            for path in sorted((_ROOT / "tests").rglob("test_*.py"))
            if "mark.gpu" in path.read_text("utf-8")
        ]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        ended = subprocess.run(
            [*command, *marked],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            timeout=self.left(_TEST_SECONDS),
        )
        lines = ended.stdout.strip().splitlines() or ended.stderr.strip().splitlines()
        self.report.facts["tests of pytest -m gpu"] = lines[-1] if lines else "no output"
        if ended.returncode:
            raise RuntimeError("\n".join(lines[-30:]))

    def server(self, case: Case) -> None:
        """Start a server; compare its answers, load it, and kill its processes."""
        if case.client_side:
            self._contender(case)
            return
        repository = self._repository(case)
        ready = self.left(_TENSORRT_SECONDS if case.tensorrt else _READY_SECONDS)
        with ExitStack() as stack:
            generators = self._generators(stack) if case.quick else []
            server = stack.enter_context(gpu_server(repository, precision="auto", seconds=ready))
            try:
                self._examine(case, server, generators)
            finally:
                self._keep_log(case, server)

    @staticmethod
    def _generators(stack: ExitStack) -> list[LoadGenerator]:
        """Processes that send requests, which end with the stack."""
        generators = []
        for _ in range(min(_GENERATORS, os.cpu_count() or 1)):
            generators.append(LoadGenerator())
            stack.callback(generators[-1].close)
        return generators

    def _examine(self, case: Case, server: GpuServer, generators: Sequence[LoadGenerator]) -> None:
        report = self.report
        found = Started(case=case.name, seconds=server.seconds, provider=server.provider)
        report.started.append(found)
        print(f"  ready after {found.seconds:.1f} s, on {found.provider}", flush=True)
        if self.gpu and not found.provider.startswith("GPU"):
            report.fail(f"{case.name}: the network does not run on the GPU: {found.provider}")
        counts = self._fidelity(case, server)
        if case.killed:
            self._counts = counts
        write(report, self.stem)
        self._load(case, server.target, generators, counts, exact=case.is_reference)
        for name in KILLED if case.killed else ():
            seconds = self.left(_RECOVERY_SECONDS)
            recovery = kill_process(server, name, self._photos[0], seconds=seconds)
            report.kills[name] = recovery
            print(f"  answers again {recovery:.1f} s after {name} was killed", flush=True)
            if name == "postprocess":
                report.recoveries[case.name] = recovery
            write(report, self.stem)

    def _load(
        self,
        case: Case,
        target: Target,
        generators: Sequence[LoadGenerator],
        counts: Sequence[int],
        *,
        exact: bool,
    ) -> None:
        """Load a server with each number of callers."""
        report, options = self.report, self.options
        for generator in generators:  # which may still be importing what it needs
            photo = str(self._photos[0])
            generator.request(sender=target.sender, photos=[photo], check=True)
        for callers in case.quick if options.quick or not case.full else options.callers:
            self.left(1)
            load = measure_load(
                target,
                generators,
                self._photos,
                case=case.name,
                callers=callers,
                counts=counts,
                seconds=options.seconds,
                warm=options.warm,
            )
            report.loads.append(load)
            if load.failed or (load.wrong and exact):
                report.fail(
                    f"{case.name}, {callers} callers: {load.failed} requests failed, and"
                    f" {load.wrong} answers were wrong"
                )
            print(f"  {load}", flush=True)
            write(report, self.stem)

    def _contender(self, case: Case) -> None:
        """Load a contender of `make bench`, which has no steps."""
        repository = self._repository(case)
        contender = next(one for one in CONTENDERS if one.name == case.name)
        with ExitStack() as stack:
            generators = self._generators(stack)
            running = stack.enter_context(
                started(contender, network=_network(repository), repository=repository)
            )
            target = Target(sender=running.sender, pid=running.process)
            self._load(case, target, generators, self._counts, exact=True)

    def _fidelity(self, case: Case, server: GpuServer) -> list[int]:
        """Compare the answers with the reference's; return the number of boxes in each photo."""
        given = answers(server, self._photos)
        if case.network == BUNDLED_NETWORK:
            reference = read_reference(_RECT_REFERENCE if case.rect else _REFERENCE)
            found = compare(given, reference, conf_thres=CONF_THRES)
            self.report.fidelity[case.name] = found
            print(f"  {found}", flush=True)
            if case.is_reference and not found.is_exact:
                self.report.fail(f"{case.name}: the answers are not the reference's")
        return [len(given[photo.name].scores) for photo in self._photos]

    def _keep_log(self, case: Case, server: GpuServer) -> None:
        if self.options.logs:
            self.options.logs.mkdir(parents=True, exist_ok=True)
            (self.options.logs / f"{file_stem(case.name)}.log").write_text(server.text(), "utf-8")

    def engine(self, case: Case) -> None:
        """Measure the network alone."""
        network = _network(self._repository(case))
        device = "tensorrt" if case.tensorrt else "cuda" if self.gpu else "cpu"
        batches = "1,8,64" if self.options.quick or not case.full else "1,8,16,32,64"
        if case.tensorrt:
            batches = "8"  # an engine for each
        command = [sys.executable, "-m", "yolov5_bench._gpu_engine", str(network), device]
        command += [str(int(case.tf32)), batches if self.gpu else "1,8"]
        seconds = _TENSORRT_SECONDS if case.tensorrt else _ENGINE_SECONDS
        output, error = _output(command, self.left(seconds))
        for line in output.splitlines():
            self.report.engines.append(Engine(case=case.name, **json.loads(line)))
        print(f"  {case.name}: {output}", flush=True)
        if error:
            raise RuntimeError(f"{case.name}: {error}")

    def tensorrt(self, networks: list[str]) -> None:
        """Measure with TensorRT if its library is here; say so if it is not."""
        found = tensorrt_library()
        self.report.facts["TensorRT"] = found or "its library is missing"
        for case in tensorrt_cases(networks) if found and self.gpu else ():
            work = partial(self.server, case)
            if self._phase(f"server {case.name}", work, seconds=case.seconds):
                work = partial(self.engine, case)
                self._phase(f"bare engine {case.name}", work, seconds=case.seconds)

    def _repository(self, case: Case) -> Path:
        """Install the network, with the command that `make model` runs."""
        key = (case.network, *case.build)
        repository = self._repositories.get(key)
        if repository is None:
            repository = Path(tempfile.mkdtemp(dir=self.folder)) / "model_repository"
            shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("yolov5"))
            weights = self._copy_of_weights(case.network, repository.parent)
            command = [sys.executable, "-m", "yolov5_build", str(weights), *case.build]
            _, error = _output([*command, f"--repository={repository}"], self.left(_BUILD_SECONDS))
            if error:
                raise RuntimeError(f"the network was not installed: {error}")
            self._repositories[key] = repository
        if not case.tensorrt:
            return repository
        changed = Path(tempfile.mkdtemp(dir=self.folder)) / "model_repository"
        shutil.copytree(repository, changed)
        use_tensorrt(changed / "yolov5", engines=self.folder / "engines")
        return changed

    def _copy_of_weights(self, network: str, folder: Path) -> Path:
        """A copy: of the bundled weights themselves the mAP on the CPU would be measured first."""
        path = BUNDLED if network == BUNDLED_NETWORK else self._weights[network]
        if path is not None:
            return Path(shutil.copy(path, folder))
        made = folder / f"{network}.safetensors"
        write_random_network(network, made)
        return made

    @staticmethod
    def _wanted() -> set[str]:
        return {*read_reference(_REFERENCE)}


def facts(gpu: str | None) -> dict[str, str]:
    """What machine this is, and which versions are installed."""
    found = {"GPU": gpu or "none: a rehearsal on the CPU"}
    if values := nvidia_smi("driver_version", "memory.total", "power.limit"):
        found["driver, memory in MiB, power limit in W"] = ", ".join(values)
    found["cores"] = f"{len(os.sched_getaffinity(0))}"
    found["Python"] = platform.python_version()
    for name in ("torch", "numpy", "opencv-python-headless"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    found["ONNX Runtime"] = f"{onnxruntime.__version__}, {', '.join(_providers())}"
    found["date"] = time.strftime("%Y-%m-%d")
    return found


def _providers() -> list[str]:
    available = onnxruntime.get_available_providers()
    return [name.removesuffix("ExecutionProvider") for name in available]


def _network(repository: Path) -> Path:
    return repository / "yolov5" / "1" / "model.onnx"


def _output(command: Sequence[str], seconds: float) -> tuple[str, str]:
    """What a command has printed, and in one line why it failed; empty if it did not."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
        return text[: text.rfind("\n") + 1], f"not done after {seconds:.0f} s"
    return ended.stdout, _one_line(ended.stderr.strip()[-500:]) if ended.returncode else ""


def _one_line(error: Exception | str) -> str:
    return " / ".join(str(error).split("\n"))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="yolov5_bench.gpu_check", description=__doc__)

    def numbers(text: str) -> list[int]:
        return [int(one) for one in text.split(",")]

    parser.add_argument(
        "--rehearse", action="store_true", help="without a GPU, do what can be done on the CPU"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="networks to measure beside the bundled yolov5n, such as yolov5s.pt yolov5m.pt"
        " (default: both with random weights, for their speed alone)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the report (default: docs/performance; for a rehearsal, runs/gpu-check)",
    )
    parser.add_argument("--logs", type=Path, help="folder for the servers' logs (default: none)")
    parser.add_argument("--minutes", type=float, default=8, help="limit of all (%(default)s)")
    parser.add_argument(
        "--callers", type=numbers, default=[1, 8, 32, 64], help="concurrent callers (1,8,32,64)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="three minutes: the bundled network alone, and fewer callers",
    )
    parser.add_argument(
        "--seconds", type=float, default=5, help="length of a measurement (%(default)s)"
    )
    parser.add_argument(
        "--warm", type=float, default=2, help="seconds of load before each (%(default)s)"
    )
    parser.add_argument(
        "--cases",
        type=int,
        default=len(CASES),
        help=f"measure only the first of: {'; '.join(case.name for case in CASES)}",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the check, and return an exit status."""
    options = _options(arguments)
    found = nvidia_smi("name")
    gpu = None if options.rehearse or not found else found[0]
    if gpu is None and not options.rehearse:
        print(
            "error: there is no NVIDIA GPU here (nvidia-smi names none); --rehearse does on the"
            " CPU what can be done there.",
            file=sys.stderr,
        )
        return 1
    if gpu and _CUDA not in onnxruntime.get_available_providers():
        print("warning: the installed onnxruntime has no CUDA provider.", file=sys.stderr)
    if missing := [str(path) for path in options.weights if not path.is_file()]:
        print(f"error: there is no file {', '.join(missing)}.", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="yolov5-gpu-check-") as folder:
        return Check(options, gpu, Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
