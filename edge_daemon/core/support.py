"""Which cells of the grid of patch distances reach which pixels of the anomaly map."""

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.maps import Upsampling


def _reaches(cells: int, extent: int, pixels: int, upsampling: Upsampling) -> NDArray[np.float32]:
    """(cells, pixels) 0 or 1 along one axis: whether the upsampled pixel takes anything of the cell."""
    index = np.arange(pixels)
    reach = np.zeros((cells, pixels), np.float32)
    if upsampling == "nearest":
        reach[index * cells // extent, index] = 1
    else:
        # Half-pixel centres, two cells a pixel; one more on either side keeps rounding out of the proof.
        centre = np.floor((index + 0.5) * cells / extent - 0.5).astype(np.int64)
        for shift in (-1, 0, 1, 2):
            reach[np.clip(centre + shift, 0, cells - 1), index] = 1
    return reach


def support(
    pixels: NDArray[np.bool_],
    grid: tuple[int, int],
    extent: tuple[int, int],
    upsampling: Upsampling,
    sigma_px: float,
) -> NDArray[np.bool_]:
    """Cells that any of these pixels of `core.maps.anomaly_map` is made of, (gh, gw) bool.

    pixels: (H, W) bool at model size; grid: (gh, gw); extent: width, height in model pixels that the grid
    covers. The blur reaches ±4σ, and a reflected border no farther than that from its pixel.
    """
    reach = int(4 * sigma_px + 0.5) if sigma_px else 0
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    touched = cv2.dilate(pixels.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    rows = _reaches(grid[0], extent[1], pixels.shape[0], upsampling)
    columns = _reaches(grid[1], extent[0], pixels.shape[1], upsampling)
    return np.asarray(rows @ touched.astype(np.float32) @ columns.T > 0)
