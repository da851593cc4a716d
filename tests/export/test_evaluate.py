"""Evaluation from labelled folders to figures: counted right, refused when it cannot be, equal to the oracle."""

import hashlib
import json
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import oracle
import oracle_recipe
import pytest
from evaluation_kit import BrightSpotDetector, data_set, manifest, part, plots_drawn_once, save  # noqa: F401

from edge_daemon.artefact.pictures import encode_png, find_pictures, read_picture
from edge_daemon.core.conformal import clopper_pearson
from edge_daemon.core.decision import Evaluation
from edge_daemon.core.quality import auroc, pixel_quality
from edge_daemon.core.resize import to_model_input
from edge_daemon.detectors.loading import load_verified
from edge_daemon.engines.sessions import EngineOptions, Sessions
from edge_daemon.errors import EdgeError
from export import cli
from export.commands.evaluate import identity, table
from export.dataset import find_samples, mask_at_model_size, read_mask
from export.errors import ExportError, PicturesError
from export.evaluate import EvaluationError, defective_cells, evaluate, score_list, summarise

CLASSES = {"good": [100, 104, 130, 150], "dent": [118, 160, 220], "stain": [135, 200]}
REQUIRED_KEYS = {
    "image_auroc",
    "pixel_auroc",
    "aupro",
    "false_reject_rate",
    "escape_rate",
    "threshold",
    "ms_per_image",
    "images",
}


def judged(root, **changes):
    of = manifest(**changes)
    return evaluate(BrightSpotDetector(of), of, find_samples(root))


# Folders


def test_mvtec_layout_gives_every_picture_its_label_and_its_mask(tmp_path):
    samples = find_samples(data_set(tmp_path, CLASSES))
    assert [s.defect for s in samples] == ["good"] * 4 + ["dent"] * 3 + ["stain"] * 2
    assert all((s.mask is None) == (s.defect == "good") for s in samples)
    assert samples[4].name == "test/dent/000.png"
    assert samples[4].mask == tmp_path / "ground_truth" / "dent" / "000_mask.png"


def test_pictures_for_training_are_not_judged(tmp_path):
    data_set(tmp_path, CLASSES)
    save(tmp_path / "train" / "good" / "000.png", part(100))
    assert len(find_samples(tmp_path)) == 9


def test_classes_may_stand_in_the_data_folder_itself(tmp_path):
    data_set(tmp_path, CLASSES)
    (tmp_path / "ground_truth").rename(tmp_path / "test" / "ground_truth")
    samples = find_samples(tmp_path / "test")
    assert len(samples) == 9
    assert samples[8].mask is not None


