"""`edge-export recipe --add`: a recipe learns more good parts, and nothing that was proven is lost on the way."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from test_build_recipe import command, load, part, put, quiet, request
from test_recipes_at_scale import chipped, noisy

from edge_daemon.artefact.manifest import Manifest
from edge_daemon.artefact.pictures import encode_png, read_picture
from edge_daemon.artefact.recipe import MANIFEST, manifest_bytes, read_files, write_recipe
from edge_daemon.artefact.signature import SIGNATURE
from edge_daemon.detectors.base import judge_picture
from edge_daemon.engines.sessions import EngineOptions
from export.build import build_recipe
from export.cli import main
from export.errors import CalibrationError, ExportError, PicturesError, SuspectPicturesError
from export.extend import ExtendRequest, extend_recipe
from export.gather import Gathered
from export.known import Known, choose_sides
from export.signing import sign_recipe


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A recipe of 40 parts; 20 more, and all 60 together."""
    folder = tmp_path_factory.mktemp("old")
    good = put(folder / "good", range(40))
    out = folder / "old.recipe"
    build_recipe(request(good, out, coreset_ratio=0.05, false_reject_rate=0.1), quiet)
    put(folder / "all", range(40))
    return SimpleNamespace(
        recipe=out, good=good, new=put(folder / "new", range(100, 120)), all=put(folder / "all", range(100, 120))
    )


def asked(old, images, out, **changes):
    fields = {"created_utc": "2026-11-21T08:00:00Z", "version": "2", "engine": EngineOptions(intra_op_threads=1)}
    return ExtendRequest(recipe=old.recipe, images=images, out=out, **{"accept": ("*",), **fields, **changes})


def test_new_pictures_are_added_behind_the_old_rows_and_as_densely(old, tmp_path):
    extended = extend_recipe(asked(old, old.new, tmp_path / "new.recipe"), quiet)
    before, after = load(old.recipe).recipe, load(extended.path).recipe
    assert np.array_equal(after.bank[: len(before.bank)], before.bank)
    assert before.backbone == after.backbone
    assert (len(extended.plan.in_bank), len(extended.plan.sides.held)) == (14, 6)
    radius = before.manifest.provenance["coreset"]["radius"]
    ready = load(extended.path)
    for index in extended.plan.in_bank.tolist():
        picture = read_picture(extended.pictures.paths[index])
        # The radius is one of randomly projected embeddings, good to some ten per cent of the true distances.
        assert judge_picture(ready.detector, picture).max_distance <= 1.3 * radius
    origin = after.manifest.provenance["made_from"]
    assert (origin["digest"], origin["change"]) == (before.digest, "add")
    assert origin["added"]["rows"] == len(after.bank) - len(before.bank)
    assert after.manifest.provenance["pictures"]["count"] == 60
    assert len(after.manifest.provenance["pictures"]["bank"]) == 28 + 14


def test_the_signature_was_for_the_old_bank_and_its_loss_is_said(old, tmp_path):
    write_recipe(tmp_path / "signed.recipe", read_files(old.recipe))
    sign_recipe(tmp_path / "signed.recipe", Ed25519PrivateKey.generate(), "2026-11-21T08:00:00Z")
    signed = SimpleNamespace(recipe=tmp_path / "signed.recipe")
    extended = extend_recipe(asked(signed, old.new, tmp_path / "new.recipe"), quiet)
    assert SIGNATURE not in read_files(extended.path)
    assert "the signature was for the old bank and is gone: sign the new recipe" in extended.notes


def test_the_old_scores_stay_as_marked_bounds_and_the_new_ones_join_them(old, tmp_path):
    extended = extend_recipe(asked(old, old.new, tmp_path / "new.recipe"), quiet)
    before, after = load(old.recipe).recipe.manifest, load(extended.path).recipe.manifest
    kept = after.calibration["held_out"][:12]
    assert [{k: v for k, v in e.items() if k != "of_old_bank"} for e in kept] == before.calibration["held_out"]
    assert all(entry["of_old_bank"] for entry in kept)
    assert after.calibration["scores_of_old_bank"] == 12
    assert (before.calibration["n"], after.calibration["n"]) == (12, 18)
    assert after.calibration["false_reject_rate"] == before.calibration["false_reject_rate"]
    scores = sorted(entry["score"] for entry in after.calibration["held_out"])
    assert after.thresholds.lower == scores[after.calibration["rank"] - 1]


