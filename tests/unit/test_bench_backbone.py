"""The sets that backbones are compared on: the same everywhere, marked where they are spoiled, told apart."""

import numpy as np
import pytest

from edge_daemon.artefact.pictures import encode_png
from tests.bench.backbone import compared, open_backbone, quality, read_set, timed
from tests.bench.parts import SETS, made_sets


@pytest.mark.parametrize("name", SETS)
def test_a_made_set_marks_its_defects_and_nothing_else_and_comes_out_the_same_again(name):
    first, second = made_sets([name, name], 1, 2)
    assert first.defective == [False, False, True, True]
    assert [bool(mask.any()) for mask in first.masks] == first.defective
    assert all(mask.mean() < 0.1 for mask in first.masks)
    assert all(p.shape == (256, 256, 3) and p.dtype == np.uint8 for p in [*first.train, *first.test])
    assert all(np.array_equal(a, b) for a, b in zip(first.test, second.test, strict=True))
    assert not np.array_equal(first.train[0], first.test[0])


def test_the_embedded_backbone_finds_the_defects_of_a_simulated_product():
    backbone = open_backbone(None)
    figures = quality(backbone, made_sets(["flange"], 6, 6)[0], 0.05)
    assert set(figures) == {"image_auroc", "pixel_auroc", "aupro"}
    assert figures["image_auroc"] > 0.8
    assert figures["pixel_auroc"] > 0.9


@pytest.mark.parametrize("name", ["screw", "cap"])
def test_another_draw_gives_other_pictures_of_the_same_kind(name):
    first, other = made_sets([name], 1, 1, 0)[0], made_sets([name], 1, 1, 1)[0]
    assert other.defective == first.defective
    assert [bool(mask.any()) for mask in other.masks] == [False, True]
    pictures = [p.tobytes() for s in (first, other) for p in (*s.train, *s.test)]
    assert len(set(pictures)) == len(pictures)


def test_backbones_are_compared_on_equal_pictures_draw_by_draw():
    draws = [
        {"old": {"image_auroc": 0.70, "aupro": 0.5}, "new": {"image_auroc": 0.72, "aupro": 0.5}},
        {"old": {"image_auroc": 0.80, "aupro": 0.6}, "new": {"image_auroc": 0.84, "aupro": 0.6}},
    ]
    report = compared(draws)
    assert report["old"] == {
        "image_auroc": 0.75,
        "aupro": 0.55,
        "over_first": {"image_auroc": [0.0, 0.0], "aupro": [0.0, 0.0]},
    }
    assert report["new"]["over_first"] == {"image_auroc": [0.03, 0.01], "aupro": [0.0, 0.0]}


def test_times_are_given_as_ratios_to_the_teacher():
    embedded = open_backbone(None)
    ratios = timed({"teacher": embedded, "student": embedded}, 2)["teacher_over"]
    assert ratios["teacher"] == 1.0
    assert ratios["student"] > 0


def test_a_folder_in_mvtec_layout_is_read_with_its_masks_and_a_defect_without_one(tmp_path):
    draw = np.random.default_rng(0)
    mask = np.zeros((300, 400), np.uint8)
    mask[100:140, 200:260] = 255
    for name, pixels in {
        "train/good/0.png": draw.integers(0, 256, (300, 400, 3), np.uint8),
        "test/good/0.png": draw.integers(0, 256, (300, 400), np.uint8),
        "test/hole/0.png": draw.integers(0, 256, (300, 400, 3), np.uint8),
        "test/hole/1.png": draw.integers(0, 256, (300, 400, 3), np.uint8),
        "ground_truth/hole/0_mask.png": mask,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode_png(pixels))
    data = read_set(tmp_path)
    assert (len(data.train), data.defective) == (1, [False, True, True])
    assert [bool(mask.any()) for mask in data.masks] == [False, True, False]
    assert {p.shape for p in [*data.train, *data.test]} == {(256, 256, 3)}
    figures = quality(open_backbone(None), data, 0.1)
    assert all(value is not None for value in figures.values())
