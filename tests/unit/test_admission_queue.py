from __future__ import annotations

import subprocess
import sys
import threading
import time
from bisect import insort
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from time import monotonic
from typing import Any

import admission_queue
import in_flight
import pytest
from admission_queue import AdmissionQueue, QueuedRequest, QueueFullError
from in_flight import InFlight

NETWORK = "yolov5"
FIRST_TIMEOUT = 1.0  # seconds, before the first completion


class Crowd:
    """A queue, and the events of its requests in order."""

    def __init__(self, **arguments: int) -> None:
        self.queue = AdmissionQueue(**arguments)
        self.events: Queue[tuple[Any, ...]] = Queue()

    @property
    def in_flight(self) -> InFlight:
        return self.queue._queue.in_flight(NETWORK)

    def submit(
        self, name: str, images: int = 1, *, seconds: float = 60, network: str = NETWORK
    ) -> None:
        self.queue.submit(
            QueuedRequest(
                network=network,
                images=images,
                deadline=monotonic() + seconds,
                on_admit=lambda admission_id: self.events.put((name, admission_id)),
                on_expire=lambda: self.events.put((name, "expired")),
                on_evict=lambda sentence: self.events.put((name, sentence)),
            )
        )

    def next(self, timeout: float = 10) -> tuple[Any, ...]:
        return self.events.get(timeout=timeout)

    def assert_quiet(self) -> None:
        with pytest.raises(Empty):
            self.events.get(timeout=0.05)


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd(capacity=8, max_in_flight=2)
    yield crowd
    crowd.queue.close()


def test_requests_beyond_max_in_flight_wait_for_completions(crowd: Crowd) -> None:
    for name in "abcd":
        crowd.submit(name)
    assert [crowd.next(), crowd.next()] == [("a", 1), ("b", 2)]
    crowd.assert_quiet()
    crowd.queue.complete(1)
    assert crowd.next() == ("c", 3)
    crowd.assert_quiet()
    crowd.queue.complete(3)  # b was lost, or is late
    assert crowd.next() == ("d", 4)


def test_expired_request_is_refused_in_time_and_delays_no_other() -> None:
    crowd = Crowd(capacity=8, max_in_flight=1)
    crowd.in_flight.usual_interval = 5.0  # a slow network: nothing is presumed lost for 3 s
    crowd.submit("a")
    assert crowd.next() == ("a", 1)
    crowd.submit("b", seconds=0.2)
    crowd.submit("c")
    assert crowd.next(timeout=2) == ("b", "expired")
    crowd.queue.complete(1)
    assert crowd.next(timeout=2) == ("c", 2)
    crowd.queue.close()


def test_completion_admits_the_request_behind_an_expired_one() -> None:
    crowd = Crowd(capacity=8, max_in_flight=1)
    crowd.in_flight.usual_interval = 5.0
    crowd.submit("a")
    assert crowd.next() == ("a", 1)
    crowd.submit("b", seconds=0.0)
    crowd.submit("c")
    crowd.queue.complete(1)
    assert {crowd.next(timeout=2), crowd.next(timeout=2)} == {("b", "expired"), ("c", 2)}
    crowd.queue.close()


def test_admission_id_is_the_number_of_images_admitted(crowd: Crowd) -> None:
    crowd.submit("a", 5)
    assert crowd.next() == ("a", 5)
    crowd.submit("b")
    crowd.assert_quiet()
    crowd.queue.complete(5)
    assert crowd.next() == ("b", 6)


def test_release_retires_one_request_alone(crowd: Crowd) -> None:
    for name in "abcd":
        crowd.submit(name)
    assert [crowd.next(), crowd.next()] == [("a", 1), ("b", 2)]
    crowd.queue.release(2)
    assert crowd.next() == ("c", 3)
    crowd.queue.release(2)
    crowd.queue.release(9)
    crowd.assert_quiet()
    crowd.queue.complete(1)
    assert crowd.next() == ("d", 4)


def test_without_completions_requests_are_admitted_slowly(crowd: Crowd) -> None:
    crowd.submit("a", 2)
    assert crowd.next() == ("a", 2)
    started = monotonic()
    crowd.submit("b")
    assert crowd.next() == ("b", 3)
    assert monotonic() - started > FIRST_TIMEOUT / 2


@pytest.mark.parametrize("admission_id", [0, -1, 3, 1 << 40])
def test_completion_of_an_unknown_id_changes_nothing(crowd: Crowd, admission_id: int) -> None:
    crowd.submit("a", 2)
    assert crowd.next() == ("a", 2)
    crowd.submit("b")
    crowd.queue.complete(admission_id)
    crowd.assert_quiet()


