"""Image health: what the measures mean, what the limits catch, and that a defect is no illness of the picture."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_daemon.artefact.manifest import HEALTH_FEATURE
from edge_daemon.artefact.pictures import encode_png
from edge_daemon.core.decision import Reason
from edge_daemon.core.drift import LAMBDA, L, advance, begin, drift_distance
from edge_daemon.core.geometry import Region
from edge_daemon.core.health import (
    HealthLimits,
    Limit,
    Measure,
    Reference,
    Repeats,
    Violation,
    fingerprint,
    measure,
    reduced,
    take_sample,
    violation,
)
from edge_daemon.detectors.health import health_limits
from edge_daemon.errors import PictureError
from edge_daemon.simulation.names import DefectKind
from edge_daemon.simulation.render import Scene
from export.errors import PicturesError
from export.health import learn_health, robust_deviation, tolerance_factor, with_health

SIZE = (256, 256)
TAUGHT = 40


def no_progress(_what: str, _total: int) -> AbstractContextManager[Any]:
    return nullcontext(lambda _done: None)


def measures(pixels: NDArray[np.uint8], reference: NDArray[np.uint8] | None = None) -> dict[Measure, float]:
    sample = take_sample(pixels, None)
    golden = sample if reference is None else take_sample(reference, None)
    return measure(sample, Reference.of(reduced(golden)))


@pytest.fixture(scope="module", params=["flange", "weave"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(request.param, SIZE)


@pytest.fixture(scope="module")
def limits(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> HealthLimits:
    folder = tmp_path_factory.mktemp("good")
    paths = [folder / f"{index:03d}.png" for index in range(TAUGHT)]
    for index, path in enumerate(paths):
        path.write_bytes(encode_png(scene.part(1, index).pixels))
    names = [path.name for path in paths]
    learned = learn_health(paths, names, names, None, no_progress)
    assert learned.notes == []
    manifest = SimpleNamespace(health=learned.health, view=SimpleNamespace(region=None))
    found = health_limits(cast(Any, manifest))
    assert found is not None
    return found


def found(pixels: NDArray[np.uint8], limits: HealthLimits) -> Violation | None:
    return violation(measure(take_sample(pixels, None), limits.reference), limits.limits)


def reason(pixels: NDArray[np.uint8], limits: HealthLimits) -> Reason | None:
    ill = found(np.ascontiguousarray(pixels, np.uint8), limits)
    return None if ill is None else ill.reason


def moved(pixels: NDArray[np.uint8], x_px: int, y_px: int) -> NDArray[np.uint8]:
    shift = np.array([[1, 0, x_px], [0, 1, y_px]], np.float32)
    size = pixels.shape[1], pixels.shape[0]
    return np.asarray(cv2.warpAffine(pixels, shift, size, borderMode=cv2.BORDER_REFLECT), np.uint8)


def test_good_and_defective_parts_are_pictures_that_can_be_judged(scene: Scene, limits: HealthLimits) -> None:
    for index in range(60):
        assert found(scene.part(2, index).pixels, limits) is None
    for index, kind in enumerate(list(DefectKind) * 8):
        assert found(scene.part(3, index, kind).pixels, limits) is None, kind


def test_each_fault_of_the_picture_is_found_under_its_own_name(scene: Scene, limits: HealthLimits) -> None:
    for index in range(5):
        good = scene.part(4, index).pixels
        noisy = good + np.random.default_rng(index).normal(0, 8, good.shape)
        assert reason(np.zeros_like(good), limits) is Reason.HEALTH_BLACK
        assert reason(np.full_like(good, 255), limits) is Reason.HEALTH_OVEREXPOSED
        assert reason(good * 0.7, limits) is Reason.HEALTH_UNDEREXPOSED
        assert reason(np.clip(good * 1.5, 0, 255), limits) is Reason.HEALTH_OVEREXPOSED
        assert reason(cv2.GaussianBlur(good, (0, 0), 1.5), limits) is Reason.HEALTH_BLUR
        assert reason(np.clip(noisy, 0, 255), limits) is Reason.HEALTH_NOISE


def test_a_defocused_lens_is_told_though_the_sensor_goes_on_making_noise(scene: Scene, limits: HealthLimits) -> None:
    draw = np.random.default_rng(0)
    for index in range(5):
        soft = cv2.GaussianBlur(scene.part(4, index).pixels, (0, 0), 2.0)
        assert reason(np.clip(soft + draw.normal(0, 1.8, soft.shape), 0, 255), limits) is Reason.HEALTH_BLUR


@pytest.mark.parametrize("step", [(9, 1), (1, 9)])
def test_motion_in_either_direction_is_blur(scene: Scene, limits: HealthLimits, step: tuple[int, int]) -> None:
    assert reason(cv2.blur(scene.part(4, 1).pixels, step), limits) is Reason.HEALTH_BLUR


def test_a_part_that_lies_elsewhere_is_shifted_by_so_many_pixels() -> None:
    scene = Scene("flange", SIZE)
    good = scene.part(1, 0).pixels
    for x_px, y_px in ((0, 0), (12, 0), (0, -9), (30, 21), (-48, 40)):
        values = measures(moved(good, x_px, y_px), good)
        assert values[Measure.SHIFT_X] == pytest.approx(x_px, abs=1 + 0.05 * abs(x_px))
        assert values[Measure.SHIFT_Y] == pytest.approx(y_px, abs=1 + 0.05 * abs(y_px))


def test_measures_of_a_picture_with_known_contents() -> None:
    halves = np.zeros((256, 256), np.uint8)
    halves[:, 128:] = 255
    values = measures(halves)
    assert values[Measure.BRIGHTNESS] == 127.5
    assert values[Measure.CONTRAST] == 127.5
    assert values[Measure.SATURATION_LOW] == values[Measure.SATURATION_HIGH] == 0.5
    assert values[Measure.NOISE] == pytest.approx(0, abs=0.1)
    assert (values[Measure.SHIFT_X], values[Measure.SHIFT_Y]) == (0, 0)


@pytest.mark.parametrize("sigma", [1.0, 3.0, 8.0])
def test_noise_is_the_standard_deviation_of_what_was_added(sigma: float) -> None:
    draw = np.random.default_rng(1)
    ramp = np.linspace(60, 180, 512)[None, :] + draw.normal(0, sigma, (512, 512))
    assert measures(np.rint(ramp).astype(np.uint8))[Measure.NOISE] == pytest.approx(sigma, rel=0.06)


@given(
    st.integers(3, 90), st.integers(3, 90), st.sampled_from([0, 1, 128, 255, None]), st.booleans(), st.integers(0, 99)
)
def test_every_measure_of_every_picture_is_finite(
    width: int, height: int, level: int | None, colour: bool, seed: int
) -> None:
    shape = (height, width, 3) if colour else (height, width)
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, shape, dtype=np.uint8) if level is None else np.full(shape, level, np.uint8)
    values = measures(pixels)
    assert list(values) == list(Measure)
    assert np.isfinite(list(values.values())).all()


def test_the_same_bytes_give_the_same_numbers_on_every_machine() -> None:
    pixels = np.random.default_rng(7).integers(0, 256, (96, 120, 3), dtype=np.uint8)
    rows = take_sample(pixels, None)
    fixed = rows.rows.astype(np.int64) @ np.array([9798, 19235, 3735]) + 16384 >> 15
    assert np.abs(fixed - rows.grey).max() == 0
    assert measures(pixels)[Measure.BRIGHTNESS] == fixed.mean()


def test_only_the_region_that_is_judged_counts() -> None:
    pixels = np.zeros((200, 300), np.uint8)
    pixels[50:150, 100:200] = np.random.default_rng(0).integers(100, 140, (100, 100), dtype=np.uint8)
    inside = take_sample(pixels, Region(100, 50, 100, 100))
    assert inside.grey.min() >= 100
    with pytest.raises(PictureError):
        take_sample(pixels, Region(250, 50, 100, 100))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_measure_that_is_not_finite_or_missing_never_passes(value: float) -> None:
    both = {Measure.BRIGHTNESS: Limit(1.0, 2.0, 1.5, 0.1)}
    upper = {Measure.SATURATION_HIGH: Limit(None, 2.0, 1.5, 0.1)}
    none = {Measure.SHARPNESS_X: Limit(None, None, 1.5, 0.1)}
    for limit in (both, upper, none):
        (name,) = limit
        assert violation({name: value}, limit) is not None
        assert violation({}, limit) is not None
        assert violation({name: 1.5}, limit) is None
    assert violation({Measure.BRIGHTNESS: 2.0}, both) is None, "a tie passes, as at the threshold"


def test_a_fingerprint_tells_two_pictures_of_one_part_at_rest_apart() -> None:
    still = Scene("flange", SIZE).part(1, 0).pixels
    draw = np.random.default_rng(0)
    marks = {fingerprint(np.clip(still + draw.normal(0, 0.6, still.shape), 0, 255).astype(np.uint8)) for _ in range(20)}
    assert len(marks) == 20
    assert fingerprint(still) == fingerprint(still.copy())


@given(
    st.sampled_from([(7, 5), (64, 48, 3), (600, 700), (1200, 300, 3), (1, 9), (300, 1000, 4)]), st.data(), st.booleans()
)
def test_every_pixel_of_a_large_frame_counts_whatever_its_layout(
    shape: tuple[int, ...], data: st.DataObject, mirrored: bool
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seen = pixels[:, ::-1] if mirrored else pixels
    other = seen.copy()
    other.reshape(-1)[data.draw(st.integers(0, other.size - 1))] ^= data.draw(st.integers(1, 255))
    assert fingerprint(other) != fingerprint(seen)
    assert fingerprint(seen) == fingerprint(np.ascontiguousarray(seen))


def test_frames_of_another_shape_or_type_are_others_and_an_empty_one_has_a_fingerprint_too() -> None:
    pixels = np.arange(240, dtype=np.uint8)
    shaped = [pixels.reshape(shape) for shape in ((10, 24), (24, 10), (10, 8, 3))]
    frames = [*shaped, shaped[0].view(np.uint16), np.zeros((0, 3), np.uint8), np.zeros((3, 0, 3), np.uint8)]
    assert len({fingerprint(frame) for frame in frames}) == len(frames)


def test_repeats_are_known_among_the_last_frames_and_no_more_are_kept() -> None:
    seen = Repeats(kept=3)
    assert [seen.repeats(mark) for mark in (b"a", b"b", b"c", b"d")] == [False] * 4
    assert len(seen) == 3
    assert [seen.repeats(mark) for mark in (b"b", b"e", b"b", b"c")] == [True, False, True, False], "b stayed new"
    assert len(seen) == 3


# -- learning ----------------------------------------------------------------------------------------


def test_fewer_pictures_teach_wider_limits() -> None:
    factors = [tolerance_factor(count) for count in (2, 5, 20, 50, 209, 2000)]
    assert factors == sorted(factors, reverse=True)
    assert np.isfinite(factors).all()
    assert factors[-1] > 3.8  # the quantile itself


def test_the_tolerance_interval_holds_its_false_alarm_rate() -> None:
    """Of 300 recipes from 30 pictures each, hardly any has a rate above the stated one."""
    draw = np.random.default_rng(3)
    rate = 0.02
    above = 0
    for _ in range(300):
        seen = draw.normal(size=30)
        half = tolerance_factor(30, rate) * robust_deviation(seen)
        centre = np.median(seen)
        fresh = draw.normal(size=4000)
        above += bool((np.abs(fresh - centre) > half).mean() > rate)
    assert above <= 30


def test_one_black_picture_among_the_good_ones_is_named_and_widens_nothing(tmp_path: Path) -> None:
    scene = Scene("flange", (128, 128))
    paths = [tmp_path / f"{index:02d}.png" for index in range(30)]
    for index, path in enumerate(paths):
        pixels = scene.part(1, index).pixels
        path.write_bytes(encode_png(np.zeros_like(pixels) if index == 17 else pixels))
    names = [path.name for path in paths]
    learned = learn_health(paths, names, names, None, no_progress)
    assert any("17.png" in note and "brightness" in note for note in learned.notes)
    assert (learned.health.limits["brightness"].lower or 0) > 50


@pytest.mark.parametrize("count", [1, 2, 5])
def test_very_few_pictures_give_wide_and_finite_limits(tmp_path: Path, count: int) -> None:
    scene = Scene("flange", (128, 128))
    paths = [tmp_path / f"{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        path.write_bytes(encode_png(scene.part(1, index).pixels))
    names = [path.name for path in paths]
    health = learn_health(paths, names, names, None, no_progress).health
    for limit in health.limits.values():
        assert all(np.isfinite(x) for x in (limit.lower, limit.upper, limit.centre, limit.drift) if x is not None)


def test_an_unreadable_picture_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(PicturesError, match=r"a\.png"):
        learn_health([tmp_path / "a.png"], ["a.png"], ["a.png"], None, no_progress)


def test_the_feature_comes_and_goes_with_the_limits() -> None:
    fields = {"required_features": ["patchcore/1", HEALTH_FEATURE], "health": "old", "name": "x"}
    assert with_health(fields, None) == {"required_features": ["patchcore/1"], "name": "x"}


# -- drift -------------------------------------------------------------------------------------------


def charted(values: NDArray[np.float64], centre: float, distance: float) -> int | None:
    """At which value the alarm came; None for never."""
    state = begin(centre)
    for index, value in enumerate(values):
        state = advance(state, float(value), centre, distance)
        if state.alarm:
            return index
    return None


def test_ten_thousand_good_parts_raise_no_drift_alarm() -> None:
    draw = np.random.default_rng(11)
    distance = drift_distance(1.0, 50, 0.0)
    for _ in Measure:
        assert charted(draw.normal(size=10_000), 0.0, distance) is None


def test_the_average_run_length_is_what_is_stated() -> None:
    """Brook and Evans (1972): the chart as a Markov chain of 401 classes, without the centre's share of the limit."""
    from math import erf, sqrt

    limit = L * sqrt(LAMBDA / (2 - LAMBDA))
    edges = np.linspace(-limit, limit, 402)
    middle = (edges[1:] + edges[:-1]) / 2
    below = np.array([[0.5 * (1 + erf((e - (1 - LAMBDA) * m) / LAMBDA / sqrt(2))) for e in edges] for m in middle])
    stay = np.diff(below, axis=1)
    run_length = np.linalg.solve(np.eye(401) - stay, np.ones(401))[200]
    assert run_length > 1e8
    assert run_length / len(Measure) > 1e7


