"""Recipes that locate parts, ignore regions, judge large pictures in tiles: built, proven and used end to end."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from evaluation_kit import plots_drawn_once  # noqa: F401

from edge_daemon.artefact.manifest import ALIGN_FEATURE, MASK_FEATURE, SMALLEST_FEATURE, TILES_FEATURE
from edge_daemon.artefact.pictures import encode_png, read_picture
from edge_daemon.artefact.recipe import MANIFEST, manifest_digest, read_files, verify_files
from edge_daemon.config import ImagesConfig
from edge_daemon.core.decision import Evaluation, Reason, ViewVerdict, judge_score
from edge_daemon.core.frame import Frame
from edge_daemon.core.geometry import Region
from edge_daemon.core.mask import ignored_pixels
from edge_daemon.core.picture import map_in_frame
from edge_daemon.detectors.base import judge_picture
from edge_daemon.detectors.health import health_limits
from edge_daemon.detectors.loading import load_verified
from edge_daemon.engines.sessions import EngineOptions, Sessions
from edge_daemon.errors import NotLocatedError, RecipeShapeError
from edge_daemon.pipeline.inspection import ViewOutcome
from edge_daemon.pipeline.pictures import Pictures
from edge_daemon.simulation.names import DefectKind
from edge_daemon.simulation.render import render
from export.build import RecipeRequest, build_recipe
from export.cli import main
from export.dataset import find_samples
from export.errors import ExportError, PicturesError
from export.evaluate import evaluate, score_list, summarise
from export.extend import ExtendRequest, extend_recipe
from export.golden import damage
from export.view import Align, ViewOptions
from tests.daemon import DaemonProcess, receive

SIDE = 256
PART = Region(56, 56, 144, 144)
ENGINE = EngineOptions(intra_op_threads=1)
REACH = Align(PART, shift_px=32, rotation_deg=30)


def lying(pixels, index, border=cv2.BORDER_REPLICATE):
    """The frame with everything in it turned and shifted, otherwise for each index; the first lies as it is."""
    draw = np.random.default_rng([7, index])
    angle, shift = (draw.uniform(-25, 25), draw.uniform(-20, 20, 2)) if index else (0.0, (0.0, 0.0))
    matrix = cv2.getRotationMatrix2D(((SIDE - 1) / 2, (SIDE - 1) / 2), angle, 1.0)
    matrix[:, 2] += shift
    return cv2.warpAffine(pixels, matrix, (SIDE, SIDE), borderMode=border)


def simulated(index, defect=None):
    """(frame, mask) of a board that lies anyhow."""
    part = render("board", 5, index, (SIDE, SIDE), defect)
    mask = lying(part.mask.astype(np.uint8) * 255, index, cv2.BORDER_CONSTANT) > 127
    return lying(part.pixels, index), mask


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(pixels))


@contextmanager
def quiet(_what, _total):
    yield lambda _done: None


def request(images, out, **changes):
    fields = {
        "name": "board",
        "created_utc": "2026-11-20T08:00:00Z",
        "version": "1",
        "size": (96, 96),
        "region": Region(48, 48, 160, 160),
        "coreset_ratio": 0.05,
        "engine": ENGINE,
    }
    return RecipeRequest(images=images, out=out, **{**fields, **changes})


def load(path):
    return load_verified(path, Sessions(ENGINE))


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    """Good boards to learn from, and labelled ones with the truth in full-frame pixels; all lie anyhow."""
    root = tmp_path_factory.mktemp("boards")
    for index in range(30):
        save(root / "good" / f"{index:03}.png", simulated(index)[0])
    kinds = (DefectKind.MISSING, DefectKind.SCRATCH, DefectKind.STAIN)
    for index in range(100, 110):
        save(root / "labelled" / "test" / "good" / f"{index}.png", simulated(index)[0])
    for index in range(200, 212):
        frame, mask = simulated(index, kinds[index % 3])
        save(root / "labelled" / "test" / "bad" / f"{index}.png", frame)
        save(root / "labelled" / "ground_truth" / "bad" / f"{index}_mask.png", mask.astype(np.uint8) * 255)
    return root


@pytest.fixture(scope="module")
def aligned_recipe(boards, tmp_path_factory):
    out = tmp_path_factory.mktemp("recipes") / "board.recipe"
    build_recipe(request(boards / "good", out, look=ViewOptions(align=REACH)), quiet)
    return out


def evaluated(recipe, data):
    ready = load(recipe)
    return evaluate(ready.detector, ready.recipe.manifest, find_samples(data))


def test_parts_that_lie_anyhow_are_judged_better_where_they_are_located(boards, aligned_recipe, tmp_path):
    build_recipe(request(boards / "good", tmp_path / "plain"), quiet)
    located = summarise(evaluated(aligned_recipe, boards / "labelled"))
    plain = summarise(evaluated(tmp_path / "plain", boards / "labelled"))
    assert located["not_located"] == 0
    assert located["image_auroc"] > plain["image_auroc"] + 0.1
    assert located["pixel_auroc"] > plain["pixel_auroc"]


def test_boxes_of_a_located_part_lie_on_its_defect_in_the_frame(boards, aligned_recipe):
    found = evaluated(aligned_recipe, boards / "labelled")
    hits = []
    for judged in found.judged:
        if judged.sample.defective and judged.evaluation is Evaluation.NOT_OK and judged.boxes:
            assert judged.pose is not None
            truth = read_picture(judged.sample.mask) > 0
            hits.append(any(truth[b.y : b.y + b.h, b.x : b.x + b.w].any() for b in judged.boxes))
    assert len(hits) >= 6
    assert np.mean(hits) >= 0.8


def test_a_picture_without_the_part_is_not_judged(aligned_recipe):
    detector = load(aligned_recipe).detector
    for frame in (np.full((SIDE, SIDE, 3), 90, np.uint8), np.roll(simulated(0)[0], 90, axis=1)):
        with pytest.raises(NotLocatedError, match="32 px and 30 degrees"):
            detector.prepare(frame)


def test_a_part_that_reaches_beyond_the_picture_is_not_judged(aligned_recipe):
    """A corner that nobody saw would pass for the border that is repeated there."""
    settings = load(aligned_recipe).detector.settings
    frame = lying(still(9), 9)
    assert settings.prepare(frame).pose.moved
    with pytest.raises(NotLocatedError, match="beyond the picture"):
        replace(settings, region=None).prepare(frame)
    # What is ignored need not be seen.
    middle = np.ones((12, 12), bool)
    middle[4:8, 4:8] = False
    assert replace(settings, region=None, ignored=middle).prepare(frame).pose.moved


def test_pictures_that_cannot_be_located_are_named_and_left_out_only_when_asked(tmp_path):
    for index in range(22):
        save(tmp_path / "good" / f"{index:03}.png", simulated(index)[0])
    save(tmp_path / "good" / "empty.png", np.full((SIDE, SIDE, 3), 90, np.uint8))
    asked_for = request(tmp_path / "good", tmp_path / "r", look=ViewOptions(align=REACH))
    with pytest.raises(PicturesError, match=r"(?s)1 picture show.*--align.*empty\.png"):
        build_recipe(asked_for, quiet)
    assert not (tmp_path / "r").exists()
    built = build_recipe(replace(asked_for, skip_unreadable=True), quiet)
    assert built.skipped == ["empty.png: the part is not located"]
    data = tmp_path / "data" / "test" / "good"
    save(data / "there.png", simulated(1)[0])
    save(data / "nothing.png", np.full((SIDE, SIDE, 3), 90, np.uint8))
    found = evaluated(tmp_path / "r", tmp_path / "data")
    figures = summarise(found)
    assert (figures["images"], figures["good"], figures["not_located"], figures["not_decidable"]) == (2, 2, 1, 1)
    assert figures["false_reject_rate"] >= 0.5
    assert score_list(found)[-1]["health"] == "not_located"


def test_the_alignment_is_part_of_the_recipe_and_older_versions_refuse_it(aligned_recipe):
    files = dict(read_files(aligned_recipe))
    content = json.loads(files[MANIFEST])
    assert ALIGN_FEATURE in content["required_features"]
    assert content["align"]["picture"] == "000.png"
    limits = content["health"]["limits"]
    assert (limits["shift_x_px"]["lower"], limits["shift_y_px"]["upper"]) == (None, None)
    assert limits["brightness"]["lower"] is not None
    assert health_limits(load(aligned_recipe).recipe.manifest).region is None
    content["required_features"].remove(ALIGN_FEATURE)
    content["self_sha256"] = "0" * 64
    raw = json.dumps(content, indent=2).encode()
    files[MANIFEST] = raw.replace(b"0" * 64, manifest_digest(raw).encode(), 1)
    with pytest.raises(RecipeShapeError, match="align/1"):
        verify_files(files, "here")


def test_a_located_recipe_verifies_changes_its_threshold_and_takes_more_pictures(aligned_recipe, tmp_path, capsys):
    assert main(["verify", "--recipe", str(aligned_recipe)]) == 0
    stricter = ["threshold", "--recipe", str(aligned_recipe), "--false-reject-rate", "0.2", "--out"]
    assert main([*stricter, str(tmp_path / "strict")]) == 0
    assert main(["verify", "--recipe", str(tmp_path / "strict")]) == 0
    for index in range(40, 44):
        save(tmp_path / "new" / f"{index}.png", simulated(index)[0])
    asked_for = ExtendRequest(
        aligned_recipe, tmp_path / "new", tmp_path / "more", "2026", "2", accept=("*",), engine=ENGINE
    )
    extend_recipe(asked_for, quiet)
    assert load(tmp_path / "more").recipe.manifest.align == load(aligned_recipe).recipe.manifest.align
    capsys.readouterr()


def test_the_heat_of_a_located_part_is_shown_where_the_part_lay(aligned_recipe):
    ready = load(aligned_recipe)
    frame = lying(noisy(still(9), 100, 120), 9)
    evidence = judge_picture(ready.detector, frame)
    assert evidence.pose is not None
    assert evidence.pose.moved
    shown = map_in_frame(evidence.anomaly_map(), Region(48, 48, 160, 160), evidence.pose, (SIDE, SIDE), None)
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    box = evidence.boxes[0]
    assert box.x <= x < box.x + box.w
    assert box.y <= y < box.y + box.h


# --- masks --------------------------------------------------------------------------------------


def still(index):
    return render("board", 5, index, (SIDE, SIDE)).pixels


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A recipe of boards at rest of which the right third is ignored."""
    root = tmp_path_factory.mktemp("masked")
    for index in range(24):
        save(root / "good" / f"{index:03}.png", still(index))
    white = np.zeros((SIDE, SIDE), np.uint8)
    white[:, 160:] = 255
    save(root / "mask.png", white)
    build_recipe(request(root / "good", root / "recipe", region=None, look=ViewOptions(mask=root / "mask.png")), quiet)
    return root


