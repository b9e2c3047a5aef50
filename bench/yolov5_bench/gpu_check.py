"""`make gpu-check`: tests, fidelity, recovery and throughput on a machine with an NVIDIA GPU.

Needs no network. After each phase it writes docs/performance/NAME-OF-THE-GPU.md and .csv, so that
what was measured is kept if the run is cut off. The exit status is 0 if every check passed.
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
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnxruntime

from yolov5_build.paths import BUNDLED, BUNDLED_PHOTOS, REPOSITORY
from yolov5_build.photos import photos_in

from ._gpu_probe import nvidia_smi, tensorrt_library
from ._gpu_report import Engine, Report, Started, file_stem, write
from ._gpu_server import GpuServer, answers, gpu_server, kill_postprocess, measure_load
from ._measure import LoadGenerator
from ._pipeline import CONF_THRES
from .fidelity import compare, read_reference

_ROOT = Path(__file__).parents[2]
_REFERENCE = _ROOT / "tests" / "data" / "bccd_reference.json"
_CUDA = "CUDAExecutionProvider"
_TEST_SECONDS, _BUILD_SECONDS, _READY_SECONDS, _RECOVERY_SECONDS = 90, 150, 150, 120
_ENGINE_SECONDS = 60
_RESERVE_SECONDS = 20  # to end a server and write the report
_GENERATORS = 6


@dataclass(frozen=True, kw_only=True)
class Case:
    """A server to measure.

    Attributes:
        build: further arguments of `make model`.
        portable: leave out the configurations for the embedded server: all steps are on the GPU, as
            in a container, and tensors go from one to the next in its memory.
        killed: whether recovery is measured.
        quick: numbers of callers of a quick check.
    """

    name: str
    build: tuple[str, ...] = ()
    portable: bool = False
    killed: bool = False
    quick: tuple[int, ...] = (8, 32)


CASES = (
    Case(name="FP32", killed=True, quick=(1, 8, 32, 64)),
    Case(name="FP32, all steps on the GPU", portable=True),
    Case(name="FP16", build=("--half",)),
)


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

    def left(self, most: float) -> float:
        """Seconds that a step may take.

        Raises:
            RuntimeError: the time is over.
        """
        left: float = self._deadline - time.monotonic()
        if left <= 5:
            raise RuntimeError("left out, the time was over")
        return min(most, left)

    def run(self) -> int:
        """Run all phases, whichever fails, and return the exit status."""
        self._phase("tests", self.tests)
        for case in CASES[: self.options.cases]:
            self._phase(f"server {case.name}", partial(self.server, case))
        for case in CASES[: 1 if self.options.quick else self.options.cases]:
            if not case.portable:
                self._phase(f"bare engine {case.name}", partial(self.engine, case))
        self._phase("TensorRT", self.tensorrt)
        print(self.stem.with_suffix(".md").read_text("utf-8"))
        return int(self.report.failed)

    def _phase(self, name: str, work: Callable[[], None]) -> None:
        started = time.monotonic()
        print(f"{name} ...", flush=True)
        try:
            work()
        except Exception as error:
            self.report.fail(f"{name}: {_one_line(error)}")
            print(f"  failed: {error}", flush=True)
        print(f"  {time.monotonic() - started:.1f} s", flush=True)
        write(self.report, self.stem)

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
        """Start a server; compare its answers, load it, and kill a step of it."""
        repository = self._repository(case)
        with ExitStack() as stack:
            generators = []
            for _ in range(min(_GENERATORS, os.cpu_count() or 1)):
                generators.append(LoadGenerator())
                stack.callback(generators[-1].close)
            server = stack.enter_context(
                gpu_server(repository, precision="auto", seconds=self.left(_READY_SECONDS))
            )
            try:
                self._examine(case, server, generators)
            finally:
                self._keep_log(case, server)

    def _examine(self, case: Case, server: GpuServer, generators: Sequence[LoadGenerator]) -> None:
        report, options = self.report, self.options
        found = Started(case=case.name, seconds=server.seconds, provider=server.provider)
        report.started.append(found)
        print(f"  ready after {found.seconds:.1f} s, on {found.provider}", flush=True)
        if self.gpu and not found.provider.startswith("GPU"):
            report.fail(f"{case.name}: the network does not run on the GPU: {found.provider}")
        counts = self._fidelity(case, server)
        write(report, self.stem)
        for generator in generators:  # which may still be importing what it needs
            photo = str(self._photos[0])
            generator.request(sender=["http", server.http], photos=[photo], check=True)
        for callers in case.quick if options.quick else options.callers:
            self.left(1)
            load = measure_load(
                server,
                generators,
                self._photos,
                case=case.name,
                callers=callers,
                counts=counts,
                seconds=options.seconds,
                warm=options.warm,
            )
            report.loads.append(load)
            if load.failed or (load.wrong and not case.build):
                report.fail(
                    f"{case.name}, {callers} callers: {load.failed} requests failed, and"
                    f" {load.wrong} answers were wrong"
                )
            print(f"  {load}", flush=True)
            write(report, self.stem)
        if case.killed:
            seconds = self.left(_RECOVERY_SECONDS)
            recovery = kill_postprocess(server, self._photos[0], seconds=seconds)
            report.recoveries[case.name] = recovery
            print(f"  answers again after {recovery:.1f} s", flush=True)

    def _fidelity(self, case: Case, server: GpuServer) -> list[int]:
        """Compare the answers with the reference's; return the number of boxes in each photo."""
        given = answers(server, self._photos)
        found = compare(given, read_reference(_REFERENCE), conf_thres=CONF_THRES)
        self.report.fidelity[case.name] = found
        print(f"  {found}", flush=True)
        if not case.build and not found.is_exact:
            self.report.fail(f"{case.name}: the answers are not the reference's")
        return [len(given[photo.name].scores) for photo in self._photos]

    def _keep_log(self, case: Case, server: GpuServer) -> None:
        if self.options.logs:
            self.options.logs.mkdir(parents=True, exist_ok=True)
            (self.options.logs / f"{file_stem(case.name)}.log").write_text(server.text(), "utf-8")

    def engine(self, case: Case) -> None:
        """Measure the network alone; in FP32 also with TF32, which a server does not use."""
        network = self._repository(case) / "yolov5" / "1" / "model.onnx"
        device = "cuda" if self.gpu else "cpu"
        batches = "1,8,64" if self.options.quick else "1,8,16,32,64"
        with_tf32 = self.gpu and not case.build and not self.options.quick
        for tf32 in ("0", "1") if with_tf32 else ("0",):
            name = f"{case.name} with TF32" if tf32 == "1" else case.name
            command = [sys.executable, "-m", "yolov5_bench._gpu_engine", str(network), device]
            command += [tf32, batches if self.gpu else "1,8"]
            output, error = _output(command, self.left(_ENGINE_SECONDS))
            for line in output.splitlines():
                self.report.engines.append(Engine(case=name, **json.loads(line)))
            print(f"  {name}: {output}", flush=True)
            if error:
                raise RuntimeError(f"{name}: {error}")

    def tensorrt(self) -> None:
        """Say whether TensorRT's library is here; nothing is measured with it yet."""
        found = tensorrt_library()
        text = f"{found}, not measured" if found else "its library is missing"
        self.report.facts["TensorRT"] = text

    def _repository(self, case: Case) -> Path:
        """Install the network, with the command that `make model` runs."""
        repository = self._repositories.get(case.build)
        if repository is None:
            repository = Path(tempfile.mkdtemp(dir=self.folder)) / "model_repository"
            shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("yolov5"))
            # A copy: of the bundled weights themselves the mAP on the CPU would be measured first.
            weights = str(shutil.copy(self.options.weights, repository.parent))
            command = [sys.executable, "-m", "yolov5_build", weights, *case.build]
            _, error = _output([*command, f"--repository={repository}"], self.left(_BUILD_SECONDS))
            if error:
                raise RuntimeError(f"the network was not installed: {error}")
            self._repositories[case.build] = repository
        if not case.portable:
            return repository
        portable = self.folder / "portable" / "model_repository"
        ignored = shutil.ignore_patterns("configs")
        return Path(shutil.copytree(repository, portable, ignore=ignored, dirs_exist_ok=True))

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
    parser.add_argument("--weights", type=Path, default=BUNDLED, help="(default: the bundled ones)")
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
        help="three minutes: fewer callers, and the bare engine in FP32 alone",
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
    with tempfile.TemporaryDirectory(prefix="yolov5-gpu-check-") as folder:
        return Check(options, gpu, Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
