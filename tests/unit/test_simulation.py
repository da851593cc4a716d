"""The simulated parts: repeatable, varied like good parts, defective where they say so."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_daemon.errors import ConfigError
from edge_daemon.simulation.defects import DefectScript
from edge_daemon.simulation.names import PRODUCTS, DefectKind
from edge_daemon.simulation.render import Scene, render

SIZE = (192, 160)
EVERYTHING = [(product, kind) for product in PRODUCTS for kind in DefectKind]


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    return {product: Scene(product, SIZE) for product in PRODUCTS}


@pytest.fixture(scope="module")
def larger() -> dict[str, Scene]:
    return {product: Scene(product, (256, 256)) for product in PRODUCTS}


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_part_is_an_rgb_picture_of_the_size_asked_for(scenes: dict[str, Scene], product: str) -> None:
    part = scenes[product].part(0, 0)
    assert part.pixels.shape == (160, 192, 3)
    assert part.pixels.dtype == np.uint8
    assert not part.pixels.flags.writeable
    assert part.defect is None
    assert part.mask.shape == (160, 192)
    assert part.mask.dtype == np.bool_
    assert not part.mask.any()
    assert part.pixels.std() > 15


@pytest.mark.parametrize(("product", "kind"), EVERYTHING)
def test_seed_and_index_alone_decide(scenes: dict[str, Scene], product: str, kind: DefectKind) -> None:
    part = scenes[product].part(5, 77, kind)
    scenes[product].part(6, 78)
    again = render(product, 5, 77, SIZE, kind)
    assert np.array_equal(part.pixels, again.pixels)
    assert np.array_equal(part.mask, again.mask)


def test_another_process_renders_the_same_pixels() -> None:
    code = (
        "import hashlib; from edge_daemon.simulation.render import render;"
        "print(hashlib.sha256(render('flange', 1, 2, (96, 96)).pixels.tobytes()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "123"}
    )
    here = hashlib.sha256(render("flange", 1, 2, (96, 96)).pixels.tobytes()).hexdigest()
    assert other.stdout.strip() == here


@pytest.mark.parametrize("product", PRODUCTS)
def test_no_two_parts_and_no_two_seeds_look_the_same(scenes: dict[str, Scene], product: str) -> None:
    pictures = [scenes[product].part(seed, index).pixels.tobytes() for seed in (0, 1) for index in range(8)]
    assert len(set(pictures)) == 16


@pytest.mark.parametrize(("product", "kind"), EVERYTHING)
def test_a_defect_changes_the_part_where_the_mask_says_and_nowhere_else(
    scenes: dict[str, Scene], product: str, kind: DefectKind
) -> None:
    for index in range(6):
        good, bad = scenes[product].part(2, index), scenes[product].part(2, index, kind)
        change = np.abs(good.pixels.astype(int) - bad.pixels).max(axis=2)
        assert bad.defect == kind
        assert bad.mask.any()
        assert change[bad.mask].mean() > 25
        near = _grown(bad.mask, 8)
        assert change[~near].max() < 30


@pytest.mark.parametrize(("product", "kind"), EVERYTHING)
def test_defects_measure_2_to_15_percent_of_the_part(larger: dict[str, Scene], product: str, kind: DefectKind) -> None:
    scene = larger[product]
    for index in range(12):
        ys, xs = np.nonzero(scene.part(9, index, kind).mask)
        extent = max(np.ptp(xs), np.ptp(ys)) + 1
        assert 0.02 <= extent / scene.part_extent_px <= 0.155


@pytest.mark.parametrize("size", [(64, 64), (320, 96), (96, 320)])
@pytest.mark.parametrize(("product", "kind"), EVERYTHING)
def test_every_defect_fits_every_shape_of_picture(product: str, kind: DefectKind, size: tuple[int, int]) -> None:
    part = render(product, 0, 0, size, kind)
    assert part.pixels.shape == (size[1], size[0], 3)
    assert part.mask.any()


@pytest.mark.parametrize("product", PRODUCTS)
def test_good_parts_vary_less_than_any_defect(scenes: dict[str, Scene], product: str) -> None:
    means = [scenes[product].part(0, index).pixels.mean() for index in range(20)]
    assert np.ptp(means) < 0.12 * np.mean(means)


def test_an_unknown_product_or_an_impossible_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="teapot"):
        render("teapot", 0, 0)
    for size in ((63, 512), (512, 4097), (512, 100)):
        with pytest.raises(ConfigError, match=str(size[0])):
            Scene("cap", size)


def test_the_script_knows_the_truth_without_rendering() -> None:
    script = DefectScript(seed=4, rate=0.2)
    truths = [script.truth(index) for index in range(2000)]
    defective = [truth for truth in truths if truth is not None]
    assert truths == [DefectScript(seed=4, rate=0.2).truth(index) for index in range(2000)]
    assert truths != [DefectScript(seed=5, rate=0.2).truth(index) for index in range(2000)]
    assert 330 < len(defective) < 470
    assert set(defective) == set(DefectKind)


def test_listed_parts_are_as_listed_and_the_list_cannot_be_changed_later() -> None:
    listed: dict[int, DefectKind | None] = {0: None, 1: DefectKind.CHIP}
    script = DefectScript(seed=0, rate=1.0, listed=listed, kinds=(DefectKind.STAIN,))
    listed[1] = None
    assert [script.truth(index) for index in range(3)] == [None, DefectKind.CHIP, DefectKind.STAIN]


@given(st.integers(0, 2**53), st.integers(0, 2**53))
def test_a_rate_of_0_never_and_of_1_always_gives_a_defect(seed: int, index: int) -> None:
    assert DefectScript(seed).truth(index) is None
    assert DefectScript(seed, 1.0).truth(index) is not None


def test_an_impossible_script_is_refused() -> None:
    for wrong in ({"rate": 1.5}, {"rate": float("nan")}, {"kinds": ()}, {"listed": {-1: None}}):
        with pytest.raises(ConfigError):
            DefectScript(0, **wrong)


def test_reading_the_configuration_loads_no_library_that_computes() -> None:
    code = "import sys, edge_daemon.cameras.config; print([m for m in ('numpy', 'cv2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _grown(mask: NDArray[np.bool_], by_px: int) -> NDArray[np.bool_]:
    padded = np.pad(mask, by_px)
    steps = range(2 * by_px + 1)
    rows = np.logical_or.reduce([padded[i : i + mask.shape[0], :] for i in steps])
    return np.asarray(np.logical_or.reduce([rows[:, i : i + mask.shape[1]] for i in steps]))