@pytest.mark.parametrize("how", ["whole folder", "calibration folder"])
def test_old_pictures_that_are_there_are_judged_again_with_the_new_bank(old, tmp_path, how):
    if how == "whole folder":
        extended = extend_recipe(asked(old, old.all, tmp_path / "r"), quiet)
        assert len(extended.plan.sides.known) == 40
    else:
        extended = extend_recipe(asked(old, old.new, tmp_path / "r", calibration=old.good), quiet)
    ready = load(extended.path)
    evidence = ready.recipe.manifest.calibration
    assert evidence["scores_of_old_bank"] == 0
    recorded = {e["name"]: e["score"] for e in load(old.recipe).recipe.manifest.calibration["held_out"]}
    for entry in evidence["held_out"]:
        found = judge_picture(ready.detector, read_picture(old.all / entry["name"]))
        assert found.score == entry["score"]
        if entry["name"] in recorded:  # the nearest row only comes nearer; the weight lies between 8/9 and 1
            assert found.max_distance <= recorded[entry["name"]] * 9 / 8 * (1 + 1e-6)


def test_pictures_that_are_known_are_skipped_and_said_so(old, tmp_path):
    with pytest.raises(PicturesError, match="nothing to add"):
        extend_recipe(asked(old, old.good, tmp_path / "r"), quiet)
    extended = extend_recipe(asked(old, old.all, tmp_path / "r"), quiet)
    assert any("40 pictures are in the old recipe already" in note for note in extended.notes)
    with pytest.raises(PicturesError, match="nothing to add"):
        extend_recipe(ExtendRequest(extended.path, old.all, tmp_path / "s", "2026-11-21T09:00:00Z", "3"), quiet)


def copies(folder, numbers):
    """Other exposures of parts."""
    folder.mkdir()
    for number in numbers:
        (folder / f"again{number:03d}.png").write_bytes(encode_png(noisy(part(number), number)))
    return folder


def without_looks(old, path):
    """As an earlier version would have made it."""
    files = read_files(old.recipe)
    fields = Manifest.model_validate_json(files[MANIFEST]).model_dump(mode="json", exclude={"self_sha256"})
    del fields["provenance"]["pictures"]["looks"]
    write_recipe(path, {**files, MANIFEST: manifest_bytes(fields)})
    return SimpleNamespace(recipe=path)


def held_of(path):
    return load(path).recipe.manifest.calibration["held_out"]


def test_other_exposures_of_the_recipes_own_parts_go_where_those_are_and_count_once(old, tmp_path):
    again = copies(tmp_path / "again", range(40))
    with pytest.raises(CalibrationError):
        extend_recipe(asked(old, again, tmp_path / "r", false_reject_rate=0.05), quiet)
    extended = extend_recipe(asked(old, again, tmp_path / "r"), quiet)
    assert (len(extended.plan.in_bank), len(extended.plan.sides.held), extended.plan.sides.copies) == (28, 12, 40)
    before = {entry["name"] for entry in held_of(old.recipe)}
    added = [entry for entry in held_of(extended.path) if entry["name"].startswith("again")]
    assert {entry["name"].replace("again", "part") for entry in added} == before
    assert all(entry["block"] == entry["name"].replace("again", "part") for entry in added)
    assert load(extended.path).recipe.manifest.calibration["n"] == 12
    assert any("40 new pictures differ from pictures of the old recipe in noise only" in n for n in extended.notes)


def test_copies_among_new_parts_are_told_from_them(old, tmp_path):
    mixed = copies(tmp_path / "new", range(6))
    put(mixed, range(100, 120))
    plan = extend_recipe(asked(old, mixed, None, dry_run=True), quiet).plan
    assert plan.sides.copies == 6
    assert len(plan.in_bank) + len(plan.sides.held) == 26
    fresh = {block for block in plan.sides.block_of.values() if block.startswith("2/")}
    assert len(fresh) == 6  # of the twenty new parts


