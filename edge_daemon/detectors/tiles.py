"""Large pictures: tiles through the backbone a few at a time, and a search that takes a strip of the grid at a time."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.proof import Maximum, Nearest
from edge_daemon.core.tiles import Tiling
from edge_daemon.detectors.base import Extractor, on_host
from edge_daemon.errors import EdgeError

# Few tiles keep the network's own memory small, more do not run faster on a CPU.
_TILES_PER_RUN = 4
# The graph engine proposes rows for all patches of a call at once: memory for so many, times the rows of the bank.
STRIP_PATCHES = 8192


class TiledExtractor:
    """A backbone that sees a picture as tiles (`detectors.base.Extractor`): features are those of the whole grid, each
    cell from the one tile that keeps it."""

    def __init__(self, extractor: Extractor, tiling: Tiling) -> None:
        self._backbone = extractor
        self._tiling = tiling
        self._tiles = tiling.tiles()
        digest, height, width = extractor.key
        self.key = (f"{digest}/{tiling.size[0]}x{tiling.size[1]}+{tiling.overlap_px}", height, width)
        self.provider = extractor.provider

    def extract(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N·T, H, W, 3) uint8 RGB, the tiles of one picture after those of another -> (N, gh, gw, D) float32 on the
        host. Raises EdgeError."""
        count = len(self._tiles)
        if not len(batch) or len(batch) % count:
            raise EdgeError(f"{len(batch)} tiles are no whole number of pictures of {count} tiles")
        pictures = [self._whole(batch[first : first + count]) for first in range(0, len(batch), count)]
        return pictures[0][None] if len(pictures) == 1 else np.stack(pictures)

    def _whole(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(T, H, W, 3) uint8, one picture's tiles -> (gh, gw, D) float32."""
        whole: NDArray[np.float32] | None = None
        for first in range(0, len(tiles), _TILES_PER_RUN):
            found = self._backbone.extract(tiles[first : first + _TILES_PER_RUN])
            for tile, left in zip(self._tiles[first : first + _TILES_PER_RUN], found, strict=True):
                features = on_host(left)
                if whole is None:
                    whole = np.empty((*self._tiling.grid, features.shape[-1]), np.float32)
                whole[tile.place] = features[tile.kept]
        assert whole is not None
        return whole


Find = Callable[[NDArray[np.float32], tuple[int, int], NDArray[np.int64] | None], Maximum]


def maximum_by_strips(
    find: Find, patches: NDArray[np.float32], grid: tuple[int, int], hints: NDArray[np.int64] | None
) -> Maximum:
    """`NearestNeighbour.maximum` of a large grid, some rows of it at a time: the same patch, row and distance, ties to
    the lowest patch, in the memory of one strip.

    patches: (P, D) float32; grid: (gh, gw), P = gh·gw; hints: (K, P) int64 or None.
    """
    rows = max(1, STRIP_PATCHES // grid[1])
    nearest = Nearest.unknown(len(patches))
    best: Maximum | None = None
    searches = 0
    for first in range(0, grid[0], rows):
        part = slice(first * grid[1], min(first + rows, grid[0]) * grid[1])
        strip = patches[part]
        found = find(strip, (len(strip) // grid[1], grid[1]), None if hints is None else hints[:, part])
        nearest.squared[part], nearest.rows[part] = found.nearest.squared, found.nearest.rows
        nearest.exact[part] = found.nearest.exact
        searches += found.searches
        if best is None or found.squared > best.squared:
            best = Maximum(part.start + found.patch, found.row, found.squared, nearest, searches)
    if best is None:
        raise EdgeError("a picture without patches cannot be judged")
    return Maximum(best.patch, best.row, best.squared, nearest, searches)
