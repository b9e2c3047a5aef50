from __future__ import annotations

import os
from pathlib import Path

import pytest
from cores import cores_for_instance
from cpu_count import available_cpus

AFFINITY = 16


class Machine:
    """The kernel's files about control groups, as a process sees them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        self.proc.mkdir()
        (self.proc / "cgroup").touch()
        (self.proc / "mountinfo").write_text("22 1 0:20 / /proc rw - proc proc rw\n")

    def mount(self, version: int, *, root: str = "/", name: str = "cgroup") -> Path:
        point = self.folder / name
        point.mkdir()
        escaped = str(point).replace(" ", "\\040")
        ending = "cgroup2 none rw" if version == 2 else "cgroup none rw,cpu,cpuacct"
        with (self.proc / "mountinfo").open("a") as file:
            file.write(f"30 24 0:26 {root} {escaped} rw,nosuid shared:9 - {ending}\n")
        return point

    def join(self, line: str) -> None:
        with (self.proc / "cgroup").open("a") as file:
            file.write(f"{line}\n")

    def cpus(self) -> int:
        return available_cpus(self.proc)


def limit(group: Path, version: int, quota: str, period: str = "100000") -> None:
    group.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (group / "cpu.max").write_text(f"{quota} {period}\n")
    else:
        (group / "cpu.cfs_quota_us").write_text(f"{'-1' if quota == 'max' else quota}\n")
        (group / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(os, "sched_getaffinity", {0: {*range(AFFINITY)}}.__getitem__)
    return Machine(tmp_path)


VERSIONS = pytest.mark.parametrize("version, prefix", [(1, "4:cpu,cpuacct:"), (2, "0::")])


@VERSIONS
@pytest.mark.parametrize(
    "quota, cpus",
    [
        ("max", AFFINITY),
        ("400000", 4),
        ("150000", 2),  # a fraction of a processor counts as a whole one
        ("1000", 1),
        ("9900000", AFFINITY),
        ("0", AFFINITY),
        ("no number", AFFINITY),
        ("", AFFINITY),
    ],
)
def test_quota_of_a_container_is_obeyed(
    machine: Machine, version: int, prefix: str, quota: str, cpus: int
) -> None:
    """Its namespace shows its own group as the root."""
    limit(machine.mount(version), version, quota)
    machine.join(f"{prefix}/")
    assert machine.cpus() == cpus


@VERSIONS
def test_smallest_quota_of_nested_groups_counts(
    machine: Machine, version: int, prefix: str
) -> None:
    point = machine.mount(version)
    limit(point / "pods", version, "300000")
    limit(point / "pods" / "one", version, "max")
    limit(point / "pods" / "one" / "server", version, "1000000")
    limit(point / "pods" / "other", version, "100000")
    machine.join(f"{prefix}/pods/one/server")
    assert machine.cpus() == 3
    limit(point / "pods" / "one", version, "100000", "50000")
    assert machine.cpus() == 2


@VERSIONS
def test_container_that_sees_the_path_of_the_host_finds_its_own_group(
    machine: Machine, version: int, prefix: str
) -> None:
    limit(machine.mount(version, root="/docker/abc"), version, "200000")
    machine.join(f"{prefix}/docker/abc")
    assert machine.cpus() == 2


@VERSIONS
@pytest.mark.parametrize("path", ["/../other", "/system.slice/elsewhere"])
def test_group_out_of_sight_leaves_the_quota_of_what_is_mounted(
    machine: Machine, version: int, prefix: str, path: str
) -> None:
    limit(machine.mount(version), version, "500000")
    machine.join(f"{prefix}{path}")
    assert machine.cpus() == 5


def test_quota_is_read_if_both_versions_are_mounted(machine: Machine) -> None:
    limit(machine.mount(1, name="a cpu"), 1, "700000")
    machine.mount(2, name="unified")
    for line in ("4:cpu,cpuacct:/", "3:memory:/x", "1:name=systemd:/", "0::/"):
        machine.join(line)
    assert machine.cpus() == 7


@pytest.mark.parametrize(
    "line",
    [
        "",
        "30 24 0:26 / - cgroup2 none rw",
        "30 24 0:26 / /sys rw - cgroup2 none",
        "30 24 0:26 / /sys rw - cgroup none",
        "30 24 0:26 / /sys rw - cgroup",
        "30 24 0:26 / /sys rw - ",
        "30 24 0:26 / /sys rw - cgroup none rw,memory",
    ],
)
def test_mount_that_says_nothing_about_processors_is_passed_over(
    machine: Machine, line: str
) -> None:
    with (machine.proc / "mountinfo").open("a") as file:
        file.write(f"{line}\n")
    limit(machine.mount(2), 2, "600000")
    machine.join("0::/")
    assert machine.cpus() == 6


def test_mount_without_options_counts(machine: Machine, tmp_path: Path) -> None:
    with (machine.proc / "mountinfo").open("a") as file:
        file.write(f"30 24 0:26 / {tmp_path} - cgroup2 none rw\n")
    limit(tmp_path, 2, "600000")
    machine.join("0::/")
    assert machine.cpus() == 6


@pytest.mark.parametrize("quota, period", [("1", "0"), ("-1", "-1"), ("1", "1"), ("2", "1")])
def test_quota_and_period_are_positive(machine: Machine, quota: str, period: str) -> None:
    limit(machine.mount(2), 2, quota, period)
    machine.join("0::/")
    assert machine.cpus() == {"0": AFFINITY, "-1": AFFINITY}.get(period, int(quota))


def test_without_control_groups_the_affinity_counts(machine: Machine, tmp_path: Path) -> None:
    assert machine.cpus() == AFFINITY
    assert available_cpus(tmp_path / "nothing") == AFFINITY


def test_instances_share_the_cores_of_this_machine() -> None:
    cpus = available_cpus()
    assert 1 <= cpus <= len(os.sched_getaffinity(0))
    assert cores_for_instance({"instance_group": [{"count": 1}]}) == cpus
    assert cores_for_instance({"instance_group": [{"count": 1000}]}) == 1