def test_a_recipe_that_keeps_no_looks_says_so_and_learns_them_from_its_folder(old, tmp_path):
    bare = without_looks(old, tmp_path / "bare.recipe")
    again = copies(tmp_path / "again", range(40))
    blind = extend_recipe(asked(bare, again, None, dry_run=True), quiet)
    assert blind.plan.sides.copies == 0
    assert any("what 40 of the old recipe's 40 pictures look like is not known" in note for note in blind.notes)
    seeing = extend_recipe(asked(bare, again, tmp_path / "r", calibration=old.good), quiet)
    assert seeing.plan.sides.copies == 40
    assert not any("is not known" in note for note in seeing.notes)
    # From then on the recipe knows them by itself.
    third = SimpleNamespace(recipe=seeing.path)
    more = extend_recipe(asked(third, old.new, None, dry_run=True), quiet)
    assert not any("is not known" in note for note in more.notes)


def test_what_every_picture_shows_is_the_engineers_to_say_each_time(old, tmp_path):
    again = copies(tmp_path / "again", range(40))
    said = extend_recipe(asked(old, again, None, dry_run=True, block="1"), quiet)
    assert said.plan.sides.copies == 0
    assert len(set(said.plan.sides.block_of.values())) == 12


@pytest.mark.parametrize("look", ["", "????", "QUJD", 7])
def test_a_damaged_look_is_named(old, tmp_path, look):
    files = read_files(old.recipe)
    fields = Manifest.model_validate_json(files[MANIFEST]).model_dump(mode="json", exclude={"self_sha256"})
    digest = next(iter(fields["provenance"]["pictures"]["looks"]))
    fields["provenance"]["pictures"]["looks"][digest] = look
    write_recipe(tmp_path / "bad", {**files, MANIFEST: manifest_bytes(fields)})
    with pytest.raises(ExportError, match=f"look of picture {digest}"):
        extend_recipe(asked(SimpleNamespace(recipe=tmp_path / "bad"), old.new, tmp_path / "r"), quiet)


def test_a_recipe_with_the_looks_of_its_pictures_loads_and_stays_small(old, tmp_path):
    size = old.recipe.stat().st_size
    bare = without_looks(old, tmp_path / "bare.recipe")
    assert load(bare.recipe).recipe.bank.shape == load(old.recipe).recipe.bank.shape
    assert 0 < size - bare.recipe.stat().st_size < 40 * 1200


def test_strangers_are_named_and_refused_until_somebody_confirms_them(old, tmp_path):
    folder = put(tmp_path / "new", range(200, 204))
    for number in range(4):
        (folder / f"odd{number}.png").write_bytes(encode_png(chipped(number)))
    with pytest.raises(SuspectPicturesError, match=r"odd0\.png: score .* times the threshold") as refused:
        extend_recipe(asked(old, folder, tmp_path / "r", accept=()), quiet)
    assert all(f"odd{number}.png" in str(refused.value) for number in range(4))
    assert not (tmp_path / "r").exists()
    with pytest.raises(SuspectPicturesError) as some:
        extend_recipe(asked(old, folder, tmp_path / "r", accept=("odd0.png", "part*")), quiet)
    assert "odd0.png" not in str(some.value)
    extended = extend_recipe(asked(old, folder, tmp_path / "r", accept=("odd*", "part*")), quiet)
    assert {f"odd{n}.png" for n in range(4)} <= set(extended.manifest["provenance"]["made_from"]["added"]["accepted"])


def test_strangers_may_be_left_out_of_the_bank_and_never_of_the_threshold(old, tmp_path):
    folder = put(tmp_path / "new", range(200, 212))
    for number in range(12):
        (folder / f"odd{number}.png").write_bytes(encode_png(chipped(number)))
    seen = asked(old, folder, None, accept=("part*",), dry_run=True, drop_suspects=True)
    plan = extend_recipe(seen, quiet).plan
    held = set(plan.sides.held.tolist())
    names = [stranger.name for stranger in plan.strangers if stranger.index in held and not stranger.accepted]
    assert names
    assert plan.dropped
    assert not set(plan.in_bank.tolist()) & {s.index for s in plan.dropped}
    with pytest.raises(SuspectPicturesError, match="none may be dropped") as refused:
        extend_recipe(asked(old, folder, tmp_path / "r", accept=("part*",), drop_suspects=True), quiet)
    assert str(refused.value).count("times the threshold") == len(names)


