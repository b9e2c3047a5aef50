"""Weights files that ask for too much, or are spoilt at random: refused, or stopped by a limit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bombs
import mutated_checkpoints
import pytest
from checkpoints import unsorted
from nursery import Nursery, nursery
from support import BUNDLED, REPOSITORY

TESTS = Path(__file__).parents[1]
KINDS = {
    **{f"pt: {kind}": ("pt", kind) for kind in (*bombs.PICKLES, "zip of many")},
    **{f"onnx: {kind}": ("onnx", kind) for kind in (*bombs.MODELS, "shared external data")},
    **{f"safetensors: {kind}": ("safetensors", kind) for kind in bombs.SAFETENSORS},
}


@pytest.fixture(scope="module")
def process() -> Iterator[Nursery]:
    """A file can crash, exhaust or block the process that reads it."""
    with nursery(["bombs", "mutated_checkpoints"], [TESTS]) as process:
        yield process


# Each file is read in a child of a process that has imported everything. CPU seconds and peak
# memory are therefore those of reading alone.
READ = """
import json, os, sys, time
from pathlib import Path
import bombs
from yolov5_build import BuildError, _limits, import_onnx, load_checkpoint, load_safetensors

MAKE = {"pt": bombs.checkpoint, "onnx": bombs.model, "safetensors": bombs.safetensors}
MAKE_ONE = {"zip of many": bombs.zip_of_many, "shared external data": bombs.shared_external_data}

def kilobytes(key):
    return int(Path("/proc/self/status").read_text().partition(key)[2].split()[0])

def read(path):
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, started, said = kilobytes("VmRSS:"), time.process_time(), None
    _limits._enforced = True
    try:
        with _limits.limited(path):
            if path.suffix == ".onnx":
                import_onnx(path, path.with_name("ours.onnx"))
            else:
                (load_checkpoint if path.suffix == ".pt" else load_safetensors)(path)
    except BuildError as error:
        said = str(error)
    seconds = time.process_time() - started
    return {"said": said, "seconds": seconds, "kilobytes": kilobytes("VmHWM:") - before}

def child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

def make(files):
    for (suffix, kind), path in files:
        path.parent.mkdir()
        MAKE_ONE[kind](path) if kind in MAKE_ONE else MAKE[suffix](path, kind)

kinds = json.loads(sys.argv[2])
paths = [
    Path(sys.argv[1], str(index), f"them.{suffix}")
    for index, (suffix, _) in enumerate(kinds.values())
]
child(lambda: make(zip(kinds.values(), paths)))
for name, path in zip(kinds, paths):
    child(lambda: print(json.dumps([name, read(path)]), flush=True))
    path.unlink()
"""


@pytest.fixture(scope="module")
def results(process: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bombs")
    run = process.run(READ, folder, json.dumps(KINDS), folder=folder)
    assert run.returncode == 0, run.stderr
    return dict(json.loads(line) for line in run.stdout.splitlines())


@pytest.mark.parametrize("kind", KINDS)
def test_file_that_asks_for_too_much_is_refused_at_once(results: dict[str, Any], kind: str) -> None:
    assert kind in results, "its reader died"
    result = results[kind]
    assert result["said"] and result["said"].startswith(f"them.{kind.partition(':')[0]} ")
    assert "\n" not in result["said"]
    assert result["seconds"] < 1
    assert result["kilobytes"] < 200 << 10


LIMIT = """
import ctypes, os, sys, tempfile, time
from pathlib import Path
from yolov5_build import BuildError, _limits

tempfile.tempdir = sys.argv[1]
_limits.BASE_BYTES = 64 << 20
weights = Path("best.pt")

def spin():
    while True:
        pass

def grow():
    kept = bytearray(1 << 30)

def crash():
    ctypes.string_at(0)

def wait():
    time.sleep(60)

def leave(*_):
    Path(tempfile.mkdtemp(), "half").write_text("written")

def command(work):
    try:
        with _limits.limited(weights):
            work()
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0

