"""The sets that backbones are compared on: the same everywhere, marked where they are spoiled, told apart."""

import numpy as np
import pytest

from tests.bench.backbone import open_backbone, quality, timed
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


def test_times_are_given_as_ratios_to_the_teacher():
    embedded = open_backbone(None)
    ratios = timed({"teacher": embedded, "student": embedded}, 2)["teacher_over"]
    assert ratios["teacher"] == 1.0
    assert ratios["student"] > 0
