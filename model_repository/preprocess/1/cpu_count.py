"""Count the processors that this process may use: its affinity, and its container's CPU quota."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path


def available_cpus(proc: Path = Path("/proc/self")) -> int:
    """Number of processors that this process may use at the same time, at least 1.

    Of the quotas of all control groups around the process (version 1 or 2) the smallest counts. A
    fraction of a processor counts as a whole one: threads that wait for their turn cost less than
    idle time.

    Args:
        proc: the folder in which the kernel describes the process.
    """
    cpus = len(os.sched_getaffinity(0))
    return max(1, min([cpus, *(math.ceil(quota) for quota in _quotas(proc))]))


def _quotas(proc: Path) -> Iterator[float]:
    """Yield the quotas that are set, in processors."""
    for mount_point, below in _hierarchies(proc):
        for depth in range(len(below) + 1):
            group = mount_point.joinpath(*below[:depth])
            # The root group has no such files, except that of a container's namespace.
            for read in (_read_version_2, _read_version_1):
                try:
                    quota, period = read(group)
                    if quota > 0 and period > 0:
                        yield quota / period
                except (OSError, ValueError):
                    continue


def _read_version_2(group: Path) -> tuple[int, int]:
    """Quota and period in microseconds. Without a limit the quota is `max`."""
    quota, period = (group / "cpu.max").read_text().split()
    return int(quota), int(period)


def _read_version_1(group: Path) -> tuple[int, int]:
    """Quota and period in microseconds. Without a limit the quota is -1."""
    return (
        int((group / "cpu.cfs_quota_us").read_text()),
        int((group / "cpu.cfs_period_us").read_text()),
    )


def _hierarchies(proc: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the mount point of each hierarchy that may hold quotas, and our group's path in it."""
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
        root, mount_point = (re.sub(r"\\([0-7]{3})", _unescape, text) for text in fields[3:5])
        group = groups.get(controller)
        if group is not None:
            yield Path(mount_point), _path_below(group, root)


def _groups(text: str) -> dict[str, str]:
    """The group by controller; that of version 2 has the key ""."""
    groups = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _path_below(group: str, root: str) -> tuple[str, ...]:
    """The folders from the mounted group down to ours; none if ours is not below it."""
    try:
        below = Path(group).relative_to(root).parts
    except ValueError:
        return ()
    return () if ".." in below else below


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))