def test_pictures_that_would_make_damage_good_are_refused_even_when_confirmed(old, tmp_path):
    (damaged,) = (g for g in load(old.recipe).recipe.golden if g.kind == "damaged")
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "damaged.png").write_bytes(encode_png(damaged.pixels))
    with pytest.raises(CalibrationError, match="would no longer find"):
        extend_recipe(asked(old, folder, tmp_path / "r"), quiet)
    assert not (tmp_path / "r").exists()


def test_golden_samples_are_judged_again_and_new_ones_replace_those_of_the_last_time(old, tmp_path):
    first = extend_recipe(asked(old, old.new, tmp_path / "first"), quiet)
    kinds = [(g.file, g.kind) for g in load(first.path).recipe.golden]
    assert ("golden/damaged-1.png", "damaged") in kinds
    assert any(file.startswith("golden/added-") for file, _ in kinds)
    more = put(tmp_path / "more", range(300, 312))
    again = ExtendRequest(first.path, more, tmp_path / "second", "2026-11-22T08:00:00Z", "3", accept=("*",))
    second = load(extend_recipe(again, quiet).path).recipe
    assert len([g for g in second.golden if g.file.startswith("golden/added-")]) <= 3
    assert len(second.manifest.provenance["coreset"]["added"]) == 2
    assert second.manifest.calibration["n"] == 18 + 4


