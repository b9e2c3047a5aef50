from __future__ import annotations

from yolov5_server._backoff import Backoff


def test_pauses_grow_to_half_a_minute_and_stay_there() -> None:
    backoff = Backoff()
    pauses = [backoff.next_pause(0) for _ in range(12)]
    assert pauses == [0, 0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]


def test_a_steady_minute_forgets_all_ends() -> None:
    backoff = Backoff()
    for _ in range(20):
        backoff.next_pause(0)
    assert backoff.next_pause(uptime=60) == 0
    assert [backoff.next_pause(0) for _ in range(2)] == [0, 0.5]


def test_less_than_a_steady_minute_forgets_some() -> None:
    backoff = Backoff()
    for _ in range(20):
        backoff.next_pause(0)
    assert backoff.next_pause(uptime=30) == 2


def test_an_end_every_ten_seconds_is_always_healed_at_once() -> None:
    backoff = Backoff()
    assert {backoff.next_pause(uptime=10) for _ in range(100)} == {0}


def test_forty_ends_two_seconds_apart_leave_time_to_be_ready_within_a_minute() -> None:
    backoff = Backoff()
    now = 0.0
    while now < 80:
        now += backoff.next_pause(uptime=0)
        now += 2 - now % 2  # until the next kill
    assert now - 80 < 45
