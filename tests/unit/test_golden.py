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


def busy(line: Line, seconds: float, apart_ms: int = 200, takes_ms: int = 20) -> None:
    """Parts come one by one, so close that the station is never idle for long, and all are good."""
    for _ in range(int(seconds * 1e3 / apart_ms)):
        line.clock.now += (apart_ms - takes_ms) * MS
        judge_one(line, takes_ms)


def judge_one(line: Line, takes_ms: int = 20) -> None:
    index = len(line.requests)
    line.trigger(str(index))
    line.frame(index)
    line.clock.now += takes_ms * MS
    line.judged(Evaluation.OK, index)
    line.publish()


def between_parts(line: Line) -> str | None:
    found = line.station.golden_between_parts(line.clock.now)
    return None if found is None else found[0].golden.file


def test_a_station_that_is_never_idle_asks_for_a_golden_sample_between_two_parts() -> None:
    line = Line(golden_check_s=10).ready()
    line.golden("good.png")
    busy(line, 9.9)
    assert line.station.golden_due(line.clock.now) is None
    assert between_parts(line) is None
    busy(line, 0.4)
    assert line.station.golden_due(line.clock.now) is None, "it is not idle"
    assert between_parts(line) == "damaged.png", "every sample has its turn"
    line.golden("damaged.png")
    assert between_parts(line) is None
    busy(line, 10)
    assert between_parts(line) == "other.png"


def test_a_recipe_that_was_just_activated_has_its_first_sample_at_once() -> None:
    """It may have been loaded long ago, for another station."""
    line = Line(idle_check_s=0, golden_check_s=3_600).ready()
    assert between_parts(line) == "good.png"
    line.golden("good.png")
    assert between_parts(line) is None
    line.station.activate(live_recipes(("top",)))
    assert between_parts(line) is None, "nothing changed"
    line.station.activate(live_recipes(("top",), "e" * 64))
    assert between_parts(line) == "good.png"


def test_the_view_whose_golden_sample_is_longest_ago_is_asked_first() -> None:
    line = Line(cameras=("left", "right"), golden_check_s=10, idle_check_s=0).ready()
    line.golden("good.png", view="right")
    line.clock.now += 5_000 * MS
    line.golden("good.png", view="left")
    line.clock.now += 6_000 * MS
    found = line.station.golden_between_parts(line.clock.now)
    assert found is not None
    assert found[0].view == "right"


def test_an_idle_station_asks_for_its_own_while_another_is_never_idle() -> None:
    line = Line().ready()
    line.golden("good.png", took_ms=5)
    assert between_parts(line) is None
    line.clock.now += 1_000 * MS
    assert line.station.golden_between_parts(line.clock.now) == (line.station.golden_due(line.clock.now), 5 * MS)


def test_a_sample_that_came_out_wrong_is_not_asked_for_between_parts_again_and_again() -> None:
    line = Line(golden_check_s=10).ready()
    busy(line, 10)
    line.golden("good.png", WRONG)
    assert between_parts(line) is None
    assert turns(line, 1) == ["good.png"], "no part is taken meanwhile, and a station that is idle asks for it"


def test_nobody_asks_a_halted_station_or_one_without_recipes() -> None:
    line = Line(golden_check_s=10)
    line.clock.now += 60_000 * MS
    assert between_parts(line) is None
    line.ready()
    line.clock.now += 60_000 * MS
    assert between_parts(line) is not None
    line.station.halt()
    assert between_parts(line) is None


def test_parts_under_way_wait_for_a_golden_sample_only_if_they_come_in_time_all_the_same() -> None:
    line = Line(golden_check_s=10, deadline_ms=100).ready()
    busy(line, 10, takes_ms=20)
    assert line.station.can_wait(line.clock.now, 1_000 * MS), "nothing is open"
    line.trigger("open")
    assert line.station.can_wait(line.clock.now, 80 * MS), "20 ms of work and 80 ms of waiting are 100 ms"
    assert not line.station.can_wait(line.clock.now, 81 * MS)
    line.clock.now += 30 * MS
    assert line.station.can_wait(line.clock.now, 50 * MS)
    assert not line.station.can_wait(line.clock.now, 51 * MS)


def test_one_more_trigger_is_taken_while_a_golden_sample_is_inspected() -> None:
    line = Line(queue=1, deadline_ms=100).ready()
    line.trigger("1")
    assert line.station.can_wait(line.clock.now, 5 * MS)
    line.trigger("2")
    assert not line.station.can_wait(line.clock.now, 5 * MS), "a third would be missed"


def test_a_station_whose_deadline_has_no_room_for_a_golden_sample_is_not_asked_for_one() -> None:
    line = Line(golden_check_s=10, deadline_ms=100).ready()
    line.golden("good.png", took_ms=70)
    busy(line, 10, takes_ms=40)
    assert between_parts(line) is None, "the next part would wait 70 ms and take 40"
    busy(line, 60, takes_ms=20)
    assert between_parts(line) is not None


def test_of_a_sample_that_was_never_timed_a_part_tells_how_long_it_may_take() -> None:
    line = Line(golden_check_s=10, deadline_ms=100).ready()
    busy(line, 10, takes_ms=30)
    found = line.station.golden_between_parts(line.clock.now)
    assert found is not None
    assert found[1] == 30 * MS
    line.golden("damaged.png", took_ms=50)
    busy(line, 10, takes_ms=30)
    found = line.station.golden_between_parts(line.clock.now)
    assert found is not None
    assert found[1] == 50 * MS


