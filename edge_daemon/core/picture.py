"""Pictures for people: heat over a part, boxes around what is wrong, many parts on one sheet.

For eyes only. Nothing here feeds back into a judgement.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.align import Pose
from edge_daemon.core.decision import Evaluation
from edge_daemon.core.geometry import Box, Region

Rgb = tuple[int, int, int]

# Okabe and Ito's colours (2008), which people with any colour blindness tell apart.
_VERDICT_COLOUR: dict[Evaluation, Rgb] = {
    Evaluation.OK: (0, 114, 178),
    Evaluation.NOT_OK: (213, 94, 0),
    Evaluation.NOT_DECIDABLE: (230, 159, 0),
    Evaluation.UNDEFINED: (110, 110, 110),
}
_BOX_COLOUR: Rgb = (0, 229, 255)  # far from every colour of the heat
_TRUTH_COLOUR: Rgb = (240, 228, 66)
_OUTLINE: Rgb = (16, 16, 20)

# The heat fades in between half the threshold and the threshold, so that a good part looks like itself.
_VISIBLE_FROM = 0.5
_OPAQUE = 0.72

_SHEET_GROUND: Rgb = (246, 246, 244)
_SHEET_TEXT: Rgb = (28, 28, 32)


def verdict_colour(evaluation: Evaluation) -> Rgb:
    """Colour that stands for an evaluation wherever one is drawn: OK blue, NotOK vermilion,
    NotDecidable orange, Undefined grey."""
    return _VERDICT_COLOUR[evaluation]


def map_region(
    frame_size: tuple[int, int], region: Region | None, resize_to: tuple[int, int], size: tuple[int, int]
) -> Region:
    """The part of the full frame that an anomaly map covers: the inverse of region, resize, centre crop.

    frame_size, resize_to, size: width, height as in `core.resize.to_model_input`. Rounded to pixels.
    """
    area = region or Region(0, 0, *frame_size)
    left, top = (resize_to[0] - size[0]) // 2, (resize_to[1] - size[1]) // 2
    x0, x1 = (round(left * area.w / resize_to[0]), round((left + size[0]) * area.w / resize_to[0]))
    y0, y1 = (round(top * area.h / resize_to[1]), round((top + size[1]) * area.h / resize_to[1]))
    return Region(area.x + x0, area.y + y0, max(1, x1 - x0), max(1, y1 - y0))


def map_in_frame(
    anomaly_map: NDArray[np.float32], covers: Region, pose: Pose, frame_size: tuple[int, int], max_side_px: int | None
) -> NDArray[np.float32]:
    """The map of an aligned picture turned back to where the part lay, for the whole frame; 0 where there is no map.

    anomaly_map: (h, w) float32; covers: what of the aligned picture it covers; frame_size: width, height. Returns
    (H, W) float32 of the frame's shape, at most `max_side_px` long.
    """
    scale = min(1.0, (max_side_px or max(frame_size)) / max(frame_size))
    size = max(1, round(frame_size[0] * scale)), max(1, round(frame_size[1] * scale))
    height, width = anomaly_map.shape
    # Pixel i covers i to i + 1 everywhere: map, aligned frame, frame, picture shown.
    from_map = np.array([[covers.w / width, 0, covers.x], [0, covers.h / height, covers.y], [0, 0, 1]])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    turned = half @ np.vstack([pose.matrix(), [0, 0, 1]]) @ np.linalg.inv(half)
    shown = np.diag([size[0] / frame_size[0], size[1] / frame_size[1], 1.0])
    matrix = np.linalg.inv(half) @ shown @ turned @ from_map @ half
    return np.asarray(cv2.warpAffine(anomaly_map, matrix[:2], size, flags=cv2.INTER_LINEAR), np.float32)


def heat(anomaly_map: NDArray[np.float32], pixel_threshold: float) -> NDArray[np.uint8]:
    """Anomaly map as colours, (H, W) float32 -> (H, W, 3) uint8 RGB.

    The scale is fixed by the threshold, so that colours compare between parts: inferno (perceptually
    even, readable when colour-blind) from black at 0 over crimson exactly at the threshold to pale
    yellow at twice the threshold and above. What is not a number is shown at the hot end.
    """
    colours: NDArray[np.uint8] = _inferno()[_level(anomaly_map, pixel_threshold)]
    return colours


def overlay(
    pixels: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32] | None,
    pixel_threshold: float,
    boxes: Sequence[Box] = (),
    covers: Region | None = None,
    max_side_px: int | None = None,
) -> NDArray[np.uint8]:
    """A part with its heat, the threshold's contour and its boxes, as RGB uint8.

    pixels:          (H, W) or (H, W, 3) uint8, the full frame
    anomaly_map:     (h, w) float32 at any size, or None for boxes alone
    pixel_threshold: map value from which boxes are drawn; colours as in `heat`
    boxes:           full-frame pixels
    covers:          part of the frame that the map covers (see `map_region`); None for all of it
    max_side_px:     the result is shrunk to this longer side; None keeps the frame's size
    Returns (H', W', 3), a new array.
    """
    picture, scale = _shrunk(pixels, max_side_px)
    if anomaly_map is not None:
        frame = covers or Region(0, 0, pixels.shape[1], pixels.shape[0])
        _blend_heat(picture, anomaly_map, pixel_threshold, _scaled(frame, scale, picture.shape))
    stroke = _stroke(picture)
    for box in boxes:
        place = _scaled(Region(box.x, box.y, box.w, box.h), scale, picture.shape)
        corners = (place.x, place.y), (place.x + place.w - 1, place.y + place.h - 1)
        cv2.rectangle(picture, *corners, _OUTLINE, stroke + 2)
        cv2.rectangle(picture, *corners, _BOX_COLOUR, stroke)
    return picture


def outlined(pixels: NDArray[np.uint8], marked: NDArray[np.bool_], max_side_px: int | None = None) -> NDArray[np.uint8]:
    """A part with the outline of what a person marked on it (ground truth), as RGB uint8.

    pixels: (H, W) or (H, W, 3) uint8; marked: (H, W) bool of the same frame. Returns (H', W', 3), a new array.
    """
    picture, _ = _shrunk(pixels, max_side_px)
    size = picture.shape[1], picture.shape[0]
    # An area average keeps marks of a few pixels that sampling would lose.
    cover = cv2.resize(marked.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    inside = (cover >= 0.5) if (cover >= 0.5).any() else (cover > 0)
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    stroke = _stroke(picture)
    cv2.drawContours(picture, contours, -1, _OUTLINE, stroke + 2, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, _TRUTH_COLOUR, stroke, cv2.LINE_AA)
    return picture


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8]],
    captions: Sequence[str],
    evaluations: Sequence[Evaluation] | None = None,
    columns: int | None = None,
    tile_px: int = 240,
) -> NDArray[np.uint8]:
    """Many pictures on one sheet, row by row, each with its caption below.

    pictures:    (H, W) or (H, W, 3) uint8 of any sizes, fitted into squares of `tile_px`
    captions:    one each; several lines are separated by newlines, too long ones are cut
    evaluations: when given, a bar in `verdict_colour` stands above each picture
    columns:     None makes the sheet about four wide to three high
    Returns (H, W, 3) uint8 RGB. Raises ValueError when there is nothing to show or the numbers differ.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    if len(captions) != len(pictures) or (evaluations is not None and len(evaluations) != len(pictures)):
        raise ValueError(f"{len(pictures)} pictures, {len(captions)} captions: give one each")
    across = min(columns or math.ceil(math.sqrt(len(pictures) * 4 / 3)), len(pictures))
    lines = max(len(caption.split("\n")) for caption in captions)
    tiles = []
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        bar = _VERDICT_COLOUR[evaluations[index]] if evaluations is not None else None
        tiles.append(_tile(picture, caption, lines, bar, tile_px))
    blank = np.full_like(tiles[0], _SHEET_GROUND)
    tiles += [blank] * (-len(tiles) % across)
    rows = [np.hstack(tiles[start : start + across]) for start in range(0, len(tiles), across)]
    return np.vstack(rows)


