"""Proven lower bounds of many distances at once, from one matrix product.

‖x − y‖² = ‖x‖² + ‖y‖² − 2x·y costs one multiplication per coordinate, but in float32 it is off by up to
some D roundings of ‖x‖² + ‖y‖². Here that error is subtracted beforehand: what comes out never lies above
the distance by direct difference (`core.distances`), so a row whose bound lies above a distance already
found is proven not to be nearer. The proof holds for every input, not only for the usual ones.

With coordinates rotated so that the first h carry most of the variance, the bound
‖x − y‖² ≥ ‖head_x − head_y‖² + (‖tail_x‖ − ‖tail_y‖)² (triangle inequality in the other coordinates) is a
distance too, in h + 1 dimensions, and costs h/D of the multiplications.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.distances import UNIT_ROUNDOFF

# Vectors that are widened to float64 at a time: they stay in the cache.
BLOCK_ROWS = 1024

# OpenBLAS computes a product of at most 4 · 65,536 multiplications in one thread (interface/gemm.c,
# GEMM_MULTITHREAD_THRESHOLD); waiting for a second thread took 5 ms on a PC with other work to do, 16 million
# multiplications take half a millisecond.
_UNDIVIDED_PRODUCT = 4 << 16
_ONE_THREAD_PRODUCTS = 1 << 24

_ROTATION_SAMPLE = 8192
_POWER_STEPS = 4

_ALL = slice(None)


def multiply(
    left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32] | None = None, repeats: float = 1
) -> NDArray[np.float32]:
    """left @ right, (N, K) by (K, M) float32, in the calling thread where all of it takes less time than another
    thread needs to wake on a busy PC: then in pieces so small that OpenBLAS does not divide them.

    out: (N, M) float32, where to put it; repeats: how many such products follow each other. The same shapes
    are computed in the same order, whatever the values.
    """
    found = np.empty((len(left), right.shape[1]), np.float32) if out is None else out
    per_column = left.size
    step = right.shape[1]
    if per_column * step * repeats <= _ONE_THREAD_PRODUCTS:
        step = max(1, _UNDIVIDED_PRODUCT // per_column)
    for i in range(0, right.shape[1], step):
        np.matmul(left, right[:, i : i + step], out=found[:, i : i + step])
    return found


def squared_norms(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """‖x‖² of each of (N, D) float32, in float64."""
    found = np.empty(len(vectors), np.float64)
    for i in range(0, len(vectors), BLOCK_ROWS):
        wide = vectors[i : i + BLOCK_ROWS].astype(np.float64)
        np.vecdot(wide, wide, out=found[i : i + BLOCK_ROWS])
    return found


@dataclass(frozen=True, slots=True)
class Questions:
    """Queries made ready for a `Table`. left: (Q, d + 1) float32; norms, offset: (Q,) float64."""

    left: NDArray[np.float32]
    norms: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __getitem__(self, which: NDArray[np.int64] | slice) -> "Questions":
        return Questions(self.left[which], self.norms[which], self.offset[which])

    def limits(self, squared: NDArray[np.float64], which: NDArray[np.int64] | slice = _ALL) -> NDArray[np.float32]:
        """What a product must exceed to prove that its row is farther than `squared`, each of the queries `which`."""
        return np.nextafter((squared - self.offset[which]).astype(np.float32), np.float32(np.inf))


class Table:
    """Rows for lower bounds: product(x) + offset(x) ≤ ‖x − row‖² by direct difference, for every row.

    rows: (M, d) float32, centred so that their norms, and with them the error, are small.
    norms: (M,) float64, their ‖y‖².

    Error: with u = 2⁻²⁴ a sum of d + 1 products in any order is off by at most (d + 1)·u of the sum of their
    sizes (Higham 2002, eq. 3.5), here at most ‖x‖² + 2‖y‖²; a ‖x‖² summed in float32 is off by as much of
    itself; centring, rotating and the direct difference itself add some ten roundings of ‖x‖² + ‖y‖².
    κ = (2(d + 1) + 64)·u is larger than all of these together, for ‖x‖² and for ‖y‖².
    """

    def __init__(self, rows: NDArray[np.float32], norms: NDArray[np.float64]) -> None:
        self.kappa = (2 * (rows.shape[1] + 1) + 64) * UNIT_ROUNDOFF
        # Coordinate by coordinate: the layout that a product with few queries reads fastest.
        self.right = np.empty((rows.shape[1] + 1, len(rows)), np.float32)
        np.multiply(rows.T, np.float32(-2), out=self.right[:-1])
        self.right[-1] = norms * (1 - self.kappa)

    def ask(
        self,
        queries: NDArray[np.float32],
        norms: NDArray[np.float64] | None = None,
        centre: NDArray[np.float32] | None = None,
    ) -> Questions:
        """queries: (Q, d) float32, centred (and rotated) like the rows, or to be centred here; norms: (Q,)
        float64, their ‖x‖²: stated where the queries are rotated, for rotating rounds more than summing."""
        left = np.empty((len(queries), queries.shape[1] + 1), np.float32)
        np.subtract(queries, np.float32(0) if centre is None else centre, out=left[:, :-1])
        left[:, -1] = 1
        if norms is None:
            norms = np.einsum("qd,qd->q", left[:, :-1], left[:, :-1]).astype(np.float64)
        return Questions(left, norms, norms * (1 - self.kappa) - self.vanished)

    @property
    def vanished(self) -> float:
        """Covers products and squares that vanish below the smallest float32."""
        return float(self.right.shape[0] * 1e-36)

    def upper(
        self, questions: Questions, which: NDArray[np.int64], products: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Never below the distance of the queries `which` to `rows` of this table, each with its product; (N,) float64.

        Only where the table holds all coordinates. The product is at most κ(‖x‖² + ‖y‖²) above what it stands
        for, ‖y‖²(1 − κ) − 2x·y; so product + offset lies at most 2κ(‖x‖² + ‖y‖²) below the distance. ‖y‖² is
        known as float32, hence the 3.
        """
        sizes = questions.norms[which] + self.right[-1, rows]
        return np.asarray(products + questions.offset[which] + (3 * self.kappa) * sizes + 4 * self.vanished)

    def products(self, left: NDArray[np.float32], start: int, stop: int) -> NDArray[np.float32]:
        """Products of `Questions.left` with the rows start to stop, (Q, stop − start) float32."""
        return multiply(left, self.right[:, start:stop], repeats=self.right.shape[1] / (stop - start))


