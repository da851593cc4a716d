"""Image health: whether a picture is one that can be judged at all, before anything is judged.

A handful of measures per view, each cheap and reproducible: integer sums over the rows of a fixed sample, divided
once; only the registration shift goes through a transform, and is rounded to a hundredth of a pixel. The limits are
learned from good parts (`export.health`); what lies outside is not decidable, whatever a score would say.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.decision import Reason
from edge_daemon.core.geometry import Region
from edge_daemon.errors import PictureError

REDUCED_PX = 64  # side of the reduced picture that registration works on, and the number of strips sampled
_STRIP_ROWS = 3  # what second differences need
SMALLEST_REGION_PX = _STRIP_ROWS
_DETAIL_WIDTH_PX = 1024  # wider frames: fewer strips for the measures of detail, so that their cost stays

# Sensors and drivers differ in where black lies; a channel value this near to an end of the scale carries no detail.
_CLIPPED_LOW, _CLIPPED_HIGH = 1, 254
# Of differences the strongest hundredth counts: edges, not the sensor's noise.
_TAIL_SHARE = 0.01
# Too dark, and hardly anything above this level: there is no light.
_BLACK_LEVEL = 24
# Frames before the present one that it must not repeat: drivers that freeze hand out their ring of buffers again, of
# which a camera may have as many (`GenicamConfig.buffers`). Fewer than 255: after so many the moving test patterns that
# cameras are tried out with begin again.
FRAMES_REMEMBERED = 200
# BLAKE2b takes 0.05 ms for so much on a Zen 3 core, the sums over a frame of 512x512 px 0.01 ms, of 8000x2000 RGB 3 ms.
_HASHED_BYTES = 1 << 15
_FINGERPRINT_BYTES = 16
# Registration looks at coarse structure only: 0.12 cycles a pixel of the reduced picture and below. Finer structure
# is texture and noise, which differ from part to part.
_REGISTRATION_CYCLES = 0.12
_WINDOW_EDGE = 0.125
# Median of |x| of a normal variable in standard deviations, and the gain of the second difference in both directions.
_MEDIAN_ABS, _LAPLACE_GAIN = 0.67448975, 6.0


class Measure(StrEnum):
    """What is measured of every view, by its name on the wire."""

    BRIGHTNESS = "brightness"
    CONTRAST = "contrast"
    SHARPNESS_X = "sharpness_x"
    SHARPNESS_Y = "sharpness_y"
    SATURATION_LOW = "saturation_low"
    SATURATION_HIGH = "saturation_high"
    NOISE = "noise"
    SHIFT_X = "shift_x_px"
    SHIFT_Y = "shift_y_px"


@dataclass(frozen=True, slots=True)
class Sample:
    """What is looked at of a frame: 64 strips of 3 rows, spread evenly over the region.

    rows: (192, W) or (192, W, 3) uint8, the channels as they came; grey: (192, W) uint8, their luma;
    size: width, height of the region in pixels.
    """

    rows: NDArray[np.uint8]
    grey: NDArray[np.uint8]
    size: tuple[int, int]


def take_sample(pixels: NDArray[np.uint8], region: Region | None) -> Sample:
    """The sample of a full frame, (H, W) or (H, W, 3) uint8, RGB; region: what of it is judged, None for all.

    Luma is 0.299 R + 0.587 G + 0.114 B in OpenCV's fixed point (ITU-R BT.601). Raises PictureError for another
    type or layout, and for a region that is no 3x3 pixels or leaves the frame.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise PictureError(f"a frame must be (H, W) or (H, W, 3) uint8, this one is {pixels.shape} {pixels.dtype}")
    height, width = pixels.shape[:2]
    area = region or Region(0, 0, width, height)
    if min(area.w, area.h) < SMALLEST_REGION_PX:
        raise PictureError(
            f"health cannot be measured in {area.w}x{area.h} px: a region (--roi) of at least {SMALLEST_REGION_PX}x"
            f"{SMALLEST_REGION_PX} px is needed"
        )
    if area.x + area.w > width or area.y + area.h > height:
        raise PictureError(f"a frame of {width}x{height} px does not hold the region {area}: no health can be measured")
    rows = pixels[_strips(area.h) + area.y, area.x : area.x + area.w]
    grey = rows if rows.ndim == 2 else np.asarray(cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY), np.uint8)
    return Sample(rows, grey, (area.w, area.h))