@lru_cache(maxsize=1)
def _inferno() -> NDArray[np.uint8]:
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)
    table = np.ascontiguousarray(ramp[:, 0, ::-1], dtype=np.uint8)
    table.flags.writeable = False
    return table


def _level(anomaly_map: NDArray[np.float32], pixel_threshold: float) -> NDArray[np.uint8]:
    """0 at nothing, 128 at the threshold, 255 from twice the threshold on."""
    if math.isfinite(pixel_threshold) and pixel_threshold > 0:
        level = anomaly_map * np.float32(128 / pixel_threshold)
    else:  # nothing but exact zeros is below such a threshold
        level = np.where(anomaly_map > 0, np.float32(255), np.float32(0))
    whole: NDArray[np.uint8] = np.clip(np.nan_to_num(level, nan=255.0, posinf=255.0), 0, 255).astype(np.uint8)
    return whole


def _blend_heat(
    picture: NDArray[np.uint8], anomaly_map: NDArray[np.float32], pixel_threshold: float, place: Region
) -> None:
    target = picture[place.y : place.y + place.h, place.x : place.x + place.w]
    level = cv2.resize(_level(anomaly_map, pixel_threshold), (place.w, place.h), interpolation=cv2.INTER_LINEAR)
    alpha = np.clip((np.arange(256) / 128 - _VISIBLE_FROM) / (1 - _VISIBLE_FROM), 0, 1) ** 2 * _OPAQUE
    strength = alpha.astype(np.float32)[level][:, :, None]
    target[:] = (target * (1 - strength) + _inferno()[level] * strength + 0.5).astype(np.uint8)
    contours, _ = cv2.findContours((level >= 128).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    view = np.ascontiguousarray(target)
    cv2.drawContours(view, contours, -1, (255, 255, 255), 1, cv2.LINE_AA)
    target[:] = view


def _stroke(picture: NDArray[np.uint8]) -> int:
    """Width of lines that can still be seen when the picture is shown at half its size."""
    return int(max(1, round(max(picture.shape[:2]) / 180)))


def _shrunk(pixels: NDArray[np.uint8], max_side_px: int | None) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """A colour copy at most `max_side_px` long, and its scale across and down."""
    height, width = pixels.shape[:2]
    factor = 1.0 if max_side_px is None else min(1.0, max_side_px / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if factor < 1 else pixels
    colour = cv2.cvtColor(small, cv2.COLOR_GRAY2RGB) if small.ndim == 2 else small.copy()
    return np.ascontiguousarray(colour, dtype=np.uint8), (size[0] / width, size[1] / height)


def _scaled(region: Region, scale: tuple[float, float], shape: tuple[int, ...]) -> Region:
    """A region in the shrunk picture, at least one pixel large and inside it."""
    x0 = min(max(0, round(region.x * scale[0])), shape[1] - 1)
    y0 = min(max(0, round(region.y * scale[1])), shape[0] - 1)
    x1 = min(max(x0 + 1, round((region.x + region.w) * scale[0])), shape[1])
    y1 = min(max(y0 + 1, round((region.y + region.h) * scale[1])), shape[0])
    return Region(x0, y0, x1 - x0, y1 - y0)


def _tile(picture: NDArray[np.uint8], caption: str, lines: int, bar: Rgb | None, tile_px: int) -> NDArray[np.uint8]:
    pad, line_px, bar_px = max(4, tile_px // 40), max(12, tile_px // 13), max(3, tile_px // 40)
    tile = np.full((bar_px + tile_px + lines * line_px + 3 * pad, tile_px + 2 * pad, 3), _SHEET_GROUND, np.uint8)
    if bar is not None:
        tile[pad : pad + bar_px, pad : pad + tile_px] = bar
    factor = tile_px / max(picture.shape[:2])
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    fitted = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    if fitted.ndim == 2:
        fitted = cv2.cvtColor(fitted, cv2.COLOR_GRAY2RGB)
    top, left = pad + bar_px + (tile_px - size[1]) // 2, pad + (tile_px - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = fitted
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, line_px / 38
    for number, line in enumerate(caption.split("\n")):
        text = _fitted_text(line, scale, tile_px)
        base = pad + bar_px + tile_px + pad + number * line_px + round(line_px * 0.72)
        cv2.putText(tile, text, (pad, base), font, scale, _SHEET_TEXT, 1, cv2.LINE_AA)
    return tile


def _fitted_text(text: str, scale: float, width_px: int) -> str:
    def fits(candidate: str) -> bool:
        return bool(cv2.getTextSize(candidate, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] <= width_px)

    if fits(text):
        return text
    kept = text
    while kept and not fits(kept + "..."):
        kept = kept[:-1]
    return kept + "..."
