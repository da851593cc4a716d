"""Pictures made by rule: whole, varied, and the same for the same random numbers."""

import random

import numpy as np
import pytest

from export.torch import procedural
from export.torch.procedural import Procedural

SURFACES = (
    procedural.spectrum,
    procedural.grating,
    procedural.woven,
    procedural.brushed,
    procedural.cells,
    procedural.speckle,
    procedural.small_parts,
    procedural.casting,
)


@pytest.fixture(scope="module")
def maker() -> Procedural:
    return Procedural(96)


def test_a_picture_is_a_function_of_the_random_numbers_alone(maker):
    other = Procedural(96)
    for seed in range(12):
        assert np.array_equal(maker.picture(random.Random(seed)), other.picture(random.Random(seed)))


def test_every_picture_is_whole_and_no_two_are_alike(maker):
    pictures = [maker.picture(random.Random(f"whole/{i}")) for i in range(60)]
    assert all(p.shape == (96, 96, 3) and p.dtype == np.uint8 for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 60


def test_most_pictures_are_grey_and_some_are_not(maker):
    pictures = [maker.picture(random.Random(f"grey/{i}")) for i in range(80)]
    grey = sum(bool((p[..., 0] == p[..., 1]).all() and (p[..., 1] == p[..., 2]).all()) for p in pictures)
    assert 40 <= grey < 80


def test_how_far_the_random_numbers_are_used_does_not_depend_on_the_kind_of_picture(maker):
    rng, plain = random.Random(1), random.Random(1)
    for _ in range(10):
        maker.picture(rng)
        plain.getrandbits(64)
    assert rng.random() == plain.random()


@pytest.mark.parametrize("surface", SURFACES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("side", [64, 97])
def test_a_surface_is_finite_within_black_and_white_and_shows_something(surface, side):
    for seed in range(12):
        grey = surface(np.random.default_rng(seed), side)
        assert grey.shape == (side, side)
        assert grey.dtype == np.float32
        assert np.isfinite(grey).all()
        assert 0 <= grey.min() <= grey.max() <= 1
        assert grey.std() > 1e-3


def test_a_flaw_changes_a_small_share_of_the_picture():
    draw = np.random.default_rng(0)
    ground = np.full((128, 128), 0.5, np.float32)
    changed = [np.mean(np.abs(procedural.flawed(ground, draw) - ground) > 1e-3) for _ in range(40)]
    assert 0 < np.mean(changed) < 0.1
    assert sum(share > 0 for share in changed) > 20
