"""Picture files: PNG, JPEG, BMP and TIFF, 8 and 16 bit, grey and colour, read the same way everywhere.

A picture that is not whole must never be judged, so nothing here trusts the decoder's good will. The
header is read and its size checked before anything is allocated, and the container is walked to its end:
older decoders hand out the upper half of a truncated file as if it were a picture.

References: PNG (ISO/IEC 15948), JPEG (ITU-T T.81, annex B), BMP (BITMAPINFOHEADER), TIFF 6.0 and BigTIFF.
"""

import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.errors import PictureError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
MIN_SIDE_PX = 8  # nothing can be inspected on less; a 1x1 picture is a fault of the sender
MAX_PIXELS = 128 * 1024 * 1024  # a 16k line scan of 8k lines; 20,000 x 20,000 is refused before it is decoded
MAX_FILE_BYTES = 1 << 30

# After entropy-coded data: no stuffing, no restart. Of several fill bytes the last one counts; a pattern that took
# them all would try each beginning of a run of them against each of its ends.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
# What honest writers never come near, and what keeps a small file from being minutes of work: a progressive picture
# has about ten scans, each as much work as a whole picture; PNG writers cut at 8 KiB at the least.
_MOST_JPEG_SCANS, _MOST_JPEG_MARKERS, _MOST_PNG_CHUNKS = 64, 65_536, 262_144
_MOST_TIFF_TAGS, _MOST_TIFF_STRIPS = 4_096, 262_144
_DIGITS = re.compile(r"(\d+)")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class _Header:
    """Size in pixels as the container states it, and the bytes to hand to the decoder."""

    width: int
    height: int
    data: bytes


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read one picture file; see `decode_picture`. Raises PictureError, which names the file."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
            raise PictureError(f"{path}: not a file; give a PNG, JPEG, BMP or TIFF picture")
        if status.st_size > MAX_FILE_BYTES:
            raise PictureError(f"{path}: {status.st_size} bytes are more than a picture can have here")
        data = path.read_bytes()
    except OSError as exc:
        raise PictureError(
            f"{path}: cannot be read ({exc.strerror or exc}); check the path and the permissions"
        ) from exc
    return decode_picture(data, str(path))


def decode_picture(data: bytes, name: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Decode one picture from memory. The contents decide the format, not the name. size: width and height that it
    must have, looked at before it is decoded.

    Returns (H, W) for grey or (H, W, 3) RGB, uint8. 16-bit values v become round(v / 257), the full
    range; alpha is dropped; orientation tags are ignored, as a camera would. Raises PictureError naming
    `name` when the picture is empty, damaged, truncated, too small, too large or of another kind.
    """
    if not data:
        raise PictureError(f"{name}: the file is empty; the copy or the recording was interrupted")
    header = _read_header(data, name)
    _check_size(header.width, header.height, name)
    if size is not None and (header.width, header.height) != size:
        raise PictureError(f"{name}: {header.width}x{header.height} px, it should be {size[0]}x{size[1]}")
    try:
        # UNCHANGED keeps the depth and, unlike the other flags, does not turn by EXIF.
        decoded = cv2.imdecode(np.frombuffer(header.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as exc:
        raise PictureError(f"{name}: damaged, cannot be decoded; copy it again or leave it out") from exc
    if decoded is None:
        raise PictureError(f"{name}: damaged, cannot be decoded; copy it again or leave it out")
    if decoded.shape[:2] != (header.height, header.width):
        raise PictureError(
            f"{name}: damaged, the header says {header.width}x{header.height} px but the contents are "
            f"{decoded.shape[1]}x{decoded.shape[0]} px; copy it again or leave it out"
        )
    return _to_rgb8(decoded, name)


def find_pictures(folder: Path, recursive: bool = True) -> list[Path]:
    """All picture files of a folder in the order of their names, numbers by value (`img2` before `img10`).

    A file counts by its suffix; hidden files and folders do not. Raises PictureError when the folder or
    one below it cannot be listed: a folder that vanished must not look like an empty one.
    """

    def fail(exc: OSError) -> None:
        raise PictureError(f"{exc.filename or folder}: cannot be listed ({exc.strerror or exc})") from exc

    if not folder.is_dir():
        raise PictureError(f"{folder}: no such folder; check the path, and that the drive or share is there")
    found = []
    for parent, children, files in os.walk(folder, onerror=fail):
        children[:] = [child for child in children if recursive and not child.startswith(".")]
        found += [Path(parent, f) for f in files if not f.startswith(".") and Path(f).suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Sort key under which numbers inside names count by value; the name itself settles ties."""
    pieces = _DIGITS.split(name)
    return tuple(int(piece) if odd % 2 else piece for odd, piece in enumerate(pieces)), name


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG file of a (H, W) grey or (H, W, 3) RGB uint8 picture, lossless. Raises PictureError."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise PictureError(f"cannot write a picture of shape {pixels.shape} and type {pixels.dtype} as PNG")
    _check_size(pixels.shape[1], pixels.shape[0], "picture")
    ok, encoded = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1])
    if not ok:
        raise PictureError("the picture could not be encoded as PNG")
    return encoded.tobytes()


