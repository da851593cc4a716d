"""PatchCore's image score (Roth et al. 2022, arXiv 2106.08265, section 3.3), from the farthest patch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.distances import squared_distances
from edge_daemon.core.proof import Maximum

Metric = Literal["euclidean", "squared_euclidean"]

# Row and count -> the rows of the bank nearest to that row, nearest first, ties to the lowest.
Neighbours = Callable[[int, int], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class ImageScore:
    """score: re-weighted, raw units; max_distance: of patch `patch` to bank row `row`, same units."""

    score: float
    max_distance: float
    patch: int
    row: int


def reweighting(
    query: NDArray[np.float32], row: int, bank: NDArray[np.float32], neighbours_of: Neighbours, neighbours: int
) -> float:
    """Weight of the maximum distance: 1 − softmax(d(p*, N(m*)))₀ over the `neighbours` rows nearest to m*.

    query: (D,) the patch p*; row: its nearest row m*, itself the first of its neighbours. With one
    neighbour, or a bank of one row, the weight is 1: a softmax over one value would give 0, and with it
    an OK for anything.
    """
    count = min(neighbours, len(bank))
    if count <= 1:
        return 1.0
    rows = neighbours_of(row, count)
    # m* first, also where others are as near to it as it is itself.
    nearest = np.concatenate([[row], rows[rows != row]])[:count]
    distance = np.sqrt(squared_distances(query[None], bank[nearest][None])[0])
    exponent = np.exp(distance - distance.max())
    return float(1.0 - exponent[0] / exponent.sum())


def image_score(
    patches: NDArray[np.float32],
    maximum: Maximum,
    bank: NDArray[np.float32],
    neighbours_of: Neighbours,
    neighbours: int,
    metric: Metric,
) -> ImageScore:
    """Image-level anomaly score: w · s*, s* the largest nearest-neighbour distance of any patch.

    patches: (P, D) float32; maximum: s*², its patch and row, proven; bank: (M, D) float32; neighbours: see
    `reweighting`. `squared_euclidean` (profile paper) does not re-weight.
    """
    patch, row, squared = maximum.patch, maximum.row, maximum.squared
    if metric == "squared_euclidean":
        return ImageScore(squared, squared, patch, row)
    distance = float(np.sqrt(squared))
    weight = reweighting(patches[patch], row, bank, neighbours_of, neighbours)
    return ImageScore(weight * distance, distance, patch, row)


def patch_distances(squared: NDArray[np.float64], metric: Metric) -> NDArray[np.float32]:
    """Squared distances, (P,) float64, in the units of the metric, (P,) float32. Keeps every order."""
    return (squared if metric == "squared_euclidean" else np.sqrt(squared)).astype(np.float32)
