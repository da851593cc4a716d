"""Pictures for people: what a colour means, and that odd shapes and values are drawn all the same."""

import numpy as np
import pytest

from edge_daemon.core.decision import Evaluation
from edge_daemon.core.geometry import Box, Region
from edge_daemon.core.picture import contact_sheet, heat, map_region, outlined, overlay, verdict_colour

BOX_COLOUR = (0, 229, 255)


@pytest.mark.parametrize("threshold", [0.01, 1.0, 417.0])
def test_the_threshold_has_the_same_colour_whatever_its_value(threshold):
    colours = heat(np.array([[0, threshold, 2 * threshold, 99 * threshold]], np.float32), threshold)[0]
    assert tuple(colours[0]) == tuple(heat(np.zeros((1, 1), np.float32), 5.0)[0, 0])
    assert colours[1] == pytest.approx((188, 55, 84), abs=3)  # crimson, the middle of inferno
    assert tuple(colours[2]) == tuple(colours[3])


def test_heat_grows_lighter_with_every_step_so_that_it_reads_in_grey():
    colours = heat(np.linspace(0, 2, 50, dtype=np.float32)[None], 1.0)[0].astype(float)
    lightness = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()


def test_a_value_that_is_not_a_number_looks_hot_never_cold():
    hot = heat(np.array([[2.0]], np.float32), 1.0)[0, 0]
    odd = heat(np.array([[np.nan, np.inf]], np.float32), 1.0)[0]
    assert (odd == hot).all()


@pytest.mark.parametrize("threshold", [0.0, float("nan"), float("inf")])
def test_a_threshold_that_scales_nothing_shows_all_but_zero_as_hot(threshold):
    colours = heat(np.array([[0.0, 1e-6]], np.float32), threshold)[0]
    assert colours[0].max() < 10
    assert colours[1].min() > 100


def test_a_good_part_is_shown_unchanged_and_its_pixels_stay_untouched():
    part = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    before = part.copy()
    part.flags.writeable = False
    shown = overlay(part, np.full((10, 15), 0.5, np.float32), 1.0)
    assert (shown == part).all()
    assert not np.shares_memory(shown, part)
    assert (part == before).all()


def test_heat_lies_where_the_map_covers_the_frame_and_nowhere_else():
    part = np.full((100, 200), 128, np.uint8)
    shown = overlay(part, np.full((16, 16), 2.0, np.float32), 1.0, covers=Region(50, 20, 60, 40))
    changed = (shown != 128).any(axis=2)
    assert changed[20:60, 50:110].all()
    assert changed.sum() == 60 * 40


def test_boxes_are_drawn_at_their_place_also_when_the_picture_is_shrunk():
    part = np.zeros((400, 800), np.uint8)
    box = Box(200, 100, 400, 200, 3.0, 100.0)
    for side, scale in ((None, 1), (400, 2)):
        shown = overlay(part, None, 1.0, [box], max_side_px=side)
        rows, columns = np.nonzero((shown == BOX_COLOUR).all(axis=2))
        assert abs(columns.min() * scale - 200) <= 4
        assert abs(columns.max() * scale - 600) <= 4
        assert abs(rows.min() * scale - 100) <= 4
        assert abs(rows.max() * scale - 300) <= 4


def test_boxes_at_or_over_the_border_and_single_pixel_frames_are_drawn():
    overlay(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.float32), 0.5, [Box(0, 0, 1, 1, 1.0, 1.0)])
    overlay(np.zeros((50, 3000, 3), np.uint8), None, 1.0, [Box(2990, 40, 50, 50, 1.0, 1.0)], max_side_px=100)


def test_the_map_covers_the_centre_crop_of_the_region():
    assert map_region((900, 900), None, (256, 256), (256, 256)) == Region(0, 0, 900, 900)
    assert map_region((900, 900), None, (256, 256), (224, 224)) == Region(56, 56, 788, 788)
    assert map_region((900, 900), Region(100, 200, 400, 300), (200, 150), (100, 150)) == Region(200, 200, 200, 300)


def test_a_contact_sheet_takes_any_mixture_of_sizes_and_marks_the_verdict():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, shape, dtype=np.uint8) for shape in ((30, 40), (500, 90, 3), (1, 1), (64, 64, 3))]
    captions = ["part 1\nOK 0.3 ≤ 0.5", "a caption much too long for the tile it belongs to, cut off", "", "x"]
    verdicts = [Evaluation.OK, Evaluation.NOT_OK, Evaluation.UNDEFINED, Evaluation.NOT_DECIDABLE]
    sheet = contact_sheet(pictures, captions, verdicts, tile_px=120)
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == 3
    for verdict in verdicts:
        assert (sheet == verdict_colour(verdict)).all(axis=2).any()
    assert (
        contact_sheet(pictures, captions, columns=9, tile_px=50).shape[1]
        == contact_sheet(pictures, captions, columns=4, tile_px=50).shape[1]
    )


def test_a_contact_sheet_refuses_nothing_and_unequal_numbers():
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], [])
    with pytest.raises(ValueError, match="captions"):
        contact_sheet([np.zeros((2, 2), np.uint8)], [])


def test_a_mark_of_one_pixel_is_still_outlined_when_the_picture_is_shrunk():
    marked = np.zeros((900, 1200), bool)
    marked[333, 777] = True
    shown = outlined(np.full((900, 1200), 90, np.uint8), marked, max_side_px=200)
    assert shown.shape == (150, 200, 3)
    assert (shown != 90).any()
    assert (outlined(np.full((9, 12), 90, np.uint8), np.zeros((9, 12), bool)) == 90).all()
