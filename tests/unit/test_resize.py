"""The one resize: the formula to one grey level, and the same bytes whatever the machine."""

import hashlib

import numpy as np
import pytest

from edge_daemon.core.geometry import Region
from edge_daemon.core.resize import _antialias, resize, to_model_input, triangle_taps
from edge_daemon.errors import PictureError


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(512, 512), (900, 700), (100, 130), (257, 255), (3, 3), (1, 1)])
def test_antialias_stays_within_one_grey_level_of_the_separable_triangle_filter(shape: tuple[int, int]) -> None:
    pixels = picture(*shape)
    expected = np.einsum(
        "ih,hwc,jw->ijc", triangle_taps(shape[0], 64), pixels.astype(float), triangle_taps(shape[1], 48), optimize=True
    )
    result = resize(pixels, 48, 64, "antialias")
    assert result.shape == (64, 48, 3)
    assert np.abs(result - expected).max() < 0.5 + 0.1


def test_antialias_equals_torch_to_one_grey_level() -> None:
    torch = pytest.importorskip("torch")
    pixels = picture(301, 417)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    expected = torch.nn.functional.interpolate(tensor, (128, 200), mode="bilinear", antialias=True)
    result = resize(pixels, 200, 128, "antialias").transpose(2, 0, 1)
    assert np.abs(result - expected[0].numpy()).max() < 0.6


def test_bytes_do_not_depend_on_the_order_in_which_blas_adds() -> None:
    """Exact fixed-point sums: a digest taken on one machine holds on every other."""
    digest = hashlib.sha256(resize(picture(517, 911, seed=3), 256, 256, "antialias").tobytes()).hexdigest()
    assert digest == "97c57a3e3b4289b4bd3a12d1007266303172e394426a7adea283b14a7ed65e9f"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(4, 4), (5, 9), (64, 48), (256, 256)])
def test_half_the_size_comes_out_as_from_the_general_way(size: tuple[int, int], channels: int) -> None:
    height, width = size
    draw = np.random.default_rng(height)
    noise = draw.integers(0, 256, (2 * height, 2 * width, channels), dtype=np.uint8)
    extremes = np.asarray(255 * draw.integers(0, 2, noise.shape), np.uint8)
    for pixels in (noise, extremes, noise[:, ::-1], np.full_like(noise, 255)):
        given = pixels if channels == 3 else pixels[:, :, 0]
        expected = _antialias(np.ascontiguousarray(pixels), width, height).reshape(height, width, *given.shape[2:])
        assert (resize(given, width, height, "antialias") == expected).all()


@pytest.mark.parametrize(
    ("shape", "digest"),
    [
        ((512, 512), "e79bf3288ba0535c"),
        ((900, 900), "0f09894fb0650fbd"),
        ((1080, 1920), "38b3490dde18aad6"),
        ((200, 300), "bfaf51e5bf08c616"),
    ],
)
def test_bytes_are_those_that_recipes_were_made_with(shape: tuple[int, int], digest: str) -> None:
    """Thresholds rest on them. Digests of the first version that was installed anywhere."""
    found = hashlib.sha256(resize(picture(*shape, seed=5), 256, 192, "antialias").tobytes()).hexdigest()
    assert found.startswith(digest)


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_an_even_picture_stays_even(value: int) -> None:
    flat = np.full((333, 444, 3), value, np.uint8)
    assert (resize(flat, 256, 128, "antialias") == value).all()


def test_grey_pictures_come_out_as_three_equal_channels() -> None:
    grey = picture(90, 120)[:, :, 0].copy()
    result = to_model_input(grey, (120, 90), None, (60, 45), (60, 45), "antialias")
    assert result.shape == (45, 60, 3)
    assert (result == result[:, :, :1]).all()
    assert (result[:, :, 0] == resize(grey, 60, 45, "antialias")).all()


def test_the_region_is_cut_before_and_the_crop_after_the_resize() -> None:
    pixels = picture(100, 200)
    result = to_model_input(pixels, (200, 100), Region(50, 10, 80, 80), (40, 40), (32, 32), "antialias")
    whole = resize(pixels[10:90, 50:130].copy(), 40, 40, "antialias")
    assert (result == whole[4:36, 4:36]).all()


@pytest.mark.parametrize(
    "pixels",
    [
        picture(90, 120),
        np.zeros((100, 120, 4), np.uint8),
        np.zeros((100, 120), np.uint16),
        np.zeros((100, 120, 3), np.float32),
        np.zeros((0, 0, 3), np.uint8),
        np.zeros((100,), np.uint8),
    ],
)
def test_a_frame_of_another_size_or_layout_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(PictureError):
        to_model_input(pixels, (120, 100), None, (60, 50), (60, 50), "antialias")
