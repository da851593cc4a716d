"""The search on the session's provider: the bank lies on the device and is an input of a small graph."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_daemon.core.bounds import squared_norms
from edge_daemon.core.distances import UNIT_ROUNDOFF, pair_distances, squared_distances
from edge_daemon.core.proof import Maximum, Nearest, prove_maximum
from edge_daemon.engines.device import DevicePatches, SearchGraphs
from edge_daemon.errors import EdgeError

# Rows of one run. 1,024 patches make 64 MB of products with them, the most that lies on the device at a time.
_BLOCK_ROWS = 1 << 14
_LEAST_ROWS = 256

# Lowest products fetched of each query and block. Where more rows could be the nearest, eight times as many.
_FIRST_COUNT = 8
_GROWTH = 8

# Queries of one run that come from the host, and candidates looked at together: 128 MB and 32 MB.
_QUERIES = 2048
_KEPT_CANDIDATES = 1 << 21

_PROBES = 16


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows on the device. start: the first one in the bank; rows: without padding."""

    start: int
    rows: int
    bank: ort.OrtValue
    norms: ort.OrtValue


@dataclass(frozen=True, slots=True)
class _Proposals:
    """The lowest products of each query. offset, norms: (Q,) float64; product, row: (Q, K) float32 and int64;
    unseen: (Q,) float32, what no product of any other row lies below."""

    norms: NDArray[np.float64]
    offset: NDArray[np.float64]
    product: NDArray[np.float32]
    row: NDArray[np.int64]
    unseen: NDArray[np.float32]

    def __getitem__(self, which: NDArray[np.int64]) -> "_Proposals":
        return _Proposals(
            self.norms[which], self.offset[which], self.product[which], self.row[which], self.unseen[which]
        )


