"""The judge of the gateway's line must itself catch what it is there for."""

from typing import Any

import pytest

from tests.gateway_line import (
    CONVEYOR,
    Fault,
    Line,
    Reference,
    active_at,
    dropped_frames,
    judge,
    no_picture_is_of_two_parts,
)
from tests.plc import Part


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def record(reference: Reference, frame_id: int, **changes: Any) -> dict[str, Any]:
    """As the daemon should have written it."""
    score = reference.score(frame_id)
    view = {"frame_ids": [frame_id], "score": score, "recipe": {"version": "1"}}
    evaluation = "OK" if score <= reference.thresholds["1"] else "NotOK"
    told = {"boot": 1, "views": [view], "evaluation": evaluation, "result_state": "Completed", "reason": ""}
    return told | {"trigger_id": f"{frame_id}-a-1", "journaled": True, "late": False} | changes


def a_frame(reference: Reference, ok: bool) -> int:
    return next(n for n in range(1, 200) if (reference.score(n) <= reference.thresholds["1"]) is ok)


def test_parts_are_called_by_the_formulas_and_a_black_picture_is_not_good(reference):
    for ok in (True, False):
        assert judge(reference, [record(reference, a_frame(reference, ok))], {"1"}).ok is ok
    assert reference.score(61) > 2 * reference.thresholds["1"]


@pytest.mark.parametrize("ok", [True, False])
def test_the_opposite_word_is_caught(reference, ok):
    wrong = record(reference, a_frame(reference, ok), evaluation="NotOK" if ok else "OK")
    with pytest.raises(AssertionError, match="frame"):
        judge(reference, [wrong], {"1"})


def test_the_score_of_the_picture_before_is_caught(reference):
    shifted = record(reference, 8)
    shifted["views"][0]["frame_ids"] = [9]
    with pytest.raises(AssertionError, match="by the formulas"):
        judge(reference, [shifted], {"1"})


def test_a_recipe_that_was_not_active_is_caught(reference):
    with pytest.raises(AssertionError, match="version 1"):
        judge(reference, [record(reference, 8)], {"2"})


def test_a_part_without_a_picture_or_with_two_records_was_never_judged(reference):
    blind = record(reference, 8) | {"views": [{"frame_ids": [], "score": None}]}
    for records in ([], [blind], [record(reference, 8), record(reference, 9)]):
        assert judge(reference, records, {"1"}).ok is None
        assert not judge(reference, records, {"1"}).seen


def test_a_picture_of_two_parts_and_pictures_in_another_order_are_caught(reference):
    no_picture_is_of_two_parts({0: [record(reference, 3)], 1: [], 2: [record(reference, 4)]})
    no_picture_is_of_two_parts({0: [record(reference, 3)], 1: [record(reference, 1, boot=2)]})
    for second in (3, 2):
        with pytest.raises(AssertionError, match="one before"):
            no_picture_is_of_two_parts({0: [record(reference, 3)], 1: [record(reference, second)]})


def test_while_a_recipe_is_being_changed_either_may_judge():
    line = Line(None, None, None, lambda: 0.0, versions=[("1", 0.0, 0.0), ("2", 10.0, 11.0)])  # type: ignore[arg-type]
    assert active_at(line, 5.0, 6.0) == {"1"}
    assert active_at(line, 9.5, 10.5) == {"1", "2"}
    assert active_at(line, 12.0, 13.0) == {"2"}


def test_only_the_frame_that_the_script_drops_is_excused(reference):
    parts = [Part(n, n + 1, float(n)) for n in range(4)]
    blind = record(reference, 8) | {"views": [{"frame_ids": [], "score": None}]}
    by_part = {0: [blind], 1: [record(reference, 29)], 2: [blind], 3: [blind]}
    assert dropped_frames(by_part, parts) == [Fault("frame_dropped", 2.0, 2.9)]
    assert CONVEYOR.to_gate_s > 0.9