def _check_size(width: int, height: int, name: str) -> None:
    if width < MIN_SIDE_PX or height < MIN_SIDE_PX:
        raise PictureError(f"{name}: {width}x{height} px is too small to inspect (at least {MIN_SIDE_PX} a side)")
    if width * height > MAX_PIXELS:
        raise PictureError(f"{name}: {width}x{height} px is too large (at most {MAX_PIXELS} pixels); not decoded")


def _to_rgb8(decoded: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """OpenCV's (H, W), (H, W, 3) BGR or (H, W, 4) BGRA -> grey or RGB uint8."""
    if decoded.dtype == np.uint16:
        decoded = ((decoded.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if decoded.dtype != np.uint8:
        raise PictureError(f"{name}: {decoded.dtype} values; only 8 and 16 bit pictures can be judged")
    if decoded.ndim == 2:
        return np.ascontiguousarray(decoded, dtype=np.uint8)
    if decoded.shape[2] not in (3, 4):
        raise PictureError(f"{name}: {decoded.shape[2]} channels; only grey and colour pictures can be judged")
    return np.ascontiguousarray(decoded[..., 2::-1], dtype=np.uint8)


def _read_header(data: bytes, name: str) -> _Header:
    """Recognise the container, walk it to its end and return the stated size. Raises PictureError."""
    readers: tuple[tuple[bytes, Callable[[bytes, str], _Header]], ...] = (
        (_PNG_SIGNATURE, _read_png),
        (b"\xff\xd8\xff", _read_jpeg),
        (b"BM", _read_bmp),
        (b"II*\0", _read_tiff),
        (b"MM\0*", _read_tiff),
        (b"II+\0", _read_tiff),
        (b"MM\0+", _read_tiff),
    )
    for magic, reader in readers:
        if data.startswith(magic):
            try:
                return reader(data, name)
            except (struct.error, IndexError, OverflowError) as exc:  # reading beyond the end
                raise _truncated(name) from exc
    raise PictureError(f"{name}: not a PNG, JPEG, BMP or TIFF picture")


def _truncated(name: str) -> PictureError:
    return PictureError(f"{name}: truncated, the end of the file is missing; copy it again or leave it out")


def _read_png(data: bytes, name: str) -> _Header:
    """Every chunk present with its checksum, up to IEND; the size first, and once."""
    view, position, kind, size, chunks = memoryview(data), len(_PNG_SIGNATURE), b"", (0, 0), 0
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        chunks += 1
        if (kind == b"IHDR") != (chunks == 1) or chunks > _MOST_PNG_CHUNKS:
            raise PictureError(f"{name}: damaged, its chunks are in disorder; copy it again or leave it out")
        body_end = position + 8 + length
        (stated,) = struct.unpack_from(">I", data, body_end)
        if zlib.crc32(view[position + 4 : body_end]) != stated:
            raise PictureError(f"{name}: damaged, a checksum is wrong; copy it again or leave it out")
        if kind == b"IHDR":
            size = struct.unpack_from(">II", data, position + 8)
        position = body_end + 4
    return _Header(size[0], size[1], data)


def _read_jpeg(data: bytes, name: str) -> _Header:
    """Every segment up to the end-of-image marker, which a truncated file has not."""
    position, size, scans = 2, None, 0
    for _ in range(_MOST_JPEG_MARKERS):
        marker = _JPEG_MARKER.search(data, position)
        if marker is None:
            raise _truncated(name)
        code, position = marker.group(1)[0], marker.end()
        scans += code == 0xDA
        if scans > _MOST_JPEG_SCANS:
            raise PictureError(f"{name}: more than {_MOST_JPEG_SCANS} scans; no camera writes that; leave it out")
        if code == 0xD9:
            break
        if code == 0x01:  # TEM stands alone
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC) and size is None:
            height, width = struct.unpack_from(">HH", data, position + 3)
            size = (width, height)
        position += length
    else:
        raise PictureError(f"{name}: more than {_MOST_JPEG_MARKERS} segments; no camera writes that; leave it out")
    if size is None:
        raise PictureError(f"{name}: damaged, a JPEG without a picture in it; copy it again or leave it out")
    return _Header(size[0], size[1], data)


def _read_bmp(data: bytes, name: str) -> _Header:
    """For uncompressed pixels (compression 0 or 3) every row must be there."""
    pixels_at, header_size = struct.unpack_from("<II", data, 10)
    if header_size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    width, height = abs(width), abs(height)  # a negative height means rows from the top down
    row_bytes = (width * bits + 31) // 32 * 4
    if compression in (0, 3) and pixels_at + row_bytes * height > len(data):
        _check_size(width, height, name)
        raise _truncated(name)
    return _Header(width, height, data)


def _read_tiff(data: bytes, name: str) -> _Header:
    """One page whose strips or tiles are all there; an orientation tag is set to 1 (do not turn)."""
    order = "<" if data[:2] == b"II" else ">"
    tags, next_page = _tiff_directory(data, order)
    if next_page:
        raise PictureError(f"{name}: a TIFF of several pages; save the one picture to inspect in a file of its own")
    try:
        width, height = (next(_tiff_values(data, order, *tags[tag])) for tag in (256, 257))
        offsets, counts = (273, 279) if 273 in tags else (324, 325)
        _check_size(width, height, name)
        _check_tiff_sizes(data, order, tags, tags[counts][1], name)
        places = zip(_tiff_values(data, order, *tags[offsets]), _tiff_values(data, order, *tags[counts]), strict=True)
        if any(offset + count > len(data) for offset, count in places):
            raise _truncated(name)
    except (KeyError, ValueError, StopIteration, RuntimeError) as exc:
        raise PictureError(f"{name}: damaged, the TIFF directory is incomplete; copy it again or leave it out") from exc
    if 274 in tags:  # OpenCV turns TIFFs by this tag whatever the flags say
        patched = bytearray(data)
        struct.pack_into(order + "H", patched, tags[274][2], 1)
        data = bytes(patched)
    return _Header(width, height, data)


def _check_tiff_sizes(data: bytes, order: str, tags: dict[int, tuple[int, int, int]], pieces: int, name: str) -> None:
    """What a decoder allocates beside the picture: pieces, channels, the size of one tile."""
    if pieces > _MOST_TIFF_STRIPS or (274 in tags and tags[274][1] != 1):
        raise PictureError(f"{name}: damaged, the TIFF directory is in disorder; copy it again or leave it out")
    channels = next(_tiff_values(data, order, *tags[277])) if 277 in tags else 1
    if channels not in (1, 3, 4):
        raise PictureError(f"{name}: {channels} channels; only grey and colour pictures can be judged")
    if 322 in tags or 323 in tags:
        width, height = (next(_tiff_values(data, order, *tags[tag])) for tag in (322, 323))
        _check_size(width, height, name)


def _tiff_directory(data: bytes, order: str) -> tuple[dict[int, tuple[int, int, int]], int]:
    """First directory: tag -> (type, count, position of its values), and the offset of the next one."""
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count_format, entry_format, offset_format = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    (entries,) = struct.unpack_from(order + count_format, data, start)
    if entries > _MOST_TIFF_TAGS:
        raise struct.error("more tags than there are kinds of")
    position = start + struct.calcsize(order + count_format)
    inline = struct.calcsize(order + offset_format)
    tags = {}
    for _ in range(entries):
        tag, kind, count = struct.unpack_from(order + entry_format, data, position)
        at = position + struct.calcsize(order + entry_format)
        if _TIFF_SIZES.get(kind, 1) * count > inline:
            tags[tag] = (kind, count, struct.unpack_from(order + offset_format, data, at)[0])
        else:
            tags[tag] = (kind, count, at)
        position = at + inline
    return tags, struct.unpack_from(order + offset_format, data, position)[0]


_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}
_TIFF_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}


def _tiff_values(data: bytes, order: str, kind: int, count: int, position: int) -> Iterator[int]:
    """The unsigned integers of one tag. Raises KeyError on another type, struct.error beyond the end."""
    step, letter = _TIFF_SIZES[kind], _TIFF_FORMATS[kind]
    for index in range(count):
        yield struct.unpack_from(order + letter, data, position + index * step)[0]
