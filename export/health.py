"""Health limits from good pictures: what a picture must be like before it may be judged.

Each measure gets a robust normal tolerance interval, median ± k·s. s is the largest of three robust estimates (from the
median absolute deviation, the quartiles and the middle nine tenths), so that two batches side by side do not look like
one narrow one. k is Howe's factor (1969, doi 10.1080/01621459.1969.10500644) for a false alarm rate of 0.1% shared by
all measures (Bonferroni), held with 95% confidence; few pictures make it large: 4.3 for two hundred, 18 for five.
An interval is never narrower than a floor that no line should stop for, and it holds every good picture but gross
outliers, which are named.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.manifest import HEALTH_FEATURE, HealthPart
from edge_daemon.artefact.pictures import read_picture
from edge_daemon.core.drift import drift_distance
from edge_daemon.core.geometry import Region
from edge_daemon.core.health import Measure, Reference, measure, reduced, shift_px, take_sample
from edge_daemon.errors import PictureError
from export.errors import PicturesError
from export.gather import Progress

FALSE_ALARM_RATE = 0.001  # of a picture, all measures together
CONFIDENCE = 0.95
_PICTURES_AT_MOST = 2_000  # more tell nothing new of a median and a spread
# Robust estimates use up to this share of what a standard deviation does (the median absolute deviation 37%, the
# range of the middle nine tenths 62%).
_EFFICIENCY = 0.5
# A good picture so many half-widths away is none: it is named, and the limits are not widened for it.
_GROSS = 3.0
_GROSS_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class _Floor:
    """The narrowest half-width of an interval: share of the median, plus grey levels or px, plus share of the side."""

    share: float
    plus: float
    side: float = 0.0


# Narrower would stop lines for nothing: a lamp may lose a tenth and a part may lie 2% of the picture elsewhere before
# patches of good parts stop looking like good patches. Half of a floor is where drift is told.
_FLOORS: Mapping[Measure, _Floor] = {
    Measure.BRIGHTNESS: _Floor(0.10, 2.0),
    Measure.CONTRAST: _Floor(0.15, 1.0),
    Measure.SHARPNESS_X: _Floor(0.25, 0.02),
    Measure.SHARPNESS_Y: _Floor(0.25, 0.02),
    Measure.SATURATION_LOW: _Floor(0.0, 0.02),
    Measure.SATURATION_HIGH: _Floor(0.0, 0.02),
    Measure.NOISE: _Floor(0.35, 0.1),
    Measure.SHIFT_X: _Floor(0.0, 1.0, 0.02),
    Measure.SHIFT_Y: _Floor(0.0, 1.0, 0.02),
}
# A picture cannot be too sharp or too little clipped to be judged; more noise than the floor below allows is common
# where gain follows the light, so it gets room upwards.
_NO_UPPER = frozenset({Measure.SHARPNESS_X, Measure.SHARPNESS_Y})
_NO_LOWER = frozenset({Measure.SATURATION_LOW, Measure.SATURATION_HIGH})
_NOISE_ROOM = 1.0  # times the median, and half a grey level


@dataclass(frozen=True, slots=True)
class Learned:
    """What the recipe gets, and one sentence each on what to look at."""

    health: HealthPart
    notes: list[str] = field(default_factory=list)


def tolerance_factor(count: int, rate: float = FALSE_ALARM_RATE / len(Measure)) -> float:
    """Howe's two-sided factor k: median ± k·s holds all but `rate` of a normal population, with 95% confidence.

    count: independent pictures, 2 or more; the degrees of freedom of the robust s are taken as half of a standard
    deviation's. The quantile of chi squared is Wilson and Hilferty's (1931).
    """
    freedom = max(1.0, _EFFICIENCY * (count - 1))
    z = NormalDist().inv_cdf(1 - rate / 2)
    low = NormalDist().inv_cdf(1 - CONFIDENCE)
    chi_squared = freedom * max(0.05, 1 - 2 / (9 * freedom) + low * math.sqrt(2 / (9 * freedom))) ** 3
    return z * math.sqrt((1 + 1 / count) * freedom / chi_squared)


def robust_deviation(values: NDArray[np.float64]) -> float:
    """The largest of three robust estimates of the standard deviation; 0 for values that are all the same."""
    middle = float(np.median(values))
    q05, q25, q75, q95 = (float(q) for q in np.quantile(values, (0.05, 0.25, 0.75, 0.95)))
    return max(1.4826 * float(np.median(np.abs(values - middle))), (q75 - q25) / 1.349, (q95 - q05) / 3.290)


def learn_health(
    paths: Sequence[Path],
    names: Sequence[str],
    blocks: Sequence[str],
    region: Region | None,
    progress: Progress,
    *,
    located: bool = False,
) -> Learned:
    """Limits from good pictures, all of one size. names: for messages; blocks: what belongs together counts once;
    region: what is judged, None for all; located: the recipe aligns parts, so that how far they may lie is its search
    range and no limit here.

    Of very many pictures, 2,000 spread evenly are measured. Raises PicturesError for one that cannot be read.
    """
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _PICTURES_AT_MOST)).round().astype(np.int64))
    kept: list[Kept] = []
    with progress("health", len(chosen)) as advance:
        for index in chosen.tolist():
            kept.append(_read(paths[index], region))
            advance(1)
    count = len({blocks[index] for index in chosen.tolist()})
    learned = limits_from(kept, [names[index] for index in chosen.tolist()], count)
    return _without_shifts(learned) if located else learned


def _without_shifts(learned: Learned) -> Learned:
    """The same without limits on where the part lies; how it drifts is still told."""
    free = {
        name: limit.model_copy(update={"lower": None, "upper": None}) if name.startswith("shift_") else limit
        for name, limit in learned.health.limits.items()
    }
    return Learned(learned.health.model_copy(update={"limits": free}), learned.notes)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one picture. picture: (64, 64) uint8; size: width, height of the region in pixels; values: all
    measures, the shift not yet against the reference."""

    picture: NDArray[np.uint8]
    size: tuple[int, int]
    values: dict[Measure, float]


