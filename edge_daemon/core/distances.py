"""Distances by direct difference: the one function that decides, whatever engine proposed the row.

‖x − y‖² is summed from differences, never from ‖x‖² + ‖y‖² − 2x·y: that form is off by 1e-6·‖x‖² in
float32 (a row's distance to itself came out as 0.0055), and by how much depends on the engine.
"""

import numpy as np
from numpy.typing import NDArray


def squared_distances(queries: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared Euclidean distance of each query to its own row(s).

    queries: (Q, D) float32; rows: (Q, D) or (Q, K, D) float32 -> (Q,) or (Q, K) float64.
    Differences in float32 (exact for close values), squares and their sum in float64.
    """
    difference = (queries if rows.ndim == 2 else queries[:, None, :]) - rows
    wide = difference.astype(np.float64)
    return np.asarray(np.einsum("...d,...d->...", wide, wide))


def scan(query: NDArray[np.float32], bank: NDArray[np.float32], block: int = 4096) -> NDArray[np.float64]:
    """Squared Euclidean distance of one query to every row of the bank, (M,) float64, block by block."""
    return np.concatenate(
        [squared_distances(query[None], bank[None, i : i + block])[0] for i in range(0, len(bank), block)]
    )


def largest_squared_norm(vectors: NDArray[np.float32]) -> float:
    """Largest ‖x‖² of (N, D) float32; NaN or infinite when any value is."""
    return float(np.einsum("nd,nd->n", vectors, vectors).max(initial=0.0))


def proposal_tolerance(largest_query: float, largest_row: float) -> float:
    """How far a proposed squared distance may be off (float32 ‖x‖² + ‖y‖² − 2x·y), with a wide margin.

    Arguments: the largest ‖x‖² of the queries and of the bank. Seen: 1.5e-6 of ‖x‖² at 384 dimensions;
    taken: 1e-5 of the sum.
    """
    return 1e-5 * (largest_query + largest_row)
