"""Nearest bank rows by matrix products, each proven by direct difference."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.bounds import Questions, Rotation, Table, squared_norms
from edge_daemon.core.distances import pair_distances, squared_distances, upper_bounds
from edge_daemon.core.proof import Nearest

# Values of one product kept at a time, over all its blocks: 32 MB.
_KEPT_VALUES = 1 << 23

# Rows whose distance is taken before the others are looked at again: the best by bound are nearly always
# the nearest, and with the distance to them most of the others drop out.
_FIRST_LOOK = 4

# A reduced table is worth its product only where few rows are left for the direct difference, per query.
_FEW = 64
_FEW_SHARE = 1 / 64


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Queries with all that is known of them. x: (Q, D) as they came; z: centred; norms: of z, float64."""

    x: NDArray[np.float32]
    z: NDArray[np.float32]
    norms: NDArray[np.float64]

    def __getitem__(self, which: NDArray[np.int64] | slice) -> "_Chunk":
        return _Chunk(self.x[which], self.z[which], self.norms[which])


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Candidates: query and row of each, with the bound; by query, then by row."""

    query: NDArray[np.int64]
    row: NDArray[np.int64]
    bound: NDArray[np.float32]

    def __getitem__(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> "_Pairs":
        return _Pairs(self.query[which], self.row[which], self.bound[which])


class ExactSearch:
    """Exact nearest rows of a bank (M, D) float32, finite.

    reduced: dimensions of the table of lower bounds that is asked before the full one; 0 for none.
    """

    def __init__(self, bank: NDArray[np.float32], reduced: int = 0) -> None:
        self.bank = np.ascontiguousarray(bank)
        self._mean = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = self.bank - self._mean
        norms = squared_norms(centred)
        self._full = Table(centred, norms)
        self._rotation = Rotation.of(centred, reduced) if 0 < reduced < bank.shape[1] - 1 else None
        self._reduced = Table(self._rotation.reduce(centred, norms), norms) if self._rotation else None

    def nearest(self, queries: NDArray[np.float32], floor: float = -np.inf, reduced: bool = True) -> Nearest:
        """The nearest row of each query, (Q, D) float32 finite; ties to the lowest row.

        floor: a query that is shown to have a row nearer than this squared distance may come back with that
        row as a bound; the others are exact. reduced: whether to ask the reduced table first.
        """
        found = Nearest(
            np.empty(len(queries), np.float64), np.empty(len(queries), np.int64), np.zeros(len(queries), np.bool_)
        )
        step = max(16, _KEPT_VALUES // len(self.bank))
        use_reduced = reduced and self._reduced is not None
        for i in range(0, len(queries), step):
            x = queries[i : i + step]
            z = x - self._mean
            part = _Chunk(x, z, squared_norms(z))
            result = Nearest(found.squared[i : i + step], found.rows[i : i + step], found.exact[i : i + step])
            left = np.arange(len(x))
            if use_reduced:
                left = self._try_reduced(part, floor, result)
                use_reduced = 2 * len(left) <= len(x)
            if len(left):
                self._in_table(
                    self._full, self._full.ask(z[left], part.norms[left]), part[left], left, floor, result, None
                )
        return found

    def _try_reduced(self, part: _Chunk, floor: float, result: Nearest) -> NDArray[np.int64]:
        """Answer what the reduced table can; returns the queries for which it leaves too many rows."""
        assert self._reduced is not None
        assert self._rotation is not None
        questions = self._reduced.ask(self._rotation.reduce(part.z, part.norms), part.norms)
        few = _FEW + int(len(self.bank) * _FEW_SHARE)
        return self._in_table(self._reduced, questions, part, np.arange(len(part.x)), floor, result, few)

    def _in_table(
        self,
        table: Table,
        questions: Questions,
        part: _Chunk,
        place: NDArray[np.int64],
        floor: float,
        result: Nearest,
        few: int | None,
    ) -> NDArray[np.int64]:
        """Search one table; answers go to `result` at `place`. Returns places with more than `few` rows left."""
        products = table.products(questions)
        rows, least = _lowest(products)
        upper = upper_bounds(part.x, self.bank, rows)
        result.squared[place], result.rows[place] = upper, rows
        open_ = np.flatnonzero(~(upper < floor))
        if not len(open_):
            return open_
        upper[open_] = squared_distances(part.x[open_], self.bank[rows[open_]])
        limits = questions.limits(upper)
        pairs = _below(products, least, limits, open_)
        skipped = np.empty(0, np.int64)
        if few is not None:
            count = np.bincount(pairs.query, minlength=len(part.x))
            skipped = np.flatnonzero(count > few)
            pairs = pairs[count[pairs.query] <= few]
        self._decide(pairs, part.x, questions, upper, place, result)
        return place[skipped]

    def _decide(
        self,
        pairs: _Pairs,
        x: NDArray[np.float32],
        questions: Questions,
        upper: NDArray[np.float64],
        place: NDArray[np.int64],
        result: Nearest,
    ) -> None:
        """The nearest among the candidates, by direct difference; every open query has at least one."""
        if len(pairs.query) > 2 * _FIRST_LOOK * len(x):
            first = _lowest_of_each(pairs, _FIRST_LOOK)
            np.minimum.at(upper, first.query, pair_distances(x, first.query, self.bank, first.row))
            pairs = pairs[pairs.bound <= questions.limits(upper)[pairs.query]]
        if not len(pairs.query):
            return
        squared = pair_distances(x, pairs.query, self.bank, pairs.row)
        starts = np.flatnonzero(np.diff(pairs.query, prepend=-1))
        least = np.minimum.reduceat(squared, starts)
        which = pairs.query[starts]
        # Rows ascend within a query: the first that equals the least is the lowest.
        hits = np.flatnonzero(squared == np.repeat(least, np.diff(starts, append=len(squared))))
        lowest = hits[np.searchsorted(hits, starts)]
        target = place[which]
        result.squared[target], result.rows[target], result.exact[target] = least, pairs.row[lowest], True

    def neighbours(self, query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The `count` rows nearest to one vector (D,), nearest first, ties to the lowest row; all if fewer."""
        count = min(count, len(self.bank))
        x = query[None]
        z = x - self._mean
        norms = squared_norms(z)
        table = self._full
        if self._reduced is not None and self._rotation is not None:
            table, z = self._reduced, self._rotation.reduce(z, norms)
        questions = table.ask(z, norms)
        products = np.concatenate(table.products(questions), axis=1)[0]
        first = np.argpartition(products, count - 1)[:count]
        farthest = squared_distances(x, self.bank[first][None])[0].max(keepdims=True)
        rows = np.flatnonzero(products <= questions.limits(farthest))
        squared = pair_distances(x, np.zeros(len(rows), np.int64), self.bank, rows)
        return rows[np.argsort(squared, kind="stable")][:count]


