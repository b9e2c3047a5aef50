"""What is installed is what was resolved, to the byte, and nothing in it is known to be unsafe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import ROOT

LOCK = ROOT / "requirements.lock"
# Advisories that do not touch the project: id -> why, with the package's name in it.
KNOWN = ROOT / "tests" / "data" / "advisories.json"
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked() -> list[tuple[Requirement, list[str]]]:
    """The requirements with their hashes; lines that go on are joined, comments left out."""
    text = LOCK.read_text().replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *options = re.split(r"\s+(?=--)", line.strip())
            found.append((Requirement(requirement), options))
    return found


def pinned(requirement: Requirement) -> str | None:
    """The one version that it allows."""
    (only, *others) = requirement.specifier or [None]
    fixed = only is not None and not others and only.operator == "==" and "*" not in only.version
    return only.version if only is not None and fixed else None


def test_everything_is_pinned_and_has_its_hashes() -> None:
    requirements = locked()
    assert len(requirements) > 50
    for requirement, options in requirements:
        assert pinned(requirement), requirement
        assert requirement.url is None, requirement
        assert options, requirement
        assert all(_HASH.fullmatch(option) for option in options), requirement


def direct() -> list[Requirement]:
    """What pyproject.toml names; Python 3.10 cannot read TOML, but its lists are plain enough."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|dev) = \[$(.*?)^\]$", text, re.MULTILINE | re.DOTALL)
    assert len(lists) == 2
    return [Requirement(item) for one in lists for item in re.findall(r'^ +"(.+?)",', one, re.M)]


def test_the_lock_is_of_what_pyproject_names() -> None:
    versions: dict[str, set[str | None]] = {}
    for requirement, _ in locked():
        name = canonicalize_name(requirement.name)
        versions.setdefault(name, set()).add(pinned(requirement))
    requirements = direct()
    assert len(requirements) > 20
    for requirement in requirements:
        assert pinned(requirement) in versions[canonicalize_name(requirement.name)], requirement


@pytest.fixture(scope="module")
def pip_audit(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command, in an environment of its own; where it cannot be had, skips."""
    (pin,) = re.findall(r'^audit = \["(.+)"\]$', (ROOT / "pyproject.toml").read_text(), re.M)
    folder = tmp_path_factory.mktemp("audit")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", pin]
    run = subprocess.run(install, capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"{pin} cannot be installed here: {last_line(run.stderr)}")
    return [python, "-m", "pip_audit"]


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_locked_package_has_an_advisory_that_is_not_accounted_for(pip_audit: list[str]) -> None:
    flags = "--require-hashes --disable-pip --progress-spinner off --format json --requirement"
    run = subprocess.run(
        [*pip_audit, *flags.split(), str(LOCK)], capture_output=True, text=True, timeout=600
    )
    try:
        packages: list[Any] = json.loads(run.stdout)["dependencies"]
    except ValueError:
        pytest.skip(f"pip-audit did not reach its advisories: {last_line(run.stderr)}")
    missed = [one["name"] for one in packages if "skip_reason" in one]
    if len(missed) == len(packages):
        pytest.skip(f"no advisories to be had here: {packages[0]['skip_reason']}")
    assert missed == []
    found = {
        entry["id"]: f"{one['name']} {one['version']}" for one in packages for entry in one["vulns"]
    }
    assert found.keys() == json.loads(KNOWN.read_text()).keys(), found
