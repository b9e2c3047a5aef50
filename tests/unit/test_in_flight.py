from __future__ import annotations

import in_flight
import pytest
from in_flight import AllInFlight, InFlight


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(in_flight, "monotonic", clock)
    return clock


@pytest.fixture
def flight(clock: Clock) -> InFlight:
    return InFlight(down_after=10)


def test_admission_id_is_the_number_of_images_admitted(flight: InFlight) -> None:
    assert [flight.admit(images) for images in (1, 8, 2)] == [1, 9, 11]
    assert (flight.images, flight.admitted_images) == (11, 11)


def test_completion_retires_the_request_and_those_before_it(flight: InFlight) -> None:
    ids = [flight.admit(images) for images in (1, 8, 2)]
    assert flight.complete(ids[1])
    assert (flight.images, flight.admitted_images) == (2, 11)
    assert flight.complete(ids[2])
    assert flight.images == 0


@pytest.mark.parametrize("admission_id", [-1, 0, 2, 4])
def test_unknown_completion_changes_nothing(
    flight: InFlight, clock: Clock, admission_id: int
) -> None:
    flight.admit(3)
    clock.now += 0.5
    assert not flight.complete(admission_id)
    assert (flight.images, flight.usual_interval) == (3, 0.25)


def test_second_completion_changes_nothing(flight: InFlight, clock: Clock) -> None:
    flight.admit(3)
    assert flight.complete(3)
    clock.now += 9.0
    usual = flight.usual_interval
    assert not flight.complete(3)
    assert flight.usual_interval == usual


def test_release_retires_one_request_alone(flight: InFlight) -> None:
    ids = [flight.admit(images) for images in (1, 8, 2)]
    for admission_id in (ids[1], ids[1], 99):
        flight.release(admission_id)
        assert (flight.images, flight.admitted_images) == (3, 11)


def test_usual_interval_follows_the_time_between_completions(
    flight: InFlight, clock: Clock
) -> None:
    flight.admit(1)
    clock.now += 0.75
    flight.complete(1)  # 0.75 s after its admission
    assert flight.usual_interval == pytest.approx(0.25 + 0.2 * (0.75 - 0.25))
    flight.admit(1)
    flight.admit(1)
    clock.now += 1.0
    flight.complete(2)
    clock.now += 0.5
    usual = flight.usual_interval
    flight.complete(3)  # 0.5 s after the one before, 1.5 s after its admission
    assert flight.usual_interval == pytest.approx(usual + 0.2 * (0.5 - usual))


def test_interval_starts_with_the_first_request_that_a_completion_retires(
    flight: InFlight, clock: Clock
) -> None:
    flight.admit(1)
    clock.now += 1.0
    flight.admit(1)
    clock.now += 0.25
    flight.complete(2)
    assert flight.usual_interval == pytest.approx(0.25 + 0.2 * (1.25 - 0.25))


@pytest.mark.parametrize(
    "usual_interval, timeout", [(0.25, 1.0), (0.5, 2.0), (0.001, 0.05), (5.0, 3.0)]
)
def test_timeout_is_four_usual_intervals_within_bounds(
    flight: InFlight, usual_interval: float, timeout: float
) -> None:
    flight.usual_interval = usual_interval
    assert flight.timeout() == timeout


def test_requests_are_presumed_lost_after_the_timeout_and_not_before(
    flight: InFlight, clock: Clock
) -> None:
    flight.admit(2)
    clock.now += 0.5
    flight.admit(3)
    clock.now += 0.9
    assert not flight.give_up_overdue()  # counted from the last admission
    assert flight.images == 5
    clock.now += 0.11
    assert flight.give_up_overdue()
    assert (flight.images, flight.admitted_images) == (0, 5)


def test_completion_postpones_the_timeout(flight: InFlight, clock: Clock) -> None:
    flight.admit(1)
    flight.admit(1)
    clock.now += 0.9
    flight.complete(1)
    timeout = flight.timeout()
    clock.now += timeout - 0.01
    assert not flight.give_up_overdue()
    clock.now += 0.02
    assert flight.give_up_overdue()


