"""The accelerated coreset takes exactly the rows that the plain greedy takes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edge_daemon.core import coreset
from edge_daemon.core.coreset import (
    CoresetError,
    johnson_lindenstrauss_dims,
    k_centre_greedy,
    paper_start,
    project,
    select,
    sparse_random_projection,
)


def plain(embeddings, count, start=None, initial=None, squared=None):
    """The definition: farthest row from all taken so far, ties to the lowest, in float64."""
    rows = embeddings.astype(np.float64)
    chosen = [] if start is None else [start]
    if squared is None:
        squared = np.full(len(rows), np.inf) if initial is None else initial.astype(np.float64) ** 2
    while True:
        if chosen:
            squared = np.minimum(squared, ((rows - rows[chosen[-1]]) ** 2).sum(1))
            squared[chosen] = -1
        if len(chosen) == count:
            return np.array(chosen)
        chosen.append(int(squared.argmax()))


def clustered(n, d, seed=0, centres=30):
    """Patch embeddings look like this: few dense clusters, a tail, far from the origin."""
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((centres, d)) * 2 + 3
    spread = rng.gamma(1.0, 0.4, (n, 1))
    return (middle[rng.integers(centres, size=n)] + rng.standard_normal((n, d)) * spread).astype(np.float32)


@pytest.fixture
def small_pools(monkeypatch):
    """Pools and blocks so small that every branch runs on small data."""
    monkeypatch.setattr(coreset, "POOL_ROWS", 16)
    monkeypatch.setattr(coreset, "BLOCK_ROWS", 32)
    monkeypatch.setattr(coreset, "GROUPS", 4)


integers = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 120), st.integers(1, 4)),
    elements=st.integers(-3, 3).map(float),
)


@given(data=integers, share=st.floats(0, 1), start=st.integers(0, 119))
def test_whole_numbers_give_the_picks_of_the_plain_greedy_ties_and_duplicates_included(data, share, start):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset, "POOL_ROWS", 16)
        patch.setattr(coreset, "BLOCK_ROWS", 32)
        patch.setattr(coreset, "GROUPS", 4)
        count, start = 1 + int(share * (len(data) - 1)), start % len(data)
        assert k_centre_greedy(data, count, start=start).tolist() == plain(data, count, start).tolist()


def test_whole_numbers_of_large_sets_give_the_same_picks():
    data = np.random.default_rng(3).integers(-6, 7, (9000, 12)).astype(np.float32)
    assert k_centre_greedy(data, 900, start=17).tolist() == plain(data, 900, 17).tolist()


@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("pools", ["small", "large"])
def test_every_pick_is_within_a_millionth_of_the_farthest_row(offset, pools, request):
    if pools == "small":
        request.getfixturevalue("small_pools")
    data = clustered(6000, 24) + np.float32(offset)
    chosen = k_centre_greedy(data, 600, start=5)
    rows = data.astype(np.float64)
    distance = np.sqrt(((rows - rows[chosen[0]]) ** 2).sum(1))
    for pick in chosen[1:]:
        assert distance[pick] >= distance.max() * (1 - 1e-6)
        distance = np.minimum(distance, np.sqrt(((rows - rows[pick]) ** 2).sum(1)))


def test_the_size_of_pools_and_groups_changes_no_pick(monkeypatch):
    data = clustered(5000, 16, seed=2)
    expected = k_centre_greedy(data, 700, start=0)
    for pool, groups in ((8, 1), (64, 3), (5000, 128), (100_000, 16)):
        monkeypatch.setattr(coreset, "POOL_ROWS", pool)
        monkeypatch.setattr(coreset, "GROUPS", groups)
        assert np.array_equal(k_centre_greedy(data, 700, start=0), expected)


@pytest.mark.usefixtures("small_pools")
def test_the_start_of_the_paper_gives_the_picks_of_its_plain_form():
    data = np.random.default_rng(4).integers(-9, 10, (400, 5)).astype(np.float32)
    initial = paper_start(data, seed=1)
    squared = np.square(initial)  # as the greedy rounds it
    expected = plain(data, 60, initial=np.sqrt(squared.astype(np.float64)))
    assert k_centre_greedy(data, 60, initial_distance=initial).tolist() == expected.tolist()


def test_the_start_of_the_paper_is_the_mean_distance_to_ten_rows():
    data = clustered(50, 6)
    ten = np.random.default_rng(7).choice(50, size=10, replace=False)
    wanted = np.linalg.norm(data[:, None].astype(float) - data[ten], axis=2).mean(axis=1)
    assert paper_start(data, seed=7) == pytest.approx(wanted, rel=1e-5)
    assert len(paper_start(data[:3], seed=7)) == 3


@pytest.mark.usefixtures("small_pools")
def test_copies_are_taken_last_and_all_rows_are_taken_once():
    data = np.repeat(clustered(40, 3), 5, axis=0)
    chosen = k_centre_greedy(data, len(data), start=0)
    assert sorted(chosen.tolist()) == list(range(len(data)))
    assert len(np.unique(data[chosen[:40]], axis=0)) == 40


def test_one_row_is_its_own_coreset():
    assert k_centre_greedy(np.ones((1, 3), np.float32), 1).tolist() == [0]


def test_the_seed_decides_the_first_row_and_nothing_else_is_random():
    data = clustered(300, 4)
    first = k_centre_greedy(data, 20, seed=1)
    assert np.array_equal(first, k_centre_greedy(data, 20, seed=1))
    assert {int(k_centre_greedy(data, 1, seed=s)[0]) for s in range(20)} != {int(first[0])}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_nan_infinity_and_what_cannot_be_squared_are_refused(bad):
    data = clustered(100, 4)
    data[41, 2] = bad
    with pytest.raises(CoresetError, match="row 41"):
        k_centre_greedy(data, 5)


@pytest.mark.parametrize("count", [0, -1, 11])
def test_a_count_that_cannot_be_had_is_refused(count):
    with pytest.raises(CoresetError, match="choose 1 to 10"):
        k_centre_greedy(np.ones((10, 2), np.float32), count)


@pytest.mark.parametrize(
    "data", [np.ones((10, 2)), np.ones(10, np.float32), np.ones((0, 2), np.float32), np.ones((2, 0), np.float32)]
)
def test_other_types_and_shapes_are_refused(data):
    with pytest.raises(CoresetError, match="float32"):
        k_centre_greedy(data, 1)


def test_a_start_outside_the_rows_or_a_distance_of_nan_is_refused():
    data = np.ones((10, 2), np.float32)
    with pytest.raises(CoresetError, match="row 10"):
        k_centre_greedy(data, 1, start=10)
    with pytest.raises(CoresetError, match="finite"):
        k_centre_greedy(data, 1, initial_distance=np.full(10, np.nan, np.float32))


@pytest.mark.usefixtures("small_pools")
def test_progress_rises_to_the_count():
    seen = []
    k_centre_greedy(clustered(300, 4), 100, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 100


def test_a_mapped_file_is_left_as_it_was(tmp_path):
    data = clustered(3000, 8)
    mapped = np.memmap(tmp_path / "e", np.float32, "w+", shape=data.shape)
    mapped[:] = data
    read_only = np.memmap(tmp_path / "e", np.float32, "r", shape=data.shape)
    assert np.array_equal(k_centre_greedy(read_only, 50, start=1), k_centre_greedy(data, 50, start=1))


def traced_peak(work):
    """Bytes at the most, beyond what was there before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("centres", [30, 2000])
