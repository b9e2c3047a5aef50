"""Inputs that are nearly valid, made by Hypothesis; the same ones in every run.

FUZZ_TIMES says how many times as many (1 unless set).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))


def fuzz(max_examples: int) -> settings:
    """A decorator for a test with so many examples, times `TIMES`.

    Nothing is kept between runs and no wall-clock time counts: all runs are alike, on a busy
    machine too.
    """
    return settings(
        max_examples=max_examples * TIMES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@st.composite
def spoilt(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with a few bytes changed, cut, repeated, inserted or copied from another."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        # Parsers mostly depend on the beginning.
        at = draw(st.sampled_from((at, at % 64, at % 512))) if data else 0
        length = draw(st.integers(1, 40))
        kind = draw(st.sampled_from(("change", "cut off", "remove", "repeat", "put in", "splice")))
        if kind == "change":
            data = data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at + 1 :]
        elif kind == "cut off":
            data = data[:at]
        elif kind == "remove":
            data = data[:at] + data[at + length :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + length] * draw(st.integers(2, 50)) + data[at:]
        elif kind == "put in":
            data = data[:at] + draw(st.binary(max_size=length)) + data[at:]
        else:
            data = data[:at] + draw(st.sampled_from(seeds))[at:]
    return data


def spoilt_text(seeds: Sequence[str]) -> st.SearchStrategy[bytes]:
    return spoilt([seed.encode() for seed in seeds])


def is_sentence(message: str) -> bool:
    """Whether the message is one printable line, and not empty."""
    return bool(message) and message.isprintable()
