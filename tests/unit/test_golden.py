"""Golden samples of a running station: one that comes out wrong stops it, and only that one brings it back."""

from typing import Any, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_daemon.core.decision import Evaluation
from edge_daemon.pipeline.golden import GoldenSample
from edge_daemon.pipeline.inspection import LiveRecipeSet
from tests.unit.test_station import MS, Line, live_recipes

FILES = ("good.png", "damaged.png", "other.png")
WRONG = "score 3 instead of 1"


def due(line: Line) -> GoldenSample | None:
    """Whose turn it is once the station has been idle for long."""
    line.clock.now += 2_000 * MS
    return line.station.golden_due(line.clock.now)


def turns(line: Line, count: int, wrong: tuple[str, ...] = ()) -> list[str]:
    """Inspect what is due that often; the files of `wrong` come out otherwise."""
    seen = []
    for _ in range(count):
        sample = due(line)
        assert sample is not None
        line.station.golden_done(sample, 5 * MS, WRONG if sample.golden.file in wrong else None)
        seen.append(sample.golden.file)
    return seen


def test_a_golden_sample_that_comes_out_wrong_stops_the_station_until_that_very_one_comes_out_right() -> None:
    line = Line().ready()
    assert line.golden("damaged.png", WRONG)
    for other in ("good.png", "other.png", "good.png"):
        line.golden(other)
        assert not line.ready_now(), f"{other} says nothing about damaged.png"
    assert line.golden("damaged.png")
    assert line.ready_now()


def test_the_alarm_names_view_sample_and_what_to_do() -> None:
    line = Line().ready()
    line.golden("damaged.png", WRONG)
    (alarm,) = line.alarm_texts()
    assert alarm.startswith(f"golden top damaged.png: {WRONG}; no part is judged")
    assert "edge-daemon doctor" in alarm
    assert "activate another recipe" in alarm


def test_each_that_failed_must_come_out_right_before_the_station_is_ready() -> None:
    line = Line().ready()
    line.golden("damaged.png", WRONG)
    line.golden("good.png", WRONG)
    assert len(line.alarm_texts()) == 2
    line.golden("good.png")
    assert not line.ready_now()
    line.golden("damaged.png")
    assert line.ready_now()


def test_every_sample_has_its_turn_and_one_that_failed_is_asked_again_before_any_other() -> None:
    line = Line().ready()
    assert turns(line, 4) == ["good.png", "damaged.png", "other.png", "good.png"]
    assert turns(line, 3, wrong=("damaged.png",)) == ["damaged.png"] * 3
    assert turns(line, 3) == ["damaged.png", "other.png", "good.png"]


def test_two_that_failed_take_turns() -> None:
    line = Line().ready()
    line.golden("good.png", WRONG)
    line.golden("other.png", WRONG)
    assert turns(line, 4, wrong=FILES) == ["good.png", "other.png", "good.png", "other.png"]
    assert turns(line, 2, wrong=("good.png",)) == ["good.png", "other.png"]
    assert turns(line, 2) == ["good.png", "damaged.png"]


def test_each_view_has_a_turn_of_its_own_and_a_failing_one_does_not_keep_the_other_from_its() -> None:
    line = Line(cameras=("left", "right")).ready()
    seen: dict[str, list[str]] = {"left": [], "right": []}
    for _ in range(8):
        sample = due(line)
        assert sample is not None
        seen[sample.view].append(sample.golden.file)
        line.station.golden_done(sample, 5 * MS, WRONG if sample.view == "left" else None)
    assert seen == {"left": ["good.png"] * 4, "right": ["good.png", "damaged.png", "other.png", "good.png"]}


def test_golden_samples_are_due_only_when_nothing_is_open() -> None:
    line = Line(idle_check_s=1.0).ready()
    assert due(line) is not None
    line.trigger()
    assert line.station.golden_due(line.clock.now) is None


@pytest.mark.parametrize("evaluation", [Evaluation.OK, Evaluation.NOT_OK, Evaluation.NOT_DECIDABLE])
def test_a_part_that_waits_behind_a_golden_sample_that_fails_has_no_verdict(evaluation: Evaluation) -> None:
    line = Line().ready()
    line.trigger()
    line.frame()
    line.golden("damaged.png", WRONG)
    line.judged(evaluation)
    assert (line.last.evaluation, line.last.result_state, line.last.reason) == ("Undefined", "Failed", "golden_sample")


def test_a_part_under_way_has_no_verdict_either_when_the_sample_comes_out_right_before_its_end() -> None:
    line = Line().ready()
    line.trigger()
    line.frame()
    line.golden("damaged.png", WRONG)
    line.golden("damaged.png")
    line.judged(Evaluation.OK)
    assert (line.last.evaluation, line.last.reason) == ("Undefined", "golden_sample")
    line.trigger("2")
    line.frame(1)
    line.judged(Evaluation.OK, 1)
    assert line.last.evaluation == "OK"


def test_while_the_alarm_stands_no_trigger_is_taken_and_golden_samples_go_on() -> None:
    line = Line().ready()
    line.golden("damaged.png", WRONG)
    line.trigger()
    assert (line.last.result_state, line.last.reason) == ("Aborted", "missed_not_ready")
    sample = due(line)
    assert sample is not None
    assert sample.golden.file == "damaged.png"