def test_full_queue_refuses_a_request() -> None:
    crowd = Crowd(capacity=3, max_in_flight=1)
    crowd.submit("a")
    assert crowd.next() == ("a", 1)
    for name in "bcd":
        crowd.submit(name)
    with pytest.raises(QueueFullError, match=r"^saturated: .* of 3 images has no room for 1 more$"):
        crowd.submit("e")
    crowd.queue.complete(1)
    assert crowd.next() == ("b", 2)
    crowd.submit("e")
    crowd.queue.close()


def fill(crowd: Crowd, images: int) -> int:
    """Fill the queue with requests of this size; return how many fitted."""
    for count in range(100):
        try:
            crowd.submit(f"{images}", images)
        except QueueFullError:
            return count
    raise AssertionError("no limit")


@pytest.fixture
def busy() -> Iterator[Crowd]:
    """A queue in which every request has to wait."""
    crowd = Crowd(capacity=64, max_in_flight=1)
    crowd.in_flight.usual_interval = 60  # nothing is presumed lost for 3 s
    crowd.submit("first", 1)
    assert crowd.next() == ("first", 1)
    yield crowd
    crowd.queue.close()


def test_batches_leave_a_quarter_of_the_queue_to_single_images(
    busy: Crowd,
) -> None:
    assert fill(busy, 8) == 6
    with pytest.raises(QueueFullError, match=r"64 images has .* 8 more in requests with several$"):
        busy.submit("x", 8)
    assert fill(busy, 1) == 16


def test_queue_full_of_single_images_still_accepts_batches(
    busy: Crowd,
) -> None:
    assert fill(busy, 1) == 64
    assert fill(busy, 8) == 2


def admitted(crowd: Crowd, count: int) -> list[str]:
    names = []
    for _ in range(count):
        name, admission_id = crowd.next()
        names.append(name)
        crowd.queue.complete(admission_id)
    return names


def test_single_image_passes_earlier_batches(busy: Crowd) -> None:
    for name in "abcdef":
        busy.submit(name, 8)
    busy.submit("single")
    busy.queue.complete(1)
    assert admitted(busy, 7) == ["single", *"abcdef"]


def test_batch_is_passed_by_at_most_a_queue_of_single_images(busy: Crowd) -> None:
    """Even if callers send another one as soon as they are answered."""
    busy.submit("batch", 8)
    for _ in range(20):
        busy.submit("single")
    busy.queue.complete(1)
    names = []
    while "batch" not in names:
        names += admitted(busy, 1)
        busy.submit("single")
    assert 50 <= len(names) <= 64 + 20
    admitted(busy, 20 + 1)