def test_a_folder_of_loose_pictures_is_all_good(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", part(100))
    assert [s.defect for s in find_samples(tmp_path)] == ["good"] * 3


def test_a_mask_may_be_of_another_format_and_carry_the_plain_name(tmp_path):
    data_set(tmp_path, CLASSES, masks=False)
    save(tmp_path / "ground_truth" / "dent" / "001.png", part(255))
    found = [s.mask for s in find_samples(tmp_path) if s.defect == "dent"]
    assert [m is not None for m in found] == [False, True, False]


def test_two_masks_for_one_picture_are_refused(tmp_path):
    data_set(tmp_path, CLASSES)
    save(tmp_path / "ground_truth" / "dent" / "001.png", part(255))
    with pytest.raises(PicturesError, match="more than one mask"):
        find_samples(tmp_path)


def test_folders_without_good_are_refused_because_nothing_says_what_is_good(tmp_path):
    data_set(tmp_path, {"dent": [160]})
    with pytest.raises(PicturesError, match="no folder `good`"):
        find_samples(tmp_path)


def test_pictures_beside_class_folders_have_no_label_and_are_refused(tmp_path):
    data_set(tmp_path, CLASSES)
    save(tmp_path / "test" / "loose.png", part(100))
    with pytest.raises(PicturesError, match=r"loose\.png"):
        find_samples(tmp_path)


@pytest.mark.parametrize("make", [lambda p: p / "nowhere", lambda p: p])
def test_a_missing_or_empty_folder_is_refused(tmp_path, make):
    with pytest.raises(PicturesError, match=r"not a folder|no pictures"):
        find_samples(make(tmp_path))


# Masks


@pytest.mark.parametrize(
    ("size", "resize_to", "region"),
    [((32, 24), (32, 24), None), ((28, 20), (36, 28), None), ((32, 32), (40, 32), (20, 10, 100, 80))],
)
def test_a_mask_goes_the_way_of_its_picture(size, resize_to, region):
    rng = np.random.default_rng(5)
    marked = cv2.resize(rng.integers(0, 2, (6, 9), dtype=np.uint8), (150, 110), interpolation=cv2.INTER_NEAREST) > 0
    of = manifest(frame=(150, 110), size=size, resize_to=resize_to, region=region)
    mask = mask_at_model_size(marked, of.view, of.preprocess)
    white = BrightSpotDetector(of).prepare(marked.astype(np.uint8) * 255).inputs[0, :, :, 0]
    assert mask.shape == (size[1], size[0])
    assert (mask[white > 250]).all()
    assert not (mask[white < 5]).any()


def test_a_mask_of_another_size_names_itself(tmp_path):
    data_set(tmp_path, CLASSES)
    save(tmp_path / "ground_truth" / "dent" / "001_mask.png", np.zeros((48, 48), np.uint8))
    with pytest.raises(PicturesError, match=r"001_mask\.png: the mask is 48x48 px, its picture 64x48"):
        judged(tmp_path)


def test_masks_may_be_of_colour_and_hold_small_numbers(tmp_path):
    data_set(tmp_path, CLASSES)
    colour = np.zeros((48, 64, 3), np.uint8)
    colour[16:32, 16:32, 2] = 1
    save(tmp_path / "ground_truth" / "dent" / "001_mask.png", colour)
    sample = find_samples(tmp_path)[5]
    assert (read_mask(sample, (48, 64)) == (part(255) == 255)).all()


def test_a_jpeg_mask_is_not_widened_by_its_ringing(tmp_path):
    data_set(tmp_path, CLASSES)
    ok, jpeg = cv2.imencode(".jpg", (part(255) == 255).astype(np.uint8) * 255, [cv2.IMWRITE_JPEG_QUALITY, 60])
    assert ok
    (tmp_path / "ground_truth" / "dent" / "001_mask.png").unlink()
    (tmp_path / "ground_truth" / "dent" / "001_mask.jpg").write_bytes(jpeg.tobytes())
    assert (read_mask(find_samples(tmp_path)[5], (48, 64)) == (part(255) == 255)).all()


def test_defective_patches_are_those_that_the_mask_covers_to_a_quarter():
    of = manifest()
    mask = np.zeros((24, 32), bool)
    mask[4:8, 4:8] = True  # all of one cell
    mask[12:14, 12:14] = True  # a quarter
    mask[20, 20] = True  # a sixteenth
    assert np.flatnonzero(defective_cells(mask, of)).tolist() == [1 * 8 + 1, 3 * 8 + 3]


# Figures


def test_figures_are_those_that_can_be_counted_by_hand(tmp_path):
    figures = summarise(judged(data_set(tmp_path, CLASSES)))
    assert figures["images"] == 9
    assert figures["threshold"] == 20
    assert figures["threshold_upper"] == 40
    assert figures["false_reject_rate"] == 2 / 4  # 130 is not decidable, 150 not OK: the line rejects both
    assert figures["escape_rate"] == 1 / 5  # 118
    assert figures["not_decidable"] == 2
    assert figures["false_reject_ci"] == list(clopper_pearson(2, 4, 0.95))
    assert figures["escape_ci"] == list(clopper_pearson(1, 5, 0.95))
    assert figures["image_auroc"] == auroc([0, 4, 30, 50, 18, 60, 120, 35, 100], [0] * 4 + [1] * 5)
    dent = next(row for row in figures["classes"] if row["class"] == "dent")
    assert {k: dent[k] for k in ("images", "ok", "not_decidable", "not_ok", "wrong")} == {
        "images": 3,
        "ok": 1,
        "not_decidable": 0,
        "not_ok": 2,
        "wrong": 1,
    }
    assert figures["notes"] == []


def test_the_exact_searches_that_the_pictures_needed_are_counted(tmp_path):
    evaluated = judged(data_set(tmp_path, CLASSES))
    figures = summarise(evaluated)
    counts = [j.exact_searches for j in evaluated.judged]
    assert counts == list(range(20, 110, 10))  # the first picture warms up: it is judged twice, and counted once
    assert (figures["exact_searches"], figures["exact_searches_most"]) == (60, 100)
    assert [row["exact_searches"] for row in score_list(evaluated)] == counts


def test_pixel_figures_are_those_of_the_maps_and_masks_at_model_size(tmp_path):
    evaluated = judged(data_set(tmp_path, CLASSES))
    assert evaluated.maps.shape == (9, 24, 32)
    square = np.zeros((24, 32), bool)
    square[8:16, 8:16] = True
    for entry, anomaly, mask in zip(evaluated.judged, evaluated.maps, evaluated.masks, strict=True):
        assert (mask == (square if entry.sample.defective else False)).all()
        np.testing.assert_allclose(anomaly[square], entry.score, rtol=1e-6)
    expected = pixel_quality(list(evaluated.maps), list(evaluated.masks))
    assert summarise(evaluated)["aupro"] == expected.aupro


def test_without_masks_the_pixel_figures_are_null_and_it_is_said(tmp_path):
    figures = summarise(judged(data_set(tmp_path, CLASSES, masks=False)))
    assert figures["pixel_auroc"] is None
    assert figures["aupro"] is None
    assert figures["image_auroc"] is not None
    assert "No ground truth" in figures["notes"][0]


def test_a_defective_picture_without_mask_is_left_out_of_the_pixel_figures_only(tmp_path):
    data_set(tmp_path, CLASSES)
    before = judged(tmp_path)
    save(tmp_path / "test" / "dent" / "900.png", part(250))
    after = judged(tmp_path)
    assert after.pixels.aupro == before.pixels.aupro
    assert after.pixels.regions == before.pixels.regions
    assert len(after.judged) == len(before.judged) + 1
    assert "1 defective pictures have no mask" in after.notes[0]


def test_good_pictures_alone_give_the_false_reject_rate_and_nulls(tmp_path):
    figures = summarise(judged(data_set(tmp_path, {"good": [100, 130]})))
    assert figures["false_reject_rate"] == 0.5
    for key in ("image_auroc", "pixel_auroc", "aupro", "escape_rate", "escape_ci", "f1_max"):
        assert figures[key] is None
    assert "Only good pictures" in figures["notes"][0]


def test_a_defect_outside_the_region_is_named_because_it_cannot_be_found(tmp_path):
    data_set(tmp_path, CLASSES)
    evaluated = judged(tmp_path, region=(32, 0, 32, 48))
    assert any("5 masks mark nothing that the recipe looks at" in note for note in evaluated.notes)
    assert sum(j.escaped for j in evaluated.judged) == 5


def test_pictures_that_set_the_threshold_are_recognised_as_no_independent_test(tmp_path):
    data_set(tmp_path, CLASSES)
    of = manifest()
    known = BrightSpotDetector(of).prepare(part(104)).inputs
    held_out = [{"name": "x", "sha256": hashlib.sha256(known.tobytes()).hexdigest()}, {"name": "no digest"}, 3]
    evaluated = judged(tmp_path, calibration={"held_out": held_out})
    assert any("1 of these pictures set the recipe's threshold" in note for note in evaluated.notes)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -1.0])
