"""Drift: a running mean of each health measure, which tells of a lamp that ages or a lens that clouds while every
single picture is still healthy.

The exponentially weighted moving average control chart (Roberts 1959, doi 10.1080/00401706.1959.10489860; properties
in Lucas and Saccucci 1990, doi 10.1080/00401706.1990.10484583):

    z_t = λ x_t + (1 − λ) z_(t−1),   z_0 = centre,   alarm when |z_t − centre| > h

For independent values of standard deviation σ, z has σ_z = σ·sqrt(λ/(2 − λ)). The recipe's h (`drift_distance`) is
L·σ_z, plus what the centre may be off, and never below what the eye of nobody would call a drift.
"""

import math
from dataclasses import dataclass, replace

# Half of the weight lies on the last 34 frames. A step of twice h is told after 35 frames, of 1.2 h after 89.
LAMBDA = 0.02
# In standard deviations of the running mean. The average run length without any drift is above 10^8 frames for one
# chart (Brook and Evans' Markov chain, computed in the tests), above 10^7 for the nine of a view together: one false
# alarm in months at 10 parts a second.
L = 6.0
# The centre is an estimate: its standard error times this is given on top (one in 10,000 recipes is off by more).
_CENTRE_ERRORS = 3.9
# The efficiency of a median: its variance is π/2 times that of a mean.
_MEDIAN_VARIANCE = math.pi / 2
# An alarm ends when the mean has come back so far, so that it does not flicker.
_RELEASE = 0.75


@dataclass(frozen=True, slots=True)
class Drift:
    """State of one chart. mean: the running mean z; alarm: it is too far from the centre; seen: frames so far."""

    mean: float
    alarm: bool = False
    seen: int = 0


def drift_distance(deviation: float, count: int, floor: float) -> float:
    """How far the running mean may lie from the centre, in the units of the measure.

    deviation: of good pictures' values, from `count` independent ones; floor: what is no drift in any case.
    """
    running = L * deviation * math.sqrt(LAMBDA / (2 - LAMBDA))
    centre = _CENTRE_ERRORS * deviation * math.sqrt(_MEDIAN_VARIANCE / max(1, count))
    return max(floor, running + centre)


def begin(centre: float) -> Drift:
    """A chart that has seen nothing."""
    return Drift(centre)


def advance(state: Drift, value: float, centre: float, distance: float) -> Drift:
    """The chart after one more healthy picture. A value that is not finite changes nothing."""
    if not math.isfinite(value):
        return state
    mean = state.mean + LAMBDA * (value - state.mean)
    off = abs(mean - centre)
    return replace(state, mean=mean, alarm=off > distance * (_RELEASE if state.alarm else 1.0), seen=state.seen + 1)
