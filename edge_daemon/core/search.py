"""Nearest bank rows by matrix products, each proven by direct difference."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.bounds import Questions, Rotation, Table, multiply, squared_norms
from edge_daemon.core.cells import Cells
from edge_daemon.core.distances import pair_distances, squared_distances, upper_bounds
from edge_daemon.core.proof import Nearest

# Queries searched together, values of one block of their products (4 MB: their minima are taken while the
# cache holds them), and the rows of a block at least and at most.
_QUERIES = 1024
_BLOCK_VALUES = 1 << 20
_NARROWEST, _WIDEST = 1 << 10, 1 << 14

# A bank of fewer rows is read as a whole for less than asking which cells to leave out.
_CELLS_FROM_ROWS = 1 << 14

# Values of one block of cells: many enough for the calls of numpy that each takes, few enough for queries that keep
# different cells not to share one.
_CELL_BLOCK_VALUES = 1 << 17

# Candidates kept before they are decided: 6 MB, also where all rows are equally near.
_KEPT_PAIRS = 1 << 18

# Rows whose distance is taken before the others are looked at again: the best by bound are nearly always
# the nearest, and with the distance to them most of the others drop out.
_FIRST_LOOK = 4

# A reduced table is worth its product only where few rows are left for the direct difference, per query.
_FEW = 64
_FEW_SHARE = 1 / 64


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Candidates: query and row (of the bank) of each, with the product that bounds its distance."""

    query: NDArray[np.int64]
    row: NDArray[np.int64]
    bound: NDArray[np.float32]

    def __getitem__(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> "_Pairs":
        return _Pairs(self.query[which], self.row[which], self.bound[which])

    def __len__(self) -> int:
        return len(self.query)

    @classmethod
    def joined(cls, parts: list["_Pairs"]) -> "_Pairs":
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("query", "row", "bound")))


# Queries, their products with some rows and those rows of the table -> bounds of the distances from above.
_Upper = Callable[[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]], NDArray[np.float64]]


