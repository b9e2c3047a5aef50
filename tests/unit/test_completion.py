from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from queue import Queue

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


def test_a_listener_does_not_hear_what_is_meant_for_another(ends: Ends) -> None:
    listener, completed = ends
    others: Queue[int] = Queue()
    other = CompletionListener(others.put)
    CompletionSender().send(other.as_row(7))
    assert others.get(timeout=10) == 7
    other.close()
    CompletionSender().send(other.as_row(8))  # to nobody: never fails
    CompletionSender().send(listener.as_row(9))
    assert completed.get(timeout=10) == 9


def test_each_start_has_a_key_of_its_own(ends: Ends) -> None:
    other = CompletionListener(lambda admission_id: None)
    other.close()
    assert other.key != ends[0].key


@pytest.mark.parametrize(
    "forged", [b"", b"7", struct.pack("<qq", 0, 7), struct.pack("<qq", 1, 7) + b"x", b"x" * 32]
)
def test_a_message_without_the_key_is_not_believed(ends: Ends, forged: bytes) -> None:
    listener, completed = ends
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(forged, _name(listener.key))
    CompletionSender().send(listener.as_row(9))
    assert completed.get(timeout=10) == 9
    assert completed.empty()


def test_no_socket_but_a_listeners_can_be_addressed() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.bind("")  # an abstract name of five hexadecimal digits, which the kernel chooses
        stranger.setblocking(False)
        address = stranger.getsockname()
        assert address[0] == 0
        for key in (0, 1, int(address[1:], 16)):
            CompletionSender().send((key, 7))
        with pytest.raises(BlockingIOError):
            stranger.recv(32)
