from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from pixel_budget import PixelBudget
from support import wait_until


def test_one_release_lets_in_all_that_fit_and_wakes_no_other() -> None:
    budget = PixelBudget(10)
    entered: list[int] = []

    def enter(pixels: int) -> None:
        budget.acquire(pixels)
        entered.append(pixels)

    with ThreadPoolExecutor(4) as pool:
        budget.acquire(10)
        waiting = []
        for count, pixels in enumerate((3, 4, 5, 1), 1):
            waiting.append(pool.submit(enter, pixels))
            wait_until(lambda: len(budget._waiting) == count, 10)  # noqa: B023
        budget.release(9)
        for future in waiting[:2]:
            future.result(10)
        assert sorted(entered) == [3, 4]
        assert [pixels for pixels, _ in budget._waiting] == [5, 1]
        budget.release(4)
        for future in waiting[2:]:
            future.result(10)


def test_pixels_decoded_at_the_same_time_are_limited_first_come_first_served() -> None:
    budget = PixelBudget(10)
    entered = []

    def enter(pixels: int) -> None:
        budget.acquire(pixels)
        entered.append(pixels)
        budget.release(pixels)

    with ThreadPoolExecutor(4) as pool:
        budget.acquire(4)
        try:
            pool.submit(enter, 6).result(10)  # fits in beside the first
            large = pool.submit(enter, 10)
            wait_until(lambda: len(budget._waiting) == 1, 10)
            small = [pool.submit(enter, pixels) for pixels in (1, 2)]
            wait_until(lambda: len(budget._waiting) == 3, 10)
            assert entered == [6]  # the small ones would fit in, but came later
        finally:
            budget.release(4)
        for future in (large, *small):
            future.result(10)
    assert entered[:2] == [6, 10]
    assert sorted(entered[2:]) == [1, 2]
