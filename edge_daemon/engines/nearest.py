"""Nearest-neighbour engines behind one interface. They differ in time, never in a result."""

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.distances import LARGEST_SQUARED_NORM, largest_squared_norm, scan
from edge_daemon.core.proof import Maximum, Nearest, best_of
from edge_daemon.core.search import ExactSearch
from edge_daemon.engines.certified import CertifiedEngine
from edge_daemon.engines.choice import by_rule
from edge_daemon.engines.device import SearchGraphs
from edge_daemon.engines.graph import GraphEngine
from edge_daemon.engines.sessions import EngineOptions, Sessions
from edge_daemon.errors import EdgeError

ENGINES = ("auto", "certified", "flat", "numpy", "graph")


class NearestNeighbour(Protocol):
    """A bank made searchable. Safe to use from several threads; holds nothing of the frames it has seen."""

    @property
    def name(self) -> str:
        """Name in config, recipe and reports."""
        ...

    def maximum(self, patches: NDArray[np.float32], grid: tuple[int, int], hints: NDArray[np.int64] | None) -> Maximum:
        """The patch farthest from its nearest bank row, proven; ties to the lowest patch, then row.

        patches: (P, D) float32, ‖x‖² ≤ LARGEST_SQUARED_NORM; grid: (gh, gw), P = gh·gw; hints: (K, P) int64,
        any bank rows, likely ones first (`core.proof.remember`), or None. Hints change the time and which
        of the other patches come back as bounds, nothing else.
        """
        ...

    def complete(self, patches: NDArray[np.float32]) -> Nearest:
        """The nearest row of every patch, (P, D) float32, all exact."""
        ...

    def neighbours(self, row: int, count: int) -> NDArray[np.int64]:
        """The `count` bank rows nearest to a bank row, nearest first, ties to the lowest; all if fewer."""
        ...


def _maximum_of(nearest: Nearest) -> Maximum:
    squared, patch = best_of(nearest)
    return Maximum(patch, int(nearest.rows[patch]), squared, nearest, len(nearest.rows))


class FlatEngine:
    """Every row compared, by one blocked matrix product; equal to faiss IndexFlatL2 in time at 384
    dimensions, three to five times faster at 96."""

    name = "flat"

    def __init__(self, bank: NDArray[np.float32]) -> None:
        self._search = ExactSearch(bank)
        self._neighbours = lru_cache(maxsize=4096)(self._find_neighbours)

    def maximum(
        self,
        patches: NDArray[np.float32],
        grid: tuple[int, int],  # noqa: ARG002
        hints: NDArray[np.int64] | None,  # noqa: ARG002
    ) -> Maximum:
        return _maximum_of(self.complete(patches))

    def complete(self, patches: NDArray[np.float32]) -> Nearest:
        return self._search.nearest(patches)

    def neighbours(self, row: int, count: int) -> NDArray[np.int64]:
        return self._neighbours(row, count)

    def _find_neighbours(self, row: int, count: int) -> NDArray[np.int64]:
        return self._search.neighbours(self._search.bank[row], count)


class NumpyEngine:
    """Every row compared by direct difference in float64: the reference, slow on purpose."""

    name = "numpy"

    def __init__(self, bank: NDArray[np.float32]) -> None:
        self._bank = bank

    def maximum(
        self,
        patches: NDArray[np.float32],
        grid: tuple[int, int],  # noqa: ARG002
        hints: NDArray[np.int64] | None,  # noqa: ARG002
    ) -> Maximum:
        return _maximum_of(self.complete(patches))

    def complete(self, patches: NDArray[np.float32]) -> Nearest:
        found = Nearest.unknown(len(patches))
        for i, patch in enumerate(patches):
            squared = scan(patch, self._bank)
            found.rows[i] = squared.argmin()
            found.squared[i] = squared[found.rows[i]]
        found.exact[:] = True
        return found

    def neighbours(self, row: int, count: int) -> NDArray[np.int64]:
        return np.argsort(scan(self._bank[row], self._bank), kind="stable")[:count]


def make_engine(name: str, bank: NDArray[np.float32], graphs: SearchGraphs | None = None) -> NearestNeighbour:
    """The engine of that name over (M, D) float32; `auto` is certified, and flat for a small bank.

    graphs: where `graph` computes; on the CPU by default. Raises EdgeError for an unknown name, an empty bank,
    and values that are not finite or too large.
    """
    if bank.ndim != 2 or 0 in bank.shape or bank.dtype != np.float32:
        raise EdgeError(f"a memory bank is (rows, dims) float32 with at least one row, not {bank.shape} {bank.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        largest = largest_squared_norm(bank)
    if not largest <= LARGEST_SQUARED_NORM:
        raise EdgeError(
            f"the memory bank holds values that are not finite or too large (largest squared norm {largest:g}): "
            "nothing can be judged by it; build the recipe anew"
        )
    match by_rule(len(bank)) if name == "auto" else name:
        case "certified":
            return CertifiedEngine(bank)
        case "flat":
            return FlatEngine(bank)
        case "graph":
            return GraphEngine(bank, graphs or Sessions(EngineOptions()).graphs())
        case "numpy":
            return NumpyEngine(bank)
        case _:
            raise EdgeError(f"unknown search engine {name!r}: {', '.join(ENGINES)}")
