"""Anomaly maps against the filters that they stand for, and which cells they are made of."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_daemon.core.maps import Blur, Upsampling, anomaly_map
from edge_daemon.core.support import support

# grid, extent (width, height), size (width, height)
SHAPES = [
    ((1, 1), (8, 8), (8, 8)),
    ((4, 7), (56, 32), (56, 32)),
    ((5, 6), (50, 44), (45, 38)),
    ((9, 9), (70, 70), (66, 69)),
]
BORDERS: dict[Blur, int] = {"torch_reflect": cv2.BORDER_REFLECT_101, "scipy_reflect": cv2.BORDER_REFLECT}


def _filtered(
    grid: np.ndarray, size: tuple[int, int], extent: tuple[int, int], upsampling: Upsampling, blur: Blur, sigma: float
) -> np.ndarray:
    """The map as it is defined: upsample, cut, filter; the borders are OpenCV's own."""
    if upsampling == "bilinear":
        full = cv2.resize(grid.astype(np.float64), extent, interpolation=cv2.INTER_LINEAR)
    else:
        rows = np.arange(extent[1]) * grid.shape[0] // extent[1]
        full = grid.astype(np.float64)[rows][:, np.arange(extent[0]) * grid.shape[1] // extent[0]]
    full = np.ascontiguousarray(full.reshape(extent[1], extent[0])[: size[1], : size[0]])
    if not sigma:
        return full
    kernel = cv2.getGaussianKernel(2 * int(4 * sigma + 0.5) + 1, sigma, cv2.CV_64F)
    return np.asarray(cv2.sepFilter2D(full, cv2.CV_64F, kernel, kernel, borderType=BORDERS[blur]))


@pytest.mark.parametrize(("grid", "extent", "size"), SHAPES)
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("blur", ["torch_reflect", "scipy_reflect"])
@pytest.mark.parametrize("sigma", [0.0, 1.0, 4.0])
def test_the_map_is_the_filtered_upsampled_grid_borders_included(
    grid: tuple[int, int],
    extent: tuple[int, int],
    size: tuple[int, int],
    upsampling: Upsampling,
    blur: Blur,
    sigma: float,
) -> None:
    distances = (10 * np.random.default_rng(1).random(grid)).astype(np.float32)
    found = anomaly_map(distances, size, extent, upsampling, blur, sigma)
    assert found.shape == (size[1], size[0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, _filtered(distances, size, extent, upsampling, blur, sigma), rtol=3e-6)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    upsampling=st.sampled_from(["nearest", "bilinear"]),
    blur=st.sampled_from(["torch_reflect", "scipy_reflect"]),
    sigma=st.sampled_from([0.0, 0.5, 2.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_larger_distances_never_lower_a_pixel_and_the_support_holds_every_cell_that_moves_one(
    shape: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    upsampling: Upsampling,
    blur: Blur,
    sigma: float,
    seed: int,
) -> None:
    grid, extent, size = shape
    rng = np.random.default_rng(seed)
    low = rng.random(grid).astype(np.float32)
    raised = rng.random(grid) < 0.3
    high = np.where(raised, low * np.float32(1 + rng.random()) + np.float32(1e-30), low)
    before, after = (anomaly_map(d, size, extent, upsampling, blur, sigma) for d in (low, high))
    assert (after >= before).all()
    pixels = rng.random((size[1], size[0])) < 0.01
    cells = support(pixels, grid, extent, upsampling, blur, sigma)
    unseen = np.where(cells, low, np.float32(1e30))
    again = anomaly_map(unseen, size, extent, upsampling, blur, sigma)
    assert (again[pixels] == before[pixels]).all()
    assert cells.any() == pixels.any()
