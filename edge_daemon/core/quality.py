"""How well scores and anomaly maps separate good from defective: AUROC, AUPRO, F1.

Everything is exact: ties count as the trapezoid of the ROC curve draws them, nothing is binned.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_daemon.errors import EdgeError

PRO_LIMIT = 0.3  # Bergmann et al. 2021 (MVTec AD, IJCV 129) integrate the PRO curve up to this rate

_CURVE_POINTS = 1024  # of a pixel curve; finer than any plot of it


class QualityError(EdgeError):
    """Scores, maps or masks that no figure of quality can be computed from."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A monotonic curve from (0, 0) to (1, 1), as for a receiver operating characteristic.

    false_rate: (K,) float64, share of good items at or above the threshold
    true_rate:  (K,) float64, share of defective items at or above it (or mean region overlap)
    threshold:  (K,) float64, falling; the first is +infinity
    """

    false_rate: NDArray[np.float64]
    true_rate: NDArray[np.float64]
    threshold: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PixelQuality:
    """What the anomaly maps of a set of pictures are worth against their ground truth.

    auroc, aupro: None where no pixel is defective, or none is good
    regions:      number of connected regions of ground truth (8 neighbours)
    roc, pro:     the curves behind the figures, thinned to about a thousand points
    """

    auroc: float | None
    aupro: float | None
    regions: int
    roc: Curve | None
    pro: Curve | None


def auroc(scores: ArrayLike, defective: ArrayLike) -> float | None:
    """Area under the ROC curve: P(defective scores above good) + P(equal) / 2 (Mann and Whitney 1947).

    scores:    (N,) numbers, higher is worse
    defective: (N,) bool
    Returns None where there is only one class. Raises QualityError on NaN or unequal lengths.
    """
    values, truth = _checked(scores, defective)
    if truth.all() or not truth.any():
        return None
    levels, inverse, above, at_least = _ranks(values[truth], [values[~truth]])
    good = len(values) - int(truth.sum())
    return float(np.mean(1.0 - (above + at_least)[inverse] / (2.0 * good))) if len(levels) else None


def roc_curve(scores: ArrayLike, defective: ArrayLike) -> Curve | None:
    """ROC curve with one point per distinct score, starting at (0, 0) with an infinite threshold.

    Arguments and errors as in `auroc`; None where there is only one class.
    """
    values, truth = _checked(scores, defective)
    if truth.all() or not truth.any():
        return None
    order = np.argsort(-values, kind="stable")
    falling, hit = values[order], truth[order]
    last_of_level = np.append(falling[1:] != falling[:-1], True)
    true_rate = np.cumsum(hit)[last_of_level] / hit.sum()
    false_rate = np.cumsum(~hit)[last_of_level] / (~hit).sum()
    return Curve(
        np.concatenate(([0.0], false_rate)),
        np.concatenate(([0.0], true_rate)),
        np.concatenate(([np.inf], falling[last_of_level])),
    )


def f1_max(scores: ArrayLike, defective: ArrayLike) -> tuple[float, float] | None:
    """Largest F1 over all thresholds and the threshold that gives it (defective: score >= threshold).

    The highest of several such thresholds. Arguments and errors as in `auroc`; None where nothing is
    defective. A figure for comparing methods: choosing a threshold by it would need defects.
    """
    values, truth = _checked(scores, defective)
    if not truth.any():
        return None
    order = np.argsort(-values, kind="stable")
    falling, hit = values[order], truth[order]
    last_of_level = np.append(falling[1:] != falling[:-1], True)
    found = np.cumsum(hit)[last_of_level]
    flagged = np.flatnonzero(last_of_level) + 1
    f1 = 2.0 * found / (flagged + hit.sum())
    best = int(np.argmax(f1))
    return float(f1[best]), float(falling[last_of_level][best])


def pixel_quality(
    maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]], limit: float = PRO_LIMIT
) -> PixelQuality:
    """Pixel AUROC and AUPRO of anomaly maps (Bergmann et al. 2021, section 5.3).

    maps:  sequence of (H, W) float32, read twice and one at a time: a memory map will do
    masks: sequence of (H, W) bool of the same shapes, True where defective; all False for a good part
    limit: false positive rate up to which the per-region overlap is integrated, in (0, 1]

    The PRO curve is the mean, over all connected regions of ground truth, of the share of the region
    at or above the threshold, over the share of all good pixels at or above it. As both are linear
    between distinct values, a pixel of value s adds the area to the right of its step: with a and b
    the good shares > s and >= s, the area up to L is 0 for L <= a, L - (a + b) / 2 for L >= b and
    (L - a)² / 2(b - a) between. The mean over regions of the mean over their pixels, divided by L,
    is exactly the interpolated integral of MVTec's own code.
    Raises QualityError on NaN or on shapes that differ.
    """
    if not 0.0 < limit <= 1.0:
        raise QualityError(f"the integration limit of AUPRO must lie in (0, 1], not {limit}")
    defect_values, weights, regions = _defect_pixels(maps, masks)
    good = sum(int(mask.size - np.count_nonzero(mask)) for mask in masks)
    if not regions or not good:
        return PixelQuality(None, None, regions, None, None)
    levels, inverse, above, at_least = _ranks(defect_values, _good_pixels(maps, masks))
    a, b = above / good, at_least / good
    area = np.where(limit >= b, limit - (a + b) / 2, 0.0)
    inside = (a < limit) & (limit < b)
    area[inside] = (limit - a[inside]) ** 2 / (2 * (b - a)[inside])
    return PixelQuality(
        auroc=float(np.mean((1.0 - (a + b) / 2)[inverse])),
        aupro=float(area[inverse] @ weights / limit),
        regions=regions,
        roc=_thin_curve(levels, b, np.bincount(inverse) / len(defect_values)),
        pro=_thin_curve(levels, b, np.bincount(inverse, weights).astype(np.float64)),
    )


def _checked(scores: ArrayLike, defective: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores, np.float64).ravel()
    truth = np.asarray(defective, bool).ravel()
    if values.shape != truth.shape:
        raise QualityError(f"{len(values)} scores for {len(truth)} pictures")
    if np.isnan(values).any():
        raise QualityError(f"{int(np.isnan(values).sum())} of {len(values)} scores are not a number")
    return values, truth


def _ranks(
    defect_values: NDArray[np.floating], good_chunks: Iterable[NDArray[np.floating]]
) -> tuple[NDArray[np.floating], NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct defective values (rising), where each value is among them, and per distinct value how
    many good values lie above it and how many at or above it."""
    levels, inverse = np.unique(defect_values, return_inverse=True)
    below = np.zeros(len(levels) + 1, np.int64)
    up_to = np.zeros(len(levels) + 1, np.int64)
    for chunk in good_chunks:
        rising = np.sort(chunk)  # neighbouring queries then hit neighbouring memory
        below += np.bincount(np.searchsorted(levels, rising, "left"), minlength=len(below))
        up_to += np.bincount(np.searchsorted(levels, rising, "right"), minlength=len(up_to))
    above = np.cumsum(below[::-1])[::-1][1:]
    at_least = np.cumsum(up_to[::-1])[::-1][1:]
    return levels, inverse, above, at_least


