"""From full frame to model input: the one resize of the whole system, used offline and online alike.

A resize that differs between export and daemon flips verdicts (a known fault of other tools), so it
exists here and nowhere else, and in front of the graph, where every provider sees the same bytes.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.geometry import Region
from edge_daemon.errors import PictureError

ResizeMethod = Literal["antialias", "area"]

# Output pixels handled per matrix product, by how much smaller the result is. Narrow blocks save products with
# zero, wide ones calls: at 1920 -> 256 blocks of 4 take 4.3 ms and of 8 take 8.9, at 300 -> 256 of 16 half of 8's.
_BLOCKS = ((2, 16), (4, 8), (math.inf, 4))
# OpenBLAS computes products of at most this many multiply-adds in the calling thread (interface/gemm.c:
# SMP_THRESHOLD_MIN times GEMM_MULTITHREAD_THRESHOLD). Larger ones wait for a second thread, which on a
# busy PC may not run for milliseconds: 5 to 200 ms were seen where one thread takes 2.
_ONE_THREAD_MACS = 65_536 * 4
# Fixed point, so that every float32 sum below is exact: weights are multiples of 1/4096, the rows
# between the two passes multiples of 1/16; 255 · 4096 < 2^24 and 255 · 16 · 4096 < 2^24.
_WEIGHT_UNIT = 1 / 4096
_ROW_UNITS = 16
# Pixels that the first and the last tap of half the size reach.
_END = 3


def triangle_taps(size_in: int, size_out: int) -> NDArray[np.float64]:
    """Weights of an antialiased bilinear resize along one axis, (size_out, size_in) float64, rows sum to 1.

    The triangle filter of PIL and of torch.nn.functional.interpolate(mode="bilinear", antialias=True):
    support max(scale, 1) around the centre (i + 0.5)·scale, cut at the border and normalised.
    """
    scale = size_in / size_out
    width = max(scale, 1.0)
    centre = (np.arange(size_out) + 0.5) * scale
    first = np.maximum(0, (centre - width + 0.5).astype(np.int64))
    last = np.minimum(size_in, (centre + width + 0.5).astype(np.int64))
    position = np.arange(size_in)
    weight = np.maximum(0.0, 1.0 - np.abs((position[None, :] + 0.5 - centre[:, None]) / width))
    weight[(position[None, :] < first[:, None]) | (position[None, :] >= last[:, None])] = 0.0
    normalised: NDArray[np.float64] = weight / weight.sum(axis=1, keepdims=True)
    return normalised


def _fixed_point(taps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Taps rounded to multiples of `_WEIGHT_UNIT`, the rounding's remainder given to the largest of a row."""
    rounded = np.rint(taps / _WEIGHT_UNIT)
    remainder = 1 / _WEIGHT_UNIT - rounded.sum(axis=1)
    rounded[np.arange(len(rounded)), taps.argmax(axis=1)] += remainder
    fixed: NDArray[np.float64] = rounded * _WEIGHT_UNIT
    return fixed


@lru_cache(maxsize=64)
def _bands(size_in: int, size_out: int, gain: float) -> tuple[tuple[slice, slice, NDArray[np.float32]], ...]:
    """The taps times `gain` as dense blocks: (output positions, input positions, weights)."""
    taps = _fixed_point(triangle_taps(size_in, size_out)) * gain
    block = next(pixels for scale, pixels in _BLOCKS if size_in < scale * size_out)
    blocks = []
    for start in range(0, size_out, block):
        out = slice(start, min(start + block, size_out))
        used = np.flatnonzero(taps[out].any(axis=0))
        band = slice(int(used[0]), int(used[-1]) + 1)
        weights = np.ascontiguousarray(taps[out, band], dtype=np.float32)
        weights.flags.writeable = False
        blocks.append((out, band, weights))
    return tuple(blocks)


