"""Search block by block against a plain scan: small blocks, floors, what is known before, and lies about it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_daemon.core import cells
from edge_daemon.core import search as module
from edge_daemon.core.distances import LARGEST_SQUARED_NORM, scan, upper_bounds
from edge_daemon.core.proof import Nearest
from edge_daemon.core.search import ExactSearch
from edge_daemon.engines import certified
from edge_daemon.engines.nearest import make_engine

Array = np.ndarray


def _bank(rng: np.random.Generator, kind: str, rows: int, dim: int) -> Array:
    points = rng.standard_normal((rows, dim))
    match kind:
        case "levels":
            points = rng.integers(0, 2, (rows, dim)).astype(float)
        case "near ties":
            # Equally far from the origin but for the last digits of float32.
            points = np.sign(points) * (1 + 2.0**-23 * rng.integers(-2, 3, (rows, dim)))
        case "huge":
            points *= 0.1 * np.sqrt(LARGEST_SQUARED_NORM / dim)
        case "tiny":
            points *= 1e-25
    return points.astype(np.float32)


def _reference(queries: Array, bank: Array) -> tuple[Array, Array]:
    distances = np.stack([scan(x, bank) for x in queries])
    return distances.argmin(axis=1), distances.min(axis=1)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, parts and decisions on the way, where the product would need one."""
    for name, value in {"_QUERIES": 7, "_NARROWEST": 8, "_WIDEST": 32, "_KEPT_PAIRS": 40, "_BLOCK_VALUES": 64}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "_CELLS_FROM_ROWS", 100)
    monkeypatch.setattr(module, "_CELL_BLOCK_VALUES", 64)
    for name, value in {"_SAMPLE_ROWS": 20, "_ROWS_A_CELL": 6, "_MOST_CELLS": 16, "_LARGEST_CELL": 16}.items():
        monkeypatch.setattr(cells, name, value)


CASES = {
    "kind": st.sampled_from(["normal", "levels", "near ties", "huge", "tiny"]),
    "rows": st.sampled_from([1, 2, 9, 150]),
    "dim": st.sampled_from([1, 5, 12]),
    "reduced": st.sampled_from([0, 3]),
    "seed": st.integers(0, 2**32 - 1),
}