def test_a_tenth_of_the_rows_needs_three_tenths_more_memory_than_the_rows(centres, monkeypatch):
    """100,000 rows of 128 to 10,000 at an eighth of the size, and what does not grow with the rows an eighth, too."""
    for fixed in ("POOL_ROWS", "_PRODUCT_VALUES", "BLOCK_ROWS", "GROUPS"):
        monkeypatch.setattr(coreset, fixed, getattr(coreset, fixed) // 8)
    data = clustered(12_500, 128, centres=centres)
    assert traced_peak(lambda: k_centre_greedy(data, 1250, start=0)) < 0.3 * data.nbytes


def test_rows_far_from_the_origin_cost_no_more_memory_than_others():
    data = np.random.default_rng(0).standard_normal((4000, 128)).astype(np.float32)
    near = traced_peak(lambda: k_centre_greedy(data, 400, start=0))
    far = data + np.float32(300)
    assert traced_peak(lambda: k_centre_greedy(far, 400, start=0)) < 1.2 * near


def test_rows_that_no_mean_brings_together_are_compared_some_at_a_time():
    data = np.random.default_rng(0).standard_normal((4000, 128)).astype(np.float32)
    data[::2] += 300
    data[1::2] -= 300
    assert traced_peak(lambda: k_centre_greedy(data, 400, start=0)) < 4 * data.nbytes  # 60 with all pairs at a time


@pytest.mark.usefixtures("small_pools")
@pytest.mark.parametrize("offset", [0, 1 << 7, 1 << 15])
def test_whole_numbers_far_from_the_origin_give_the_picks_of_the_plain_greedy(offset):
    data = (np.random.default_rng(6).integers(-20, 21, (1500, 7)) + offset).astype(np.float32)
    assert k_centre_greedy(data, 300, start=9).tolist() == plain(data, 300, 9).tolist()


def test_dimensions_of_the_projection_are_those_of_the_reference():
    assert johnson_lindenstrauss_dims(163_856) == 296
    assert sparse_random_projection(163_856, 296, 0) is None
    matrix = sparse_random_projection(163_856, 1536, 0)
    assert matrix is not None
    assert matrix.shape == (1536, 296)
    assert sparse_random_projection(10, 384, 0, dims=128).shape == (384, 128)
    assert johnson_lindenstrauss_dims(1) >= 1


def test_projected_distances_are_those_of_the_rows_at_the_mean():
    data = clustered(200, 600)
    projected = project(data, sparse_random_projection(200, 600, 5, dims=400))
    before = ((data[:100] - data[100:]) ** 2).sum(1)
    after = ((projected[:100] - projected[100:]) ** 2).sum(1)
    assert (after / before).mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("at", [1, 7, 150, 299])
@pytest.mark.usefixtures("small_pools")
def test_a_resumed_selection_takes_the_rows_that_an_uninterrupted_one_takes(at, paper):
    data = clustered(2000, 12, seed=5)
    begin = {"initial_distance": paper_start(data, 1)} if paper else {"start": 3}
    whole = select(data, 300, **begin)
    resumed = select(data, 300, **begin, resume=whole.rows[:at])
    assert np.array_equal(resumed.rows, whole.rows)
    assert resumed.radius == whole.radius


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 40])
@pytest.mark.usefixtures("small_pools")
def test_resuming_a_selection_that_was_complete_states_the_same_radius(count, paper):
    data = clustered(500, 12, seed=5)
    begin = {"initial_distance": paper_start(data, 1)} if paper else {"start": 3}
    whole = select(data, count, **begin)
    again = select(data, count, **begin, resume=whole.rows)
    assert (again.rows.tolist(), again.radius) == (whole.rows.tolist(), whole.radius)


