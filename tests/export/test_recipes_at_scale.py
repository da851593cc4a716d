"""Recipes of folders that are not clean, too large for one sitting, or to be reduced."""

import json
import os
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from test_build_recipe import FRAME, command, load, part, put, quiet, request

from edge_daemon.artefact.pictures import encode_png
from edge_daemon.artefact.recipe import BANK, read_files
from edge_daemon.detectors.base import judge_picture
from export.bank import BankPlan, make_bank
from export.build import build_recipe, checkpoint_path
from export.errors import CalibrationError, ExportError
from export.golden import damage
from export.reduction import choose_dims
from export.suspects import find_suspects


def chipped(number):
    """A washer with the same kind of damage at another place each time."""
    pixels = part(number)
    rng = np.random.default_rng(number)
    x, y = int(rng.integers(24, 60)), int(rng.integers(16, 50))
    pixels[y : y + 12, x : x + 12] = (30, 200, 40)
    return pixels


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """60 parts, every tenth of them chipped."""
    folder = put(tmp_path_factory.mktemp("dirty") / "good", range(60))
    for number in range(5, 60, 10):
        (folder / f"part{number:03d}.png").write_bytes(encode_png(chipped(number)))
    return folder


def suspects(built):
    return built.manifest["provenance"]["pictures"]["suspects"]


def test_defects_among_the_good_parts_are_named_before_the_bank_is_built(dirty, tmp_path):
    built = build_recipe(request(dirty, tmp_path / "r", coreset_ratio=0.05), quiet)
    named = {suspect["name"] for suspect in suspects(built)}
    assert named >= {f"part{number:03d}.png" for number in range(5, 60, 10)}
    assert len(named) <= 8
    held = {entry["name"] for entry in built.manifest["calibration"]["held_out"]}
    assert {s["name"] for s in suspects(built) if s["kept_apart"]} == named & held
    assert any(note.startswith("SUSPECT, in the bank") for note in built.notes)
    assert any("would void the false-reject rate" in note for note in built.notes)


def test_dropped_suspects_leave_the_bank_and_never_the_calibration(dirty, tmp_path):
    kept = build_recipe(request(dirty, tmp_path / "kept", coreset_ratio=0.05), quiet)
    dropped = build_recipe(request(dirty, tmp_path / "dropped", coreset_ratio=0.05, drop_suspects=True), quiet)
    in_bank = sum(not suspect["kept_apart"] for suspect in suspects(kept))
    assert dropped.bank_pictures == kept.bank_pictures - in_bank
    names = [[e["name"] for e in b.manifest["calibration"]["held_out"]] for b in (kept, dropped)]
    assert names[0] == names[1]
    assert suspects(kept) == suspects(dropped)
    fresh = chipped(977)
    scores = [judge_picture(load(b.path).detector, fresh).score for b in (kept, dropped)]
    assert scores[1] >= scores[0]


def test_a_clean_folder_has_few_suspects(tmp_path):
    folder = put(tmp_path / "good", range(60))
    assert len(suspects(build_recipe(request(folder, tmp_path / "r", coreset_ratio=0.05), quiet))) <= 2


def noisy(pixels, number, sigma=2.0):
    """Another exposure of the same part."""
    grain = np.random.default_rng(10_000 + number).normal(0, sigma, pixels.shape)
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)


def patches_of(good, copies):
    """Patch embeddings of so many good parts, then of noisy pictures of one defective part; their blocks."""
    rng = np.random.default_rng(0)
    usual, odd = rng.normal(0, 10, (64, 8)), rng.normal(0, 10, (8, 8)) + 60
    parts = [usual + rng.normal(0, 1, (64, 8)) for _ in range(good)]
    parts += [np.concatenate([usual[8:], odd]) + rng.normal(0, 1, (64, 8)) for _ in range(copies)]
    return np.asarray(parts, np.float32), [f"good{n}" for n in range(good)] + ["odd"] * copies


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("copies", [1, 8, 60])
def test_copies_of_one_defective_part_do_not_vouch_for_each_other(copies, seed):
    patches, blocks = patches_of(24, copies)
    found = find_suspects(patches.__getitem__, np.arange(24 + copies), blocks, seed, quiet)
    assert {suspect.index for suspect in found} >= set(range(24, 24 + copies))
    assert len(found) <= copies + 2


def test_suspects_are_not_looked_for_where_the_bank_shows_few_parts_however_many_pictures():
    patches, blocks = patches_of(8, 40)
    assert find_suspects(patches.__getitem__, np.arange(48), blocks, 0, quiet) is None


def test_a_few_pictures_are_looked_at_too(tmp_path):
    patches, _ = patches_of(12, 1)
    found = find_suspects(patches.__getitem__, np.arange(11), [str(n) for n in range(13)], 0, quiet)
    assert 12 in {suspect.index for suspect in found}
    fewest = build_recipe(request(put(tmp_path / "good", range(20)), tmp_path / "r", coreset_ratio=0.05), quiet)
    assert suspects(fewest) is not None