class ExactSearch:
    """Exact nearest rows of a bank (M, D) float32, finite.

    reduced: dimensions of the table of lower bounds that is asked before the full one; 0 for none.

    The tables hold the rows shuffled, so that every block of them is a sample of the bank: a query that needs
    only some row nearer than the floor finds one in the first block. A coreset is in the order of its picks,
    the outliers first. Of a large bank only the first blocks are such a sample; the other rows lie in cells.
    """

    def __init__(self, bank: NDArray[np.float32], reduced: int = 0) -> None:
        self.bank = np.ascontiguousarray(bank)
        self._order = np.random.default_rng(0).permutation(len(bank))
        self._mean = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = self.bank[self._order]
        centred -= self._mean
        norms = squared_norms(centred)
        self._rotation = Rotation.of(centred, reduced) if 0 < reduced < bank.shape[1] - 1 else None
        self._reduced: Table | None = None
        self._cells: Cells | None = None
        if self._rotation:
            rows = self._rotation.reduce(centred, norms)
            if len(bank) >= _CELLS_FROM_ROWS:
                self._cells = Cells.of(rows, norms)
                place = self._cells.order
                self._order, rows, norms = self._order[place], rows[place], norms[place]
                centred = centred[place]
            self._reduced = Table(rows, norms)
        self._full = Table(centred, norms)

    def nearest(
        self,
        queries: NDArray[np.float32],
        floor: float = -np.inf,
        reduced: bool = True,
        within: NDArray[np.float64] | None = None,
    ) -> Nearest:
        """The nearest row of each query, (Q, D) float32 finite; ties to the lowest row.

        floor: a query that is shown to have a row nearer than this squared distance may come back with that
        row as a bound; the others are exact. An infinite floor gives bounds from the first block alone.
        reduced: whether to ask the reduced table first. within: (Q,) float64, what is known already: squared
        distances (or a little more) to some rows; it comes back, without a row, where nothing was nearer.
        Raises ValueError when a nearest row was not found: never a guess.
        """
        found = Nearest.unknown(len(queries))
        if within is not None:
            found.squared[:] = np.where(np.isnan(within), np.inf, within)  # NaN is no distance to any row
        use_reduced = reduced and self._reduced is not None
        for i in range(0, len(queries), _QUERIES):
            part = slice(i, i + _QUERIES)
            result = Nearest(found.squared[part], found.rows[part], found.exact[part])
            left = np.arange(len(result.rows))
            if use_reduced:
                left = self._in_reduced(queries[part], floor, result)
                use_reduced = 2 * len(left) <= len(result.rows)
            if len(left) == len(result.rows):
                self._in_full(queries[part], floor, result)
            elif len(left):
                rest = Nearest(result.squared[left], result.rows[left], result.exact[left])
                self._in_full(queries[part][left], floor, rest)
                result.squared[left], result.rows[left], result.exact[left] = rest.squared, rest.rows, rest.exact
        if not (found.exact | (found.squared < floor)).all():
            raise ValueError("a search gave neither a nearest row nor a bound below the floor")
        return found

    def _in_full(self, x: NDArray[np.float32], floor: float, result: Nearest) -> None:
        questions = self._full.ask(x, centre=self._mean)
        upper = partial(self._full.upper, questions)
        _Scan(self.bank, self._order, self._full, x, questions, upper, floor, result, self._in_cells(x)).run(None)

    def _in_reduced(self, x: NDArray[np.float32], floor: float, result: Nearest) -> NDArray[np.int64]:
        """Answer what the reduced table can; returns the queries for which it leaves too many rows."""
        assert self._reduced is not None
        questions = self._ask_reduced(x)
        upper = partial(self._upper_by_difference, x)
        few = _FEW + int(len(self.bank) * _FEW_SHARE)
        cells = self._in_cells(x, questions)
        return _Scan(self.bank, self._order, self._reduced, x, questions, upper, floor, result, cells).run(few)

    def _in_cells(self, x: NDArray[np.float32], questions: Questions | None = None) -> "_InCells | None":
        """The cells, as these queries see them; questions: those of the reduced table, if at hand."""
        cells, table = self._cells, self._reduced
        if cells is None or table is None:
            return None

        def ask(which: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            asked = questions[which] if questions else self._ask_reduced(x[which])
            return cells.ask(asked.left[:, :-1], asked.norms, table.kappa, table.vanished)

        return _InCells(cells.edges, ask)

    def _upper_by_difference(
        self,
        x: NDArray[np.float32],
        which: NDArray[np.int64],
        products: NDArray[np.float32],  # noqa: ARG002
        rows: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        return upper_bounds(x[which], self.bank, self._order[rows])

    def _ask_reduced(self, x: NDArray[np.float32]) -> Questions:
        assert self._reduced is not None
        assert self._rotation is not None
        z = x - self._mean
        norms = squared_norms(z)
        return self._reduced.ask(self._rotation.reduce(z, norms), norms)

    def _ask_smaller(self, x: NDArray[np.float32]) -> tuple[Table, Questions]:
        """The reduced table where there is one, else the full one, and the queries made ready for it."""
        if self._reduced is not None:
            return self._reduced, self._ask_reduced(x)
        return self._full, self._full.ask(x, centre=self._mean)

    def glance(self, queries: NDArray[np.float32], rows: int) -> Nearest:
        """A bound for each of (Q, D) float32: the row that the smaller table takes for the nearest of some `rows`."""
        found = Nearest.unknown(len(queries))
        rows = min(rows, len(self._order))
        block = max(1, _BLOCK_VALUES // rows)
        for i in range(0, len(queries), block):
            table, questions = self._ask_smaller(queries[i : i + block])
            place = table.products(questions.left, 0, rows).argmin(axis=1)
            found.rows[i : i + block] = self._order[place]
        found.squared[:] = upper_bounds(queries, self.bank, found.rows)
        return found

    def neighbours(self, query: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """The `count` rows nearest to one vector (D,), nearest first, ties to the lowest row; all if fewer."""
        count = min(count, len(self.bank))
        x = query[None]
        table, questions = self._ask_smaller(x)
        products = table.products(questions.left, 0, len(self.bank))[0]
        first = self._order[np.argpartition(products, count - 1)[:count]]
        farthest = squared_distances(x, self.bank[first][None])[0].max(keepdims=True)
        rows = np.sort(self._order[np.flatnonzero(products <= questions.limits(farthest))])
        squared = pair_distances(x, np.zeros(len(rows), np.int64), self.bank, rows)
        return rows[np.argsort(squared, kind="stable")][:count]


# Queries, rows of the table, and the products of these with those.
_Block = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class _InCells:
    """Where in the table each cell begins, and the last ends, (K + 1,) int64; ask: queries -> what
    `Cells.ask` says of them."""

    edges: NDArray[np.int64]
    ask: Callable[[NDArray[np.int64]], tuple[NDArray[np.float64], NDArray[np.float64]]]


class _Scan:
    """One pass of some queries over a table, block by block.

    Of each block a query takes the row with the lowest product; where its upper bound lies below what is
    known, that is the new limit. A row whose product exceeds its query's limit is proven farther than a row
    that is known, and left out; the others are candidates, and among these the direct difference decides.
    A query that is shown to lie nearer than the floor takes no further part.
    """

    def __init__(
        self,
        bank: NDArray[np.float32],
        order: NDArray[np.int64],
        table: Table,
        x: NDArray[np.float32],
        questions: Questions,
        upper: _Upper,
        floor: float,
        result: Nearest,
        cells: _InCells | None = None,
    ) -> None:
        self._bank, self._order, self._table = bank, order, table
        self._x, self._questions, self._upper = x, questions, upper
        self._floor, self._result, self._cells = floor, result, cells
        self._limit = questions.limits(result.squared)
        self._limit[result.squared < floor] = -np.inf

    def run(self, few: int | None) -> NDArray[np.int64]:
        """Fill the result; returns the queries for which more than `few` candidates are left, unanswered."""
        waiting: list[_Pairs] = []
        skipped = [np.empty(0, np.int64)]
        for active, places, products in self._blocks():
            waiting += self._candidates(active, products, places)
            if sum(map(len, waiting)) > _KEPT_PAIRS:
                skipped.append(self._decide(waiting, few))
                waiting = []
        skipped.append(self._decide(waiting, few))
        return np.unique(np.concatenate(skipped))

    def _blocks(self) -> Iterator[_Block]:
        """Queries that are still open, rows of the table and their products, until every query has met every row that
        is not proven to be farther than one it knows."""
        active, left = np.arange(len(self._x)), self._questions.left
        start, end = 0, len(self._order) if self._cells is None else int(self._cells.edges[0])
        while start < end and len(active):
            stop = min(end, start + self._width(start, len(active)))
            yield active, np.arange(start, stop), self._table.products(left, start, stop)
            open_ = self._limit[active] > -np.inf
            if not open_.all():
                active, left = active[open_], left[open_]
            start = stop
        if end < len(self._order) and self._cells is not None and len(active):
            yield from self._blocks_of_cells(active, self._cells)

    def _blocks_of_cells(self, active: NDArray[np.int64], cells: _InCells) -> Iterator[_Block]:
        """First the cell that each query lies in: what it finds there leaves few others, or closes it."""
        centres, lower = cells.ask(active)
        home = centres.argmin(axis=1)
        own = home[:, None] == np.arange(lower.shape[1])
        yield from self._kept_blocks(active, own, cells.edges)
        own |= lower > self._result.squared[active][:, None]
        yield from self._kept_blocks(active, ~own, cells.edges)

    def _kept_blocks(
        self, active: NDArray[np.int64], kept: NDArray[np.bool_], edges: NDArray[np.int64]
    ) -> Iterator[_Block]:
        """kept: (Q, K), which of the cells each query looks at."""
        kept = kept & (self._limit[active] > -np.inf)[:, None]
        for which in _grouped(kept.sum(axis=0), np.diff(edges), len(active)):
            asking = kept[:, which].any(axis=1) & (self._limit[active] > -np.inf)
            if not asking.any():
                continue
            who = active[asking]
            left = self._questions.left[who]
            runs = [(int(edges[i]), int(edges[i + 1])) for i in which]
            places = np.concatenate([np.arange(start, stop) for start, stop in runs])
            products = np.empty((len(who), len(places)), np.float32)
            at = 0
            for start, stop in runs:
                multiply(left, self._table.right[:, start:stop], out=products[:, at : at + stop - start])
                at += stop - start
            yield who, places, products

    def _width(self, start: int, queries: int) -> int:
        """Rows of the next block: the more, the fewer queries are left; where one near row is enough, the first
        blocks are small."""
        widest = _WIDEST if self._floor == -np.inf else min(_WIDEST, max(_NARROWEST, 3 * start))
        return min(len(self._order) - start, widest, max(_BLOCK_VALUES // queries, _NARROWEST))

    def _candidates(
        self, active: NDArray[np.int64], block: NDArray[np.float32], places: NDArray[np.int64]
    ) -> list[_Pairs]:
        """Rows of one block that may be nearest, the lowest product first; `block` is used up."""
        index = np.arange(len(active))
        column = block.argmin(axis=1)
        least = block[index, column]
        asked = (least <= self._limit[active]).nonzero()[0]
        if not len(asked):
            return []
        self._tighten(active[asked], least[asked], places[column[asked]])
        asked = asked[least[asked] <= self._limit[active[asked]]]
        found = [_Pairs(active[asked], self._order[places[column[asked]]], least[asked])]
        block[asked, column[asked]] = np.inf
        part = block if len(asked) == len(active) else block[asked]
        second = part[index[: len(asked)], part.argmin(axis=1)]
        more = (second <= self._limit[active[asked]]).nonzero()[0]
        if len(more):
            part, who = part[more], active[asked[more]]
            hits = np.flatnonzero((part <= self._limit[who][:, None]).ravel())
            query, place = np.divmod(hits, part.shape[1])
            found.append(_Pairs(who[query], self._order[places[place]], part.ravel()[hits]))
        return found

    def _tighten(self, who: NDArray[np.int64], least: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Lower the bounds of some queries by one row each; close those that come below the floor."""
        upper = self._upper(who, least, rows)
        better = upper < self._result.squared[who]
        place = who[better]
        self._result.squared[place], self._result.rows[place] = upper[better], self._order[rows[better]]
        self._result.exact[place] = False
        self._limit[place] = self._questions.limits(upper[better], place)
        closed = who[self._result.squared[who] < self._floor]
        self._limit[closed] = -np.inf
        # Also of those that were decided among the rows so far: the rest of the rows are not looked at.
        self._result.exact[closed] = False

    def _decide(self, waiting: list[_Pairs], few: int | None) -> NDArray[np.int64]:
        """The nearest among the candidates, by direct difference. Returns queries with more than `few`."""
        pairs = _Pairs.joined(waiting)
        pairs = pairs[pairs.bound <= self._limit[pairs.query]]
        skipped = np.empty(0, np.int64)
        if few is not None:
            count = np.bincount(pairs.query, minlength=len(self._x))
            skipped = (count > few).nonzero()[0]
            self._limit[skipped] = -np.inf
            self._result.exact[skipped] = False
            pairs = pairs[count[pairs.query] <= few]
            pairs = self._look_first(pairs)
        if len(pairs):
            self._enter(pairs)
        return skipped

    def _look_first(self, pairs: _Pairs) -> _Pairs:
        """Leave out what the distances of the first few candidates of each query exclude."""
        if len(pairs) <= 2 * _FIRST_LOOK * len(self._x):
            return pairs
        first = _lowest_of_each(pairs, _FIRST_LOOK)
        nearest = self._result.squared.copy()
        np.minimum.at(nearest, first.query, pair_distances(self._x, first.query, self._bank, first.row))
        return pairs[pairs.bound <= self._questions.limits(nearest)[pairs.query]]

    def _enter(self, pairs: _Pairs) -> None:
        """Enter the nearest candidate of each query, ties to the lowest row, where nothing exact is nearer."""
        query, row = pairs.query, pairs.row
        alone = bool((query[1:] > query[:-1]).all())
        if not alone:
            order = np.argsort(query, kind="stable")
            query, row = query[order], row[order]
        squared = pair_distances(self._x, query, self._bank, row)
        if not alone:
            starts = np.flatnonzero(np.diff(query, prepend=-1))
            lengths = np.diff(starts, append=len(query))
            least = np.minimum.reduceat(squared, starts)
            row = np.minimum.reduceat(np.where(squared == np.repeat(least, lengths), row, len(self._bank)), starts)
            query, squared = query[starts], least
        known = self._result
        nearer = (squared < known.squared[query]) | ((squared == known.squared[query]) & (row < known.rows[query]))
        nearer |= ~known.exact[query]
        place = query[nearer]
        known.squared[place], known.rows[place], known.exact[place] = squared[nearer], row[nearer], True
        self._limit[place] = self._questions.limits(squared[nearer], place)


def _grouped(queries: NDArray[np.int64], rows: NDArray[np.int64], most: int) -> Iterator[list[int]]:
    """Cells that some query keeps, as many at a time as fill a block.

    queries, rows: (K,) int64, how many keep each cell, and its size; most: queries in all.
    """
    group: list[int] = []
    width = height = 0
    for cell in queries.nonzero()[0].tolist():
        width += int(rows[cell])
        height = min(most, height + int(queries[cell]))
        if group and width * height > _CELL_BLOCK_VALUES:
            yield group
            group, width, height = [], int(rows[cell]), int(queries[cell])
        group.append(cell)
    if group:
        yield group


def _lowest_of_each(pairs: _Pairs, count: int) -> _Pairs:
    """The `count` candidates of each query with the lowest bounds."""
    order = np.lexsort((pairs.bound, pairs.query))
    query = pairs.query[order]
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    rank = np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query)))
    return pairs[order[rank < count]]