@settings(max_examples=50, deadline=None)
@given(**CASES)
def test_blocks_decisions_on_the_way_and_known_rows_change_no_answer(
    kind: str, rows: int, dim: int, reduced: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bank, queries = _bank(rng, kind, rows, dim), _bank(rng, kind, 17, dim)
    queries[:3] = bank[rng.integers(0, rows, 3)]
    row, squared = _reference(queries, bank)
    search = ExactSearch(bank, reduced)
    known = rng.integers(0, rows, len(queries))
    for within in (None, upper_bounds(queries, bank, known), upper_bounds(queries, bank, row)):
        found = search.nearest(queries, within=within)
        assert found.exact.all()
        assert (found.rows == row).all()
        assert (found.squared == squared).all()


@settings(max_examples=50, deadline=None)
@given(share=st.sampled_from([0.0, 0.5, 1.0, np.inf]), **CASES)
def test_below_the_floor_a_query_has_a_row_as_near_as_it_says_and_above_it_is_exact(
    share: float, kind: str, rows: int, dim: int, reduced: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bank, queries = _bank(rng, kind, rows, dim), _bank(rng, kind, 17, dim)
    row, squared = _reference(queries, bank)
    floor = np.inf if share == np.inf else float(np.quantile(squared, share))
    found = ExactSearch(bank, reduced).nearest(queries, floor)
    assert (found.exact | (found.squared < floor)).all()
    assert (found.rows[found.exact] == row[found.exact]).all()
    assert (found.squared[found.exact] == squared[found.exact]).all()
    assert found.exact[squared >= floor].all()
    for query in np.flatnonzero(~found.exact):
        assert found.squared[query] >= scan(queries[query], bank)[found.rows[query]]


def test_more_candidates_than_a_reduced_table_is_worth_are_left_to_the_full_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_FEW", 1)
    monkeypatch.setattr(module, "_FEW_SHARE", 0.0)
    rng = np.random.default_rng(2)
    bank, queries = _bank(rng, "normal", 200, 12), _bank(rng, "normal", 30, 12)
    row, squared = _reference(queries, bank)
    found = ExactSearch(bank, 2).nearest(queries)
    assert found.exact.all()
    assert (found.rows == row).all()
    assert (found.squared == squared).all()


def test_a_bound_that_no_row_keeps_ends_in_an_error_and_not_in_a_guess() -> None:
    rng = np.random.default_rng(3)
    bank, queries = _bank(rng, "normal", 50, 4), _bank(rng, "normal", 5, 4)
    lie = np.full(5, 1e-9)
    with pytest.raises(ValueError, match="neither a nearest row nor a bound"):
        ExactSearch(bank).nearest(queries, within=lie)


@settings(max_examples=100, deadline=None)
@given(kind=CASES["kind"], seed=st.integers(0, 2**32 - 1))
def test_no_row_of_a_cell_is_nearer_than_the_cell_says(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bank, queries = _bank(rng, kind, 150, 12), _bank(rng, kind, 17, 12)
    queries[:5] = bank[rng.integers(0, 150, 5)]
    search = ExactSearch(bank, 3)
    in_cells = search._in_cells(queries)
    assert in_cells is not None
    _, lower = in_cells.ask(np.arange(17))
    distances = np.stack([scan(x, bank) for x in queries])[:, search._order]
    for cell, (start, stop) in enumerate(itertools.pairwise(in_cells.edges)):
        assert 0 < stop - start <= 16
        assert (lower[:, cell, None] <= distances[:, start:stop]).all()
    assert in_cells.edges[-1] == 150
    assert sorted(search._order) == list(range(150))


def test_of_separate_heaps_only_one_is_searched() -> None:
    """What cells are for: of a hundred heaps far from each other, a query's products are those of its own."""
    rng = np.random.default_rng(4)
    heaps = (100 * rng.standard_normal((10, 12))).astype(np.float32)
    bank = np.repeat(heaps, 100, axis=0) + rng.standard_normal((1000, 12)).astype(np.float32)
    queries = (heaps + 0.1).astype(np.float32)
    seen: list[int] = []
    candidates = module._Scan._candidates

    def watched(self: module._Scan, who: Array, block: Array, places: Array) -> list[module._Pairs]:
        seen.append(block.size)
        return candidates(self, who, block, places)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Scan, "_candidates", watched)
        found = ExactSearch(bank, 3).nearest(queries)
    row, squared = _reference(queries, bank)
    assert (found.rows == row).all()
    assert (found.squared == squared).all()
    assert sum(seen) < 0.4 * len(bank) * len(queries)


def test_equal_rows_everywhere_keep_no_more_candidates_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[int] = []
    decide = module._Scan._decide

    def watched(self: module._Scan, pairs: list[module._Pairs], few: int | None) -> Array:
        waiting.append(sum(map(len, pairs)))
        return decide(self, pairs, few)

    monkeypatch.setattr(module._Scan, "_decide", watched)
    bank = np.ones((1000, 3), np.float32)
    found = ExactSearch(bank).nearest(np.zeros((4, 3), np.float32))
    assert (found.rows == 0).all()
    assert (found.squared == 3).all()
    assert max(waiting) <= 40 + 4 * 32


@settings(max_examples=25, deadline=None)
@given(kind=CASES["kind"], rows=st.sampled_from([1, 40, 300]), seed=st.integers(0, 2**32 - 1))
def test_hints_of_another_place_cost_time_and_change_nothing(kind: str, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bank, patches = _bank(rng, kind, rows, 6), _bank(rng, kind, 64, 6)
    expected = make_engine("numpy", bank).maximum(patches, (8, 8), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certified, "_LOST", 3)
        patch.setattr(certified, "_FIRST_SEARCHES", 2)
        found = make_engine("certified", bank).maximum(patches, (8, 8), rng.integers(0, rows, (4, 64)))
    assert (found.patch, found.row, found.squared) == (expected.patch, expected.row, expected.squared)
    assert (found.nearest.squared >= expected.nearest.squared).all()


def test_what_is_found_is_taken_only_where_it_says_more() -> None:
    known = Nearest(np.array([1.0, 2.0, 3.0]), np.array([4, 5, 6]), np.array([True, False, False]))
    found = Nearest(np.array([0.5, 2.0, 9.0]), np.array([7, 8, 9]), np.array([False, False, True]))
    known.take(np.array([0, 1, 2]), found)
    assert known.squared.tolist() == [1.0, 2.0, 9.0]
    assert known.rows.tolist() == [4, 5, 9]
    assert known.exact.tolist() == [True, False, True]


@settings(max_examples=50, deadline=None)
@given(**CASES)
def test_a_glance_gives_a_row_and_never_less_than_the_distance_to_it(
    kind: str, rows: int, dim: int, reduced: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bank, queries = _bank(rng, kind, rows, dim), _bank(rng, kind, 17, dim)
    found = ExactSearch(bank, reduced).glance(queries, 30)
    assert not found.exact.any()
    for query, (row, squared) in enumerate(zip(found.rows, found.squared, strict=True)):
        assert squared >= scan(queries[query], bank)[row]
        assert np.isfinite(squared)
