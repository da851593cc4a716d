"""Thresholds promise what the held-out pictures support, and not more."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.core.conformal import (
    ROUND_RATES,
    RateNotSupportedError,
    UnusableScoresError,
    block_scores,
    clopper_pearson,
    conformal_band,
    conformal_rank,
    conformal_threshold,
    name_blocks,
    smallest_supported_rate,
    split_blocks,
    upper_rate,
)


@pytest.mark.parametrize(
    ("n", "alpha", "rank"),
    [(99, 0.01, 99), (299, 0.01, 297), (999, 0.001, 999), (9, 0.1, 9), (19, 0.05, 19), (199, 0.1, 180), (63, 0.02, 63)],
)
def test_the_rank_is_exact_where_floats_would_round_up(n, alpha, rank):
    assert conformal_rank(n, alpha) == rank


@given(n=st.integers(1, 5000), millis=st.integers(1, 999))
def test_the_rank_is_the_smallest_that_keeps_the_promise(n, millis):
    if (n + 1) * millis >= 1000:
        rank = conformal_rank(n, millis / 1000)
        assert (n + 1 - rank) * 1000 <= (n + 1) * millis < (n + 2 - rank) * 1000
        return
    with pytest.raises(RateNotSupportedError) as e:
        conformal_rank(n, millis / 1000)
    assert (n + e.value.missing + 1) * millis >= 1000 > (n + e.value.missing) * millis


def test_a_rate_that_is_not_supported_says_how_many_are_missing_and_what_is_possible():
    with pytest.raises(RateNotSupportedError, match=r"99 good parts .* 37 are missing; the present 62 allow 0.02") as e:
        conformal_threshold([1.0] * 62, 0.01)
    assert (e.value.missing, e.value.smallest_rate) == (37, 0.02)
    with pytest.raises(RateNotSupportedError, match="no round rate"):
        conformal_rank(3, 0.05)


def test_the_smallest_supported_rate_is_supported_and_the_next_smaller_is_not():
    for n in range(1200):
        rate = smallest_supported_rate(n)
        if rate is None:
            assert n < 9
            continue
        conformal_rank(n, rate)
        smaller = [r for r in ROUND_RATES if r < rate]
        if smaller:
            with pytest.raises(RateNotSupportedError):
                conformal_rank(n, smaller[-1])


def test_the_threshold_is_a_held_out_score_of_that_rank():
    scores = np.random.default_rng(0).permutation(100).astype(float)
    found = conformal_threshold(scores.tolist(), 0.1)
    assert (found.threshold, found.rank, found.n) == (90.0, 91, 100)
    assert found.marginal_rate == pytest.approx(10 / 101)
    assert found.marginal_rate < found.upper_rate


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize("position", [0, 50, 99])
def test_a_score_that_is_no_score_is_refused(bad, position):
    scores = [1.0] * 100
    scores[position] = bad
    with pytest.raises(UnusableScoresError):
        conformal_threshold(scores, 0.1)


def test_no_scores_are_refused():
    with pytest.raises(UnusableScoresError, match="no held-out"):
        conformal_threshold([], 0.1)


@pytest.mark.parametrize(("n", "alpha"), [(99, 0.05), (150, 0.1), (60, 0.02), (200, 0.01)])
def test_the_realised_rate_over_many_splits_is_the_promised_one(n, alpha):
    rng = np.random.default_rng(n)
    rates = []
    for _ in range(500):
        found = conformal_threshold(rng.gamma(3.0, 1.0, n).tolist(), alpha)
        rates.append(scipy.stats.gamma.sf(found.threshold, 3.0))  # exact, so the only noise is the split's
    error = 4 * np.std(rates) / math.sqrt(len(rates))
    assert alpha - 1 / (n + 1) - error <= np.mean(rates) <= alpha + error
    assert np.mean(np.array(rates) <= found.upper_rate) == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (9, 9), (99, 99), (99, 90), (299, 297), (5000, 4990), (200, 1)])
def test_the_upper_rate_is_the_beta_quantile(n, rank):
    assert upper_rate(n, rank) == pytest.approx(scipy.stats.beta.ppf(0.95, n + 1 - rank, rank), rel=1e-9)


def test_one_percent_with_confidence_needs_299_parts():
    assert upper_rate(299, 299) <= 0.01 < upper_rate(298, 298)


@pytest.mark.parametrize(("count", "n"), [(0, 1), (1, 1), (0, 149), (3, 20), (20, 20), (7, 100_000), (63, 83)])
def test_clopper_pearson_is_that_of_scipy(count, n):
    wanted = scipy.stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(count, n) == pytest.approx((wanted.low, wanted.high), rel=1e-8, abs=1e-12)


def test_impossible_counts_are_refused():
    for count, n in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="no rate"):
            clopper_pearson(count, n)


def test_the_worst_picture_speaks_for_its_block_and_nan_is_not_lost():
    assert block_scores([1, 5, 2, 3], ["a", "a", "b", "b"]) == {"a": 5, "b": 3}
    for scores in ([math.nan, 1.0], [1.0, math.nan]):
        assert math.isnan(block_scores(scores, ["a", "a"])["a"])


@given(count=st.integers(2, 60), size=st.integers(1, 4), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_a_split_keeps_blocks_whole_and_both_sides_filled(count, size, fraction, seed):
    blocks = [f"b{i // size}" for i in range(count * size)]
    bank, held = split_blocks(blocks, fraction, seed)
    assert sorted(bank + held) == sorted(set(blocks))
    assert bank
    assert held
    assert (bank, held) == split_blocks(blocks, fraction, seed)


def test_one_block_cannot_be_split():
    with pytest.raises(UnusableScoresError, match="one block"):
        split_blocks(["a", "a"], 0.3, 0)


def test_blocks_are_named_by_picture_by_run_or_by_expression():
    names = [f"part{i // 2}_view{i % 2}.png" for i in range(6)]
    assert name_blocks(names, None) == names
    assert name_blocks(names, "4") == ["block-0"] * 4 + ["block-1"] * 2
    assert name_blocks(names, r"part(\d+)") == ["0", "0", "1", "1", "2", "2"]
    assert name_blocks(names, r"part\d+") == ["part0", "part0", "part1", "part1", "part2", "part2"]


@pytest.mark.parametrize("block", ["0", "(", r"lot(\d+)", r"part(x)?"])
def test_a_block_rule_that_does_not_fit_is_refused(block):
    with pytest.raises(UnusableScoresError):
        name_blocks(["part1.png"], block)


@pytest.mark.parametrize(("n", "alpha", "undecided"), [(99, 0.05, 0.02), (199, 0.1, 0.095), (150, 0.1, 0.05)])
def test_a_band_keeps_both_promises_over_many_splits(n, alpha, undecided):
    rng = np.random.default_rng(n)
    not_ok, rejected = [], []
    for _ in range(500):
        band = conformal_band(rng.gamma(3.0, 1.0, n).tolist(), alpha, undecided)
        assert band.lower.threshold <= band.upper.threshold
        rejected.append(scipy.stats.gamma.sf(band.lower.threshold, 3.0))
        not_ok.append(scipy.stats.gamma.sf(band.upper.threshold, 3.0))
    for rates, promised in ((rejected, alpha), (not_ok, alpha - undecided)):
        error = 4 * np.std(rates) / math.sqrt(len(rates))
        assert promised - 1 / (n + 1) - error <= np.mean(rates) <= promised + error


def test_an_infinite_threshold_would_fail_the_promise_from_below():
    n, alpha = 99, 0.05
    assert not alpha - 1 / (n + 1) <= scipy.stats.gamma.sf(math.inf, 3.0)


def test_a_band_is_subtracted_in_decimals_and_refused_with_what_is_missing():
    scores = [float(i) for i in range(199)]
    band = conformal_band(scores, 0.02, 0.015)  # 0.02 - 0.015 < 0.005 in floats, which 199 would not support
    assert (band.lower.rank, band.upper.rank, band.upper.alpha) == (196, 199, 0.005)
    assert conformal_band(scores, 0.02, None).upper == band.lower
    with pytest.raises(RateNotSupportedError, match=r"leaves 0.005 .* 1 are missing"):
        conformal_band(scores[:-1], 0.02, 0.015)
    for undecided in (0.02, 0.03, 0.0, -0.01):
        with pytest.raises(ValueError, match="undecided"):
            conformal_band(scores, 0.02, undecided)