@pytest.mark.parametrize("images, eighths", [(1, 0), (2, 1), (3, 2), (8, 7)])
def test_request_lets_an_eighth_of_the_queue_pass_for_each_further_image(
    busy: Crowd, images: int, eighths: int
) -> None:
    busy.submit("large", images)
    for _ in range(2):
        busy.submit("single")
    busy.queue.complete(1)
    passed_by = 0
    while (event := busy.next())[0] != "large":
        passed_by += 1
        busy.submit("single")  # another one has waited since before the last was admitted
        busy.queue.complete(event[1])
    assert passed_by == (eighths * 64 // 8 + 1 if eighths else 0)
    busy.queue.complete(event[1])
    admitted(busy, 2)


def test_requests_of_two_images_count_as_those_with_several(busy: Crowd) -> None:
    assert fill(busy, 2) == 24
    with pytest.raises(QueueFullError, match=r"64 images has no room for . more in requests with"):
        busy.submit("x", 2)
    assert fill(busy, 1) == 16
    busy.queue.complete(1)
    names = admitted(busy, 40)
    assert (names.count("1"), names.count("2")) == (16, 24)
    busy.submit("first again")
    (admission_id,) = {busy.next()[1]}
    assert fill(busy, 2) == 24  # all have been counted back
    assert fill(busy, 1) == 16
    busy.queue.complete(admission_id)


def test_thread_looks_again_when_the_next_request_expires_but_not_too_often(busy: Crowd) -> None:
    busy.submit("x", seconds=0.5)
    assert 0.01 < busy.queue._pause() <= 0.5
    assert busy.next(timeout=2) == ("x", "expired")
    busy.submit("y", seconds=60)
    assert busy.queue._pause() == 3.0  # when requests in flight may be presumed lost
    with busy.queue._changed:
        insort(
            next(iter(busy.queue._queue.waiting)).entries,
            (
                0,
                0,
                QueuedRequest(
                    network=NETWORK,
                    images=1,
                    deadline=monotonic() - 9,
                    on_admit=print,
                    on_expire=lambda: None,
                    on_evict=print,
                ),
            ),
        )
        assert busy.queue._pause() == 0.01


def test_network_counts_as_down_when_four_times_the_capacity_is_lost() -> None:
    queue = AdmissionQueue(capacity=4, max_in_flight=1)
    in_flight = queue._queue.in_flight(NETWORK)
    for images, timeout in ((15, 0.05), (1, 1.0)):
        in_flight.usual_interval = 0.001
        in_flight.admit(images)
        time.sleep(0.06)
        assert in_flight.give_up_overdue()
        assert in_flight.timeout() == timeout
    queue.close()


def test_request_is_admitted_on_the_thread_that_submits_or_completes(crowd: Crowd) -> None:
    threads = []

    def submit() -> None:
        crowd.queue.submit(
            QueuedRequest(
                network=NETWORK,
                images=2,
                deadline=monotonic() + 60,
                on_admit=lambda admission_id: threads.append(threading.current_thread()),
                on_expire=lambda: None,
                on_evict=print,
            )
        )

    crowd.in_flight.usual_interval = 60  # nothing is presumed lost for 3 s
    submit()
    submit()
    submit()
    assert len(threads) == 1
    crowd.queue.complete(2)
    assert len(threads) == 2
    crowd.queue.release(4)
    assert threads == [threading.current_thread()] * 3


def test_queue_costs_nothing_while_nothing_happens(busy: Crowd) -> None:
    for _ in range(2):
        started = time.process_time()
        time.sleep(0.4)
        assert time.process_time() - started < 0.2
        busy.submit("waits")


def test_requests_of_one_size_are_admitted_in_order_of_arrival(busy: Crowd) -> None:
    for name in "abcdef":
        busy.submit(name, 3)
    busy.queue.complete(1)
    assert admitted(busy, 6) == [*"abcdef"]


def test_empty_queue_accepts_a_request_of_any_size(crowd: Crowd) -> None:
    crowd.submit("a", 2)
    assert crowd.next() == ("a", 2)
    crowd.submit("b", 9)
    crowd.queue.complete(2)
    assert crowd.next() == ("b", 11)


def test_expired_request_is_not_admitted(crowd: Crowd) -> None:
    crowd.submit("a", 2)
    assert crowd.next() == ("a", 2)
    crowd.submit("b", seconds=60)
    crowd.submit("c", seconds=-1)
    assert crowd.next() == ("c", "expired")
    crowd.queue.complete(2)
    assert crowd.next() == ("b", 3)


def test_lost_requests_delay_others_briefly_if_the_network_is_fast() -> None:
    crowd = Crowd(capacity=12, max_in_flight=2)
    for admission_id in range(1, 40):
        crowd.submit("x")
        assert crowd.next() == ("x", admission_id)
        crowd.queue.complete(admission_id)
    started = monotonic()
    for _ in range(12):
        crowd.submit("lost")
    for _ in range(12):
        crowd.next()
    assert monotonic() - started < 1.0  # 5 times 50 ms
    crowd.queue.close()


def test_requests_are_admitted_slowly_while_all_get_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "_MIN_TIMEOUT_WHEN_DOWN", 0.4)
    crowd = Crowd(capacity=1, max_in_flight=2)
    crowd.in_flight.usual_interval = 0.001
    for _ in range(2):
        crowd.submit("lost", 2)
        crowd.next()
    started = monotonic()
    for name in ("lost", "x"):  # the first waits for 0.05 s
        crowd.submit(name, 2)
        crowd.next()
    assert monotonic() - started > 0.4
    crowd.queue.complete(8)
    crowd.in_flight.usual_interval = 0.001  # not what this busy machine took
    assert crowd.in_flight.timeout() == 0.05
    crowd.submit("y", 2)
    crowd.next()
    crowd.submit("z")
    crowd.next()
    crowd.queue.close()


def test_requests_of_a_slow_network_are_not_presumed_lost(crowd: Crowd) -> None:
    crowd.in_flight.usual_interval = 2.0  # seconds from one completion to the next
    crowd.submit("a", 2)
    assert crowd.next() == ("a", 2)
    crowd.submit("b")
    with pytest.raises(Empty):
        crowd.next(1.5)
    crowd.queue.complete(2)
    assert crowd.next() == ("b", 3)