def _lowest(products: list[NDArray[np.float32]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Row of the lowest product of each query, and the lowest product of each block, (blocks, Q)."""
    index = np.arange(len(products[0]))
    columns = np.empty((len(products), len(index)), np.int64)
    least = np.empty((len(products), len(index)), np.float32)
    for number, block in enumerate(products):
        columns[number] = block.argmin(axis=1)
        least[number] = block[index, columns[number]]
    best = least.argmin(axis=0)
    return columns[best, index] + best * products[0].shape[1], least


def _below(
    products: list[NDArray[np.float32]],
    least: NDArray[np.float32],
    limits: NDArray[np.float32],
    which: NDArray[np.int64],
) -> _Pairs:
    """Every row that the products do not prove farther than the limit, of the queries `which` (ascending)."""
    found = []
    for number in np.flatnonzero((least[:, which] <= limits[which]).any(axis=1)):
        asked = which[least[number, which] <= limits[which]]
        part = products[number][asked]
        hits = np.flatnonzero((part <= limits[asked][:, None]).ravel())
        query, column = np.divmod(hits, part.shape[1])
        found.append((asked[query], column + number * products[0].shape[1], part.ravel()[hits]))
    query, row, bound = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if len(found) > 1:
        order = np.argsort(query, kind="stable")
        query, row, bound = query[order], row[order], bound[order]
    return _Pairs(query, row, bound)


def _lowest_of_each(pairs: _Pairs, count: int) -> _Pairs:
    """The `count` candidates of each query with the lowest bounds."""
    order = np.lexsort((pairs.bound, pairs.query))
    query = pairs.query[order]
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    rank = np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query)))
    return pairs[order[rank < count]]
