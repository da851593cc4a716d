"""The straight line that says whether memory grows must neither cry wolf nor sleep."""

import math

import numpy as np
import pytest
from scipy import stats

from tests.bench.trend import Trend, _student, trend

AT_S = np.arange(700) * 5.0


def wandering(seed: int, alike: float) -> np.ndarray:
    """Readings of spread 1 that resemble the ones before; no growth."""
    draw = np.random.default_rng(seed)
    values = np.empty(len(AT_S))
    values[0] = draw.normal()
    for i in range(1, len(values)):
        values[i] = alike * values[i - 1] + math.sqrt(1 - alike**2) * draw.normal()
    return values


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_of_readings_that_do_not_grow_few_more_than_five_in_a_hundred_seem_to(alike):
    found = [trend(AT_S, wandering(seed, alike)) for seed in range(100)]
    assert sum(not one.low <= 0 <= one.high for one in found) <= 0.12 * len(found)
    assert np.median([one.independent for one in found]) == pytest.approx(700 * (1 - alike) / (1 + alike), rel=0.25)


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_growth_is_found_and_its_size_told(alike):
    grown = trend(AT_S, wandering(1, alike) + 5.0 * AT_S / 3600)
    assert grown.low <= 5.0 <= grown.high
    assert grown.verdict(1.0) == "grows"


def test_what_matters_is_said_not_to_grow_only_when_the_interval_lies_below_it():
    assert Trend(0.1, -0.2, 0.4, 50).verdict(0.5) == "stands still"
    assert Trend(0.3, 0.2, 0.4, 50).verdict(0.5) == "stands still"
    assert Trend(0.3, 0.2, 0.7, 50).verdict(0.5) == "grows"
    assert Trend(0.1, -0.5, 0.7, 50).verdict(0.5) == "cannot tell"


def test_steps_that_never_come_back_are_no_proof_of_standing_still():
    """Fifty steps up in the hour: whatever the wobble, this must not pass."""
    assert trend(AT_S, np.floor(AT_S / 70)).verdict(10) == "grows"


def test_a_constant_stands_still_and_too_few_readings_tell_nothing():
    assert trend(AT_S, np.full(len(AT_S), 3e8)).verdict(0.001) == "stands still"
    assert trend([0, 5, 10], [1, 2, 1]).verdict(1e9) == "cannot tell"
    assert trend(AT_S, np.sin(AT_S / 3500)).verdict(0.1) == "cannot tell"


def test_what_hardly_moves_stands_still_however_few_steps_it_takes():
    """One step of 0.05 in an hour says little of chance, and enough of growth."""
    assert trend(AT_S, 45.9 + 0.05 * (AT_S > 2000)).verdict(1.0) == "stands still"
    assert trend(AT_S, 45.9 + 5 * (AT_S > 2000)).verdict(1.0) == "cannot tell"


@pytest.mark.parametrize("freedom", [2, 3, 5, 10, 100])
def test_the_quantile_is_students(freedom):
    assert _student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.03)
