"""All but the network: the real server with networks that cost nothing (`make bench --ceiling`)."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

from yolov5_build._contract import WEIGHTS_FILE
from yolov5_build.paths import BUNDLED_PHOTOS
from yolov5_build.photos import photos_in

from ._bare_steps import bare_milliseconds
from ._ceiling_report import AGAINST, Bare, Held, Point, write
from ._ceiling_report import HERE as THIS
from ._checkout import HERE, Checkout
from ._contenders import CONTENDERS, Running, started
from ._gpu_probe import cpu_by_process, milliseconds_for_an_image, processes
from ._gpu_server import quantiles
from ._interpreter_lock import CannotSampleError, lock_shares
from ._load import MODEL, make_sender
from ._measure import LoadGenerator
from ._pipeline import Pipeline
from ._stored_rows import CONF_THRES, prefilter, rows_over, stored_rows, write_full

CALLERS = (1, 2, 4, 8, 16, 32, 64)
_USUAL_CALLERS = 32  # of the cases in which something else varies
_SURE = (*CONF_THRES,)
_USUAL_SURE = 100
_PREFILTERED, _FULL = "prefiltered", "full"
_STEPS = ("preprocess", "postprocess")
_BATCH = 8
_LOCK_ROUNDS = 3
_OURS = next(one for one in CONTENDERS if one.name == "ours")
# Megapixels -> width and height, standard deviation of the grain, JPEG quality. Without the grain
# of a camera an enlarged picture would be far smaller as a file, and quicker to decode.
_USUAL_PICTURE = 0.3
_PICTURES = {_USUAL_PICTURE: (640, 480, 0, 0), 0.9: (1096, 822, 6, 97), 2: (1632, 1224, 6, 97)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One point to be measured.

    Attributes:
        rows: what the network hands out: `full`, all rows, or `prefiltered`, the sure ones.
        sure: number of detections.
        megapixels: of the picture.
        transport: HTTP or GRPC.
        images: in a request.
    """

    rows: str = _PREFILTERED
    sure: int = _USUAL_SURE
    megapixels: float = _USUAL_PICTURE
    transport: str = "HTTP"
    callers: int
    images: int = 1

    @property
    def network(self) -> str:
        """Name of the network; the most usual one is the one that each server must have."""
        return MODEL if self.rows == _PREFILTERED else self.rows


def cases(callers: Sequence[int]) -> list[Case]:
    """What is measured: one thing varies at a time."""
    usual = _USUAL_CALLERS if _USUAL_CALLERS in callers else max(callers)
    return [
        *(Case(transport=way, callers=count) for way in ("HTTP", "GRPC") for count in callers),
        *(Case(sure=sure, callers=usual) for sure in _SURE if sure != _USUAL_SURE),
        *(Case(rows=_FULL, sure=sure, callers=usual) for sure in _SURE),
        *(Case(megapixels=size, callers=usual) for size in _PICTURES if size != _USUAL_PICTURE),
    ]


def lock_cases(callers: Sequence[int]) -> list[Case]:
    """In which the interpreters' locks are looked at: alone, in a batch, and under load."""
    usual = _USUAL_CALLERS if _USUAL_CALLERS in callers else max(callers)
    return [
        *(Case(megapixels=size, callers=1) for size in _PICTURES),
        Case(transport="GRPC", callers=1, images=_BATCH),
        Case(rows=_FULL, callers=1),
        Case(callers=usual),
    ]


def measure_ceiling(options: argparse.Namespace, machine: str) -> int:
    """Measure, print, write `ceiling.md` and `.csv`, and return an exit status."""
    checkouts = {THIS: HERE}
    if options.against:
        checkouts[AGAINST] = Checkout(options.against.resolve())
    chosen = options.callers or CALLERS
    loads, looks = cases(chosen), lock_cases(chosen)
    points: list[Point] = []
    with open_rig(checkouts, [*loads, *looks], seconds=options.seconds, warm=options.warm) as rig:
        print("All networks give the right answers; measuring.", flush=True)
        for number in range(options.rounds):
            for case in loads:
                points += rig.measure(case, number)
            print(f"round {number + 1} of {options.rounds}", flush=True)
        held, reason = rig.locks(looks, min(options.rounds, _LOCK_ROUNDS))
        bare = rig.bare()
        sizes = {size: len(image) for size, image in rig.images.items()}
    title = (
        f"`make serve PRECISION=fp32` with networks of stored rows, {machine}; medians of"
        f" {options.rounds} rounds of {options.seconds:g} s"
        + (f"; against {options.against.resolve().name}" if options.against else "")
    )
    print(write(options.output, title, sizes, points, held, reason, bare))
    return 0


