"""OK is the positive branch: whatever cannot be proven is not OK."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.core.decision import (
    Bucket,
    Evaluation,
    Reason,
    ResultState,
    Thresholds,
    ViewVerdict,
    combine,
    judge_score,
)

LIMITS = Thresholds(lower=1.0, upper=2.0, pixel=1.0)
OK = ViewVerdict(Evaluation.OK, Reason.NONE)
NOT_OK = ViewVerdict(Evaluation.NOT_OK, Reason.NONE)
NOT_DECIDABLE = ViewVerdict(Evaluation.NOT_DECIDABLE, Reason.BETWEEN_THRESHOLDS)
UNJUDGED = ViewVerdict(Evaluation.UNDEFINED, Reason.CAMERA, judged=False)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.0, Evaluation.OK),
        (1.0, Evaluation.OK),
        (math.nextafter(1.0, 2.0), Evaluation.NOT_DECIDABLE),
        (2.0, Evaluation.NOT_DECIDABLE),
        (math.nextafter(2.0, 3.0), Evaluation.NOT_OK),
        (math.nan, Evaluation.UNDEFINED),
        (math.inf, Evaluation.UNDEFINED),
        (-math.inf, Evaluation.UNDEFINED),
        (-1e-300, Evaluation.UNDEFINED),
    ],
)
def test_a_tie_is_ok_and_nothing_that_is_no_distance_ever_is(score: float, expected: Evaluation) -> None:
    assert judge_score(score, 1.0, LIMITS).evaluation is expected


def test_a_distance_that_is_not_finite_spoils_a_good_score() -> None:
    assert judge_score(0.5, math.nan, LIMITS).evaluation is Evaluation.UNDEFINED


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True, allow_infinity=True))
def test_ok_implies_a_finite_score_at_or_below_the_lower_threshold(score: float, distance: float) -> None:
    verdict = judge_score(score, distance, LIMITS)
    if verdict.evaluation is Evaluation.OK:
        assert math.isfinite(score)
        assert math.isfinite(distance)
        assert 0 <= score <= LIMITS.lower
        assert verdict.judged


@pytest.mark.parametrize(
    ("views", "expected", "bucket"),
    [
        ([OK, OK], Evaluation.OK, Bucket.OK),
        ([OK, NOT_OK], Evaluation.NOT_OK, Bucket.NOT_OK),
        ([NOT_DECIDABLE, NOT_OK], Evaluation.NOT_OK, Bucket.NOT_OK),
        ([OK, NOT_DECIDABLE], Evaluation.NOT_DECIDABLE, Bucket.NOT_DECIDABLE),
        ([OK, UNJUDGED], Evaluation.UNDEFINED, Bucket.FAILED),
        ([NOT_OK, UNJUDGED], Evaluation.UNDEFINED, Bucket.FAILED),
        ([OK], Evaluation.UNDEFINED, Bucket.FAILED),
        ([], Evaluation.UNDEFINED, Bucket.FAILED),
    ],
)
def test_the_worst_view_rules_and_a_missing_view_is_never_ok(
    views: list[ViewVerdict], expected: Evaluation, bucket: Bucket
) -> None:
    verdict = combine(views, expected_views=2)
    assert verdict.evaluation is expected
    assert verdict.bucket is bucket


@given(
    st.lists(st.sampled_from([OK, NOT_OK, NOT_DECIDABLE, UNJUDGED]), max_size=6),
    st.integers(min_value=-1, max_value=6),
)
def test_ok_of_a_part_needs_ok_of_every_expected_view(views: list[ViewVerdict], expected: int) -> None:
    verdict = combine(views, expected)
    if verdict.evaluation is Evaluation.OK:
        assert len(views) == expected >= 1
        assert all(view is OK for view in views)
        assert verdict.state is ResultState.COMPLETED


def test_no_views_expected_is_not_ok() -> None:
    assert combine([], expected_views=0).evaluation is Evaluation.UNDEFINED


@pytest.mark.parametrize(
    "limits", [(2.0, 1.0, 1.0), (math.nan, 1.0, 1.0), (1.0, math.inf, 1.0), (-1.0, 1.0, 1.0), (1.0, 1.0, math.nan)]
)
def test_thresholds_that_prove_nothing_are_refused(limits: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="thresholds"):
        Thresholds(*limits)
