"""`python -m yolov5_bench.offline`: how `yolov5-client batch` compares with `detect`, and grows.

`rate` runs both against a running server, `growth` runs the job on one, two and three raylets of
this machine with a stand-in of the network that sleeps, `plan` plans a long list. They need what
`make test` installs.

Rates are those at which the servers answer, by their own count: what the job has written grows by a
part at a time, and by several when several end together.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as triton

from yolov5_build.paths import BUNDLED_PHOTOS
from yolov5_client._contract import endpoint_for

from ._contenders import free_ports

_ENDPOINT = endpoint_for("yolov5")
_LOOK = 20.0  # seconds between two looks at the memory
CLIENT = (sys.executable, "-m", "yolov5_client._cli")


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns an exit status."""
    parser = argparse.ArgumentParser(prog="yolov5_bench.offline", description=__doc__)
    commands = parser.add_subparsers(required=True)
    rate = commands.add_parser("rate")
    rate.add_argument("--server", default="127.0.0.1:8001")
    rate.add_argument("--photos", type=int, nargs="+", default=[2000])
    rate.add_argument("--rounds", type=int, default=1)
    rate.set_defaults(run=measure_rate)
    growth = commands.add_parser("growth")
    growth.add_argument("--photos", type=int, default=600, help="for each node")
    growth.add_argument("--seconds", type=float, default=0.05, help="that the stand-in sleeps")
    growth.set_defaults(run=measure_growth)
    plan = commands.add_parser("plan")
    plan.add_argument("--rows", type=int, default=200_000)
    plan.set_defaults(run=measure_plan)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="yolov5-offline-") as folder:
        options.run(options, Path(folder))
    return 0


# -- against `detect` -----------------------------------------------------------------------------


def measure_rate(options: argparse.Namespace, folder: Path) -> None:
    """Print images/s of both, in turn, and the memory of the job."""
    for count in options.photos:
        photos = copy_photos(folder / f"photos-{count}", count)
        ratios = []
        for number in range(options.rounds):
            plain = detect_rate(photos, count, options.server, folder / f"detect-{count}-{number}")
            out = folder / f"batch-{count}-{number}"
            flags = ("--server", options.server)
            rate, memory, seconds = batch_rate(photos, count, [options.server], out, *flags)
            ratios.append(rate / plain)
            print(
                f"{count} photos: detect {plain:.1f}/s, batch {rate:.1f}/s ({rate / plain:.3f}),"
                f" {seconds:.0f} s in all with the start of Ray; memory of the job"
                f" {memory[0]:.0f} MB when a quarter was done, {memory[1]:.0f} MB at its end",
                flush=True,
            )
        print(f"{count} photos: ratio {median(ratios):.3f} (median)", flush=True)


def copy_photos(folder: Path, count: int) -> Path:
    """Make a folder of so many photos, which are links to the bundled ones."""
    originals = sorted(BUNDLED_PHOTOS.glob("*.jpg"))
    for number in range(count):
        original = originals[number % len(originals)]
        place = folder / f"{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        os.link(original, place / f"{number:06d}.jpg") if _same_device(original, place) else (
            place / f"{number:06d}.jpg"
        ).write_bytes(original.read_bytes())
    return folder


def _same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def detect_rate(photos: Path, count: int, server: str, out: Path) -> float:
    """Images/s of `detect`."""
    flags = ["--nosave", "--quiet", "--save-jsonl", "--project", str(out), "--server", server]
    with started([*CLIENT, "detect", str(photos), *flags]) as process:
        return _rate(process, [server], count)


