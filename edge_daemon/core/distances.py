"""Distances by direct difference: the one function that decides, whatever engine proposed the row.

‖x − y‖² is summed from differences, never from ‖x‖² + ‖y‖² − 2x·y: that form is off by 1e-6·‖x‖² in
float32 (a row's distance to itself came out as 0.0055), and by how much depends on the engine.
"""

import numpy as np
from numpy.typing import NDArray

# Half a unit in the last place of float32: the relative error of one rounding.
UNIT_ROUNDOFF = 2.0**-24

# Squares of vectors beyond this would overflow float32 somewhere inside a matrix product.
LARGEST_SQUARED_NORM = 1e36

_BLOCK_VALUES = 1 << 18  # values differenced at a time: they stay in the second-level cache


def squared_distances(queries: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared Euclidean distance of each query to its own row(s).

    queries: (Q, D) float32; rows: (Q, D) or (Q, K, D) float32 -> (Q,) or (Q, K) float64.
    Differences in float32 (exact for close values), squares and their sum in float64. The same two vectors
    give the same bits, however many others are computed with them.
    """
    difference = (queries if rows.ndim == 2 else queries[:, None, :]) - rows
    wide = difference.astype(np.float64)
    return np.asarray(np.einsum("...d,...d->...", wide, wide))


def pair_distances(
    queries: NDArray[np.float32], which: NDArray[np.int64], bank: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """`squared_distances` of queries[which[i]] and bank[rows[i]], (N,) float64, block by block."""
    block = max(1, _BLOCK_VALUES // bank.shape[1])
    found = np.empty(len(rows), np.float64)
    for i in range(0, len(rows), block):
        found[i : i + block] = squared_distances(queries[which[i : i + block]], bank[rows[i : i + block]])
    return found


def upper_bounds(
    queries: NDArray[np.float32], bank: NDArray[np.float32], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Never below `squared_distances(queries, bank[rows])`, and at most D + 8 roundings above it.

    queries: (Q, D); bank: (M, D); rows: (Q,) or (K, Q) -> float64 of the shape of rows. Three times as fast, because
    the sum is in float32: its relative error is at most D roundings in whatever order (Higham 2002, Accuracy and
    Stability, eq. 3.5), which are added.
    """
    found = np.empty(rows.shape, np.float64)
    offers = len(rows) if rows.ndim == 2 else 1
    block = max(1, _BLOCK_VALUES // (bank.shape[1] * offers))
    for i in range(0, len(queries), block):
        difference = bank.take(rows[..., i : i + block], axis=0)
        np.subtract(queries[i : i + block], difference, out=difference)
        found[..., i : i + block] = np.vecdot(difference, difference)
    # The constant covers squares that vanish below the smallest float32.
    found *= 1 + 2 * (bank.shape[1] + 8) * UNIT_ROUNDOFF
    found += bank.shape[1] * 1e-37
    return found


def largest_squared_norm(vectors: NDArray[np.float32]) -> float:
    """Largest ‖x‖² of (N, D) float32; NaN or infinite when any value is."""
    return float(np.vecdot(vectors, vectors).max(initial=0.0))


def scan(query: NDArray[np.float32], bank: NDArray[np.float32], block: int = 4096) -> NDArray[np.float64]:
    """Squared Euclidean distance of one query to every row of the bank, (M,) float64, block by block."""
    return np.concatenate(
        [squared_distances(query[None], bank[None, i : i + block])[0] for i in range(0, len(bank), block)]
    )