@dataclass(frozen=True, slots=True)
class Rotation:
    """An orthonormal basis of the directions in which the bank varies most. basis: (D, h) float64."""

    basis: NDArray[np.float64]

    @classmethod
    def of(cls, centred: NDArray[np.float32], dims: int, seed: int = 0) -> "Rotation":
        """The `dims` leading principal directions of (M, D) float32, by subspace iteration over some rows.

        Any orthonormal basis gives valid bounds; a better one gives higher ones.
        """
        rng = np.random.default_rng(seed)
        count = min(len(centred), _ROTATION_SAMPLE)
        sample = centred[np.sort(rng.choice(len(centred), count, replace=False))].astype(np.float64)
        # Tiny or huge values would leave float64 in the products; a scale changes no direction.
        sample /= max(float(np.abs(sample).max(initial=0.0)), 1e-300)
        covariance = sample.T @ sample
        basis = np.linalg.qr(rng.standard_normal((centred.shape[1], dims)))[0]
        for _ in range(_POWER_STEPS):
            basis = np.linalg.qr(covariance @ basis)[0]
        return cls(basis)

    def reduce(self, centred: NDArray[np.float32], norms: NDArray[np.float64]) -> NDArray[np.float32]:
        """(N, D) float32 with their ‖x‖² -> (N, h + 1) float32: head, and the length of the tail."""
        reduced = np.empty((len(centred), self.basis.shape[1] + 1), np.float32)
        # A few queries stay in this thread, as in `multiply`.
        step = BLOCK_ROWS if len(centred) > BLOCK_ROWS // 4 else max(1, _UNDIVIDED_PRODUCT // self.basis.size)
        for i in range(0, len(centred), BLOCK_ROWS):
            wide = centred[i : i + BLOCK_ROWS].astype(np.float64)
            head = np.empty((len(wide), self.basis.shape[1]))
            for j in range(0, len(wide), step):
                np.matmul(wide[j : j + step], self.basis, out=head[j : j + step])
            reduced[i : i + BLOCK_ROWS, :-1] = head
            left = norms[i : i + BLOCK_ROWS] - np.vecdot(head, head)
            reduced[i : i + BLOCK_ROWS, -1] = np.sqrt(np.maximum(left, 0))
        return reduced
