"""Geometry of profile `paper`: short side 256, centre crop 224."""

import pytest

from export.build import paper_size


def test_the_short_side_is_resized_to_256_and_the_long_one_in_proportion() -> None:
    for short in range(64, 2200):
        for long in (short, short + 1, short + 333, 2 * short):
            expected = (256 * long // short, 256)  # as torchvision's Resize(256)
            assert paper_size((224, 224), (long, short)) == expected
            assert paper_size((224, 224), (short, long)) == expected[::-1]


@pytest.mark.parametrize("frame", [(1920, 1080), (1600, 1200), (2448, 2048), (1944, 1944), (800, 600)])
def test_the_sizes_of_common_cameras_keep_their_short_side(frame: tuple[int, int]) -> None:
    assert min(paper_size((224, 224), frame)) == 256


def test_a_crop_that_is_not_square_fits_into_what_is_resized() -> None:
    width, height = paper_size((448, 224), (1920, 1080))
    assert (width, height) == (512, 288)
