"""From product, seed and index to a picture: the same three always give the same pixels."""

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.errors import ConfigError
from edge_daemon.simulation.blanks import Blank, Bytes, Floats, make_blank
from edge_daemon.simulation.damage import Canvas, damage
from edge_daemon.simulation.names import LARGEST_RATIO, LARGEST_SIDE_PX, SMALLEST_SIDE_PX, DefectKind

# Streams of random numbers that must not touch: pose and light stay as they are when a defect is added.
_PART_STREAM, _DEFECT_STREAM = 1, 2
# How far cuts of the noise picture may be apart; enough that no two parts in a row share one.
_NOISE_SPARE_PX = 192
_SENSOR_NOISE_LEVELS = 1.8
# How far a defect reaches from its middle, and the pose shifts it, as a share of the part.
_WIDEST_REACH = 0.085


@dataclass(frozen=True, slots=True)
class SimulatedPart:
    """One picture with its truth.

    pixels: (H, W, 3) uint8 RGB, read-only; defect: name of the defect, or None for a good part;
    mask:   (H, W) bool, the defective pixels; all False for a good part
    """

    pixels: Bytes
    defect: str | None
    mask: NDArray[np.bool_]


class Scene:
    """A product under one camera: everything that is the same for all parts, computed once.

    Immutable after construction, so threads may share it. About 30 bytes per pixel of the picture.
    """

    def __init__(self, product: str, size: tuple[int, int] = (512, 512)) -> None:
        """size: width and height in pixels, each 64 to 4096, up to 4 to 1. Raises ConfigError."""
        if not all(SMALLEST_SIDE_PX <= length <= LARGEST_SIDE_PX for length in size):
            raise ConfigError(
                [f"simulated size is {size[0]}x{size[1]}; sides from {SMALLEST_SIDE_PX} to {LARGEST_SIDE_PX} px work"]
            )
        self.product = product
        self.size = size
        if max(size) > LARGEST_RATIO * min(size):
            raise ConfigError([f"simulated size is {size[0]}x{size[1]}; sides up to {LARGEST_RATIO} to 1 work"])
        fills = make_blank(product, SMALLEST_SIDE_PX).fills
        self._blank = _cut_to(make_blank(product, max(size)), size) if fills else make_blank(product, min(size))
        self.part_extent_px = self._blank.extent_px
        self._light = _light_field(size)
        self._noise = _sensor_noise(size)
        self._rest = _fitted(self._blank.rest, size)

    def part(self, seed: int, index: int, defect: DefectKind | None = None) -> SimulatedPart:
        """Part number `index` of the run `seed`, spoiled by `defect` when there is one."""
        key = [zlib.crc32(self.product.encode()), seed, index]
        draw = np.random.default_rng([*key, _PART_STREAM])
        blank, canvas = self._blank, self._surface(draw)
        if defect is not None:
            damage(canvas, blank, defect, np.random.default_rng([*key, _DEFECT_STREAM]))
        pose = self._pose(draw)
        frame = self._placed(canvas, pose, draw)
        mask = np.zeros((self.size[1], self.size[0]), np.bool_)
        if defect is not None:
            mask = np.asarray(cv2.warpAffine(canvas.mask, pose, self.size) > 80, np.bool_)
        pixels = self._exposed(frame, draw)
        pixels.flags.writeable = False
        return SimulatedPart(pixels, None if defect is None else str(defect), mask)

    def _surface(self, draw: np.random.Generator) -> Canvas:
        """The perfect part with a surface texture of its own."""
        blank, side = self._blank, self._blank.pixels.shape[0]
        if blank.grain_at is None:
            x, y = (int(draw.integers(0, s - side + 1)) for s in reversed(blank.grain.shape))
            grain = blank.grain[y : y + side, x : x + side]
        else:
            turn, radius = int(draw.integers(0, blank.grain.shape[0] // 2)), int(draw.integers(0, side // 2))
            marks = blank.grain[turn : turn + blank.grain.shape[0] // 2 + 1, radius : radius + side]
            grain = np.asarray(cv2.remap(marks, *blank.grain_at, cv2.INTER_LINEAR), np.float32)
        factor = cv2.cvtColor(1 + grain * blank.grain_gain, cv2.COLOR_GRAY2RGB)
        pixels = cv2.multiply(blank.pixels, factor, dtype=cv2.CV_8U)
        return Canvas(np.asarray(pixels, np.uint8), blank.alpha.copy(), np.zeros((side, side), np.uint8))

    def _pose(self, draw: np.random.Generator) -> NDArray[np.float64]:
        """(2, 3) from the part's coordinates to the frame's: a small turn and shift around the middle."""
        blank, side, (width, height) = self._blank, self._blank.pixels.shape[0], self.size
        turn = draw.uniform(-blank.turn_deg, blank.turn_deg)
        shift = draw.uniform(-blank.shift, blank.shift, 2) * side
        pose = np.asarray(cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), turn, 1.0), np.float64)
        pose[:, 2] += shift + np.asarray([(width - side) / 2, (height - side) / 2])
        return pose

    def _placed(self, canvas: Canvas, pose: NDArray[np.float64], draw: np.random.Generator) -> Bytes:
        """The part on what it lies on."""
        if self._blank.fills:
            return np.asarray(cv2.warpAffine(canvas.pixels, pose, self.size, borderMode=cv2.BORDER_REFLECT), np.uint8)
        width, height = self.size
        top = int(draw.integers(0, self._rest.shape[0] - height + 1)) if self.product == "flange" else 0
        below = self._rest[top : top + height, :width]
        part = cv2.warpAffine(canvas.pixels, pose, self.size)
        cover = cv2.warpAffine(canvas.alpha, pose, self.size).astype(np.float32) * np.float32(1 / 255)
        return np.asarray(cv2.blendLinear(np.asarray(part), below, cover, 1 - cover), np.uint8)

    def _exposed(self, frame: Bytes, draw: np.random.Generator) -> Bytes:
        """What the camera makes of it: uneven light, a gain that wanders, the lens, the sensor's noise."""
        gain = 1 + np.clip(draw.normal() * 0.012, -0.03, 0.03)
        lit = cv2.multiply(frame, self._light, scale=gain, dtype=cv2.CV_8U)
        soft = cv2.GaussianBlur(lit, (3, 3), 0.55)
        width, height = self.size
        x, y = (int(v) for v in draw.integers(0, _NOISE_SPARE_PX, 2))
        noise = self._noise[y : y + height, x : x + width]
        return np.asarray(cv2.addWeighted(soft, 1, noise, 1, -128), np.uint8)


def render(
    product: str, seed: int, index: int, size: tuple[int, int] = (512, 512), defect: DefectKind | None = None
) -> SimulatedPart:
    """One part. The scene is kept for the next call with the same product and size (a memo of immutable
    arrays); who renders for long holds a `Scene`. Raises ConfigError for an unknown product or size."""
    return _scene(product, size).part(seed, index, defect)


@lru_cache(maxsize=4)
def _scene(product: str, size: tuple[int, int]) -> Scene:
    return Scene(product, size)


def _cut_to(blank: Blank, size: tuple[int, int]) -> Blank:
    """A part that fills the frame, with defects only where the frame shows them whole."""
    side, rim = blank.body.shape[0], round(_WIDEST_REACH * blank.extent_px)
    top, left = (side - size[1]) // 2 + rim, (side - size[0]) // 2 + rim
    shown = np.zeros_like(blank.body)
    shown[top : side - top, left : side - left] = True
    features = tuple(f for f in blank.features if shown[f.y + f.h // 2, f.x + f.w // 2])
    return replace(blank, body=shown, features=features)


def _light_field(size: tuple[int, int]) -> Floats:
    """(H, W, 3): ring light with a soft falloff, a little stronger from the upper left, and the bow-tie that
    turned metal shows belongs to the part's own picture."""
    width, height = size
    x = (np.arange(width, dtype=np.float32) + 0.5) / width - 0.5
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height - 0.5)[:, None]
    field = 1.06 - 0.28 * (x * x + y * y) - 0.07 * (x + y)
    out = np.asarray(np.repeat(field[..., None], 3, axis=2), np.float32)
    out.flags.writeable = False
    return out


def _sensor_noise(size: tuple[int, int]) -> Bytes:
    """Noise around 128, larger than a frame: each frame takes a cut of its own."""
    draw = np.random.default_rng([3, 11])
    shape = (size[1] + _NOISE_SPARE_PX, size[0] + _NOISE_SPARE_PX, 3)
    noise = draw.standard_normal(shape, dtype=np.float32) * _SENSOR_NOISE_LEVELS
    out = np.asarray(np.clip(np.round(noise + 128), 0, 255), np.uint8)
    out.flags.writeable = False
    return out


def _fitted(rest: Bytes, size: tuple[int, int]) -> Bytes:
    """What the part lies on, at least as large as the frame: mirrored on where the frame is longer."""
    more_x, more_y = max(0, size[0] - rest.shape[1]), max(0, size[1] - rest.shape[0])
    if not (more_x or more_y):
        return rest
    tiles = (-(-size[1] // rest.shape[0]), -(-size[0] // rest.shape[1]), 1)
    return np.ascontiguousarray(np.tile(rest, tiles))