def test_late_completion_sets_the_usual_interval(flight: InFlight, clock: Clock) -> None:
    for _ in range(2):
        flight.admit(1)
        clock.now += 1.0
        assert flight.give_up_overdue()
    clock.now += 0.25
    assert flight.complete(1)  # admitted 2.25 s ago
    assert flight.usual_interval == 2.25
    assert flight.images == 0
    clock.now += 0.5
    assert flight.complete(2)  # 0.5 s after the completion before, 1.75 s after its admission
    assert flight.usual_interval == 0.5
    assert not flight.complete(2)


def test_while_the_network_is_down_requests_are_given_up_slowly(
    flight: InFlight, clock: Clock
) -> None:
    flight.usual_interval = 0.001
    flight.admit(9)
    clock.now += 0.06
    assert flight.give_up_overdue()
    assert flight.timeout() == 0.05
    flight.admit(1)
    clock.now += 0.06
    assert flight.give_up_overdue()  # 10 images in a row
    assert flight.timeout() == 1.0
    flight.admit(1)
    flight.complete(11)
    assert flight.timeout() == 0.05


def test_completion_ends_the_count_of_images_lost_in_a_row(flight: InFlight, clock: Clock) -> None:
    for _ in range(2):
        flight.admit(9)
        clock.now += 4.0
        assert flight.give_up_overdue()
        flight.admit(1)
        flight.complete(flight.admitted_images)
        flight.usual_interval = 0.001
    flight.admit(9)
    clock.now += 0.06
    assert flight.give_up_overdue()
    assert flight.timeout() == 0.05  # 27 images lost, but 9 in a row
    flight.admit(1)
    clock.now += 0.06
    assert flight.give_up_overdue()
    assert flight.timeout() == 1.0


def test_requests_are_presumed_lost_at_the_timeout(flight: InFlight, clock: Clock) -> None:
    flight.admit(1)
    clock.now += 1.0
    assert flight.give_up_overdue()


def test_late_completion_forgets_earlier_requests_presumed_lost(
    flight: InFlight, clock: Clock
) -> None:
    for _ in range(3):
        flight.admit(1)
    clock.now += 1.0
    assert flight.give_up_overdue()
    flight.admit(1)
    assert flight.complete(2)
    assert flight.images == 1
    assert not flight.complete(1)
    assert flight.complete(3)
    assert flight.complete(4)
    assert flight.images == 0


def test_only_the_last_thousand_lost_requests_are_remembered(
    flight: InFlight, clock: Clock
) -> None:
    for _ in range(1001):
        flight.admit(1)
    clock.now += 1.0
    assert flight.give_up_overdue()
    assert not flight.complete(1)
    assert flight.complete(2)


@pytest.fixture
def two(clock: Clock) -> tuple[InFlight, InFlight]:
    together = AllInFlight()
    first, second = (
        InFlight(down_after=10, network=name, together=together, parallel=2) for name in "ab"
    )
    return first, second


def test_networks_count_images_apart_and_together(two: tuple[InFlight, InFlight]) -> None:
    first, second = two
    assert [first.admit(2), second.admit(3), first.admit(1)] == [2, 5, 6]
    assert (first.images, second.images, first._together.images) == (3, 3, 6)
    assert (first.admitted_images, second.admitted_images) == (3, 3)
    assert first._together.networks == {2: "a", 5: "b", 6: "a"}
    assert first.complete(6)
    assert (first.images, second.images, first._together.images) == (0, 3, 3)
    second.release(5)
    assert second._together.images == 0


def test_network_of_a_request_is_known_until_it_is_completed_or_forgotten(
    two: tuple[InFlight, InFlight], clock: Clock
) -> None:
    first, second = two
    networks = first._together.networks
    for _ in range(3):
        first.admit(1)
    second.admit(1)
    clock.now += 1.0
    assert first.give_up_overdue()
    assert networks == {1: "a", 2: "a", 3: "a", 4: "b"}
    assert first.complete(2)
    assert networks == {3: "a", 4: "b"}
    first.close()
    assert networks == {4: "b"}
    second.close()
    assert networks == {} and second.images == second._together.images == 0


