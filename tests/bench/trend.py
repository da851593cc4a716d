"""Does a quantity grow with time: a straight line through readings, and how sure its slope is.

Readings of one process resemble the ones before: memory that grew a moment ago has mostly stayed. Taken for independent
they would make every slope look certain. Their number is therefore cut down to that of as many independent ones (Santer
et al. 2000, J. Geophys. Res. 105, 7337, section 4: n(1 - r)/(1 + r), with r the correlation of neighbouring residuals).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Verdict = Literal["stands still", "grows", "cannot tell"]

# Quantile of the normal distribution for 95% on two sides.
_Z: Final = 1.959964
# With fewer independent readings than this no interval is honest.
_FEWEST: Final = 4.0


@dataclass(frozen=True, slots=True)
class Trend:
    """Units of the readings in an hour. low, high: 95% confidence interval; independent: readings that count."""

    per_hour: float
    low: float
    high: float
    independent: float

    def verdict(self, smallest_leak: float) -> Verdict:
        """smallest_leak: growth in an hour that matters. Growth that is surely there and may be as much is a leak; an
        interval that holds both zero and as much tells nothing."""
        if self.high < smallest_leak:
            return "stands still"
        return "grows" if self.low > 0 else "cannot tell"


def trend(at_s: Sequence[float], readings: Sequence[float]) -> Trend:
    """The straight line of least squares through readings at even distances in time (seconds).

    Nothing has grown by more than all that it moved: no interval is wider than the range of the readings over the time.
    It is no narrower where they hardly tell more than a few independent ones, and has no ends where they are so few.
    """
    hours, values = np.asarray(at_s, np.float64) / 3600, np.asarray(readings, np.float64)
    if len(hours) < _FEWEST:
        return Trend(0.0, -math.inf, math.inf, float(len(hours)))
    slope, offset = (float(c) for c in np.polyfit(hours, values, 1))
    residuals = values - (slope * hours + offset)
    spread = float(residuals @ residuals)
    if spread <= 1e-18 * float(values @ values):
        return Trend(slope, slope, slope, float(len(hours)))
    most = float(np.ptp(values) / np.ptp(hours))
    slope = min(max(slope, -most), most)
    alike = min(max(float(residuals[1:] @ residuals[:-1]) / spread, 0.0), 1.0)
    independent = len(hours) * (1 - alike) / (1 + alike)
    if independent < _FEWEST:
        return Trend(slope, -most, most, independent)
    centred = hours - hours.mean()
    half = _student(independent - 2) * math.sqrt(spread / (independent - 2) / float(centred @ centred))
    return Trend(slope, max(slope - half, -most), min(slope + half, most), independent)


def _student(freedom: float) -> float:
    """The 97.5% quantile of Student's t, to 3% from two degrees of freedom on (Abramowitz and Stegun 26.7.5)."""
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))
