from __future__ import annotations

import threading
from functools import partial

from support import wait_until
from workers import Workers


def test_tasks_run_at_the_same_time_and_begin_in_the_order_in_which_they_come() -> None:
    workers = Workers(2, print)
    together, begun = threading.Barrier(2), []

    def work(number: int) -> None:
        begun.append(number)
        together.wait(10)

    for number in range(10):
        workers.submit(partial(work, number))
    workers.close()
    assert not together.broken
    assert [sorted(pair) for pair in zip(begun[::2], begun[1::2])] == [
        [number, number + 1] for number in range(0, 10, 2)
    ]


def test_a_task_wakes_the_thread_that_was_busy_last() -> None:
    workers = Workers(4, print)
    wait_until(lambda: len(workers._idle) == 4, 10)
    threads: set[int] = set()
    for _ in range(20):
        workers.submit(lambda: threads.add(threading.get_ident()))
        wait_until(lambda: len(workers._idle) == 4, 10)
    assert len(threads) == 1
    workers.close()


def test_failed_task_is_logged_and_its_thread_goes_on() -> None:
    said: list[str] = []
    workers = Workers(1, said.append)
    workers.submit(lambda: 1 // 0)
    done = threading.Event()
    workers.submit(done.set)
    assert done.wait(10)
    workers.close()
    (line,) = said
    assert "ZeroDivisionError" in line


def test_close_does_what_has_been_submitted() -> None:
    workers = Workers(2, print)
    go, done = threading.Event(), []

    def work(number: int) -> None:
        assert go.wait(10)
        done.append(number)

    for number in range(10):
        workers.submit(partial(work, number))
    closing = threading.Thread(target=workers.close)
    closing.start()
    go.set()
    closing.join(10)
    assert not closing.is_alive()
    assert sorted(done) == [*range(10)]


def test_finished_task_is_not_kept() -> None:
    class Request:
        gone = threading.Event()

        def __call__(self) -> None:
            pass

        def __del__(self) -> None:
            self.gone.set()

    workers = Workers(1, print)
    workers.submit(Request())
    assert Request.gone.wait(10)
    workers.close()