def batch_rate(
    photos: Path, count: int, servers: Sequence[str], out: Path, *flags: str, parts: int = 20
) -> tuple[float, tuple[float, float], float]:
    """Images/s of the job, its memory in MB, and the seconds that all of it took."""
    part = max(10, min(500, count // parts))
    began = time.perf_counter()
    command = [*CLIENT, "batch", str(photos), str(out), "--part-size", str(part), *flags]
    with started(command) as process, _watched(process.pid) as memory:
        rate = _rate(process, servers, count)
        seconds = time.perf_counter() - began
    early = memory[len(memory) // 4 : len(memory) // 3 + 1]
    return rate, (median(early), median(memory[-3:])), seconds


def _rate(process: subprocess.Popen[bytes], servers: Sequence[str], count: int) -> float:
    """Fit a line to what the servers have answered; the first and the last tenth are left out."""
    seen: list[tuple[float, int]] = []
    with ExitStack() as held:
        clients = [held.enter_context(triton.InferenceServerClient(one)) for one in servers]
        before = _answered(clients)
        while process.poll() is None:
            seen.append((time.perf_counter(), _answered(clients) - before))
            time.sleep(0.5)
    assert process.returncode == 0, process.returncode
    times, counts = zip(*[one for one in seen if 0.1 * count <= one[1] <= 0.9 * count], strict=True)
    return float(np.polyfit(times, counts, 1)[0])


def _answered(clients: Sequence[Any]) -> int:
    return sum(
        one.get_inference_statistics(_ENDPOINT).model_stats[0].inference_count for one in clients
    )


@contextmanager
def _watched(pid: int) -> Iterator[list[float]]:
    """Collect the memory of a process and its children, as PSS in MB. A look takes CPU time."""
    found: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK):
            total = 0
            try:
                everything = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in everything:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            found.append(total / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, and end it at the end of the block in any case."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)


# -- growth ---------------------------------------------------------------------------------------


def measure_growth(options: argparse.Namespace, folder: Path) -> None:
    """Print images/s on one, two and three nodes, and how far they are from one times as many."""
    alone = 0.0
    for nodes in (1, 2, 3):
        count = options.photos * nodes
        photos = copy_photos(folder / f"photos-{nodes}", count)
        with ExitStack() as held:
            ports = [held.enter_context(_stand_in(options.seconds)) for _ in range(nodes)]
            address = held.enter_context(_raylets(nodes))
            servers = [f"127.0.0.1:{port}" for port in ports]
            out = folder / f"out-{nodes}"
            flags = ["--server", "ipv4:" + ",".join(servers), "--address", address]
            flags += ["--workers", str(nodes)]
            rate, _, seconds = batch_rate(photos, count, servers, out, *flags, parts=20 * nodes)
        alone = alone or rate
        print(
            f"{nodes} nodes: {rate:.1f} images/s, {seconds:.0f} s in all; efficiency"
            f" {rate / (nodes * alone):.3f} (a stand-in that sleeps {options.seconds:g} s)",
            flush=True,
        )


@contextmanager
def _stand_in(seconds: float) -> Iterator[int]:
    [port] = free_ports(1)
    with started([sys.executable, "-m", "yolov5_bench._stand_in", str(port), str(seconds)]):
        deadline = time.monotonic() + 30
        while not any(
            one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN
            for one in psutil.net_connections("tcp")
        ):
            assert time.monotonic() < deadline, "the stand-in does not start"
            time.sleep(0.1)
        yield port


@contextmanager
def _raylets(count: int) -> Iterator[str]:
    """A cluster on this machine, each of whose nodes has one core, by taskset where it is there."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=1)
        cores = sorted(os.sched_getaffinity(0))
        for number, node in enumerate(cluster.list_all_nodes()):
            raylet = node.all_processes["raylet"][0].process.pid
            os.sched_setaffinity(raylet, {cores[number % len(cores)]})  # its workers inherit it
        yield cluster.address
    finally:
        cluster.shutdown()


# -- planning -------------------------------------------------------------------------------------


def measure_plan(options: argparse.Namespace, folder: Path) -> None:
    """Print how long a list takes to be planned, and the memory for it."""
    import resource

    from yolov5_client._batch.plan import make
    from yolov5_client._batch.settings import BatchSettings
    from yolov5_client._batch.storage import Folder

    listed = folder / "list.csv"
    with listed.open("w") as file:
        file.write("url,key\n")
        file.writelines(
            f"s3://photos/2026/{n % 1000:03d}/{n:09d}.jpg,{n:09d}\n" for n in range(options.rows)
        )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    plan = make(
        Folder(str(folder / "out")),
        BatchSettings(sources=(str(listed),), destination=str(folder / "out"), server="x:1"),
    )
    seconds = time.perf_counter() - began
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        f"{plan.photos} rows planned as {plan.parts} parts in {seconds:.1f} s; {more / 1024:.0f} MB"
        " of memory more than before"
    )


if __name__ == "__main__":
    sys.exit(main())