def noisy(frame, x, y, side=40):
    spoiled = frame.copy()
    noise = np.random.default_rng(0).integers(0, 2, (5, 5, 3), np.uint8) * 255
    spoiled[y : y + side, x : x + side] = cv2.resize(noise, (side, side), interpolation=cv2.INTER_NEAREST)
    return spoiled


def test_a_defect_under_the_mask_is_no_defect_and_one_beside_it_is(masked):
    ready = load(masked / "recipe")
    detector, limits = ready.detector, ready.detector.thresholds
    good = judge_picture(detector, still(3))
    under = judge_picture(detector, noisy(still(3), 210, 100))
    beside = judge_picture(detector, noisy(still(3), 60, 100))
    assert under.score == pytest.approx(good.score, rel=0.2)
    assert beside.score > 1.2 * under.score
    assert all(box.x + box.w <= 164 for box in under.boxes)
    assert judge_score(beside.score, beside.max_distance, limits).evaluation is Evaluation.NOT_OK
    ignored = ready.recipe.manifest.mask.ignored()
    hidden = ignored_pixels(ignored, (96, 96), (96, 96))
    assert ignored.mean() == pytest.approx(1 / 3, abs=0.1)
    assert not beside.anomaly_map()[hidden].any()
    assert not under.anomaly_map()[hidden].any()


