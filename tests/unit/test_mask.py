"""Which cells a mask ignores, and how a recipe keeps them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.core.geometry import Region
from edge_daemon.core.mask import ignored_cells, ignored_pixels, in_frame, pack, unpack


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_packed_mask_comes_back(rows: int, columns: int, seed: int) -> None:
    ignored = np.random.default_rng(seed).integers(0, 2, (rows, columns)).astype(bool)
    assert np.array_equal(unpack(pack(ignored), (rows, columns)), ignored)


@pytest.mark.parametrize("grid", [(8, 9), (1, 1), (80, 80)])
def test_a_mask_of_another_grid_is_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cells"):
        unpack(pack(np.zeros((8, 8), bool)), grid)


@pytest.mark.parametrize(("covered", "ignored"), [(3, False), (4, True), (8, True), (0, False)])
def test_a_cell_is_ignored_from_a_half_on(covered: int, ignored: bool) -> None:
    mask = np.zeros((32, 32), bool)
    mask[:, 8 : 8 + covered] = True
    cells = ignored_cells(mask, None, (32, 32), (32, 32), (4, 4), (32, 32))
    assert cells[:, 1].all() == cells[:, 1].any() == ignored
    assert not cells[:, [0, 2, 3]].any()


def test_a_mask_goes_the_way_of_its_picture() -> None:
    """Region, resize, crop: the lower right quarter of the frame is what is judged, half of that is masked."""
    mask = np.zeros((128, 128), bool)
    mask[96:] = True
    region = Region(64, 64, 64, 64)
    cells = ignored_cells(mask, region, (40, 40), (32, 32), (4, 4), (32, 32))
    assert np.array_equal(cells, np.repeat([[False], [False], [True], [True]], 4, axis=1))
    pixels = ignored_pixels(cells, (32, 32), (32, 32))
    assert np.array_equal(pixels, np.repeat(np.arange(32)[:, None] >= 16, 32, axis=1))
    frame = in_frame(pixels, Region(70, 70, 52, 52), (128, 128))
    assert frame[100:120, 72:120].all()
    assert not frame[:95].any()
    assert not frame[:, :70].any()


def test_a_cell_beyond_the_picture_counts_by_what_lies_inside() -> None:
    mask = np.zeros((30, 30), bool)
    mask[:, 24:] = True
    cells = ignored_cells(mask, None, (30, 30), (30, 30), (4, 4), (32, 32))
    assert np.array_equal(cells, np.repeat([[False, False, False, True]], 4, axis=0))
