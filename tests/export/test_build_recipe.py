"""`edge-export recipe` and `verify`: a folder of good parts becomes a recipe that can be trusted, or nothing at all."""

import errno
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

import export.gather
from edge_daemon.artefact.pictures import encode_png, read_picture
from edge_daemon.core.decision import judge_score
from edge_daemon.core.geometry import Region
from edge_daemon.detectors.base import judge_picture
from edge_daemon.detectors.loading import load_verified
from edge_daemon.engines.sessions import EngineOptions, OnnxExtractor, Sessions
from edge_daemon.errors import EdgeError
from export.build import RecipeRequest, build_recipe
from export.cli import main
from export.errors import CalibrationError, ExportError, PicturesError
from export.golden import damage

FRAME = (96, 80)


def part(number):
    """A washer on a grey belt, a little elsewhere and a little differently lit and turned each time."""
    rng = np.random.default_rng(number)
    pixels = np.full((FRAME[1], FRAME[0], 3), 90, np.uint8)
    centre = (48 + int(rng.integers(-2, 3)), 40 + int(rng.integers(-2, 3)))
    cv2.circle(pixels, centre, 26, (190, 185, 170), -1)
    cv2.circle(pixels, centre, 10, (60, 60, 65), -1)
    angle = rng.uniform(0, 2 * np.pi)
    hole = (centre[0] + round(18 * np.cos(angle)), centre[1] + round(18 * np.sin(angle)))
    cv2.circle(pixels, hole, 4, (60, 60, 65), -1)
    return np.clip(pixels * rng.uniform(0.95, 1.05) + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)


