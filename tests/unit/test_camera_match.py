"""A camera that is not set as it was for the recipe's pictures: no part is judged by that recipe, whatever it shows."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_control import OTHER, Desk

from edge_daemon.artefact.camera import own_file, read_camera_file
from edge_daemon.core.camera_settings import Value
from edge_daemon.core.decision import Evaluation, Reason
from edge_daemon.core.frame import Frame
from edge_daemon.errors import CameraError
from edge_daemon.pipeline.archived import archived_pictures
from edge_daemon.pipeline.inspection import LiveRecipeSet, ViewOutcome
from tests.unit.test_reader import Running, fresh, started, wait_until
from tests.unit.test_station import Line, PulsedLine, live_recipes

SET: dict[str, Value] = {
    "exposure_us": 5000.0,
    "gain_db": 3.0,
    "region": "640x480+0+0",
    "flip_x": False,
    "binning_x": 1,
}
# Each is one change of SET that must be found, however alike it looks.
OTHERWISE: list[dict[str, Any]] = [
    {"exposure_us": 10000.0}, {"exposure_us": 5051.0}, {"exposure_us": math.nan}, {"exposure_us": math.inf},
    {"exposure_us": "5000.0"}, {"exposure_us": True}, {"exposure_us": 10**400}, {"gain_db": 3.2},
    {"region": "640x480+0+8"}, {"region": ""}, {"flip_x": True}, {"flip_x": 0}, {"flip_x": "false"},
    {"binning_x": True}, {"binning_x": "1"}, {"binning_x": 2}, {"flip_y": False}, {"gamma\u0000": 1.0},
]  # fmt: skip


def recipes(
    wanted: dict[str, Value] | None = None, views: tuple[str, ...] = ("top",), digest: str = "d"
) -> LiveRecipeSet:
    camera = SimpleNamespace(settings=SET if wanted is None else wanted)
    return live_recipes(views, digest * 64, camera=camera)


def without(key: str) -> dict[str, Value]:
    return {name: value for name, value in SET.items() if name != key}


def line(found: dict[str, Any] | None, kind: Callable[..., Line] = Line, **config: Any) -> Line:
    """A station with recipe and camera; found: what the camera is set to, None when its reader says nothing."""
    made = kind(**config)
    made.told = []  # type: ignore[attr-defined]
    made.station._on_alarm = lambda *news: made.told.append(news)  # type: ignore[attr-defined]
    made.station.activate(recipes(views=made.station.views))
    for camera in made.cameras:
        if found is not None:
            made.station.camera_settings(camera, found)
        made.station.camera_up(camera)
    return made


def told(made: Line) -> list[tuple[str, str, str]]:
    return made.told  # type: ignore[attr-defined,no-any-return]


def deliver(made: Line, found: dict[str, Any] | None, index: int = -1) -> None:
    """The frame of the last trigger, taken with these settings."""
    camera, inspection = made.requests[index]
    frame = Frame(camera, 7, np.zeros((2, 2, 3), np.uint8), made.clock.now, settings=found)
    made.station.frame_arrived(inspection, camera, frame)


# --- the station ---------------------------------------------------------------------------------------


def test_a_camera_that_is_set_as_the_recipe_says_is_judged() -> None:
    made = line(dict(reversed(SET.items())) | {"trigger": "software", "exposure_us": 5010.0})
    assert made.ready_now()
    made.trigger()
    deliver(made, SET)
    made.judged(Evaluation.OK)
    assert made.last.evaluation == "OK"
    assert told(made) == []


@pytest.mark.parametrize("change", OTHERWISE)
def test_a_camera_that_is_set_otherwise_is_not_ready_and_its_frames_are_not_judged(change: dict[str, Any]) -> None:
    made = line(SET | change)
    assert not made.ready_now()
    ((name, message, severity),) = told(made)
    assert (name, severity) == ("camera_settings", "error")
    (alarm,) = (text for text in made.alarm_texts() if text.startswith("camera settings top"))
    for key in change:
        assert key in message
        assert key in alarm
    good = line(SET)
    good.trigger()
    deliver(good, SET | change)
    assert good.work == []
    assert (good.last.evaluation, good.last.result_state, good.last.reason) == (
        "Undefined", "Failed", "camera_settings",
    )  # fmt: skip


@pytest.mark.parametrize("key", SET)
def test_a_setting_that_the_camera_does_not_report_is_not_as_the_recipe_says(key: str) -> None:
    made = line(without(key))
    assert not made.ready_now()
    assert f"{key} is not there in the camera" in told(made)[0][1]
    good = line(SET)
    good.trigger()
    deliver(good, without(key))
    assert good.last.reason == "camera_settings"


@pytest.mark.parametrize("found", [{}, {"trigger": "software"}])
def test_a_camera_that_reports_nothing_is_not_judged(found: dict[str, Any]) -> None:
    assert not line(found).ready_now()


@pytest.mark.parametrize("stamp", [None, {}])
def test_a_frame_of_which_nobody_knows_how_it_was_taken_is_not_judged(stamp: dict[str, Any] | None) -> None:
    made = line(SET)
    made.trigger()
    deliver(made, stamp)
    assert made.work == []
    assert made.last.reason == "camera_settings"


def test_a_frame_taken_before_the_camera_was_set_right_is_not_judged_after_it() -> None:
    made = line(SET)
    made.trigger()
    made.station.camera_settings("top", SET | {"exposure_us": 1.0})
    made.station.camera_settings("top", SET)
    deliver(made, SET | {"exposure_us": 1.0})
    assert made.last.reason == "camera_settings"
    assert made.ready_now()


def test_a_frame_taken_before_the_camera_was_set_otherwise_is_judged_as_it_was_taken() -> None:
    made = line(SET)
    made.trigger()
    deliver(made, SET)
    made.station.camera_settings("top", SET | {"gain_db": 9.0})
    assert not made.ready_now()
    made.judged(Evaluation.OK)
    assert made.last.evaluation == "OK"


def test_a_part_is_held_to_the_recipe_that_it_was_accepted_for() -> None:
    made = line(SET)
    made.trigger()
    made.station.activate(recipes(SET | {"gain_db": 9.0}, digest="e"))
    assert not made.ready_now()
    deliver(made, SET | {"gain_db": 9.0})
    assert made.last.reason == "camera_settings", "it was accepted for the recipe with 3 dB"


def test_the_alarm_goes_when_they_agree_again_and_each_is_told_once() -> None:
    made = line(SET | {"gain_db": 9.0})
    made.station.camera_settings("top", SET | {"gain_db": 9.0})
    assert len(told(made)) == 1
    made.station.camera_settings("top", SET | {"gain_db": 8.0})
    assert "gain_db is 8 in the camera, 3 in the recipe" in told(made)[1][1]
    made.station.camera_settings("top", SET)
    assert [name for name, _, _ in told(made)] == ["camera_settings"] * 2 + ["camera_settings_clear"]
    assert made.ready_now()
    assert not any("camera settings" in text for text in made.alarm_texts())


def test_another_recipe_ends_the_alarm_when_it_says_nothing_or_the_right_thing() -> None:
    for other in (live_recipes(("top",), "e" * 64), recipes(SET | {"gain_db": 9.0}, digest="e")):
        made = line(SET | {"gain_db": 9.0})
        made.station.activate(other)
        assert made.ready_now()
        assert told(made)[-1][0] == "camera_settings_clear"


def test_a_recipe_without_settings_judges_as_before() -> None:
    made = Line().ready()
    made.trigger()
    deliver(made, None)
    made.judged(Evaluation.OK)
    assert made.last.evaluation == "OK"


def test_one_view_whose_camera_is_set_otherwise_fails_the_whole_part() -> None:
    made = line(SET, cameras=("left", "right"))
    made.trigger()
    deliver(made, SET, 0)
    deliver(made, SET | {"gain_db": 9.0}, 1)
    made.judged(Evaluation.OK)
    assert (made.last.evaluation, made.last.reason) == ("Undefined", "camera_settings")
    made.station.camera_settings("right", SET | {"gain_db": 9.0})
    assert [text.split(":")[0] for text in made.alarm_texts() if "settings" in text] == ["camera settings right"]


def test_a_view_that_only_warns_judges_with_an_alarm() -> None:
    made = line(SET, views=[{"camera": "top", "recipe": "bottle", "camera_settings": "warn"}])
    made.station.camera_settings("top", SET | {"gain_db": 9.0})
    assert made.ready_now()
    assert [(name, severity) for name, _, severity in told(made)] == [("camera_settings", "warning")]
    assert any(text.startswith("camera settings top") for text in made.alarm_texts())
    made.station.refuse_settings(recipes())
    made.trigger()
    deliver(made, SET | {"gain_db": 9.0})
    made.judged(Evaluation.OK)
    assert made.last.evaluation == "OK"
    made.station.camera_settings("top", SET)
    assert told(made)[-1][0] == "camera_settings_clear"
    assert not any(text.startswith("camera settings") for text in made.alarm_texts())


def test_pulses_and_free_run_are_held_to_it_as_well() -> None:
    pulsed = line(SET, PulsedLine)
    assert isinstance(pulsed, PulsedLine)
    pulsed.silence()
    pulsed.part(1)  # its frame says nothing of settings
    pulsed.wait(100)
    assert pulsed.reasons() == {"1": "camera_settings"}
    assert pulsed.work == []
    free = line(SET, trigger="free_run")
    frame = Frame("top", 7, np.zeros((2, 2, 3), np.uint8), free.clock.now, settings=SET | {"gain_db": 9.0})
    free.station.frame_without_trigger("top", frame)
    assert free.last.reason == "camera_settings"


def test_a_halted_station_that_is_resumed_is_still_not_ready() -> None:
    made = line(SET)
    made.station.halt()
    made.station.camera_settings("top", SET | {"gain_db": 9.0})
    made.station.resume()
    assert not made.ready_now()
    made.station.camera_settings("top", SET)
    assert made.ready_now()


VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [5000.0, 5000, "5000.0", True, False, 0, 1, 1.0, "", math.nan, math.inf, 3.0, 3.05, "640x480+0+0"]
)


@settings(max_examples=150)
@given(
    st.dictionaries(st.sampled_from([*SET, "gamma"]), VALUES), st.dictionaries(st.sampled_from([*SET, "gamma"]), VALUES)
)
def test_no_verdict_ever_comes_of_a_frame_that_disagrees(at_open: dict[str, Any], at_frame: dict[str, Any]) -> None:
    """Whatever the station was told, the frame itself must agree with the recipe in every key."""
    made = line(SET)
    made.trigger()
    made.station.camera_settings("top", SET | at_open)
    deliver(made, SET | at_frame)
    agrees = all(
        (type(SET.get(key)) in (int, float) and type(value) in (int, float) and abs(value - SET[key]) < 0.11)  # type: ignore[operator]
        or (type(SET.get(key)) is type(value) and SET.get(key) == value)
        for key, value in at_frame.items()
    )  # fmt: skip
    assert bool(made.work) <= agrees
    assert made.work or made.last.reason == "camera_settings"


# --- the reader ----------------------------------------------------------------------------------------


@pytest.fixture
def running() -> Iterator[Running]:
    it = Running()
    it.camera.set_to = dict(SET)
    with started(it):
        it.line.station.activate(recipes())
        wait_until(it.line.ready_now)
        yield it


def judged(it: Running, trigger_id: str) -> str:
    """`judged`, or the reason why not."""
    it.camera.answers.append([fresh(it.camera.frame())])
    it.line.trigger(trigger_id)
    wait_until(lambda: not it.work.empty() or not it.records.empty())
    return it.records.get() if it.work.empty() else "judged" if it.work.get().settings == SET else "wrongly stamped"


def test_frames_bear_what_the_camera_was_set_to(running: Running) -> None:
    assert judged(running, "1") == "judged"


def test_a_camera_whose_settings_change_under_a_part_fails_it_and_drops_ready(running: Running) -> None:
    running.camera.when_triggered = lambda: running.camera.set_to.update(exposure_us=9000.0)
    assert judged(running, "1") == "camera_settings"
    wait_until(lambda: not running.line.ready_now())
    assert any("exposure_us is 9000" in text for text in running.line.alarm_texts())


def test_a_change_that_python_takes_for_none_is_seen(running: Running) -> None:
    running.camera.set_to = SET | {"flip_x": 0, "binning_x": 1.0}
    wait_until(lambda: not running.line.ready_now())


def test_a_camera_that_comes_back_set_otherwise_is_not_ready_until_it_is_set_right(running: Running) -> None:
    opened = running.camera.open

    def open_otherwise() -> None:
        opened()
        running.camera.set_to = SET | {"gain_db": 9.0}

    running.camera.open = open_otherwise  # type: ignore[method-assign]
    running.camera.answers.append(CameraError("cable pulled"))
    running.line.trigger("1")
    assert running.records.get(timeout=5) == "camera"
    wait_until(lambda: any("camera settings top" in text for text in running.line.alarm_texts()))
    wait_until(lambda: running.camera.opened == 2 and "camera_connected" in running.events[1:])
    assert not running.line.ready_now()
    running.line.trigger("2")
    assert running.records.get(timeout=5) == "missed_not_ready"
    running.camera.set_to = dict(SET)
    wait_until(running.line.ready_now)
    assert judged(running, "3") == "judged"


def test_a_camera_that_reports_nothing_when_it_opens_is_told_to_the_station() -> None:
    it = Running()
    it.camera.set_to = {}
    it.line.station.activate(recipes())
    with started(it):
        it.line.station.activate(recipes(digest="e"))
        wait_until(lambda: any("camera settings top" in text for text in it.line.alarm_texts()))
        assert not it.line.ready_now()


# --- activation by command -----------------------------------------------------------------------------


@pytest.fixture
def desk() -> Iterator[Desk]:
    it = Desk(("top",))
    it.lines[0].station.camera_settings("top", SET)
    it.recipes.cameras[OTHER] = SimpleNamespace(settings=SET | {"gain_db": 9.0})
    yield it
    it.desk.close()


def test_a_recipe_for_other_settings_is_refused_while_the_old_one_goes_on(desk: Desk) -> None:
    said = desk.activate("a", top=OTHER)
    assert "gain_db is 3 in the camera, 9 in the recipe" in said
    (made,) = desk.lines
    assert made.ready_now()
    assert made.station.recipes is not None
    assert made.station.recipes.views["top"].recipe.digest != OTHER


def test_a_recipe_is_activated_once_the_camera_is_set_as_it_says(desk: Desk) -> None:
    desk.lines[0].station.camera_settings("top", SET | {"gain_db": 9.0})
    assert desk.activate("a", top=OTHER) == ""
    assert desk.lines[0].ready_now()


def test_a_recipe_for_a_camera_that_is_away_is_held_to_it_when_it_comes_back(desk: Desk) -> None:
    (made,) = desk.lines
    made.station.camera_down("top", "cable")
    assert desk.activate("a", top=OTHER) == ""
    made.station.camera_settings("top", SET)
    made.station.camera_up("top")
    assert not made.ready_now()
    made.station.camera_settings("top", SET | {"gain_db": 9.0})
    assert made.ready_now()


def test_settings_that_change_while_the_recipe_is_loaded_are_seen_after_it(desk: Desk) -> None:
    (made,) = desk.lines
    made.station.camera_settings("top", SET | {"gain_db": 9.0})
    station_activate = made.station.activate

    def activate_too_late(live: LiveRecipeSet) -> None:
        made.station.camera_settings("top", SET)
        station_activate(live)

    made.station.activate = activate_too_late  # type: ignore[method-assign]
    assert desk.activate("a", top=OTHER) == ""
    assert not made.ready_now()


# --- the archive ---------------------------------------------------------------------------------------


def archived(found: dict[str, Any] | None) -> dict[str, bytes]:
    frame = Frame("cam", 7, np.zeros((16, 16), np.uint8), 0, settings=found)
    outcomes = {"top": ViewOutcome.failed(Reason.LATE, frame)}
    anchor = SimpleNamespace(text="2026-01-01T00:00:00Z")
    return dict(archived_pictures(cast(Any, SimpleNamespace(outcomes=outcomes, recipe_set=None, anchor=anchor))))


def test_the_archive_says_beside_each_frame_what_it_was_taken_with(tmp_path: Path) -> None:
    written = archived(SET | {"trigger": "software"})
    assert list(written) == ["top.frame.png", "top.camera.json"]
    for name, data in written.items():
        (tmp_path / f"r1.{name}").write_bytes(data)
    said = read_camera_file(own_file(tmp_path / "r1.top.frame.png"))
    assert (said.camera, dict(said.settings)) == ("cam", SET)


@pytest.mark.parametrize("found", [None, {}, {"trigger": "software"}, {"gain_db": math.nan}, {"Odd key": 1}])
def test_the_archive_keeps_a_frame_of_which_nothing_can_be_said(found: dict[str, Any] | None) -> None:
    assert list(archived(found)) == ["top.frame.png"]