def test_a_search_that_did_not_take_place_is_said_and_not_recorded_as_one_that_found_nothing(tmp_path, capsys):
    folder = put(tmp_path / "good", range(20))
    out = tmp_path / "r"
    assert command(folder, out, "--held-out", "0.6", "--drop-suspects", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["suspects"] is None
    (note,) = (note for note in printed["notes"] if "NOT looked for" in note)
    assert "shows 8 parts" in note
    assert "--drop-suspects left nothing out" in note
    account = load(out).recipe.manifest.provenance["pictures"]
    assert (account["suspects"], account["dropped_suspects"]) == (None, None)


def test_a_provisional_recipe_drops_no_suspects_and_does_not_pretend_to(tmp_path, capsys):
    folder = put(tmp_path / "few", range(5))
    assert command(folder, tmp_path / "r", "--provisional", "--drop-suspects") == 2
    assert "leave out --drop-suspects" in capsys.readouterr().err
    assert command(folder, tmp_path / "r", "--provisional") == 0
    assert "NOT looked for" in capsys.readouterr().out


def test_the_same_part_taken_twice_stays_on_one_side_and_counts_once(tmp_path):
    folder = put(tmp_path / "good", range(24))
    for number in range(24):
        again = part(number) + np.random.default_rng(number).normal(0, 1, (FRAME[1], FRAME[0], 3)) + 2
        (folder / f"again{number:03d}.png").write_bytes(encode_png(np.clip(again, 0, 255).astype(np.uint8)))
    built = build_recipe(request(folder, tmp_path / "r", coreset_ratio=0.05), quiet)
    evidence = built.manifest["calibration"]
    names = {entry["name"] for entry in evidence["held_out"]}
    assert evidence["n"] == len(names) // 2
    assert {name.replace("again", "part") for name in names} == {n for n in names if n.startswith("part")}
    assert built.manifest["provenance"]["pictures"]["near_copies"] == 24
    assert any("in noise only" in note for note in built.notes)


@pytest.mark.parametrize(("copies", "others", "shown"), [(40, 0, "one part"), (29, 11, "12 different parts")])
def test_a_line_that_stood_still_makes_no_recipe_however_many_pictures_it_took(tmp_path, capsys, copies, others, shown):
    folder = put(tmp_path / "good", range(1, others + 1))
    for number in range(copies):
        (folder / f"still{number:02d}.png").write_bytes(encode_png(noisy(part(0), number)))
    assert command(folder, tmp_path / "r") == 2
    told = capsys.readouterr().err
    assert f"the 40 pictures in {folder} show {shown} only" in told
    assert "--block 1 says so" in told
    assert not (tmp_path / "r").exists()
    if not others:
        assert command(folder, tmp_path / "r", "--provisional") == 2
        assert "not copies of each other" in capsys.readouterr().err


def test_copies_count_once_where_they_are_most_of_the_pictures(tmp_path):
    folder = put(tmp_path / "good", range(24))
    for number in range(76):
        (folder / f"still{number:02d}.png").write_bytes(encode_png(noisy(part(0), number)))
    built = build_recipe(request(folder, tmp_path / "r", coreset_ratio=0.05), quiet)
    assert built.manifest["provenance"]["pictures"]["blocks"] == 24
    assert built.manifest["calibration"]["n"] == 9


def test_the_engineer_may_say_that_pictures_which_look_the_same_are_different_parts(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02d}.png").write_bytes(encode_png(noisy(part(0), number)))
    built = build_recipe(request(folder, tmp_path / "r", coreset_ratio=0.05, block="1"), quiet)
    assert built.manifest["calibration"]["n"] == 9
    assert any("as --block 1 says" in note for note in built.notes)


def test_reduced_embeddings_judge_in_the_dimensions_of_the_bank(dirty, tmp_path, capsys):
    out = tmp_path / "small.recipe"
    assert command(dirty, out, "--reduce", "24", "--coreset-ratio", "0.05", "--json") == 0
    assert json.loads(capsys.readouterr().out)["dim"] == 24
    ready = load(out)
    recipe = ready.recipe
    assert "pca/1" in recipe.manifest.required_features
    assert recipe.projection is not None
    assert recipe.projection.shape == (recipe.manifest.backbone.dim, 24)
    np.testing.assert_allclose(recipe.projection.T @ recipe.projection, np.eye(24), atol=1e-5)
    account = recipe.manifest.provenance["coreset"]["reduction"]
    assert 0.5 < account["variance"] <= 1
    spoiled = judge_picture(ready.detector, damage(part(300), ready.detector.settings, 0.4, 1))
    assert spoiled.score > ready.detector.thresholds.upper


@pytest.mark.parametrize(("dims", "message"), [(0, "1 or more"), (100_000, "dimensions only")])
def test_dimensions_that_cannot_be_had_are_refused(dirty, tmp_path, dims, message):
    with pytest.raises(ExportError, match=message):
        build_recipe(request(dirty, tmp_path / "r", reduce=dims), quiet)


def test_the_number_of_dimensions_is_chosen_by_what_it_costs_and_the_account_is_kept(dirty, tmp_path, capsys):
    out = tmp_path / "auto.recipe"
    assert command(dirty, out, "--reduce", "auto", "--coreset-ratio", "0.05", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    recipe = load(out).recipe
    account = recipe.manifest.provenance["coreset"]
    offers = {offer["dims"]: offer["correlation"] for offer in account["chosen_reduction"]["offers"]}
    assert printed["dim"] == account["reduction"]["to"] == min(d for d in offers if offers[d] >= 0.995)
    assert any("What good parts do not show" in note for note in printed["notes"])


def test_dimensions_in_which_nothing_happens_are_not_kept():
    rng = np.random.default_rng(0)
    few = rng.standard_normal((8 * 64, 40)).astype(np.float32)
    wide = few @ np.linalg.qr(rng.standard_normal((200, 40)))[0].T.astype(np.float32)
    choice = choose_dims(wide, 64, 0)
    assert choice.dims == 48
    assert choice.offers[0].dims == 32
    assert choice.offers[0].correlation < 0.995
    assert choose_dims(rng.standard_normal((8 * 64, 3000)).astype(np.float32), 64, 0).dims is None
    with pytest.raises(CalibrationError, match="four pictures"):
        choose_dims(wide[: 3 * 64], 64, 0)


@contextmanager
def interrupted_in_the_coreset(what, _total):
    done = 0

    def advance(step):
        nonlocal done
        done += step
        if what == "coreset" and done:
            raise KeyboardInterrupt

    yield advance


def test_an_interrupted_coreset_goes_on_and_ends_as_if_nothing_had_happened(dirty, tmp_path, monkeypatch):
    monkeypatch.setattr("edge_daemon.core.coreset.POOL_ROWS", 64)
    asked = request(dirty, tmp_path / "r.recipe", coreset_ratio=0.2)
    whole = build_recipe(request(dirty, tmp_path / "whole.recipe", coreset_ratio=0.2), quiet)
    with pytest.raises(KeyboardInterrupt):
        build_recipe(asked, interrupted_in_the_coreset)
    assert sorted(os.listdir(tmp_path)) == [".r.recipe.coreset", "whole.recipe"]
    built = build_recipe(asked, quiet)
    assert any("taken up again at" in note for note in built.notes)
    assert read_files(built.path)[BANK] == read_files(whole.path)[BANK]
    assert sorted(os.listdir(tmp_path)) == ["r.recipe", "whole.recipe"]


def test_sigterm_ends_a_build_as_ctrl_c_does(dirty, tmp_path, monkeypatch, capsys):
    """As a PC that is shut down sends it: what the coreset had come to is kept."""

    @contextmanager
    def told_to_end(what, _total):
        def advance(_step):
            if what == "coreset":
                signal.raise_signal(signal.SIGTERM)

        yield advance

    monkeypatch.setattr("edge_daemon.core.coreset.POOL_ROWS", 64)
    monkeypatch.setattr("export.commands.recipe.bars", lambda **_: told_to_end)
    before = signal.getsignal(signal.SIGTERM)
    assert command(dirty, tmp_path / "r.recipe", "--coreset-ratio", "0.2") == 130
    assert capsys.readouterr() == ("", "edge-export: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) == before
    assert os.listdir(tmp_path) == [".r.recipe.coreset"]
    assert json.loads((tmp_path / ".r.recipe.coreset").read_bytes())["rows"]


def test_what_an_interrupted_build_left_and_cannot_be_used_is_removed_and_named(dirty, tmp_path):
    mine, half, other = (
        tmp_path / f".{name}" for name in ("r.recipe.coreset", "r.recipe.coreset1x", "b.recipe.coreset")
    )
    for path in (mine, half, other):
        path.write_bytes(b'{"identity": "another", "rows": [1]}')
    built = build_recipe(request(dirty, tmp_path / "r.recipe", coreset_ratio=0.05), quiet)
    assert sorted(os.listdir(tmp_path)) == [".b.recipe.coreset", "r.recipe"]
    assert any(".r.recipe.coreset, of an interrupted build with other pictures" in note for note in built.notes)
    assert any("left .b.recipe.coreset" in note for note in built.notes)


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[1, 2", b'{"identity": "other", "rows": [1]}', b'{"rows": 1e999}'])
def test_a_checkpoint_of_something_else_is_not_used(tmp_path, damaged):
    embeddings = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    plan = BankPlan(0.1, 9, paper=False, seed=0)
    path = checkpoint_path(tmp_path / "r.recipe")
    path.write_bytes(damaged)
    bank = make_bank(embeddings, plan, quiet, path)
    assert bank.continued_at == 0
    assert np.array_equal(bank.rows, make_bank(embeddings, plan, None).rows)
