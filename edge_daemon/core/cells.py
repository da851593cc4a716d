"""A large bank in cells: most of them are proven too far from a query by one distance, to their centre.

Every row of a cell lies within its radius, so none is nearer than the centre's distance less the radius (triangle
inequality). On a bank of 100,000 rows of real features a query keeps 4 to 6 cells in 100.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.bounds import BLOCK_ROWS

# Rows in front of the cells, drawn at random: a query that needs only some row nearer than the floor often finds it
# there.
_SAMPLE_ROWS = 4096

_ROWS_A_CELL = 200
_MOST_CELLS = 512  # each query takes the distance to every centre
_LARGEST_CELL = 1024  # a larger one is several, so that a block of products stays small

# Far above what sums of float64 lose here, far below what would keep a cell more.
_MARGIN = 1e-9


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells of M rows in d dimensions.

    order: (M,) int64, the rows of the sample, then those of each cell in turn; edges: (K + 1,) int64, where in `order`
    each cell begins, and the end; centres: (K, d) float64; radii: (K,) float64, no row of the cell is farther from its
    centre; norms: (K,) float64, the largest of its rows' ‖y‖².
    """

    order: NDArray[np.int64]
    edges: NDArray[np.int64]
    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    norms: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.float32], norms: NDArray[np.float64]) -> "Cells":
        """Cells around some rows of (M, d) float32, which come in random order; norms: (M,) float64, their ‖y‖², in
        full dimensions where the rows are reduced.

        Any centres and any assignment give valid bounds; nearer ones give higher bounds. Cells follow each other
        from near to near, so that queries keep neighbours in the order.
        """
        count = min(_MOST_CELLS, max(1, len(rows) // _ROWS_A_CELL))
        centres = _chained(rows[:count].astype(np.float64))
        cell = _nearest(rows, centres.astype(np.float32))
        cell[:_SAMPLE_ROWS] = -1
        order = np.argsort(cell, kind="stable")
        edges = _split(np.searchsorted(cell[order], np.arange(count + 1)))
        centres = centres[cell[order[edges[:-1]]]]
        radii, largest = np.zeros(len(centres)), np.zeros(len(centres))
        for i, (start, stop) in enumerate(itertools.pairwise(edges.tolist())):
            members = order[start:stop]
            difference = rows[members] - centres[i]
            squared = np.einsum("nd,nd->n", difference, difference)
            radii[i] = np.sqrt(squared.max()) * (1 + _MARGIN)
            largest[i] = norms[members].max()
        return cls(order, edges, centres, radii, largest)

    def ask(
        self, queries: NDArray[np.float32], norms: NDArray[np.float64], kappa: float, vanished: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """About how far the centres lie from each query, and what no row of each cell is nearer than by direct
        difference; both squared, (Q, K) float64.

        queries: (Q, d) float32, reduced like the rows; norms: (Q,) float64, their ‖x‖²; kappa, vanished: what
        reducing and the direct difference may lose, of ‖x‖² + ‖y‖² and in all (`core.bounds.Table`).
        """
        wide = queries.astype(np.float64)
        own, centres = np.einsum("qd,qd->q", wide, wide), np.einsum("kd,kd->k", self.centres, self.centres)
        sizes = own[:, None] + centres
        squared = sizes - 2 * (wide @ self.centres.T)
        least = np.sqrt(np.maximum(squared - _MARGIN * sizes, 0)) * (1 - _MARGIN) - self.radii
        return squared, np.square(np.maximum(least, 0)) - kappa * (norms[:, None] + self.norms) - vanished


def _split(edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same edges without empty cells, and with others between them where a cell is too large."""
    pieces = [np.arange(start, stop, _LARGEST_CELL) for start, stop in itertools.pairwise(edges)]
    return np.concatenate([*pieces, edges[-1:]])


def _chained(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """The centres in an order in which each is followed by the nearest of those left."""
    left, chain = centres[1:], [centres[0]]
    while len(left):
        difference = left - chain[-1]
        nearest = int(np.einsum("kd,kd->k", difference, difference).argmin())
        chain.append(left[nearest])
        left = np.delete(left, nearest, axis=0)
    return np.stack(chain)


def _nearest(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """(M,) int64, the centre nearest to each row, as float32 sees it."""
    offset = np.einsum("kd,kd->k", centres, centres)
    found = np.empty(len(rows), np.int64)
    for i in range(0, len(rows), BLOCK_ROWS):
        found[i : i + BLOCK_ROWS] = (offset - 2 * (rows[i : i + BLOCK_ROWS] @ centres.T)).argmin(axis=1)
    return found