def test_the_damage_of_the_golden_sample_lies_outside_the_mask(masked):
    recipe = load(masked / "recipe").recipe
    assert MASK_FEATURE in recipe.manifest.required_features
    settings = load(masked / "recipe").detector.settings
    for seed in range(20):
        changed = (damage(still(0), settings, 0.15, seed) != still(0)).any(axis=2)
        assert changed.any()
        assert not changed[:, 164:].any()
    assert any(golden.kind == "damaged" for golden in recipe.golden)
    covered = replace(settings, ignored=~np.eye(12, dtype=bool))
    assert damage(still(0), covered, 0.4, 0) is None


@pytest.mark.parametrize(
    ("fill", "size", "words"),
    [(255, (SIDE, SIDE), "everything"), (0, (SIDE, SIDE), "nothing"), (255, (64, 64), "64x64")],
)
def test_a_mask_that_makes_no_sense_is_refused(masked, tmp_path, fill, size, words):
    save(tmp_path / "mask.png", np.full(size, fill, np.uint8))
    asked_for = request(masked / "good", tmp_path / "r", region=None, look=ViewOptions(mask=tmp_path / "mask.png"))
    with pytest.raises(PicturesError, match=words):
        build_recipe(asked_for, quiet)


def test_a_masked_recipe_takes_more_pictures(masked, tmp_path):
    save(tmp_path / "new" / "a.png", still(50))
    asked_for = ExtendRequest(
        masked / "recipe", tmp_path / "new", tmp_path / "more", "2026", "2", accept=("*",), engine=ENGINE
    )
    extend_recipe(asked_for, quiet)
    assert load(tmp_path / "more").recipe.manifest.mask == load(masked / "recipe").recipe.manifest.mask


