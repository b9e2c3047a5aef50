"""At least nine in ten small changes to a module make a test fail that belongs to it.

MUTANTS says how many changes are tried (128 unless set), MUTATION_SEED which ones, MUTATION_AREAS
in which areas of `tests/data/mutation.json` (all), and MUTATION_MODULES in which of their modules,
as a pattern for the paths.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest
from mutation import AREAS, EQUIVALENT, Mutant, draw, project_copy, survivors
from support import ROOT

COUNT = int(os.environ.get("MUTANTS", "128"))
SEED = os.environ.get("MUTATION_SEED", "20")
CHOSEN = os.environ.get("MUTATION_AREAS", ",".join(AREAS)).split(",")
PATTERN = os.environ.get("MUTATION_MODULES", "*")

TESTS = {module: tests for modules in AREAS.values() for module, tests in modules.items()}
# What an area is made of. `model.py` is Triton glue, tested on the server.
FOLDERS = {
    "steps": ("model_repository/preprocess/1/*.py", "model_repository/postprocess/1/*.py"),
    "client": tuple(
        f"client/yolov5_client/_{name}.py"
        for name in (
            *("agreement", "boxes", "connection", "deadline", "detections", "draw", "grpc"),
            *("http", "interchange", "journal", "outputs", "sources", "wire"),
        )
    ),
    "importer": tuple(
        f"build/yolov5_build/_{name}.py"
        for name in (
            *("checkpoint", "config", "endpoint", "install", "kept", "labels", "manage"),
            *("networks", "onnx_*", "record", "safetensors", "unpickler", "version"),
        )
    ),
    "launcher": tuple(
        f"server/yolov5_server/_{name}.py"
        for name in (
            *("backoff", "hang", "health", "loading", "probe", "reload", "stage", "watchdog"),
        )
    ),
}


@pytest.mark.parametrize("area", AREAS)
def test_every_module_of_an_area_has_tests(area: str) -> None:
    modules = {
        str(path.relative_to(ROOT))
        for pattern in FOLDERS[area]
        for path in ROOT.glob(pattern)
        if not path.is_symlink() and path.name != "model.py"
    }
    assert modules == AREAS[area].keys()
    assert all(AREAS[area].values())


@pytest.mark.parametrize("test", sorted({test for tests in TESTS.values() for test in tests}))
def test_test_of_a_module_exists(test: str) -> None:
    path, _, name = test.partition("::")
    text = (ROOT / path).read_text()
    assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE) if name else text


def test_equivalent_mutants_are_of_lines_that_are_there() -> None:
    for listed in EQUIVALENT:
        assert listed.keys() == {"module", "function", "before", "after", "reason"}, listed
        assert listed["reason"], listed
        lines = [line.strip() for line in (ROOT / listed["module"]).read_text().splitlines()]
        assert set(listed["before"].splitlines()) <= set(lines), listed


@pytest.fixture(scope="module")
def cosmic_ray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the mutation tool, which is not installed in the environment."""
    (pin,) = re.findall(r'^mutation = \["(.+)"\]$', (ROOT / "pyproject.toml").read_text(), re.M)
    folder = tmp_path_factory.mktemp("cosmic_ray")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run = subprocess.run([*install, f"--target={folder}", pin], capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"{pin} cannot be installed here: {(run.stderr.splitlines() or [''])[-1]}")
    return folder


def drawn(cosmic_ray: Path) -> list[Mutant]:
    """As many mutants of each area, or fewer where there are no more."""
    share = -(-COUNT // len(CHOSEN))
    return [
        mutant
        for area in CHOSEN
        for mutant in draw(
            cosmic_ray, [one for one in AREAS[area] if fnmatch(one, PATTERN)], SEED, share
        )
    ]


@pytest.mark.slow
@pytest.mark.timeout(60 * COUNT + 600)
def test_nine_in_ten_changes_are_noticed(tmp_path: Path, cosmic_ray: Path) -> None:
    mutants = drawn(cosmic_ray)
    assert mutants
    left: list[Mutant] = []
    with project_copy(tmp_path) as copy:
        for mutant, survived in survivors(copy, mutants, TESTS):
            if survived:
                left.append(mutant)
                print("", *mutant.diff()[1:], sep="\n", flush=True)
    everywhere, alive = (Counter(map(area_of, some)) for some in (mutants, left))
    for area in CHOSEN:
        print(f"{area}: {everywhere[area] - alive[area]} of {everywhere[area]} noticed")
    assert len(left) <= len(mutants) / 10, f"{len(left)} of {len(mutants)} were not noticed"


def area_of(mutant: Mutant) -> str:
    return next(area for area, modules in AREAS.items() if mutant.module in modules)
