"""The autoscaler decides as Kubernetes' HorizontalPodAutoscaler does."""

from __future__ import annotations

import pytest

from yolov5_fleet._autoscaler import Autoscaler, Policy, wanted_pods

POLICY = Policy(target=0.7, least=2, most=100)


@pytest.mark.parametrize(
    ("metrics", "without", "current", "wanted"),
    [
        ([1.4] * 4, 0, 4, 8),
        ([0.35] * 4, 0, 4, 2),
        ([0.76] * 4, 0, 4, 4),  # within the tolerance
        ([0.64] * 4, 0, 4, 4),
        ([1.4] * 4, 4, 8, 8),  # those that start count as idle, and suffice
        ([2.8] * 4, 4, 8, 16),
        ([0.9] * 4, 4, 8, 8),  # would turn from more to less
        ([0.1] * 4, 2, 6, 3),  # those without a metric count as on target
        ([], 3, 3, 3),
    ],
)
def test_number_of_pods(metrics: list[float], without: int, current: int, wanted: int) -> None:
    assert wanted_pods(metrics, without, current, POLICY) == wanted


def test_fleet_doubles_at_most_in_15_seconds() -> None:
    autoscaler = Autoscaler(POLICY, 10)
    assert autoscaler.decide(0.0, [7.0] * 10, 0) == 20
    assert autoscaler.decide(5.0, [7.0] * 20, 0) == 20
    assert autoscaler.decide(15.0, [7.0] * 20, 0) == 40
    assert autoscaler.decide(30.0, [7.0] * 40, 0) == 80
    assert autoscaler.decide(45.0, [7.0] * 80, 0) == 100


def test_small_fleet_grows_by_four() -> None:
    assert Autoscaler(POLICY, 2).decide(0.0, [7.0] * 2, 0) == 6


def test_fleet_shrinks_to_the_highest_wish_of_five_minutes() -> None:
    autoscaler = Autoscaler(POLICY, 20)
    seen = [autoscaler.decide(15.0 * tick, [0.7 if tick < 4 else 0.1], 0) for tick in range(30)]
    assert seen[0] == 20  # on target
    assert seen[3 + 20] == 20
    assert seen[4 + 20] == 2


def test_bounds_are_kept() -> None:
    assert Autoscaler(POLICY, 2).decide(0.0, [0.0, 0.0], 0) == 2