# --- tiles --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiled(masked):
    """The same boards at half their size in tiles of 64 px, with a scale, and a smallest defect of 0.5 mm²."""
    out = masked / "tiled"
    options = ViewOptions(scale=0.5, min_defect_mm2=0.5)
    build_recipe(request(masked / "good", out, region=None, size=(64, 64), um_per_px=20.0, look=options), quiet)
    return out


def test_a_picture_in_tiles_is_one_grid_with_one_score_and_boxes_without_seams(tiled, monkeypatch):
    ready = load(tiled)
    detector = ready.detector
    assert TILES_FEATURE in ready.recipe.manifest.required_features
    assert ready.recipe.manifest.grid == (16, 16)
    # Over the border of four tiles: one box, not four.
    frame = noisy(still(3), 108, 108)
    prepared = detector.prepare(frame)
    assert prepared.inputs.shape == (9, 64, 64, 3)
    features = detector.extractor.extract(prepared.inputs)
    assert features.shape[:3] == (1, 16, 16)
    whole = detector.judge(features[0], detector.thresholds)
    assert whole.anomaly_map().shape == (128, 128)
    assert judge_score(whole.score, whole.max_distance, detector.thresholds).evaluation is Evaluation.NOT_OK
    large = whole.boxes[0]
    assert large.x <= 108
    assert large.y <= 108
    assert large.x + large.w >= 148
    assert large.y + large.h >= 148
    monkeypatch.setattr("edge_daemon.detectors.patchcore.STRIP_PATCHES", 40)
    monkeypatch.setattr("edge_daemon.detectors.tiles.STRIP_PATCHES", 40)
    strips = load(tiled).detector.judge(features[0], detector.thresholds)
    assert (strips.score, strips.max_distance, strips.boxes) == (whole.score, whole.max_distance, whole.boxes)
    assert np.array_equal(strips.anomaly_map(), whole.anomaly_map())


def test_pictures_that_share_a_run_are_judged_as_if_alone(tiled):
    detector = load(tiled).detector
    frames = [detector.prepare(still(index)).inputs for index in (1, 2)]
    together = detector.extractor.extract(np.concatenate(frames))
    alone = [detector.extractor.extract(frame)[0] for frame in frames]
    assert np.array_equal(together, np.stack(alone))


def test_boxes_too_small_to_count_are_counted_and_not_ok_stays_not_ok(tiled):
    ready = load(tiled)
    assert SMALLEST_FEATURE in ready.recipe.manifest.required_features
    assert ready.detector.settings.smallest_px == pytest.approx(1250)
    detector = ready.detector
    spoiled = noisy(still(3), 60, 100, side=16)
    found = judge_picture(detector, spoiled)
    detector.settings = replace(detector.settings, smallest_px=0.0)
    every = judge_picture(detector, spoiled)
    assert found.boxes_below_minimum == sum(box.area_px < 1250 for box in every.boxes)
    detector.settings = replace(detector.settings, smallest_px=max(box.area_px for box in every.boxes) + 1)
    none = judge_picture(detector, spoiled)
    assert (none.boxes, none.boxes_below_minimum) == ((), len(every.boxes))
    assert judge_score(none.score, none.max_distance, detector.thresholds).evaluation is Evaluation.NOT_OK
    assert none.score == every.score == found.score


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scale", "0.5"], "--tiles"),
        (["--align-shift", "5"], "--align X,Y,W,H"),
        (["--tiles", "--scale", "2"], "at most at 1"),
        (["--min-defect-mm2", "1"], "--um-per-px"),
        (["--tiles", "--scale", "0.1"], "--scale"),
        (["--align", "0,0,8,8"], "16 pixels"),
        (["--align", "50,50,100,100", "--align-rotation", "200"], "180"),
        (["--mask", "nothing.png"], "nothing.png"),
        (["--add", "x.recipe", "--tiles", "--mask", "m.png"], "--mask, --tiles"),
    ],
)
def test_options_that_cannot_work_say_why(masked, tmp_path, capsys, options, words):
    command = ["recipe", "--images", str(masked / "good"), "--out", str(tmp_path / "r"), "--size", "64", *options]
    if "--add" not in options:
        command += ["--name", "board"]
    else:
        command = [part for part in command if part not in ("--size", "64")]
    assert main(command) != 0
    assert words in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_recipe_locates_masks_and_cuts_at_once(boards, tmp_path):
    white = np.zeros((SIDE, SIDE), np.uint8)
    white[:80] = 255
    save(tmp_path / "mask.png", white)
    options = ViewOptions(align=REACH, mask=tmp_path / "mask.png", scale=0.6)
    build_recipe(request(boards / "good", tmp_path / "r", size=(64, 64), look=options), quiet)
    ready = load(tmp_path / "r")
    assert {ALIGN_FEATURE, MASK_FEATURE, TILES_FEATURE} <= set(ready.recipe.manifest.required_features)
    found = evaluated(tmp_path / "r", boards / "labelled")
    assert summarise(found)["not_located"] == 0


