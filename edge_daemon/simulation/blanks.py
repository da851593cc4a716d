"""The products: how a perfect part looks, before pose, light, noise and defects.

Everything is computed once per picture size from distance fields (antialiased by a ramp of one pixel) and
lit by a small ring-light model. The same product looks the same for every seed: a recipe made from one
seed judges the parts of another.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.geometry import Region
from edge_daemon.errors import ConfigError
from edge_daemon.simulation.names import PRODUCTS

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Blank:
    """A perfect part in its own coordinates, and what it lies on.

    pixels:      (S, S, 3) uint8 RGB; beside the part black, the colour of its shadow
    bare:        (S, S, 3) uint8, the same with every feature missing
    alpha:       (S, S) uint8, 255 on the part, less in its shadow
    body:        (S, S) bool, where a defect may be
    edge:        (E, 2) int32, x and y on the outline, where a chip may break off; empty without outline
    features:    what may be missing
    extent_px:   diameter or longer side of the part
    grain:       (GH, GW) float32, surface texture of mean 0; a random cut of it lies on each part
    grain_at:    x and y into the cut, each (S, S) float32, for textures that follow the shape; or None
    grain_gain:  (S, S) float32, how much of the texture each place shows
    rest:        (B, B, 3) uint8, what the part lies on, wider than any frame's short side
    scratched:   RGB of a fresh scratch
    fills:       True when the part has no outline and fills every frame
    turn_deg, shift: largest rotation and shift (share of S) between good parts
    """

    pixels: Bytes
    bare: Bytes
    alpha: Bytes
    body: NDArray[np.bool_]
    edge: NDArray[np.int32]
    features: tuple[Region, ...]
    extent_px: float
    grain: Floats
    grain_at: tuple[Floats, Floats] | None
    grain_gain: Floats
    rest: Bytes
    scratched: tuple[int, int, int]
    turn_deg: float
    shift: float
    fills: bool = False


def make_blank(product: str, side: int) -> Blank:
    """The perfect part of `product` on a square of `side` pixels. Raises ConfigError for an unknown product."""
    match product:
        case "flange":
            return _flange(side)
        case "cap":
            return _cap(side)
        case "board":
            return _board(side)
        case "weave":
            return _weave(side)
    raise ConfigError([f"product {product!r} is not one that is simulated; known are {', '.join(PRODUCTS)}"])


# --- tools ---------------------------------------------------------------------------------------


def _axes(side: int) -> tuple[Floats, Floats]:
    """x and y of every pixel centre, in shares of the side, 0 in the middle."""
    line = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    return np.broadcast_to(line, (side, side)), np.broadcast_to(line[:, None], (side, side))


def _ramp(distance: Floats, side: int, width: float = 0.0) -> Floats:
    """Coverage from a signed distance (negative inside, shares of the side): 1 inside, 0 outside, soft over
    one pixel or over `width`."""
    soft = max(width, 1.0 / side)
    return np.asarray(np.clip(0.5 - distance / soft, 0, 1), np.float32)


def _noise(side: tuple[int, int], sigma: tuple[float, float], stream: int) -> Floats:
    """Smooth noise of mean 0 and standard deviation 1; sigma in pixels along x and y."""
    raw = np.random.default_rng([stream, 11]).standard_normal(side, dtype=np.float32)
    raw = np.asarray(cv2.GaussianBlur(raw, (0, 0), sigma[0], sigmaY=sigma[1]), np.float32)
    return np.asarray((raw - raw.mean()) / raw.std(), np.float32)


def _lit(height: Floats, side: int, bright: float, shine: float) -> Floats:
    """Light coming back from a relief (height in shares of the side) under a ring light that is a little
    stronger from the upper left: flat faces give `bright`, slopes towards the light give more."""
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=side / 8)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=side / 8)
    tilt = np.sqrt(dx * dx + dy * dy)
    ring = np.exp(-(((tilt - 0.7) / 0.45) ** 2))
    side_light = (-0.6 * -dx + -0.8 * -dy) / np.sqrt(1 + tilt * tilt)
    return np.asarray(bright / np.sqrt(1 + 0.6 * tilt * tilt) + shine * ring + 0.16 * side_light, np.float32)


def _rgb(grey: Floats, tint: tuple[float, float, float]) -> Floats:
    """A grey picture (1 = white) in a colour."""
    return np.asarray(grey[..., None] * np.asarray(tint, np.float32), np.float32)


def _bytes(picture: Floats) -> Bytes:
    out = np.asarray(np.clip(picture * 255 + 0.5, 0, 255), np.uint8)
    out.flags.writeable = False
    return out


def _over(below: Floats, above: Floats, coverage: Floats) -> Floats:
    return np.asarray(below + (above - below) * coverage[..., None], np.float32)


def _with_shadow(silhouette: Floats, side: int, drop: float, depth: float) -> Bytes:
    """Alpha of a part with the soft shadow that it casts to the lower right."""
    move = np.asarray([[1, 0, drop * side * 0.6], [0, 1, drop * side]])
    cast = cv2.warpAffine(silhouette, move, (side, side))
    cast = cv2.GaussianBlur(cast, (0, 0), drop * side)
    return _bytes(np.maximum(silhouette, depth * cast))


def _outline(silhouette: Floats) -> NDArray[np.int32]:
    contours, _ = cv2.findContours((silhouette > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = max(contours, key=len).reshape(-1, 2)
    return np.asarray(points, np.int32)


def _around(x: float, y: float, half_w: float, half_h: float, side: int) -> Region:
    """A region of the canvas around a centre given in shares of the side."""
    left, top = round((x + 0.5 - half_w) * side), round((y + 0.5 - half_h) * side)
    return Region(left, top, max(2, round(2 * half_w * side)), max(2, round(2 * half_h * side)))


def _inside(body: Floats, side: int, margin: float) -> NDArray[np.bool_]:
    """Places at least `margin` (share of the side) away from the rim of the body."""
    away = cv2.distanceTransform((body > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(away > margin * side, np.bool_)


_ANGLES = 1024


def _polar(side: int) -> tuple[Floats, Floats]:
    """Where each pixel of a turned part looks in a texture of (angles, radii): x is the radius, y the angle."""
    x, y = _axes(side)
    radius = np.hypot(x, y) * side
    angle = (np.arctan2(y, x) / (2 * np.pi) + 0.5) * _ANGLES
    return np.asarray(radius, np.float32), np.asarray(angle, np.float32)


def _turning_marks(side: int, sigma: float, stream: int) -> Floats:
    """Streaks along the angle, (2·angles, 1.5·side); the angles come round twice, so that a full turn can be
    cut anywhere and shows no seam."""
    once = np.random.default_rng([stream, 11]).standard_normal((_ANGLES, side + side // 2), dtype=np.float32)
    marks = cv2.GaussianBlur(np.tile(once, (3, 1)), (0, 0), 0.65, sigmaY=sigma)[_ANGLES // 2 : -_ANGLES // 2]
    return np.asarray((marks - marks.mean()) / marks.std(), np.float32)


# --- flange: a turned aluminium ring with a hub and bolt holes -----------------------------------

_BOLTS = 6


def _flange(side: int) -> Blank:
    x, y = _axes(side)
    r = np.asarray(np.hypot(x, y), np.float32)
    outer, bore = r - 0.415, 0.105 - r
    height = 0.010 * _ramp(outer + 0.006, side, 0.012)
    height = height + 0.016 * _ramp(r - 0.195, side, 0.022)
    height = height + 0.010 * (_ramp(bore + 0.004, side, 0.012) * -1)
    height = height - 0.004 * _ramp(np.abs(r - 0.365) - 0.004, side, 0.006)
    solid = _rgb(_lit(height, side, 0.56, 0.30), (0.98, 1.0, 1.03))
    solid *= (1.05 - 0.35 * r)[..., None]

    drilled, centres = solid, _bolt_circle(0.285)
    for hx, hy in centres:
        drilled = _drill(drilled, np.asarray(np.hypot(x - hx, y - hy), np.float32), 0.034, side)
    solid, drilled = (_drill(p, r, 0.105, side) for p in (solid, drilled))

    silhouette = _ramp(outer, side)
    holes = np.minimum.reduce([np.hypot(x - hx, y - hy) - 0.045 for hx, hy in centres])
    body = silhouette * (r > 0.118) * (holes > 0)
    fan = np.cos(2 * np.arctan2(y, x) + 0.9)
    fan = np.asarray(1 + 0.10 * np.sign(fan) * np.abs(fan) ** 1.6, np.float32)[..., None]
    grain = 0.6 * _turning_marks(side, 90.0, 1) + 0.5 * _turning_marks(side, 9.0, 2)
    return Blank(
        pixels=_bytes(drilled * fan * silhouette[..., None]),
        bare=_bytes(solid * fan * silhouette[..., None]),
        alpha=_with_shadow(silhouette, side, 0.012, 0.6),
        body=_inside(np.asarray(body, np.float32), side, 0.012),
        edge=_outline(silhouette),
        features=tuple(_around(hx, hy, 0.05, 0.05, side) for hx, hy in centres),
        extent_px=0.83 * side,
        grain=np.asarray(0.055 * grain, np.float32),
        grain_at=_polar(side),
        grain_gain=silhouette,
        rest=_rubber_mat(side),
        scratched=(232, 236, 240),
        turn_deg=1.5,
        shift=0.008,
    )


def _bolt_circle(radius: float) -> list[tuple[float, float]]:
    turns = 2 * np.pi * (np.arange(_BOLTS) + 0.25) / _BOLTS
    return [(float(radius * np.cos(t)), float(radius * np.sin(t))) for t in turns]


def _drill(picture: Floats, distance: Floats, radius: float, side: int) -> Floats:
    """A countersunk hole: bright bevel, dark throat with light on the far wall."""
    bevel = _ramp(distance - radius - 0.007, side)
    throat = _ramp(distance - radius, side)
    dx = cv2.Sobel(distance, cv2.CV_32F, 1, 0, ksize=3, scale=side / 8)
    dy = cv2.Sobel(distance, cv2.CV_32F, 0, 1, ksize=3, scale=side / 8)
    towards = 0.6 * dx + 0.8 * dy
    picture = _over(picture, _rgb(np.asarray(0.62 + 0.25 * towards, np.float32), (0.98, 1.0, 1.03)), bevel)
    wall = 0.055 + 0.20 * np.clip(towards, 0, 1) * np.clip(distance / radius - 0.55, 0, 1)
    return _over(picture, _rgb(np.asarray(wall, np.float32), (0.95, 1.0, 1.08)), throat)


def _rubber_mat(side: int) -> Bytes:
    wide = side * 2
    fine, coarse = _noise((wide, wide), (0.8, 0.8), 3), _noise((wide, wide), (9, 9), 4)
    return _bytes(_rgb(np.asarray(0.105 + 0.014 * fine + 0.008 * coarse, np.float32), (0.97, 1.0, 1.02)))


# --- cap: a moulded screw cap with a printed mark ------------------------------------------------

_TEETH = 72


def _cap(side: int) -> Blank:
    x, y = _axes(side)
    r = np.asarray(np.hypot(x, y), np.float32)
    angle = np.arctan2(y, x)
    teeth = np.asarray(np.cos(_TEETH * angle), np.float32)
    skirt = r - 0.405 - 0.004 * teeth
    silhouette = _ramp(np.asarray(skirt, np.float32), side)

    top = _ramp(r - 0.372, side, 0.02)
    height = 0.020 * _ramp(r - 0.372, side, 0.030) - 0.007 * _ramp(r - 0.318, side, 0.016)
    light = _lit(height + 0.010 * (1 - 6 * r * r), side, 0.74, 0.16)
    knurl = (0.46 + 0.17 * teeth - 0.08 * np.clip(np.sin(angle + 0.9), -1, 1)) * _ramp(r - 0.400, side, 0.03)
    light = np.asarray(light * top + knurl * (1 - top) + 0.10 * (1 - top), np.float32)
    body = _rgb(light, (0.10, 0.44, 0.86))
    body += (0.30 * np.exp(-(((r - 0.352) / 0.007) ** 2)) * (0.75 - 0.25 * np.sin(angle + 0.9)))[..., None]
    gate = np.hypot(x, y - 0.235)
    body *= (1 - 0.25 * np.exp(-((gate / 0.010) ** 2)) + 0.18 * np.exp(-(((gate - 0.016) / 0.004) ** 2)))[..., None]

    ink, marks = _cap_print(side)
    white = _rgb(light * 0.35 + 0.66, (0.97, 0.98, 0.97))
    printed = _over(body, np.asarray(white, np.float32), ink * 0.94)
    return Blank(
        pixels=_bytes(printed * silhouette[..., None]),
        bare=_bytes(body * silhouette[..., None]),
        alpha=_with_shadow(silhouette, side, 0.016, 0.55),
        body=_inside(_ramp(r - 0.365, side), side, 0.004),
        edge=_outline(silhouette),
        features=marks,
        extent_px=0.81 * side,
        grain=np.asarray(0.02 * _noise((side * 2, side * 2), (0.7, 0.7), 5), np.float32),
        grain_at=None,
        grain_gain=np.asarray(0.4 + 0.6 * _ramp(r - 0.31, side), np.float32),
        rest=_modular_belt(side),
        scratched=(206, 224, 244),
        turn_deg=2.5,
        shift=0.008,
    )


def _cap_print(side: int) -> tuple[Floats, tuple[Region, ...]]:
    """The printed mark, as coverage of ink, and the marks that may be missing."""
    canvas, wide = np.zeros((side * 2, side * 2), np.uint8), side * 2
    for radius, value in ((0.088, 255), (0.068, 0)):
        corners = np.pi / 3 * np.arange(6)
        _polygon(canvas, [(radius * np.cos(a), -0.075 + radius * np.sin(a)) for a in corners], wide, value)
    bolt = [(-12, -50), (30, -50), (7, -10), (34, -10), (-23, 51), (-7, 7), (-32, 7)]
    _polygon(canvas, [(0.00085 * x, -0.075 + 0.00085 * y) for x, y in bolt], wide)
    # Letter by letter, so that it is known where each one is, whatever font this OpenCV draws with.
    places = [(0.058 * (i - 2.5), 0.095) for i in range(6)]
    for letter, place in zip("NORDIC", places, strict=True):
        _write(canvas, letter, place, 0.058, wide)
    _write(canvas, "28 PCO 1881", (0.0, 0.168), 0.026, wide)
    for turn in np.linspace(np.pi * 1.2, np.pi * 1.8, 13):
        centre = (0.275 * np.cos(turn), 0.275 * np.sin(turn))
        cv2.circle(canvas, _at(centre, wide), round(0.0085 * wide), 255, -1, cv2.LINE_AA)
    ink = cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    letters = tuple(_around(x, y, 0.029, 0.038, side) for x, y in places)
    return np.asarray(ink, np.float32), (*letters, _around(0.0, -0.075, 0.034, 0.050, side))


def _at(point: tuple[float, float], side: int) -> tuple[int, int]:
    return round((point[0] + 0.5) * side), round((point[1] + 0.5) * side)


def _polygon(canvas: Any, points: list[tuple[Any, Any]], side: int, value: Any = 255) -> None:
    corners = np.round((np.asarray(points, np.float64) + 0.5) * side * 16).astype(np.int32)
    cv2.fillPoly(canvas, [corners], value, cv2.LINE_AA, 4)


def _write(canvas: Any, text: str, centre: tuple[float, float], height: float, side: int, colour: Any = 255) -> None:
    """Text around a centre; centre and height of the capitals in shares of the side."""
    font, weight = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(0.16 * height * side))
    (_, unit), _ = cv2.getTextSize("H", font, 1.0, 1)
    scale = height * side / unit
    (width, tall), _ = cv2.getTextSize(text, font, scale, weight)
    x, y = _at(centre, side)
    cv2.putText(canvas, text, (x - width // 2, y + tall // 2), font, scale, colour, weight, cv2.LINE_AA)


def _modular_belt(side: int) -> Bytes:
    wide = side * 2
    x, y = np.meshgrid(np.arange(wide, dtype=np.float32) / side, np.arange(wide, dtype=np.float32) / side)
    seam = np.exp(-((((y * 4) % 1 - 0.5) / 0.012) ** 2)) + 0.6 * np.exp(-((((x * 2.5) % 1 - 0.5) / 0.008) ** 2))
    grey = 0.66 - 0.16 * np.clip(seam, 0, 1) + 0.010 * _noise((wide, wide), (1.2, 1.2), 6)
    return _bytes(_rgb(np.asarray(grey + 0.012 * _noise((wide, wide), (30, 12), 7), np.float32), (0.98, 1.0, 1.0)))


# --- board: a small populated circuit board ------------------------------------------------------


def _board(side: int) -> Blank:
    wide = side * 2
    bare, populated = _board_picture(wide, placed=False), _board_picture(wide, placed=True)
    small = [cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in (bare, populated)]
    x, y = _axes(side)
    qx, qy = np.abs(x) - 0.385, np.abs(y) - 0.315
    distance = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - 0.02
    silhouette = _ramp(np.asarray(distance, np.float32), side)
    rim = 1 - 0.35 * _ramp(np.asarray(np.abs(distance + 0.002) - 0.002, np.float32), side)
    bare_f, populated_f = (np.asarray(p, np.float32) / 255 * rim[..., None] for p in small)
    body = np.asarray(silhouette, np.float32)
    return Blank(
        pixels=_bytes(populated_f * silhouette[..., None]),
        bare=_bytes(bare_f * silhouette[..., None]),
        alpha=_with_shadow(silhouette, side, 0.008, 0.6),
        body=_inside(body, side, 0.03),
        edge=_outline(silhouette),
        features=tuple(_around(p.x, p.y, p.half_w + 0.006, p.half_h + 0.006, side) for p in _placements() if p.small),
        extent_px=0.81 * side,
        grain=np.asarray(0.022 * _noise((side * 2, side * 2), (1.0, 1.0), 8), np.float32),
        grain_at=None,
        grain_gain=np.ones((side, side), np.float32),
        rest=_pallet(side),
        scratched=(206, 190, 140),
        turn_deg=1.0,
        shift=0.006,
    )


@dataclass(frozen=True, slots=True)
class _Placed:
    """A component: kind, centre and half sizes in shares of the side."""

    kind: str
    x: float
    y: float
    half_w: float
    half_h: float

    @property
    def small(self) -> bool:
        return self.kind in ("resistor", "capacitor")


def _placements() -> list[_Placed]:
    rows = [_Placed("resistor", -0.335 + 0.062 * i, 0.235, 0.027, 0.0165) for i in range(5)]
    rows += [_Placed("capacitor", -0.335 + 0.062 * i, 0.185, 0.027, 0.0175) for i in range(3)]
    rows += [_Placed("resistor", 0.335, -0.10 + 0.052 * i, 0.027, 0.0165) for i in range(4)]
    rows += [_Placed("capacitor", 0.055, -0.19 + 0.055 * i, 0.027, 0.0185) for i in range(3)]
    rows += [_Placed("capacitor", 0.22, 0.225, 0.034, 0.022), _Placed("resistor", 0.30, 0.235, 0.027, 0.0165)]
    return [
        _Placed("chip", -0.15, -0.035, 0.105, 0.105),
        _Placed("driver", 0.21, -0.03, 0.062, 0.085),
        _Placed("can", 0.20, -0.225, 0.062, 0.062),
        _Placed("socket", -0.24, -0.255, 0.11, 0.042),
        *rows,
    ]


def _board_picture(side: int, placed: bool) -> Bytes:
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = (22, 84, 52)
    _traces(canvas, side)
    for px, py in ((-0.37, -0.30), (0.37, -0.30), (-0.37, 0.30), (0.37, 0.30)):
        cv2.circle(canvas, _at((px, py), side), round(0.024 * side), (202, 170, 92), -1, cv2.LINE_AA)
        cv2.circle(canvas, _at((px, py), side), round(0.0145 * side), (14, 15, 16), -1, cv2.LINE_AA)
    white = (222, 226, 220)
    _write(canvas, "ED-7 REV C", (0.06, 0.295), 0.022, side, white)
    _write(canvas, "U1", (-0.30, -0.13), 0.017, side, white)
    _write(canvas, "C9", (0.115, -0.275), 0.017, side, white)
    _write(canvas, "J2", (-0.09, -0.255), 0.017, side, white)
    shadow = np.zeros((side, side), np.uint8)
    parts = _placements()
    for part in parts:
        _lands(canvas, part, side)
    shown = parts if placed else [p for p in parts if not p.small]
    for part in shown:
        _box(shadow, part.x + 0.004, part.y + 0.007, part.half_w, part.half_h, side, 150)
    soft = cv2.GaussianBlur(shadow, (0, 0), 0.006 * side)
    canvas = np.asarray(cv2.multiply(canvas, cv2.merge([255 - soft] * 3), scale=1 / 255), np.uint8)
    for part in shown:
        _component(canvas, part, side)
    return np.asarray(cv2.GaussianBlur(canvas, (0, 0), 0.8), np.uint8)


def _box(canvas: Any, x: float, y: float, half_w: float, half_h: float, side: int, colour: Any) -> None:
    corners = [(x - half_w, y - half_h), (x + half_w, y - half_h), (x + half_w, y + half_h), (x - half_w, y + half_h)]
    _polygon(canvas, [(cx, cy) for cx, cy in corners], side, colour)


def _traces(canvas: Bytes, side: int) -> None:
    """Copper under the mask: bundles at right angles and 45 degrees, with vias."""
    draw, width = np.random.default_rng([9, 11]), max(1, round(0.0042 * side))
    for _ in range(46):
        x, y = draw.uniform(-0.37, 0.37), draw.uniform(-0.30, 0.30)
        run, bend = draw.choice([-1, 1]) * draw.uniform(0.05, 0.2), draw.choice([-1, 1]) * draw.uniform(0.02, 0.08)
        path = [(x, y), (x + run, y), (x + run + abs(bend), y + bend), (x + run + abs(bend), y + 2.2 * bend)]
        corners = np.asarray([_at((float(np.clip(a, -0.385, 0.385)), float(np.clip(b, -0.315, 0.315))), side)
                              for a, b in path], np.int32)  # fmt: skip
        cv2.polylines(canvas, [corners], False, (36, 112, 70), width, cv2.LINE_AA)
        for end in (corners[0], corners[-1]):
            cv2.circle(canvas, (int(end[0]), int(end[1])), round(0.0062 * side), (168, 160, 120), -1, cv2.LINE_AA)
            cv2.circle(canvas, (int(end[0]), int(end[1])), round(0.0028 * side), (20, 34, 26), -1, cv2.LINE_AA)


def _lands(canvas: Bytes, part: _Placed, side: int) -> None:
    """Gold pads and a printed outline, which show where a component is missing."""
    if part.small:
        _box(canvas, part.x, part.y, part.half_w * 0.98, part.half_h * 0.98, side, (222, 226, 220))
        _box(canvas, part.x, part.y, part.half_w * 0.90, part.half_h * 0.84, side, (22, 84, 52))
        for sign in (-1, 1):
            _box(canvas, part.x + sign * part.half_w * 0.58, part.y, part.half_w * 0.26, part.half_h * 0.7, side,
                 (214, 172, 84))  # fmt: skip


def _component(canvas: Bytes, part: _Placed, side: int) -> None:
    match part.kind:
        case "resistor" | "capacitor":
            tone = (34, 34, 38) if part.kind == "resistor" else (166, 128, 88)
            _box(canvas, part.x, part.y, part.half_w, part.half_h, side, (206, 208, 210))
            _box(canvas, part.x, part.y, part.half_w * 0.62, part.half_h, side, tone)
            _box(canvas, part.x, part.y - part.half_h * 0.55, part.half_w * 0.6, part.half_h * 0.16, side,
                 tuple(min(255, c + 26) for c in tone))  # fmt: skip
        case "chip" | "driver":
            _leads(canvas, part, side)
            _box(canvas, part.x, part.y, part.half_w, part.half_h, side, (44, 45, 48))
            _box(canvas, part.x, part.y, part.half_w * 0.94, part.half_h * 0.94, side, (36, 37, 40))
            dot = (part.x - part.half_w * 0.72, part.y - part.half_h * 0.76)
            cv2.circle(canvas, _at(dot, side), round(0.009 * side), (62, 63, 66), -1, cv2.LINE_AA)
            text = ("STM7H", "2641 K") if part.kind == "chip" else ("DRV", "88")
            for row, line in enumerate(text):
                _write(canvas, line, (part.x, part.y + part.half_h * (0.4 * row - 0.1)), 0.024, side, (150, 151, 152))
        case "can":
            for share, tone in ((1.0, (92, 94, 98)), (0.93, (186, 190, 194)), (0.80, (202, 205, 208))):
                cv2.circle(
                    canvas, _at((part.x, part.y), side), round(part.half_w * share * side), tone, -1, cv2.LINE_AA
                )
            centre, axes = _at((part.x, part.y), side), (round(part.half_w * 0.8 * side),) * 2
            cv2.ellipse(canvas, centre, axes, 0, 120, 240, (46, 48, 52), -1, cv2.LINE_AA)
            _write(canvas, "47", (part.x + 0.016, part.y), 0.022, side, (70, 70, 74))
        case _:
            _box(canvas, part.x, part.y, part.half_w, part.half_h, side, (206, 198, 176))
            _box(canvas, part.x, part.y + 0.004, part.half_w * 0.93, part.half_h * 0.62, side, (150, 143, 124))
            for i in range(6):
                _box(canvas, part.x - 0.085 + 0.034 * i, part.y + 0.004, 0.006, 0.012, side, (214, 190, 110))


def _leads(canvas: Bytes, part: _Placed, side: int) -> None:
    count = 9 if part.kind == "chip" else 6
    steps = np.linspace(-0.82, 0.82, count)
    for sign in (-1, 1):
        for step in steps:
            _box(canvas, part.x + sign * (part.half_w + 0.010), part.y + part.half_h * step, 0.012, 0.0055, side,
                 (196, 199, 202))  # fmt: skip
            if part.kind == "chip":
                _box(canvas, part.x + part.half_w * step, part.y + sign * (part.half_h + 0.010), 0.0055, 0.012, side,
                     (196, 199, 202))  # fmt: skip


def _pallet(side: int) -> Bytes:
    wide = side * 2
    grey = 0.30 + 0.012 * _noise((wide, wide), (26.0, 0.8), 10) + 0.008 * _noise((wide, wide), (1, 1), 11)
    return _bytes(_rgb(np.asarray(grey, np.float32), (0.98, 1.0, 1.04)))


# --- weave: twill of carbon tows, filling the frame ----------------------------------------------

_TOWS = 26


def _weave(side: int) -> Blank:
    lit, dark = _twill(side, gap=False), _twill(side, gap=True)
    # A tow may be missing for a stretch of 3 crossings; some places are enough.
    pitch = 1.0 / _TOWS
    spots = [(-6.5, -4.0), (4.5, -6.0), (-2.5, 5.0), (6.5, 3.0), (0.5, 0.0), (-7.5, 2.0)]
    return Blank(
        pixels=lit,
        bare=dark,
        alpha=np.full((side, side), 255, np.uint8),
        body=np.ones((side, side), np.bool_),
        edge=np.empty((0, 2), np.int32),
        features=tuple(_around(tx * pitch, ty * pitch, pitch * 0.5, pitch * 1.5, side) for tx, ty in spots),
        extent_px=1.0 * side,
        grain=np.asarray(0.05 * _noise((side * 2, side * 2), (0.6, 0.6), 12), np.float32),
        grain_at=None,
        grain_gain=np.ones((side, side), np.float32),
        rest=np.zeros((side * 2, side * 2, 3), np.uint8),
        scratched=(206, 208, 214),
        turn_deg=0.6,
        shift=0.004,
        fills=True,
    )


def _twill(side: int, gap: bool) -> Bytes:
    """2/2 twill: a tow passes over two and under two, one step further in each row. With `gap` the warp
    tows are missing, and the weft and the dark ground show."""
    x, y = _axes(side)
    u, v = (x + 0.5) * _TOWS, (y + 0.5) * _TOWS
    warp_on_top = (np.floor(u) - np.floor(v)) % 4 < 2
    across_warp, across_weft = u % 1 - 0.5, v % 1 - 0.5
    # Position along the float of two crossings: the tow dives at both ends.
    along_warp = ((v - np.floor(u)) % 4) / 2 % 1 - 0.5
    along_weft = ((u - np.floor(v)) % 4) / 2 % 1 - 0.5
    fibres_v, fibres_h = _noise((side, side), (0.5, 14), 13), _noise((side, side), (14, 0.5), 14)
    warp = _tow(across_warp, along_warp, 0.40) + 0.030 * fibres_v
    weft = _tow(across_weft, along_weft, 0.23) + 0.022 * fibres_h
    grey = np.where(warp_on_top, 0.05 + 0.012 * fibres_h if gap else warp, weft)
    soft = cv2.GaussianBlur(np.asarray(grey, np.float32), (0, 0), 0.0011 * side)
    return _bytes(_rgb(np.asarray(soft, np.float32), (0.96, 0.99, 1.04)))


def _tow(across: NDArray[Any], along: NDArray[Any], bright: float) -> NDArray[Any]:
    flank = np.sqrt(np.clip(1 - (across / 0.52) ** 2, 0, 1))
    crown = np.clip(np.cos(np.pi * along), 0, 1) ** 0.5
    return np.asarray(0.05 + bright * flank * (0.35 + 0.65 * crown))
