"""Which Python `make` uses (`build/python.sh`), tested with fake commands."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

# Utilities that the script needs; the PATH has nothing else, so no other Python.
UTILITIES = ("sh", "dirname", "mkdir", "timeout", "cat", "ln", "rm")
# A Python of another version: it works, but fails the check of its version.
OTHER = """#!/bin/sh
case "$2" in *version_info*) exit 1 ;; esac
exec {python} "$@"
"""
WITHOUT_VENV = """#!/bin/sh
case "$2" in *ensurepip*) exit 1 ;; esac
exec {python} "$@"
"""
SHIM = "#!/bin/sh\nexit 127\n"
FITTING = '#!/bin/sh\nexec {python} "$@"\n'
# A uv that records its calls, and installs a link.
UV = """#!/bin/sh
echo "$* BIN=$UV_PYTHON_INSTALL_BIN" >> {calls}
case "$2" in
  install)
    mkdir -p "$UV_PYTHON_INSTALL_DIR/3/bin"
    ln -s {python} "$UV_PYTHON_INSTALL_DIR/3/bin/python3.12" ;;
  find) echo "$UV_PYTHON_INSTALL_DIR/3/bin/python3.12" ;;
esac
"""
OFFLINE = '#!/bin/sh\necho "error: dns error" >&2\nexit 2\n'


class Machine:
    """A copy of the script, with its own PATH."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "a checkout"
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.bin.mkdir()
        (self.project / "build").mkdir(parents=True)
        for name in ("python.sh", "uv-requirements.txt"):
            shutil.copy(ROOT / "build" / name, self.project / "build")
        for name in UTILITIES:
            (self.bin / name).symlink_to(str(shutil.which(name)))

    def has(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(script.format(python=f"'{sys.executable}'", calls=f"'{self.calls}'"))
        path.chmod(0o755)

    def choose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(self.project / "build" / "python.sh"), *arguments],
            env={"PATH": str(self.bin)},
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_python3_is_chosen_if_it_fits(machine: Machine) -> None:
    machine.has("python3", FITTING)
    machine.has("python3.12", FITTING)
    assert machine.choose().stdout == "python3\n"


def test_older_python_beside_a_new_python3_is_chosen(machine: Machine) -> None:
    machine.has("python3", OTHER)
    machine.has("python3.12", SHIM)  # as pyenv has it
    machine.has("python3.11", WITHOUT_VENV)
    machine.has("python3.10", FITTING)
    found = machine.choose()
    assert (found.stdout, found.stderr) == ("python3.10\n", "")


def test_named_python_is_chosen(machine: Machine) -> None:
    machine.has("python3", FITTING)
    machine.has("python3.11", FITTING)
    machine.has("python3.13", OTHER)
    assert machine.choose("python3.11").stdout == "python3.11\n"
    refused = machine.choose("python3.13")
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: Python 3.10, 3.11 or 3.12 is needed, and PYTHON=python3.13 is none of them\n"
    )


def test_missing_venv_module_is_named(machine: Machine) -> None:
    machine.has("python3", WITHOUT_VENV)
    for found in (machine.choose(), machine.choose("python3")):
        assert (found.returncode, found.stdout) == (1, "")
        assert found.stderr.startswith("error: Python's venv module is missing; on Debian")


def test_uv_fetches_python_if_none_fits(machine: Machine) -> None:
    machine.has("python3", OTHER)
    machine.has("uv", UV)
    found = machine.choose()
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"{machine.project}/.uv/python/3/bin/python3.12\n"
    assert found.stderr.count("\n") == 1
    assert "fetching CPython 3.12 (a build from GitHub) by uv (from PyPI) into .uv" in found.stderr
    assert machine.calls.read_text().splitlines() == [
        "python install --no-progress 3.12 BIN=0",
        "python find --system 3.12 BIN=0",
    ]
    again = machine.choose()
    assert (again.stdout, again.stderr) == (found.stdout, "")


def test_failed_fetch_is_one_sentence(machine: Machine) -> None:
    machine.has("python3", OTHER)
    machine.has("uv", OFFLINE)
    found = machine.choose()
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.splitlines()[1:] == [
        "error: CPython 3.12 could not be fetched (.uv/log says why);"
        " Python 3.10, 3.11 or 3.12 is needed; install one, or name one with PYTHON=python3.11"
    ]
    assert "dns error" in (machine.project / ".uv" / "log").read_text()


def test_missing_python_is_one_sentence(machine: Machine) -> None:
    found = machine.choose()
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert found.stderr.splitlines()[-1].startswith("error: Python 3.10, 3.11 or 3.12 is needed")


def test_uv_is_pinned_with_its_hashes() -> None:
    first, *hashes = (ROOT / "build" / "uv-requirements.txt").read_text().splitlines()
    assert first.startswith("uv==")
    assert hashes and all(line.strip().startswith("--hash=sha256:") for line in hashes)


@pytest.mark.slow
def test_uv_comes_from_the_package_index(machine: Machine) -> None:
    """The real uv, which then finds no CPython, as its list of downloads is empty."""
    machine.has("python3", OTHER)
    empty = machine.project / "downloads.json"
    empty.write_text("{}")
    environment = {"PATH": str(machine.bin), "UV_PYTHON_DOWNLOADS_JSON_URL": empty.as_uri()}
    script = machine.project / "build" / "python.sh"
    command = ["sh", str(script)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    if "uv could not be fetched" in found.stderr:
        pytest.skip("the package index cannot be reached")
    assert (machine.project / ".uv" / "tools" / "bin" / "uv").exists()
    assert "CPython 3.12 could not be fetched" in found.stderr


def make(*arguments: str, **environment: str) -> str:
    """The last command that make would run."""
    command = ["make", "--no-print-directory", "--dry-run", "-C", str(ROOT), *arguments]
    path = {"PATH": "/usr/bin:/bin", **environment}
    lines = subprocess.run(command, env=path, capture_output=True, text=True, check=True).stdout
    return lines.splitlines()[-1]


def test_environment_does_not_set_variables_of_make() -> None:
    names = (
        *("HOST", "HTTP_PORT", "GRPC_PORT", "METRICS_PORT", "HEALTH_PORT", "GATEWAY_PORT"),
        *("PRECISION", "SERVER", "SOURCE", "WEIGHTS", "DATA", "ARGS", "PYTHON", "VENV", "PY"),
    )
    others = dict.fromkeys(names, "x86_64-conda-linux-gnu")
    for target in (
        "serve",
        "gateway",
        "detect",
        "page",
        "eval",
        "model",
        "engine",
        "bench",
        "test",
    ):
        assert "conda" not in make(target, **others), target
    assert "--host='0.0.0.0'" in make("serve", "HOST=0.0.0.0", **others)


def test_spaces_and_quotes_in_a_variable_stay_one_word(tmp_path: Path) -> None:
    source = 'my "photos" & it\'s $HOME;`x`.jpg'
    line = make("detect", f"SOURCE={source}")
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[1:] == ["detect", source, "--server", "127.0.0.1:8001"]
