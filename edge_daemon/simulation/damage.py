"""Paints one defect on a part, in the part's own coordinates, before it is turned and lit."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.simulation.blanks import Blank, Bytes, Floats
from edge_daemon.simulation.names import DefectKind

# Opacity from which a pixel counts as defective in the truth mask.
_VISIBLE = 0.25
# A defect is one when its mask has so many pixels and they changed by so many grey levels.
_SMALLEST_MASK_PX = 4
_CONTRAST = 32.0
_ATTEMPTS = 16


@dataclass(slots=True)
class Canvas:
    """A part while it is being spoiled: pixels (S, S, 3), alpha (S, S) and mask (S, S), all uint8 and writable."""

    pixels: Bytes
    alpha: Bytes
    mask: Bytes


def damage(canvas: Canvas, blank: Blank, kind: DefectKind, draw: np.random.Generator) -> None:
    """Paint `kind` somewhere on the part; `draw` decides where, how large and how strong.

    A dark stain on a black component is no defect that anyone could see, and would count as an escape: what is
    not visible is drawn again elsewhere. After some attempts the most visible one stays.
    """
    best, best_contrast = canvas, -1.0
    for _ in range(_ATTEMPTS):
        trial = Canvas(canvas.pixels.copy(), canvas.alpha.copy(), canvas.mask.copy())
        _paint(trial, blank, kind, draw)
        contrast = _contrast(canvas, trial)
        if contrast > best_contrast:
            best, best_contrast = trial, contrast
        if contrast >= _CONTRAST:
            break
    canvas.pixels, canvas.alpha, canvas.mask = best.pixels, best.alpha, best.mask


def _contrast(before: Canvas, after: Canvas) -> float:
    """Mean change of the strongest channel over the mask, in grey levels; 0 for next to no mask."""
    x, y, w, h = cv2.boundingRect(after.mask)
    where = slice(y, y + h), slice(x, x + w)
    changed = after.mask[where] > 0
    if np.count_nonzero(changed) < _SMALLEST_MASK_PX:
        return 0.0
    colour = cv2.absdiff(before.pixels[where], after.pixels[where]).max(axis=2)
    return float(np.maximum(colour, cv2.absdiff(before.alpha[where], after.alpha[where]))[changed].mean())


def _paint(canvas: Canvas, blank: Blank, kind: DefectKind, draw: np.random.Generator) -> None:
    match kind:
        case DefectKind.SCRATCH:
            _scratch(canvas, blank, draw)
        case DefectKind.STAIN:
            _stain(canvas, blank, draw)
        case DefectKind.CHIP:
            _chip(canvas, blank, draw) if len(blank.edge) else _dent(canvas, blank, draw)
        case DefectKind.MISSING:
            _missing(canvas, blank, draw)
        case DefectKind.PARTICLE:
            _particle(canvas, blank, draw)
        case DefectKind.SMEAR:
            _smear(canvas, blank, draw)


def _spot(blank: Blank, draw: np.random.Generator, reach_px: float) -> tuple[int, int]:
    """A place on the body, with the square of `reach_px` around it inside the canvas."""
    side, margin = blank.body.shape[0], int(reach_px) + 2
    for _ in range(200):
        x, y = (int(v) for v in draw.integers(margin, side - margin, 2))
        if blank.body[y, x]:
            return x, y
    ys, xs = np.nonzero(blank.body[margin:-margin, margin:-margin])
    pick = int(draw.integers(len(xs)))
    return int(xs[pick]) + margin, int(ys[pick]) + margin


def _window(x: int, y: int, reach: int, side: int) -> tuple[slice, slice]:
    return slice(max(0, y - reach), min(side, y + reach)), slice(max(0, x - reach), min(side, x + reach))


def _lay(canvas: Canvas, where: tuple[slice, slice], colour: Floats, opacity: Floats) -> None:
    """Blend a colour, (3,) or (h, w, 3) in 0…255, over a window; what is visibly changed enters the mask."""
    opacity = opacity * (canvas.alpha[where] > 200)
    below = canvas.pixels[where].astype(np.float32)
    canvas.pixels[where] = np.clip(below + (colour - below) * opacity[..., None] + 0.5, 0, 255).astype(np.uint8)
    canvas.mask[where] = np.maximum(canvas.mask[where], np.where(opacity > _VISIBLE, 255, 0).astype(np.uint8))


def _strokes(reach: int, path: NDArray[np.float64], width_px: float) -> Floats:
    """Opacity of a polyline around the middle of a window of 2·reach pixels."""
    layer = np.zeros((2 * reach, 2 * reach), np.uint8)
    points = np.round((path + reach) * 16).astype(np.int32)
    cv2.polylines(layer, [points], False, 255, max(1, round(width_px)), cv2.LINE_AA, 4)
    return np.asarray(layer / 255, np.float32)


def _blob(reach: int, radius_px: float, roughness: float, draw: np.random.Generator, stretch: float = 1.0) -> Floats:
    """Distance to an irregular closed outline, in pixels, negative inside; (2·reach, 2·reach)."""
    line = np.arange(-reach, reach, dtype=np.float32) + 0.5
    turn = draw.uniform(0, np.pi)
    x = line * np.cos(turn) + line[:, None] * np.sin(turn)
    y = (line[:, None] * np.cos(turn) - line * np.sin(turn)) * stretch
    angle, wave = np.arctan2(y, x), np.zeros((2 * reach, 2 * reach), np.float32)
    for order in (2, 3, 5, 7):
        wave += np.float32(draw.normal() / order) * np.cos(order * angle + draw.uniform(0, 2 * np.pi))
    outline = radius_px * np.clip(1 + roughness * wave, 0.45, 1.3)
    return np.asarray(np.hypot(x, y) - outline, np.float32)


def _crop(layer: Floats, x: int, y: int, reach: int, side: int) -> Floats:
    """The part of a (2·reach)² window that lies inside the canvas."""
    top, left = max(0, reach - y), max(0, reach - x)
    return layer[top : 2 * reach - max(0, y + reach - side), left : 2 * reach - max(0, x + reach - side)]


def _scratch(canvas: Canvas, blank: Blank, draw: np.random.Generator) -> None:
    side, length = blank.body.shape[0], draw.uniform(0.08, 0.13) * blank.extent_px
    reach = int(length / 2) + 4
    x, y = _spot(blank, draw, reach)
    turn, bow = draw.uniform(0, np.pi), draw.normal() * 0.06 * length
    t = np.linspace(-0.5, 0.5, 9)
    along, aside = t * length, bow * (1 - 4 * t * t) + draw.normal(size=9) * 0.0012 * side
    path = np.stack([along * np.cos(turn) - aside * np.sin(turn), along * np.sin(turn) + aside * np.cos(turn)], 1)
    width = max(2.0, draw.uniform(0.0030, 0.0055) * side)
    where = _window(x, y, reach, side)
    groove = cv2.GaussianBlur(_strokes(reach, path + 0.6 * width, width), (0, 0), 0.7)
    _lay(canvas, where, np.asarray((18, 18, 20), np.float32), np.asarray(0.7 * groove, np.float32))
    _lay(canvas, where, np.asarray(blank.scratched, np.float32), 0.9 * _strokes(reach, path, width))


def _stain(canvas: Canvas, blank: Blank, draw: np.random.Generator) -> None:
    """A dried splash: brownish, darker at its rim."""
    side, radius = blank.body.shape[0], draw.uniform(0.030, 0.055) * blank.extent_px
    reach = int(1.35 * radius) + 3
    x, y = _spot(blank, draw, reach)
    distance, where = _blob(reach, radius, 0.30, draw), _window(x, y, reach, side)
    inside = np.clip(0.5 - distance / 2.5, 0, 1)
    rim = np.exp(-(((distance + 2.0) / 3.0) ** 2))
    strength = draw.uniform(0.50, 0.70)
    opacity = np.asarray(np.clip(inside * (strength + 0.25 * rim), 0, 0.95), np.float32)
    tone = np.asarray((62, 44, 22) if draw.random() < 0.6 else (40, 40, 44), np.float32)
    _lay(canvas, where, tone, opacity)


def _chip(canvas: Canvas, blank: Blank, draw: np.random.Generator) -> None:
    """A piece broken off the outline: what lies below shows, with a rough bright fracture at its rim."""
    side, radius = blank.body.shape[0], draw.uniform(0.032, 0.055) * blank.extent_px
    reach = int(1.4 * radius) + 4
    x, y = (int(v) for v in blank.edge[int(draw.integers(len(blank.edge)))])
    where = _window(x, y, reach, side)
    distance = _crop(_blob(reach, radius, 0.35, draw), x, y, reach, side)
    solid = canvas.alpha[where] > 200
    facets = cv2.GaussianBlur(draw.normal(size=distance.shape).astype(np.float32), (0, 0), 1.2)
    fracture = np.exp(-(((distance + 0.16 * radius) / (0.16 * radius + 1)) ** 2))
    tone = np.asarray(blank.scratched, np.float32) * (0.72 + 0.6 * facets)[..., None]
    _lay(canvas, where, np.asarray(tone, np.float32), np.asarray(0.85 * fracture, np.float32))
    gone = np.clip(0.5 - (distance + 0.26 * radius), 0, 1)
    alpha = canvas.alpha[where].astype(np.float32)
    canvas.alpha[where] = np.where(solid, alpha * (1 - gone) + 120 * gone, alpha).astype(np.uint8)
    canvas.pixels[where] = (canvas.pixels[where] * (1 - np.where(solid, gone, 0))[..., None]).astype(np.uint8)
    canvas.mask[where] = np.maximum(canvas.mask[where], np.where(solid & (gone > 0.5), 255, 0).astype(np.uint8))


def _dent(canvas: Canvas, blank: Blank, draw: np.random.Generator) -> None:
    """A dent in a surface without outline: one flank dark, the other bright."""
    side, radius = blank.body.shape[0], draw.uniform(0.030, 0.055) * blank.extent_px
    reach = int(1.4 * radius) + 4
    x, y = _spot(blank, draw, reach)
    distance, where = _blob(reach, radius, 0.15, draw), _window(x, y, reach, side)
    inside = np.asarray(np.clip(0.5 - distance / (0.3 * radius + 1), 0, 1), np.float32)
    line = (np.arange(-reach, reach, dtype=np.float32) + 0.5) / radius
    slope = np.clip(0.6 * line + 0.8 * line[:, None], -1, 1)
    tone = (98 + 92 * np.tanh(3 * slope))[..., None] * np.ones(3)
    _lay(canvas, where, np.asarray(tone, np.float32), np.asarray(inside * (0.30 + 0.5 * np.abs(slope)), np.float32))


def _missing(canvas: Canvas, blank: Blank, draw: np.random.Generator) -> None:
    box = blank.features[int(draw.integers(len(blank.features)))]
    where = slice(box.y, box.y + box.h), slice(box.x, box.x + box.w)
    change = np.abs(canvas.pixels[where].astype(np.int16) - blank.bare[where]).max(axis=2) > 24
    canvas.pixels[where] = blank.bare[where]
    closed = cv2.morphologyEx(change.astype(np.uint8) * 255, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    canvas.mask[where] = np.maximum(canvas.mask[where], closed)


def _particle(canvas: Canvas, blank: Blank, draw: np.random.Generator) -> None:
    """Swarf (a curled bright shaving with its shadow), a fibre, or a crumb."""
    side, length = blank.body.shape[0], draw.uniform(0.05, 0.09) * blank.extent_px
    reach = int(length) + 4
    x, y = _spot(blank, draw, reach)
    where = _window(x, y, reach, side)
    drop, dark = 0.006 * side, np.asarray((10, 10, 12), np.float32)
    if draw.random() < 0.5:
        curl, start = draw.uniform(2.5, 5.5), draw.uniform(0, 2 * np.pi)
        t = np.linspace(0, 1, 24)
        radius = length * 0.5 * (0.45 + 0.55 * t)
        path = np.stack([radius * np.cos(start + curl * t), radius * np.sin(start + curl * t)], 1)
        width = draw.uniform(0.006, 0.009) * side
        _lay(canvas, where, dark, 0.75 * _strokes(reach, path + drop, width * 1.3))
        _lay(canvas, where, np.asarray((226, 178, 96), np.float32), _strokes(reach, path, width))
        _lay(canvas, where, np.asarray((255, 246, 224), np.float32), 0.8 * _strokes(reach, path - 0.5, width * 0.4))
        return
    distance = _blob(reach, 0.42 * length, 0.35, draw, draw.uniform(1.0, 1.8))
    shadow = np.roll(np.clip(0.5 - distance / 3, 0, 1), (round(drop), round(0.7 * drop)), (0, 1))
    _lay(canvas, where, dark, np.asarray(0.7 * shadow, np.float32))
    tone = np.asarray((170, 62, 40) if draw.random() < 0.5 else (214, 200, 170), np.float32)
    light = 0.75 + 0.5 * cv2.GaussianBlur(draw.normal(size=distance.shape).astype(np.float32), (0, 0), 1.5)
    _lay(canvas, where, np.asarray(tone * light[..., None], np.float32), np.asarray(np.clip(0.5 - distance, 0, 1)))


def _smear(canvas: Canvas, blank: Blank, draw: np.random.Generator) -> None:
    """Marker or grease wiped across: streaks along the stroke, soft at both ends."""
    side, length = blank.body.shape[0], draw.uniform(0.10, 0.145) * blank.extent_px
    reach = int(0.5 * length) + 3
    x, y = _spot(blank, draw, reach)
    turn, line = draw.uniform(0, np.pi), np.arange(-reach, reach, dtype=np.float32) + 0.5
    along = line * np.cos(turn) + line[:, None] * np.sin(turn)
    across = line[:, None] * np.cos(turn) - line * np.sin(turn)
    half, breadth = 0.46 * length, max(1.5, draw.uniform(0.16, 0.26) * length)
    bristles = cv2.GaussianBlur(draw.random((1, 256)).astype(np.float32), (0, 0), 1.5)[0]
    bristles = (bristles - bristles.min()) / np.ptp(bristles)
    streak = bristles[np.clip(across * 2 + 128, 0, 255).astype(np.int32)]
    ends = np.clip((half - np.abs(along) + 0.12 * length * (streak - 0.5)) / (0.1 * length), 0, 1)
    body = np.clip(breadth - np.abs(across) + 0.5, 0, 1)
    tones = ((196, 36, 52), (36, 66, 190), (24, 24, 26), (232, 196, 40))
    tone = np.asarray(tones[int(draw.integers(len(tones)))], np.float32)
    opacity = ends * body * (0.42 + 0.42 * streak)
    _lay(canvas, _window(x, y, reach, side), tone, np.asarray(opacity, np.float32))