def test_a_station_that_never_inspects_golden_samples_does_so_while_only_one_can_bring_it_back() -> None:
    line = Line(idle_check_s=0, queue=5).ready()
    assert due(line) is None
    line.golden("damaged.png", WRONG)
    assert turns(line, 1) == ["damaged.png"]
    assert due(line) is None
    for index in range(3):
        line.trigger(str(index))
        line.frame(index)
        line.clock.now += 200 * MS
        line.judged(Evaluation.OK, index)
    assert not line.ready_now(), "three late results in a row"
    assert turns(line, 1) == ["good.png"]
    assert line.ready_now()
    assert due(line) is None


def test_another_recipe_ends_the_alarm_and_its_turn_begins_anew() -> None:
    line = Line().ready()
    turns(line, 2)
    line.golden("good.png", WRONG)
    line.station.activate(live_recipes(("top",), "e" * 64))
    assert line.ready_now()
    assert turns(line, 2) == ["good.png", "damaged.png"]


def test_the_same_recipe_activated_again_keeps_its_alarm() -> None:
    line = Line(cameras=("left", "right")).ready()
    line.golden("good.png", WRONG, view="left")
    same, other = live_recipes(("left",)), live_recipes(("right",), "e" * 64)
    line.station.activate(LiveRecipeSet.of({**same.views, **other.views}))
    assert not line.ready_now()
    line.golden("good.png", view="left")
    assert line.ready_now()


def test_what_comes_of_a_recipe_that_was_replaced_meanwhile_neither_raises_nor_clears_an_alarm() -> None:
    line = Line().ready()
    old = line.station.recipes
    line.station.activate(live_recipes(("top",), "e" * 64))
    inspected = line.station.status("", 0.0, None, 0).cameras[0].inspected
    assert not line.golden("good.png", WRONG, recipes=old)
    assert line.ready_now()
    line.golden("good.png", WRONG)
    assert not line.golden("good.png", recipes=old)
    assert not line.ready_now()
    assert line.station.status("", 0.0, None, 0).cameras[0].inspected == inspected + 1


def test_a_part_that_is_still_bound_to_a_replaced_recipe_hears_of_its_golden_sample() -> None:
    line = Line(queue=5).ready()
    old = line.station.recipes
    line.trigger("old")
    line.frame(0)
    line.station.activate(live_recipes(("top",), "e" * 64))
    line.trigger("new")
    line.frame(1)
    line.golden("good.png", WRONG, recipes=old)
    line.judged(Evaluation.OK, 0)
    assert (line.last.trigger_id, line.last.reason) == ("old", "golden_sample")
    line.judged(Evaluation.OK, 1)
    assert (line.last.trigger_id, line.last.evaluation) == ("new", "OK")


def test_a_change_of_recipes_does_not_absolve_the_parts_that_the_failing_one_has_judged() -> None:
    line = Line(queue=5).ready()
    line.trigger()
    line.frame()
    line.golden("damaged.png", WRONG)
    line.station.activate(live_recipes(("top",), "e" * 64))
    assert line.ready_now()
    line.judged(Evaluation.OK)
    assert (line.last.evaluation, line.last.reason) == ("Undefined", "golden_sample")


def test_a_sample_that_fails_at_another_station_stops_the_one_that_judges_by_the_same_recipe_alone() -> None:
    one, same, other = Line().ready(), Line(idle_check_s=0).ready(), Line().ready()
    other.station.activate(live_recipes(("top",), "e" * 64))
    sample = due(one)
    assert sample is not None
    for line in (same, other):
        line.trigger()
        line.frame()
        line.station.golden_failed_elsewhere(sample, WRONG)
        line.judged(Evaluation.OK)
    assert (same.last.reason, same.ready_now()) == ("golden_sample", False)
    assert (other.last.evaluation, other.ready_now()) == ("OK", True)
    assert turns(same, 1) == ["good.png"], "and asks for itself whether it is well again"
    assert same.ready_now()


class AnyGolden(RuleBasedStateMachine):
    """Parts, golden samples and recipes in any order: no OK rests on a recipe that was known to be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.line = Line(queue=50, deadline_ms=1e5).ready()
        self.recipe = "d"
        self.wrong: set[str] = set()
        self.spoiled: set[str] = set()
        self.open: dict[int, tuple[str, str]] = {}

    @rule()
    def part(self) -> None:
        name, before = str(len(self.line.requests)), len(self.line.requests)
        self.line.trigger(name)
        assert (len(self.line.requests) > before) is not bool(self.wrong), "accepted exactly while no sample is wrong"
        if len(self.line.requests) > before:
            self.line.frame(before)
            self.open[before] = (name, self.recipe)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def judged(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.open)))
        name, _ = self.open.pop(index)
        self.line.judged(Evaluation.OK, index)
        assert (self.line.last.evaluation == "OK") is (name not in self.spoiled)

    @rule(file=st.sampled_from(FILES), right=st.booleans())
    def golden(self, file: str, right: bool) -> None:
        self.line.golden(file, None if right else WRONG)
        if right:
            self.wrong.discard(file)
        else:
            self.wrong.add(file)
            self.spoiled |= {name for name, recipe in self.open.values() if recipe == self.recipe}

    @rule(recipe=st.sampled_from("de"))
    def activate(self, recipe: str) -> None:
        self.line.station.activate(live_recipes(("top",), recipe * 64))
        if recipe != self.recipe:
            self.wrong.clear()
        self.recipe = recipe

    @invariant()
    def trigger_ready_says_whether_any_sample_is_wrong(self) -> None:
        assert self.line.ready_now() is not bool(self.wrong)
        assert len(self.line.alarm_texts()) == len(self.wrong)


AnyGolden.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyGolden = cast(Any, AnyGolden.TestCase)
