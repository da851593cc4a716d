"""Pictures of parts and surfaces with marked defects, for comparing backbones: not the ones any was taught on.

Drawn by other rules than `export.torch.procedural`, on purpose. Each maker gives one picture and its truth
from an index, so that the sets are the same on every machine.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.simulation.names import PRODUCTS, DefectKind
from edge_daemon.simulation.render import Scene

SIDE_PX = 512
MODEL_PX = 256

Picture = tuple[NDArray[np.float32], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """train, test: (H, W, 3) uint8 RGB at model size; masks: (H, W) bool, nothing marked in a good picture."""

    name: str
    train: list[NDArray[np.uint8]]
    test: list[NDArray[np.uint8]]
    masks: list[NDArray[np.bool_]]
    defective: list[bool]


def made_sets(names: list[str], train: int, test: int, draw: int = 0) -> list[LabelledSet]:
    """The named sets (see SETS), `train` good pictures to learn from, `test` good and `test` defective ones.
    Another `draw` gives other pictures by the same rules."""
    return [
        _simulated(name, train, test, draw) if name in PRODUCTS else _drawn(name, train, test, draw) for name in names
    ]


def _simulated(product: str, train: int, test: int, draw: int) -> LabelledSet:
    scene, kinds = Scene(product, (SIDE_PX, SIDE_PX)), tuple(DefectKind)
    good = [_small(scene.part(11 + 2 * draw, i).pixels) for i in range(train)]
    parts = [scene.part(12 + 2 * draw, i, kinds[i % len(kinds)] if i >= test else None) for i in range(2 * test)]
    test_pictures, masks = [_small(p.pixels) for p in parts], [_small_mask(p.mask) for p in parts]
    return LabelledSet(product, good, test_pictures, masks, [p.defect is not None for p in parts])


def _drawn(name: str, train: int, test: int, draw: int) -> LabelledSet:
    def one(index: int, defective: bool) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        rng = np.random.default_rng([zlib.crc32(name.encode()), index + 1_000_000 * draw, defective])
        grey, mask = DRAWN[name](rng, defective)
        noisy = grey + rng.normal(0, 0.012, grey.shape)
        pixels = np.rint(np.clip(noisy * rng.uniform(0.97, 1.03), 0, 1) * 255).astype(np.uint8)
        return _small(np.repeat(pixels[..., None], 3, axis=2)), _small_mask(mask > 127)

    good = [one(i, False)[0] for i in range(train)]
    tested = [one(100_000 + i, i >= test) for i in range(2 * test)]
    return LabelledSet(name, good, [p for p, _ in tested], [m for _, m in tested], [i >= test for i in range(2 * test)])


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(pixels, (MODEL_PX, MODEL_PX), interpolation=cv2.INTER_AREA), np.uint8)


def _small_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(cv2.resize(mask.astype(np.float32), (MODEL_PX, MODEL_PX), interpolation=cv2.INTER_AREA) > 0.3)


def _noise(draw: np.random.Generator, sigma_x: float, sigma_y: float | None = None) -> NDArray[np.float32]:
    field = cv2.GaussianBlur(
        draw.standard_normal((SIDE_PX, SIDE_PX), dtype=np.float32), (0, 0), sigma_x, sigmaY=sigma_y or sigma_x
    )
    return np.asarray(field / field.std(), np.float32)


def _blank() -> NDArray[np.uint8]:
    return np.zeros((SIDE_PX, SIDE_PX), np.uint8)


def _stroke(draw: np.random.Generator, at: tuple[float, float], length: float, width: int) -> NDArray[np.uint8]:
    turn, layer = draw.uniform(0, 2 * math.pi), _blank()
    t = np.linspace(-0.5, 0.5, 7)
    wiggle = np.cumsum(draw.normal(0, 0.03, 7)) * length
    x = at[0] + t * length * math.cos(turn) - wiggle * math.sin(turn)
    y = at[1] + t * length * math.sin(turn) + wiggle * math.cos(turn)
    cv2.polylines(layer, [np.round(np.stack([x, y], 1)).astype(np.int32)], False, 255, width, cv2.LINE_AA)
    return layer


def _paint(grey: NDArray[np.float32], layer: NDArray[np.uint8], tone: float, opacity: float) -> NDArray[np.float32]:
    cover = cv2.GaussianBlur(layer, (0, 0), 0.8).astype(np.float32) / 255 * opacity
    return np.asarray(grey + (tone - grey) * cover, np.float32)


def _screw(draw: np.random.Generator, defective: bool) -> Picture:
    """A wood screw lying anyhow on a light table; thread flattened, tip cut, scratched head or neck."""
    line = np.arange(SIDE_PX, dtype=np.float32) - SIDE_PX / 2
    x, y = np.meshgrid(line, line)
    u, v = x + 170, y  # along the screw from its head, across it
    kind = int(draw.integers(3)) if defective else -1
    mask = _blank()
    radius = np.where(u < 26, 34 - 0.5 * u, np.where(u < 90, 15, 17 - 0.012 * (u - 90)))
    radius = np.where(u > 310, radius * np.clip((345 - u) / 35, 0, 1), radius)
    thread = (u > 90) & (u < 320)
    pitch = 4.0 * np.cos(2 * np.pi * (u + 0.35 * v) / 13)
    if kind == 0:
        begin = draw.uniform(110, 270)
        worn = (u > begin) & (u < begin + draw.uniform(16, 34)) & (v > -4)
        pitch = np.where(worn, -2.0, pitch)
        mask[worn & (np.abs(v) < 23)] = 255
    radius = np.where(thread, radius + pitch, radius)
    if kind == 1:
        cut = 345 - draw.uniform(14, 32)
        mask[(u > cut) & (u < 345) & (np.abs(v) < 14)] = 255
        radius = np.where(u > cut, 0, radius)
    inside = np.clip(radius - np.abs(v), 0, 1) * (u > 0)
    round_light = np.sqrt(np.clip(1 - (v / np.maximum(radius, 1)) ** 2, 0, 1))
    slope = np.where(thread, 0.22 * np.sin(2 * np.pi * (u + 0.35 * v) / 13), 0)
    if kind == 0:
        slope = np.where(mask > 0, 0, slope)
    tone = 0.12 + 0.42 * round_light + slope - 0.15 * v / 34
    if kind == 2:
        scratch = _stroke(draw, (SIDE_PX / 2 - 170 + draw.uniform(30, 85), SIDE_PX / 2 + draw.uniform(-9, 9)), 26, 3)
        mask = np.where(inside > 0.5, scratch, 0).astype(np.uint8)
        tone = np.where(mask > 127, 0.9, tone)
    turn = cv2.getRotationMatrix2D((SIDE_PX / 2, SIDE_PX / 2), draw.uniform(0, 360), draw.uniform(0.97, 1.0))
    turn[:, 2] += draw.uniform(-22, 22, 2)
    cover = cv2.warpAffine(inside.astype(np.float32), turn, (SIDE_PX, SIDE_PX))
    part = cv2.warpAffine(tone.astype(np.float32), turn, (SIDE_PX, SIDE_PX))
    ground = 0.78 + 0.012 * _noise(draw, 2) - 0.1 * cv2.GaussianBlur(cover, (0, 0), 9)
    return np.asarray(ground + (part - ground) * cover, np.float32), cv2.warpAffine(mask, turn, (SIDE_PX, SIDE_PX))


def _casting(draw: np.random.Generator, defective: bool) -> Picture:
    """A cast pump cover from above: rings, ribs, bolt lugs, rough skin; pores, a crack, a bruised rim."""
    line = np.arange(SIDE_PX, dtype=np.float32) - SIDE_PX / 2
    x, y = np.meshgrid(line, line)
    turn = draw.uniform(-0.06, 0.06)
    r, angle = np.hypot(x - draw.uniform(-4, 4), y - draw.uniform(-4, 4)), np.arctan2(y, x) + turn
    height = 14 * np.clip((215 - r) / 10, 0, 1) + 10 * np.clip((150 - np.abs(r - 70)) / 90, 0, 1)
    height = height + 9 * np.clip((92 - r) / 8, 0, 1) - 22 * np.clip((44 - r) / 6, 0, 1)
    ribs = np.clip(np.cos(6 * angle) * 6 - 5, 0, 1) * ((r > 95) & (r < 185))
    height = cv2.GaussianBlur(
        (height + 8 * ribs + 0.55 * _noise(draw, 1.6) + 0.5 * _noise(draw, 5)).astype(np.float32), (0, 0), 1
    )
    light = 0.6 * cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=1 / 8) + 0.8 * cv2.Sobel(
        height, cv2.CV_32F, 0, 1, scale=1 / 8
    )
    grey = np.where(r < 216, 0.52 + 0.28 * np.tanh(light), 0.16).astype(np.float32)
    mask = _blank()
    if defective:
        reach, way = draw.uniform(55, 195), draw.uniform(0, 2 * math.pi)
        at = (SIDE_PX / 2 + reach * math.cos(way), SIDE_PX / 2 + reach * math.sin(way))
        kind = int(draw.integers(3))
        if kind == 0:
            for _ in range(int(draw.integers(1, 5))):
                spot = (round(at[0] + draw.normal(0, 9)), round(at[1] + draw.normal(0, 9)))
                cv2.circle(mask, spot, int(draw.integers(3, 7)), 255, -1, cv2.LINE_AA)
            grey = _paint(grey, mask, 0.14, 0.85)
        elif kind == 1:
            mask = _stroke(draw, at, draw.uniform(30, 60), 2)
            grey = _paint(grey, mask, 0.12, 0.8)
            mask = cv2.dilate(mask, np.ones((5, 5), np.uint8))
        else:
            rim = (round(SIDE_PX / 2 + 212 * math.cos(way)), round(SIDE_PX / 2 + 212 * math.sin(way)))
            cv2.ellipse(mask, rim, (14, 9), draw.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
            grey = _paint(grey, mask, 0.3, 0.8)
    return grey, mask


def _leather(draw: np.random.Generator, defective: bool) -> Picture:
    """Grained leather; a cut, a fold, a glue spot."""
    ridged = np.abs(_noise(draw, 4)) + 0.7 * np.abs(_noise(draw, 2.2))
    grey = 0.30 + 0.09 * np.tanh(ridged - 0.8) + 0.012 * _noise(draw, 40) + 0.02 * _noise(draw, 0.8)
    return _surface_flaw(draw, grey.astype(np.float32), defective, bright=0.5)


def _wood(draw: np.random.Generator, defective: bool) -> Picture:
    """Planed board with grain and pores; a scratch, a hole, a stain."""
    rings = np.sin(0.09 * np.arange(SIDE_PX)[None, :] + 2.2 * _noise(draw, 25, 160) + draw.uniform(0, 6))
    grey = 0.5 + 0.07 * rings + 0.03 * _noise(draw, 0.7, 14) + 0.02 * _noise(draw, 1, 40)
    return _surface_flaw(draw, grey.astype(np.float32), defective, bright=0.75)


def _grid(draw: np.random.Generator, defective: bool) -> Picture:
    """Fine wire mesh on a dark ground; a broken wire, a bent one, a thread that lies on it."""
    line = np.arange(SIDE_PX, dtype=np.float32)
    x, y = np.meshgrid(line + draw.uniform(0, 24), line + draw.uniform(0, 24))
    mask = _blank()
    if defective:
        at = tuple(int(v) for v in draw.integers(60, SIDE_PX - 60, 2))
        kind = int(draw.integers(3))
        near = np.exp(-((line - at[0])[None, :] ** 2 + (line - at[1])[:, None] ** 2) / (2 * 13**2))
        if kind == 0:
            x = x + np.asarray(8 * near, np.float32)
            mask[near > 0.4] = 255
    else:
        kind, at = -1, (0, 0)
    wire = np.maximum(np.cos(2 * np.pi * (x + y) / 24), np.cos(2 * np.pi * (x - y) / 24))
    grey = 0.18 + 0.5 * np.clip((wire - 0.75) * 4, 0, 1) + 0.02 * _noise(draw, 1)
    if kind == 1:
        cv2.ellipse(mask, at, (11, 7), draw.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        grey = _paint(grey.astype(np.float32), mask, 0.18, 0.95)
    if kind == 2:
        mask = _stroke(draw, (float(at[0]), float(at[1])), draw.uniform(40, 90), 3)
        grey = _paint(grey.astype(np.float32), mask, 0.6, 0.9)
        mask = cv2.dilate(mask, np.ones((5, 5), np.uint8))
    return grey.astype(np.float32), mask


def _surface_flaw(draw: np.random.Generator, grey: NDArray[np.float32], defective: bool, bright: float) -> Picture:
    mask = _blank()
    if not defective:
        return grey, mask
    at = tuple(float(v) for v in draw.uniform(60, SIDE_PX - 60, 2))
    kind = int(draw.integers(3))
    if kind == 0:
        mask = _stroke(draw, (at[0], at[1]), draw.uniform(30, 80), 3)
        return _paint(grey, mask, bright, 0.5), cv2.dilate(mask, np.ones((5, 5), np.uint8))
    axes = (int(draw.integers(5, 9)),) * 2 if kind == 1 else tuple(int(v) for v in draw.integers(14, 34, 2))
    cv2.ellipse(mask, (round(at[0]), round(at[1])), axes, draw.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
    if kind == 1:
        return _paint(grey, mask, 0.12, 0.6), mask
    return _paint(
        grey, mask, float(cv2.blur(grey, (31, 31))[round(at[1]), round(at[0])]), 0.6
    ), mask  # grain rubbed off


DRAWN: dict[str, Callable[[np.random.Generator, bool], Picture]] = {
    "screw": _screw,
    "casting": _casting,
    "leather": _leather,
    "wood": _wood,
    "grid": _grid,
}
SETS = (*DRAWN, *PRODUCTS)