def test_unusual_backbones_and_views_are_refused_by_name(boards, tmp_path):
    with pytest.raises(ExportError, match="scale"):
        build_recipe(request(boards / "good", tmp_path / "r", look=ViewOptions(scale=0.01)), quiet)


@pytest.mark.usefixtures("plots_drawn_once")
def test_the_report_shows_parts_as_they_were_aligned(boards, aligned_recipe, tmp_path):
    out = tmp_path / "report.html"
    command = ["evaluate", "--recipe", str(aligned_recipe), "--data", str(boards / "labelled"), "--report", str(out)]
    assert main(command) == 0
    page = out.read_text()
    assert "<h2>Alignment</h2>" in page
    assert "0 pictures were not located" in page


def test_the_line_tells_boxes_in_the_frame_and_does_not_judge_what_it_cannot_locate(aligned_recipe, tmp_path):
    defective = lying(noisy(still(9), 100, 120), 9)
    for name, frame in (("0", simulated(104)[0]), ("1", defective), ("2", np.rot90(simulated(104)[0]))):
        save(tmp_path / "parts" / f"{name}.png", frame)
    config = f"""
line = "test"
[cameras.top]
kind = "folder"
path = "{tmp_path / "parts"}"
[stations.st1]
deadline_ms = 20000
views = [{{ camera = "top", recipe = "{aligned_recipe}" }}]
"""
    with DaemonProcess(tmp_path, config) as daemon, daemon.subscriber() as results, daemon.triggers() as triggers:
        found = []
        for number in range(3):
            assert triggers.trigger("st1", str(number)).accepted
            found += receive(results, 1)
    good, bad, elsewhere = found
    assert (good.evaluation, good.reason) == ("OK", "")
    assert (bad.evaluation, bad.views[0].boxes_below_minimum) == ("NotOK", 0)
    expected = judge_picture(load(aligned_recipe).detector, defective).boxes[0]
    box = bad.views[0].boxes[0]
    assert (box.x, box.y, box.w, box.h) == (expected.x, expected.y, expected.w, expected.h)
    assert (elsewhere.evaluation, elsewhere.result_state) == ("NotDecidable", "Completed")
    assert elsewhere.reason == elsewhere.views[0].reason == "not_located"
    assert elsewhere.views[0].score is None


def test_the_pictures_of_a_located_part_show_its_heat_where_it_lay(aligned_recipe):
    ready = load(aligned_recipe)
    clean, spoiled = lying(still(9), 9), lying(noisy(still(9), 100, 120), 9)
    evidence = judge_picture(ready.detector, spoiled)
    outcome = ViewOutcome(
        ViewVerdict(Evaluation.NOT_OK, Reason.NONE), Frame("top", 1, spoiled, 0), replace(evidence, boxes=())
    )
    views = SimpleNamespace(views={"top": ready})
    inspection = SimpleNamespace(outcomes={"top": outcome}, recipe_set=views)
    record = SimpleNamespace(
        line="l", station="st1", boot=1, boot_id="ab" * 16, result_id="cd" * 16, trigger_id="1", part_id=None
    )
    sent, fatal = [], []
    pictures = Pictures(
        {"st1": ImagesConfig(heatmap_format="png")}, lambda _message, blobs: sent.append(blobs), fatal.append
    )
    pictures.start()
    pictures.submit(inspection, record)
    pictures.close()
    assert fatal == []
    ((plain, heat),) = sent
    plain, heat = (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(int) for data in (plain, heat))
    assert plain.shape == heat.shape == spoiled.shape
    changed = np.abs(heat - plain).sum(axis=2) > 60
    where = np.abs(spoiled.astype(int) - clean).sum(axis=2) > 60
    assert changed[where].mean() > 0.9
    judged = np.zeros((SIDE, SIDE), np.uint8)
    judged[48:208, 48:208] = 255
    turned = cv2.warpAffine(judged, evidence.pose.matrix(), (SIDE, SIDE))
    assert not changed[cv2.dilate(turned, np.ones((15, 15))) == 0].any()
