"""What cameras send, made into grey or RGB pictures of 8 bits.

Codes and layouts are those of the GenICam Pixel Format Naming Convention (PFNC 2.4; "Packed" formats are those of
GigE Vision 1.2, appendix A). A picture of more than 8 bits keeps its upper 8.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.errors import PictureError

Bytes = NDArray[np.uint8]
Colour = Literal["grey", "bayer_rg", "bayer_gr", "bayer_gb", "bayer_bg", "rgb", "bgr", "rgba", "bgra", "uyvy", "yuyv"]
Packing = Literal["8", "16", "10p", "12p", "10packed", "12packed"]


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """One pixel format. bits: significant ones of a sample; packing: how samples lie in memory (`16`: little endian
    in two bytes)."""

    name: str
    code: int
    colour: Colour
    bits: int
    packing: Packing

    @property
    def bits_per_pixel(self) -> int:
        """As PFNC codes it, padding included: bits 16 to 23 of the code."""
        return (self.code >> 16) & 0xFF

    def bytes_of(self, width: int, height: int) -> int:
        """Size of a picture without padding between its lines."""
        return (width * height * self.bits_per_pixel + 7) // 8


def _bayer(packing: Packing, bits: int, suffix: str, codes: dict[str, int]) -> list[PixelFormat]:
    colours: dict[str, Colour] = {"GR": "bayer_gr", "RG": "bayer_rg", "GB": "bayer_gb", "BG": "bayer_bg"}
    return [PixelFormat(f"Bayer{p}{suffix}", code, colours[p], bits, packing) for p, code in codes.items()]


FORMATS: tuple[PixelFormat, ...] = (
    PixelFormat("Mono8", 0x01080001, "grey", 8, "8"),
    PixelFormat("Mono10", 0x01100003, "grey", 10, "16"),
    PixelFormat("Mono10Packed", 0x010C0004, "grey", 10, "10packed"),
    PixelFormat("Mono10p", 0x010A0046, "grey", 10, "10p"),
    PixelFormat("Mono12", 0x01100005, "grey", 12, "16"),
    PixelFormat("Mono12Packed", 0x010C0006, "grey", 12, "12packed"),
    PixelFormat("Mono12p", 0x010C0047, "grey", 12, "12p"),
    PixelFormat("Mono14", 0x01100025, "grey", 14, "16"),
    PixelFormat("Mono16", 0x01100007, "grey", 16, "16"),
    *_bayer("8", 8, "8", {"GR": 0x01080008, "RG": 0x01080009, "GB": 0x0108000A, "BG": 0x0108000B}),
    *_bayer("16", 10, "10", {"GR": 0x0110000C, "RG": 0x0110000D, "GB": 0x0110000E, "BG": 0x0110000F}),
    *_bayer("16", 12, "12", {"GR": 0x01100010, "RG": 0x01100011, "GB": 0x01100012, "BG": 0x01100013}),
    *_bayer("16", 16, "16", {"GR": 0x0110002E, "RG": 0x0110002F, "GB": 0x01100030, "BG": 0x01100031}),
    *_bayer(
        "10packed", 10, "10Packed", {"GR": 0x010C0026, "RG": 0x010C0027, "GB": 0x010C0028, "BG": 0x010C0029}
    ),
    *_bayer(
        "12packed", 12, "12Packed", {"GR": 0x010C002A, "RG": 0x010C002B, "GB": 0x010C002C, "BG": 0x010C002D}
    ),
    *_bayer("10p", 10, "10p", {"BG": 0x010A0052, "GB": 0x010A0054, "GR": 0x010A0056, "RG": 0x010A0058}),
    *_bayer("12p", 12, "12p", {"BG": 0x010C0053, "GB": 0x010C0055, "GR": 0x010C0057, "RG": 0x010C0059}),
    PixelFormat("RGB8", 0x02180014, "rgb", 8, "8"),
    PixelFormat("BGR8", 0x02180015, "bgr", 8, "8"),
    PixelFormat("RGBa8", 0x02200016, "rgba", 8, "8"),
    PixelFormat("BGRa8", 0x02200017, "bgra", 8, "8"),
    PixelFormat("YUV422_8_UYVY", 0x0210001F, "uyvy", 8, "8"),
    PixelFormat("YUV422_8", 0x02100032, "yuyv", 8, "8"),
)  # fmt: skip

# What cameras called these before PFNC, and still do.
_OLDER_NAMES = {
    "RGB8Packed": "RGB8", "BGR8Packed": "BGR8", "RGBA8Packed": "RGBa8", "BGRA8Packed": "BGRa8",
    "YUV422Packed": "YUV422_8_UYVY", "YUV422_YUYV_Packed": "YUV422_8", "YUYVPacked": "YUV422_8",
}  # fmt: skip


def format_named(name: str) -> PixelFormat | None:
    """The format of a PFNC or older name; None when pictures of it cannot be judged."""
    wanted = _OLDER_NAMES.get(name, name)
    return next((known for known in FORMATS if known.name == wanted), None)


def names_of(name: str) -> tuple[str, ...]:
    """What a camera may call the format of this PFNC name: that name first, then older ones."""
    return (name, *(older for older, current in _OLDER_NAMES.items() if current == name))


def format_coded(code: int) -> PixelFormat | None:
    """The format of a PFNC code; None when pictures of it cannot be judged."""
    return next((known for known in FORMATS if known.code == code), None)


def shown_format(code: int) -> str:
    """A PFNC code for messages: its name where it is known."""
    known = format_coded(code)
    return known.name if known else f"format 0x{code:08x}"


def to_pixels(data: bytes | memoryview | Bytes, fmt: PixelFormat, width: int, height: int) -> Bytes:
    """The bytes of one picture -> (H, W) grey or (H, W, 3) RGB uint8, an array of its own.

    data: at least `fmt.bytes_of(width, height)` bytes; more is padding at the end, which some cameras send.
    Bayer mosaics are interpolated bilinearly, borders by their neighbours; YUV is BT.601, full range, as PFNC
    defines it. Raises PictureError when bytes are missing.
    """
    flat = np.frombuffer(data, np.uint8)
    needed = fmt.bytes_of(width, height)
    if width < 1 or height < 1 or flat.size < needed:
        raise PictureError(f"{flat.size} bytes are no {width}x{height} px picture of {fmt.name}, which takes {needed}")
    flat = flat[:needed]
    if fmt.colour in ("uyvy", "yuyv"):
        return _from_yuv(flat, width, height, luma_first=fmt.colour == "yuyv")
    samples = _UNPACK[fmt.packing](flat, fmt.bits)
    if fmt.colour == "grey" or fmt.colour.startswith("bayer"):
        plane = samples[: width * height].reshape(height, width)
        return plane.copy() if fmt.colour == "grey" else _demosaic(plane, fmt.colour)
    channels = samples.reshape(height, width, -1)
    order = [2, 1, 0] if fmt.colour.startswith("bgr") else [0, 1, 2]
    return np.ascontiguousarray(channels[:, :, order])


def _plain(flat: Bytes, bits: int) -> Bytes:  # noqa: ARG001
    return flat


def _wide(flat: Bytes, bits: int) -> Bytes:
    # Bits above the significant ones are zero by PFNC; a camera that sets them is bright, not dark.
    values = flat.view("<u2") >> (bits - 8)
    narrow: Bytes = np.minimum(values, 255).astype(np.uint8)
    return narrow


def _groups(flat: Bytes, size: int) -> Bytes:
    """(N, size), the last group filled up with zeros: an odd number of samples ends within one."""
    groups = np.zeros((-(-flat.size // size), size), np.uint8)
    groups.reshape(-1)[: flat.size] = flat
    return groups


def _packed(flat: Bytes, bits: int) -> Bytes:  # noqa: ARG001
    """GigE Vision's 10Packed and 12Packed: the upper eight bits of two samples with the lower ones between them."""
    return _groups(flat, 3)[:, ::2].reshape(-1)