def test_late_completion_of_a_request_presumed_lost_gives_the_next_more_time(crowd: Crowd) -> None:
    crowd.in_flight.usual_interval = 0.02  # seconds, far less than the requests take now
    for admission_id, name in ((2, "a"), (4, "b"), (6, "c")):
        crowd.submit(name, 2)
        assert crowd.next() == (name, admission_id)
    time.sleep(0.25)
    crowd.queue.complete(2)  # a was late
    assert crowd.in_flight.usual_interval > 0.2
    crowd.submit("d")
    with pytest.raises(Empty):
        crowd.next(0.5)
    crowd.queue.complete(6)
    assert crowd.next() == ("d", 7)


def test_closing_admits_all_requests_that_wait() -> None:
    crowd = Crowd(capacity=9, max_in_flight=1)
    for name in "abc":
        crowd.submit(name)
    crowd.queue.close()
    assert [crowd.next(0) for _ in range(3)] == [("a", 1), ("b", 2), ("c", 3)]


def test_process_ends_though_the_queue_is_not_closed() -> None:
    script = "import admission_queue; admission_queue.AdmissionQueue(capacity=1, max_in_flight=1)"
    folder = Path(admission_queue.__file__).parent
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, timeout=60)


def test_request_that_makes_room_for_another_network_is_told_so() -> None:
    crowd = Crowd(capacity=4, max_in_flight=1)
    for name in ("in flight", "a", "b", "c", "d"):
        crowd.submit(name)
    assert crowd.next() == ("in flight", 1)
    crowd.submit("x", network="plates")
    sentence = (
        "saturated: the queue of 4 images is full, and another network had less than its share "
        "of it"
    )
    assert crowd.next() == ("d", sentence)
    crowd.queue.complete(1)
    assert sorted(admitted(crowd, 4)) == ["a", "b", "c", "x"]
    crowd.queue.close()


def test_networks_share_the_bound_of_what_is_in_flight(crowd: Crowd) -> None:
    crowd.submit("a")
    crowd.submit("b", network="plates")
    assert {crowd.next(), crowd.next()} == {("a", 1), ("b", 2)}
    crowd.submit("c", network="helmets")
    crowd.assert_quiet()
    crowd.queue.complete(2)
    assert crowd.next() == ("c", 3)
    crowd.queue.hand_on(3)
    crowd.queue.hand_on(99)
    crowd.queue.complete(3)  # retires no request of another network
    for name in "de":
        crowd.submit(name, network="plates")
    assert crowd.next() == ("d", 4)
    crowd.assert_quiet()


def test_hung_network_does_not_keep_another_from_being_admitted() -> None:
    crowd = Crowd(capacity=64, max_in_flight=4)
    for _ in range(30):
        crowd.submit("hung")
    for _ in range(20):
        crowd.submit("well", network="plates")
    done = 0
    deadline = monotonic() + 20
    while done < 20 and monotonic() < deadline:
        name, admission_id = crowd.next()
        if name == "well":
            crowd.queue.complete(admission_id)
            done += 1
    assert done == 20
    crowd.queue.close()


def test_bounds_hold_with_callers_of_several_networks_on_several_threads() -> None:
    queue = AdmissionQueue(capacity=16, max_in_flight=4, cores=2)
    ended: Queue[str] = Queue()
    in_flight: Queue[int] = Queue()
    most = 0

    def work() -> None:
        nonlocal most
        while (admission_id := in_flight.get()) >= 0:
            most = max(most, queue._queue._in_flight.images)
            queue.hand_on(admission_id)
            queue.complete(admission_id)
            ended.put("admitted")

    def call(network: str) -> None:
        for _ in range(200):
            request = QueuedRequest(
                network=network,
                images=1,
                deadline=monotonic() + 60,
                on_admit=in_flight.put,
                on_expire=lambda: ended.put("expired"),
                on_evict=lambda sentence: ended.put("evicted"),
            )
            try:
                queue.submit(request)
            except QueueFullError:
                ended.put("refused")

    workers = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    callers = [threading.Thread(target=call, args=name, daemon=True) for name in "abc"]
    for thread in (*workers, *callers):
        thread.start()
    ends = [ended.get(timeout=60) for _ in range(3 * 200)]
    for _ in workers:
        in_flight.put(-1)
    for thread in (*workers, *callers):
        thread.join(60)
    assert ended.empty() and "expired" not in ends
    assert most <= 4
    assert queue._queue._in_flight.images == 0
    queue.close()
