"""How requests end, and when they count as lost."""

from __future__ import annotations

import pytest
import request_outcomes
from request_outcomes import OUTCOMES, PendingRequests, RequestTimer
from virtual_time import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(request_outcomes, "monotonic", clock)
    return clock


def test_outcomes_are_those_of_the_metrics() -> None:
    assert OUTCOMES == ("answered", "rejected", "shed", "expired", "failed", "lost")


def test_timer_tells_outcome_and_seconds(clock: Clock) -> None:
    told: list[tuple[str, float]] = []
    timer = RequestTimer(clock.now, lambda *arguments: told.append(arguments))
    clock.now += 0.5
    timer.stop("answered")
    assert told == [("answered", 0.5)]


def test_pending_request_is_taken_once(clock: Clock) -> None:
    pending = PendingRequests[str]()
    pending.add(1, "a")
    pending.add(9, "b")
    assert [pending.take(number) for number in (9, 9, 5, 1, 1)] == ["b", None, None, "a", None]


def test_request_is_lost_after_a_minute(clock: Clock) -> None:
    pending = PendingRequests[str]()
    for number, name in enumerate("abc"):
        pending.add(number, name)
        clock.now += 10
    assert pending.take(1) == "b"
    clock.now += 29.9
    assert pending.take_lost() == []
    clock.now += 0.2
    assert pending.take_lost() == ["a"]
    clock.now += 100
    assert pending.take_lost() == ["c"]
    assert pending.take_lost() == []
