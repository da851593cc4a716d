"""Which patch is farthest from the bank, proven without searching for every patch's nearest row.

The distance to any bank row is an upper bound of the distance to the nearest one. Patches are searched
exactly in the order of decreasing bound; when the largest exact distance is at least every other bound, it
is the maximum of the image. The result is the one of a full search to the bit: the same patch, row and
distance, ties to the lowest patch and then to the lowest row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Reading the bank once costs as much as some 30 patches more in the same product; growing batches make a
# frame that needs many a few products.
FIRST_BATCH = 32
_LARGEST_BATCH = 256


@dataclass(slots=True)
class Nearest:
    """What is known of the nearest bank row of each patch; owned and filled by one search.

    squared: (P,) float64, squared distance to `rows`, or a little more, never less than the squared distance
    to the nearest row; rows: (P,) int64; exact: (P,) bool, where row and distance are the nearest's.
    """

    squared: NDArray[np.float64]
    rows: NDArray[np.int64]
    exact: NDArray[np.bool_]

    def take(self, which: NDArray[np.int64], found: "Nearest") -> None:
        """Enter what was found for the patches `which`, where it says more than is known."""
        known = self.squared[which]
        better = found.exact | (found.squared < known) | (np.isnan(known) & ~np.isnan(found.squared))
        better &= ~self.exact[which]
        place = which[better]
        self.squared[place], self.rows[place] = found.squared[better], found.rows[better]
        self.exact[place] = found.exact[better]

    def copy(self) -> "Nearest":
        return Nearest(self.squared.copy(), self.rows.copy(), self.exact.copy())

    @classmethod
    def unknown(cls, count: int) -> "Nearest":
        """Nothing known yet: infinite bounds."""
        return cls(np.full(count, np.inf), np.zeros(count, np.int64), np.zeros(count, np.bool_))


@dataclass(frozen=True, slots=True)
class Maximum:
    """The patch with the largest squared distance to its nearest row. nearest: what else became known on the
    way, as bounds; searches: patches that had to be searched exactly."""

    patch: int
    row: int
    squared: float
    nearest: Nearest
    searches: int


Search = Callable[[NDArray[np.int64], float], Nearest]


def best_of(nearest: Nearest) -> tuple[float, int]:
    """Largest exact squared distance and its patch, ties to the lowest; (-inf, -1) when none is exact."""
    exact = np.where(nearest.exact, nearest.squared, -np.inf)
    patch = int(exact.argmax())
    return (float(exact[patch]), patch) if nearest.exact[patch] else (-np.inf, -1)


def undecided(nearest: Nearest, most: int | None = None) -> NDArray[np.int64]:
    """Patches that may still be the maximum, those with the largest bound first; of more than `most`, so many.

    A bound of NaN says nothing: it counts as infinite. Compared as it is, it would be below every other, and the patch
    be passed over.
    """
    best, patch = best_of(nearest)
    squared = nearest.squared
    # Written so that NaN stays. Of equal distances the lowest patch is the maximum: those before it are open.
    open_ = ~(squared <= best)
    if patch > 0:
        np.logical_not(squared[:patch] < best, out=open_[:patch])
    open_ &= ~nearest.exact
    which = open_.nonzero()[0]
    bounds = squared[which]
    bounds[np.isnan(bounds)] = np.inf
    np.negative(bounds, out=bounds)
    if most is not None and len(which) > most:
        largest = np.argpartition(bounds, most)[:most]
        which, bounds = which[largest], bounds[largest]
    return which[np.argsort(bounds, kind="stable")]


def prove_maximum(nearest: Nearest, search: Search, first: int = FIRST_BATCH) -> tuple[float, int, int]:
    """Search exactly until the maximum is proven; fills `nearest`. Returns squared distance, patch, searches.

    search(which, floor): the nearest rows of those patches; one that is shown to lie nearer than the squared
    distance `floor` may stay a bound. Raises ValueError when `search` makes no progress: never a guess.
    """
    batch, searches = first, 0
    while len(which := undecided(nearest, batch)):
        floor = best_of(nearest)[0]
        found = search(which, floor)
        if not (found.exact | (found.squared < floor)).all():
            raise ValueError("a search gave neither a nearest row nor a bound below the floor")
        nearest.take(which, found)
        searches += len(which)
        batch = min(2 * batch, _LARGEST_BATCH)
    squared, patch = best_of(nearest)
    return squared, patch, searches


def remember(hints: NDArray[np.int64] | None, rows: NDArray[np.int64], frames: int) -> NDArray[np.int64]:
    """Candidates for the next frame: (frames, P) int64, this frame's rows first, then what they displaced.

    hints: what this frame was given, None or of another P to begin anew; rows: (P,) int64.
    """
    if hints is None or hints.shape[1] != len(rows):
        return np.repeat(rows[None], frames, axis=0)
    changed = rows != hints[0]
    following = hints.copy()
    following[1:, changed] = hints[:-1, changed]
    following[0] = rows
    return following
