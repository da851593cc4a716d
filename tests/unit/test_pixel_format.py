"""Pixel formats against straightforward readers of their definition."""

import typing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_daemon.cameras.config import PixelFormatName
from edge_daemon.core.pixel_format import (
    FORMATS,
    PixelFormat,
    format_coded,
    format_named,
    names_of,
    shown_format,
    to_pixels,
)
from edge_daemon.errors import PictureError

GREY = [fmt for fmt in FORMATS if fmt.colour == "grey"]
MOSAICS = [fmt for fmt in FORMATS if fmt.colour.startswith("bayer")]


def encoded(samples: NDArray[np.int64], fmt: PixelFormat) -> bytes:
    """Samples of `fmt.bits` bits as PFNC and GigE Vision lay them out, one bit after the other."""
    flat = [int(sample) for sample in samples.reshape(-1)]
    match fmt.packing:
        case "8":
            return bytes(flat)
        case "16":
            return b"".join(sample.to_bytes(2, "little") for sample in flat)
        case "10p" | "12p":
            stream = sum(sample << (fmt.bits * index) for index, sample in enumerate(flat))
            return stream.to_bytes((fmt.bits * len(flat) + 7) // 8, "little")
    low_bits = fmt.bits - 8
    packed = bytearray()
    for first, second in zip(flat[::2], [*flat[1::2], None][: len(flat[::2])], strict=True):
        low = first & ((1 << low_bits) - 1)
        if second is not None:
            low |= (second & ((1 << low_bits) - 1)) << 4
        packed += bytes([first >> low_bits, low])
        if second is not None:
            packed.append(second >> low_bits)
    return bytes(packed)


@pytest.mark.parametrize("fmt", GREY, ids=lambda fmt: fmt.name)
@given(data=st.data())
def test_grey_formats_keep_the_upper_eight_bits_of_every_sample(fmt: PixelFormat, data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    values = data.draw(st.lists(st.integers(0, 2**fmt.bits - 1), min_size=width * height, max_size=width * height))
    samples = np.array(values, np.int64).reshape(height, width)
    raw = encoded(samples, fmt)
    assert len(raw) == fmt.bytes_of(width, height)
    pixels = to_pixels(raw, fmt, width, height)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, samples >> (fmt.bits - 8))


def test_samples_above_their_range_are_white_and_not_black() -> None:
    fmt = format_named("Mono10")
    assert fmt is not None
    assert to_pixels(b"\xff\xff\xff\x03\x00\x04", fmt, 3, 1).tolist() == [[255, 255, 255]]


def bilinear(mosaic: NDArray[np.uint8], colour: str) -> NDArray[np.float64]:
    """Each colour at each pixel: the mean of the nearest of its colour, the pixel itself included."""
    rows = {"bayer_rg": "RGGB", "bayer_gr": "GRBG", "bayer_gb": "GBRG", "bayer_bg": "BGGR"}[colour]
    height, width = mosaic.shape
    out = np.zeros((height, width, 3))
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            for channel, letter in enumerate("RGB"):
                around = [
                    (abs(dy) + abs(dx), float(mosaic[y + dy, x + dx]))
                    for dy in (-1, 0, 1)
                    for dx in (-1, 0, 1)
                    if rows[(y + dy) % 2 * 2 + (x + dx) % 2] == letter
                ]
                nearest = min(distance for distance, _ in around)
                out[y, x, channel] = np.mean([value for distance, value in around if distance == nearest])
    return out


@pytest.mark.parametrize("fmt", MOSAICS, ids=lambda fmt: fmt.name)
def test_mosaics_are_interpolated_bilinearly_and_colours_stay_where_they_are(fmt: PixelFormat) -> None:
    samples = np.random.default_rng(1).integers(0, 2**fmt.bits, (8, 10))
    pixels = to_pixels(encoded(samples, fmt), fmt, 10, 8)
    expected = bilinear((samples >> (fmt.bits - 8)).astype(np.uint8), fmt.colour)
    assert np.abs(pixels[1:-1, 1:-1] - expected[1:-1, 1:-1]).max() <= 1


@pytest.mark.parametrize("fmt", MOSAICS[:4], ids=lambda fmt: fmt.name)
def test_a_red_sheet_is_red_to_its_edge_under_every_mosaic(fmt: PixelFormat) -> None:
    rows = {"bayer_rg": "RGGB", "bayer_gr": "GRBG", "bayer_gb": "GBRG", "bayer_bg": "BGGR"}[fmt.colour]
    level = {"R": 200, "G": 60, "B": 20}
    sheet = np.array([[level[rows[y % 2 * 2 + x % 2]] for x in range(8)] for y in range(6)])
    assert np.array_equal(to_pixels(encoded(sheet, fmt), fmt, 8, 6), np.full((6, 8, 3), (200, 60, 20)))


@pytest.mark.parametrize(("name", "order"), [("RGB8", "rgb"), ("BGR8", "bgr"), ("RGBa8", "rgba"), ("BGRa8", "bgra")])
def test_colour_formats_become_rgb_and_lose_their_alpha(name: str, order: str) -> None:
    fmt = format_named(name)
    assert fmt is not None
    level = {"r": 1, "g": 2, "b": 3, "a": 9}
    raw = bytes(level[letter] for letter in order) * 12
    assert np.array_equal(to_pixels(raw, fmt, 4, 3), np.full((3, 4, 3), (1, 2, 3)))


@pytest.mark.parametrize(("name", "order"), [("YUV422_8_UYVY", "uyvz"), ("YUV422_8", "yuzv")])
def test_yuv_is_full_range_bt601_with_colour_shared_by_two_pixels(name: str, order: str) -> None:
    fmt = format_named(name)
    assert fmt is not None
    rng = np.random.default_rng(2)
    luma, u, v = rng.integers(0, 256, (4, 6)), rng.integers(90, 166, (4, 3)), rng.integers(90, 166, (4, 3))
    parts = {"y": luma[:, ::2], "z": luma[:, 1::2], "u": u, "v": v}
    raw = np.stack([parts[letter] for letter in order], axis=2).astype(np.uint8).tobytes()
    blue, red = np.repeat(u, 2, axis=1) - 128, np.repeat(v, 2, axis=1) - 128
    # ITU-R BT.601-7, 2.5.1, full range
    expected = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=2)
    assert np.abs(to_pixels(raw, fmt, 6, 4).astype(float) - np.clip(expected, 0, 255)).max() <= 1


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_missing_bytes_are_an_error_and_bytes_behind_the_picture_are_ignored(fmt: PixelFormat) -> None:
    size = fmt.bytes_of(8, 6)
    good = bytes(range(256)) * 2
    whole = to_pixels(good[:size], fmt, 8, 6)
    assert np.array_equal(to_pixels(good[: size + 7], fmt, 8, 6), whole)
    with pytest.raises(PictureError, match=rf"{size - 1} bytes.*{fmt.name}"):
        to_pixels(good[: size - 1], fmt, 8, 6)
    assert whole.flags.owndata or whole.base is None or whole.base.flags.writeable


