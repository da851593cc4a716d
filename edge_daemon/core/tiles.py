"""A large picture as overlapping tiles of the model's size, and one grid of patches without seams.

Squashing a long picture into the model's square costs more than anything else (0.80 image AUROC on 1260x500 pictures
at 256x256). Tiles keep the scale: the picture, resized once, is cut into overlapping tiles, each goes through the
backbone by itself, and of each tile only those patches are kept that lie nearer to its middle than to a neighbour's.
Every patch of the whole grid comes from exactly one tile, so score, map and boxes are made as of one picture. Patches
next to a tile's border see the backbone's zero padding; the overlap keeps them out, but for the picture's own border.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile. x, y: its upper left corner in the resized picture, pixels. kept: rows and columns of its own grid
    that count; place: where those go in the whole grid."""

    x: int
    y: int
    kept: tuple[slice, slice]
    place: tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a picture is cut: size of the resized picture, size of a tile (both width, height in pixels), the least
    overlap, and pixels from one patch to the next.

    The sizes are multiples of the cell, so that the tiles' grids fall on one another.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    overlap_px: int
    cell_px: int

    def __post_init__(self) -> None:
        for length, tile in zip(self.size, self.tile, strict=True):
            if length % self.cell_px or tile % self.cell_px:
                raise ValueError(
                    f"picture and tile must be multiples of the grid's {self.cell_px} px: {length}, {tile}"
                )
            if length < tile:
                raise ValueError(f"a tile of {tile} px is larger than the picture of {length}")
            if not 0 <= self.overlap_px <= tile - self.cell_px:
                raise ValueError(f"tiles of {tile} px cannot overlap by {self.overlap_px}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the whole grid."""
        return self.size[1] // self.cell_px, self.size[0] // self.cell_px

    def tiles(self) -> list[Tile]:
        """All tiles, row by row."""
        rows = list(_parts(self.size[1], self.tile[1], self.overlap_px, self.cell_px))
        columns = list(_parts(self.size[0], self.tile[0], self.overlap_px, self.cell_px))
        return [
            Tile(x, y, (kept_rows, kept_columns), (rows_in_grid, columns_in_grid))
            for y, kept_rows, rows_in_grid in rows
            for x, kept_columns, columns_in_grid in columns
        ]

    def cut(self, picture: NDArray[np.uint8], tile: Tile) -> NDArray[np.uint8]:
        """The pixels of one tile: a view of the (H, W, 3) picture."""
        return picture[tile.y : tile.y + self.tile[1], tile.x : tile.x + self.tile[0]]


def _parts(length: int, tile: int, overlap: int, cell: int) -> Iterator[tuple[int, slice, slice]]:
    """Along one axis: (start in pixels, cells kept of the tile, cells of the whole). The fewest tiles that overlap
    enough, spread evenly."""
    count = 1 if length == tile else -(-(length - overlap) // (tile - overlap))
    starts = [round(i * (length - tile) / max(1, count - 1) / cell) * cell for i in range(count)]
    # Rounding to cells may leave an overlap short by one: one more tile then.
    while any(a + tile - b < overlap for a, b in pairwise(starts)):
        count += 1
        starts = [round(i * (length - tile) / (count - 1) / cell) * cell for i in range(count)]
    cuts = [0, *((b + a + tile) // 2 // cell for a, b in pairwise(starts)), length // cell]
    for start, first, last in zip(starts, cuts, cuts[1:], strict=False):
        yield start, slice(first - start // cell, last - start // cell), slice(first, last)
