"""Runs a job on Ray: its own on this machine, or a cluster."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from .coco import write_coco
from .plan import RESULTS, Plan, part_name, read_or_make
from .rows import Counts
from .settings import BatchSettings
from .storage import Folder
from .worker import COUNTS, PART, PartWorker

Report = Callable[[Counts], None]

_PARTS_AT_A_TIME = 2  # of a worker: one begins while the last photos of another are answered


def run(settings: BatchSettings, planned: Callable[[Plan, int], None], report: Report) -> Counts:
    """Do what is left of a job, and return the counts of all of it.

    Args:
        planned: is told the plan, and how many parts were done before.
        report: gets the counts of each part that is done.

    Raises:
        PlanError, SourceError: the job cannot be planned as asked.
        ray.exceptions.RayError: a part failed for good, or there is no cluster.
    """
    folder = Folder(settings.destination, settings.retry_for)
    plan, _ = read_or_make(folder, settings)
    done = folder.names(RESULTS)
    left = [number for number in range(plan.parts) if part_name(number) not in done]
    planned(plan, plan.parts - len(left))
    total = Counts()
    for number in sorted(set(range(plan.parts)) - set(left)):
        total.update(Counts.of_file(folder.read(f"{RESULTS}/{part_name(number)}")))
    report(total)
    if left:
        with _cluster(settings):
            for counts in _run_parts(settings, left):
                total.update(counts)
                report(counts)
    if settings.coco:
        write_coco(folder, plan.parts)
    folder.write("summary.json", total.to_json(indent=1))
    return total


def _run_parts(settings: BatchSettings, parts: list[int]) -> Iterator[Counts]:
    """Let Ray Data do the parts, and yield their counts as they are done."""
    workers, cores = _workers(settings, len(parts))
    # A block for each part: a block is what Ray does again after a death.
    rows = ray.data.from_items([{PART: one} for one in parts], override_num_blocks=len(parts))
    answers = rows.map_batches(
        PartWorker,
        batch_size=1,
        fn_constructor_args=(settings,),
        compute=ActorPoolStrategy(
            size=workers,
            max_concurrent_calls_per_actor=_PARTS_AT_A_TIME,
            max_tasks_in_flight_per_actor=2 * _PARTS_AT_A_TIME,
            enable_true_multi_threading=True,
        ),
        num_cpus=cores,
    )
    for row in answers.iter_rows():
        yield Counts.from_json(row[COUNTS])


def _workers(settings: BatchSettings, parts: int) -> tuple[int, float]:
    """Return how many workers there are to be, and how many cores Ray sets aside for each.

    A worker that only asks waits most of the time. One that has a server takes a whole node, or as
    much of it as the smallest node has, so that there is one for each node that has room.
    """
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    cores = [one for one in nodes if one >= 1]
    if settings.server is not None:
        return max(1, min(settings.workers or len(cores), parts)), 0.5
    share = min(cores)
    room = sum(math.floor(one / share) for one in cores)
    return min(settings.workers or room, parts), share


@contextmanager
def _cluster(settings: BatchSettings) -> Iterator[None]:
    ray.init(
        address=settings.cluster or "local",
        include_dashboard=False if settings.cluster is None else None,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    context = DataContext.get_current()
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the command prints the sentence
    try:
        yield
    finally:
        ray.shutdown()
