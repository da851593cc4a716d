"""The memory bank's coreset: exact k-centre greedy, fast enough to be run at every product change.

Roth et al. 2022 (arXiv 2106.08265, section 3.2) after Sener & Savarese 2018: take the row that is
farthest from all rows taken so far, again and again. The plain form computes n distances for each of
`count` picks. Two observations make it an order of magnitude faster without changing a single pick:

* Lazy pool. Distances to the chosen rows only shrink. Among the P farthest rows the greedy can go on
  alone until their maximum falls to the largest (stale, hence too large) distance of all others; then
  one matrix product brings the others up to date.
* Pruning (Elkan's triangle inequality). A new centre c can come closer to x than x's nearest centre j
  only if d(c, j) < 2 d(x, j). Rows for which no new centre passes are not touched.

The matrix product ‖x‖² + ‖c‖² − 2x·c only proposes pairs, with a bound on its rounding error; whatever
it proposes is computed again by direct difference. The picks are therefore those of the plain greedy
with direct differences, bit for bit, ties to the lowest row. The product is of rows less their mean:
its rounding error grows with their distance from the origin, and far from it everything would be proposed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_daemon.errors import EdgeError

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Progress = Callable[[int], None]

POOL_ROWS = 2048
_LARGEST_POOL_ROWS = 1 << 15
_ROWS_PER_POOL_ROW = 256  # of millions of rows, so that the passes over all of them stay few
_SWEEP_BYTES = 512 << 20  # of embeddings that a pass stays among before it goes on
_PRODUCT_VALUES = 1 << 17  # of a matrix product, or of the differences computed at a time: half a megabyte
BLOCK_ROWS = 4096
GROUPS = 128
_UNIT_ROUNDOFF = 2.0**-24
_PRUNING_SLACK = 1.0 + 1e-4  # direct differences are good to 1e-5 relative at 1,536 dimensions
_LARGEST_SQUARED_NORM = np.finfo(np.float32).max / 32  # less a mean it is 4 times that at most, and a distance 16
_CHOSEN = np.float32(-np.inf)
_UNASSIGNED = -1


class CoresetError(EdgeError):
    """The embeddings or the number of rows asked for make no coreset."""


@dataclass(frozen=True, slots=True)
class Selection:
    """rows: (taken,) int64 in the order in which the greedy took them; radius: distance of the last one to those
    before it (and what it began with), which no row left out exceeds; infinite when only the first was taken."""

    rows: Int64
    radius: float


def k_centre_greedy(
    embeddings: Float32,
    count: int,
    *,
    seed: int = 0,
    start: int | None = None,
    initial_distance: Float32 | None = None,
    progress: Progress | None = None,
) -> Int64:
    """Rows of a coreset in the order in which the greedy takes them: `select` from nothing.

    Returns (count,) int64, all different. Raises CoresetError.
    """
    return select(embeddings, count, seed=seed, start=start, initial_distance=initial_distance, progress=progress).rows


def select(
    embeddings: Float32,
    count: int,
    *,
    seed: int = 0,
    start: int | None = None,
    initial_distance: Float32 | None = None,
    centres: Float32 | None = None,
    stop_radius: float = -math.inf,
    resume: Int64 | None = None,
    progress: Progress | None = None,
    checkpoint: Callable[[Int64], None] | None = None,
    pause: Callable[[], None] | None = None,
) -> Selection:
    """A coreset, with all that an interrupted or an extended one needs.

    embeddings:       (n, d) float32, finite; may be memory-mapped, is never copied whole
    count:            rows to take, 1 to n
    seed, start:      the first row taken: `start`, or a random one
    initial_distance: (n,) float32 distances (not squared) to begin with instead of a first row: profile
                      `paper`, see `paper_start`
    centres:          (m, d) float32 rows of an older coreset, which are the first centres instead
    stop_radius:      take no row that is this near to those taken, or nearer: fewer than `count` may come back
    resume:           the first rows of an interrupted selection with otherwise equal arguments
    progress:         called now and then with the number of rows taken so far
    checkpoint:       called now and then with the rows taken so far, good for `resume`
    pause:            called between blocks of work; where `embeddings` is a mapped file its pages may be given back
    Raises CoresetError.
    """
    _check(embeddings, count)
    if initial_distance is None and start is None and centres is None:
        start = int(np.random.default_rng(seed).integers(len(embeddings)))
    if start is not None and not 0 <= start < len(embeddings):
        raise CoresetError(f"row {start} cannot be the first of {len(embeddings)} rows")
    greedy = _Greedy(embeddings, count, 0 if centres is None else len(centres), stop_radius, pause or (lambda: None))
    if initial_distance is not None:
        greedy.begin_with_distances(initial_distance)
    if centres is not None:
        greedy.begin_with_centres(centres)
    if resume is not None and len(resume):
        greedy.begin_with_picks(resume)
    elif start is not None:
        greedy.begin_with_row(start)
    while not greedy.done:
        greedy.take_from_pool()
        if checkpoint is not None:
            checkpoint(greedy.picks)
        if progress is not None:
            progress(len(greedy.picks))
        if not greedy.done:
            greedy.settle()
    return Selection(greedy.picks, float(np.sqrt(greedy.last_squared)))


def paper_start(embeddings: Float32, seed: int, rows: int = 10) -> Float32:
    """Start of profile `paper`: mean distance of every row to ten random ones, which are not taken.

    embeddings: (n, d) float32. Returns (n,) float32 for `k_centre_greedy(initial_distance=...)`.
    """
    chosen = np.random.default_rng(seed).choice(len(embeddings), size=min(rows, len(embeddings)), replace=False)
    total = np.zeros(len(embeddings), np.float64)
    for row in chosen:
        total += np.sqrt(_squared_distances(embeddings, np.asarray(embeddings[row])))
    return (total / len(chosen)).astype(np.float32)


def johnson_lindenstrauss_dims(rows: int, epsilon: float = 0.9) -> int:
    """⌊4·ln n / (ε²/2 − ε³/3)⌋: dimensions that keep all distances of n rows to 1 ± ε (Dasgupta & Gupta 2003)."""
    return max(1, int(4 * math.log(max(rows, 2)) / (epsilon**2 / 2 - epsilon**3 / 3)))


def sparse_random_projection(rows: int, dim: int, seed: int, dims: int | None = None) -> Float32 | None:
    """Matrix of a sparse random projection (Li, Hastie & Church 2006), entries 0 or ±√(√dim / dims).

    rows: number of rows to be projected, which decides the dimensions when `dims` is not given
    Returns (dim, dims) float32, or None when that is not below `dim` and projecting would gain nothing.
    """
    dims = johnson_lindenstrauss_dims(rows) if dims is None else dims
    if dims >= dim:
        return None
    density = 1 / math.sqrt(dim)
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1.0, 1.0], np.float32), size=(dim, dims))
    kept = rng.random((dim, dims), dtype=np.float32) < density
    return (signs * kept * math.sqrt(1 / (density * dims))).astype(np.float32)


def project(embeddings: Float32, matrix: Float32) -> Float32:
    """embeddings (n, d) @ matrix (d, k) -> (n, k) float32, in blocks, so that a mapped file stays on disk."""
    projected = np.empty((len(embeddings), matrix.shape[1]), np.float32)
    for begin in range(0, len(embeddings), BLOCK_ROWS):
        np.matmul(embeddings[begin : begin + BLOCK_ROWS], matrix, out=projected[begin : begin + BLOCK_ROWS])
    return projected


def _check(embeddings: Float32, count: int) -> None:
    if embeddings.ndim != 2 or embeddings.dtype != np.float32 or 0 in embeddings.shape:
        raise CoresetError(f"a coreset needs (rows, dims) float32, not {embeddings.shape} {embeddings.dtype}")
    if not 1 <= count <= len(embeddings):
        raise CoresetError(f"{count} rows cannot be taken from {len(embeddings)}; choose 1 to {len(embeddings)}")


def _squared_distances(rows: Float32, point: Float32, pause: Callable[[], None] = lambda: None) -> Float32:
    """(n, d) and (d,) -> (n,) float32 by direct difference, in blocks. The one arithmetic of this module."""
    result = np.empty(len(rows), np.float32)
    step = _rows_of_a_block(rows.shape[1])
    for begin in range(0, len(rows), step):
        pause()
        difference = rows[begin : begin + step] - point
        np.einsum("ij,ij->i", difference, difference, out=result[begin : begin + step])
    return result


def _rows_of_a_block(dim: int) -> int:
    """As many rows as are worked on at a time."""
    return min(BLOCK_ROWS, max(64, _PRODUCT_VALUES // dim))


def _checked_mean(rows: Float32, pause: Callable[[], None]) -> Float32:
    """(n, d) -> (d,) float32. Raises CoresetError where a row is not finite or too large to be squared."""
    total = np.zeros(rows.shape[1], np.float64)
    bad: list[int] = []
    step = _rows_of_a_block(rows.shape[1])
    for begin in range(0, len(rows), step):
        pause()
        block = rows[begin : begin + step]
        with np.errstate(over="ignore", invalid="ignore"):
            squared = np.einsum("ij,ij->i", block, block)
            total += block.sum(axis=0)
        bad.extend((begin + np.flatnonzero(~(squared < _LARGEST_SQUARED_NORM))).tolist())
    if bad:
        raise CoresetError(f"{len(bad)} embeddings are NaN, infinite or too large (first: row {bad[0]})")
    return (total / len(rows)).astype(np.float32)


@dataclass(slots=True)
class _Pool:
    """The rows among which the greedy goes on alone.

    rows: (p,) int64 ascending, so that the first maximum is the lowest row; points, centred, squared, norms, nearest:
    their embeddings, these less the mean, squared distances, squared norms of the centred ones and nearest centres.
    The rest's largest squared distance and the first row that has it tell when to stop.
    """

    rows: Int64
    points: Float32
    centred: Float32
    squared: Float32
    norms: Float32
    nearest: NDArray[np.int32]
    rest_maximum: np.float32
    rest_first_row: int


class _Greedy:
    """State between two pools: `squared` holds exact minima for all rows after `settle`.

    Centres that come from outside stand first in `centres` and have no row in `chosen`. Norms, here and of the
    centres, are squared and of what is centred: less `mean`.
    """

    def __init__(
        self, embeddings: Float32, count: int, outside: int, stop_radius: float, pause: Callable[[], None]
    ) -> None:
        self.embeddings = embeddings
        self.mean = _checked_mean(embeddings, pause)
        self.norms = _squared_distances(embeddings, self.mean, pause)
        self.chosen: Int64 = np.full(outside + count, _UNASSIGNED, np.int64)
        self.taken = 0
        self.outside = outside
        self.last_squared = np.float32(np.inf)
        self._stop_squared = stop_radius * stop_radius if stop_radius >= 0 else -1.0
        self._stopped = False
        self._pause = pause
        count += outside
        self.squared: Float32 = np.full(len(embeddings), np.inf, np.float32)
        self.nearest: NDArray[np.int32] = np.full(len(embeddings), _UNASSIGNED, np.int32)  # ordinal in `chosen`
        self.centres: Float32 = np.empty((count, embeddings.shape[1]), np.float32)
        self.centre_norms: Float32 = np.empty(count, np.float32)
        self._settled = 0  # centres that all rows know of
        self._in_pool = np.zeros(len(embeddings), np.bool_)
        # |fl(‖x‖² + ‖c‖² − 2x·c) − fl(‖x−c‖²)| <= this · (‖x‖² + ‖c‖²), with x and c centred on the left alone. In
        # units of roundoff and of that sum: d for the two norms, d for twice the product (2·|x|·|c| is the sum at
        # most), 4 for the roundings of x and c less their mean (each moves by one unit of its own length), 2d for the
        # direct difference of d terms (‖x−c‖² is twice the sum at most), and a few for the sums of these. In float32
        # all of it, so that "less than" means it.
        self._relative_error = np.float32(4 * (embeddings.shape[1] + 8) * _UNIT_ROUNDOFF)

    @property
    def picks(self) -> Int64:
        """The rows taken so far."""
        return self.chosen[self.outside : self.taken]

    @property
    def done(self) -> bool:
        return self._stopped or self.taken == len(self.chosen)

    def begin_with_centres(self, centres: Float32) -> None:
        if centres.shape[1:] != self.embeddings.shape[1:] or centres.dtype != np.float32:
            raise CoresetError(f"centres of {centres.shape} {centres.dtype} do not go with {self.embeddings.shape}")
        self.centres[: len(centres)] = centres
        _checked_mean(centres, self._pause)
        self.centre_norms[: len(centres)] = _squared_distances(centres, self.mean)
        self._settle_to(len(centres))

    def begin_with_picks(self, rows: Int64) -> None:
        """As if these had just been taken one by one: distances to them are exact, whatever the order."""
        free = len(self.chosen) - self.taken
        if rows.ndim != 1 or len(rows) > free or len(np.unique(rows)) != len(rows):
            raise CoresetError(f"{len(rows)} rows are no beginning of a selection of {free}")
        if rows.min() < 0 or rows.max() >= len(self.embeddings):
            raise CoresetError(f"the rows to resume from are not all among {len(self.embeddings)}")
        ordinals = slice(self.taken, self.taken + len(rows))
        self.chosen[ordinals] = rows
        self.centres[ordinals] = self.embeddings[rows]
        self.centre_norms[ordinals] = self.norms[rows]
        before, last = self.centres[: ordinals.stop - 1], self.centres[ordinals.stop - 1]
        # What the rows began with counts as well: of profile `paper` that is all that the first one is far from.
        self.last_squared = _squared_distances(before, last).min(initial=self.squared[rows[-1]])
        self.squared[rows] = _CHOSEN
        self.nearest[rows] = 0
        self._settle_to(ordinals.stop)

    def _settle_to(self, taken: int) -> None:
        """Settle many centres at once, some thousand at a time, so that later ones are pruned by earlier ones."""
        while self.taken < taken:
            self.taken = min(taken, self.taken + BLOCK_ROWS)
            self.settle()

    def begin_with_row(self, row: int) -> None:
        self._take(row)
        self.squared = _squared_distances(self.embeddings, self.centres[0], self._pause)
        self.squared[row] = _CHOSEN
        self.nearest[:] = 0
        self._settled = 1

    def begin_with_distances(self, distance: Float32) -> None:
        if distance.shape != self.squared.shape or not np.isfinite(distance).all():
            raise CoresetError("the distances to begin with must be one finite number a row")
        self.squared = np.square(distance, dtype=np.float32)

    def take_from_pool(self) -> None:
        """Go on among the farthest rows until one of the others might be farther, or all is done."""
        if self.done:
            return
        pool = self._open_pool()
        while not self.done:
            best = int(pool.squared.argmax())
            value, row = pool.squared[best], int(pool.rows[best])
            if value < pool.rest_maximum or (value == pool.rest_maximum and row > pool.rest_first_row):
                break
            if value <= self._stop_squared:
                self._stopped = True
                break
            self.last_squared = value
            ordinal = self._take(row)
            pool.squared[best] = _CHOSEN
            self._shorten(pool, ordinal)
        self.squared[pool.rows] = pool.squared
        self.nearest[pool.rows] = pool.nearest

    def settle(self) -> None:
        """Bring the rows outside the pool up to date with the centres taken since the last call.

        Group by group of neighbouring clusters: the few new centres that can matter to a group make one
        small matrix product with its rows (measured: 5 to 10% of all pairs, on patch embeddings). Which rows and
        centres these are needs no embeddings; those are then swept once from front to back, so that a mapped file
        that is larger than the memory is read once a pass, not once a group.
        """
        doubled = self._doubled(slice(self._settled, self.taken))
        groups = self._groups_of_centres()
        of_row = np.where(self._in_pool, np.int16(-2), groups[self.nearest])
        order = np.argsort(of_row, kind="stable")
        bounds = np.searchsorted(of_row[order], np.arange(-1, GROUPS + 1))
        tasks = [(order[bounds[0] : bounds[1]], np.arange(self._settled, self.taken))]
        for group in range(GROUPS):
            rows = order[bounds[group + 1] : bounds[group + 2]]
            if len(rows):
                tasks.append(self._pruned(rows, np.flatnonzero(groups[:-1] == group), doubled))
        step = max(BLOCK_ROWS, _SWEEP_BYTES // (4 * self.embeddings.shape[1]))
        for begin in range(0, len(self.embeddings), step):
            for rows, ordinals in tasks:
                first, last = np.searchsorted(rows, [begin, begin + step])
                self._settle_rows(rows[first:last], ordinals, doubled)
        self._settled = self.taken

    def _doubled(self, ordinals: slice) -> Float32:
        """(k, d) float32, −2 times these centres less the mean: the factor of every product."""
        doubled = self.centres[ordinals] - self.mean
        doubled *= -2
        return doubled

    def _take(self, row: int) -> int:
        ordinal = self.taken
        self.chosen[ordinal] = row
        self.centres[ordinal] = self.embeddings[row]
        self.centre_norms[ordinal] = self.norms[row]
        self.taken += 1
        return ordinal

    def _open_pool(self) -> _Pool:
        """The farthest rows; among equally far ones those with the lowest index."""
        wanted = max(POOL_ROWS, min(len(self.squared) // _ROWS_PER_POOL_ROW, _LARGEST_POOL_ROWS))
        size = min(wanted, len(self.squared))
        self._in_pool[:] = False
        if size < len(self.squared):
            limit = np.partition(self.squared, len(self.squared) - size)[len(self.squared) - size]
            above = np.flatnonzero(self.squared > limit)
            level = np.flatnonzero(self.squared == limit)[: size - len(above)]
            rows = np.sort(np.concatenate([above, level]))
        else:
            rows = np.arange(size)
        self._in_pool[rows] = True
        rest = np.where(self._in_pool, _CHOSEN, self.squared)
        first = int(rest.argmax())
        points = self._rows(rows)
        squared, norms, nearest = self.squared[rows], self.norms[rows], self.nearest[rows]
        return _Pool(rows, points, points - self.mean, squared, norms, nearest, rest[first], first)

    def _rows(self, rows: Int64) -> Float32:
        """(k, d) float32, picked out some at a time: of a mapped file each one brings 64 KB into memory."""
        points = np.empty((len(rows), self.embeddings.shape[1]), np.float32)
        for begin in range(0, len(rows), BLOCK_ROWS):
            self._pause()
            points[begin : begin + BLOCK_ROWS] = self.embeddings[rows[begin : begin + BLOCK_ROWS]]
        return points

    def _shorten(self, pool: _Pool, ordinal: int) -> None:
        """Distances of the pool's rows to one more centre."""
        centre, norm = self.centres[ordinal], self.centre_norms[ordinal]
        sums = pool.norms + norm
        # einsum, not matmul: BLAS wakes its threads for this, which costs milliseconds on a busy machine.
        lower = sums * (1 - self._relative_error) - 2 * np.einsum("ij,j->i", pool.centred, centre - self.mean)
        near = np.flatnonzero(lower < pool.squared)
        exact = _squared_distances(pool.points[near], centre)
        closer = exact < pool.squared[near]
        pool.squared[near[closer]] = exact[closer]
        pool.nearest[near[closer]] = ordinal

    def _groups_of_centres(self) -> NDArray[np.int16]:
        """For each settled centre the nearest of the first GROUPS centres, else -1; the last entry is for
        `_UNASSIGNED`. Any grouping is correct; a good one is fast."""
        groups = np.full(self.taken + 1, -1, np.int16)
        anchors = min(GROUPS, self._settled)
        doubled = self._doubled(slice(anchors))
        step = _rows_of_a_block(max(GROUPS, self.centres.shape[1]))
        for begin in range(0, self._settled, step):
            block = slice(begin, min(begin + step, self._settled))
            apart = (self.centres[block] - self.mean) @ doubled.T
            apart += self.centre_norms[:anchors]
            groups[block] = apart.argmin(axis=1)
        return groups

    def _pruned(self, rows: Int64, clusters: Int64, doubled: Float32) -> tuple[Int64, Int64]:
        """Those of the rows, all of these clusters, that a new centre can reach, and the centres that can.

        Triangle inequality: c is no closer to x than x's centre j when d(c, j) >= 2 d(x, j). doubled: `_doubled` of
        the new centres.
        """
        lower = 1 - self._relative_error
        new_norms = lower * self.centre_norms[self._settled : self.taken]
        cluster = np.searchsorted(clusters, self.nearest[rows])
        reach = (4 * _PRUNING_SLACK**2) * self.squared[rows]
        touched = np.zeros(len(rows), np.bool_)
        reaching = np.zeros(self.taken - self._settled, np.bool_)
        step = max(1, _PRODUCT_VALUES // len(reaching))
        for begin in range(0, len(clusters), step):
            some = clusters[begin : begin + step]
            inside = np.flatnonzero((cluster >= begin) & (cluster < begin + step))
            apart = (self.centres[some] - self.mean) @ doubled.T
            apart += new_norms
            apart += lower * self.centre_norms[some, None]
            near = inside[apart.min(axis=1)[cluster[inside] - begin] < reach[inside]]
            radius = np.full(len(some), _CHOSEN)
            np.maximum.at(radius, cluster[near] - begin, reach[near])
            touched[near] = True
            reaching |= (apart < radius[:, None]).any(axis=0)
        return rows[touched], self._settled + np.flatnonzero(reaching)

    def _settle_rows(self, rows: Int64, ordinals: Int64, doubled: Float32) -> None:
        """Exact minima of some rows over some of the new centres. doubled: `_doubled` of all new ones."""
        if not len(rows) or not len(ordinals):
            return
        factor = doubled[ordinals - self._settled].T
        step = max(64, min(_rows_of_a_block(len(ordinals)), _rows_of_a_block(len(factor))))
        for begin in range(0, len(rows), step):
            self._pause()
            self._settle_block(rows[begin : begin + step], ordinals, factor)

    def _settle_block(self, rows: Int64, ordinals: Int64, factor: Float32) -> None:
        """The matrix product only proposes. factor: `_doubled` of the centres of these ordinals, (d, k).

        ‖x‖² is the same for a row whatever the centre, so it stays out of the product until rows that
        cannot gain are gone: the large matrix is written once and read once.
        """
        norms, centre_norms = self.norms[rows], self.centre_norms[ordinals]
        centred = self.embeddings[rows]
        centred -= self.mean
        partial = centred @ factor
        partial += centre_norms
        least, error = partial.min(axis=1), self._relative_error * (norms + centre_norms.max())
        gaining = np.flatnonzero(least + norms - error < self.squared[rows])
        if not len(gaining):
            return
        rows, norms, partial = rows[gaining], norms[gaining], partial[gaining]
        least, error = least[gaining], error[gaining]
        limit = np.minimum(self.squared[rows] - norms, least + error) + error
        proposed = np.flatnonzero(partial <= limit[:, None])
        step = _rows_of_a_block(len(factor))  # far from everything, rows and centres are all proposed to each other
        for begin in range(0, len(proposed), step):
            row, centre = np.divmod(proposed[begin : begin + step], len(ordinals))
            self._take_nearer(rows[row], ordinals[centre])

    def _take_nearer(self, rows: Int64, ordinals: Int64) -> None:
        """What pairs of rows, ascending, and centres give by direct difference, where that is nearer than before."""
        difference = self.embeddings[rows]
        difference -= self.centres[ordinals]
        exact = np.einsum("ij,ij->i", difference, difference)
        order = np.lexsort((exact, rows))  # the nearest proposal of each row comes first
        first = order[np.flatnonzero(np.diff(rows[order], prepend=-1))]
        closer = first[exact[first] < self.squared[rows[first]]]
        self.squared[rows[closer]] = exact[closer]
        self.nearest[rows[closer]] = ordinals[closer]