def put(folder, numbers, name="part{:03d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / name.format(number)).write_bytes(encode_png(part(number)))
    return folder


@contextmanager
def quiet(_what, _total):
    yield lambda _done: None


def request(images, out, **changes):
    fields = {
        "name": "washer", "created_utc": "2026-11-20T08:00:00Z", "version": "1", "size": (64, 64),
        "engine": EngineOptions(intra_op_threads=1),
    }  # fmt: skip
    return RecipeRequest(images=images, out=out, **{**fields, **changes})


def command(images, out, *more):
    return main(["recipe", "--name", "washer", "--images", str(images), "--out", str(out), "--size", "64", *more])


def load(path):
    return load_verified(path, Sessions(EngineOptions(intra_op_threads=1)))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """40 good parts."""
    return put(tmp_path_factory.mktemp("parts") / "good", range(40))


@pytest.fixture(scope="module")
def recipe(good, tmp_path_factory):
    """A recipe of them, as a file."""
    out = tmp_path_factory.mktemp("recipes") / "washer.recipe"
    build_recipe(request(good, out), quiet)
    return out


def test_a_folder_of_good_parts_becomes_a_recipe_that_the_daemon_takes(good, tmp_path, capsys):
    out = tmp_path / "new" / "washer.recipe"
    assert command(good, out, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    ready = load(out)
    manifest = ready.recipe.manifest
    assert (printed["digest"], printed["name"]) == (ready.recipe.digest, "washer")
    assert manifest.view.frame_size == FRAME
    assert manifest.calibration["n"] == 12
    assert manifest.calibration["false_reject_rate"] == 0.1
    assert manifest.bank.rows == int(28 * 64 * 0.1)
    assert not manifest.provisional
    assert os.listdir(out.parent) == ["washer.recipe"]


@pytest.mark.parametrize("engine", [None, "certified", "flat", "graph", "numpy"])
def test_a_recipe_may_force_the_engine_of_the_search(engine, good, tmp_path, capsys):
    out = tmp_path / "washer.recipe"
    assert command(good, out, "--no-health", *(["--search", engine] if engine else [])) == 0
    said = capsys.readouterr().out
    assert (f"searched with {engine}\n" in said) is (engine is not None)
    assert ("searched with" in said) is (engine is not None)
    ready = load(out)
    assert ready.recipe.manifest.parameters.engine == (engine or "auto")
    assert ready.choice.why == ("recipe" if engine else "rule")
    assert engine in (None, ready.choice.engine)


def test_summary_and_verify_say_the_precision_of_the_backbone(good, tmp_path, capsys):
    out = tmp_path / "washer.recipe"
    assert command(good, out) == 0
    assert re.search(r"model       \S+ \(fp32\) at 64x64, profile", capsys.readouterr().out)
    assert command(good, out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "fp32"
    assert main(["verify", "--recipe", str(out)]) == 0
    assert re.search(r"is valid on \w+, \S+ in fp32; unsigned", capsys.readouterr().out)
    assert main(["verify", "--recipe", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "fp32"


def test_held_out_scores_are_those_of_the_live_engine_and_their_parts_are_not_in_the_bank(good, recipe):
    ready = load(recipe)
    evidence = ready.recipe.manifest.calibration
    for entry in evidence["held_out"]:
        found = judge_picture(ready.detector, read_picture(good / entry["name"]))
        assert found.score == entry["score"]
        assert found.anomaly_map().max() == np.float32(entry["map_maximum"])
    scores = sorted(entry["score"] for entry in evidence["held_out"])
    assert ready.recipe.manifest.thresholds.lower == scores[evidence["rank"] - 1]
    in_bank = sorted(set(good.iterdir()) - {good / entry["name"] for entry in evidence["held_out"]})
    best = [judge_picture(ready.detector, read_picture(path)).score for path in in_bank]
    assert np.mean(best) < np.mean(scores)


def test_a_damaged_part_is_not_ok(recipe):
    ready = load(recipe)
    spoiled = part(1000)
    spoiled[30:50, 20:40] = 255
    found = judge_picture(ready.detector, spoiled)
    assert judge_score(found.score, found.max_distance, ready.detector.thresholds).evaluation.label == "NotOK"
    assert found.boxes


def test_golden_samples_are_good_and_damaged_and_clear_of_the_threshold(recipe):
    ready = load(recipe)
    limit = ready.detector.thresholds.lower
    kinds = [g.kind for g in ready.recipe.golden]
    assert kinds == ["good", "good", "good", "damaged"]
    assert ready.recipe.golden[-1].evaluation == "NotOK"
    assert all(abs(g.score - limit) > 0.02 * limit for g in ready.recipe.golden)
    assert ready.recipe.golden[0].pixels.shape == (FRAME[1], FRAME[0], 3)


def test_the_same_request_gives_the_same_bytes_also_through_scratch_files(good, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(export.gather, "IN_MEMORY_BYTES", 0)
    again = build_recipe(request(good, tmp_path / "again.recipe"), quiet)
    assert again.path.read_bytes() == recipe.read_bytes()
    other = build_recipe(request(good, tmp_path / "other.recipe", seed=1), quiet)
    assert other.path.read_bytes() != recipe.read_bytes()


def test_a_folder_holds_the_same_files_as_the_single_file(good, recipe, tmp_path):
    built = build_recipe(request(good, tmp_path / "washer"), quiet)
    assert load(built.path).recipe.digest == load(recipe).recipe.digest
    assert (built.path / "recipe.json").is_file()


@pytest.mark.parametrize("profile", ["anomalib", "paper"])
def test_both_profiles_and_a_region_go_all_the_way(good, tmp_path, profile):
    size = (64, 48)
    asked = request(good, tmp_path / "r", profile=profile, size=size, region=Region(8, 8, 80, 60), um_per_px=12.5)
    built = build_recipe(asked, quiet)
    manifest = load(built.path).recipe.manifest
    assert manifest.parameters.profile == profile
    assert manifest.preprocess.size == size
    assert manifest.view.region == (8, 8, 80, 60)
    assert any("NOT judged" in note for note in built.notes) == (profile == "paper")


def test_pictures_of_one_block_stay_on_one_side(good, tmp_path):
    built = build_recipe(request(good, tmp_path / "r", block="2", false_reject_rate=0.1, held_out=0.5), quiet)
    evidence = built.manifest["calibration"]
    assert (evidence["n"], len(evidence["held_out"]), evidence["unit"]) == (10, 20, "block")
    numbers = sorted(int(entry["name"][4:7]) for entry in evidence["held_out"])
    assert all(number ^ 1 in numbers for number in numbers)


def test_copies_stay_on_one_side_and_count_once(tmp_path):
    folder = put(tmp_path / "good", range(24))
    put(folder, range(24), name="copy{:03d}.png")
    built = build_recipe(request(folder, tmp_path / "r"), quiet)
    evidence = built.manifest["calibration"]
    names = {entry["name"] for entry in evidence["held_out"]}
    assert evidence["n"] == len(names) // 2
    assert {name.replace("copy", "part") for name in names} == {n for n in names if n.startswith("part")}
    assert any("24 pictures are copies" in note for note in built.notes)


def test_twenty_pictures_keep_enough_apart_for_a_promise(tmp_path):
    built = build_recipe(request(put(tmp_path / "good", range(20)), tmp_path / "r"), quiet)
    assert built.manifest["calibration"]["n"] == 9
    assert built.manifest["calibration"]["false_reject_rate"] == 0.1


def test_a_few_pictures_make_only_a_provisional_recipe(tmp_path, capsys):
    folder = put(tmp_path / "good", range(5))
    assert command(folder, tmp_path / "r.recipe") == 2
    assert "5 usable pictures" in capsys.readouterr().err
    assert not (tmp_path / "r.recipe").exists()
    assert command(folder, tmp_path / "r.recipe", "--provisional") == 0
    assert "PROVISIONAL" in capsys.readouterr().out
    ready = load(tmp_path / "r.recipe")
    manifest = ready.recipe.manifest
    assert manifest.provisional
    assert manifest.calibration["method"] == "leave-one-out"
    assert manifest.thresholds.lower == max(e["score"] for e in manifest.calibration["held_out"])
    found = judge_picture(ready.detector, damage(part(1), ready.detector.settings, 0.4, 3))
    assert found.score > manifest.thresholds.upper


def test_one_picture_and_its_copies_make_no_recipe(tmp_path):
    folder = tmp_path / "good"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(encode_png(part(0)))
    with pytest.raises(CalibrationError, match="at least two good pictures"):
        build_recipe(request(folder, tmp_path / "r", provisional=True), quiet)


def test_every_unreadable_file_is_named_and_skipped_only_when_asked(tmp_path, capsys):
    folder = put(tmp_path / "good", range(24))
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes(encode_png(part(99))[:500])
    assert command(folder, tmp_path / "r.recipe") == 2
    message = capsys.readouterr().err
    assert "empty.png" in message
    assert "cut.png" in message
    assert not (tmp_path / "r.recipe").exists()
    assert command(folder, tmp_path / "r.recipe", "--skip-unreadable", "--json") == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["skipped"]) == 2
    assert "left out" in captured.err


def test_grey_pictures_among_those_in_colour_are_said(tmp_path):
    folder = put(tmp_path / "good", range(24))
    coloured = build_recipe(request(folder, tmp_path / "coloured", coreset_ratio=0.02), quiet)
    assert not any("are grey" in note for note in coloured.notes)
    for number in range(5):
        (folder / f"part{number:03d}.png").write_bytes(encode_png(part(number)[..., 1].copy()))
    mixed = build_recipe(request(folder, tmp_path / "mixed", coreset_ratio=0.02), quiet)
    assert any("5 of 24 pictures are grey, the others in colour" in note for note in mixed.notes)


def test_a_disk_that_goes_away_while_a_recipe_is_made_is_told_in_a_sentence(good, tmp_path, capsys, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scratch/rows")

    monkeypatch.setattr("export.build.make_bank", full)
    assert command(good, tmp_path / "out" / "r.recipe") == 2
    said = capsys.readouterr().err
    assert "edge-export: /scratch/rows: No space left on device" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "r.recipe").exists()


def test_pictures_of_different_sizes_are_refused_with_the_sizes(tmp_path):
    folder = put(tmp_path / "good", range(22))
    (folder / "z.png").write_bytes(encode_png(np.ascontiguousarray(part(1)[:64])))
    with pytest.raises(PicturesError, match="22 of 96x80, 1 of 96x64"):
        build_recipe(request(folder, tmp_path / "r"), quiet)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"false_reject_rate": 0.01}, CalibrationError, "87 are missing; the present 12 allow 0.1"),
        ({"held_out": 0.1}, CalibrationError, "support no false-reject rate"),
        ({"block": "40"}, CalibrationError, "one block"),
        ({"block": r"lot(\d+)"}, EdgeError, "does not fit 40 of 40"),
        ({"region": Region(50, 0, 60, 40)}, PicturesError, "leaves the pictures, which are 96x80"),
        ({"name": "../up"}, ExportError, "--name"),
        ({"coreset_ratio": 0.0}, ExportError, "--coreset-ratio"),
        ({"false_reject_rate": float("nan")}, ExportError, "--false-reject-rate"),
        ({"um_per_px": -1.0}, ExportError, "--um-per-px"),
        ({"provisional": True, "false_reject_rate": 0.1}, ExportError, "promises no rate"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words_and_nothing_is_written(good, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        build_recipe(request(good, tmp_path / "r", **changes), quiet)
    assert os.listdir(tmp_path) == []


def test_an_empty_or_missing_folder_is_named(tmp_path, capsys):
    (tmp_path / "none").mkdir()
    assert command(tmp_path / "none", tmp_path / "r") == 2
    assert "holds no pictures" in capsys.readouterr().err
    assert command(tmp_path / "gone", tmp_path / "r") == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_folder_with_something_else_in_it_is_never_replaced(good, tmp_path):
    (tmp_path / "precious.txt").write_text("years of work")
    with pytest.raises(ExportError, match="something else"):
        build_recipe(request(good, tmp_path), quiet)
    assert (tmp_path / "precious.txt").read_text() == "years of work"


@pytest.mark.parametrize("stage", ["reading", "embedding", "coreset", "calibrating"])
def test_an_interrupt_leaves_no_half_recipe_and_the_old_one_alone(good, tmp_path, stage):
    out = tmp_path / "washer.recipe"
    out.write_bytes(b"the old one")

    @contextmanager
    def interrupted(what, _total):
        if what == stage:
            raise KeyboardInterrupt
        yield lambda _done: None

    with pytest.raises(KeyboardInterrupt):
        build_recipe(request(good, out), interrupted)
    assert out.read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["washer.recipe"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_backbone_that_computes_nonsense_makes_no_recipe(good, tmp_path, monkeypatch, value):
    extract = OnnxExtractor.extract

    def broken(self, batch):
        features = extract(self, batch)
        features[0, 0, 0, 0] = value
        return features

    monkeypatch.setattr(OnnxExtractor, "extract", broken)
    with pytest.raises(CalibrationError, match=r"NaN or infinity for part\d+\.png"):
        build_recipe(request(good, tmp_path / "r"), quiet)
    assert os.listdir(tmp_path) == []


def test_a_full_scratch_disk_is_an_error_and_not_a_crash(good, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export.gather, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ExportError, match="is full"):
        build_recipe(request(good, tmp_path / "r"), quiet)


def test_verify_ticks_every_step(recipe, capsys):
    assert main(["verify", "--recipe", str(recipe)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("✓") + printed.count("ok ") == 5
    assert "is valid" in printed
    assert main(["verify", "--recipe", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True


def test_verify_refuses_a_flipped_byte_in_each_file(good, tmp_path, capsys):
    folder = build_recipe(request(good, tmp_path / "washer"), quiet).path
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        assert main(["verify", "--recipe", str(folder), "--json"]) == 1, path
        found = json.loads(capsys.readouterr().out)
        assert found["error"] in ("RecipeDigestError", "RecipeUnreadable", "RecipeSchemaError")
        assert found["message"]
        path.write_bytes(whole)
    assert main(["verify", "--recipe", str(folder)]) == 0


def test_verify_says_how_far_it_came(recipe, tmp_path, capsys):
    cut = tmp_path / "cut.recipe"
    cut.write_bytes(recipe.read_bytes()[:20_000])
    assert main(["verify", "--recipe", str(cut)]) == 1
    printed = capsys.readouterr().out
    assert "RecipeUnreadable" in printed
    assert "Not reached: digests" in printed
    assert main(["verify", "--recipe", str(tmp_path / "none.recipe"), "--json"]) == 1
    assert "no recipe at" in json.loads(capsys.readouterr().out)["message"]


def test_help_teaches_without_loading_anything_heavy():
    program = (
        "import sys; from export.cli import build_parser; text = build_parser().format_help();"
        "heavy = {'numpy', 'cv2', 'torch', 'onnx', 'onnxruntime', 'matplotlib'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy or 'edge-export recipe' not in text else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_wrong_arguments_are_explained(tmp_path, capsys):
    for bad in (["--roi", "1,2,3"], ["--roi", "0,0,0,5"], ["--size", "big"], ["--seed", "-1"], ["--profile", "other"]):
        with pytest.raises(SystemExit) as stopped:
            command(tmp_path, tmp_path / "r", *bad)
        assert stopped.value.code == 2
        assert bad[0] in capsys.readouterr().err


def test_real_bottles_make_a_recipe_that_passes_them(bottle_dir: Path, tmp_path):
    folder = tmp_path / "good"
    folder.mkdir()
    for path in sorted((bottle_dir / "train" / "good").iterdir())[:24]:
        (folder / path.name).symlink_to(path)
    built = build_recipe(request(folder, tmp_path / "b.recipe", size=(128, 128)), quiet)
    ready = load(built.path)
    broken = sorted((bottle_dir / "test" / "broken_large").iterdir())[0]
    found = judge_picture(ready.detector, read_picture(broken))
    assert found.score > ready.detector.thresholds.upper
