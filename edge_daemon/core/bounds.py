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

# Rows of one matrix product with many queries: its result stays in the cache until its minima are taken.
BLOCK_ROWS = 1024

# Values of one block, and its most rows: few products where few queries are asked.
_BLOCK_VALUES = 1 << 20
_WIDEST = 1 << 14

# OpenBLAS computes a product of at most 4 · 65,536 multiplications in one thread (interface/gemm.c,
# GEMM_MULTITHREAD_THRESHOLD); waiting for a second thread took 5 ms on a PC with other work to do, 16 million
# multiplications take half a millisecond.
_UNDIVIDED_PRODUCT = 4 << 16
_ONE_THREAD_PRODUCTS = 1 << 24

_ROTATION_SAMPLE = 8192
_POWER_STEPS = 4


def squared_norms(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """‖x‖² of each of (N, D) float32, in float64."""
    found = np.empty(len(vectors), np.float64)
    for i in range(0, len(vectors), BLOCK_ROWS):
        wide = vectors[i : i + BLOCK_ROWS].astype(np.float64)
        np.einsum("nd,nd->n", wide, wide, out=found[i : i + BLOCK_ROWS])
    return found


@dataclass(frozen=True, slots=True)
class Questions:
    """Queries made ready for a `Table`. left: (Q, d + 1) float32; offset: (Q,) float64."""

    left: NDArray[np.float32]
    offset: NDArray[np.float64]

    def __getitem__(self, which: NDArray[np.int64] | slice) -> "Questions":
        return Questions(self.left[which], self.offset[which])

    def limits(self, squared: NDArray[np.float64]) -> NDArray[np.float32]:
        """What a product must exceed to prove that its row is farther than `squared`, (Q,) each."""
        return np.nextafter((squared - self.offset).astype(np.float32), np.float32(np.inf))


class Table:
    """Rows for lower bounds: product(x) + offset(x) ≤ ‖x − row‖² by direct difference, for every row.

    rows: (M, d) float32, centred so that their norms, and with them the error, are small.
    norms: (M,) float64, their ‖y‖².

    Error: with u = 2⁻²⁴ a sum of d + 1 products in any order is off by at most (d + 1)·u of the sum of their
    sizes (Higham 2002, eq. 3.5), here at most ‖x‖² + 2‖y‖²; centring, rotating and the direct difference
    itself add some ten roundings of ‖x‖² + ‖y‖². κ below is larger than all of these together.
    """

    def __init__(self, rows: NDArray[np.float32], norms: NDArray[np.float64]) -> None:
        self.kappa = (2 * (rows.shape[1] + 1) + 64) * UNIT_ROUNDOFF
        # Coordinate by coordinate: the layout that a product with few queries reads fastest.
        self.right = np.empty((rows.shape[1] + 1, len(rows)), np.float32)
        self.right[:-1] = rows.T
        self.right[-1] = norms * (1 - self.kappa)

    def ask(self, queries: NDArray[np.float32], norms: NDArray[np.float64]) -> Questions:
        """queries: (Q, d) float32, centred (and rotated) like the rows; norms: (Q,) float64, their ‖x‖²."""
        left = np.empty((len(queries), queries.shape[1] + 1), np.float32)
        np.multiply(queries, np.float32(-2), out=left[:, :-1])
        left[:, -1] = 1
        # The constant covers products that vanish below the smallest float32.
        return Questions(left, norms * (1 - self.kappa) - queries.shape[1] * 1e-36)

    def products(self, questions: Questions) -> list[NDArray[np.float32]]:
        """Blocks of (Q, w) float32, in the order of the rows; all of the same width but the last."""
        width = self._width(len(questions.left))
        return [questions.left @ self.right[:, i : i + width] for i in range(0, self.right.shape[1], width)]

    def _width(self, queries: int) -> int:
        """Rows of one product. Where the whole takes less than a thread needs to wake on a busy PC, the products
        are so small that OpenBLAS keeps them in the calling thread."""
        per_row = queries * self.right.shape[0]
        if per_row * self.right.shape[1] <= _ONE_THREAD_PRODUCTS:
            return int(max(1, _UNDIVIDED_PRODUCT // per_row))
        return int(min(max(_BLOCK_VALUES // queries, BLOCK_ROWS), _WIDEST))


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
        # A few queries stay in this thread, as in `Table.products`.
        step = BLOCK_ROWS if len(centred) > BLOCK_ROWS // 4 else max(1, _UNDIVIDED_PRODUCT // self.basis.size)
        for i in range(0, len(centred), step):
            head = centred[i : i + step].astype(np.float64) @ self.basis
            reduced[i : i + step, :-1] = head
            left = norms[i : i + step] - np.einsum("nd,nd->n", head, head)
            reduced[i : i + step, -1] = np.sqrt(np.maximum(left, 0))
        return reduced
