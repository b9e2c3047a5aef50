from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import completion
import pytest
from completion import CompletionListener, CompletionSender, _name

Ends = tuple[CompletionListener, "Queue[int]"]


@pytest.fixture
def ends() -> Iterator[Ends]:
    completed: Queue[int] = Queue()
    listener = CompletionListener(completed.put)
    yield listener, completed
    listener.close()


def test_admission_id_reaches_the_listener_whose_key_it_carries(ends: Ends) -> None:
    listener, completed = ends
    CompletionSender().send(listener.as_row(1 << 40))
    assert completed.get(timeout=10) == 1 << 40


def test_listener_gets_only_messages_with_its_key(ends: Ends) -> None:
    listener, completed = ends
    others: Queue[int] = Queue()
    other = CompletionListener(others.put)
    CompletionSender().send(other.as_row(7))
    assert others.get(timeout=10) == 7
    other.close()
    CompletionSender().send(other.as_row(8))  # no listener: never fails
    CompletionSender().send(listener.as_row(9))
    assert completed.get(timeout=10) == 9


def test_each_listener_has_a_new_key(ends: Ends) -> None:
    other = CompletionListener(lambda admission_id: None)
    other.close()
    assert other.key != ends[0].key


@pytest.mark.parametrize(
    "forged", [b"", b"7", struct.pack("<qq", 0, 7), struct.pack("<qq", 1, 7) + b"x", b"x" * 32]
)
def test_message_without_the_key_is_ignored(ends: Ends, forged: bytes) -> None:
    listener, completed = ends
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(forged, _name(listener.key))
    CompletionSender().send(listener.as_row(9))
    assert completed.get(timeout=10) == 9
    assert completed.empty()


def test_sender_does_not_wait_for_a_listener_that_is_busy() -> None:
    go = threading.Event()

    def busy(admission_id: int) -> None:
        assert go.wait(60)

    listener = CompletionListener(busy)

    def send() -> None:
        sender = CompletionSender()
        for number in range(20_000):
            sender.send(listener.as_row(number))

    work = threading.Thread(target=send, daemon=True)
    work.start()
    work.join(30)
    assert not work.is_alive()
    go.set()
    listener.close()


def test_sender_can_address_only_sockets_of_listeners() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.bind("")  # the kernel chooses an abstract name of five hexadecimal digits
        stranger.setblocking(False)
        address = stranger.getsockname()
        assert address[0] == 0
        for key in (0, 1, int(address[1:], 16)):
            CompletionSender().send((key, 7))
        with pytest.raises(BlockingIOError):
            stranger.recv(32)


def test_process_ends_though_the_listener_is_not_closed() -> None:
    script = "import completion; completion.CompletionListener(print)"
    folder = Path(completion.__file__).parent
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, timeout=60)