def _read(path: Path, region: Region | None) -> Kept:
    try:
        return look_at(read_picture(path), region)
    except PictureError as exc:
        raise PicturesError(f"{exc}: no health limits can be learned from it; repair or remove it") from exc


def look_at(pixels: NDArray[np.uint8], region: Region | None) -> Kept:
    """What is kept of one full frame. Raises PictureError."""
    sample = take_sample(pixels, region)
    picture = reduced(sample)
    return Kept(picture, sample.size, measure(sample, Reference.of(picture)))


def limits_from(kept: Sequence[Kept], names: Sequence[str], count: int) -> Learned:
    """The limits of what was measured; count: of independent pictures or blocks among them."""
    golden = _most_typical([k.picture for k in kept])
    reference = Reference.of(kept[golden].picture)
    for k in kept:
        shift = shift_px(k.picture, k.size, reference)
        k.values[Measure.SHIFT_X], k.values[Measure.SHIFT_Y] = shift
    notes: list[str] = []
    limits: dict[str, dict[str, float | None]] = {}
    for name in Measure:
        values = np.array([k.values[name] for k in kept])
        limits[name.value], outliers = _limit(name, values, kept[0].size, count)
        if outliers:
            listed = ", ".join(f"{names[i]} ({values[i]:.4g})" for i in outliers)
            notes.append(
                f"HEALTH: {listed} far from the {name.value} of the other pictures ({np.median(values):.4g}). Such a "
                "picture will not be judged; if it shows how the line works, record more like it and build again"
            )
    health = HealthPart.model_validate(
        {
            "reference": base64.b64encode(kept[golden].picture.tobytes()).decode(),
            "limits": limits,
            "evidence": {
                "pictures": len(kept),
                "n": count,
                "reference": names[golden],
                "false_alarm_rate": FALSE_ALARM_RATE,
                "confidence": CONFIDENCE,
                "factor": round(tolerance_factor(max(2, count)), 3),
                "method": "robust normal tolerance interval, never narrower than a floor",
            },
        }
    )
    return Learned(health, notes)


def with_health(fields: Mapping[str, Any], health: HealthPart | None) -> dict[str, Any]:
    """The fields of recipe.json with these limits in the place of any that it has; None takes them out."""
    features = [feature for feature in fields["required_features"] if feature != HEALTH_FEATURE]
    changed = {key: value for key, value in fields.items() if key != "health"}
    if health is None:
        return {**changed, "required_features": features}
    return {**changed, "required_features": [*features, HEALTH_FEATURE], "health": health.model_dump(mode="json")}


def _most_typical(pictures: Sequence[NDArray[np.uint8]]) -> int:
    """The picture nearest to the median picture, by the sum of its differences."""
    stack = np.stack(pictures)
    distance = np.zeros(len(stack))
    for row in range(stack.shape[1]):  # a median of all at once would take sixteen times the pictures' own memory
        line = stack[:, row]
        distance += np.abs(line - np.median(line, axis=0)).sum(axis=1)
    return int(np.argmin(distance))


def _limit(
    name: Measure, values: NDArray[np.float64], size: tuple[int, int], count: int
) -> tuple[dict[str, float | None], list[int]]:
    """The interval of one measure, and which pictures lie so far outside that it was not widened for them."""
    centre, deviation = float(np.median(values)), robust_deviation(values)
    floor = _floor(name, centre, size)
    half = max(tolerance_factor(max(2, count)) * deviation, floor)
    upward = max(half, _NOISE_ROOM * centre + 0.5) if name is Measure.NOISE else half
    gross = np.flatnonzero((values < centre - _GROSS * half) | (values > centre + _GROSS * upward)).tolist()
    # Shifts have no outliers: where the registration goes astray for one good part it will for others.
    if len(gross) > max(1, _GROSS_SHARE * len(values)) or name in (Measure.SHIFT_X, Measure.SHIFT_Y):
        gross = []
    good = np.delete(values, gross)
    smallest, largest = float(good.min()), float(good.max())
    limit: dict[str, float | None] = {
        "lower": None if name in _NO_LOWER else min(centre - half, smallest),
        "upper": None if name in _NO_UPPER else max(centre + upward, largest),
        "centre": centre,
        "drift": drift_distance(deviation, count, floor / 2),
        "deviation": deviation,
        "smallest": smallest,
        "largest": largest,
    }
    return {key: value if value is None else round(value, 6) for key, value in limit.items()}, gross


def _floor(name: Measure, centre: float, size: tuple[int, int]) -> float:
    floor = _FLOORS[name]
    side_px = size[0] if name is Measure.SHIFT_X else size[1]
    return floor.share * abs(centre) + floor.plus + floor.side * side_px
