"""The benchmark's small forms, held against what was measured before."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from support import ROOT

from yolov5_bench.__main__ import machine, main
from yolov5_bench._ceiling import ours_to_decoding
from yolov5_bench._report import regressions

KEPT = ROOT / "docs" / "performance" / "bundled.json"
SLACK = 0.9  # of what it was: rounds on a small machine differ by a few percent
CONTENDERS = ("fastapi", "fastapi-tuned", "client-side", "bare")
# CPU of all that is ours in an image of 0.3 megapixels, by that of decoding it, with 32 callers.
MOST_TO_DECODING = 6.3


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None, reason="what `make bench` installs is not here"
)
def test_no_slower_than_before(tmp_path: Path) -> None:
    if not KEPT.exists():
        pytest.skip("no full run has been kept yet")
    report = json.loads(KEPT.read_text())
    if report["machine"] != machine():
        pytest.skip(f"the kept ratios are those of another machine: {report['machine']}")
    small = ["--callers=1,8", "--rounds=3", "--seconds=3", f"--output={tmp_path}"]
    assert main([*small, f"--contenders={','.join(CONTENDERS)}"]) == 0
    found = json.loads((tmp_path / "bundled.json").read_text())["ratios"]
    assert {*found} == {*CONTENDERS}
    assert regressions(found, report["ratios"], SLACK) == {}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_all_but_the_network_costs_little_more_than_decoding() -> None:
    found = ours_to_decoding(callers=32, rounds=3, seconds=3)
    assert 1 < found < MOST_TO_DECODING