def test_a_dry_run_looks_and_writes_nothing(old, tmp_path, capsys):
    arguments = ["recipe", "--add", str(old.recipe), "--images", str(old.new), "--dry-run"]
    assert main([*arguments, "--out", str(tmp_path / "r"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dry_run"], found["recipe"], found["added_to_bank"]) == (True, None, 14)
    assert list(tmp_path.iterdir()) == []
    assert main(arguments) == 0
    assert "nothing was written" in capsys.readouterr().out


def test_the_command_extends_and_says_what_came_of_it(old, tmp_path, capsys):
    out = tmp_path / "new.recipe"
    arguments = ["recipe", "--add", str(old.recipe), "--images", str(old.new), "--out", str(out), "--accept", "*"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bank_rows"] >= found["bank_rows_before"]
    assert found["digest"] == load(out).recipe.digest
    assert main([*arguments, "--label", "spring"]) == 0
    assert "Recipe washer spring" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--size", "64"], "--size cannot be given with --add"),
        (["--search", "flat"], "--search cannot be given with --add"),
        (["--provisional", "--reduce", "8"], "--reduce, --provisional cannot be given"),
        (["--held-out", "2"], "--held-out must lie between"),
    ],
)
def test_what_an_extension_cannot_change_is_refused(old, tmp_path, capsys, more, message):
    out = tmp_path / "r"
    assert main(["recipe", "--add", str(old.recipe), "--images", str(old.new), "--out", str(out), *more]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_old_recipe_is_never_changed_in_place(old, capsys):
    assert main(["recipe", "--add", str(old.recipe), "--images", str(old.new)]) == 2
    assert "never changed in place" in capsys.readouterr().err
    assert main(["recipe", "--add", str(old.recipe), "--images", str(old.new), "--out", str(old.recipe)]) == 2
    assert "is the old recipe" in capsys.readouterr().err


def test_options_of_an_extension_without_one_are_refused(old, tmp_path, capsys):
    assert command(old.good, tmp_path / "r", "--accept", "x") == 2
    assert "--accept belong to --add" in capsys.readouterr().err
    assert main(["recipe", "--images", str(old.good)]) == 2
    assert "--name and --out" in capsys.readouterr().err


def test_pictures_of_another_size_and_folders_that_are_none_are_refused(old, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "a.png").write_bytes(encode_png(np.zeros((100, 100, 3), np.uint8)))
    with pytest.raises(PicturesError, match=r"100x100 px, washer judges frames of 96x80"):
        extend_recipe(asked(old, folder, tmp_path / "r"), quiet)
    with pytest.raises(PicturesError, match="holds none of the 12 pictures"):
        extend_recipe(asked(old, old.new, tmp_path / "r", calibration=put(tmp_path / "other", range(900, 903))), quiet)


@pytest.mark.parametrize("missing", ["pictures", "coreset"])
def test_a_recipe_that_does_not_say_what_it_was_made_of_is_refused(old, tmp_path, missing):
    files = read_files(old.recipe)
    fields = Manifest.model_validate_json(files[MANIFEST]).model_dump(mode="json", exclude={"self_sha256"})
    del fields["provenance"][missing]
    write_recipe(tmp_path / "bare", {**files, MANIFEST: manifest_bytes(fields)})
    with pytest.raises(ExportError, match="build it again from all pictures"):
        extend_recipe(ExtendRequest(tmp_path / "bare", old.new, tmp_path / "r", "2026", "2"), quiet)


def test_a_provisional_recipe_grows_into_a_calibrated_one(old, tmp_path):
    few = put(tmp_path / "few", range(5))
    build_recipe(request(few, tmp_path / "trial", provisional=True), quiet)
    grown = put(tmp_path / "little", range(400, 406))
    with pytest.raises(CalibrationError, match="more good parts"):
        extend_recipe(ExtendRequest(tmp_path / "trial", grown, tmp_path / "r", "2026", "2", accept=("*",)), quiet)
    asked_for = ExtendRequest(tmp_path / "trial", old.new, tmp_path / "r", "2026", "2", accept=("*",))
    after = load(extend_recipe(asked_for, quiet).path).recipe.manifest
    assert not after.provisional
    assert after.calibration["n"] == 9
    assert {e["name"] for e in after.calibration["held_out"]} <= {path.name for path in old.new.iterdir()}


def test_reduced_embeddings_keep_their_projection(old, tmp_path):
    build_recipe(request(old.good, tmp_path / "small", coreset_ratio=0.05, reduce=24), quiet)
    asked_for = ExtendRequest(tmp_path / "small", old.new, tmp_path / "r", "2026", "2", accept=("*",))
    before, after = load(tmp_path / "small").recipe, load(extend_recipe(asked_for, quiet).path).recipe
    assert np.array_equal(before.projection, after.projection)
    assert after.bank.shape[1] == 24


# --- sides ------------------------------------------------------------------------------------


def gathered(names, digests=None):
    digests = digests or [f"{number:064x}" for number in range(1, len(names) + 1)]
    inputs = np.zeros((len(names), 8, 8, 3), np.uint8)
    return Gathered([], list(names), list(names), inputs, list(digests), (8, 8), [], 0)


def test_a_new_picture_of_a_known_part_goes_where_that_part_is():
    known = Known(
        [("part1-a.png", "a" * 16)], [{"name": "part2-a.png", "block": "2", "sha256": "b" * 64, "score": 1.0}]
    )
    pictures = gathered(["part1-b.png", "part2-b.png", "part3-a.png", "part4-a.png"])
    sides = choose_sides(known, pictures, r"part(\d+)", 0.5, 0, "v2")
    assert 0 in sides.in_bank
    assert 1 in sides.held
    assert sides.block_of[1] == "2"
    new = set(sides.block_of.values()) - {"2"}
    assert new in ({"v2/part3-a.png"}, {"v2/part4-a.png"})


def test_a_new_picture_between_both_sides_is_on_neither():
    known = Known([("x", "1".rjust(64, "0")[:16])], [{"name": "y", "block": "y", "sha256": "f" * 64}])
    pictures = gathered(["x", "y", "z"], ["1".rjust(64, "0"), "f" * 64, "3".rjust(64, "a")])
    joined = Gathered(pictures.paths, pictures.names, ["x"] * 3, pictures.inputs, pictures.digests, (8, 8), [], 0, 2)
    sides = choose_sides(known, joined, None, 0.3, 0, "v2")
    assert sides.between.tolist() == [2]
    assert sides.known.tolist() == [0, 1]


def test_equal_file_names_of_two_days_are_two_parts():
    known = Known([("0001.png", "a" * 16)], [{"name": "0002.png", "block": "0002.png", "sha256": "b" * 64}])
    sides = choose_sides(known, gathered(["0001.png", "0002.png"]), None, 0.5, 0, "v2")
    assert (len(sides.in_bank), len(sides.held)) == (1, 1)
    assert next(iter(sides.block_of.values())).startswith("v2/")


def test_a_single_new_picture_goes_to_the_bank():
    sides = choose_sides(Known([], []), gathered(["a"]), None, 0.3, 0, "v2")
    assert (sides.in_bank.tolist(), sides.held.tolist()) == ([0], [])
