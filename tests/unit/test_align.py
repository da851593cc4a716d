"""A part is found wherever it lies within the stated range, and nowhere else."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_daemon.core.align import Locator, Pose, Search, aligned, box_in_frame, seen
from edge_daemon.core.geometry import Box, Region
from edge_daemon.simulation.render import render

SIZE = (320, 240)
TEMPLATE = Region(90, 60, 140, 120)
RANGE = Search(shift_px=40, rotation_deg=30)


def scene(seed: int = 0) -> NDArray[np.uint8]:
    """A part with edges in all directions on a plain ground, in the template's region."""
    draw = np.random.default_rng(seed)
    frame = np.full((SIZE[1], SIZE[0]), 90, np.uint8)
    cv2.rectangle(frame, (105, 75), (215, 165), 190, -1)
    for _ in range(9):
        x, y = int(draw.integers(110, 200)), int(draw.integers(80, 155))
        cv2.circle(frame, (x, y), int(draw.integers(4, 10)), int(draw.integers(20, 255)), -1)
    cv2.putText(frame, "R7", (125, 140), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 30, 3)
    return np.asarray(cv2.GaussianBlur(frame, (5, 5), 1.0), np.uint8)


def moved(frame: NDArray[np.uint8], angle_deg: float, shift: tuple[float, float]) -> NDArray[np.uint8]:
    """The same part turned about the template's middle and shifted, by OpenCV's own rotation matrix."""
    centre = (TEMPLATE.x + (TEMPLATE.w - 1) / 2, TEMPLATE.y + (TEMPLATE.h - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, angle_deg, 1.0)
    matrix[:, 2] += np.array(shift)
    return np.asarray(cv2.warpAffine(frame, matrix, SIZE, borderMode=cv2.BORDER_REPLICATE), np.uint8)


GOLDEN = scene()
LOCATOR = Locator(GOLDEN, TEMPLATE, RANGE)


@settings(max_examples=40, deadline=None)
@given(st.floats(-29, 29), st.floats(-38, 38), st.floats(-38, 38), st.floats(0.6, 1.3), st.integers(-20, 20))
def test_a_part_is_found_wherever_it_lies_in_range_and_whatever_the_light(
    angle: float, dx: float, dy: float, contrast: float, brightness: int
) -> None:
    frame = moved(GOLDEN, angle, (dx, dy)).astype(np.float64) * contrast + brightness
    noise = np.random.default_rng(1).normal(0, 2, frame.shape)
    pose = LOCATOR.locate(np.clip(frame + noise, 0, 255).astype(np.uint8))
    assert pose is not None
    assert pose.angle_deg == pytest.approx(angle, abs=0.2)
    assert pose.shift_px == pytest.approx((dx, dy), abs=0.4)


def test_the_golden_picture_has_not_moved_and_comes_back_untouched() -> None:
    pose = LOCATOR.locate(GOLDEN)
    assert pose is not None
    assert not pose.moved
    assert aligned(GOLDEN, pose) is GOLDEN


def test_an_aligned_part_lies_where_the_golden_one_does() -> None:
    frame = moved(GOLDEN, 17.0, (21.0, -13.0))
    pose = LOCATOR.locate(frame)
    assert pose is not None
    inside = (slice(75, 165), slice(105, 215))
    before = np.abs(frame[inside].astype(int) - GOLDEN[inside]).mean()
    after = np.abs(aligned(frame, pose)[inside].astype(int) - GOLDEN[inside]).mean()
    assert after < 0.1 * before


def test_colour_pictures_are_aligned_as_grey_ones_are() -> None:
    frame = moved(GOLDEN, -9.0, (5.0, 8.0))
    colour = np.dstack([frame] * 3)
    pose = LOCATOR.locate(colour)
    assert pose is not None
    turned = aligned(colour, pose)
    assert turned.shape == colour.shape
    assert np.array_equal(turned[..., 0], aligned(frame, pose))


@pytest.mark.parametrize(
    ("angle", "shift"), [(45.0, (0.0, 0.0)), (0.0, (70.0, 0.0)), (0.0, (0.0, -55.0)), (180.0, (0.0, 0.0))]
)
def test_a_part_beyond_the_range_is_not_found(angle: float, shift: tuple[float, float]) -> None:
    assert LOCATOR.locate(moved(GOLDEN, angle, shift)) is None


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((240, 320), np.uint8),
        np.full((240, 320), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (240, 320), np.uint8),
        np.tile(np.arange(320, dtype=np.int64) % 256, (240, 1)).astype(np.uint8),
    ],
    ids=["black", "white", "noise", "ramp"],
)
def test_what_is_no_part_is_not_found(frame: NDArray[np.uint8]) -> None:
    assert LOCATOR.locate(frame) is None