@pytest.mark.usefixtures("small_pools")
def test_every_checkpoint_is_good_for_resuming():
    data, kept = clustered(500, 6), []
    whole = select(data, 100, start=0, checkpoint=lambda rows: kept.append(rows.copy()))
    assert len(kept) > 2
    for rows in kept:
        assert np.array_equal(select(data, 100, start=0, resume=rows).rows, whole.rows)


@given(data=integers, share=st.floats(0, 1), old=st.integers(1, 119))
def test_an_extended_bank_takes_the_farthest_rows_from_the_old_centres(data, share, old):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coreset, "POOL_ROWS", 16)
        patch.setattr(coreset, "BLOCK_ROWS", 32)
        patch.setattr(coreset, "GROUPS", 4)
        centres = np.roll(data, 1, axis=0)[: min(old, len(data))].copy()
        count = 1 + int(share * (len(data) - 1))
        squared = ((data[:, None].astype(float) - centres) ** 2).sum(2).min(1)
        expected = plain(data, count, squared=squared)
        assert select(data, count, centres=centres).rows.tolist() == expected.tolist()


@pytest.mark.usefixtures("small_pools")
def test_rows_nearer_than_the_stop_radius_are_not_taken():
    data = clustered(1000, 6)
    whole = select(data, 200, start=0)
    again = select(data, 200, centres=np.ascontiguousarray(data[whole.rows]), stop_radius=whole.radius)
    assert len(again.rows) == 0
    shifted = data + np.float32(100)
    added = select(shifted, 1000, centres=np.ascontiguousarray(data[whole.rows]), stop_radius=whole.radius)
    assert 0 < len(added.rows) < 1000
    left = np.sqrt(((shifted[:, None] - shifted[added.rows]) ** 2).sum(2).min(1))
    assert left.max() <= whole.radius * (1 + 1e-6)


@pytest.mark.parametrize("rows", [[0, 0], [-1], [100], [[1]], list(range(11))])
def test_rows_that_are_no_beginning_are_refused(rows):
    with pytest.raises(CoresetError):
        select(clustered(100, 4), 10, start=0, resume=np.array(rows))


def test_centres_of_another_dimension_are_refused():
    with pytest.raises(CoresetError, match="do not go with"):
        select(clustered(100, 4), 10, centres=np.ones((3, 5), np.float32))
