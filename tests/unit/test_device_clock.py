"""A camera's clock in the time of this PC: what is said must hold, and a jump must not go unnoticed."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_daemon.core.device_clock import LATE_FRAMES, SETTLING_FRAMES, DeviceClock

MS = 1_000_000
S = 1_000_000_000
WAY = 100 * MS


@given(
    offset_ns=st.integers(-(10**18), 10**18),
    ppm=st.floats(-100, 100),
    delays_us=st.lists(st.integers(10, 99_000), min_size=1, max_size=40),
    asked=st.booleans(),
)
def test_the_true_time_of_exposure_lies_within_the_stated_uncertainty(
    offset_ns: int, ppm: float, delays_us: list[int], asked: bool
) -> None:
    clock, now = DeviceClock(WAY), 5 * S
    for delay_us in delays_us:
        now += 50 * MS
        device = now - offset_ns + round((now - 5 * S) * ppm * 1e-6)
        arrived = now + delay_us * 1_000
        clock.frame(device, arrived, True, asked_ns=now - 20_000 if asked else None)
        known = clock.monotonic(device, arrived)
        assert known is not None
        assert abs(known[0] - now) <= known[1]
        assert known[1] <= WAY // 2 + (10 * MS if asked else MS)
    assert clock.jumps == 0


@given(round_trip_us=st.integers(2, 50_000), share=st.floats(0, 1))
def test_a_clock_that_was_asked_is_known_to_half_the_round_trip(round_trip_us: int, share: float) -> None:
    clock = DeviceClock(WAY)
    trip = round_trip_us * 1_000
    clock.read(7 * S, 100 * S, 100 * S + trip)
    known = clock.monotonic(7 * S, 100 * S + trip)
    assert known is not None
    assert known[1] <= trip // 2 + 1
    assert abs(known[0] - (100 * S + share * trip)) <= known[1] + 1


@given(jump_ms=st.integers(-10_000, 10_000))
def test_a_jump_of_more_than_the_longest_way_is_noticed_and_trust_comes_back_late(jump_ms: int) -> None:
    assume(abs(jump_ms) > 150)
    clock, now = DeviceClock(WAY), S
    for _ in range(5):
        now += 50 * MS
        clock.frame(now, now + 5 * MS, True)
    trusted_again = 0
    for frame in range(LATE_FRAMES + SETTLING_FRAMES + 5):
        now += 50 * MS
        device = now + jump_ms * MS
        clock.frame(device, now + 5 * MS, True)
        known = clock.monotonic(device, now + 5 * MS)
        if known is not None and clock.jumps:
            trusted_again = trusted_again or frame
            assert abs(known[0] - now) <= known[1]
        assert clock.jumps <= 1
    assert clock.jumps == 1
    assert trusted_again >= SETTLING_FRAMES - 1


def test_frames_that_lay_in_a_queue_are_no_jump() -> None:
    clock = DeviceClock(WAY)
    clock.frame(1 * S, 5 * S, waited=False)
    assert clock.monotonic(1 * S, 5 * S) is None, "nothing is known yet"
    clock.frame(5 * S, 5 * S + 5 * MS, waited=True)
    for late in range(10):
        clock.frame(6 * S + late * MS, 9 * S, waited=False)
    clock.frame(9 * S, 9 * S + 5 * MS, waited=True)
    assert clock.jumps == 0
    known = clock.monotonic(9 * S, 9 * S + 5 * MS)
    assert known is not None
    assert abs(known[0] - 9 * S) <= known[1]


def test_bounds_loosen_with_age_and_opening_anew_forgets_them() -> None:
    clock = DeviceClock(WAY)
    assert clock.uncertainty_ns(0) is None
    clock.read(0, 0, MS)
    fresh, old = clock.uncertainty_ns(MS), clock.uncertainty_ns(100 * S)
    assert fresh is not None
    assert old is not None
    assert fresh <= MS < 15 * MS < old
    clock.restart()
    assert clock.monotonic(0, 0) is None
    assert clock.jumps == 0


@pytest.mark.parametrize("lower_first", [True, False])
def test_bounds_that_contradict_each_other_are_a_jump(lower_first: bool) -> None:
    clock = DeviceClock(WAY)
    first, second = ((0, 0, MS), (0, 50 * MS, 51 * MS)) if lower_first else ((0, 50 * MS, 51 * MS), (0, 0, MS))
    clock.read(*first)
    clock.read(*second)
    assert clock.jumps == 1