def test_any_rotation_is_found_where_180_degrees_are_allowed() -> None:
    locator = Locator(GOLDEN, TEMPLATE, Search(shift_px=30, rotation_deg=180))
    for angle in (-171.0, -90.0, 63.5, 120.0, 179.0):
        pose = locator.locate(moved(GOLDEN, angle, (10.0, -6.0)))
        assert pose is not None
        assert math.remainder(pose.angle_deg - angle, 360) == pytest.approx(0, abs=0.2)


def test_a_part_with_a_large_defect_is_still_found() -> None:
    frame = moved(GOLDEN, 8.0, (-15.0, 10.0))
    cv2.circle(frame, (150, 130), 22, 250, -1)
    pose = LOCATOR.locate(frame)
    assert pose is not None
    assert pose.angle_deg == pytest.approx(8.0, abs=0.7)
    assert pose.shift_px == pytest.approx((-15.0, 10.0), abs=1.0)


@pytest.mark.parametrize("product", ["cap", "board"])
def test_rendered_parts_lie_on_the_golden_one_after_alignment(product: str) -> None:
    golden, other = (render(product, 3, index).pixels for index in (0, 1))
    locator = Locator(golden, Region(96, 96, 320, 320), Search(shift_px=60, rotation_deg=20))
    pose = locator.locate(other)
    assert pose is not None
    inside = (slice(150, 362), slice(150, 362))

    def correlation(picture: NDArray[np.uint8]) -> float:
        return float(np.corrcoef(picture[inside].ravel(), golden[inside].ravel())[0, 1])

    assert correlation(aligned(other, pose)) >= correlation(other) - 0.01


def test_a_box_found_after_alignment_covers_its_defect_in_the_frame() -> None:
    pose = Pose(25.0, (12.0, -7.0), LOCATOR.centre, 1.0)
    box = Box(140, 100, 20, 10, 3.0, 150.0)
    there = box_in_frame(box, pose, SIZE)
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[box.y : box.y + box.h, box.x : box.x + box.w] = 255
    seen = cv2.warpAffine(mask, pose.matrix(), SIZE, flags=cv2.INTER_NEAREST)
    ys, xs = np.nonzero(seen)
    assert there.x <= xs.min() <= there.x + 2
    assert there.y <= ys.min() <= there.y + 2
    assert xs.max() < there.x + there.w <= xs.max() + 4
    assert ys.max() < there.y + there.h <= ys.max() + 4
    assert (there.peak, there.area_px) == (box.peak, box.area_px)


@pytest.mark.parametrize(
    ("angle", "shift", "expected"),
    [
        (0.0, (0.0, 0.0), True),
        (0.0, (60.9, 0.0), True),
        (0.0, (61.2, 0.0), False),
        (0.0, (0.0, -21.2), False),
        (45.0, (0.0, 0.0), True),
        (45.0, (0.0, -1.0), False),
        (180.0, (60.0, 20.0), True),
    ],
)
def test_what_reaches_beyond_the_frame_was_not_seen(angle: float, shift: tuple[float, float], expected: bool) -> None:
    """A square of 100 px whose sides are 60 px from the right border and 20 from the upper one."""
    pose = Pose(angle, shift, (209.5, 69.5), 1.0)
    assert seen(Region(160, 20, 100, 100), pose, SIZE) is expected


@given(st.floats(-180, 180), st.floats(-400, 400), st.floats(-400, 400), st.integers(0, 300), st.integers(0, 220))
def test_boxes_stay_inside_the_frame(angle: float, dx: float, dy: float, x: int, y: int) -> None:
    there = box_in_frame(Box(x, y, 20, 20, 1.0, 9.0), Pose(angle, (dx, dy), (160.0, 120.0), 1.0), SIZE)
    assert 0 <= there.x < there.x + there.w <= SIZE[0]
    assert 0 <= there.y < there.y + there.h <= SIZE[1]


@pytest.mark.parametrize(
    "template", [Region(0, 0, 15, 40), Region(-1, 0, 40, 40), Region(300, 0, 40, 40), Region(0, 0, 50, 40)]
)
def test_a_template_that_cannot_be_found_again_is_refused(template: Region) -> None:
    with pytest.raises(ValueError, match="template"):
        Locator(GOLDEN, template, RANGE)


def test_a_frame_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="px"):
        LOCATOR.locate(np.zeros((100, 100), np.uint8))
