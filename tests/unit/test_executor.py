from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from cores import cores_for_instance
from cpu_count import available_cpus
from executor import ImageExecutor, Run, thread_counts
from image_gather import Tensors


@pytest.mark.parametrize(
    "cpus, expected", [(1, [1]), (2, [1, 2]), (4, [1, 4]), (6, [1, 4, 6]), (64, [1, 4, 16, 64])]
)
def test_thread_counts_grow_fourfold_up_to_all_cores(cpus: int, expected: list[int]) -> None:
    assert thread_counts(cpus) == expected


def test_instances_share_the_cores_evenly() -> None:
    assert cores_for_instance({"instance_group": [{"count": 1}]}) == available_cpus()
    assert cores_for_instance({}) == available_cpus()
    assert cores_for_instance({"instance_group": [{"count": 10_000}]}) == 1


class Runs:
    """A network for each of these numbers of threads, which blocks until it is released."""

    def __init__(self, *counts: int) -> None:
        self.chosen: list[int] = []
        self.go = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.by_threads: dict[int, Run] = {n: self._run(n) for n in counts}

    def _run(self, threads: int) -> Run:
        def run(inputs: Tensors) -> Tensors:
            self.chosen.append(threads)
            self.begun.release()
            assert self.go.acquire(timeout=10)
            return {"y": inputs["x"] * 2}

        return run


def work(run: Run) -> None:
    run({"x": np.zeros(1)})


def test_single_image_gets_all_cores_and_many_images_get_one_each() -> None:
    runs = Runs(1, 4, 8)
    executor = ImageExecutor(runs.by_threads, 8)
    for expected in (8, 4, 1):  # with 0, 1 and 2 others running: 8, 4 and 2 cores each
        executor.submit(work)
        assert runs.begun.acquire(timeout=10)
        assert runs.chosen[-1] == expected
    runs.go.release(3)
    executor.close()


def test_images_after_concurrent_ones_still_get_few_threads() -> None:
    runs = Runs(1, 2)
    executor = ImageExecutor(runs.by_threads, 2)
    for waiting in (1, 0, 0, 0, 0):
        executor.submit(work, waiting=waiting)
        runs.go.release()
        time.sleep(0.1)  # let it finish
    executor.close()
    assert runs.chosen == [1, 1, 1, 1, 2]


def test_images_submitted_together_share_the_cores() -> None:
    runs = Runs(1, 4, 8)
    executor = ImageExecutor(runs.by_threads, 8)
    executor.submit(work, waiting=1)
    executor.submit(work)
    runs.go.release(2)
    executor.close()
    assert runs.chosen == [4, 4]


def test_submit_blocks_while_the_next_images_are_queued() -> None:
    runs = Runs(1, 2)
    executor = ImageExecutor(runs.by_threads, 2)
    for _ in range(4):  # two that run, and two that are queued
        executor.submit(work)
    fifth = threading.Thread(target=executor.submit, args=(work,))
    fifth.start()
    fifth.join(0.2)
    assert fifth.is_alive()
    assert len(runs.chosen) == 2
    runs.go.release()
    fifth.join(10)
    assert not fifth.is_alive()
    runs.go.release(4)
    executor.close()
    assert len(runs.chosen) == 5


def test_failed_work_frees_its_thread() -> None:
    def fail(run: Run) -> None:
        raise RuntimeError

    runs = Runs(1)
    executor = ImageExecutor(runs.by_threads, 1)
    for _ in range(3):
        executor.submit(fail)
    executor.close()
