"""Filtering of Triton's output; neither the output nor its reader can harm the launcher."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import IO

import pytest

from yolov5_server._console import Console
from yolov5_server._log import LogPump
from yolov5_server._repeats import RepeatLimiter

FAILED = (
    "E1122 17:36:22.6 8834 model_lifecycle.cc:642] \"failed to load 'yolov5' version 1: Internal: "
    'ConfigError: the dims differ\\n\\nAt:\\n  /x/config_check.py(96): _check\\n"\n'
)
NOISE = 'W1122 17:19:07.7 5315 pinned_memory_manager.cc:273] "Unable to ..., pinned memory pool"\n'
WARNING = 'W1122 17:19:07.7 5315 x.cc:1] "disk full"\n'
# As Triton 26.08 wrote it when it unloaded a model, with Python 3.11.
UNLOADED = (
    "Fatal Python error: PyThreadState_Get: the function must be called with the GIL held, but the"
    " GIL is released (the current Python thread state is NULL)\n"
    "Python runtime state: finalizing (tstate=0x00007f7d85176ef8)\n"
)


class Pumped:
    """A log pump that reads the other end of a pipe."""

    def __init__(self, *, verbose: bool = False) -> None:
        reader, writer = os.pipe()
        self.writer = os.fdopen(writer, "wb", buffering=0)
        self.lines: list[str] = []
        self.pump = LogPump(os.fdopen(reader, "rb"), verbose=verbose, log=self.lines.append)

    def end(self) -> list[str]:
        self.writer.close()
        self.pump.close()
        return self.lines


def pumped(text: str, *, verbose: bool = False) -> Pumped:
    one = Pumped(verbose=verbose)
    one.writer.write(text.encode())
    one.writer.close()
    return one


def test_failed_start_is_one_sentence() -> None:
    one = pumped(NOISE + WARNING + FAILED)
    assert one.pump.failure(["yolov5"]) == "it could not load yolov5: the dims differ"
    assert one.lines == []


def test_unknown_failure_shows_all_held_lines() -> None:
    one = pumped(NOISE + WARNING)
    assert one.pump.failure(["yolov5"]) == "its own messages above say why"
    assert one.lines == [WARNING.rstrip()]


def test_noise_is_dropped_and_warnings_are_shown() -> None:
    one = pumped(NOISE + WARNING)
    one.pump.close()
    one.pump.release()
    assert one.lines == [WARNING.rstrip()]
    assert pumped(NOISE, verbose=True).end() == [NOISE.rstrip()]


def test_signal_of_a_stop_is_not_shown_and_that_of_a_crash_is() -> None:
    one = pumped("Signal (15) received.\nSignal (2) received.\nSignal (11) received.\n")
    one.pump.close()
    one.pump.release()
    assert one.lines == ["Signal (11) received."]


def mixed(text: str) -> str:
    """The text of two processes that write it at the same time, in the pieces of Python."""
    ends = (
        r"(?<=error: )|(?=: the)|(?<=Get: )|(?=\n)|(?<=\n)|(?<=state: )|(?<=0x)|(?<=[0-9a-f]{16})"
    )
    return "".join(piece * 2 for piece in re.split(ends, text))


@pytest.mark.parametrize(
    "text",
    [
        UNLOADED * 2,
        WARNING.join(UNLOADED.splitlines(keepends=True)),
        mixed(UNLOADED),
        # Python 3.12 words it so.
        UNLOADED.replace(
            "held, but", "held, after Python initialization and before Python finalization, but"
        ),
    ],
    ids=["twice", "with another line between", "mixed", "newer"],
)
def test_unloaded_model_is_not_shown_as_a_fault(text: str) -> None:
    one = pumped(text + WARNING)
    one.pump.close()
    one.pump.release()
    assert {*one.lines} == {WARNING.rstrip()}
    assert pumped(text, verbose=True).end()[0] == text.splitlines()[0]


@pytest.mark.parametrize("before", ["", UNLOADED.splitlines(keepends=True)[0], UNLOADED])
def test_fatal_error_of_a_working_interpreter_is_shown(before: str) -> None:
    """One without its lock, as real Python reports it."""
    crash = "import ctypes; ctypes.CDLL(None).PyThreadState_Get()"
    died = subprocess.run([sys.executable, "-c", crash], capture_output=True, text=True)
    assert died.returncode == -signal.SIGABRT
    first, second = died.stderr.splitlines()[:2]
    assert first.startswith("Fatal Python error: PyThreadState_Get: ")
    assert second == "Python runtime state: initialized"
    one = pumped(before + died.stderr)
    one.pump.release()
    shown = one.end()
    assert not any("finalizing" in line for line in shown)
    assert second in shown
    assert first in shown


def test_half_a_fatal_error_is_shown_after_a_moment() -> None:
    one = Pumped()
    one.pump.release()
    one.writer.write(UNLOADED.splitlines(keepends=True)[0].encode())
    deadline = time.monotonic() + 10
    while not one.lines and time.monotonic() < deadline:
        time.sleep(0.05)
    assert one.lines == [UNLOADED.splitlines()[0]]
    assert one.end() == one.lines


def test_other_fault_of_an_ending_interpreter_is_shown() -> None:
    other = UNLOADED.replace("PyThreadState_Get", "_enter_buffered_busy")
    one = pumped(other)
    one.pump.close()
    one.pump.release()
    assert one.lines == other.splitlines()


@pytest.mark.parametrize("verbose", [False, True])
def test_flood_of_one_line_is_shown_once_and_counted(verbose: bool) -> None:
    one = Pumped(verbose=verbose)
    one.pump.release()
    line = b"[warn] Error from accept() call: Too many open files\n"
    for _ in range(100):
        one.writer.write(line * 1000)
    shown = one.end()
    assert shown[0] == line.decode().rstrip()
    assert len(shown) <= 3
    counts = [
        int(text.rpartition("(repeated ")[2].split()[0].replace(",", "")) for text in shown[1:]
    ]
    assert 1 + sum(counts) == 100_000


def test_text_of_callers_does_not_make_new_kinds_of_lines() -> None:
    one = Pumped()
    one.pump.release()
    for number in range(5000):
        text = f'E1122 17:19:07.{number} 53 pb_stub.cc:736] "no model {number:x}-{"z" * number}"\n'
        one.writer.write(text.encode())
    assert len(one.end()) <= 4


def test_lines_held_before_readiness_are_bounded() -> None:
    one = Pumped()
    for number in range(30_000):
        word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        one.writer.write(f"{word} {'x' * 100}\n".encode())
    one.writer.close()
    one.pump._thread.join(10)
    one.pump.release()
    assert len(one.lines) <= 500


def test_endless_line_takes_little_memory() -> None:
    one = Pumped()
    one.pump.release()
    for _ in range(64):
        one.writer.write(b"\x1b[2J" * (1 << 18))  # 64 MiB
    assert sum(map(len, one.end())) < 100_000
    assert "\x1b" not in "".join(one.lines)


def test_repeats_are_shown_less_and_less_often() -> None:
    repeats = RepeatLimiter()
    shown = []
    for tenth in range(600):
        now = tenth / 10
        shown += [(now, line) for line in repeats.due(now)]
        if line := repeats.take("kind", f"line {tenth}", now):
            shown.append((now, line))
    assert shown[:2] == [(0.0, "line 0"), (1.0, "line 9 (repeated 9 times)")]
    pauses = [later - earlier for (earlier, _), (later, _) in pairwise(shown)]
    assert pauses == sorted(pauses)
    assert max(pauses) == pytest.approx(10.0)
    # After a quiet time the next line is shown at once.
    assert repeats.due(100.0) and not repeats.due(111.0)
    assert repeats.take("kind", "again", 112.0) == "again"


def test_many_kinds_take_bounded_memory() -> None:
    repeats = RepeatLimiter()
    shown = [repeats.take(f"kind {number}", "line", 0.5) for number in range(10_000)]
    assert sum(line is not None for line in shown) <= 257


def filled_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


def test_blocked_reader_of_the_log_does_not_block_the_launcher() -> None:
    reader, writer = filled_pipe()
    console = Console(capacity=10_000)
    started = time.monotonic()
    for number in range(10_000):
        console.log(f"line {number}", descriptor=writer)
    assert not console.flush(0.1)
    assert time.monotonic() - started < 2

    seen = bytearray()

    def read() -> None:
        while data := os.read(reader, 65536):
            seen.extend(data)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert console.flush(5)
    console.log("the next one", descriptor=writer)
    assert console.flush(5)
    os.close(writer)
    thread.join(5)
    lines = seen.lstrip(b"x").decode().splitlines()
    kept = [line for line in lines if line.startswith("line ")]
    assert lines[-1] == "the next one"
    assert lines[-2].startswith(f"({10_000 - len(kept):,} lines of the log were lost")


def test_lines_lost_on_a_full_disk_are_counted_later(tmp_path: Path) -> None:
    console = Console()
    with Path("/dev/full").open("wb") as full, (tmp_path / "log").open("wb") as file:
        for _ in range(3):
            console.log("lost", descriptor=full.fileno())
        assert console.flush(5)
        console.log("written", descriptor=file.fileno())
        assert console.flush(5)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first.startswith("(3 lines of the log were lost")
    assert second == "written"


def closed_pipe() -> IO[bytes]:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "wb")


def launcher(**streams: object) -> subprocess.CompletedProcess[bytes]:
    """Run a launcher that ends with an error at once."""
    command = [sys.executable, "-m", "yolov5_server", "--host=nowhere"]
    return subprocess.run(command, timeout=60, **streams)  # type: ignore[call-overload, no-any-return]


def test_unreadable_error_keeps_its_exit_status() -> None:
    with closed_pipe() as pipe, Path("/dev/full").open("wb") as full:
        assert launcher(stdout=pipe, stderr=pipe).returncode == 1
        assert launcher(stdout=full, stderr=full).returncode == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_closed_standard_stream_is_no_error(closed: str) -> None:
    command = f'"$0" -m yolov5_server --host=nowhere {closed}'
    found = subprocess.run(
        ["sh", "-c", command, sys.executable], stderr=subprocess.PIPE, timeout=60, text=True
    )
    assert found.returncode == 1
    assert found.stderr.startswith("error: HOST is 'nowhere'")
    assert len(found.stderr.splitlines()) == 1