for work in (spin, grow, crash, wait, leave):
    # A second of CPU time is allowed in addition.
    _limits.BASE_SECONDS, _limits.WALL_FACTOR = (1, 1) if work is wait else (0, 200)
    print(work.__name__, _limits.run_in_child(lambda: command(work), weights), flush=True)
"""


def test_reading_beyond_the_limits_is_ended_with_a_sentence(
    process: Nursery, tmp_path: Path
) -> None:
    run = process.run(LIMIT, tmp_path, folder=tmp_path)
    ends = dict(line.split() for line in run.stdout.splitlines())
    assert ends == {"spin": "1", "grow": "1", "crash": "1", "wait": "1", "leave": "0"}, run.stderr
    assert run.stderr.splitlines() == [
        "error: best.pt took more than the allowed 0 s of CPU time; the installed model is"
        " unchanged.",
        "error: best.pt needs more memory than the allowed 64 MB.",
        "error: the process that read best.pt crashed (SIGSEGV); the installed model is unchanged.",
        "error: best.pt took more than the allowed 1 s; the installed model is unchanged.",
    ]
    assert not list(tmp_path.glob("yolov5-build-*"))


# ---------------------------------------------------------------------------------------------
# Spoilt at random


@pytest.mark.parametrize("count", [12, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.timeout(1800)
def test_mutated_checkpoints_are_read_or_refused(
    process: Nursery, tmp_path: Path, count: int
) -> None:
    code = "import sys; from mutated_checkpoints import *; main(*map(Path, sys.argv[1:3]), {})"
    run = process.run(code.format(count), BUNDLED, tmp_path / "mutated.pt", folder=tmp_path)
    mutated_checkpoints.assert_read_or_refused(run, count)


MUTATE_ONNX = """
import random, sys
from pathlib import Path
from yolov5_build import BuildError
from yolov5_build._onnx_import import import_onnx

folder, outcomes = Path(sys.argv[1]), [0, 0]
whole, spoilt = (folder / "whole.onnx").read_bytes(), folder / "spoilt.onnx"
nodes = int(sys.argv[3])  # bytes, before the weights
for seed in range(int(sys.argv[2])):
    chance, data = random.Random(seed), bytearray(whole)
    for _ in range(chance.choice([1, 2, 5, 20])):
        at = chance.randrange(len(data) if seed % 4 == 0 else nodes)
        data[at] = chance.randrange(256)
    spoilt.write_bytes(data)
    try:
        import_onnx(spoilt, folder / "ours.onnx")
        outcomes[0] += 1
    except BuildError as error:
        outcomes[1] += 1
        assert str(error).startswith("spoilt.onnx ") and "\\n" not in str(error), error
print(*outcomes)
"""


@pytest.mark.parametrize("count", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_mutated_onnx_files_are_read_or_refused(
    process: Nursery, tmp_path: Path, count: int
) -> None:
    model = unsorted()
    (tmp_path / "whole.onnx").write_bytes(model.SerializeToString())
    nodes = sum(node.ByteSize() for node in model.graph.node)
    run = process.run(MUTATE_ONNX, tmp_path, count, nodes, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    read, refused = map(int, run.stdout.split())
    assert read + refused == count
    assert refused > count // 4


# ---------------------------------------------------------------------------------------------
# Not of weights files, but in a child of the same process, which has imported PyTorch alone


OPERATORS = """
import pathlib, sys

def seen():
    return [name for name in sys.modules if name.startswith(("torchvision", "torch._dynamo"))]

assert "torch" in sys.modules and not {"suppression", "nms", *seen()} & {*sys.modules}
sys.path.insert(0, sys.argv[1])
import torchvision_ops as ops
real = ops._libraries()
ops._libraries = lambda: [pathlib.Path("/nowhere/_C.so"), *real]
import suppression, nms
print(seen())
"""


def test_operators_load_without_importing_torchvision(process: Nursery, tmp_path: Path) -> None:
    """Also if the first library found cannot be loaded."""
    found = process.run(OPERATORS, REPOSITORY / "postprocess" / "1", folder=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "['torchvision_ops']"
