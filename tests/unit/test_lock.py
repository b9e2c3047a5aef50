"""Installed packages are the resolved ones, to the byte, and have no known vulnerabilities."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import cv2
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from support import ROOT

LOCK = ROOT / "requirements.lock"
# Advisories that do not affect the project: id -> reason, including the package's name.
KNOWN = ROOT / "tests" / "data" / "advisories.json"
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked() -> list[tuple[Requirement, list[str]]]:
    """The requirements with their hashes; continued lines are joined, comments removed."""
    text = LOCK.read_text().replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *options = re.split(r"\s+(?=--)", line.strip())
            found.append((Requirement(requirement), options))
    return found


def pinned(requirement: Requirement) -> str | None:
    """The only version that a requirement allows, None if it allows several."""
    (only, *others) = requirement.specifier or [None]
    fixed = only is not None and not others and only.operator == "==" and "*" not in only.version
    return only.version if only is not None and fixed else None


def test_every_requirement_is_pinned_with_hashes() -> None:
    requirements = locked()
    assert len(requirements) > 50
    for requirement, options in requirements:
        assert pinned(requirement), requirement
        assert requirement.url is None, requirement
        assert options, requirement
        assert all(_HASH.fullmatch(option) for option in options), requirement


def direct() -> list[Requirement]:
    """The requirements in pyproject.toml, read by patterns, as Python 3.10 cannot read TOML."""
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:dependencies|dev) = \[$(.*?)^\]$", text, re.MULTILINE | re.DOTALL)
    assert len(lists) == 2
    return [Requirement(item) for one in lists for item in re.findall(r'^ +"(.+?)",', one, re.M)]


def test_lock_matches_pyproject() -> None:
    versions: dict[str, set[str | None]] = {}
    for requirement, _ in locked():
        name = canonicalize_name(requirement.name)
        versions.setdefault(name, set()).add(pinned(requirement))
    requirements = direct()
    assert len(requirements) > 20
    for requirement in requirements:
        assert pinned(requirement) in versions[canonicalize_name(requirement.name)], requirement


# Libraries in the wheels, and known vulnerabilities of them and of packages that handle input.
LIBRARIES: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "libraries.json").read_text())
_WHEEL_HASH = re.compile(r"[-.][0-9a-f]{8}(?=[.-])")


def libraries_of_opencv() -> dict[str, str]:
    """Names and versions of the libraries that OpenCV reports it was built with."""
    found = {"OpenCV": cv2.__version__}
    for name in LIBRARIES["opencv"].keys() - {"OpenCV"}:
        line = re.search(rf"^ +{name}: +(.*)$", cv2.getBuildInformation(), re.MULTILINE)
        if line:
            (version,) = re.findall(r"0x\d+|\d+\.\d+[\d.]*", line[1])[:1] or [line[1]]
            found[name] = version
    return found


def carried(wheel: str) -> list[str]:
    """The shared libraries beside a wheel's own modules, without their hashes."""
    files = importlib.metadata.distribution(wheel).files or []
    return sorted(
        _WHEEL_HASH.sub("", file.name)
        for file in files
        if ".so" in file.name and str(file.parent).endswith(".libs")
    )


def holes(versions: dict[str, str]) -> list[dict[str, str]]:
    """Vulnerabilities of these libraries that are not mitigated."""
    return [
        hole
        for hole in LIBRARIES["holes"]
        if hole["library"] in versions
        and "shield" not in hole
        and SpecifierSet(hole["affected"]).contains(versions[hole["library"]])
    ]


def test_list_of_libraries_matches_the_wheels() -> None:
    assert libraries_of_opencv() == LIBRARIES["opencv"]
    for name, wheel in LIBRARIES["wheels"].items():
        assert importlib.metadata.version(name) == wheel["version"], name
        assert carried(name) == wheel["libraries"], name


def test_no_library_in_a_wheel_has_an_unmitigated_vulnerability() -> None:
    names = {hole["library"] for hole in LIBRARIES["holes"]} - LIBRARIES["opencv"].keys()
    packages = {name: importlib.metadata.version(name) for name in names}
    versions = {name: v for name, v in libraries_of_opencv().items() if "0x" not in v}
    assert holes({**packages, **versions}) == []


def test_vulnerabilities_of_the_first_release_would_be_found() -> None:
    found = {hole["id"] for hole in holes({"OpenCV": "4.11.0", "PNG": "1.6.44", "TIFF": "4.6.0"})}
    assert {"CVE-2025-53644", "opencv/opencv#27744", "CVE-2025-9900"} <= found
    assert holes({"OpenCV": "4.13.0", "PNG": "1.6.56", "TIFF": "4.7.1"}) == []


OSV = "https://api.osv.dev/v1/query"
# The projects in OSV, which lists C libraries by repository and tag.
OSV_PROJECTS = {
    "OpenCV": ("https://github.com/opencv/opencv", ""),
    "PNG": ("https://github.com/pnggroup/libpng", "v"),
    "JPEG": ("https://github.com/libjpeg-turbo/libjpeg-turbo", ""),
    "TIFF": ("https://gitlab.com/libtiff/libtiff", "v"),
}


@pytest.mark.slow
def test_list_has_all_advisories_for_the_libraries_in_opencv() -> None:
    known = " ".join(hole["id"] for hole in LIBRARIES["holes"])
    missing = []
    for library, (project, prefix) in OSV_PROJECTS.items():
        version = prefix + LIBRARIES["opencv"][library]
        query = {"version": version, "package": {"name": project, "ecosystem": "GIT"}}
        request = urllib.request.Request(OSV, json.dumps(query).encode())
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                advisories = json.load(answer).get("vulns", [])
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            pytest.skip(f"no advisories to be had here: {error}")
        for advisory in advisories:
            names = {advisory["id"], *advisory.get("aliases", ())}
            if not any(name in known for name in names):
                missing.append(f"{library} {version}: {sorted(names)}")
    assert missing == []


@pytest.fixture(scope="module")
def pip_audit(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command, in an environment of its own; skips if it cannot be installed."""
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
def test_every_advisory_for_a_locked_package_is_accounted_for(pip_audit: list[str]) -> None:
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
