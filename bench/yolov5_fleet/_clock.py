"""Calling a function later, in simulated time; cheaper than a process of simpy."""

from __future__ import annotations

from collections.abc import Callable

from simpy import Environment
from simpy.events import Timeout


def call_later(env: Environment, seconds: float, function: Callable[[], None]) -> None:
    """Call the function in so many simulated seconds."""
    Timeout(env, seconds).callbacks.append(lambda _: function())
