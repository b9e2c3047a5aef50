"""Checkpoints that are changed at random, each read or refused in a process with measured limits.

As a program: `mutated_checkpoints.py SOURCE TARGET COUNT`, which prints how many were read, how
many refused, the longest CPU time in seconds, and the peak of memory in MB.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from yolov5_build import BuildError, load_checkpoint


def rewritten(
    source: Path,
    target: Path,
    change: Callable[[str, bytes], bytes] = lambda name, data: data,
    *,
    compression: int = zipfile.ZIP_STORED,
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """A checkpoint with changed members, in a valid zip."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, data in (more or {}).items():
            new.writestr(name, data)
    return target


def mutated(source: Path, target: Path, seed: int) -> Path:
    """A checkpoint whose pickle, and sometimes whose zip, is changed at random."""
    chance = random.Random(seed)

    def change(name: str, old: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return old
        data = bytearray(old)
        for _ in range(chance.choice([1, 1, 2, 5, 20])):
            at = chance.randrange(len(data))
            kind = chance.randrange(3)
            if kind == 0:
                data[at] = chance.randrange(256)
            elif kind == 1:
                del data[at : at + chance.choice([1, 2, 50])]
            else:
                data[at:at] = data[chance.randrange(len(data)) :][: chance.choice([1, 4, 100])]
        return bytes(data)

    target.unlink(missing_ok=True)
    rewritten(source, target, change)
    if seed % 5 == 0:
        raw = bytearray(target.read_bytes())
        for _ in range(10):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        target.write_bytes(raw)
    return target


def main(source: Path, target: Path, count: int) -> None:
    outcomes, slowest = [0, 0], 0.0
    for seed in range(count):
        mutated(source, target, seed)
        started = time.process_time()
        try:
            load_checkpoint(target)
            outcomes[0] += 1
        except BuildError:
            outcomes[1] += 1
        slowest = max(slowest, time.process_time() - started)
    # The peak of this process alone; that of getrusage includes the memory of its parent.
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line for line in status if line.startswith("VmHWM"))
    print(*outcomes, slowest, int(peak.split()[1]) >> 10)


def read_or_refuse(source: Path, folder: Path, count: int) -> None:
    """Run the program, and judge its outcome."""
    run = subprocess.run(
        [sys.executable, __file__, str(source), str(folder / "mutated.pt"), str(count)],
        capture_output=True,
        text=True,
    )
    assert_read_or_refused(run, count)


def assert_read_or_refused(run: subprocess.CompletedProcess[str], count: int) -> None:
    """Assert that there was no crash, no hang, no unlimited memory, and no other type of error."""
    assert run.returncode == 0, run.stderr
    read, refused, slowest, megabytes = run.stdout.split()
    print(f"{read} read, {refused} refused, slowest {slowest} s, peak {megabytes} MB")
    assert int(read) + int(refused) == count
    assert int(refused) > count // 4
    assert float(slowest) < 10
    assert int(megabytes) < 2048


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
