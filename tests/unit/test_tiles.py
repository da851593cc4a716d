"""Tiles cover a picture so that every patch of the whole comes from exactly one of them, as far inside as can be."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_daemon.core.tiles import Tiling

cells = st.integers(1, 8)


@given(cells, st.integers(2, 40), st.integers(2, 40), st.integers(0, 160), st.integers(1, 30), st.integers(1, 30))
def test_every_patch_comes_from_one_tile_that_holds_it(
    cell: int, tile_w: int, tile_h: int, extra: int, more_w: int, overlap: int
) -> None:
    tile = (tile_w * cell, tile_h * cell)
    assume(overlap <= min(tile) - cell)
    tiling = Tiling((tile[0] + more_w * cell, tile[1] + extra // 8 * cell), tile, overlap, cell)
    seen = np.zeros(tiling.grid, np.int64)
    for part in tiling.tiles():
        assert part.x % cell == 0
        assert part.y % cell == 0
        assert 0 <= part.x <= tiling.size[0] - tile[0]
        assert 0 <= part.y <= tiling.size[1] - tile[1]
        for kept, place, start, length in zip(part.kept, part.place, (part.y, part.x), (tile[1], tile[0]), strict=True):
            assert 0 <= kept.start <= kept.stop <= length // cell
            assert (kept.start + start // cell, kept.stop + start // cell) == (place.start, place.stop)
        seen[part.place] += 1
    assert (seen == 1).all()


@given(st.integers(1, 60), st.integers(0, 200))
def test_a_patch_inside_the_picture_keeps_half_the_overlap_to_its_tiles_border(more: int, overlap: int) -> None:
    tiling = Tiling((256 + 8 * more, 256), (256, 256), overlap, 8)
    for part in tiling.tiles():
        left, right = part.kept[1].start * 8, 256 - part.kept[1].stop * 8
        inner = overlap // 2 - 7  # cuts fall on cells
        assert part.x == 0 or left >= inner
        assert part.x + 256 == tiling.size[0] or right >= inner


def test_a_picture_of_the_models_size_is_one_tile() -> None:
    (tile,) = Tiling((256, 256), (256, 256), 64, 8).tiles()
    assert (tile.x, tile.y, tile.place) == (0, 0, (slice(0, 32), slice(0, 32)))


def test_a_long_web_takes_the_fewest_tiles() -> None:
    tiles = Tiling((8000, 2000), (512, 512), 64, 8).tiles()
    assert len(tiles) == 18 * 5


def test_the_grid_of_the_whole_is_that_of_one_large_picture() -> None:
    """A backbone that looks at single cells gives the same grid, tiled or not."""
    picture = np.random.default_rng(0).integers(0, 256, (96, 200, 3), np.uint8)
    tiling = Tiling((200, 96), (64, 64), 24, 8)

    def backbone(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        h, w = pixels.shape[:2]
        means: NDArray[np.float64] = pixels.reshape(h // 8, 8, w // 8, 8, 3).mean(axis=(1, 3))
        return means

    whole = np.zeros((*tiling.grid, 3))
    for tile in tiling.tiles():
        whole[tile.place] = backbone(tiling.cut(picture, tile))[tile.kept]
    assert np.array_equal(whole, backbone(picture))


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [((100, 96), (64, 64), 8), ((48, 96), (64, 64), 8), ((96, 96), (64, 64), 57)]
)
def test_what_cannot_be_tiled_is_refused(size: tuple[int, int], tile: tuple[int, int], overlap: int) -> None:
    with pytest.raises(ValueError, match=r"px"):
        Tiling(size, tile, overlap, 8)
