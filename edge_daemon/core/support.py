"""Which cells of the grid of patch distances reach which pixels of the anomaly map."""

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.bounds import multiply
from edge_daemon.core.maps import Blur, Upsampling, spread


def support(
    pixels: NDArray[np.bool_],
    grid: tuple[int, int],
    extent: tuple[int, int],
    upsampling: Upsampling,
    blur: Blur,
    sigma_px: float,
) -> NDArray[np.bool_]:
    """Cells that any of these pixels of `core.maps.anomaly_map` is made of, (gh, gw) bool.

    pixels: (H, W) bool at model size; grid: (gh, gw); extent: width, height in model pixels that the grid
    covers. Exactly the cells with a weight that is not zero in the products that make the map.
    """
    rows = spread(grid[0], pixels.shape[0], extent[1], upsampling, blur, sigma_px) > 0
    columns = spread(grid[1], pixels.shape[1], extent[0], upsampling, blur, sigma_px) > 0
    touched = multiply(rows.T.astype(np.float32), pixels.astype(np.float32))
    return np.asarray(multiply(touched, columns.astype(np.float32)) > 0)
