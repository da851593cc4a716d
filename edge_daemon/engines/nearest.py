"""Nearest-neighbour engines. They only propose rows; `core.distances` decides."""

from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.distances import scan
from edge_daemon.errors import EdgeError

Proposals = tuple[NDArray[np.float32], NDArray[np.int64]]


class NearestNeighbour(Protocol):
    """A bank made searchable."""

    @property
    def name(self) -> str:
        """Name in config, recipe and reports."""
        ...

    def nearest(self, queries: NDArray[np.float32], count: int) -> Proposals:
        """The `count` nearest rows of each query, nearest first.

        queries: (Q, D) float32, finite. Returns squared distances (Q, count) float32, off by no more
        than `core.distances.proposal_tolerance`, and rows (Q, count) int64.
        """
        ...


class FlatEngine:
    """Every row compared, by faiss IndexFlatL2."""

    name = "flat"

    def __init__(self, bank: NDArray[np.float32]) -> None:
        self._index = faiss.IndexFlatL2(bank.shape[1])
        self._index.add(bank)

    def nearest(self, queries: NDArray[np.float32], count: int) -> Proposals:
        squared, rows = self._index.search(queries, count)
        return squared, rows


class NumpyEngine:
    """Every row compared by direct difference in float64: the reference, slow on purpose."""

    name = "numpy"

    def __init__(self, bank: NDArray[np.float32]) -> None:
        self._bank = bank

    def nearest(self, queries: NDArray[np.float32], count: int) -> Proposals:
        squared = np.stack([scan(query, self._bank) for query in queries])
        rows = np.argsort(squared, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(squared, rows, axis=1).astype(np.float32), rows.astype(np.int64)


def make_engine(name: str, bank: NDArray[np.float32]) -> NearestNeighbour:
    """The engine of that name over (M, D) float32. Raises EdgeError for an unknown name."""
    match name:
        case "flat" | "auto":
            return FlatEngine(bank)
        case "numpy":
            return NumpyEngine(bank)
        case _:
            raise EdgeError(f"unknown search engine {name!r}: flat, numpy or auto")
