"""Kill what a killed launcher leaves behind, whatever state it is in."""

from __future__ import annotations

import subprocess

# The shell's input ends with the launcher, which alone holds the other end. The kernel then sends
# Triton SIGTERM, and Triton has time to answer its requests. But Triton never ends while it waits
# for a model's process, and a model's process that is stopped or computes for ever never ends.
_SCRIPT = """
read -r line && exit
seconds=0
while [ "$seconds" -lt "$2" ] && kill -s 0 -- "-$1"; do sleep 1; seconds=$((seconds + 1)); done
kill -s KILL -- "-$1"
"""


class GroupGuard:
    """A small shell that outlives this process and then kills a group of processes.

    Args:
        group: number of the process group, which has to exist until `close`.
        seconds: for the group to end by itself, once this process has ended.
    """

    def __init__(self, group: int, seconds: int) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "yolov5-guard", str(group), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of signals to the launcher's group
        )

    def close(self) -> None:
        """End the guard, and leave the group alone."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
