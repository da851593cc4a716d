"""Which pictures show the same part again: whatever the noise and the light, and however many of them do."""

import cv2
import numpy as np
import pytest

from edge_daemon.simulation.render import Scene
from export.likeness import look, near_copies, noise_of, of_looks, shrunk, thumbnail

PX = 256 * 256


def groups(pictures, stored=False):
    """The near copies among (256, 256, 3) uint8 pictures; by what a recipe keeps of them when `stored`."""
    small = [shrunk(np.asarray(picture)[None]) for picture in pictures]
    if stored:
        return near_copies(of_looks(np.stack([look(s) for s in small])), noise_of(PX, of_looks=True)).tolist()
    return near_copies(np.stack([thumbnail(s) for s in small]), noise_of(PX)).tolist()


def noisy(picture, rng, sigma=2.0):
    return np.clip(picture + rng.normal(0, sigma, picture.shape), 0, 255).astype(np.uint8)


def grey(picture):
    return np.repeat(picture[..., 1:2], 3, axis=2)


@pytest.fixture(scope="module")
def flanges():
    scene = Scene("flange", (256, 256))
    return [scene.part(1, index).pixels for index in range(20)]


def encoded(picture):
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_COLOR)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    "change",
    [lambda p, _: p, lambda p, rng: p * rng.uniform(0.98, 1.02), lambda p, _: grey(p)],
    ids=["noise", "light that flickers", "grey"],
)
@pytest.mark.parametrize("others", [0, 1, 2, 12])
def test_one_part_again_and_again_is_one_however_few_others_there_are(flanges, stored, change, others):
    rng = np.random.default_rng(0)
    still = [noisy(change(flanges[0], rng), rng) for _ in range(28)]
    rest = [noisy(change(picture, rng), rng) for picture in flanges[1 : 1 + others]]
    assert groups([*still, *rest], stored) == [0] * 28 + list(range(28, 28 + others))


def test_one_part_encoded_again_and_again_is_one(flanges):
    rng = np.random.default_rng(0)
    still = [encoded(noisy(flanges[0], rng)) for _ in range(28)]
    assert groups([*still, *map(encoded, flanges[1:])]) == [0] * 28 + list(range(28, 47))


@pytest.mark.parametrize("product", ["flange", "board", "weave"])
def test_different_parts_at_the_very_same_place_stay_different(product, monkeypatch):
    scene = Scene(product, (256, 256))
    pose = scene._pose(np.random.default_rng(0))
    monkeypatch.setattr(Scene, "_pose", lambda _self, _draw: pose)
    found = groups([scene.part(1, index).pixels for index in range(40)])
    assert len(set(found)) >= 39


def test_plain_pictures_differ_in_noise_only_and_are_no_copies_for_that():
    rng = np.random.default_rng(0)
    plain = [noisy(np.full((256, 256, 3), 120, np.uint8), rng) for _ in range(20)]
    assert groups(plain) == list(range(20))
    assert groups([np.zeros((256, 256, 3), np.uint8)] * 3) == [0, 1, 2]  # alike by their digest


def test_pictures_in_tiles_are_compared_as_a_whole(flanges):
    rng = np.random.default_rng(0)
    cut = [np.stack([picture[:, :128], picture[:, 128:]]) for picture in [noisy(flanges[0], rng) for _ in range(9)]]
    cut += [np.stack([picture[:, :128], picture[:, 128:]]) for picture in flanges[1:4]]
    found = near_copies(np.stack([thumbnail(shrunk(tiles)) for tiles in cut]), noise_of(PX))
    assert found.tolist() == [0] * 9 + [9, 10, 11]