def ours_to_decoding(*, callers: int, rounds: int, seconds: float) -> float:
    """CPU time of both steps and `tritonserver` for an image, by that of decoding it.

    Measured with the picture of 0.3 megapixels, over HTTP. Both are measured in each round, and
    the result is the median of the rounds' ratios, which depends little on what else runs.
    """
    case = Case(callers=callers)
    with open_rig({THIS: HERE}, [case], seconds=seconds, warm=1.0) as rig:
        found = []
        for number in range(rounds):
            (point,) = rig.measure(case, number)
            found.append(point.ours / rig.bare([case.megapixels])[0].decode)
    return median(found)


@contextmanager
def open_rig(
    checkouts: Mapping[str, Checkout], wanted: Sequence[Case], *, seconds: float, warm: float
) -> Iterator[Rig]:
    """Serve the networks of these cases from each checkout, and check their answers.

    Args:
        checkouts: by the name of the tree.
        seconds: length of a measurement.
        warm: seconds of load before each.

    Raises:
        RuntimeError: a server does not start, or gives another answer than the bare functions.
    """
    with tempfile.TemporaryDirectory(prefix="yolov5-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        servers = {
            tree: stack.enter_context(_server(checkout, folder / tree, wanted))
            for tree, checkout in checkouts.items()
        }
        generator = LoadGenerator("_light_load")
        stack.callback(generator.close)
        rig = Rig(servers, pictures(folder), folder / THIS, generator, seconds, warm)
        rig.check(wanted)
        yield rig


class Rig:
    """Servers that take turns under the same load.

    Args:
        servers: by the name of the tree.
        photos: by megapixels.
        folder: of this checkout's networks.
        generator: of the light load.
        seconds: length of a measurement.
        warm: seconds of load before each.
    """

    def __init__(
        self,
        servers: Mapping[str, Running],
        photos: Mapping[float, Path],
        folder: Path,
        generator: LoadGenerator,
        seconds: float,
        warm: float,
    ) -> None:
        self._servers = servers
        self._photos = photos
        self._folder = folder
        self._generator = generator
        self._seconds, self._warm = seconds, warm
        self.images = {size: photo.read_bytes() for size, photo in photos.items()}

    def check(self, wanted: Sequence[Case]) -> None:
        """Check that each server gives the answers of the bare functions for each network.

        Raises:
            RuntimeError: it gives another one.
        """
        image = self.images[_USUAL_PICTURE]
        for network in {case.network for case in wanted}:
            right = Pipeline(_installed(self._folder, network), 1)(image)
            for tree, server in self._servers.items():
                send = make_sender("http", server.http, model=network)
                if how := send(image)[0].difference_from(right):
                    raise RuntimeError(f"{tree}, {network}: {how}")

    def measure(self, case: Case, turn: int) -> list[Point]:
        """Measure a case once with each server.

        Args:
            turn: number of the round, by which the order is rotated.
        """
        trees = [*self._servers]
        shift = turn % len(trees)
        return [self._point(case, tree, turn) for tree in (*trees[shift:], *trees[:shift])]

    def _point(self, case: Case, tree: str, turn: int) -> Point:
        server = self._servers[tree]
        with self._alone(tree):
            report, cpu = self._load(case, server)
        images = max(1, report["images"])
        p50, p99 = quantiles(report["latencies"])
        return Point(
            tree=tree,
            rows=case.rows,
            sure=case.sure,
            megapixels=case.megapixels,
            transport=case.transport,
            callers=case.callers,
            round=turn,
            rate=report["images"] / self._seconds,
            p50=p50,
            p99=p99,
            preprocess=cpu["preprocess"],
            postprocess=cpu["postprocess"],
            tritonserver=cpu["tritonserver"],
            network=cpu[case.network],
            launcher=cpu["launcher"] + cpu.get("other", 0.0),
            load=1000 * report["client_cpu"] / images,
        )

    @contextmanager
    def _alone(self, tree: str) -> Iterator[None]:
        """Keep the other servers quiet."""
        with ExitStack() as stack:
            for other, server in self._servers.items():
                if other != tree:
                    stack.enter_context(server.paused())
            yield

    def _load(self, case: Case, server: Running) -> tuple[dict[str, Any], dict[str, float]]:
        """Load a server; the generator's report, and CPU milliseconds for an image by process."""
        with ThreadPoolExecutor(1) as pool:
            begin = time.perf_counter() + self._warm
            end = begin + self._seconds
            report = pool.submit(self._generator.request, **self._request(case, server, begin, end))
            time.sleep(max(0.0, begin - time.perf_counter()))
            before = cpu_by_process(server.process)
            time.sleep(max(0.0, end - time.perf_counter()))
            after = cpu_by_process(server.process)
            found = report.result()
        return found, milliseconds_for_an_image(before, after, found["images"])

    def _request(self, case: Case, server: Running, begin: float, end: float) -> dict[str, Any]:
        return {
            "transport": case.transport,
            "address": server.places[case.transport],
            "model": case.network,
            "photo": str(self._photos[case.megapixels]),
            "callers": case.callers,
            "detections": case.sure,
            "images": case.images,
            "conf_thres": None if case.sure == _USUAL_SURE else CONF_THRES[case.sure],
            "begin": begin,
            "end": end,
        }

    def locks(self, wanted: Sequence[Case], rounds: int) -> tuple[list[Held], str]:
        """Measure for how long the steps hold their interpreters' locks.

        Returns:
            What was found, and the reason why nothing was; empty without one.
        """
        found = []
        try:
            for _ in range(rounds):
                for case in wanted:
                    for tree in self._servers:
                        found.append(self._held(case, tree))
        except CannotSampleError as error:
            return [], str(error)
        return found, ""

    def _held(self, case: Case, tree: str) -> Held:
        server, seconds = self._servers[tree], max(1, round(self._seconds))
        pids = {step: [one.pid for one in processes(server.process, step)] for step in _STEPS}
        with self._alone(tree), ThreadPoolExecutor(1) as pool:
            begin = time.perf_counter() + self._warm
            request = self._request(case, server, begin, begin + seconds)
            report = pool.submit(self._generator.request, **request)
            time.sleep(max(0.0, begin - time.perf_counter()))
            shares = lock_shares([*chain(*pids.values())], seconds)
            rate = max(1, report.result()["images"]) / seconds
        held = {step: 1000 * sum(shares[pid] for pid in pids[step]) / rate for step in _STEPS}
        return Held(
            tree=tree,
            rows=case.rows,
            sure=case.sure,
            megapixels=case.megapixels,
            callers=case.callers,
            images=case.images,
            rate=rate,
            **held,
        )

    def bare(self, megapixels: Sequence[float] = (*_PICTURES,)) -> list[Bare]:
        """Measure the bare functions of this checkout."""
        rows = stored_rows()
        sure = rows_over(rows, CONF_THRES[_USUAL_SURE])
        pipeline = Pipeline(_installed(self._folder, MODEL), 1)
        return [
            Bare(
                megapixels=size,
                rows=name,
                **bare_milliseconds(pipeline, self._photos[size], given, seconds=1),
            )
            for size in megapixels
            for name, given in ((_PREFILTERED, sure), (_FULL, rows))
        ]


