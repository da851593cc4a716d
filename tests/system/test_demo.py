"""The demo: its bookkeeping sees what must never happen, and it runs as its user runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_daemon.wire.messages import Inspection, Provenance, RecipeRef, Times, ViewMessage

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "deploy" / "demo"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own modules can be imported, as they are when it runs."""
    monkeypatch.syspath_prepend(str(DEMO))


def inspection(trigger: str, seq: int, **changes: object) -> Inspection:
    """A sound OK of a good part at the flange's station."""
    view = ViewMessage(
        camera="cam-flange",
        frame_ids=(seq,),
        evaluation=str(changes.pop("view_evaluation", changes.get("evaluation", "OK"))),  # type: ignore[arg-type]
        score=changes.pop("score", 1.0),  # type: ignore[arg-type]
        threshold=2.0,
        recipe=RecipeRef(name="flange", version="1", digest="0" * 64),
    )
    fields: dict[str, object] = {
        "line": "demo",
        "station": "turning",
        "boot": 1,
        "boot_id": "b",
        "seq": seq,
        "result_id": f"r{seq}",
        "trigger_id": trigger,
        "part_id": trigger,
        "evaluation": "OK",
        "result_state": "Completed",
        "views": (view,),
        "provenance": Provenance(software="0", config_digest="0"),
        "times": Times(utc="2026-01-01T00:00:00Z", utc_uncertainty_us=0, clock_quality="unknown", judged_us=5000),
        "deadline_ms": 1000,
    }
    return Inspection.model_validate(fields | changes)


def tally_of(triggers: list[str], inspections: list[Inspection], rate: float = 0.0) -> object:
    from plan import DemoStation
    from tally import tally

    return tally([DemoStation("turning", "cam-flange", "flange", seed=1, defect_rate=rate)], triggers, inspections)


@pytest.mark.usefixtures("demo")
class TestTally:
    def test_a_sound_run_has_no_problems(self) -> None:
        found = tally_of(["a", "b"], [inspection("a", 1), inspection("b", 2)])
        assert (found.problems, found.parts, found.escapes, found.false_rejects) == ([], 2, (), ())
        assert list(found.latency_ms) == [5.0, 5.0]

    def test_a_defective_part_that_is_ok_is_an_escape_by_name(self) -> None:
        found = tally_of(["a"], [inspection("a", 1)], rate=1.0)
        assert len(found.escapes) == 1
        assert found.escapes[0].startswith("a (")

    def test_a_good_part_that_is_not_ok_is_a_false_reject(self) -> None:
        assert tally_of(["a"], [inspection("a", 1, evaluation="NotOK", score=3.0)]).false_rejects == ("a",)

    @pytest.mark.parametrize(
        ("triggers", "inspections", "problem"),
        [
            (["a", "b"], [inspection("a", 1)], "trigger b got no result"),
            (["a"], [inspection("a", 1), inspection("a", 2)], "trigger a got 2 results"),
            (["a"], [inspection("x", 1)], "which nobody sent"),
            (["a", "b"], [inspection("a", 1), inspection("b", 3)], "gap in its sequence"),
            (["a"], [inspection("a", 1, evaluation="Undefined", result_state="Failed", reason="late")], "late"),
            (["a"], [inspection("a", 1, score=None)], "passed without proof"),
            (["a"], [inspection("a", 1, score=2.5)], "passed without proof"),
            (["a"], [inspection("a", 1, views=())], "passed without proof"),
            (["a"], [inspection("a", 1, late=True)], "passed without proof"),
            (["a"], [inspection("a", 1, journaled=False)], "passed without proof"),
            (["a"], [inspection("a", 1, view_evaluation="NotOK")], "passed without proof"),
        ],
    )
    def test_what_must_never_happen_is_said(
        self, triggers: list[str], inspections: list[Inspection], problem: str
    ) -> None:
        assert any(problem in line for line in tally_of(triggers, inspections).problems)

    def test_percentiles_are_values_that_occurred(self) -> None:
        from tally import percentile

        assert percentile([1.0, 2.0, 3.0, 100.0], 0.5) == 2.0
        assert percentile([1.0, 2.0, 3.0, 100.0], 0.99) == 100.0