def test_a_score_that_is_no_distance_ends_the_evaluation_by_name(tmp_path, score):
    of = manifest()
    detector = BrightSpotDetector(of)
    detector.spoilt_score = score
    with pytest.raises(EvaluationError, match=r"test/good/000\.png: the score is"):
        evaluate(detector, of, find_samples(data_set(tmp_path, CLASSES)))


def test_a_score_of_exactly_the_threshold_is_ok_and_counted_so(tmp_path):
    evaluated = judged(data_set(tmp_path, {"good": [120, 121], "dent": [120]}))
    by_name = {j.sample.name: j.evaluation for j in evaluated.judged}
    assert by_name["test/good/000.png"] is Evaluation.OK
    assert by_name["test/good/001.png"] is Evaluation.NOT_DECIDABLE
    assert by_name["test/dent/000.png"] is Evaluation.OK


# What cannot be used


def damage_empty(path):
    path.write_bytes(b"")


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:60])


def damage_size(path):
    path.write_bytes(encode_png(np.zeros((40, 64), np.uint8)))


@pytest.mark.parametrize("damage", [damage_empty, damage_truncated, damage_size])
def test_an_unusable_picture_is_named_and_in_no_figure(tmp_path, damage):
    of = manifest()
    data_set(tmp_path, CLASSES)
    damage(tmp_path / "test" / "dent" / "001.png")
    samples = find_samples(tmp_path)
    with pytest.raises(PicturesError, match=r"--skip-unreadable"):
        evaluate(BrightSpotDetector(of), of, samples)
    evaluated = evaluate(BrightSpotDetector(of), of, samples, skip_unreadable=True)
    assert [line.split(":")[0] for line in evaluated.skipped] == ["test/dent/001.png"]
    assert len(evaluated.judged) == 8
    assert len(evaluated.maps) == 8
    assert any("1 pictures could not be used" in note for note in evaluated.notes)
    assert "test/dent/001.png" not in [j.sample.name for j in evaluated.judged]


