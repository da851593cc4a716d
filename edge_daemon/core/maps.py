"""Anomaly maps and boxes from the grid of patch distances."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.geometry import Box, Region

Upsampling = Literal["nearest", "bilinear"]
Blur = Literal["torch_reflect", "scipy_reflect"]

# torch's "reflect" leaves the border pixel out of the mirror, scipy's "reflect" doubles it.
_BORDER = {"torch_reflect": cv2.BORDER_REFLECT_101, "scipy_reflect": cv2.BORDER_REFLECT}


def _upsample(grid: NDArray[np.float32], width: int, height: int, method: Upsampling) -> NDArray[np.float32]:
    """(gh, gw) -> (height, width): nearest takes cell ⌊i·g/size⌋ (torch), bilinear is half-pixel."""
    if method == "bilinear":
        return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    rows = np.arange(height) * grid.shape[0] // height
    columns = np.arange(width) * grid.shape[1] // width
    return np.asarray(grid[rows[:, None], columns[None, :]])


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
    that the grid covers. Upsampled, cut to size, then a Gaussian over ±4σ (33 taps at σ = 4, as
    anomalib's 33 x 33 kernel and scipy's truncate=4). Returns (height, width) float32.
    """
    full = _upsample(np.ascontiguousarray(grid, np.float32), extent[0], extent[1], upsampling)
    full = np.ascontiguousarray(full[: size[1], : size[0]])
    if sigma_px == 0:
        return full
    taps = 2 * int(4 * sigma_px + 0.5) + 1
    kernel = cv2.getGaussianKernel(taps, sigma_px, cv2.CV_64F)
    return np.asarray(cv2.sepFilter2D(full, cv2.CV_32F, kernel, kernel, borderType=_BORDER[blur]), np.float32)


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
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count <= 1:
        return ()
    origin = (region.x, region.y) if region else (0, 0)
    extent = (region.w, region.h) if region else frame_size
    scale = (extent[0] / resize_to[0], extent[1] / resize_to[1])
    crop = ((resize_to[0] - anomaly.shape[1]) // 2, (resize_to[1] - anomaly.shape[0]) // 2)
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, np.asarray(labels, np.int64).ravel(), anomaly.ravel())
    boxes = []
    for label in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[label])
        left = int(np.floor(origin[0] + (x + crop[0]) * scale[0]))
        top = int(np.floor(origin[1] + (y + crop[1]) * scale[1]))
        right = min(int(np.ceil(origin[0] + (x + w + crop[0]) * scale[0])), frame_size[0])
        bottom = min(int(np.ceil(origin[1] + (y + h + crop[1]) * scale[1])), frame_size[1])
        boxes.append(Box(left, top, right - left, bottom - top, float(peaks[label]), area * scale[0] * scale[1]))
    return tuple(sorted(boxes, key=lambda box: (-box.peak, box.y, box.x)))
