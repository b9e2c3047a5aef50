"""Updates reach the metrics without blocking the callers."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import metrics_buffer
from metrics_buffer import MetricsBuffer


class Metric:
    """Like one of Triton's, which two threads must not use at a time."""

    touched = threading.Lock()

    def __init__(self, go: threading.Event) -> None:
        self.go = go
        self.calls: list[float] = []

    def increment(self, amount: float) -> None:
        assert self.touched.acquire(blocking=False)
        assert self.go.wait(10)
        self.calls.append(amount)
        self.touched.release()

    observe = set = increment


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_counts_are_added_up_and_observations_are_not() -> None:
    go = threading.Event()
    counter, histogram = Metric(go), Metric(go)
    buffer = MetricsBuffer(print)

    def work() -> None:
        for _ in range(100):
            buffer.increment(counter, 2)
        buffer.observe(histogram, 0.5)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # none is blocked, though nothing is delivered yet
    go.set()
    wait_until(lambda: sum(counter.calls) == 800 and len(histogram.calls) == 4)
    assert len(counter.calls) < 20
    assert set(histogram.calls) == {0.5}
    buffer.close()


def test_of_the_values_of_a_gauge_the_last_is_delivered() -> None:
    go = threading.Event()
    gauge = Metric(go)
    buffer = MetricsBuffer(print)
    with buffer.calling:
        for value in range(5):
            buffer.set(gauge, value)
    go.set()
    wait_until(lambda: gauge.calls[-1:] == [4])
    assert len(gauge.calls) <= 2
    buffer.set(gauge, 0)
    wait_until(lambda: gauge.calls[-1] == 0)
    buffer.close()


def test_of_many_observations_some_are_delivered_from_first_to_last() -> None:
    go = threading.Event()
    go.set()
    few, many = Metric(go), Metric(go)
    buffer = MetricsBuffer(print)
    with buffer.calling:  # the first delivery waits
        buffer.increment(Metric(go))
        wait_until(lambda: not buffer._counts)
        for seconds in range(16):
            buffer.observe(few, seconds)
        for seconds in range(1000):
            buffer.observe(many, seconds)
    wait_until(lambda: len(few.calls) == 16 and len(many.calls) == 16)
    assert few.calls == [*range(16)]
    assert many.calls == [*range(0, 1000, 63)]
    buffer.close()


def test_failed_delivery_is_logged_and_the_next_one_is_made() -> None:
    go = threading.Event()
    go.set()
    counter = Metric(go)
    said: list[str] = []
    buffer = MetricsBuffer(said.append)
    buffer.increment(None)
    wait_until(lambda: bool(said))
    assert "increment" in said[0]
    buffer.increment(counter)
    wait_until(lambda: counter.calls == [1])
    buffer.close()


def test_close_delivers_the_rest() -> None:
    go = threading.Event()
    go.set()
    counter = Metric(go)
    buffer = MetricsBuffer(print)
    buffer.increment(counter, 3)
    buffer.close()
    assert counter.calls == [3]


def test_empty_buffer_closes_at_once_and_later() -> None:
    MetricsBuffer(print).close()
    buffer = MetricsBuffer(print)
    time.sleep(0.2)  # the thread waits for the first update
    closing = threading.Thread(target=buffer.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


def test_updates_are_delivered_together_but_soon() -> None:
    go = threading.Event()
    go.set()
    counter = Metric(go)
    buffer = MetricsBuffer(print)
    started = time.monotonic()
    for _ in range(100):
        buffer.increment(counter)
        time.sleep(0.002)
    wait_until(lambda: sum(counter.calls) == 100)
    # 5 in a second, if the machine has time for them.
    assert len(counter.calls) < (time.monotonic() - started) * 5 + 3
    started = time.monotonic()
    for count in range(101, 105):
        buffer.increment(counter)
        wait_until(lambda: sum(counter.calls) == count)  # noqa: B023
    assert time.monotonic() - started < 3
    buffer.close()


def test_process_ends_though_the_buffer_is_not_closed() -> None:
    script = "import metrics_buffer; metrics_buffer.MetricsBuffer(print)"
    folder = Path(metrics_buffer.__file__).parent
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, timeout=60)