def test_when_nothing_can_be_used_skipping_does_not_make_it_a_success(tmp_path):
    of = manifest()
    for number in range(2):
        damage_empty(save(tmp_path / f"{number}.png", part(100)))
    with pytest.raises(PicturesError, match="none of the 2 pictures"):
        evaluate(BrightSpotDetector(of), of, find_samples(tmp_path), skip_unreadable=True)


def test_maps_that_do_not_fit_memory_go_to_disk_and_give_the_same_figures(tmp_path, monkeypatch):
    data_set(tmp_path, CLASSES)
    in_memory = judged(tmp_path)
    monkeypatch.setattr("export.evaluate._MAPS_IN_MEMORY_BYTES", 0)
    on_disk = judged(tmp_path)
    assert isinstance(on_disk.maps, np.memmap)
    assert on_disk.pixels.aupro == in_memory.pixels.aupro
    assert (on_disk.maps == in_memory.maps).all()


def test_no_room_for_the_maps_is_said_before_anything_is_judged(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    data_set(tmp_path, CLASSES)
    monkeypatch.setattr("export.evaluate._MAPS_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(EvaluationError, match="TMPDIR"):
        judged(tmp_path)


# The command, on a real recipe

SIZE = (96, 64)
FRAME = (240, 160)


def textured(seed, spot=False):
    rng = np.random.default_rng(seed)
    ramp = np.linspace(60, 180, FRAME[0])[None, :, None] + rng.normal(0, 3, (FRAME[1], FRAME[0], 3))
    if spot:
        ramp[50:90, 100:150] += rng.normal(0, 90, (40, 50, 3))
    return ramp.clip(0, 255).astype(np.uint8)


def model_size(pixels):
    return to_model_input(pixels, FRAME, None, SIZE, SIZE, "antialias")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    for number in range(6):
        save(root / "test" / "good" / f"{number}.png", textured(number))
        save(root / "test" / "spot" / f"{number}.png", textured(100 + number, spot=True))
        mask = np.zeros((FRAME[1], FRAME[0]), np.uint8)
        mask[50:90, 100:150] = 255
        save(root / "ground_truth" / "spot" / f"{number}_mask.png", mask)
    return root


@pytest.fixture(scope="module")
def network():
    return oracle.small_network()


@pytest.fixture(scope="module")
def recipe_of(tmp_path_factory, network):
    """Path, bank and threshold of a recipe of either profile, made when first asked for."""
    made = {}

    def make(profile):
        if profile not in made:
            good = [model_size(textured(200 + n)) for n in range(6)]
            bank = oracle_recipe.random_bank(network, good, profile, rows=300).astype(np.float32)
            threshold = 1.6 * max(oracle_judges(network, g, bank, profile, SIZE).score for g in good)
            path = tmp_path_factory.mktemp("recipe") / f"{profile}.recipe"
            backbone = oracle_recipe.fused_small(network, SIZE, profile)
            oracle_recipe.build(path, backbone, bank, textured(300), (threshold, threshold * 1.1, threshold))
            made[profile] = path, bank, threshold
        return made[profile]

    return make


@pytest.fixture(scope="module")
def recipe(recipe_of):
    return recipe_of("anomalib")


def oracle_judges(network, picture, bank, profile, size):
    return oracle.judge(oracle.embed(oracle.feature_maps(network, picture), profile), bank, profile, size)


def run(capsys, *arguments):
    code = cli.main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json_is_one_object_alone_on_standard_output(capsys, recipe, labelled):
    code, out, _ = run(capsys, "--recipe", recipe[0], "--data", labelled, "--json")
    assert code == 0
    assert out.count("\n") == 1
    figures = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert set(figures) >= REQUIRED_KEYS
    assert figures["images"] == 12
    assert figures["threshold"] == recipe[2]
    assert figures["image_auroc"] == 1.0
    assert figures["ms_per_image"] > 0
    assert "scores" not in figures


@pytest.mark.parametrize("profile", ["anomalib", "paper"])
def test_scores_and_maps_equal_the_oracle(recipe_of, labelled, network, profile):
    path, bank, _ = recipe_of(profile)
    ready = load_verified(path, Sessions(EngineOptions()))
    evaluated = evaluate(ready.detector, ready.recipe.manifest, find_samples(labelled))
    for entry, anomaly in zip(evaluated.judged, evaluated.maps, strict=True):
        picture = model_size(read_picture(entry.sample.path))
        expected = oracle_judges(network, picture, bank, profile, SIZE)
        assert abs(entry.score - expected.score) <= expected.tolerance
        assert abs(entry.max_distance - expected.max_distance) <= expected.tolerance
        assert (np.abs(anomaly - expected.anomaly_map) <= expected.map_tolerance).all()


def test_the_search_is_told_with_its_engine_and_what_a_picture_needed_of_it(capsys, recipe, labelled):
    _, out, _ = run(capsys, "--recipe", recipe[0], "--data", labelled, "--json")
    figures = json.loads(out)
    assert figures["recipe"]["search"] == "flat"
    assert figures["exact_searches"] == figures["exact_searches_most"] == figures["recipe"]["patches"] > 0
    _, out, _ = run(capsys, "--recipe", recipe[0], "--data", labelled)
    patches = figures["recipe"]["patches"]
    assert f"search         flat: {patches} exact searches per image at the median, {patches} at the most" in out


def test_the_promise_of_the_calibration_stands_beside_what_was_found(tmp_path):
    rates = {"false_reject_rate": 0.02, "marginal_rate": 0.0123, "upper_rate": 0.045, "upper_rate_confidence": 0.95}
    evaluated = judged(data_set(tmp_path, CLASSES))

    def told(**changes):
        made = SimpleNamespace(manifest=manifest(**changes), digest="ab" * 32)
        ready = SimpleNamespace(recipe=made, provider="cpu", choice=SimpleNamespace(engine="flat"))
        figures = {"recipe": identity(ready), "data": "lids", **summarise(evaluated)}
        return figures["recipe"], table(figures, evaluated)

    recipe, text = told(calibration=rates)
    assert recipe["false_reject_rate_stated"] == 0.02
    assert recipe["false_reject_rate_marginal"] == 0.0123
    assert recipe["false_reject_rate_upper"] == 0.045
    assert "promised     at most 2.00%: 1.23% at the mean, 4.50% at most with 95% confidence" in text
    recipe, text = told(calibration={"method": "leave-one-out", "n": 5}, provisional=True)
    assert recipe["false_reject_rate_marginal"] is None
    assert "promised     nothing: the threshold is provisional" in text


def test_scores_are_listed_when_asked_for(capsys, recipe, labelled):
    _, out, _ = run(capsys, "--recipe", recipe[0], "--data", labelled, "--json", "--scores")
    scores = json.loads(out)["scores"]
    assert [s["picture"] for s in scores] == [s.name for s in find_samples(labelled)]
    assert all(s["evaluation"] in ("OK", "NotOK", "NotDecidable") for s in scores)


def test_json_needs_neither_jinja_nor_matplotlib_nor_torch(capsys, monkeypatch, recipe, labelled):
    for name in ("jinja2", "matplotlib", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    code, out, _ = run(capsys, "--recipe", recipe[0], "--data", labelled, "--json")
    assert code == 0
    assert json.loads(out)["images"] == 12


def test_the_table_names_every_class_and_every_wrong_verdict(capsys, recipe, labelled, tmp_path):
    for sample in find_samples(labelled):
        save(tmp_path / sample.name, read_picture(sample.path))
    save(tmp_path / "test" / "spot" / "invisible.png", textured(7))
    code, out, _ = run(capsys, "--recipe", recipe[0], "--data", tmp_path)
    assert code == 0
    for words in ("image AUROC", "escapes", "95% confidence", "spot", "good", "test/spot/invisible.png", "No ground"):
        assert words in out


@pytest.mark.usefixtures("plots_drawn_once")
def test_the_report_is_written_whole_and_named_in_the_json(capsys, recipe, labelled, tmp_path):
    out_file = tmp_path / "report.html"
    code, out, _ = run(capsys, "--recipe", recipe[0], "--data", labelled, "--json", "--report", out_file)
    assert code == 0
    assert json.loads(out)["report"] == str(out_file)
    assert out_file.read_text().rstrip().endswith("</html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--recipe", "nowhere.recipe", "--data", "."), "there is no recipe"),
        (("--recipe", "RECIPE", "--data", "nowhere"), "not a folder"),
        (("--recipe", "RECIPE", "--data", "DATA", "--report", "nowhere/r.html"), "folder that exists"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_exit_status_two(capsys, recipe, labelled, arguments, words):
    places = {"RECIPE": recipe[0], "DATA": labelled}
    code, out, err = run(capsys, *(places.get(a, a) for a in arguments))
    assert code == 2
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_errors_are_of_the_kinds_that_the_command_line_catches():
    assert issubclass(EvaluationError, ExportError)
    assert issubclass(PicturesError, (ExportError, EdgeError))


# On real pictures, where they are at hand


@pytest.mark.parametrize("profile", ["anomalib", "paper"])
def test_resnet18_on_bottles_equals_the_oracle(bottle_dir, resnet18_weights, tmp_path, profile):
    from export.fuse import fuse
    from export.graph import raw_backbone

    size = (256, 256) if profile == "anomalib" else (224, 224)
    network = oracle.resnet18(resnet18_weights)
    raw = raw_backbone(
        oracle_recipe.resnet_graph(network),
        name="resnet18",
        outputs=("layer2", "layer3"),
        normalisation=oracle_recipe.IMAGENET,
    )
    good = [read_picture(p) for p in find_pictures(bottle_dir / "train" / "good")[:3]]

    def prepared(pixels):
        return to_model_input(pixels, (512, 512), None, (256, 256), size, "antialias")

    bank = oracle_recipe.random_bank(network, [prepared(g) for g in good], profile, rows=600).astype(np.float32)
    path = oracle_recipe.build(
        tmp_path / "bottle.recipe", fuse(raw, size, profile), bank, good[0], (1.0, 2.0, 1.0), resize_to=(256, 256)
    )
    ready = load_verified(path, Sessions(EngineOptions()))
    samples = find_samples(bottle_dir)[::30]
    evaluated = evaluate(ready.detector, ready.recipe.manifest, samples)
    for entry, anomaly in zip(evaluated.judged, evaluated.maps, strict=True):
        picture = prepared(read_picture(entry.sample.path))
        expected = oracle_judges(network, picture, bank, profile, size)
        assert abs(entry.score - expected.score) <= expected.tolerance
        assert (np.abs(anomaly - expected.anomaly_map) <= expected.map_tolerance).all()
    assert summarise(evaluated)["image_auroc"] == 1.0
