"""Health in front of the inspection: no unhealthy picture reaches the model, whatever it would score."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_daemon.core.decision import Evaluation, Reason
from edge_daemon.core.frame import Frame
from edge_daemon.core.health import REDUCED_PX, Measure
from edge_daemon.pipeline.health import HealthDesk
from edge_daemon.pipeline.station import Work
from export.health import limits_from, look_at

SIZE = (96, 96)


def picture(seed: int, level: float = 1.0) -> NDArray[np.uint8]:
    """A bright square on grey, with a sensor's noise."""
    draw = np.random.default_rng(seed)
    pixels = np.full((*SIZE, 3), 80.0)
    pixels[30:66, 30:66] = 170
    return np.clip(level * pixels + draw.normal(0, 2, pixels.shape), 0, 255).astype(np.uint8)


class FakeStation:
    name = "st1"

    def __init__(self) -> None:
        self.outcomes: list[Any] = []
        self.warnings: dict[str, str] = {}
        self.seen: dict[str, Any] = {}

    def view_done(self, _inspection: Any, _camera: str, outcome: Any) -> None:
        self.outcomes.append(outcome)

    def warn(self, key: str, message: str) -> None:
        self.warnings[key] = message

    def warning_over(self, key: str) -> None:
        self.warnings.pop(key, None)

    def health_seen(self, camera: str, measures: Any) -> None:
        self.seen[camera] = measures


class Line:
    def __init__(self, may_repeat: bool = False) -> None:
        self.station = FakeStation()
        self.judged: list[Work] = []
        self.events: list[str] = []
        self.fatal: list[BaseException] = []
        self.desk = HealthDesk(
            self.judged.append, lambda _k, _s, name, _m, _v: self.events.append(name), self.fatal.append
        )
        self.desk.watch(cast(Any, self.station), "top", may_repeat)
        learned = limits_from([look_at(picture(seed), None) for seed in range(100, 130)], ["x"] * 30, 30)
        self.ready = self.recipe(learned.health, "a" * 64)

    def recipe(self, health: Any, digest: str, size: tuple[int, int] = SIZE, in_colour: bool = False) -> Any:
        manifest = SimpleNamespace(health=health, align=None, view=SimpleNamespace(region=None, frame_size=size))
        return SimpleNamespace(recipe=SimpleNamespace(manifest=manifest, digest=digest, in_colour=in_colour))

    def show(self, pixels: NDArray[np.uint8], view: str = "top") -> Any:
        """What came of it: the outcome, or None when it went on to be judged."""
        inspection = SimpleNamespace(recipe_set=SimpleNamespace(views={view: self.ready}), health={})
        work = Work(cast(Any, self.station), cast(Any, inspection), view, Frame("top", 1, pixels, 0))
        before = len(self.judged)
        self.desk.submit(work)
        return None if len(self.judged) > before else self.station.outcomes[-1].verdict


def test_a_healthy_picture_goes_on_with_its_measures() -> None:
    line = Line()
    assert line.show(picture(1)) is None
    assert line.judged[0].inspection.health["top"].keys() == {name.value for name in Measure}
    assert (line.events, line.station.warnings) == ([], {})


@pytest.mark.parametrize(
    ("level", "reason"),
    [(0.0, Reason.HEALTH_BLACK), (0.5, Reason.HEALTH_UNDEREXPOSED), (1.4, Reason.HEALTH_OVEREXPOSED)],
)
def test_an_unhealthy_picture_is_never_judged_and_the_alarm_ends_with_the_first_healthy_one(
    level: float, reason: Reason
) -> None:
    line = Line()
    for seed in range(3):
        verdict = line.show(picture(seed, level))
        assert (verdict.evaluation, verdict.reason, verdict.judged) == (Evaluation.NOT_DECIDABLE, reason, True)
        assert reason.value in line.station.warnings["health top"]
    assert line.judged == []
    assert line.show(picture(9)) is None
    assert line.events == [reason.value, "health_clear"]
    assert line.station.warnings == {}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grey_picture_fails_where_the_recipe_knows_colours_and_the_alarm_ends_with_the_first_in_colour(
    channels: int,
) -> None:
    line = Line()
    line.ready = line.recipe(line.ready.recipe.manifest.health, "c" * 64, in_colour=True)
    for seed in range(3):
        grey = picture(seed)[..., 0]
        verdict = line.show(grey if channels == 1 else np.repeat(grey[..., None], 3, axis=2))
        assert (verdict.evaluation, verdict.reason, verdict.judged) == (Evaluation.UNDEFINED, Reason.FRAME_SIZE, False)
        assert "learned from pictures in colour" in line.station.warnings["grey top"]
    assert line.judged == []
    one_pixel = np.repeat(picture(8)[..., :1], 3, axis=2)
    one_pixel[7, 9, 2] ^= 1
    assert line.show(one_pixel) is None
    assert (line.events, line.station.warnings) == (["grey"], {})


