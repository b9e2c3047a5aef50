from __future__ import annotations

from collections.abc import Iterator

import pytest
from fair_share import FairShare, Usage
from virtual_time import Clock, virtual_time


@pytest.fixture
def clock() -> Iterator[Clock]:
    with virtual_time() as clock:
        yield clock


@pytest.fixture
def share(clock: Clock) -> FairShare:
    return FairShare(cores=4)


def charges(share: FairShare, *usages: Usage) -> list[float]:
    share.advance()
    return [round(share.charge(usage), 9) for usage in usages]


def test_network_that_is_alone_is_charged_for_all_cores(share: FairShare, clock: Clock) -> None:
    usage = Usage()
    share.record(usage, preparing=0, in_network=1)
    clock.now += 2.0
    assert charges(share, usage) == [2.0]


def test_networks_are_charged_by_the_threads_that_can_run(share: FairShare, clock: Clock) -> None:
    few, many = Usage(), Usage()
    share.record(few, preparing=0, in_network=1)
    share.record(many, preparing=0, in_network=9)  # on 4 threads
    clock.now += 1.0
    assert charges(share, few, many) == [1 / 5, 4 / 5]


def test_images_in_preparation_share_the_threads_of_one_process(
    share: FairShare, clock: Clock
) -> None:
    first, second, running = Usage(), Usage(), Usage()
    share.record(first, preparing=2, in_network=0)
    share.record(second, preparing=6, in_network=0)  # with the others 8 images on 4 threads
    share.record(running, preparing=0, in_network=2)
    clock.now += 6.0
    assert charges(share, first, second, running) == [1.0, 3.0, 2.0]


def test_few_images_in_preparation_have_a_thread_each(share: FairShare, clock: Clock) -> None:
    preparing, running = Usage(), Usage()
    share.record(preparing, preparing=2, in_network=0)
    share.record(running, preparing=0, in_network=1)
    clock.now += 3.0
    assert charges(share, preparing, running) == [2.0, 1.0]


def test_network_is_charged_for_what_it_had_in_flight_at_the_time(
    share: FairShare, clock: Clock
) -> None:
    usage, other = Usage(), Usage()
    share.record(usage, preparing=1, in_network=0)
    clock.now += 1.0
    share.record(other, preparing=0, in_network=1)
    clock.now += 1.0
    share.record(usage, preparing=0, in_network=3)
    clock.now += 1.0
    share.record(usage, preparing=0, in_network=0)
    clock.now += 1.0
    assert charges(share, usage, other) == [1 + 1 / 2 + 3 / 4, 1 / 2 + 1 / 4 + 1]


def test_nothing_is_charged_while_nothing_is_in_flight(share: FairShare, clock: Clock) -> None:
    usage = Usage()
    clock.now += 5.0
    share.record(usage, preparing=1, in_network=0)
    share.record(usage, preparing=0, in_network=0)
    clock.now += 5.0
    assert charges(share, usage) == [0.0]


def test_charge_is_divided_by_the_weight_at_the_time(share: FairShare, clock: Clock) -> None:
    usage = Usage()
    share.set_weight(usage, 4.0)
    share.record(usage, preparing=0, in_network=1)
    clock.now += 2.0
    share.set_weight(usage, 0.5)
    assert charges(share, usage) == [0.5]
    clock.now += 2.0
    assert charges(share, usage) == [4.5]


def test_network_that_was_idle_has_no_credit(share: FairShare, clock: Clock) -> None:
    busy, idle = Usage(), Usage()
    share.record(busy, preparing=0, in_network=1)
    clock.now += 10.0
    share.advance()
    share.choose(busy)
    clock.now += 1.0
    share.join(idle, 1.0)
    assert charges(share, busy, idle) == [11.0, 10.0]


def test_network_keeps_its_debt_while_it_is_idle(share: FairShare, clock: Clock) -> None:
    light, heavy = Usage(), Usage()
    share.record(heavy, preparing=0, in_network=1)
    clock.now += 3.0
    share.record(heavy, preparing=0, in_network=0)
    share.choose(light)
    share.join(heavy, 1.0)
    assert charges(share, light, heavy) == [0.0, 3.0]


def test_debts_are_forgotten_when_nothing_is_left(share: FairShare, clock: Clock) -> None:
    light, heavy = Usage(), Usage()
    share.record(heavy, preparing=0, in_network=1)
    clock.now += 3.0
    share.record(heavy, preparing=0, in_network=0)
    share.restart()
    share.join(light, 1.0)
    share.join(heavy, 1.0)
    assert charges(share, light, heavy) == [3.0, 3.0]


def test_network_with_images_in_flight_keeps_a_tenth_of_a_second(
    share: FairShare, clock: Clock
) -> None:
    busy, slow = Usage(), Usage()
    share.record(busy, preparing=0, in_network=4)
    share.record(slow, preparing=0, in_network=1)
    clock.now += 5.0
    share.advance()
    share.choose(busy)  # charged with 4 seconds
    share.join(slow, 2.0)
    assert charges(share, busy, slow) == [4.0, 4.0 - 0.1 / 2]


def test_turn_of_a_network_with_a_lower_charge_does_not_lower_what_newcomers_begin_with(
    share: FairShare, clock: Clock
) -> None:
    busy, other, newcomer = Usage(), Usage(), Usage()
    share.record(busy, preparing=0, in_network=1)
    clock.now += 2.0
    share.advance()
    share.choose(busy)
    share.choose(other)
    share.join(newcomer, 1.0)
    assert charges(share, newcomer) == [2.0]


def test_charge_is_only_raised(share: FairShare) -> None:
    usage = Usage()
    share.raise_to(usage, 2.0)
    share.raise_to(usage, 1.0)
    assert charges(share, usage) == [2.0]