def _stream_of_12(flat: Bytes, bits: int) -> Bytes:  # noqa: ARG001
    """PFNC's 12p: a stream of bits, the lowest first; two samples in three bytes."""
    b = _groups(flat, 3)
    samples: Bytes = np.stack([b[:, 0] >> 4 | b[:, 1] << 4, b[:, 2]], axis=1)
    return samples.reshape(-1)


def _stream_of_10(flat: Bytes, bits: int) -> Bytes:  # noqa: ARG001
    """PFNC's 10p: a stream of bits, the lowest first; four samples in five bytes."""
    b = _groups(flat, 5)
    samples: Bytes = np.stack(
        [b[:, 0] >> 2 | b[:, 1] << 6, b[:, 1] >> 4 | b[:, 2] << 4, b[:, 2] >> 6 | b[:, 3] << 2, b[:, 4]], axis=1
    )
    return samples.reshape(-1)


_UNPACK: dict[Packing, Callable[[Bytes, int], Bytes]] = {
    "8": _plain, "16": _wide, "10packed": _packed, "12packed": _packed, "10p": _stream_of_10, "12p": _stream_of_12,
}  # fmt: skip

# OpenCV's older names (COLOR_BayerBG2RGB and so on) name the second row; these name the first, as PFNC does.
_MOSAIC = {
    "bayer_rg": cv2.COLOR_BayerRGGB2RGB, "bayer_gr": cv2.COLOR_BayerGRBG2RGB,
    "bayer_gb": cv2.COLOR_BayerGBRG2RGB, "bayer_bg": cv2.COLOR_BayerBGGR2RGB,
}  # fmt: skip


def _demosaic(plane: Bytes, colour: Colour) -> Bytes:
    if plane.shape[0] < 4 or plane.shape[1] < 4:
        raise PictureError(f"a mosaic of {plane.shape[1]}x{plane.shape[0]} px is too small to have colours")
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(plane), _MOSAIC[colour]), np.uint8)


def _from_yuv(flat: Bytes, width: int, height: int, luma_first: bool) -> Bytes:
    if width % 2:
        raise PictureError(f"a YUV 4:2:2 picture cannot be {width} px wide; its width must be even")
    pairs = flat.reshape(height, width // 2, 4)
    y0, u, y1, v = (0, 1, 2, 3) if luma_first else (1, 0, 3, 2)
    ycrcb = np.empty((height, width, 3), np.uint8)
    ycrcb[:, 0::2, 0], ycrcb[:, 1::2, 0] = pairs[:, :, y0], pairs[:, :, y1]
    ycrcb[:, :, 1] = np.repeat(pairs[:, :, v], 2, axis=1)
    ycrcb[:, :, 2] = np.repeat(pairs[:, :, u], 2, axis=1)
    return np.asarray(cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB), np.uint8)
