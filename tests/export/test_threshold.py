"""`edge-export threshold`: another threshold from the scores that a recipe keeps, proven like a new one, or nothing."""

import json
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from test_build_recipe import load, part, put, quiet, request

from edge_daemon.artefact.recipe import BACKBONE, BANK, MANIFEST, manifest_bytes, read_files, write_recipe
from edge_daemon.artefact.signature import SIGNATURE, signature_bytes
from edge_daemon.core.decision import judge_score
from edge_daemon.detectors.base import judge_picture
from export.build import build_recipe
from export.cli import main
from export.signing import sign
from export.threshold import held_out_scores


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """30 of 60 good parts kept apart: 5% and 10% are supported."""
    folder = tmp_path_factory.mktemp("threshold")
    put(folder / "good", range(60))
    asked = request(folder / "good", folder / "washer.recipe", held_out=0.5, coreset_ratio=0.02, false_reject_rate=0.1)
    return build_recipe(asked, quiet).path


def command(recipe, *more):
    return main(["threshold", "--recipe", str(recipe), *map(str, more)])


def changed(recipe, manifest_change):
    """The recipe's files with a changed manifest, digest corrected."""
    files = dict(read_files(recipe))
    manifest = json.loads(files[MANIFEST])
    del manifest["self_sha256"]
    manifest_change(manifest)
    files[MANIFEST] = manifest_bytes(manifest)
    return files


def test_a_threshold_changes_without_pictures_and_the_bank_stays_bit_for_bit(recipe, tmp_path, capsys):
    out = tmp_path / "loose.recipe"
    assert command(recipe, "--false-reject-rate", 0.05, "--out", out, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    before, after = load(recipe).recipe, load(out).recipe
    scores = sorted(entry["score"] for entry in before.manifest.calibration["held_out"])
    assert before.manifest.thresholds.lower == scores[28 - 1]
    assert after.manifest.thresholds.lower == after.manifest.thresholds.upper == scores[30 - 1]
    old, new = read_files(recipe), read_files(out)
    assert (old[BANK], old[BACKBONE]) == (new[BANK], new[BACKBONE])
    assert printed["digest"] == after.digest != before.digest
    assert after.manifest.provenance["made_from"]["digest"] == before.digest
    assert after.manifest.calibration["false_reject_rate"] == 0.05
    assert after.manifest.calibration["held_out"] == before.manifest.calibration["held_out"]


def test_there_and_back_again_gives_the_first_threshold(recipe, tmp_path):
    assert command(recipe, "--false-reject-rate", 0.05, "--out", tmp_path / "a.recipe") == 0
    assert command(tmp_path / "a.recipe", "--false-reject-rate", 0.1, "--out", tmp_path / "b.recipe") == 0
    first, last = load(recipe).recipe.manifest, load(tmp_path / "b.recipe").recipe.manifest
    assert first.thresholds == last.thresholds
    assert first.calibration == last.calibration


def test_a_band_lies_between_two_held_out_scores_and_is_not_decidable(recipe, tmp_path, capsys):
    out = tmp_path / "band.recipe"
    assert command(recipe, "--false-reject-rate", 0.1, "--undecided-rate", 0.05, "--out", out) == 0
    assert "the rest NotDecidable" in capsys.readouterr().out
    ready = load(out)
    scores = sorted(entry["score"] for entry in ready.recipe.manifest.calibration["held_out"])
    limits = ready.detector.thresholds
    assert (limits.lower, limits.upper) == (scores[28 - 1], scores[30 - 1])
    between = (limits.lower + limits.upper) / 2
    assert judge_score(between, between, limits).evaluation.label == "NotDecidable"
    assert ready.recipe.manifest.calibration["not_ok"]["marginal_rate"] <= 0.05
    assert command(out, "--false-reject-rate", 0.1, "--out", tmp_path / "plain.recipe") == 0
    assert "not_ok" not in load(tmp_path / "plain.recipe").recipe.manifest.calibration


def test_building_with_a_band_gives_what_changing_to_it_gives(recipe, tmp_path):
    asked = request(
        recipe.parent / "good", tmp_path / "built.recipe", held_out=0.5, coreset_ratio=0.02, false_reject_rate=0.1,
        undecided_rate=0.05,
    )  # fmt: skip
    built = build_recipe(asked, quiet)
    assert command(recipe, "--false-reject-rate", 0.1, "--undecided-rate", 0.05, "--out", tmp_path / "c.recipe") == 0
    other = load(tmp_path / "c.recipe").recipe.manifest
    assert built.manifest["thresholds"] == other.thresholds.model_dump()
    assert built.manifest["calibration"]["not_ok"] == other.calibration["not_ok"]


def test_golden_samples_follow_the_threshold(recipe, tmp_path):
    out = tmp_path / "strict.recipe"
    held_out = load(recipe).recipe.manifest.calibration["held_out"]
    assert command(recipe, "--false-reject-rate", 0.6, "--out", out) == 0
    ready = load(out)  # its golden samples passed the live engine
    limits = ready.detector.thresholds
    assert limits.lower == sorted(e["score"] for e in held_out)[13 - 1]
    assert {g.evaluation for g in ready.recipe.golden} == {"OK", "NotOK"}
    for golden in ready.recipe.golden:
        assert judge_score(golden.score, golden.max_distance, limits).evaluation.label == golden.evaluation
    assert set(read_files(out)) - set(read_files(recipe)) == set()


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (["--false-reject-rate", 0.002], "469 are missing; the present 30 allow 0.05"),
        (["--false-reject-rate", 0.1, "--undecided-rate", 0.08], "leaves 0.02 for parts called NotOK"),
        (["--false-reject-rate", 0.1, "--undecided-rate", 0.1], "must lie below the false-reject rate"),
        (["--undecided-rate", 0.05], "must lie below the false-reject rate"),
        (["--false-reject-rate", 0], "must lie between 0 and 1"),
        (["--false-reject-rate", "nan"], "must lie between 0 and 1"),
        (["--false-reject-rate", 1.5, "--undecided-rate", -1], "--undecided-rate must lie between"),
    ],
)
def test_rates_that_the_pictures_do_not_support_are_refused_and_nothing_is_written(
    recipe, tmp_path, capsys, rates, message
):
    assert command(recipe, *rates, "--out", tmp_path / "r.recipe") == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_without_out_the_choices_are_shown_and_nothing_is_written(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(recipe) == 0
    shown = capsys.readouterr().out
    assert "5.0%" in shown
    assert " 2.0%" not in shown
    assert command(recipe, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["rate"] for c in found["choices"]] == [0.05, 0.1]
    assert command(recipe, "--false-reject-rate", 0.05) == 2
    assert "--out" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def provisional(manifest):
    manifest["provisional"] = True


def other_method(manifest):
    manifest["calibration"]["method"] = "guessed"


def no_scores(manifest):
    del manifest["calibration"]["held_out"]


def negative_score(manifest):
    manifest["calibration"]["held_out"][3]["score"] = -1.0


def text_score(manifest):
    manifest["calibration"]["held_out"][3]["score"] = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (provisional, "is provisional"),
        (other_method, "not from pictures kept apart"),
        (no_scores, "does not keep the calibration scores"),
        (negative_score, "does not keep the calibration scores"),
        (text_score, "does not keep the calibration scores"),
    ],
)
def test_recipes_whose_scores_promise_nothing_are_refused(recipe, tmp_path, capsys, change, message):
    write_recipe(tmp_path / "odd.recipe", changed(recipe, change))
    assert command(tmp_path / "odd.recipe", "--false-reject-rate", 0.1, "--out", tmp_path / "r.recipe") == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["odd.recipe"]