def _parts(length: int, macs_each: int) -> Iterator[slice]:
    """The other axis of a product in parts that one thread computes."""
    step = max(1, _ONE_THREAD_MACS // macs_each)
    return (slice(start, start + step) for start in range(0, length, step))


def _antialias(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Separable triangle filter, (H, W, C) -> (height, width, C), in exact fixed-point arithmetic.

    Every sum is an integer below 2^24 in some unit, so float32 adds it exactly in whatever order BLAS
    likes: the bytes do not depend on the machine. At most one grey level from the unrounded formula.
    """
    h, w, channels = pixels.shape
    lines = pixels.reshape(h, w * channels)
    rows = np.empty((height, w * channels), np.float32)
    for out, band, weights in _bands(h, height, _ROW_UNITS):
        strip = lines[band].astype(np.float32)  # a whole frame of floats would leave the cache
        for part in _parts(w * channels, weights.size):
            np.matmul(weights, strip[:, part], out=rows[out, part])
    np.rint(rows, out=rows)
    planes = np.empty((channels, height, w), np.float32)
    cv2.split(rows.reshape(height, w, channels), [*planes])
    flat = planes.reshape(channels * height, w)
    result = np.empty((channels * height, width), np.float32)
    for out, band, weights in _bands(w, width, 1 / _ROW_UNITS):
        for part in _parts(len(flat), weights.size):
            np.matmul(flat[part, band], weights.T, out=result[part, out])
    np.rint(result, out=result)
    small = result.astype(np.uint8).reshape(channels, height, width)
    return np.asarray(cv2.merge([*small]), np.uint8).reshape(height, width, channels)


def _halved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What `_antialias` gives for half the size, in a quarter of the time: (2h, 2w, C) -> (h, w, C), h, w >= 4.

    Away from the border the taps are 1, 3, 3, 1 eighths: sums of pairs of 1, 2, 1 fourths. Nothing is rounded
    before the end: the first pass gives 64ths of a grey level (at most 64 * 255 < 2^15), the average of four of
    them is a sum of whole 64ths again because each is a multiple of four, and the last step rounds half to even,
    as `np.rint`. At the border the taps are others: its rows and columns are done in the two passes of `_antialias`.
    """
    h, w, _ = pixels.shape
    # OpenCV has a shorter way for rows of 1, 2, 1 than for 2, 4, 2.
    blurred = cv2.sepFilter2D(pixels, cv2.CV_16S, np.array([1.0, 2.0, 1.0]), np.array([4.0, 8.0, 4.0]))
    sums = cv2.resize(blurred, (w // 2, h // 2), interpolation=cv2.INTER_AREA)
    small = np.asarray(cv2.convertScaleAbs(sums, alpha=1 / 64), np.uint8).reshape(h // 2, w // 2, -1)
    planes = pixels.transpose(0, 2, 1)
    ends = np.rint(np.stack(_ends_of_half(planes)) * _ROW_UNITS)
    small[[0, -1]] = np.rint(_half(ends) / _ROW_UNITS).transpose(0, 2, 1)
    columns = pixels[:, [*range(_END), *range(-_END, 0)]].transpose(1, 2, 0)
    ends = np.stack(_ends_of_half(np.rint(_half(columns) * _ROW_UNITS)))
    small[:, [0, -1]] = np.rint(ends / _ROW_UNITS).transpose(2, 0, 1)
    return small


def _half(lines: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """The taps of half the size along the last axis, unrounded: (..., 2m) -> (..., m)."""
    values = lines.astype(np.float32, order="C")
    first, second = values[..., ::2], values[..., 1::2]
    half = 3 * (first + second)
    half[..., 1:] += second[..., :-1]
    half[..., :-1] += first[..., 1:]
    half /= 8
    half[..., 0], half[..., -1] = _ends_of_half(np.moveaxis(values, -1, 0))
    return half


def _ends_of_half(lines: NDArray[np.uint8] | NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """First and last of what the taps of half the size give along the first axis, unrounded: (2m, ...) -> (...) each.
    Of that axis only the ends need be there."""
    first, last = _taps_of_ends()
    start, end = lines[:_END].astype(np.float32, copy=False), lines[-_END:].astype(np.float32, copy=False)
    return (
        first[0] * start[0] + first[1] * start[1] + first[2] * start[2],
        last[0] * end[0] + last[1] * end[1] + last[2] * end[2],
    )


@lru_cache(maxsize=1)
def _taps_of_ends() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The first and the last taps of half the size, (3,) each: the same for every size from 8 pixels on."""
    taps = _fixed_point(triangle_taps(4 * _END, 2 * _END)).astype(np.float32)
    return taps[0, :_END], taps[-1, -_END:]


def resize(pixels: NDArray[np.uint8], width: int, height: int, method: ResizeMethod) -> NDArray[np.uint8]:
    """Resize a picture to width x height.

    pixels: (H, W) or (H, W, 3) uint8; returns the same layout, (height, width[, 3]) uint8.
    `antialias`: see `triangle_taps`; `area`: OpenCV INTER_AREA (a box filter), ten times cheaper.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if method == "area":
        interpolation = cv2.INTER_AREA if pixels.shape[0] >= height and pixels.shape[1] >= width else cv2.INTER_LINEAR
        small: NDArray[np.uint8] = np.asarray(
            cv2.resize(pixels, (width, height), interpolation=interpolation), np.uint8
        )
        return small
    coloured = pixels.reshape(pixels.shape[0], pixels.shape[1], -1)
    if pixels.shape[:2] == (2 * height, 2 * width) and min(height, width) >= 4:
        return _halved(coloured).reshape(height, width, *pixels.shape[2:])
    return _antialias(coloured, width, height).reshape(height, width, *pixels.shape[2:])


def to_model_input(
    pixels: NDArray[np.uint8],
    frame_size: tuple[int, int],
    region: Region | None,
    resize_to: tuple[int, int],
    size: tuple[int, int],
    method: ResizeMethod,
) -> NDArray[np.uint8]:
    """Full frame -> model input: cut the region, resize, centre crop, grey to three channels.

    pixels: (H, W) or (H, W, 3) uint8; frame_size, resize_to, size: width, height.
    Returns (size height, size width, 3) uint8, contiguous. Raises PictureError when the frame is not
    of the size, type or layout that the recipe was made for.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise PictureError(f"a frame must be (H, W) or (H, W, 3) uint8, this one is {pixels.shape} {pixels.dtype}")
    if (pixels.shape[1], pixels.shape[0]) != frame_size:
        raise PictureError(
            f"the frame is {pixels.shape[1]}x{pixels.shape[0]}, the recipe was made for "
            f"{frame_size[0]}x{frame_size[1]}: check the camera's region and binning, or make a recipe for this size"
        )
    if region is not None:
        pixels = pixels[region.y : region.y + region.h, region.x : region.x + region.w]
    small = resize(pixels, resize_to[0], resize_to[1], method)
    left, top = (resize_to[0] - size[0]) // 2, (resize_to[1] - size[1]) // 2
    small = small[top : top + size[1], left : left + size[0]]
    if small.ndim == 2:
        small = np.repeat(small[:, :, None], 3, axis=2)
    return np.ascontiguousarray(small)