def test_an_alarm_says_that_no_golden_sample_has_come_out_right_for_long() -> None:
    line = Line(golden_check_s=10).ready()
    busy(line, 49)
    assert line.station.golden_overdue(line.clock.now) == ""
    busy(line, 2)
    told = line.station.golden_overdue(line.clock.now)
    assert told.startswith("no golden sample of view top has been inspected for 50 s")
    assert line.station.golden_overdue(line.clock.now) == "", "it is told once"
    assert line.alarm_texts() == (f"golden overdue top: {told}",)
    assert line.ready_now(), "parts are judged all the same"
    line.golden("good.png")
    assert line.alarm_texts() == ()


def test_a_station_that_was_halted_is_not_reproached_with_the_golden_samples_of_that_time() -> None:
    line = Line(golden_check_s=10).ready()
    line.station.halt()
    for _ in range(100):
        line.clock.now += 1_000 * MS
        assert line.station.golden_overdue(line.clock.now) == ""
    line.station.resume()
    assert line.station.golden_overdue(line.clock.now) == ""
    line.clock.now += 51_000 * MS
    assert line.station.golden_overdue(line.clock.now) != ""


def test_the_status_says_how_old_the_last_good_golden_sample_of_each_view_is() -> None:
    line = Line().ready()
    line.clock.now += 1_500 * MS
    assert line.station.status("", 0.0, None, 0).details["golden_age_s"] == {"top": 1.5}
    line.golden("good.png")
    line.clock.now += 250 * MS
    line.golden("damaged.png", WRONG)
    assert line.station.status("", 0.0, None, 0).details["golden_age_s"] == {"top": 0.25}


def test_a_part_that_the_engine_fails_stops_the_station_at_once_until_a_golden_sample_comes_out_right() -> None:
    line = Line(queue=5).ready()
    line.trigger("1")
    line.frame()
    line.trigger("2")
    assert line.engine_failed("out of memory")
    assert not line.engine_failed("out of memory"), "it is told once"
    assert not line.ready_now()
    (alarm,) = line.alarm_texts()
    assert alarm.startswith("engine top: out of memory; no part is judged")
    line.trigger("3")
    assert line.last.reason == "missed_not_ready"
    line.frame(1)
    line.judged(Evaluation.OK, 1)
    line.clock.now += 100 * MS
    line.station.expire(line.clock.now)
    sample = line.station.golden_due(line.clock.now)
    assert sample is not None, "it is asked for as soon as nothing is open"
    line.clock.now += 5 * MS
    assert line.station.golden_done(sample, 5 * MS, None), "news"
    assert line.ready_now()


def test_a_sample_that_was_under_way_when_the_engine_failed_proves_nothing() -> None:
    line = Line().ready()
    line.trigger()
    line.frame()
    line.engine_failed("out of memory")
    line.clock.now += 4 * MS
    assert not line.golden("good.png", took_ms=5)
    assert not line.ready_now()
    line.clock.now += 5 * MS
    assert line.golden("good.png", took_ms=5)
    assert line.ready_now()


def test_the_alarm_of_an_engine_that_fails_goes_with_its_recipe_and_not_without() -> None:
    line = Line().ready()
    line.trigger()
    line.frame()
    line.engine_failed("out of memory")
    line.station.activate(live_recipes(("top",)))
    assert not line.ready_now()
    line.station.activate(live_recipes(("top",), "e" * 64))
    assert line.ready_now()


def test_an_engine_that_fails_for_a_recipe_that_was_replaced_says_nothing_of_the_new_one() -> None:
    line = Line().ready()
    line.trigger()
    line.frame()
    line.station.activate(live_recipes(("top",), "e" * 64))
    assert not line.engine_failed("out of memory")
    assert line.ready_now()


def test_a_view_of_the_same_station_takes_over_what_is_known_to_be_wrong_of_a_recipe() -> None:
    line = Line(cameras=("left", "right")).ready()
    one, other = live_recipes(("left", "right"), "e" * 64), live_recipes(("left", "right"))
    line.station.activate(LiveRecipeSet.of({"left": one.views["left"], "right": other.views["right"]}))
    line.golden("damaged.png", WRONG, view="left")
    line.station.activate(LiveRecipeSet.of({"left": other.views["left"], "right": one.views["right"]}))
    assert not line.ready_now()
    line.golden("damaged.png", view="right")
    assert line.ready_now()


@pytest.mark.parametrize("what", ["golden", "engine"])
def test_a_halted_station_forgets_nothing_of_what_stands_against_its_recipe(what: str) -> None:
    line = Line().ready()
    line.trigger()
    line.frame()
    line.station.halt()
    if what == "golden":
        line.golden("good.png", WRONG)
    else:
        line.engine_failed("out of memory")
    assert line.station.status("", 0.0, None, 0).state == "Halted"
    line.station.resume()
    assert line.station.status("", 0.0, None, 0).state == "Error"
    line.clock.now += 100 * MS
    line.golden("good.png")
    assert line.ready_now()


def test_what_stands_against_a_recipe_is_known_by_its_digest() -> None:
    line = Line().ready()
    line.golden("damaged.png", WRONG)
    ((sample, error),) = line.station.golden_failures()
    assert (sample.ready.recipe.digest, sample.golden.file, error) == ("d" * 64, "damaged.png", WRONG)
    line.golden("damaged.png")
    assert line.station.golden_failures() == []


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
