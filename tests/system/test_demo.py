"""The demo: its bookkeeping sees what must never happen, and it runs as its user runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
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


def run_demo(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        # The tests may run in the background, where nothing heeds an interrupt; whoever starts the demo waits for it.
        ["env", "--default-signal=INT", sys.executable, str(DEMO), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def test_the_demo_judges_every_part_and_leaves_pictures(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    process = run_demo("--out", str(out), "--good-parts", "24", "--parts", "9", "--sheet-parts", "4")
    told, complaints = process.communicate(timeout=200)
    assert process.returncode == 0, told + complaints
    lines = [line.split()[:2] for line in told.splitlines() if line.startswith("cam-")]
    flanges = [["cam-flange", f"flange-{n:03}"] for n in range(1, 6)]
    caps = [["cam-cap", f"cap-{n:03}"] for n in range(1, 5)]
    assert sorted(lines) == sorted(flanges + caps)
    assert "9 parts:" in told
    assert "PROBLEM" not in told
    sheet = cv2.imread(str(out / "contact-sheet.png"))
    assert sheet is not None
    assert str(out / "contact-sheet.png") in told
    check = subprocess.run(
        [Path(sys.executable).parent / "edge-daemon", "check", "--config", out / "edge.toml", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert json.loads(check.stdout)["ok"] is True, check.stdout


def test_interrupting_the_demo_stops_everything_it_started(tmp_path: Path) -> None:
    """That nothing is left running is checked after every test."""
    process = run_demo("--out", str(tmp_path / "demo"), "--good-parts", "20", "--parts", "5000")
    assert process.stdout is not None
    while (line := process.stdout.readline()) and not line.startswith("cam-cap"):
        pass
    assert line, process.communicate()[1]
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "everything it started has been stopped" in complaints


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    process = run_demo("--out", str(tmp_path))
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "holds files that the demo did not write" in complaints
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