def pictures(folder: Path) -> dict[float, Path]:
    """Write the pictures as JPEG, by megapixels: a bundled photo as it is, and enlarged."""
    original = photos_in(BUNDLED_PHOTOS)[0]
    picture = cv2.imread(str(original))
    assert picture is not None
    found = {}
    for size, (width, height, grain, quality) in _PICTURES.items():
        path = folder / f"{size:g}.jpg"
        if not quality:
            path.write_bytes(original.read_bytes())
        else:
            larger = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
            noise = np.random.default_rng(0).normal(0, grain, larger.shape)
            noisy = np.clip(larger + noise, 0, 255).astype(np.uint8)
            cv2.imwrite(str(path), noisy, [cv2.IMWRITE_JPEG_QUALITY, quality])
        found[size] = path
    return found


def _installed(folder: Path, network: str) -> Path:
    """The file that `make model` has made of a network, with all rows."""
    return next((folder / "model_repository" / network).glob(f"[0-9]*/{WEIGHTS_FILE}"))


@contextmanager
def _server(checkout: Checkout, folder: Path, wanted: Sequence[Case]) -> Iterator[Running]:
    """Install the networks of these cases into a repository, and serve it."""
    repository, stored = folder / "model_repository", folder / "stored.onnx"
    checkout.copy_steps(repository)
    write_full(stored, stored_rows())
    command = [str(stored), f"--repository={repository}"]
    further = {case.network for case in wanted} - {MODEL}
    checkout.install([command, *([*command, f"--name={name}"] for name in sorted(further))])
    prefilter(repository / MODEL)
    with started(_OURS, network=stored, repository=repository, checkout=checkout) as running:
        yield running
