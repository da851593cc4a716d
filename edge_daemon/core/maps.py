"""Anomaly maps and boxes from the grid of patch distances."""

from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.bounds import multiply
from edge_daemon.core.geometry import Box, Region

Upsampling = Literal["nearest", "bilinear"]
Blur = Literal["torch_reflect", "scipy_reflect"]

# torch's "reflect" leaves the border pixel out of the mirror, scipy's "reflect" doubles it; numpy's names.
_BORDER: dict[Blur, Literal["reflect", "symmetric"]] = {"torch_reflect": "reflect", "scipy_reflect": "symmetric"}


_BLURRED_AT_ONCE = 512  # rows of weights, in float64: of 8000 pixels and 1000 cells they would be 64 MB, three times


def _blurred(
    weights: NDArray[np.float64], kernel: NDArray[np.float64], mirrored: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Each row of (pixels, cells) weights as the sum of its neighbours' by the kernel. mirrored: (pixels + taps - 1,)
    which row lies where, beyond the border too."""
    found = np.empty(weights.shape, np.float32)
    for first in range(0, len(weights), _BLURRED_AT_ONCE):
        last = min(first + _BLURRED_AT_ONCE, len(weights))
        sums = np.zeros((last - first, weights.shape[1]))
        for shift, weight in enumerate(kernel):
            sums += weight * weights[mirrored[shift + first : shift + last]]
        found[first:last] = sums
    return found


@lru_cache(maxsize=64)
def spread(
    cells: int, pixels: int, extent: int, upsampling: Upsampling, blur: Blur, sigma_px: float
) -> NDArray[np.float32]:
    """How much each pixel takes of each cell along one axis of `anomaly_map`, (pixels, cells) float32, read-only.

    Upsampling, cutting, the border and the blur are linear, and each axis is treated like the other: the map
    is rows · grid · columnsᵀ. Weights are not negative and sum to 1; zero is a cell that the pixel does not see.
    """
    weights = np.zeros((pixels, cells))
    index = np.arange(pixels)
    if upsampling == "nearest":
        weights[index, index * cells // extent] = 1
    else:
        centre = np.clip((index + 0.5) * cells / extent - 0.5, 0, cells - 1)
        below = np.floor(centre).astype(np.int64)
        weights[index, below] = 1 - (centre - below)
        weights[index, np.minimum(below + 1, cells - 1)] += centre - below
    if sigma_px:
        reach = int(4 * sigma_px + 0.5)
        kernel = np.asarray(cv2.getGaussianKernel(2 * reach + 1, sigma_px, cv2.CV_64F)[:, 0], np.float64)
        found = _blurred(weights, kernel, np.pad(index, reach, mode=_BORDER[blur]))
    else:
        found = weights.astype(np.float32)
    found.flags.writeable = False
    return found


def anomaly_map(
    grid: NDArray[np.float32],
    size: tuple[int, int],
    extent: tuple[int, int],
    upsampling: Upsampling,
    blur: Blur,
    sigma_px: float,
) -> NDArray[np.float32]:
    """Anomaly map at model size from patch distances (Roth et al. 2022, section 3.3).

    grid: (gh, gw) float32; size: width, height of the model input; extent: width, height in model pixels
    that the grid covers. Upsampled (nearest takes cell ⌊i·g/extent⌋ as torch does, bilinear is half-pixel),
    cut to size, then a Gaussian over ±4σ (33 taps at σ = 4, as anomalib's 33 x 33 kernel and scipy's
    truncate=4). Returns (height, width) float32.

    Two small matrix products: 0.1 ms where filtering the upsampled picture takes 0.5. No pixel becomes
    smaller when a cell grows, to the bit: weights are not negative, and every sum is taken in the same order.
    """
    rows = spread(grid.shape[0], size[1], extent[1], upsampling, blur, sigma_px)
    columns = spread(grid.shape[1], size[0], extent[0], upsampling, blur, sigma_px)
    return multiply(multiply(rows, np.ascontiguousarray(grid, np.float32)), columns.T)


def boxes_above(
    anomaly: NDArray[np.float32],
    threshold: float,
    frame_size: tuple[int, int],
    region: Region | None,
    resize_to: tuple[int, int],
) -> tuple[Box, ...]:
    """Connected regions (8-neighbourhood) of the map at or above the threshold, as full-frame boxes.

    anomaly: (H, W) float32 at model size, the centre of `resize_to` (width, height); region: what of the
    frame was resized. Boxes are rounded outwards and lie inside the frame; largest peak first.
    """
    mask = (anomaly >= threshold).astype(np.uint8)
    # The fastest of OpenCV's in one thread: 0.4 ms for 256² with one large region, the default takes 0.7.
    count, labels, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(mask, 8, cv2.CV_32S, cv2.CCL_GRANA)
    if count <= 1:
        return ()
    origin = (region.x, region.y) if region else (0, 0)
    extent = (region.w, region.h) if region else frame_size
    scale = (extent[0] / resize_to[0], extent[1] / resize_to[1])
    crop = ((resize_to[0] - anomaly.shape[1]) // 2, (resize_to[1] - anomaly.shape[0]) // 2)
    boxes = []
    for label in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[label])
        region_of_map = anomaly[y : y + h, x : x + w]
        peak = float(region_of_map[labels[y : y + h, x : x + w] == label].max())
        left = int(np.floor(origin[0] + (x + crop[0]) * scale[0]))
        top = int(np.floor(origin[1] + (y + crop[1]) * scale[1]))
        right = min(int(np.ceil(origin[0] + (x + w + crop[0]) * scale[0])), frame_size[0])
        bottom = min(int(np.ceil(origin[1] + (y + h + crop[1]) * scale[1])), frame_size[1])
        boxes.append(Box(left, top, right - left, bottom - top, peak, area * scale[0] * scale[1]))
    return tuple(sorted(boxes, key=lambda box: (-box.peak, box.y, box.x)))
