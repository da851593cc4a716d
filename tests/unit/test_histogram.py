"""Distributions for metrics."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.core.histogram import RATIOS, SECONDS, Histogram


def test_a_value_on_a_bound_is_counted_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.0001, 2.0, 3.0):
        histogram.add(value)
    assert histogram.read().counts == (2, 2, 1)
    assert histogram.read().total == pytest.approx(7.5001)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_among_the_good_ones(value: float) -> None:
    histogram = Histogram(RATIOS)
    histogram.add(value)
    assert histogram.read().counts[-1] == 1
    assert histogram.read().total == 0


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, min_value=-10, max_value=100)))
def test_every_value_is_counted_once_and_below_the_right_bound(values: list[float]) -> None:
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.add(value)
    found = histogram.read()
    for position, bound in enumerate(found.bounds):
        assert sum(found.counts[: position + 1]) == sum(value <= bound for value in values)
    assert sum(found.counts) == len(values)


@pytest.mark.parametrize("bounds", [SECONDS, RATIOS])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))
