"""Figures of quality against their definitions, written as naively as possible."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage, stats

from edge_daemon.core.quality import PRO_LIMIT, QualityError, auroc, f1_max, pixel_quality, roc_curve

few_levels = st.integers(0, 4).map(float)
scored = st.lists(st.tuples(few_levels | st.floats(0, 10), st.booleans()), min_size=1, max_size=30)


def naive_auroc(values, truth):
    pairs = [(d > g) + 0.5 * (d == g) for d in values[truth] for g in values[~truth]]
    return float(np.mean(pairs))


def mvtec_pro(maps, masks, limit):
    """AUPRO as the data set's authors compute it: one sort of all pixels, cumulative sums, merged ties."""
    changes, good, regions = [], [], 0
    for mask in masks:
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += count
        sizes = np.bincount(labels.ravel()).astype(float)
        changes.append(np.where(mask, 1.0 / sizes[labels], 0.0).ravel())
        good.append(~mask.ravel())
    values = np.concatenate([m.ravel() for m in maps]).astype(np.float64)
    order = np.argsort(-values, kind="stable")
    fpr = np.cumsum(np.concatenate(good)[order]) / np.concatenate(good).sum()
    pro = np.cumsum(np.concatenate(changes)[order]) / regions
    keep = np.append(np.diff(values[order]) != 0, True)
    fpr, pro = np.concatenate(([0], fpr[keep], [1])), np.concatenate(([0], pro[keep], [1]))
    below = fpr < limit
    x = np.append(fpr[below], limit)
    y = np.append(pro[below], np.interp(limit, *_last_at(fpr, pro, limit)))
    return np.trapezoid(y, x) / limit


def _last_at(fpr, pro, limit):
    """The two points around the limit; where points share the limit's rate, the one reached first."""
    i = int(np.searchsorted(fpr, limit, "left"))
    return (fpr[i - 1 : i + 1], pro[i - 1 : i + 1]) if fpr[i] > limit else ([limit], [pro[i]])


@given(scored)
def test_auroc_is_the_share_of_pairs_in_the_right_order_with_ties_as_half(pairs):
    values = np.array([p[0] for p in pairs])
    truth = np.array([p[1] for p in pairs])
    if truth.all() or not truth.any():
        assert auroc(values, truth) is None
        assert roc_curve(values, truth) is None
    else:
        assert auroc(values, truth) == pytest.approx(naive_auroc(values, truth), abs=1e-12)


@given(scored)
def test_the_area_under_the_roc_points_is_the_auroc(pairs):
    values, truth = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    curve = roc_curve(values, truth)
    if curve is not None:
        assert np.trapezoid(curve.true_rate, curve.false_rate) == pytest.approx(auroc(values, truth), abs=1e-12)
        for t, tpr, fpr in zip(curve.threshold, curve.true_rate, curve.false_rate, strict=True):
            assert tpr == np.mean(values[truth] >= t)
            assert fpr == np.mean(values[~truth] >= t)


def test_auroc_equals_the_mann_whitney_statistic_of_scipy():
    rng = np.random.default_rng(3)
    good, bad = rng.normal(0, 1, 400).round(1), rng.normal(0.7, 1, 300).round(1)
    u = stats.mannwhitneyu(bad, good).statistic
    scores = np.concatenate((good, bad))
    assert auroc(scores, np.arange(700) >= 400) == pytest.approx(u / 120_000, abs=1e-12)


@given(scored)
def test_f1_max_is_the_best_over_every_threshold(pairs):
    values, truth = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    found = f1_max(values, truth)
    if not truth.any():
        assert found is None
        return

    def f1(t):
        return 2 * np.sum(truth & (values >= t)) / (np.sum(values >= t) + truth.sum())

    assert found == (pytest.approx(max(f1(t) for t in values)), found[1])
    assert f1(found[1]) == pytest.approx(found[0])


@pytest.mark.parametrize("function", [auroc, roc_curve, f1_max])
def test_a_score_that_is_not_a_number_is_refused_and_counted(function):
    with pytest.raises(QualityError, match="1 of 3 scores"):
        function([0.1, np.nan, 0.3], [False, True, True])


def test_infinite_scores_are_ordered_like_any_other():
    assert auroc([0.0, np.inf, 1.0], [False, True, False]) == 1.0


