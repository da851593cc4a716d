"""Settings of a camera, as a recipe, a file and a camera have them: what is the same, and what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_recipe import put, recipe_files, rewritten

from edge_daemon.artefact.camera import CAMERA_FILE, CameraFile, read_camera_file, write_camera_file
from edge_daemon.artefact.manifest import CAMERA_FEATURE, CameraPart
from edge_daemon.artefact.recipe import load_recipe
from edge_daemon.core.camera_settings import Value, canonical, counting, differences, identical, in_words
from edge_daemon.errors import CameraSettingsError, RecipeSchemaError, RecipeShapeError, RecipeUnreadable

SET: dict[str, Value] = {
    "pixel_format": "Mono8", "region": "640x480+0+0", "exposure_us": 5000.0, "gain_db": 0.0, "binning_x": 1,
    "reverse_x": False,
}  # fmt: skip
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True).filter(lambda name: bool(counting({name: 1})))
VALUES = (
    st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(-1e15, 1e15)
    | st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=100)
)


def keys(wanted: dict[str, Value], found: dict[str, Value]) -> list[str]:
    return [difference.key for difference in differences(wanted, found)]


# --- what is the same --------------------------------------------------------------------------------


@given(st.dictionaries(NAMES, VALUES, max_size=20))
def test_settings_agree_with_themselves_in_whatever_order(settings: dict[str, Value]) -> None:
    assert differences(settings, dict(reversed(settings.items()))) == ()


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=20), st.data())
def test_a_setting_that_one_side_does_not_have_is_a_difference(settings: dict[str, Value], data: Any) -> None:
    gone = data.draw(st.sampled_from(sorted(settings)))
    less = {key: value for key, value in settings.items() if key != gone}
    assert keys(settings, less) == [gone]
    assert keys(less, settings) == [gone]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True), (0, False), (1.0, True), (1, "1"), (1.0, "1.0"), (True, "true"), ("Mono8", "mono8"),
        ("Mono8", "Mono8 "), ("\u00e9", "e\u0301"), (math.nan, math.nan), (math.nan, 1.0), (math.inf, math.inf),
        (-math.inf, 1.0), (5000.0, 5051.0), (5000, 5001), (0.0, 0.02), (1.0, -1.0), (10**400, 1.0), ("", 0),
    ],
)  # fmt: skip
def test_what_only_looks_alike_is_not_the_same(one: Value, other: Value) -> None:
    assert keys({"gamma": one}, {"gamma": other}) == ["gamma"]
    assert keys({"gamma": other}, {"gamma": one}) == ["gamma"]


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [("exposure_us", 5000.0, 5049.0), ("exposure_us", 5000, 5000.0), ("gain_db", 0.0, 0.1), ("gain_db", 12.0, 11.9)],
)
def test_what_a_camera_rounds_is_the_same(key: str, one: Value, other: Value) -> None:
    assert keys({key: one}, {key: other}) == keys({key: other}, {key: one}) == []


@pytest.mark.parametrize(("one", "other"), [(0.0, 0.11), (40.0, 40.3)])
def test_a_gain_in_decibels_has_no_more_room_where_it_is_high(one: float, other: float) -> None:
    assert keys({"gain_db": one}, {"gain_db": other}) == ["gain_db"]


def test_what_makes_the_camera_expose_does_not_count() -> None:
    assert keys(SET | {"trigger": "software"}, SET | {"trigger": "hardware", "line": "Line1", "delay_us": 3.0}) == []
    assert keys(SET, SET | {"something_new": 1}) == ["something_new"]


def test_each_difference_is_named_with_both_values_and_very_many_are_counted() -> None:
    found = differences({"exposure_us": 10000.0, "flip": True, "gain": 1}, {"exposure_us": 5000.0, "flip": "true"})
    assert in_words(found, "the camera", "the recipe") == (
        'exposure_us is 5000 in the camera, 10000 in the recipe; flip is "true" in the camera, true in the recipe; '
        "gain is not there in the camera, 1 in the recipe"
    )
    many = differences({f"k{i}": i for i in range(40)}, {})
    assert in_words(many, "a", "b").endswith("; and 24 more")


@given(st.dictionaries(NAMES, VALUES, max_size=8), st.dictionaries(NAMES, VALUES, max_size=8))
def test_settings_are_identical_when_their_texts_are(one: dict[str, Value], other: dict[str, Value]) -> None:
    for second in (other, one | other, dict(reversed(one.items())), {key: float(bool(v)) for key, v in one.items()}):
        assert identical(one, second) == (canonical(one) == canonical(second))


@pytest.mark.parametrize(
    ("one", "other"),
    [({"a": 1, "b": True}, {"b": 1, "a": True}), ({"a": 1}, {"a": 1.0}), ({"a": 0}, {"a": False}), ({}, {"a": 1}),
     ({"a": math.nan}, {"a": "NaN"})],
)  # fmt: skip
def test_settings_that_python_takes_for_equal_are_not_identical(one: dict[str, Value], other: dict[str, Value]) -> None:
    assert not identical(one, other)
    assert identical(one, dict(one))


def test_the_text_of_settings_tells_types_apart() -> None:
    assert len({canonical({"x": value}) for value in (1, 1.0, True, "1", "true", None)}) == 6
    assert canonical({"b": 1, "a": 2}) == canonical({"a": 2, "b": 1})


# --- in recipe.json ------------------------------------------------------------------------------------


def with_camera(settings: Any) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        fields["required_features"].append(CAMERA_FEATURE)
        fields["camera"] = {"settings": settings, "kind": "gige", "taken_utc": "2026-01-01T00:00:00Z"}

    return change


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=20))
def test_settings_come_back_from_json_with_their_types(settings: dict[str, Value]) -> None:
    part = CameraPart(settings=settings, kind="gige", taken_utc="")
    again = CameraPart.model_validate_json(part.model_dump_json(), strict=True)
    assert canonical(again.settings) == canonical(settings)
    assert differences(settings, again.settings) == ()


def test_a_recipe_keeps_the_settings_of_its_pictures(tmp_path: Path) -> None:
    put(tmp_path / "a.recipe", recipe_files(with_camera(SET)))
    camera = load_recipe(tmp_path / "a.recipe").manifest.camera
    assert camera is not None
    assert canonical(camera.settings) == canonical(SET)


def test_a_recipe_without_them_is_as_before(tmp_path: Path) -> None:
    put(tmp_path / "a", recipe_files())
    assert "camera" not in json.loads((tmp_path / "a" / "recipe.json").read_text())
    assert load_recipe(tmp_path / "a").manifest.camera is None


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"trigger": "software"}, {"exposure_us": None}, {"exposure_us": [1]}, {"exposure_us": {"a": 1}},
        {"Exposure": 1}, {"": 1}, {"a" * 65: 1}, {"g\u00e4in": 1}, {"gain": "x" * 129}, {"gain": "a\nb"},
        {"gain": 10**15 + 1}, {"gain": 10**400}, {f"k{i}": 1 for i in range(65)}, [["gain", 1]], "gain",
    ],
)  # fmt: skip
def test_settings_that_are_none_are_refused(tmp_path: Path, settings: Any) -> None:
    put(tmp_path / "a", rewritten(with_camera(settings)))
    with pytest.raises(RecipeSchemaError):
        load_recipe(tmp_path / "a")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, number: str) -> None:
    files = recipe_files(with_camera(SET))
    raw = files["recipe.json"].replace(b"5000.0", number.encode())
    assert raw != files["recipe.json"]
    put(tmp_path / "a", {**files, "recipe.json": raw})
    with pytest.raises(RecipeUnreadable):
        load_recipe(tmp_path / "a")


def test_settings_and_their_feature_come_together(tmp_path: Path) -> None:
    def forget(what: str) -> Callable[[dict[str, Any]], None]:
        def change(fields: dict[str, Any]) -> None:
            with_camera(SET)(fields)
            fields["required_features"].remove(CAMERA_FEATURE) if what == "feature" else fields.pop("camera")

        return change

    for what in ("feature", "settings"):
        put(tmp_path / "a", rewritten(forget(what)))
        with pytest.raises(RecipeShapeError, match="camera settings and the feature camera/1"):
            load_recipe(tmp_path / "a")


# --- camera.json ---------------------------------------------------------------------------------------


def file_of(settings: dict[str, Value]) -> CameraFile:
    return CameraFile(camera="top", kind="gige", taken_utc="2026-01-01T00:00:00Z", software="x", settings=settings)


def test_the_file_comes_back_and_is_never_replaced(tmp_path: Path) -> None:
    write_camera_file(tmp_path, file_of(SET))
    with pytest.raises(FileExistsError):
        write_camera_file(tmp_path, file_of(SET | {"exposure_us": 1.0}))
    assert canonical(read_camera_file(tmp_path / CAMERA_FILE).settings) == canonical(SET)
    assert [path.name for path in tmp_path.iterdir()] == [CAMERA_FILE]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '"x"', '{"schema": "edge-daemon/camera/2"}', "[" * 100_000, "\xff",
        '{"schema": "edge-daemon/camera/1", "camera": "a", "kind": "b", "taken_utc": "", "software": "", '
        '"settings": {}}',
        '{"schema": "edge-daemon/camera/1", "camera": "a", "kind": "b", "taken_utc": "", "software": "", '
        '"settings": {"gain": 1, "gain": 2}}',
        '{"schema": "edge-daemon/camera/1", "camera": "a", "kind": "b", "taken_utc": "", "software": "", '
        '"settings": {"gain": NaN}}',
        '{"schema": "edge-daemon/camera/1", "camera": "a", "kind": "b", "taken_utc": "", "software": "", '
        '"settings": {"gain": 1}, "more": 1}',
        " " * (65 << 10),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / CAMERA_FILE
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CameraSettingsError, match=CAMERA_FILE):
        read_camera_file(path)


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(CameraSettingsError, match=str(path)):
            read_camera_file(path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(CameraSettingsError, match="cannot be written"):
        write_camera_file(tmp_path / "none", file_of(SET))


def test_numbers_that_are_not_finite_cannot_be_kept() -> None:
    with pytest.raises(ValidationError):
        file_of({"gain": math.nan})