def test_a_threshold_above_the_damaged_sample_is_said_to_be_blind(recipe, tmp_path, capsys):
    def worse_scores(manifest):
        damaged = next(g["score"] for g in manifest["golden"] if g["kind"] == "damaged")
        worst = max(manifest["calibration"]["held_out"], key=lambda entry: entry["score"])
        worst["score"] = damaged * 1.01

    write_recipe(tmp_path / "odd.recipe", changed(recipe, worse_scores))
    out = tmp_path / "blind.recipe"
    assert command(tmp_path / "odd.recipe", "--false-reject-rate", 0.05, "--out", out) == 0
    assert "may be blind" in capsys.readouterr().out
    assert all(g.kind == "good" for g in load(out).recipe.golden)


def test_no_golden_sample_left_means_no_recipe(recipe, tmp_path, capsys):
    def one_score(manifest):
        manifest["golden"] = [g for g in manifest["golden"] if g["file"] == "golden/good-1.png"]
        for entry in manifest["calibration"]["held_out"]:
            entry["score"] = manifest["golden"][0]["score"]

    files = changed(recipe, one_score)
    kept = {name: data for name, data in files.items() if not name.startswith("golden/") or name.endswith("good-1.png")}
    write_recipe(tmp_path / "odd.recipe", kept)
    assert command(tmp_path / "odd.recipe", "--false-reject-rate", 0.05, "--out", tmp_path / "r.recipe") == 2
    assert "no golden sample" in capsys.readouterr().err


def signature(recipe):
    """Of somebody, true of the recipe."""
    digest = load(recipe).recipe.digest
    return signature_bytes(digest, (sign(Ed25519PrivateKey.generate(), digest, "2026-11-21T08:00:00Z"),))


def test_a_signature_does_not_survive_the_change(recipe, tmp_path, capsys):
    write_recipe(tmp_path / "signed", {**read_files(recipe), SIGNATURE: signature(recipe)})
    assert command(tmp_path / "signed", "--false-reject-rate", 0.05, "--out", tmp_path / "r") == 0
    assert "sign the new recipe" in capsys.readouterr().out
    assert SIGNATURE not in read_files(tmp_path / "r")


def test_a_damaged_recipe_gets_no_new_threshold(recipe, tmp_path, capsys):
    cut = tmp_path / "cut.recipe"
    cut.write_bytes(recipe.read_bytes()[:20_000])
    assert command(cut, "--false-reject-rate", 0.05, "--out", tmp_path / "r") == 2
    assert "truncated or damaged" in capsys.readouterr().err
    assert command(cut) == 2


def test_the_kept_scores_are_those_of_the_engine(recipe):
    ready = load(recipe)
    entry = held_out_scores(ready.recipe.manifest)[0]
    number = int(entry["name"][4:7])
    assert judge_picture(ready.detector, part(number)).score == entry["score"]
    assert np.isfinite(entry["map_maximum"])


@pytest.mark.parametrize(
    "change", [["threshold", "--false-reject-rate", "0.05"], ["camera", "--none"], ["health", "--none"]]
)
def test_no_recipe_is_changed_in_place(recipe, change, capsys):
    before = read_files(recipe)
    other_name = recipe.parent / "good" / ".." / recipe.name
    assert main([change[0], "--recipe", str(recipe), *change[1:], "--out", str(other_name)]) == 2
    assert "is the old recipe: give the new one a name of its own" in capsys.readouterr().err
    assert read_files(recipe) == before
