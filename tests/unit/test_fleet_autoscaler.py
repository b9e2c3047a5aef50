"""The autoscaler decides as Kubernetes' HorizontalPodAutoscaler does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from support import ROOT

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


def test_fleet_doubles_at_most_in_30_seconds() -> None:
    autoscaler = Autoscaler(POLICY, 10)
    seen = [autoscaler.decide(now, [7.0] * 10, 0) for now in (15.0, 30.0, 45.0, 60.0, 75.0)]
    assert seen == [20, 20, 40, 40, 80]


def test_small_fleet_grows_by_two() -> None:
    assert Autoscaler(replace(POLICY, least=1), 1).decide(0.0, [7.0], 0) == 3


def test_fleet_shrinks_by_a_fifth_a_minute_after_five_minutes() -> None:
    autoscaler = Autoscaler(POLICY, 20)
    metrics = [0.7] * 2 + [0.1] * 40
    seen = [autoscaler.decide(15.0 * n, [one] * 20, 0) for n, one in enumerate(metrics)]
    assert seen[:22] == [20] * 22
    assert seen[22:30] == [16, 16, 16, 16, 12, 12, 12, 12]
    assert seen[30:34] == [9] * 4


def test_bounds_are_kept() -> None:
    assert Autoscaler(POLICY, 2).decide(0.0, [0.0, 0.0], 0) == 2


def test_defaults_are_those_of_the_chart() -> None:
    snapshot = ROOT / "deploy" / "kubernetes" / "snapshots" / "cpu.yaml"
    if not snapshot.exists():
        pytest.skip("there is no chart")
    found = [one for one in yaml.safe_load_all(snapshot.read_text()) if one]
    spec = next(one for one in found if one["kind"] == "HorizontalPodAutoscaler")["spec"]
    up, down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
    percent, pods = up["policies"]
    policy = Policy()
    target = spec["metrics"][0]["pods"]["target"]["averageValue"]
    assert target == f"{1000 * policy.target:.0f}m"
    assert (spec["minReplicas"], spec["maxReplicas"]) == (policy.least, policy.most)
    assert (percent["value"], percent["periodSeconds"]) == (policy.up_percent, policy.up_seconds)
    assert (pods["value"], pods["periodSeconds"]) == (policy.up_pods, policy.up_seconds)
    assert down["stabilizationWindowSeconds"] == policy.stable_seconds
    (rule,) = down["policies"]
    assert (rule["value"], rule["periodSeconds"]) == (policy.down_percent, policy.down_seconds)