def test_an_ageing_lamp_and_a_clouding_lens_are_told_before_a_part_is_lost(scene: Scene, limits: HealthLimits) -> None:
    def ageing(pixels: NDArray[np.uint8], age: float) -> NDArray[np.uint8]:
        return np.asarray(cv2.convertScaleAbs(pixels, alpha=1 - 0.2 * age), np.uint8)

    def clouding(pixels: NDArray[np.uint8], age: float) -> NDArray[np.uint8]:
        return np.asarray(cv2.GaussianBlur(pixels, (0, 0), max(0.05, 1.2 * age)), np.uint8)

    goods = [scene.part(9, index).pixels for index in range(20)]
    for spoil, told in ((ageing, {Measure.BRIGHTNESS}), (clouding, {Measure.SHARPNESS_X, Measure.NOISE})):
        charts = {name: begin(limit.centre) for name, limit in limits.limits.items()}
        for part in range(1500):
            pixels = spoil(goods[part % 20], part / 1500)
            values = measure(take_sample(pixels, None), limits.reference)
            assert violation(values, limits.limits) is None, f"part {part} was lost before the alarm"
            for name, limit in limits.limits.items():
                charts[name] = advance(charts[name], values[name], limit.centre, limit.drift)
            if any(chart.alarm for chart in charts.values()):
                break
        assert told & {name for name, chart in charts.items() if chart.alarm}


def test_an_alarm_ends_when_the_mean_has_come_back_and_does_not_flicker() -> None:
    state = begin(0.0)
    while not state.alarm:
        state = advance(state, 2.0, 0.0, 1.0)
    changes = 0
    for _ in range(200):
        after = advance(state, 0.0, 0.0, 1.0)
        changes += after.alarm != state.alarm
        state = after
    assert changes == 1
    assert not state.alarm
    assert advance(state, float("nan"), 0.0, 1.0) == state
