"""Ends what a killed launcher leaves behind, whatever state it is in."""

from __future__ import annotations

import subprocess

# Its input ends with the launcher, which alone holds the other end. Triton is told of that end by
# the kernel, with SIGTERM, and has time to answer what it has; but it never ends while it waits
# for a model's process, and neither does a model's process that is stopped or computes for ever.
_SCRIPT = """
read -r line && exit
seconds=0
while [ "$seconds" -lt "$2" ] && kill -s 0 -- "-$1"; do sleep 1; seconds=$((seconds + 1)); done
kill -s KILL -- "-$1"
"""


class GroupGuard:
    """A small shell that outlives this process and then kills a group of processes.

    Args:
        group: number of the group; it has to exist until `close`.
        seconds: that it has to end by itself, after the end of this process.
    """

    def __init__(self, group: int, seconds: int) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "yolov5-guard", str(group), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what is sent to the launcher's group does not reach it
        )

    def close(self) -> None:
        """Call it off."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