class GraphEngine:
    """Rows proposed by matrix product on the device, decided on the host by direct difference.

    A product of the device plus an offset never lies above the distance by direct difference, and at most
    2κ(‖x‖² + ‖y‖²) below it: the bounds of `core.bounds.Table`, whose κ covers float32 sums in any order. Only
    the lowest products are fetched; a query for which the rest is not proven farther is asked again for more of
    them, at last for all. So the answer is that of a full search to the bit, on any provider that computes in
    float32. One that does not, as cards do that shorten factors to 10 bits (TF32), is refused when the engine
    is made, and every distance that is ever taken is held against its bounds.

    Rows are padded to few different sizes, so that a bank of similar size finds the device's memory as the last
    one left it; sessions take every size. Padding has an infinite norm, and its row numbers are none of the bank.
    """

    name = "graph"

    def __init__(self, bank: NDArray[np.float32], graphs: SearchGraphs) -> None:
        """bank: (M, D) float32, as `make_engine` has checked it. Raises EdgeError, ProviderError."""
        self.graphs = graphs
        self.provider = graphs.graph("nearest").provider
        self._bank = np.ascontiguousarray(bank)
        self._kappa = (2 * (bank.shape[1] + 1) + 64) * UNIT_ROUNDOFF
        self._vanished = (bank.shape[1] + 1) * 1e-36
        self._mean = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._norms = np.empty(len(bank), np.float64)
        self._centre = graphs.upload(self._mean)
        self._blocks = [self._block(start) for start in range(0, len(bank), _BLOCK_ROWS)]
        self._neighbours = lru_cache(maxsize=4096)(self._find_neighbours)
        self._probe()

    def _block(self, start: int) -> _Block:
        rows = self._bank[start : start + _BLOCK_ROWS] - self._mean
        self._norms[start : start + len(rows)] = own = squared_norms(rows)
        size = padded_rows(len(rows))
        bank = np.zeros((size, rows.shape[1]), np.float32)
        bank[: len(rows)] = rows
        norms = np.full(size, np.inf, np.float32)
        norms[: len(rows)] = own * (1 - self._kappa)
        return _Block(start, len(rows), self.graphs.upload(bank), self.graphs.upload(norms))

    def _probe(self) -> None:
        """Bank rows and points between them must come out within the bounds. Raises EdgeError."""
        index = np.linspace(0, len(self._bank) - 1, _PROBES).astype(np.int64)
        rows = self._bank[index]
        self.complete(np.concatenate([rows, (rows + rows[::-1]) * np.float32(0.5)]))

    def maximum(
        self,
        patches: NDArray[np.float32] | DevicePatches,
        grid: tuple[int, int],  # noqa: ARG002
        hints: NDArray[np.int64] | None,  # noqa: ARG002
    ) -> Maximum:
        """See `engines.nearest.NearestNeighbour.maximum`; patches may lie on the device."""
        proposed = self._propose(patches, _FIRST_COUNT)
        nearest = Nearest(self._upper(proposed), proposed.row[:, 0], np.zeros(len(patches), np.bool_))

        def search(which: NDArray[np.int64], floor: float) -> Nearest:  # noqa: ARG001
            return self._decide(np.ascontiguousarray(patches[which]), proposed[which])

        squared, patch, searches = prove_maximum(nearest, search)
        return Maximum(patch, int(nearest.rows[patch]), squared, nearest, searches)

    def complete(self, patches: NDArray[np.float32]) -> Nearest:
        """See `engines.nearest.NearestNeighbour.complete`."""
        found = Nearest.unknown(len(patches))
        for start in range(0, len(patches), _QUERIES):
            part = np.ascontiguousarray(patches[start : start + _QUERIES])
            place = np.arange(start, start + len(part))
            found.take(place, self._decide(part, self._propose(part, _FIRST_COUNT)))
        return found

    def neighbours(self, row: int, count: int) -> NDArray[np.int64]:
        """See `engines.nearest.NearestNeighbour.neighbours`; remembered, for the same rows come again."""
        return self._neighbours(row, count)

    def _find_neighbours(self, row: int, count: int) -> NDArray[np.int64]:
        query, count = self._bank[row][None], min(count, len(self._bank))
        asked = max(_FIRST_COUNT, 2 * count)
        while True:
            proposed = self._propose(query, asked)
            rows = proposed.row[0][proposed.row[0] < len(self._bank)]
            squared = squared_distances(query, self._bank[rows][None])[0]
            order = np.lexsort((rows, squared))[:count]
            farthest = squared[order[-1:]]
            if len(order) == count and not (proposed.unseen <= _limits(farthest, proposed.offset)).any():
                return np.asarray(rows[order], np.int64)
            asked *= _GROWTH

    # -- on the device -------------------------------------------------------------------------------

    def _propose(self, patches: NDArray[np.float32] | DevicePatches, count: int) -> _Proposals:
        """The `count` lowest products of each query with every block, lowest first."""
        queries = patches.value if isinstance(patches, DevicePatches) else patches
        products, rows = [], []
        unseen = np.full(len(patches), np.inf, np.float32)
        norms = np.empty(0, np.float32)
        for block in self._blocks:
            taken = min(count, padded_rows(block.rows))
            _, (lowest, row, norms) = self.graphs.graph("nearest").run(
                {
                    "queries": queries,
                    "centre": self._centre,
                    "bank": block.bank,
                    "norms": block.norms,
                    "count": np.array([taken], np.int64),
                },
                fetch=["lowest", "rows", "squared_norms"],
            )
            self._check_numbers(lowest)
            if taken < block.rows:
                np.minimum(unseen, lowest[:, -1], out=unseen)
            products.append(lowest)
            rows.append(row + block.start)
        product, row = np.concatenate(products, axis=1), np.concatenate(rows, axis=1)
        if len(self._blocks) > 1:
            order = np.argsort(product, axis=1, kind="stable")
            product, row = np.take_along_axis(product, order, axis=1), np.take_along_axis(row, order, axis=1)
        wide = norms.astype(np.float64)
        return _Proposals(wide, wide * (1 - self._kappa) - self._vanished, product, row, unseen)

    def _check_numbers(self, lowest: NDArray[np.float32]) -> None:
        """Every block has rows of the bank, and their products are finite. Where the device gives something else, the
        order of the others is worth nothing, and a row of padding may be the first. Raises EdgeError."""
        if np.isnan(lowest).any() or not np.isfinite(lowest[:, 0]).all():
            raise EdgeError(
                f"the search on {self.provider} gave products that are no numbers: nothing can be judged by them; look "
                'at the card and its driver, or set search = "certified" in [engine]'
            )

    # -- on the host ---------------------------------------------------------------------------------

    def _upper(self, proposed: _Proposals) -> NDArray[np.float64]:
        """Never below the squared distance of each query to its first row, (Q,) float64."""
        return self._uppers(proposed.product[:, 0], proposed.row[:, 0], proposed.norms, proposed.offset)

    def _uppers(
        self,
        product: NDArray[np.float32],
        row: NDArray[np.int64],
        norms: NDArray[np.float64],
        offset: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        # Norms are known in float32 only, hence 3 and not 2.
        above = 3 * self._kappa * (norms + self._norms[row]) + 4 * self._vanished
        return np.asarray(product + offset + above, np.float64)

    def _decide(self, queries: NDArray[np.float32], proposed: _Proposals) -> Nearest:
        """The nearest row of each query, (Q, D) float32, proven; ties to the lowest row."""
        found, proven = self._best(queries, proposed)
        count = _FIRST_COUNT
        open_ = np.flatnonzero(~proven)
        while len(open_):
            count *= _GROWTH
            step = max(1, _KEPT_CANDIDATES // (count * len(self._blocks)))
            for i in range(0, len(open_), step):
                which = open_[i : i + step]
                part = np.ascontiguousarray(queries[which])
                again, proven[which] = self._best(part, self._propose(part, count))
                found.squared[which], found.rows[which] = again.squared, again.rows
            open_ = np.flatnonzero(~proven)
        found.exact[:] = True
        return found

    def _best(self, queries: NDArray[np.float32], proposed: _Proposals) -> tuple[Nearest, NDArray[np.bool_]]:
        """The nearest of the proposed rows, and whether no other row can be as near."""
        first = squared_distances(queries, self._bank[proposed.row[:, 0]])
        wanted = (proposed.product <= _limits(first, proposed.offset)[:, None]) & (proposed.row < len(self._bank))
        wanted[:, 0] = True
        query, column = np.nonzero(wanted)
        row = proposed.row[query, column]
        squared = pair_distances(queries, query, self._bank, row)
        self._hold_against_bounds(squared, proposed.product[query, column], row, proposed, query)
        order = np.lexsort((row, squared, query))
        lowest = order[np.flatnonzero(np.diff(query[order], prepend=-1))]
        nearest = Nearest(squared[lowest], row[lowest], np.zeros(len(queries), np.bool_))
        return nearest, ~(proposed.unseen <= _limits(nearest.squared, proposed.offset))

    def _hold_against_bounds(
        self,
        squared: NDArray[np.float64],
        product: NDArray[np.float32],
        row: NDArray[np.int64],
        proposed: _Proposals,
        query: NDArray[np.int64],
    ) -> None:
        lower = product + proposed.offset[query]
        upper = self._uppers(product, row, proposed.norms[query], proposed.offset[query])
        # Written so that NaN fails.
        if not ((lower <= squared) & (squared <= upper)).all():
            raise EdgeError(
                f"{self.provider} computes less exactly than in float32: the search cannot prove its answers; set "
                'NVIDIA_TF32_OVERRIDE=0 in the environment of the daemon, or search = "certified" in [engine]'
            )


def padded_rows(rows: int) -> int:
    """Rows with padding: eight sizes between one power of two and the next, at most an eighth of it padding."""
    step = max(_LEAST_ROWS, 1 << max(0, rows.bit_length() - 4))
    return -(-rows // step) * step


def _limits(squared: NDArray[np.float64], offset: NDArray[np.float64]) -> NDArray[np.float32]:
    """What a product must exceed to prove that its row is farther than `squared`."""
    return np.nextafter((squared - offset).astype(np.float32), np.float32(np.inf))
