"""Picture files: whole or refused by name, and the same pixels everywhere."""

import contextlib
import os
import struct
import zlib

import cv2
import numpy as np
import pytest

from edge_daemon.artefact.pictures import MAX_PIXELS, decode_picture, encode_png, find_pictures, read_picture
from edge_daemon.errors import PictureError

LOSSLESS = (".png", ".bmp", ".tiff")
ALL = (*LOSSLESS, ".jpg")


def picture(height=40, width=56, channels=3, dtype=np.uint8, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def encoded(pixels, suffix):
    """A file as OpenCV writes it, from RGB(A) or grey."""
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    return cv2.imencode(suffix, pixels)[1].tobytes()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height):
    """A PNG that claims a size and holds almost nothing."""
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def tiff(pixels, order="<", orientation=None, next_page=0, strip_bytes=None, big=False):
    """An uncompressed grey TIFF, written here."""
    height, width = pixels.shape
    body = pixels.tobytes()
    tags = [
        (256, 3, width), (257, 3, height), (258, 3, 8), (259, 3, 1), (262, 3, 1),
        (273, 4, 8 if not big else 16), (278, 3, height), (279, 4, len(body) if strip_bytes is None else strip_bytes),
    ]  # fmt: skip
    if orientation:
        tags.append((274, 3, orientation))
    mark = b"II" if order == "<" else b"MM"
    start = (16 if big else 8) + len(body)
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start))
    directory = struct.pack(order + ("Q" if big else "H"), len(tags))
    for tag, kind, value in sorted(tags):
        inline = struct.pack(order + ("H" if kind == 3 else "I"), value).ljust(8 if big else 4, b"\0")
        directory += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, 1) + inline
    return head + body + directory + struct.pack(order + ("Q" if big else "I"), next_page)


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("channels", [0, 3])
def test_lossless_formats_give_the_pixels_back_grey_as_grey_and_colour_as_rgb(suffix, channels):
    pixels = picture(channels=channels)
    assert np.array_equal(decode_picture(encoded(pixels, suffix), "x"), pixels)


def test_jpeg_colours_come_out_as_rgb():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[..., 0] = 200
    assert decode_picture(encoded(pixels, ".jpg"), "x").mean(axis=(0, 1)) == pytest.approx([200, 0, 0], abs=3)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [0, 3])
def test_sixteen_bits_become_eight_over_the_full_range_rounded(suffix, channels):
    wide = picture(channels=channels, dtype=np.uint16)
    wide.reshape(-1)[:5] = [0, 128, 129, 65406, 65535]
    result = decode_picture(encoded(wide, suffix), "x")
    assert result.dtype == np.uint8
    assert np.array_equal(result, np.rint(wide / 257.0).astype(np.uint8))


def test_alpha_is_dropped():
    pixels = picture(channels=4)
    assert np.array_equal(decode_picture(encoded(pixels, ".png"), "x"), pixels[..., :3])


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_tags_of_tiff_turn_nothing(orientation, order):
    pixels = picture(channels=0)
    assert np.array_equal(decode_picture(tiff(pixels, order, orientation), "x"), pixels)


def test_big_tiff_is_read():
    pixels = picture(channels=0)
    assert np.array_equal(decode_picture(tiff(pixels, big=True), "x"), pixels)


def test_exif_orientation_of_jpeg_turns_nothing():
    plain = encoded(picture(), ".jpg")
    exif = b"Exif\0\0" + b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 274, 3, 1, 6, 0, 0)
    turned = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert np.array_equal(decode_picture(turned, "x"), decode_picture(plain, "x"))


@pytest.mark.parametrize("suffix", ALL)
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.97])
def test_a_truncated_file_is_refused_by_name_and_never_half_a_picture(suffix, kept):
    data = encoded(picture(200, 300), suffix)
    with pytest.raises(PictureError, match=r"cam3/part7\.x"):
        decode_picture(data[: int(len(data) * kept)], "cam3/part7.x")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".jpg"])
def test_the_last_byte_missing_is_noticed(suffix):
    with pytest.raises(PictureError):
        decode_picture(encoded(picture(), suffix)[:-1], "x")