def test_a_dark_picture_is_black_and_not_grey() -> None:
    line = Line()
    line.ready = line.recipe(line.ready.recipe.manifest.health, "c" * 64, in_colour=True)
    assert line.show(np.zeros((*SIZE, 3), np.uint8)).reason is Reason.HEALTH_BLACK
    line.ready = line.recipe(None, "d" * 64, in_colour=True)
    assert line.show(np.ones((*SIZE, 3), np.uint8)).reason is Reason.FRAME_SIZE, "without limits nobody knows black"


def test_a_recipe_of_grey_parts_takes_pictures_in_colour_and_grey_ones() -> None:
    line = Line()
    assert line.show(picture(1)) is None
    assert line.show(picture(2)[..., 0]) is None


@pytest.mark.parametrize("limited", [True, False])
def test_a_frozen_picture_is_refused_the_first_time_it_repeats_and_also_from_a_ring_of_buffers(limited: bool) -> None:
    line = Line()
    line.ready = line.ready if limited else line.recipe(None, "b" * 64)
    ring = [picture(seed) for seed in range(64)]
    assert [line.show(pixels) for pixels in ring] == [None] * 64
    for _ in range(3):
        for pixels in ring:
            verdict = line.show(pixels.copy())
            assert (verdict.evaluation, verdict.reason) == (Evaluation.NOT_DECIDABLE, Reason.HEALTH_FROZEN)
    assert "repeats one of the 200 before it" in line.station.warnings["health top"]
    assert line.show(picture(65)) is None
    assert line.events == ["health_frozen", "health_clear"]
    assert len(line.judged) == 65


def test_a_picture_that_repeats_after_a_change_of_recipes_or_one_of_another_size_is_frozen_too() -> None:
    line = Line()
    assert line.show(picture(1)) is None
    line.ready = line.recipe(None, "b" * 64)
    assert line.show(picture(1)).reason is Reason.HEALTH_FROZEN
    assert line.show(np.zeros((10, 10, 3), np.uint8)) is None
    line.ready = line.recipe(None, "c" * 64, (10, 10))
    assert line.show(np.zeros((10, 10, 3), np.uint8)).reason is Reason.HEALTH_FROZEN


def test_each_view_remembers_its_own_pictures() -> None:
    line = Line()
    line.desk.watch(cast(Any, line.station), "side", may_repeat=False)
    assert line.show(picture(1)) is None
    assert line.show(picture(1), "side") is None
    assert line.show(picture(1), "side").reason is Reason.HEALTH_FROZEN


def test_a_picture_in_which_nothing_can_be_measured_is_not_taken_for_healthy() -> None:
    line = Line()
    line.ready.recipe.manifest.view.region = (0, 0, 2, 40)
    verdict = line.show(picture(1))
    assert (verdict.evaluation, verdict.reason, verdict.judged) == (Evaluation.UNDEFINED, Reason.FRAME_SIZE, False)
    assert line.fatal == []


def test_a_replay_may_repeat() -> None:
    line = Line(may_repeat=True)
    assert [line.show(picture(1)) for _ in range(3)] == [None] * 3


def test_a_lamp_that_ages_is_told_before_a_part_is_lost_and_all_is_clear_when_it_is_renewed() -> None:
    line = Line()
    part = 0
    while not line.station.warnings:
        part += 1
        assert part < 2000
        assert line.show(picture(part, 1 - part / 8000)) is None, "a part was lost before the alarm"
    assert line.events == ["drift_brightness"]
    assert "drift_brightness top" in line.station.warnings
    for fresh in range(200):
        line.show(picture(5000 + fresh))
    assert line.events == ["drift_brightness", "drift_clear"]
    assert line.station.warnings == {}


def test_another_recipe_begins_anew_and_one_without_limits_judges_every_picture() -> None:
    line = Line()
    assert line.show(picture(1, 0.0)).reason is Reason.HEALTH_BLACK
    line.ready = line.recipe(None, "b" * 64)
    assert line.show(picture(1, 0.1)) is None
    assert line.station.warnings == {}
    assert line.events[-1] == "health_clear"


def test_a_frame_of_another_size_is_left_to_the_inspection_to_refuse() -> None:
    line = Line()
    assert line.show(np.zeros((10, 10, 3), np.uint8)) is None
    line.ready = line.recipe(None, "b" * 64)
    assert line.show(np.zeros((*SIZE, 4), np.uint8)) is None
    assert line.show(np.zeros((0, 10), np.uint8)) is None


def test_a_frame_of_four_channels_is_not_taken_for_healthy() -> None:
    line = Line()
    assert line.show(np.zeros((*SIZE, 4), np.uint8)).reason is Reason.FRAME_SIZE
    assert (line.judged, line.fatal) == ([], [])


def test_a_defect_of_the_program_fails_the_part_and_is_told() -> None:
    line = Line()
    line.ready.recipe.manifest.health = "nonsense"
    verdict = line.show(picture(1))
    assert (verdict.evaluation, verdict.reason, verdict.judged) == (Evaluation.UNDEFINED, Reason.ENGINE, False)
    assert len(line.fatal) == 1


def test_the_reference_is_kept_byte_by_byte() -> None:
    assert Line().ready.recipe.manifest.health.reference.__len__() == -(-REDUCED_PX * REDUCED_PX // 3) * 4
