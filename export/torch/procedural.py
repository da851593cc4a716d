"""Pictures made by rule, for what photographs do not show: surfaces, gratings, castings, small turned parts.

A network that learned from photographs alone has seen few plain grounds, fine regular textures and parts
lit from above; that is what a line shows. Every picture is a function of the random numbers handed in, so
a resumed distillation sees what it would have seen. Nothing here imitates a public data set.
"""

import math
import random
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.simulation.names import PRODUCTS, DefectKind
from edge_daemon.simulation.render import Scene

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]
Draw = np.random.Generator

# Rendered a little larger than the usual training sizes: the view that is cut from it shrinks or enlarges it.
SIDE_PX = 288
_GREY_SHARE = 0.6  # of the pictures made here; line cameras are mostly monochrome
_FLAW_SHARE = 0.5  # of the pictures that get a flaw: what a defect does to the features must be learned, too

# Raised whenever the same random numbers give other pictures than before: a cache and a run name it.
RULES_EDITION = 2


class Procedural:
    """Makes pictures of many kinds. Immutable after construction, so that threads may share it.

    The simulator's scenes cost about half a second and 10 MB, once.
    """

    def __init__(self, side_px: int = SIDE_PX) -> None:
        self.side_px = side_px
        self._scenes = tuple(Scene(product, (side_px, side_px)) for product in PRODUCTS)
        self._kinds: tuple[tuple[float, Callable[[Draw, int], Floats]], ...] = (
            (3.0, spectrum),
            (2.5, grating),
            (2.5, woven),
            (2.0, brushed),
            (2.5, cells),
            (2.0, speckle),
            (4.5, small_parts),
            (3.0, casting),
        )
        self._simulated_weight = 1.5

    def picture(self, rng: random.Random) -> Picture:
        """One picture, (side, side, 3) uint8 RGB, from the random numbers of `rng` alone."""
        draw = np.random.default_rng(rng.getrandbits(64))
        weights = np.array([self._simulated_weight, *(weight for weight, _ in self._kinds)])
        kind = int(draw.choice(len(weights), p=weights / weights.sum()))
        if kind == 0:
            return self._simulated(draw)
        grey = self._kinds[kind - 1][1](draw, self.side_px)
        if draw.random() < _FLAW_SHARE:
            grey = flawed(grey, draw)
        return tinted(taken(grey, draw), draw)

    def _simulated(self, draw: Draw) -> Picture:
        """A part of the simulator, good or spoiled."""
        scene = self._scenes[int(draw.integers(len(self._scenes)))]
        kinds = tuple(DefectKind)
        defect = kinds[int(draw.integers(len(kinds)))] if draw.random() < _FLAW_SHARE else None
        pixels = scene.part(int(draw.integers(2**31)), 0, defect).pixels
        if draw.random() < _GREY_SHARE:
            return np.asarray(cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
        return pixels


# --- surfaces: (draw, side) -> (side, side) float32, about 0 to 1 --------------------------------


def spectrum(draw: Draw, side: int) -> Floats:
    """Noise whose power falls as 1/f^b, b from white (0) to clouds (4), stretched along one direction, its
    histogram bent: smooth castings, paper, stone, foam."""
    fall, stretch, turn = draw.uniform(0, 2.0), math.exp(draw.uniform(0, 1.5)), draw.uniform(0, math.pi)
    if draw.random() < 0.25:
        stretch *= math.exp(draw.uniform(0, 1.5))  # fibres: wood, rolled foil, drawn film
    fx, fy = np.meshgrid(np.fft.rfftfreq(side), np.fft.fftfreq(side))
    along = fx * math.cos(turn) + fy * math.sin(turn)
    across = (fy * math.cos(turn) - fx * math.sin(turn)) * stretch
    lowest = math.exp(draw.uniform(math.log(1 / side), math.log(0.1)))
    amplitude = (along**2 + across**2 + lowest**2) ** (-fall / 2)
    phase = draw.standard_normal(fx.shape) + 1j * draw.standard_normal(fx.shape)
    field = _standard(np.asarray(np.fft.irfft2(phase * amplitude, (side, side)), np.float32))
    bend = draw.random()
    if bend < 0.25:
        field = np.asarray(np.abs(field) - 0.8, np.float32)  # veins
    elif bend < 0.45:
        field = np.asarray(np.tanh(field * np.float32(draw.uniform(1, 6))), np.float32)  # patches with edges
    return _toned(field, draw)


def grating(draw: Draw, side: int) -> Floats:
    """One or two waves, round or square, slightly bent: mesh, fins, threads, ribbed mats, woven cloth."""
    x, y = _axes(side)
    warp = _smooth(draw, side, side / 6) * np.float32(draw.uniform(0, 0.01))
    first, field = draw.uniform(0, math.pi), np.zeros((side, side), np.float32)
    for order in range(int(draw.integers(1, 3))):
        turn = first + order * math.pi / 2 * float(draw.choice([1.0, 1.0, draw.uniform(0.3, 1)]))
        period_px = math.exp(draw.uniform(math.log(4), math.log(48)))
        at = (x * math.cos(turn) + y * math.sin(turn) + warp) * (2 * math.pi * side / period_px)
        wave = np.sin(at + draw.uniform(0, 2 * math.pi))
        if draw.random() < 0.5:
            wave = np.tanh(wave * draw.uniform(2, 8))
        field = np.minimum(field, wave) if order and draw.random() < 0.5 else field + wave
    field = _standard(np.asarray(field, np.float32))
    return _toned(field + np.float32(draw.uniform(0, 0.5)) * _smooth(draw, side, draw.uniform(0, 2)), draw)


def woven(draw: Draw, side: int) -> Floats:
    """Threads that pass over and under each other, plain, twill or satin: cloth, carpet, filters, screens."""
    x, y = _axes(side)
    turn, bent = draw.uniform(0, 2 * math.pi), draw.uniform(0, 0.6)
    warp_px = math.exp(draw.uniform(math.log(3), math.log(22)))
    weft_px = warp_px * math.exp(draw.uniform(-0.6, 0.6))
    a = (x * math.cos(turn) + y * math.sin(turn)) * (side / warp_px) + bent * _smooth(draw, side, side / 12)
    b = (y * math.cos(turn) - x * math.sin(turn)) * (side / weft_px) + bent * _smooth(draw, side, side / 12)
    column, row = np.floor(a).astype(np.int64), np.floor(b).astype(np.int64)
    repeat, step = ((2, 1), (3, 1), (4, 1), (5, 2))[int(draw.integers(4))]
    over = (column + step * row) % repeat < draw.integers(1, repeat)
    across_a, across_b = np.sin(math.pi * (a - column)), np.sin(math.pi * (b - row))
    dip = draw.uniform(0.1, 0.9)  # of a thread towards where the other passes over it
    height = np.where(over, across_a * (1 - dip + dip * across_b), across_b * (1 - dip + dip * across_a))
    tones = draw.standard_normal((2, 1024), dtype=np.float32) * np.float32(draw.uniform(0, 0.5))
    tone = np.where(over, tones[0, column % 1024] + np.float32(draw.uniform(-1, 1)), tones[1, row % 1024])
    fibres = np.float32(draw.uniform(0, 0.8)) * _smooth(draw, side, draw.uniform(0.3, 1.5))
    field = _standard(np.asarray(height, np.float32)) + fibres
    if draw.random() < 0.3:
        return _relief(np.asarray(field, np.float32), draw)
    return _toned(_standard(np.asarray(field + tone, np.float32)), draw)


def brushed(draw: Draw, side: int) -> Floats:
    """Streaks along a line or around a centre, with the soft sheen of metal: rolled sheet, turned faces."""
    length, width = math.exp(draw.uniform(math.log(6), math.log(80))), draw.uniform(0.3, 1.5)
    streaks = draw.standard_normal((2 * side, 2 * side), dtype=np.float32)
    streaks = _standard(np.asarray(cv2.GaussianBlur(streaks, (0, 0), length, sigmaY=width), np.float32))
    x, y = _axes(side)
    if draw.random() < 0.35:
        cx, cy = draw.uniform(-0.6, 0.6, 2)
        angle = (np.arctan2(y - cy, x - cx) / (2 * math.pi) + 0.5) * (2 * side - 1)
        field = cv2.remap(
            streaks,
            np.asarray(angle, np.float32),
            np.asarray(np.hypot(x - cx, y - cy) * side, np.float32) % (2 * side - 1),
            cv2.INTER_LINEAR,
        )
    else:
        turn = np.asarray(cv2.getRotationMatrix2D((side, side), draw.uniform(0, 360), 1.0), np.float64)
        turn[:, 2] -= side / 2
        field = cv2.warpAffine(streaks, turn, (side, side))
    sheen = _smooth(draw, side, side / 4) * np.float32(draw.uniform(0, 0.8))
    return _toned(np.asarray(field, np.float32) + sheen, draw)


def cells(draw: Draw, side: int) -> Floats:
    """Cells around scattered seeds, with joints or bulging: leather, tiles, gravel, hammered paint."""
    count = int(math.exp(draw.uniform(math.log(20), math.log(2500))))
    seeds = np.full((side, side), 255, np.uint8)
    where = draw.integers(0, side, (2, count))
    seeds[where[0], where[1]] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    reach = math.sqrt(side * side / count)
    bulge = np.asarray(1 - distance / reach, np.float32)
    tones = draw.standard_normal(int(labels.max()) + 1, dtype=np.float32)[labels]
    borders = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    joints = cv2.GaussianBlur(borders.astype(np.float32), (0, 0), draw.uniform(0.5, 2.5))
    parts = draw.dirichlet((1, 1, 1)).astype(np.float32)
    field = parts[0] * _standard(bulge) + parts[1] * tones - parts[2] * _standard(np.asarray(joints, np.float32))
    if draw.random() < 0.5:
        return _relief(field, draw)
    return _toned(np.asarray(cv2.GaussianBlur(field, (0, 0), draw.uniform(0.3, 1.5)), np.float32), draw)


def speckle(draw: Draw, side: int) -> Floats:
    """Grains of several tones on a ground, or the shaded grain of a blasted or cast surface."""
    field = _smooth(draw, side, draw.uniform(0.5, 3)) * np.float32(0.3)
    for _ in range(int(draw.integers(1, 4))):
        grain = _smooth(draw, side, math.exp(draw.uniform(math.log(0.7), math.log(8))))
        field = np.where(grain > draw.uniform(0.3, 2.0), np.float32(draw.normal(0, 1.5)), field)
    field = np.asarray(cv2.GaussianBlur(field, (0, 0), draw.uniform(0.4, 1.2)), np.float32)
    return _relief(field, draw) if draw.random() < 0.4 else _toned(field, draw)


def casting(draw: Draw, side: int) -> Floats:
    """A cast or forged body from above: bosses, ribs, pockets and bores with fillets, a rough skin, perhaps a
    machined face; it fills the picture or lies on a plain ground."""
    x, y = _axes(side)
    turn, reach = draw.uniform(0, 2 * math.pi), draw.uniform(0.6, 1.8)
    u = np.asarray((x * math.cos(turn) + y * math.sin(turn)) * (2 / reach), np.float32)
    v = np.asarray((y * math.cos(turn) - x * math.sin(turn)) * (2 / reach), np.float32)
    power, wide = float(draw.choice([2.0, 4.0, 10.0])), draw.uniform(0.5, 1)
    outline = (np.abs(u) ** power + np.abs(v / wide) ** power) ** (1 / power)
    body = np.asarray(_ramp(0.95 - outline, draw.uniform(0.02, 0.1)), np.float32)
    height, machined = body * np.float32(draw.uniform(0.05, 0.2)), np.zeros((side, side), np.bool_)
    for _ in range(int(draw.integers(2, 10))):
        feature = _cast_feature(draw, u, v)
        depth = draw.uniform(0.02, 0.15) * float(draw.choice([1.0, 1.0, -1.0]))
        height = height + feature * body * np.float32(depth)
        if draw.random() < 0.2:
            machined |= feature > 0.98
    fillet = draw.uniform(0.6, 3)
    height = np.asarray(cv2.GaussianBlur(height * np.float32(reach * side / 2), (0, 0), fillet), np.float32)
    skin = _smooth(draw, side, draw.uniform(0.5, 1.6)) * np.float32(draw.uniform(0.05, 0.6))
    skin += _smooth(draw, side, draw.uniform(2, 6)) * np.float32(draw.uniform(0, 0.8))
    tone = _lit(height, np.asarray(np.where(machined, 0.1, 1) * skin, np.float32), draw)
    if machined.any():
        face = draw.uniform(0, 0.2) + draw.uniform(0, 0.3) * brushed(draw, side)
        tone = np.asarray(tone + machined * face, np.float32)
    hollow = np.clip(cv2.GaussianBlur(height, (0, 0), side / 36) - height, 0, 8) / 8
    tone = np.asarray(tone * (1 - draw.uniform(0, 0.6) * hollow), np.float32)
    ground = draw.uniform(0.05, 0.9) + 0.03 * _smooth(draw, side, draw.uniform(0.5, 20))
    return np.asarray(np.clip(ground + (tone - ground) * body, 0, 1), np.float32)


def _cast_feature(draw: Draw, u: Floats, v: Floats) -> Floats:
    """Where one feature of a casting stands, 0 to 1 with a draft: round, square with round corners, or a rib."""
    cx, cy = draw.uniform(-0.8, 0.8, 2)
    draft, kind = draw.uniform(0.02, 0.08), int(draw.integers(4))
    if kind == 0:
        return _ramp(draw.uniform(0.05, 0.4) - np.hypot(u - cx, v - cy), draft)
    if kind == 1:
        r = draw.uniform(0.1, 0.6)
        return _ramp(draw.uniform(0.02, 0.1) - np.abs(np.hypot(u - cx, v - cy) - r), draft)
    turn, w, h = draw.uniform(0, math.pi), *draw.uniform(0.08, 0.5, 2)
    a = np.abs((u - cx) * math.cos(turn) + (v - cy) * math.sin(turn))
    b = np.abs((v - cy) * math.cos(turn) - (u - cx) * math.sin(turn))
    if kind == 2:
        return _ramp(draw.uniform(0.02, 0.06) - b, draft) * _ramp(2 * w - a, draft)
    return _ramp(1 - ((a / w) ** 4 + (b / h) ** 4) ** 0.25, draft / min(w, h))


def _ramp(inside: Floats, width: float) -> Floats:
    """0 where `inside` is negative, 1 from `width` on."""
    return np.asarray(np.clip(inside / width, 0, 1), np.float32)


# --- small parts ---------------------------------------------------------------------------------


def small_parts(draw: Draw, side: int) -> Floats:
    """One to four small parts, turned anyhow on a plain ground: pins, washers, nuts, brackets, springs, wheels.

    Each is a height over the plane, lit from one side, with a rough skin and a shadow.
    """
    count = int(draw.choice([1, 1, 1, 2, 3, 4]))
    ground = np.float32(draw.uniform(0.05, 0.95)) + _smooth(draw, side, draw.uniform(0.4, 30)) * np.float32(
        0.06 * draw.random() ** 2
    )
    picture = np.asarray(ground, np.float32)
    for _ in range(count):
        extent = draw.uniform(0.25, 0.95) if count == 1 else draw.uniform(0.15, 0.45)
        picture = _placed(picture, _part_height(draw, side, extent), draw)
    return np.asarray(np.clip(picture, 0, 1), np.float32)


def _part_height(draw: Draw, side: int, extent: float) -> Floats:
    """Height of one part over the plane, (side, side) in pixels, 0 beside it; anywhere, turned anyhow."""
    x, y = _axes(side)
    room = max(0.0, 0.5 - extent / 2)
    x = np.asarray(x - draw.uniform(-room, room), np.float32)
    y = np.asarray(y - draw.uniform(-room, room), np.float32)
    turn = draw.uniform(0, 2 * math.pi)
    # -1 to 1 along the part
    u = np.asarray((x * math.cos(turn) + y * math.sin(turn)) * (2 / extent), np.float32)
    v = np.asarray((y * math.cos(turn) - x * math.sin(turn)) * (2 / extent), np.float32)
    makers = (_pin, _ring, _nut, _bracket, _wheel)
    height = makers[int(draw.integers(len(makers)))](draw, u, v)
    return np.asarray(np.clip(height, 0, None) * extent * side / 2, np.float32)


def _pin(draw: Draw, u: Floats, v: Floats) -> Floats:
    """A shaft, round, perhaps with a head and a thread."""
    radius = draw.uniform(0.06, 0.25)
    thread = (
        draw.uniform(0, 0.3) * np.sin(u * draw.uniform(15, 120) + v * draw.uniform(-8, 8)) if draw.random() < 0.7 else 0
    )
    start = draw.uniform(-0.9, 0.2)
    profile = radius * (1 + np.where(u > start, thread, 0) * 0.4)
    shaft = np.sqrt(np.clip(profile**2 - v**2, 0, None)) * (np.abs(u) < 0.95)
    head = radius * draw.uniform(1.0, 2.4)
    flange = np.sqrt(np.clip(head**2 - v**2, 0, None)) * (np.abs(u + 0.85) < draw.uniform(0.04, 0.14))
    return np.asarray(np.maximum(shaft, flange), np.float32)


def _ring(draw: Draw, u: Floats, v: Floats) -> Floats:
    """A washer or a seal, flat or round in section, perhaps open."""
    outer, inner = 0.9, draw.uniform(0.3, 0.75)
    r, middle, half = np.hypot(u, v), (outer + inner) / 2, (outer - inner) / 2
    section = np.sqrt(np.clip(1 - ((r - middle) / half) ** 2, 0, None))
    body = section * half if draw.random() < 0.4 else np.clip(section * 6, 0, 1) * 0.08
    gap = (np.abs(np.arctan2(v, u)) > draw.uniform(0.1, 0.4)) if draw.random() < 0.3 else 1.0
    return np.asarray(body * gap, np.float32)


def _nut(draw: Draw, u: Floats, v: Floats) -> Floats:
    """A polygon with a hole, bevelled, perhaps with lobes instead of corners."""
    corners, r, angle = int(draw.integers(3, 9)), np.hypot(u, v), np.arctan2(v, u)
    if draw.random() < 0.3:
        rim = 0.7 + draw.uniform(0.08, 0.25) * np.cos(corners * angle)
    else:
        rim = 0.92 * math.cos(math.pi / corners) / np.cos((angle % (2 * math.pi / corners)) - math.pi / corners)
    bevel, bore = draw.uniform(0.03, 0.2), draw.uniform(0.2, 0.55)
    return np.asarray(
        0.2 * np.clip((rim - r) / bevel, 0, 1) * np.clip((r - bore) / draw.uniform(0.03, 0.12), 0, 1), np.float32
    )


def _bracket(draw: Draw, u: Floats, v: Floats) -> Floats:
    """A sheet cut to rectangles, with holes and a bead."""
    wide = draw.uniform(0.2, 0.7)
    plate = (np.abs(u) < 0.9) & (np.abs(v) < wide)
    for _ in range(int(draw.integers(0, 3))):
        cx, cy, w, h = draw.uniform(-0.9, 0.9), draw.uniform(-wide, wide), *draw.uniform(0.1, 0.4, 2)
        plate &= ~((np.abs(u - cx) < w) & (np.abs(v - cy) < h))
    for _ in range(int(draw.integers(1, 6))):
        plate &= np.hypot(u - draw.uniform(-0.8, 0.8), v - draw.uniform(-wide, wide)) > draw.uniform(0.04, 0.15)
    edge = cv2.GaussianBlur(plate.astype(np.float32), (0, 0), draw.uniform(0.5, 2))
    bead = np.exp(-(((v - draw.uniform(-wide, wide)) / 0.05) ** 2)) * draw.uniform(-0.5, 0.5)
    return np.asarray(0.1 * edge * (1 + bead), np.float32)


def _wheel(draw: Draw, u: Floats, v: Floats) -> Floats:
    """A toothed or bladed disc with a hub: gears, impellers, covers."""
    r, angle = np.hypot(u, v), np.arctan2(v, u)
    teeth = int(draw.integers(5, 40))
    blades = np.cos(teeth * (angle + draw.uniform(-1, 1) * r))
    rim = 0.85 + 0.06 * np.tanh(blades * draw.uniform(1, 6)) * (draw.random() < 0.6)
    disc = np.clip((rim - r) / 0.04, 0, 1) * 0.12
    web = (r > draw.uniform(0.25, 0.4)) & (r < draw.uniform(0.6, 0.8))
    disc = disc + web * np.tanh(blades * 3) * draw.uniform(0, 0.08)
    hub = draw.uniform(0.12, 0.3)
    disc = disc + 0.1 * np.clip((hub - r) / 0.05, 0, 1)
    return np.asarray(np.where(r < hub * draw.uniform(0, 0.8), 0, disc), np.float32)


def _placed(picture: Floats, height: Floats, draw: Draw) -> Floats:
    """Light `height` from one side and lay it, with its shadow, on the picture."""
    cover = np.asarray(cv2.GaussianBlur((height > 0.5).astype(np.float32), (0, 0), 0.7), np.float32)
    skin = _smooth(draw, height.shape[0], draw.uniform(0.5, 4)) * np.float32(draw.uniform(0, 0.5))
    tone, turn = _lit(height, skin, draw), draw.uniform(0, 2 * math.pi)
    shift = np.asarray([[1, 0, -6 * math.cos(turn)], [0, 1, -6 * math.sin(turn)]], np.float64)
    shade = cv2.GaussianBlur(cv2.warpAffine(cover, shift, cover.shape), (0, 0), 4) * draw.uniform(0, 0.6)
    below = picture * (1 - shade)
    return np.asarray(below + (tone - below) * cover, np.float32)


def _lit(height: Floats, skin: Floats, draw: Draw) -> Floats:
    """Tones of a height over the plane (pixels) with a rough skin on it, lit from one side, dull to shiny."""
    dx = cv2.Sobel(height + skin, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    dy = cv2.Sobel(height + skin, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    turn, shine = draw.uniform(0, 2 * math.pi), draw.uniform(0, 0.6)
    tilt = 1 / np.sqrt(1 + dx * dx + dy * dy)
    light = (math.cos(turn) * dx + math.sin(turn) * dy) * tilt
    tone = draw.uniform(0.15, 0.85) * (0.35 + 0.65 * tilt) + draw.uniform(0.1, 0.4) * light
    tone = tone + shine * np.exp(-(((light - draw.uniform(0.1, 0.7)) / draw.uniform(0.05, 0.3)) ** 2)) * 0.6
    return np.asarray(tone, np.float32)


# --- flaws and finish ----------------------------------------------------------------------------


def flawed(grey: Floats, draw: Draw) -> Floats:
    """One to three small flaws: scratch, pore, spot, smear or a misplaced piece."""
    out, side = grey.copy(), grey.shape[0]
    for _ in range(int(draw.integers(1, 4))):
        tone, kind = np.float32(draw.uniform(-0.6, 0.6)), int(draw.integers(4))
        layer = np.zeros((side, side), np.uint8)
        x, y = (int(v) for v in draw.integers(0, side, 2))
        if kind == 0:
            steps = draw.normal(0, side / 60, (8, 2)) + draw.normal(0, side / 40, 2)
            path = np.cumsum(steps, axis=0) + np.array([x, y])
            cv2.polylines(layer, [np.round(path).astype(np.int32)], False, 255, int(draw.integers(1, 4)), cv2.LINE_AA)
        elif kind == 1:
            cv2.circle(layer, (x, y), int(draw.integers(1, 8)), 255, -1, cv2.LINE_AA)
        elif kind == 2:
            axes = (int(draw.integers(3, side // 10)), int(draw.integers(2, side // 16)))
            cv2.ellipse(layer, (x, y), axes, draw.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA)
        else:
            out = _misplaced(out, draw)
            continue
        cover = np.asarray(cv2.GaussianBlur(layer, (0, 0), draw.uniform(0.4, 3)), np.float32) / 255
        out = np.asarray(out + cover * tone, np.float32)
    return np.asarray(np.clip(out, 0, 1), np.float32)


def _misplaced(grey: Floats, draw: Draw) -> Floats:
    """A piece of the picture lies elsewhere in it: a break in any pattern."""
    side = grey.shape[0]
    w, h = (int(v) for v in draw.integers(6, side // 5, 2))
    (fx, tx), (fy, ty) = draw.integers(0, side - w, 2), draw.integers(0, side - h, 2)
    out = grey.copy()
    out[ty : ty + h, tx : tx + w] = grey[fy : fy + h, fx : fx + w]
    return out


def taken(grey: Floats, draw: Draw) -> Floats:
    """As a camera takes it: now and then out of focus, often with the noise of its sensor."""
    if draw.random() < 0.2:
        grey = np.asarray(cv2.GaussianBlur(grey, (0, 0), draw.uniform(0.5, 2)), np.float32)
    if draw.random() < 0.5:
        sigma = math.exp(draw.uniform(math.log(0.002), math.log(0.03)))
        grey = grey + np.float32(sigma) * draw.standard_normal(grey.shape, dtype=np.float32)
    return grey


def tinted(grey: Floats, draw: Draw) -> Picture:
    """Grey, or between two colours. (H, W) 0 to 1 -> (H, W, 3) uint8."""
    if draw.random() < _GREY_SHARE:
        return np.asarray(np.rint(np.clip(np.repeat(grey[..., None], 3, axis=2), 0, 1) * 255), np.uint8)
    dark, bright = draw.uniform(0, 0.5, 3).astype(np.float32), draw.uniform(0.4, 1, 3).astype(np.float32)
    return np.asarray(np.rint(np.clip(dark + grey[..., None] * (bright - dark), 0, 1) * 255), np.uint8)


def _axes(side: int) -> tuple[Floats, Floats]:
    """x and y of every pixel centre, in shares of the side, 0 in the middle."""
    line = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    return np.broadcast_to(line, (side, side)), np.broadcast_to(line[:, None], (side, side))


def _smooth(draw: Draw, side: int, sigma_px: float) -> Floats:
    """Noise of mean 0 and standard deviation 1, blurred; coarse noise is made small and enlarged."""
    shrink = max(1, int(sigma_px / 3))
    small = draw.standard_normal((-(-side // shrink),) * 2, dtype=np.float32)
    if sigma_px > 0.2:
        small = np.asarray(cv2.GaussianBlur(small, (0, 0), sigma_px / shrink), np.float32)
    return _standard(np.asarray(cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC), np.float32))


def _standard(field: Floats) -> Floats:
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def _relief(field: Floats, draw: Draw) -> Floats:
    """The field as a height, lit from one side."""
    turn = draw.uniform(0, 2 * math.pi)
    height = np.asarray(cv2.GaussianBlur(field, (0, 0), draw.uniform(0.5, 1.5)), np.float32)
    slope = cv2.Sobel(height, cv2.CV_32F, 1, 0) * math.cos(turn) + cv2.Sobel(height, cv2.CV_32F, 0, 1) * math.sin(turn)
    return _toned(_standard(np.asarray(slope, np.float32)), draw)


def _toned(field: Floats, draw: Draw) -> Floats:
    """A field of standard deviation about 1 in the tones of a picture: any mean, contrast from faint to full."""
    contrast = math.exp(draw.uniform(math.log(0.02), math.log(0.3)))
    return np.asarray(np.clip(draw.uniform(0.15, 0.85) + contrast * field, 0, 1), np.float32)
