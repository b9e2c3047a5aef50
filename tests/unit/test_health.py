from __future__ import annotations

import pytest

from yolov5_client._commands import status
from yolov5_server import Settings, _health
from yolov5_server._health import Health
from yolov5_server._health_server import _metrics


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(Settings(), clock)


def test_readiness_names_the_reason_and_the_remaining_pause(health: Health, clock: Clock) -> None:
    assert health.check() == "it is starting"
    health.down("Triton ended by itself (exit status -9).", pause=8)
    clock.now += 3.5
    assert health.check() == (
        "Triton ended by itself (exit status -9). Starting Triton again in 5 s."
    )
    assert "\nyolov5_restart_pause_seconds 4.5\n" in _metrics(health)
    clock.now += 4.5
    assert health.check() == "Triton ended by itself (exit status -9)."
    assert "\nyolov5_restart_pause_seconds 0.0\n" in _metrics(health)


def test_launcher_that_pauses_between_starts_is_live(health: Health, clock: Clock) -> None:
    for _ in range(10):
        health.down("Triton ended by itself (exit status -9).", pause=30)
        clock.now += 35
        assert health.is_live
    clock.now += 60
    assert not health.is_live
    health.up()
    assert health.is_live


def test_client_sends_the_same_canary_as_the_launcher() -> None:
    assert status._PIXEL == _health._PIXEL
