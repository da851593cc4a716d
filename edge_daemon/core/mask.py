"""What of a picture is ignored: cells of the patch grid under a mask that somebody drew.

A cell is ignored when the mask covers at least half of it: what is only touched by the mask is judged. Patches of
ignored cells take no part in bank, calibration, score, map and boxes. Their neighbours do, and see a little of what
lies under the mask, as any patch sees beyond its cell: draw masks a cell wider than what shall not matter.
"""

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.geometry import Region

_MOSTLY = 0.5
_ROUNDING = 1e-4  # of an area average in float32


def ignored_cells(
    mask: NDArray[np.bool_],
    region: Region | None,
    resize_to: tuple[int, int],
    size: tuple[int, int],
    grid: tuple[int, int],
    extent: tuple[int, int],
) -> NDArray[np.bool_]:
    """Cells that the mask covers to a half or more, (gh, gw) bool.

    mask: (H, W) bool, full-frame pixels, True to ignore; region, resize_to, size: as `core.resize.to_model_input`;
    grid: (gh, gw); extent: width, height in model pixels that the grid covers. Of cells that reach beyond the
    picture counts what lies inside.
    """
    if region is not None:
        mask = mask[region.y : region.y + region.h, region.x : region.x + region.w]
    cover = cv2.resize(mask.astype(np.float32), resize_to, interpolation=cv2.INTER_AREA)
    left, top = (resize_to[0] - size[0]) // 2, (resize_to[1] - size[1]) // 2
    cover = cover[top : top + size[1], left : left + size[0]]
    beyond = ((0, max(0, extent[1] - size[1])), (0, max(0, extent[0] - size[0])))
    cells = (grid[1], grid[0])
    covered = cv2.resize(np.pad(cover, beyond), cells, interpolation=cv2.INTER_AREA)
    inside = cv2.resize(np.pad(np.ones_like(cover), beyond), cells, interpolation=cv2.INTER_AREA)
    return np.asarray((inside > 0) & (covered >= (_MOSTLY - _ROUNDING) * inside), np.bool_)


def ignored_pixels(ignored: NDArray[np.bool_], size: tuple[int, int], extent: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a map, (height, width) bool, that lie in ignored cells. ignored: (gh, gw); size, extent: width,
    height in model pixels."""
    rows = np.arange(size[1]) * ignored.shape[0] // extent[1]
    columns = np.arange(size[0]) * ignored.shape[1] // extent[0]
    return np.asarray(ignored[np.ix_(rows, columns)])


def in_frame(pixels: NDArray[np.bool_], covers: Region, frame_size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of a map, (h, w) bool, as full-frame pixels, (H, W) bool. covers: what of the frame the map covers
    (`core.picture.map_region`)."""
    found = np.zeros((frame_size[1], frame_size[0]), np.bool_)
    scaled = cv2.resize(pixels.astype(np.uint8), (covers.w, covers.h), interpolation=cv2.INTER_NEAREST_EXACT)
    found[covers.y : covers.y + covers.h, covers.x : covers.x + covers.w] = scaled > 0
    return found


def pack(ignored: NDArray[np.bool_]) -> str:
    """Base64 of the cells, row by row, eight to a byte, the first in the highest bit."""
    return base64.b64encode(np.packbits(ignored.ravel()).tobytes()).decode()


def unpack(cells: str, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Inverse of `pack`, (gh, gw) bool, read-only. grid: (gh, gw). Raises ValueError when the length does not fit."""
    packed = np.frombuffer(base64.b64decode(cells, validate=True), np.uint8)
    count = grid[0] * grid[1]
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes do not hold a mask of {grid[1]}x{grid[0]} cells")
    found = np.unpackbits(packed, count=count).astype(np.bool_).reshape(grid)
    found.flags.writeable = False
    return found