def _defect_pixels(
    maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
) -> tuple[NDArray[np.float32], NDArray[np.float64], int]:
    """Map values under the ground truth, the weight of each (1 / its region's size / regions), regions."""
    if len(maps) != len(masks):
        raise QualityError(f"{len(maps)} anomaly maps for {len(masks)} masks")
    values: list[NDArray[np.float32]] = []
    weights: list[NDArray[np.float64]] = []
    regions = 0
    for index, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        if anomaly_map.shape != mask.shape:
            raise QualityError(f"map {index} is {anomaly_map.shape}, its mask {mask.shape}")
        if np.isnan(anomaly_map).any():
            raise QualityError(f"map {index} holds values that are not a number")
        if not mask.any():
            continue
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += count - 1
        values.append(np.asarray(anomaly_map[mask]))
        weights.append(1.0 / np.bincount(labels.ravel())[labels[mask]])
    if not values:
        return np.empty(0, np.float32), np.empty(0), 0
    return np.concatenate(values), np.concatenate(weights) / regions, regions


def _good_pixels(
    maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_]]
) -> Iterator[NDArray[np.float32]]:
    for anomaly_map, mask in zip(maps, masks, strict=True):
        yield np.asarray(anomaly_map[~mask])


def _thin_curve(levels: NDArray[np.floating], false_rate: NDArray[np.float64], step: NDArray[np.float64]) -> Curve:
    """Curve over rising levels, thinned evenly along its length so that corners survive."""
    x = np.concatenate(([0.0], false_rate[::-1], [1.0]))
    y = np.concatenate(([0.0], np.minimum(np.cumsum(step[::-1]), 1.0), [1.0]))
    t = np.concatenate(([np.inf], levels[::-1].astype(np.float64), [-np.inf]))
    length = x + y  # monotonic, so this is the way along the curve
    wanted = np.linspace(0.0, length[-1], _CURVE_POINTS)
    keep = np.unique(np.append(np.searchsorted(length, wanted), [0, len(x) - 1]).clip(0, len(x) - 1))
    return Curve(x[keep], y[keep], t[keep])