@lru_cache(maxsize=32)
def _strips(height: int) -> NDArray[np.intp]:
    """Rows of the sample, (192,): strips around the middles of 64 equal parts of the height."""
    middle = (2 * np.arange(REDUCED_PX) + 1) * height // (2 * REDUCED_PX)
    rows = np.clip(middle - 1, 0, height - _STRIP_ROWS)[:, None] + np.arange(_STRIP_ROWS)
    rows.flags.writeable = False
    return rows.ravel()


def reduced(sample: Sample) -> NDArray[np.uint8]:
    """The region at 64x64 px, uint8: the middle row of each strip, averaged over equal columns (a rest at the sides is
    cut)."""
    width = sample.size[0]
    column_px = max(1, width // REDUCED_PX)
    used = min(width, column_px * REDUCED_PX)
    left = (width - used) // 2
    grey = sample.grey[1::_STRIP_ROWS, left : left + used]
    return np.asarray(cv2.resize(grey, (REDUCED_PX, REDUCED_PX), interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True, slots=True)
class Reference:
    """The golden picture as registration wants it: spectrum, (64, 64) complex64, of the windowed reduced picture."""

    spectrum: NDArray[np.complex64]

    @classmethod
    def of(cls, picture: NDArray[np.uint8]) -> "Reference":
        """picture: (64, 64) uint8, see `reduced`."""
        return cls(_spectrum(picture))


def measure(sample: Sample, reference: Reference) -> dict[Measure, float]:
    """All measures of one view. Every value is finite.

    brightness:       mean luma, grey levels
    contrast:         standard deviation of the luma, grey levels
    sharpness_x, _y:  focus along rows and down columns: the strongest hundredth of |I(x+1) − 2 I(x) + I(x−1)| over
                      that of |I(x+1) − I(x−1)|, means of each: how fine the edges are, whatever their height. Nayar
                      and Nakagawa's modified Laplacian (1994, doi 10.1109/34.308479) over Brenner's difference (1976;
                      both in Pertuz, Puig and Garcia 2013, doi 10.1016/j.patcog.2012.11.011). The tails alone count,
                      so that noise does not pass for detail. 0 for a picture without edges. A Gaussian blur of 1 px
                      costs a third to a half of it; motion blurs one of the two directions.
    saturation_low, _high: share of channel values up to 1, and from 254 on; 0 to 1
    noise:            standard deviation of the noise in grey levels: Immerkær's mask (1996, doi
                      10.1006/cviu.1996.0060) with the median for the mean, which edges do not move
    shift_x_px, _y_px: how far the part lies right of and below its place in the golden picture, pixels of the full
                      frame; see `registration`
    """
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(sample.grey))
    width = sample.size[0]
    every = max(1, width // _DETAIL_WIDTH_PX)
    strips = sample.grey.reshape(REDUCED_PX, _STRIP_ROWS, width)[::every].astype(np.int16)
    middle = strips[:, 1]
    channels = sample.rows[1 :: _STRIP_ROWS * every].reshape(len(strips), -1)
    shift_x, shift_y = shift_px(reduced(sample), sample.size, reference)
    along = middle[:, 2:] - 2 * middle[:, 1:-1] + middle[:, :-2]
    down = strips[:, 0] - 2 * middle + strips[:, 2]
    return {
        Measure.BRIGHTNESS: mean,
        Measure.CONTRAST: deviation,
        Measure.SHARPNESS_X: _ratio(_tail(along), _tail(middle[:, 2:] - middle[:, :-2])),
        Measure.SHARPNESS_Y: _ratio(_tail(down), _tail(strips[:, 2] - strips[:, 0])),
        Measure.SATURATION_LOW: _share(channels <= _CLIPPED_LOW),
        Measure.SATURATION_HIGH: _share(channels >= _CLIPPED_HIGH),
        Measure.NOISE: _noise(down[::4]),
        Measure.SHIFT_X: shift_x,
        Measure.SHIFT_Y: shift_y,
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _share(clipped: NDArray[np.bool_]) -> float:
    return int(np.count_nonzero(clipped)) / clipped.size


def _histogram(values: NDArray[np.int16]) -> NDArray[np.float64]:
    """Counts of the magnitudes, (256,), whole numbers; what is larger counts as 255."""
    counts = cv2.calcHist([cv2.convertScaleAbs(values)], [0], None, [256], [0, 256])
    return np.asarray(counts, np.float64).ravel()


def _tail(values: NDArray[np.int16]) -> float:
    """Mean of the largest hundredth of the magnitudes, counted exactly; part of a value's count where it is split."""
    counts = _histogram(values)[::-1]
    wanted = _TAIL_SHARE * values.size
    upto = counts.cumsum()
    split = int(upto.searchsorted(wanted))
    before = float(upto[split - 1]) if split else 0.0
    whole = float(counts[:split] @ _magnitudes()[:split])  # integers far below 2^53: exact in any order
    return (whole + (wanted - before) * (255 - split)) / wanted


@lru_cache(maxsize=1)
def _magnitudes() -> NDArray[np.float64]:
    falling = np.arange(255, -1, -1, dtype=np.float64)
    falling.flags.writeable = False
    return falling


def _noise(vertical: NDArray[np.int16]) -> float:
    """vertical: (n, W) int16 second differences down the columns. The median lies inside its histogram's class in
    proportion, as for grouped data."""
    laplace = vertical[:, :-2] - 2 * vertical[:, 1:-1] + vertical[:, 2:]
    upto = _histogram(laplace).cumsum()
    half = laplace.size / 2
    level = int(upto.searchsorted(half))
    before = float(upto[level - 1]) if level else 0.0
    # The class of 0 is half as wide as the others: −0.5 to 0.5 is one class of the signed values.
    width, start = (1.0, level - 0.5) if level else (0.5, 0.0)
    return (start + width * (half - before) / (float(upto[level]) - before)) / (_MEDIAN_ABS * _LAPLACE_GAIN)


@lru_cache(maxsize=1)
def _window() -> NDArray[np.float32]:
    """Tukey's window, (64, 64), falling over an eighth at each edge: what enters there counts little, and a part that
    fills the picture keeps its outline."""
    place = (np.arange(REDUCED_PX) + 0.5) / REDUCED_PX
    edge = np.minimum(np.minimum(place, 1 - place) / _WINDOW_EDGE, 1.0)
    line = (0.5 * (1 - np.cos(np.pi * edge))).astype(np.float32)
    window = np.outer(line, line)
    window.flags.writeable = False
    return window


@lru_cache(maxsize=1)
def _low_pass() -> NDArray[np.float32]:
    """Weight of each frequency, (64, 64): a Gaussian, which makes the correlation's peak nearly one."""
    cycles = np.fft.fftfreq(REDUCED_PX)
    squared = cycles * cycles + (cycles * cycles)[:, None]
    weight = np.exp(-squared / (2 * _REGISTRATION_CYCLES**2)).astype(np.float32)
    weight.flags.writeable = False
    return weight


def _spectrum(picture: NDArray[np.uint8]) -> NDArray[np.complex64]:
    values = picture.astype(np.float32)
    windowed = (values - values.mean()) * _window()
    return np.asarray(cv2.dft(windowed, flags=cv2.DFT_COMPLEX_OUTPUT), np.float32).view(np.complex64)[..., 0]


def shift_px(picture: NDArray[np.uint8], size: tuple[int, int], reference: Reference) -> tuple[float, float]:
    """How far right of and below its place in the reference a part lies, in pixels of the full frame, to a hundredth.

    picture: see `reduced`; size: width, height of the region that it shows.
    """
    right, down = registration(picture, reference)
    column_px = size[0] // REDUCED_PX if size[0] >= REDUCED_PX else size[0] / REDUCED_PX
    return round(right * column_px, 2), round(down * size[1] / REDUCED_PX, 2)


def registration(picture: NDArray[np.uint8], reference: Reference) -> tuple[float, float]:
    """Shift of a reduced picture, (64, 64) uint8, against the reference: right, down, in its pixels, −32 to 32.

    Phase correlation (Kuglin and Hines 1975) of coarse structure. The cross power spectrum is divided by the square
    root of its magnitude, not by all of it: with full whitening a contamination on a bottle moved the peak by 10
    pixels, with half of it no defect moved any part by one. The peak's place between pixels comes from a parabola
    through the logarithms of its neighbours, exact for a Gaussian peak. (0, 0) for a picture without structure. Parts
    that lie differently each time give a different shift each time, and so teach wide limits; a periodic texture
    cannot tell a shift by its period from none.
    """
    cross = _spectrum(picture) * np.conj(reference.spectrum)
    power = cross.real**2 + cross.imag**2
    floor = np.float32(1e-6) * power.max()
    if not floor > 0:
        return 0.0, 0.0
    cross *= _low_pass() / np.sqrt(np.sqrt(power + floor))
    parts = cross.view(np.float32).reshape(REDUCED_PX, REDUCED_PX, 2)
    surface = np.asarray(cv2.idft(parts, flags=cv2.DFT_REAL_OUTPUT), np.float32)
    y, x = divmod(int(surface.argmax()), REDUCED_PX)
    return _wrapped(x + _vertex(surface[y], x)), _wrapped(y + _vertex(surface[:, x], y))


def _vertex(line: NDArray[np.floating], at: int) -> float:
    """Place of the peak between samples, −0.5 to 0.5."""
    peak = float(line[at])
    left, right = (max(float(line[(at + step) % REDUCED_PX]), 1e-6 * peak) for step in (-1, 1))
    left, middle, right = math.log(left), math.log(peak), math.log(right)
    curvature = left - 2 * middle + right
    return 0.5 * (left - right) / curvature if curvature < 0 else 0.0


def _wrapped(shift: float) -> float:
    return (shift + REDUCED_PX / 2) % REDUCED_PX - REDUCED_PX / 2


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a measure of a good picture lies. lower, upper: beyond, the picture is not decidable, None for no limit;
    centre: the good pictures' median; drift: how far from it the running mean may be (`core.drift`)."""

    lower: float | None
    upper: float | None
    centre: float
    drift: float


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """What a recipe demands of a picture before it is judged. region: of the full frame, None for all of it."""

    region: Region | None
    reference: Reference
    limits: Mapping[Measure, Limit]


@dataclass(frozen=True, slots=True)
class Violation:
    """Why a picture is not decidable; message: the same for people."""

    reason: Reason
    message: str


# In the order in which they are looked at: what explains the others comes first. Without light nothing is sharp.
_REASONS: tuple[tuple[Measure, Reason, Reason], ...] = (
    (Measure.BRIGHTNESS, Reason.HEALTH_UNDEREXPOSED, Reason.HEALTH_OVEREXPOSED),
    (Measure.SATURATION_HIGH, Reason.HEALTH_OVEREXPOSED, Reason.HEALTH_OVEREXPOSED),
    (Measure.SATURATION_LOW, Reason.HEALTH_UNDEREXPOSED, Reason.HEALTH_UNDEREXPOSED),
    (Measure.SHARPNESS_X, Reason.HEALTH_BLUR, Reason.HEALTH_BLUR),
    (Measure.SHARPNESS_Y, Reason.HEALTH_BLUR, Reason.HEALTH_BLUR),
    (Measure.SHIFT_X, Reason.HEALTH_SHIFT, Reason.HEALTH_SHIFT),
    (Measure.SHIFT_Y, Reason.HEALTH_SHIFT, Reason.HEALTH_SHIFT),
    (Measure.CONTRAST, Reason.HEALTH_CONTRAST, Reason.HEALTH_CONTRAST),
    # A picture smoother than the sensor can make is blurred, by filtering or compression where not by the lens.
    (Measure.NOISE, Reason.HEALTH_BLUR, Reason.HEALTH_NOISE),
)


def violation(values: Mapping[Measure, float], limits: Mapping[Measure, Limit]) -> Violation | None:
    """The first limit that a picture breaks, None for a healthy one. A measure that is missing or not finite breaks
    its limit; one without limits is not looked at."""
    for name, too_low, too_high in _REASONS:
        limit = limits.get(name)
        if limit is None:
            continue
        value = values.get(name, math.nan)
        low, high = limit.lower, limit.upper
        # Written so that NaN fails.
        if low is not None and not value >= low:
            reason = Reason.HEALTH_BLACK if name is Measure.BRIGHTNESS and _is_black(values) else too_low
            return Violation(reason, f"{name} {value:.4g} is below {low:.4g}, good parts have {limit.centre:.4g}")
        if not (math.isfinite(value) and (high is None or value <= high)):
            allowed = "no finite number" if high is None else f"above {high:.4g}"
            return Violation(too_high, f"{name} {value:.4g} is {allowed}, good parts have {limit.centre:.4g}")
    return None


def _is_black(values: Mapping[Measure, float]) -> bool:
    return values.get(Measure.BRIGHTNESS, 0.0) + 2 * values.get(Measure.CONTRAST, 0.0) < _BLACK_LEVEL


def fingerprint(pixels: NDArray[np.uint8]) -> bytes:
    """What two frames have in common only when they are the same bit by bit: 16 bytes.

    pixels: a whole frame, (H, W) or (H, W, C), of any type. BLAKE2b (RFC 7693) of its shape, of whole rows spread
    evenly over it, 32 KiB of them (all, up to 181x181 px of one byte), and of sum and exclusive or of all its 64-bit
    words, little-endian, so that every pixel counts. The noise of a sensor makes two pictures of one part that stands
    still differ in every row.
    """
    rows = np.ascontiguousarray(pixels).reshape(max(1, len(pixels)), -1).view(np.uint8)
    mark = hashlib.blake2b(repr((pixels.shape, pixels.dtype.str)).encode(), digest_size=_FINGERPRINT_BYTES)
    step = max(1, -(-rows.size // _HASHED_BYTES))
    mark.update(np.ascontiguousarray(rows[step // 2 :: step]).data)
    everything = rows.ravel()
    words = everything[: everything.size // 8 * 8].view("<u8")
    mark.update(everything[words.nbytes :].data)
    mark.update(np.array([words.sum(dtype=np.uint64), np.bitwise_xor.reduce(words)], "<u8").data)
    return mark.digest()


class Repeats:
    """Fingerprints of the last frames of one view, the oldest forgotten when there are more than `kept`."""

    def __init__(self, kept: int = FRAMES_REMEMBERED) -> None:
        self._kept = kept
        self._seen: dict[bytes, None] = {}  # in the order in which they were last seen

    def __len__(self) -> int:
        return len(self._seen)

    def repeats(self, mark: bytes) -> bool:
        """Whether one of the last frames was this one; from now on it is the newest of them."""
        known = mark in self._seen
        if known:
            del self._seen[mark]
        elif len(self._seen) >= self._kept:
            del self._seen[next(iter(self._seen))]
        self._seen[mark] = None
        return known