@pytest.mark.parametrize("name", ["YUV422_8", "BayerRG8"])
def test_pictures_too_narrow_for_their_colours_are_an_error(name: str) -> None:
    fmt = format_named(name)
    assert fmt is not None
    with pytest.raises(PictureError):
        to_pixels(bytes(64), fmt, 3, 3)


def test_the_configuration_offers_exactly_the_formats_that_can_be_judged() -> None:
    assert set(typing.get_args(PixelFormatName)) == {fmt.name for fmt in FORMATS}


def test_names_and_codes_are_unique_and_older_names_are_known() -> None:
    assert len({fmt.code for fmt in FORMATS}) == len({fmt.name for fmt in FORMATS}) == len(FORMATS)
    assert format_named("RGB8Packed") == format_named("RGB8")
    assert "YUV422Packed" in names_of("YUV422_8_UYVY")
    assert format_coded(0x01080001) == format_named("Mono8")
    assert format_named("Coord3D_ABC32f") is None
    assert shown_format(0x01080001) == "Mono8"
    assert shown_format(0x12345678) == "format 0x12345678"


def test_the_codes_are_those_of_the_genicam_reference_implementation() -> None:
    """harvesters ships PFNC's own table."""
    pfnc = pytest.importorskip("harvesters.util.pfnc", reason="needs the extra gentl")
    for fmt in FORMATS:
        # The older "Packed" formats are GigE Vision's own.
        assert pfnc.dict_by_names.get(fmt.name, fmt.code) == fmt.code, fmt.name
    assert sum(fmt.name in pfnc.dict_by_names for fmt in FORMATS) == len(FORMATS)
