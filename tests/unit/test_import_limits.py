"""Weights files that ask for too much are refused at once, or stopped by a limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bombs
import pytest

TESTS = Path(__file__).parents[1]
KINDS = {
    **{f"pt: {kind}": ("pt", kind) for kind in (*bombs.PICKLES, "zip of many")},
    **{f"onnx: {kind}": ("onnx", kind) for kind in (*bombs.MODELS, "shared external data")},
    **{f"safetensors: {kind}": ("safetensors", kind) for kind in bombs.SAFETENSORS},
}

# Each file is read in a child of one process that has imported everything. CPU seconds and peak
# memory are therefore those of reading alone.
READ = """
import json, os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import bombs
from yolov5_build import BuildError, _limits, import_onnx, load_checkpoint, load_safetensors

MAKE = {{"pt": bombs.checkpoint, "onnx": bombs.model, "safetensors": bombs.safetensors}}
MAKE_ONE = {{"zip of many": bombs.zip_of_many, "shared external data": bombs.shared_external_data}}

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
    return {{"said": said, "seconds": seconds, "kilobytes": kilobytes("VmHWM:") - before}}

def child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

folder = Path(sys.argv[1])
for name, (suffix, kind) in json.loads(sys.argv[2]).items():
    path = folder / f"them.{{suffix}}"
    path.unlink(missing_ok=True)
    child(lambda: MAKE_ONE[kind](path) if kind in MAKE_ONE else MAKE[suffix](path, kind))
    child(lambda: print(json.dumps([name, read(path)]), flush=True))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = READ.format(tests=str(TESTS))
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path_factory.mktemp("bombs")), json.dumps(KINDS)],
        capture_output=True,
        text=True,
        timeout=280,
    )
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

_limits.BASE_SECONDS = 1
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
    _limits.WALL_FACTOR = 2 if work is wait else 200
    print(work.__name__, _limits.run_in_child(lambda: command(work), weights), flush=True)
"""


def test_reading_beyond_the_limits_is_ended_with_a_sentence(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMIT],
        capture_output=True,
        text=True,
        timeout=200,
        env={"TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
    )
    ends = dict(line.split() for line in run.stdout.splitlines())
    assert ends == {"spin": "1", "grow": "1", "crash": "1", "wait": "1", "leave": "0"}, run.stderr
    assert run.stderr.splitlines() == [
        "error: best.pt took more than the allowed 1 s of CPU time; the installed model is"
        " unchanged.",
        "error: best.pt needs more memory than the allowed 64 MB.",
        "error: the process that read best.pt crashed (SIGSEGV); the installed model is unchanged.",
        "error: best.pt took more than the allowed 2 s; the installed model is unchanged.",
    ]
    assert not list(tmp_path.glob("yolov5-build-*"))