def test_unequal_lengths_are_refused():
    with pytest.raises(QualityError, match="2 scores for 3"):
        auroc([1.0, 2.0], [True, False, True])


small_maps = arrays(np.float32, (3, 7, 9), elements=few_levels | st.floats(0, 10, width=32))
small_masks = arrays(bool, (3, 7, 9), elements=st.booleans())


@given(small_maps, small_masks, st.sampled_from([0.05, PRO_LIMIT, 1.0]))
def test_aupro_equals_the_definition_of_mvtec_to_the_last_digits(maps, masks, limit):
    quality = pixel_quality(list(maps), list(masks), limit)
    if masks.all() or not masks.any():
        assert quality.auroc is None
        assert quality.aupro is None
    else:
        assert quality.aupro == pytest.approx(mvtec_pro(maps, masks, limit), abs=1e-9)
        assert quality.auroc == pytest.approx(auroc(maps, masks), abs=1e-12)


def test_smooth_maps_give_the_same_aupro_and_auroc_as_one_sort_of_all_pixels():
    rng = np.random.default_rng(1)
    maps = [ndimage.gaussian_filter(rng.normal(size=(64, 48)), 3).astype(np.float32) for _ in range(12)]
    masks = [ndimage.gaussian_filter(rng.normal(size=(64, 48)), 4) > 0.12 for _ in range(12)]
    maps = [m + 0.05 * t for m, t in zip(maps, masks, strict=True)]
    quality = pixel_quality(maps, masks)
    assert quality.regions == sum(ndimage.label(m, np.ones((3, 3)))[1] for m in masks)
    assert quality.aupro == pytest.approx(mvtec_pro(maps, masks, PRO_LIMIT), abs=1e-9)
    assert quality.auroc == pytest.approx(auroc(np.array(maps), np.array(masks)), abs=1e-12)
    assert np.trapezoid(quality.roc.true_rate, quality.roc.false_rate) == pytest.approx(quality.auroc, abs=2e-3)


def test_regions_that_touch_at_a_corner_are_one_region():
    mask = np.zeros((6, 6), bool)
    mask[1, 1] = mask[2, 2] = mask[5, 5] = True
    assert pixel_quality([mask.astype(np.float32)], [mask]).regions == 2


def test_a_small_region_weighs_as_much_as_a_large_one():
    mask = np.zeros((32, 32), bool)
    mask[:16, :16] = True
    mask[20:22, 20:22] = True
    found_large_only = np.zeros((32, 32), np.float32)
    found_large_only[:16, :16] = 1.0
    assert pixel_quality([found_large_only], [mask]).aupro == pytest.approx(0.5 + 0.5 * 0.15)


def test_a_perfect_map_scores_one_and_a_blind_one_what_chance_gives():
    mask = np.zeros((16, 16), bool)
    mask[4:8, 4:8] = True
    perfect = pixel_quality([mask.astype(np.float32)], [mask])
    assert (perfect.auroc, perfect.aupro) == (1.0, pytest.approx(1.0))
    blind = pixel_quality([np.ones((16, 16), np.float32)], [mask])
    assert (blind.auroc, blind.aupro) == (0.5, pytest.approx(PRO_LIMIT / 2))


def test_good_pictures_alone_have_no_pixel_figures():
    quality = pixel_quality([np.ones((4, 4), np.float32)], [np.zeros((4, 4), bool)])
    assert (quality.auroc, quality.aupro, quality.regions, quality.roc) == (None, None, 0, None)


def test_a_map_with_nan_is_refused_even_where_no_mask_covers_it():
    broken = np.ones((4, 4), np.float32)
    broken[3, 3] = np.nan
    with pytest.raises(QualityError, match="map 1"):
        pixel_quality([np.ones((4, 4), np.float32), broken], [np.eye(4, dtype=bool), np.zeros((4, 4), bool)])


def test_maps_and_masks_must_agree_in_number_and_shape():
    one = np.ones((4, 4), np.float32)
    with pytest.raises(QualityError, match="1 anomaly maps for 2"):
        pixel_quality([one], [one > 0, one > 0])
    with pytest.raises(QualityError, match="mask"):
        pixel_quality([one], [np.zeros((4, 5), bool)])
    with pytest.raises(QualityError, match="limit"):
        pixel_quality([one], [one > 0], limit=0.0)
