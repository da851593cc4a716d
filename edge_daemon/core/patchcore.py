"""PatchCore's image score (Roth et al. 2022, arXiv 2106.08265, section 3.3), from rows that an engine proposes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.distances import scan, squared_distances

Metric = Literal["euclidean", "squared_euclidean"]
Propose = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.int64]]]

# Rows asked for when a patch's nearest row must be certain; more only when these do not separate.
_CERTAIN_ROWS = 8


@dataclass(frozen=True, slots=True)
class ImageScore:
    """score: re-weighted, raw units; max_distance: of patch `patch` to bank row `row`, same units."""

    score: float
    max_distance: float
    patch: int
    row: int


def exact_nearest(
    queries: NDArray[np.float32], bank: NDArray[np.float32], propose: Propose, tolerance: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Squared distance and row of the nearest bank row of each query; ties go to the lowest row.

    queries: (Q, D) float32 -> (Q,) float64, (Q,) int64. Every row whose proposed squared distance may be
    the smallest is recomputed by direct difference; when more rows than asked for lie within the
    `tolerance` of the best, the whole bank is.
    """
    count = min(_CERTAIN_ROWS, len(bank))
    proposed, rows = propose(queries, count)
    rows = np.sort(rows, axis=1)
    squared = squared_distances(queries, bank[rows])
    best = squared.argmin(axis=1)
    index = np.arange(len(queries))
    nearest, distance = rows[index, best], squared[index, best]
    if count < len(bank):
        for q in np.flatnonzero(proposed[:, -1] <= proposed[:, 0] + 2 * tolerance):
            everything = scan(queries[q], bank)
            nearest[q] = everything.argmin()
            distance[q] = everything[nearest[q]]
    return distance, nearest


def reweighting(
    query: NDArray[np.float32], row: int, bank: NDArray[np.float32], propose: Propose, neighbours: int
) -> float:
    """Weight of the maximum distance: 1 − softmax(d(p*, N(m*)))₀ over the `neighbours` rows nearest to m*.

    query: (D,) the patch p*; row: its nearest row m*, itself the first of its neighbours. With one
    neighbour, or a bank of one row, the weight is 1: a softmax over one value would give 0, and with it
    an OK for anything.
    """
    count = min(neighbours, len(bank))
    if count <= 1:
        return 1.0
    # A few more than needed: float32 ties among the proposals must not leave m* itself out.
    spare = min(count + 4, len(bank))
    _, rows = propose(bank[row][None], spare)
    candidates = np.sort(np.union1d(rows[0], [row]))
    order = np.lexsort((candidates, candidates != row, squared_distances(bank[row][None], bank[candidates][None])[0]))
    nearest = candidates[order][:count]
    distance = np.sqrt(squared_distances(query[None], bank[nearest][None])[0])
    exponent = np.exp(distance - distance.max())
    return float(1.0 - exponent[0] / exponent.sum())


def image_score(
    patches: NDArray[np.float32],
    proposed: NDArray[np.float32],
    bank: NDArray[np.float32],
    propose: Propose,
    tolerance: float,
    neighbours: int,
    metric: Metric,
) -> ImageScore:
    """Image-level anomaly score: w · s*, s* the largest nearest-neighbour distance of any patch.

    patches: (P, D) float32; proposed: (P,) float32, squared distance to the nearest row as an engine
    gave it, off by at most `tolerance`; bank: (M, D) float32; neighbours: see `reweighting`.
    Ties for the maximum go to the lowest patch index. `squared_euclidean` (profile paper) does not re-weight.
    """
    candidates = np.flatnonzero(proposed >= proposed.max() - 2 * tolerance)
    distances, rows = exact_nearest(patches[candidates], bank, propose, tolerance)
    best = int(distances.argmax())
    patch, row, squared = int(candidates[best]), int(rows[best]), float(distances[best])
    if metric == "squared_euclidean":
        return ImageScore(squared, squared, patch, row)
    distance = float(np.sqrt(squared))
    weight = reweighting(patches[patch], row, bank, propose, neighbours)
    return ImageScore(weight * distance, distance, patch, row)


def patch_distances(
    patches: NDArray[np.float32], rows: NDArray[np.int64], bank: NDArray[np.float32], metric: Metric
) -> NDArray[np.float32]:
    """(P,) float32 distance of each patch to its proposed row, by direct difference."""
    squared = squared_distances(patches, bank[rows])
    return (squared if metric == "squared_euclidean" else np.sqrt(squared)).astype(np.float32)
