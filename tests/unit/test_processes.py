from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import StartModel

from yolov5_server._processes import cpu_seconds, model_processes, starting_processes


def test_cpu_time_includes_the_model_processes(start_model: StartModel) -> None:
    before = cpu_seconds(os.getpid())
    start_model("yolov5")
    sum(range(3_000_000))
    assert cpu_seconds(os.getpid()) > before


def test_living_processes_of_this_server_are_found_with_their_models(
    start_model: StartModel,
) -> None:
    process = start_model("yolov5.2")
    (one,) = model_processes(os.getpid())
    assert (one.process.pid, one.model, one.step) == (process.pid, "yolov5.2", "yolov5")
    assert starting_processes(os.getpid()) == {one.process: "yolov5.2"}
    assert model_processes(process.pid) == []
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, but still listed
    assert model_processes(os.getpid()) == []
    assert starting_processes(os.getpid()) == {}


@pytest.mark.parametrize("arguments, starting", [(["models/yolov5/1/model.py"], 1), ([], 0)])
def test_process_in_its_shell_is_starting_if_it_has_arguments(
    arguments: list[str], starting: int
) -> None:
    shell = ["/bin/sh", "-c", "read line", "sh", "triton_python_backend_stub", *arguments]
    with subprocess.Popen(shell, stdin=subprocess.PIPE) as process:
        assert list(starting_processes(os.getpid()).values()) == [None] * starting
        assert model_processes(os.getpid()) == []
        process.kill()


# Plays Triton with one model process, as an ordinary user where /proc hides the others' processes.
HIDDEN = """
import os, subprocess, sys, psutil
from yolov5_server._processes import model_processes
stub = ["triton_python_backend_stub", sys.argv[1]]
with subprocess.Popen(stub, executable=sys.executable) as process:
    while not (found := model_processes(os.getpid())):
        assert process.poll() is None
    process.kill()
try:
    hidden = psutil.Process(1).ppid() is None
except psutil.AccessDenied:
    hidden = True
print([one.model for one in found], hidden)
"""


def test_processes_are_found_where_those_of_other_users_are_hidden(tmp_path: Path) -> None:
    if os.getuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"):
        pytest.skip("needs root, setpriv and unshare, to mount /proc and become another user")
    script = tmp_path / "yolov5" / "1" / "model.py"
    script.parent.mkdir(parents=True)
    script.write_text("import time\ntime.sleep(60)")
    hide = """mount -t proc -o hidepid=1 proc /proc && { "$@"; exit; }"""
    # The user may read everything, because Python may be in root's home.
    capabilities = "--inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search"
    user = f"setpriv --reuid=61000 --regid=61000 --clear-groups --no-new-privs {capabilities}"
    run = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", hide, "sh"),
            *(*user.split(), sys.executable, "-c", HIDDEN, str(script)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "unshare failed" in run.stderr or "mount" in run.stderr:
        pytest.skip(f"/proc cannot be mounted here: {run.stderr.strip()}")
    assert run.stdout == "['yolov5'] True\n", run.stderr
