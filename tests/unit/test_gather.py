from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gather import Gather


def test_gather_answers_once_with_the_result_or_error_of_each_image() -> None:
    answers: list[Any] = []
    done = threading.Event()

    def work(index: int, factor: int) -> int:
        if index == 1:
            raise ValueError("one")
        return index * factor

    def answer(results: Any) -> None:
        answers.append([*results])
        done.set()

    with ThreadPoolExecutor(2) as pool:
        for task in Gather(3, work=work, answer=answer).tasks():
            pool.submit(task, 10)
        assert done.wait(10)
    ((first, second, third),) = answers
    assert (first, third) == (0, 20)
    assert isinstance(second, ValueError)