def test_images_are_in_preparation_until_they_are_handed_on(flight: InFlight) -> None:
    for images in (2, 3, 4):
        flight.admit(images)
    assert flight.preparing == 9
    for _ in range(2):
        flight.hand_on(5)
        assert (flight.preparing, flight.images) == (6, 9)
    flight.release(2)
    assert flight.preparing == 4
    flight.complete(9)
    assert flight.preparing == 0
    flight.hand_on(9)
    assert flight.preparing == 0


def test_request_presumed_lost_is_not_in_preparation(flight: InFlight, clock: Clock) -> None:
    flight.admit(2)
    clock.now += 1.0
    assert flight.give_up_overdue()
    assert flight.preparing == 0
    flight.hand_on(2)
    assert flight.preparing == 0


def test_overtaken_request_counts_as_worked_on_until_its_own_completion(
    two: tuple[InFlight, InFlight],
) -> None:
    flight, _ = two
    for images in (1, 2, 1, 1):
        flight.admit(images)
    assert flight.complete(4)
    assert (flight.images, flight.overtaken) == (1, 3)
    assert not flight.complete(3)
    assert (flight.images, flight.overtaken) == (1, 1)
    assert flight._together.networks == {1: "a", 5: "a"}


def test_overtaken_request_counts_as_lost_after_as_many_completions_as_run_in_parallel(
    two: tuple[InFlight, InFlight],
) -> None:
    flight, _ = two
    for _ in range(6):
        flight.admit(1)
    for completed, overtaken in ((2, 1), (3, 1), (4, 0)):
        assert flight.complete(completed)
        assert flight.overtaken == overtaken
    assert flight._together.networks == {5: "a", 6: "a"}


@pytest.mark.parametrize("end", ["complete", "release", "give up"])
def test_overtaken_requests_are_forgotten_when_nothing_else_is_in_flight(
    two: tuple[InFlight, InFlight], clock: Clock, end: str
) -> None:
    flight, _ = two
    for _ in range(3):
        flight.admit(1)
    assert flight.complete(2)
    assert flight.overtaken == 1
    if end == "complete":
        flight.complete(3)
    elif end == "release":
        flight.release(3)
    else:
        clock.now += 3.0
        assert flight.give_up_overdue()
    assert flight.overtaken == 0


def test_nothing_is_presumed_lost_while_nothing_is_in_flight(
    flight: InFlight, clock: Clock
) -> None:
    clock.now += 100.0
    assert not flight.give_up_overdue()
    assert flight.overdue_at() == float("inf")


def test_beside_another_network_requests_get_twice_their_usual_duration(
    two: tuple[InFlight, InFlight], clock: Clock
) -> None:
    """Four that are worked on side by side are completed at the same time."""
    flight, other = two
    for _ in range(20):
        ids = [flight.admit(1) for _ in range(4)]
        clock.now += 0.2
        for admission_id in ids:
            flight.complete(admission_id)
    flight.admit(1)
    flight.usual_interval = 0.01  # an average of 0.2 and 0, 0, 0
    assert flight.overdue_at() == pytest.approx(clock.now + 0.05)
    other.admit(1)
    assert flight.overdue_at() == pytest.approx(clock.now + 2 * 0.2, rel=0.02)
    other.complete(other._together.admitted_images)
    assert flight.overdue_at() == pytest.approx(clock.now + 0.05)


def test_late_completion_sets_the_usual_duration_but_no_timeout_is_over_three_seconds(
    two: tuple[InFlight, InFlight], clock: Clock
) -> None:
    flight, other = two
    other.admit(1)
    for seconds in (1.2, 5.0):
        admission_id = flight.admit(1)
        clock.now += seconds
        assert flight.give_up_overdue()
        assert flight.complete(admission_id)
        flight.usual_interval = 0.01
        flight.admit(1)
        assert flight.overdue_at() == pytest.approx(clock.now + min(3.0, 2 * seconds))
        flight.release(flight._together.admitted_images)
