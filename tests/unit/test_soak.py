"""What the hour under load makes of its samples: each thing that must hold fails it alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench.soak import Plan, Process, Sample, summary

PLAN = Plan(60.0, None, None, Path(), 8.0, 8.0, 60.0)
GOOD: dict[str, Any] = {
    "bank_mb": 1.0,
    "preloaded_mb": 0.0,
    "invariant_at_the_end": True,
    "results_missed": 0,
    "plc": {"wrong_passes": 0, "acknowledged_without_record": 0},
    "journal_problems": [],
}


def hour(leak_mb: float = 0.0, descriptors: float = 0.0, unbalanced: int = 0) -> list[Sample]:
    """720 samples. leak_mb, descriptors: growth in the hour."""
    found = []
    for i in range(720):
        wobble = 0.05 * (i * 7919 % 13 - 6)
        daemon = Process(230 + wobble + leak_mb * i / 720, 73 + int(descriptors * i / 720), 18, 25)
        found.append(Sample(5.0 * i, 80 * i, unbalanced if i == 400 else 0, 34.0, daemon, Process(46.0, 19, 7, 3)))
    return found


def test_a_line_that_stands_still_passes():
    told = summary(PLAN, hour(), GOOD)
    assert told["passed"], told
    assert told["trends"]["daemon.rss_mb"]["verdict"] == "stands still"
    assert told["parts_an_hour"] == 57_600


@pytest.mark.parametrize(
    ("samples", "broken"),
    [
        (hour(leak_mb=5), "nothing_grows"),
        (hour(descriptors=12), "nothing_grows"),
        (hour(unbalanced=1), "invariant_always"),
        ([replace(s, accepted=s.accepted // 10) for s in hour()], "warmed_up"),
        ([replace(s, journal_mb=80.0) for s in hour()], "journal_within_its_limit"),
        ([replace(s, daemon=replace(s.daemon, rss_mb=302.0)) for s in hour()], "small_enough"),
    ],
)
def test_what_goes_wrong_fails_it_by_name(samples, broken):
    told = summary(PLAN, samples, GOOD)
    assert [name for name, held in told["checks"].items() if not held] == [broken]
    assert not told["passed"]


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"results_missed": 1}, "no_result_missed"),
        ({"plc": {"wrong_passes": 1, "acknowledged_without_record": 0}}, "no_wrong_pass"),
        ({"plc": {"wrong_passes": 0, "acknowledged_without_record": 1}}, "every_acknowledged_part_has_its_record"),
        ({"invariant_at_the_end": False}, "invariant_always"),
        ({"journal_problems": ["a hash does not fit"]}, "journal_sound"),
    ],
)
def test_what_the_others_saw_at_the_end_counts(change, broken):
    told = summary(PLAN, hour(), GOOD | change)
    assert [name for name, held in told["checks"].items() if not held] == [broken]
