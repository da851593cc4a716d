"""Search that looks only where the answer may change: exact, and several times faster than a full one."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.distances import upper_bounds
from edge_daemon.core.proof import Maximum, Nearest, prove_maximum, undecided
from edge_daemon.core.search import ExactSearch

# A table of fewer dimensions pays where the bank itself is too large for the cache: then its product is
# cheaper than the bank's by more than the direct differences that it leaves (deploy/decisions/0005).
_REDUCED_FROM_VALUES = 1 << 18
_REDUCED_DIMS = 48

# Without a floor every patch keeps candidates: below this the whole product costs less than they do.
_REDUCED_FOR_ALL_FROM_ROWS = 8192

# Searched before all others: what the rest need not beat is the best of these.
_FIRST_SEARCHES = 16

# Of the patches, those with the largest bounds are offered what other frames and the patches next door found.
_OFFERED_SHARE = 1 / 5

# More patches than this still open: hints of another place. One block of the bank bounds them for less than
# searching them one after the other takes. With 96, frames whose hints are only weak paid for it too: 4.5 ms a
# frame on average at 2,048 x 384 instead of 2.8, 13.5 instead of 5.1 at the 95th of a hundred.
_LOST = 384

# Rows of a glance. On a coreset of 14,950 rows by 384, frames that needed one took 18 ms with 1,024 to 4,096 of them;
# with all rows few patches stayed open, and the frame took as long.
_GLANCED_ROWS = 2048


class CertifiedEngine:
    """Bounds from where the frames before found their neighbours, then proof.

    A line shows the same part in the same place: the row that was nearest to a patch of the last frame is
    near to the same patch of this one. Its distance is a bound for the price of one subtraction. The patches
    with the largest bounds try what earlier frames and the patches next door found; those that may still be
    the farthest are searched exactly, the highest bound first (`core.proof`). Hints only order the work: no
    result depends on them.
    """

    name = "certified"

    def __init__(self, bank: NDArray[np.float32]) -> None:
        reduced = _REDUCED_DIMS if bank.size >= _REDUCED_FROM_VALUES else 0
        self._search = ExactSearch(bank, min(reduced, bank.shape[1] // 2))
        self._bank = self._search.bank
        self._neighbours = lru_cache(maxsize=4096)(self._find_neighbours)

    def maximum(self, patches: NDArray[np.float32], grid: tuple[int, int], hints: NDArray[np.int64] | None) -> Maximum:
        """See `engines.nearest.NearestNeighbour.maximum`."""
        if hints is not None and hints.shape[1] == len(patches):
            nearest = Nearest.unknown(len(patches))
            nearest.rows[:] = hints[0]
            nearest.squared[:] = upper_bounds(patches, self._bank, nearest.rows)
            self._improve(patches, nearest, hints, grid)
        else:
            nearest = self._glance(patches)
        first = undecided(nearest, _FIRST_SEARCHES)
        nearest.take(first, self._search.nearest(patches[first], within=nearest.squared[first]))
        if len(rest := undecided(nearest)) > _LOST:
            nearest.take(rest, self._glance(patches[rest]))
        squared, patch, more = prove_maximum(
            nearest, lambda which, floor: self._search.nearest(patches[which], floor, within=nearest.squared[which])
        )
        return Maximum(patch, int(nearest.rows[patch]), squared, nearest, len(first) + more)

    def _glance(self, patches: NDArray[np.float32]) -> Nearest:
        """Bounds from the nearest of some rows, the same for all patches."""
        return self._search.glance(patches, _GLANCED_ROWS)

    def _improve(
        self, patches: NDArray[np.float32], nearest: Nearest, hints: NDArray[np.int64], grid: tuple[int, int]
    ) -> None:
        """Lower the largest bounds by the nearest of the older hints and of the hints of the patches next door."""
        count = max(1, int(len(patches) * _OFFERED_SHARE))
        which = np.argpartition(nearest.squared, len(patches) - count)[-count:]
        offered = np.concatenate([hints[1:, which], hints[0, _next_door(grid)[:, which]]])
        bounds = upper_bounds(patches[which], self._bank, offered)
        best = bounds.argmin(axis=0)
        index = np.arange(len(which))
        nearest.take(which, Nearest(bounds[best, index], offered[best, index], np.zeros(len(which), np.bool_)))

    def complete(self, patches: NDArray[np.float32]) -> Nearest:
        """See `engines.nearest.NearestNeighbour.complete`."""
        if len(self._bank) < _REDUCED_FOR_ALL_FROM_ROWS:
            return self._search.nearest(patches, reduced=False)
        return self._search.nearest(patches, within=self._glance(patches).squared)

    def neighbours(self, row: int, count: int) -> NDArray[np.int64]:
        """See `engines.nearest.NearestNeighbour.neighbours`; remembered, for the same rows come again."""
        return self._neighbours(row, count)

    def _find_neighbours(self, row: int, count: int) -> NDArray[np.int64]:
        return self._search.neighbours(self._bank[row], count)


@lru_cache(maxsize=8)
def _next_door(grid: tuple[int, int]) -> NDArray[np.int64]:
    """(4, P) int64: the patches above, below, left and right of each; beyond the border, those of the opposite one."""
    index = np.arange(grid[0] * grid[1]).reshape(grid)
    return np.stack([np.roll(index, shift, axis).ravel() for axis in (0, 1) for shift in (1, -1)])
