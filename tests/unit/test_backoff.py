from __future__ import annotations

from yolov5_server._backoff import Backoff


def test_pauses_grow_to_half_a_minute_and_stay_there() -> None:
    backoff = Backoff()
    pauses = [backoff.next_pause(0) for _ in range(12)]
    assert pauses == [0, 0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]


def test_minute_of_uptime_resets_the_pauses() -> None:
    backoff = Backoff()
    for _ in range(20):
        backoff.next_pause(0)
    assert backoff.next_pause(uptime=60) == 0
    assert [backoff.next_pause(0) for _ in range(2)] == [0, 0.5]


def test_half_a_minute_of_uptime_shortens_the_pause() -> None:
    backoff = Backoff()
    for _ in range(20):
        backoff.next_pause(0)
    assert backoff.next_pause(uptime=30) == 2


def test_end_every_ten_seconds_is_restarted_at_once() -> None:
    backoff = Backoff()
    assert {backoff.next_pause(uptime=10) for _ in range(100)} == {0}


def test_pause_after_forty_quick_ends_is_under_a_minute() -> None:
    backoff = Backoff()
    now = 0.0
    while now < 80:
        now += backoff.next_pause(uptime=0)
        now += 2 - now % 2  # until the next kill
    assert now - 80 < 45


def test_step_falls_by_one_in_seven_and_a_half_seconds() -> None:
    for uptime, pause in ((7.4, 16), (7.5, 16), (7.6, 8), (52.5, 0), (45.0, 0.5), (44.9, 0.5)):
        backoff = Backoff()
        for _ in range(9):
            backoff.next_pause(0)
        assert backoff.next_pause(uptime) == pause


def test_long_uptime_leaves_no_credit() -> None:
    backoff = Backoff()
    assert [backoff.next_pause(uptime) for uptime in (1000, 0, 0)] == [0, 0, 0.5]
