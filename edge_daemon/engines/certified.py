"""Search that looks only where the answer may change: exact, and several times faster than a full one."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.distances import upper_bounds
from edge_daemon.core.proof import FIRST_BATCH, Maximum, Nearest, prove_maximum, undecided
from edge_daemon.core.search import ExactSearch

# From here on a product with a table of fewer dimensions pays for the direct differences that it leaves.
_REDUCED_FROM_ROWS = 3072
_REDUCED_DIMS = 48

_NEXT_DOOR = ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


class CertifiedEngine:
    """Bounds from where the frames before found their neighbours, then proof.

    A line shows the same part in the same place: the row that was nearest to a patch of the last frame is
    near to the same patch of this one. Its distance is a bound for the price of one subtraction; of 1,024
    patches of good bottles all but some 90 are decided by it. Those try what earlier frames and the patches
    next door found; what is still open is searched exactly, the highest bound first (`core.proof`). Hints
    only order the work: no result depends on them.
    """

    name = "certified"

    def __init__(self, bank: NDArray[np.float32]) -> None:
        reduced = _REDUCED_DIMS if len(bank) >= _REDUCED_FROM_ROWS else 0
        self._search = ExactSearch(bank, min(reduced, bank.shape[1] // 2))
        self._bank = self._search.bank
        self._neighbours = lru_cache(maxsize=4096)(self._find_neighbours)

    def maximum(self, patches: NDArray[np.float32], grid: tuple[int, int], hints: NDArray[np.int64] | None) -> Maximum:
        """See `engines.nearest.NearestNeighbour.maximum`."""

        def search(which: NDArray[np.int64], floor: float) -> Nearest:
            return self._search.nearest(patches[which], floor)

        nearest, first = Nearest.unknown(len(patches)), 0
        if hints is not None and hints.shape[1] == len(patches):
            nearest.rows[:] = hints[0]
            nearest.squared[:] = upper_bounds(patches, self._bank, nearest.rows)
            top = undecided(nearest)[:FIRST_BATCH]
            nearest.take(top, search(top, -np.inf))
            first = len(top)
            self._improve(patches, nearest, hints[1:])
            next_door = nearest.rows.reshape(grid)
            self._improve(patches, nearest, np.stack([np.roll(next_door, s, (0, 1)).ravel() for s in _NEXT_DOOR]))
        squared, patch, searches = prove_maximum(nearest, search)
        return Maximum(patch, int(nearest.rows[patch]), squared, nearest, first + searches)

    def _improve(self, patches: NDArray[np.float32], nearest: Nearest, offers: NDArray[np.int64]) -> None:
        """Lower the bounds of patches that are still open by the nearest of the rows offered, (K, P) int64."""
        which = undecided(nearest)
        if not len(which) or not len(offers):
            return
        offered = offers[:, which]
        every = np.tile(which, len(offers))
        bounds = upper_bounds(patches[every], self._bank, offered.ravel()).reshape(offered.shape)
        best = bounds.argmin(axis=0)
        index = np.arange(len(which))
        nearest.take(which, Nearest(bounds[best, index], offered[best, index], np.zeros(len(which), np.bool_)))

    def complete(self, patches: NDArray[np.float32]) -> Nearest:
        """See `engines.nearest.NearestNeighbour.complete`."""
        return self._search.nearest(patches)

    def neighbours(self, row: int, count: int) -> NDArray[np.int64]:
        """See `engines.nearest.NearestNeighbour.neighbours`; remembered, for the same rows come again."""
        return self._neighbours(row, count)

    def _find_neighbours(self, row: int, count: int) -> NDArray[np.int64]:
        return self._search.neighbours(self._bank[row], count)
