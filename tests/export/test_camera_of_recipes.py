"""What pictures were taken with goes into the recipe, and pictures taken otherwise do not."""

import json
from types import SimpleNamespace

import pytest
from test_build_recipe import command, load, put, quiet, request

from edge_daemon.artefact.camera import CAMERA_FILE, CameraFile, write_camera_file
from edge_daemon.artefact.recipe import load_recipe
from edge_daemon.engines.sessions import EngineOptions
from edge_daemon.errors import CameraSettingsError
from export.build import build_recipe
from export.camera import require_same, taken_with
from export.cli import main
from export.errors import ExportError, PicturesError
from export.extend import ExtendRequest, extend_recipe
from export.gather import list_pictures
from export.relearn import relearn_health

SET = {"exposure_us": 5000.0, "gain_db": 3.0, "pixel_format": "Mono8", "flip_x": False}


def said(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in (SET | changes).items() if value is not None}
    content = CameraFile(camera="top", kind="gige", taken_utc="2026-11-20T08:00:00Z", software="x", settings=settings)
    write_camera_file(folder, content)
    return folder / CAMERA_FILE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A recipe of pictures with camera.json, and new pictures of the same kind without one."""
    folder = tmp_path_factory.mktemp("camera")
    good, new = put(folder / "good", range(40)), put(folder / "new", range(100, 120))
    said(good, trigger="software")
    out = folder / "washer.recipe"
    built = build_recipe(request(good, out, coreset_ratio=0.05), quiet)
    return SimpleNamespace(good=good, new=new, recipe=out, built=built)


def extension(made, images, out, **changes):
    fields = {"created_utc": "2026-11-21T08:00:00Z", "version": "2", "engine": EngineOptions(intra_op_threads=1)}
    return ExtendRequest(recipe=made.recipe, images=images, out=out, **{"accept": ("*",), **fields, **changes})


def test_the_recipe_has_what_its_pictures_were_taken_with_and_the_daemon_takes_it(made):
    camera = load(made.recipe).recipe.manifest.camera
    assert (camera.settings, camera.kind, camera.taken_utc) == (SET, "gige", "2026-11-20T08:00:00Z")
    assert "trigger" not in camera.settings
    assert not any("taken with" in note for note in made.built.notes)


def test_the_commands_say_what_a_camera_must_be_set_to(made, capsys):
    assert main(["verify", "--recipe", str(made.recipe)]) == 0
    assert "exposure_us 5000, flip_x false, gain_db 3, pixel_format Mono8" in capsys.readouterr().out
    assert main(["verify", "--recipe", str(made.recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["camera"]["settings"] == SET


def test_without_the_file_there_is_a_recipe_and_a_hint(made, tmp_path, capsys):
    plain = put(tmp_path / "plain", range(40))
    assert command(plain, tmp_path / "a.recipe", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["camera"] is None
    assert any("edge-daemon grab --save" in note for note in printed["notes"])
    assert load_recipe(tmp_path / "a.recipe").manifest.camera is None
    stated = str(made.good / CAMERA_FILE)
    assert command(plain, tmp_path / "b.recipe", "--camera-settings", stated) == 0
    assert "camera      exposure_us 5000" in capsys.readouterr().out
    assert load_recipe(tmp_path / "b.recipe").manifest.camera.settings == SET


def test_the_settings_can_be_left_out(made, tmp_path):
    assert command(made.good, tmp_path / "a.recipe", "--no-camera-settings") == 0
    assert load_recipe(tmp_path / "a.recipe").manifest.camera is None
    with pytest.raises(ExportError, match="give one of them"):
        build_recipe(request(made.good, tmp_path / "b", camera=False, camera_settings=made.good / CAMERA_FILE), quiet)


# --- which file speaks for which pictures --------------------------------------------------------------


def found(folder, stated=None):
    part = taken_with(folder, list_pictures(folder), stated)
    return None if part is None else part.settings


def test_files_of_folders_below_speak_for_their_pictures(tmp_path):
    for name in ("a", "b/deep"):
        put(tmp_path / name, range(1))
        said(tmp_path / name, exposure_us=5000.0 if name == "a" else 5020.0)
    assert found(tmp_path) == SET
    said(tmp_path / "empty", exposure_us=1.0)
    assert found(tmp_path) == SET, "a file without pictures speaks for none"


def test_pictures_of_different_settings_make_no_recipe(tmp_path):
    for name, exposure_us in (("a", 5000.0), ("b", 9000.0)):
        put(tmp_path / name, range(1))
        said(tmp_path / name, exposure_us=exposure_us)
    with pytest.raises(PicturesError, match=r"exposure_us is 9000 in .*b/camera\.json, 5000 in .*a/camera\.json"):
        found(tmp_path)
    with pytest.raises(PicturesError, match="different settings"):
        found(tmp_path / "a", stated=tmp_path / "b" / CAMERA_FILE)


def test_pictures_of_which_only_some_are_known_make_no_recipe_until_somebody_speaks_for_the_others(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / name, range(1))
    assert found(tmp_path) is None
    stated = said(tmp_path / "a")
    with pytest.raises(PicturesError, match=r"1 of 2 pictures .*b/part000\.png"):
        found(tmp_path)
    assert found(tmp_path, stated) == SET


def test_pictures_of_the_archive_speak_for_themselves(tmp_path):
    put(tmp_path, range(3), "{:03d}.top.frame.png")
    for number in range(3):
        said(tmp_path).rename(tmp_path / f"{number:03d}.top.camera.json")
    assert found(tmp_path) == SET
    (tmp_path / "001.top.camera.json").unlink()
    with pytest.raises(PicturesError, match=r"1 of 3 pictures .*001\.top\.frame\.png"):
        found(tmp_path)
    said(tmp_path, gain_db=9.0).rename(tmp_path / "001.top.camera.json")
    with pytest.raises(PicturesError, match="gain_db is 9"):
        found(tmp_path)


def test_a_file_that_cannot_be_read_is_no_missing_one(tmp_path):
    put(tmp_path, range(1))
    (tmp_path / CAMERA_FILE).write_text("{}")
    with pytest.raises(CameraSettingsError, match=CAMERA_FILE):
        found(tmp_path)
    (tmp_path / CAMERA_FILE).unlink()
    with pytest.raises(CameraSettingsError, match="cannot be read"):
        found(tmp_path, tmp_path / "none.json")


# --- recipes that exist ----------------------------------------------------------------------------------


def test_pictures_of_other_or_unknown_settings_are_not_added(made, tmp_path):
    with pytest.raises(PicturesError, match=r"nothing says .*learned from pictures with exposure_us 5000.*--cam"):
        extend_recipe(extension(made, made.new, tmp_path / "r"), quiet)
    other = said(tmp_path / "other", gain_db=9.0)
    with pytest.raises(PicturesError, match=r"gain_db is 9 in the new pictures, 3 in washer"):
        extend_recipe(extension(made, made.new, tmp_path / "r", camera_settings=other, dry_run=True), quiet)
    less = said(tmp_path / "less", gain_db=None)
    with pytest.raises(PicturesError, match="gain_db is not there in the new pictures"):
        extend_recipe(extension(made, made.new, tmp_path / "r", camera_settings=less), quiet)
    assert not (tmp_path / "r").exists()


def test_pictures_of_the_same_settings_are_added_and_the_recipe_keeps_them(made, tmp_path):
    same = said(tmp_path / "same", exposure_us=5010.0)
    extended = extend_recipe(extension(made, made.new, tmp_path / "r", camera_settings=same), quiet)
    assert load_recipe(extended.path).manifest.camera.settings == SET


def test_leaving_settings_out_is_no_option_of_more_pictures(made, tmp_path, capsys):
    arguments = ["--add", str(made.recipe), "--images", str(made.new), "--out", str(tmp_path / "r")]
    assert main(["recipe", *arguments, "--no-camera-settings"]) == 2
    assert "--no-camera-settings cannot be given with --add" in capsys.readouterr().err


def test_health_is_not_relearned_from_pictures_of_other_settings(made, tmp_path):
    other = said(tmp_path / "other", gain_db=9.0)
    with pytest.raises(PicturesError, match="gain_db is 9"):
        relearn_health(made.recipe, made.new, tmp_path / "r", "2", "2026-11-21T08:00:00Z", other)
    same = said(tmp_path / "same")
    relearn_health(made.recipe, made.new, tmp_path / "r", "2", "2026-11-21T08:00:00Z", same)
    assert load_recipe(tmp_path / "r").manifest.camera.settings == SET


def test_a_recipe_without_settings_takes_any_pictures(made, tmp_path):
    plain = tmp_path / "plain.recipe"
    build_recipe(request(made.good, plain, coreset_ratio=0.05, camera=False), quiet)
    require_same(load_recipe(plain).manifest, made.new, list_pictures(made.new))


def test_another_threshold_keeps_them(made, tmp_path):
    changed = ["--recipe", str(made.recipe), "--false-reject-rate", "0.2", "--out", str(tmp_path / "r")]
    assert main(["threshold", *changed]) == 0
    assert load_recipe(tmp_path / "r").manifest.camera.settings == SET


def test_settings_are_stated_for_a_recipe_that_exists_changed_and_taken_out(made, tmp_path, capsys):
    recipe, plain, bound = str(made.recipe), str(tmp_path / "plain.recipe"), str(tmp_path / "bound.recipe")
    assert main(["camera", "--recipe", recipe]) == 0
    assert "exposure_us 5000" in capsys.readouterr().out
    assert main(["camera", "--recipe", recipe, "--none", "--out", plain]) == 0
    assert "whatever the camera is set to" in capsys.readouterr().out
    old, without = load_recipe(made.recipe), load_recipe(tmp_path / "plain.recipe")
    assert without.manifest.camera is None
    other = str(said(tmp_path / "other", gain_db=9.0, trigger="software"))
    assert main(["camera", "--recipe", plain, "--settings", other, "--out", bound, "--json"]) == 0
    again = load(tmp_path / "bound.recipe").recipe
    assert json.loads(capsys.readouterr().out)["digest"] == again.digest
    assert again.manifest.camera.settings == SET | {"gain_db": 9.0}
    assert (again.bank == old.bank).all()
    assert again.manifest.thresholds == old.manifest.thresholds
    assert again.manifest.provenance["made_from"]["change"] == "camera"


@pytest.mark.parametrize("more", [["--none"], ["--out", "r"], ["--settings", "s.json"]])
def test_a_change_needs_what_and_where(made, more, capsys):
    assert main(["camera", "--recipe", str(made.recipe), *more]) == 2
    assert "--out PATH" in capsys.readouterr().err