def test_a_file_whose_end_was_never_written_is_refused():
    """Power lost while writing: full length, zeros at the end."""
    data = encoded(picture(200, 300), ".jpg")
    with pytest.raises(PictureError, match="truncated"):
        decode_picture(data[: len(data) // 2] + bytes(len(data) // 2), "x")


def test_a_flipped_bit_in_a_png_is_refused():
    data = bytearray(encoded(picture(), ".png"))
    data[len(data) // 2] ^= 4
    with pytest.raises(PictureError, match="checksum"):
        decode_picture(bytes(data), "x")


def test_damage_anywhere_ends_in_a_named_error_or_a_whole_picture():
    rng = np.random.default_rng(1)
    for suffix in ALL:
        good = encoded(picture(), suffix)
        for _ in range(60):
            bad = bytearray(good)
            for position in rng.integers(0, min(len(bad), 200), 3):
                bad[position] = int(rng.integers(256))
            with contextlib.suppress(PictureError):
                result = decode_picture(bytes(bad), "x")
                assert result.dtype == np.uint8
                assert result.shape[0] * result.shape[1] <= MAX_PIXELS


@pytest.mark.parametrize(
    "data",
    [
        png_header(20_000, 20_000),
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0),
        b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 20_000, 20_000, 1) + b"\x01\x11\0" + b"\xff\xd9",
    ],
    ids=["png", "bmp", "jpeg"],
)  # fmt: skip
def test_a_header_of_20000_by_20000_is_refused_before_anything_is_decoded(data, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(PictureError, match="20000x20000 px is too large"):
        decode_picture(data, "x")


def test_a_tiff_header_of_20000_by_20000_is_refused(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    data = bytearray(tiff(picture(channels=0)))
    where = len(data) - 4 - 8 * 12  # width and height are the first two of eight entries
    struct.pack_into("<H", data, where + 8, 20_000)
    struct.pack_into("<H", data, where + 20, 20_000)
    with pytest.raises(PictureError, match="too large"):
        decode_picture(bytes(data), "x")


def test_a_tiff_of_several_pages_or_with_pixels_beyond_its_end_is_refused():
    pixels = picture(channels=0)
    with pytest.raises(PictureError, match="several pages"):
        decode_picture(tiff(pixels, next_page=8), "x")
    with pytest.raises(PictureError, match="truncated"):
        decode_picture(tiff(pixels, strip_bytes=10**6), "x")


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_one_pixel_is_too_small(suffix):
    with pytest.raises(PictureError, match="1x1 px is too small"):
        decode_picture(encoded(picture(1, 1), suffix), "x")


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 100, b"GIF89a" + b"\0" * 50, b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"\xff\xd8\xff"]
)
def test_what_is_no_picture_is_refused_by_name(data):  # fmt: skip
    with pytest.raises(PictureError, match=r"^some/name"):
        decode_picture(data, "some/name")


def test_float_pictures_are_refused():
    with pytest.raises(PictureError, match="float32"):
        decode_picture(cv2.imencode(".tiff", np.ones((20, 20), np.float32))[1].tobytes(), "x")


def test_missing_files_folders_and_pipes_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "gone.png", tmp_path, tmp_path / "pipe.png"):
        with pytest.raises(PictureError, match=str(path)):
            read_picture(path)


def test_pictures_are_found_in_the_order_of_their_numbers(tmp_path):
    for name in ("img10.PNG", "img2.png", "a/img1.tif", "notes.txt", ".hidden.png", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in find_pictures(tmp_path)]
    assert names == ["a/img1.tif", "img2.png", "img10.PNG"]
    assert [path.name for path in find_pictures(tmp_path, recursive=False)] == ["img2.png", "img10.PNG"]


def test_a_folder_that_is_not_there_is_no_empty_folder(tmp_path):
    with pytest.raises(PictureError, match="no such folder"):
        find_pictures(tmp_path / "usb")


@pytest.mark.parametrize("channels", [0, 3])
def test_png_round_trip_is_lossless(channels):
    pixels = picture(channels=channels)
    assert np.array_equal(decode_picture(encode_png(pixels), "x"), pixels)


def test_what_is_no_picture_is_not_written():
    for bad in (np.ones((20, 20), np.float32), picture(channels=4), picture(2, 2)):
        with pytest.raises(PictureError):
            encode_png(bad)
