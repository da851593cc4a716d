"""Distributions as metrics tell them: how many values lay at or below each of some fixed bounds."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# Seconds; an inspection takes a few milliseconds to some seconds.
SECONDS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
# Score divided by its threshold: 1 is the last value that is OK. Close below it, a line begins to reject good parts.
RATIOS: Final = (0.25, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """counts: (len(bounds) + 1,), values in (bound before, bound], the last beyond all. total: of the finite ones."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float


class Histogram:
    """Counts values; written by one thread at a time, read by any."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: ascending, all finite."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """One value; NaN and infinities count as beyond all bounds."""
        if math.isfinite(value):
            self._counts[bisect_left(self._bounds, value)] += 1
            self._total += value
        else:
            self._counts[-1] += 1

    def read(self) -> Distribution:
        """What was counted so far."""
        return Distribution(self._bounds, tuple(self._counts), self._total)
