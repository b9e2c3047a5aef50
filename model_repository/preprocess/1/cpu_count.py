"""How many processors this process may use: its affinity, and the CPU quota of its container."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path


def available_cpus(proc: Path = Path("/proc/self")) -> int:
    """Processors that this process may use at the same time, at least 1.

    The smallest quota counts of the control groups around the process (version 1 or 2). A part of a
    processor counts as one: threads that wait for their turn cost less than an idle rest.

    Args:
        proc: the folder in which the kernel describes the process.
    """
    cpus = len(os.sched_getaffinity(0))
    return max(1, min([cpus, *(math.ceil(quota) for quota in _quotas(proc))]))


def _quotas(proc: Path) -> Iterator[float]:
    """In processors, those that are set."""
    for mount_point, below in _hierarchies(proc):
        for depth in range(len(below) + 1):
            group = mount_point.joinpath(*below[:depth])
            # The group of a container's namespace has files, the one above all has none.
            for read in (_read_version_2, _read_version_1):
                try:
                    quota, period = read(group)
                    if quota > 0 and period > 0:
                        yield quota / period
                except (OSError, ValueError):
                    continue


def _read_version_2(group: Path) -> tuple[int, int]:
    """Microseconds of processor time, and the period that they are for. Without a limit: `max`."""
    quota, period = (group / "cpu.max").read_text().split()
    return int(quota), int(period)


def _read_version_1(group: Path) -> tuple[int, int]:
    """The same; without a limit, the first is -1."""
    return (
        int((group / "cpu.cfs_quota_us").read_text()),
        int((group / "cpu.cfs_period_us").read_text()),
    )


def _hierarchies(proc: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Where each hierarchy that may hold quotas is mounted, and the path of our group below it."""
    try:
        groups = _groups((proc / "cgroup").read_text("utf-8", "surrogateescape"))
        mounts = (proc / "mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind[0])
        if controller is None or (controller and controller not in kind[2].split(",")):
            continue
        root, mount_point = (re.sub(r"\\([0-7]{3})", _unescaped, text) for text in fields[3:5])
        group = groups.get(controller)
        if group is not None:
            yield Path(mount_point), _below(group, root)


def _groups(text: str) -> dict[str, str]:
    """The group of each controller, and under "" that of version 2."""
    groups = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _below(group: str, root: str) -> tuple[str, ...]:
    """The folders from the mounted group to ours; none where ours is not below it."""
    try:
        below = Path(group).relative_to(root).parts
    except ValueError:
        return ()
    return () if ".." in below else below


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))
