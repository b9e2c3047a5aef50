"""Mutation testing: which small changes to a module do the tests that belong to it notice?

`tests/data/mutation.json` says which tests belong to which module, and
`tests/data/equivalent_mutants.json` which changes nobody could notice.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import ROOT

DATA = ROOT / "tests" / "data"
AREAS: dict[str, dict[str, list[str]]] = json.loads((DATA / "mutation.json").read_text())
EQUIVALENT: list[dict[str, str]] = json.loads((DATA / "equivalent_mutants.json").read_text())

# What is imported under these folders' names comes from the copy, in child processes too.
PACKAGES = ("client", "build", "server", "bench")
NOT_COPIED = shutil.ignore_patterns(
    *(".git", ".venv", ".uv", ".hypothesis", ".*_cache", "__pycache__", "runs")
)
FLAGS = ("-x", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-m", "not slow")


@dataclass(frozen=True)
class Mutant:
    """A module with one small change.

    Attributes:
        function: qualified name of the function or class around the change; empty outside of any.
        source: of the whole module.
    """

    module: str
    line: int
    function: str
    source: str = field(repr=False)

    def diff(self) -> list[str]:
        before = (ROOT / self.module).read_text().splitlines()
        name = f"{self.module} {self.function}".strip()
        return [*difflib.unified_diff(before, self.source.splitlines(), name, name, "", "", 2, "")]

    def change(self) -> tuple[str, str]:
        """The lines before and after the change, without their indentation."""
        lines = self.diff()[2:]
        before = [line[1:].strip() for line in lines if line.startswith("-")]
        after = [line[1:].strip() for line in lines if line.startswith("+")]
        return "\n".join(before), "\n".join(after)

    def is_equivalent(self) -> bool:
        before, after = self.change()
        found = {
            "module": self.module,
            "function": self.function,
            "before": before,
            "after": after,
        }
        return any(found.items() <= listed.items() for listed in EQUIVALENT)


def draw(cosmic_ray: Path, modules: Iterable[str], seed: str, count: int) -> list[Mutant]:
    """Draw that many mutants; those that are listed as equivalent do not count.

    Args:
        cosmic_ray: folder that it is installed in.
    """
    most = count + len(EQUIVALENT)
    run = subprocess.run(
        [sys.executable, ROOT / "tests" / "mutants.py", ROOT, seed, str(most), *modules],
        env={**os.environ, "PYTHONPATH": str(cosmic_ray)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    mutants = (Mutant(**one) for one in json.loads(run.stdout))
    return [mutant for mutant in mutants if not mutant.is_equivalent()][:count]


class Copy:
    """A copy of the project, in which modules are changed and tests are run."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        self._output = folder / "output"
        shutil.copytree(ROOT, self.root, symlinks=True, ignore=NOT_COPIED)
        if (ROOT.parent / "shared").exists():
            (folder / "shared").symlink_to((ROOT.parent / "shared").resolve())
        self._worker = subprocess.Popen(
            [sys.executable, str(self.root / "tests" / "mutation_worker.py")],
            cwd=self.root,
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"
        self._mtime = int(time.time())

    def _environment(self) -> Mapping[str, str]:
        paths = os.pathsep.join(str(self.root / name) for name in PACKAGES)
        return {**os.environ, "PYTHONPATH": paths}

    def close(self) -> None:
        assert self._worker.stdin and self._worker.stdout
        self._worker.stdin.close()
        self._worker.wait(30)
        self._worker.stdout.close()

    def _answer(self) -> Any:
        assert self._worker.stdout
        return json.loads(self._worker.stdout.readline())

    @contextlib.contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """Have the change in the copy while the block runs."""
        path = self.root / mutant.module
        original = path.read_bytes()
        self._write(path, mutant.source.encode())
        try:
            yield
        finally:
            self._write(path, original)

    def _write(self, path: Path, content: bytes) -> None:
        """Write a file whose time no earlier version had: compiled modules are told apart by it."""
        path.write_bytes(content)
        self._mtime += 2
        os.utime(path, (self._mtime, self._mtime))

    def run(self, tests: Iterable[str], seconds: float) -> Run:
        """Run these tests until the first one fails, but not longer than so many seconds."""
        assert self._worker.stdin
        # pytest's own limit leaves fixtures the time to end the processes that they have started.
        arguments = [*FLAGS, f"--timeout={seconds}", *tests]
        request = {
            "arguments": arguments,
            "output": str(self._output),
            "seconds": seconds + 15,
        }
        print(json.dumps(request), file=self._worker.stdin, flush=True)
        answer = self._answer()
        output = self._output.read_text(errors="replace") if self._output.exists() else ""
        return Run(answer["status"], answer["took"], output)


@dataclass(frozen=True)
class Run:
    """How a run of tests ended.

    Attributes:
        status: pytest's; None if it had to be killed, negative if a signal ended it.
        took: seconds.
    """

    status: int | None
    took: float
    output: str


@contextlib.contextmanager
def project_copy(folder: Path) -> Iterator[Copy]:
    copy = Copy(folder)
    try:
        yield copy
    finally:
        copy.close()


def survivors(
    copy: Copy, mutants: Iterable[Mutant], tests: Mapping[str, list[str]]
) -> Iterator[tuple[Mutant, bool]]:
    """Run each mutant's tests; yield it with whether it has survived them.

    A run of more than five times the time of one without a change counts as noticed.
    """
    limits: dict[str, float] = {}
    for mutant in sorted(mutants, key=lambda one: (one.module, one.line)):
        module = mutant.module
        if module not in limits:
            clean = copy.run(tests[module], 300)
            assert clean.status == 0, f"without a change:\n{clean.output[-3000:]}"
            limits[module] = 5 * clean.took + 5
        with copy.changed(mutant):
            run = copy.run(tests[module], limits[module])
        # Status 1 is a failed test, 2 a module that cannot be imported, 4 a conftest.py.
        assert run.status is None or run.status in (0, 1, 2, 4) or run.status < 0, run.output
        yield mutant, run.status == 0
