"""Thresholds from good pictures that the bank has not seen (split conformal), or, for a few, leave-one-out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.conformal import (
    CONFIDENCE,
    ConformalBand,
    RateNotSupportedError,
    block_scores,
    conformal_band,
    conformal_threshold,
    smallest_supported_rate,
)
from edge_daemon.core.decision import Thresholds
from edge_daemon.detectors.base import Detector, Extractor, on_host
from export.errors import CalibrationError
from export.gather import Gathered, Progress

SPLIT_CONFORMAL = "split-conformal"
MIN_PICTURES = 20  # below, only a provisional recipe
MIN_HELD_OUT = 9  # the fewest that support a round rate: 10%
MAX_LEAVE_OUT_BLOCKS = 60  # one coreset each; with more there are enough for a calibrated threshold


@dataclass(frozen=True, slots=True)
class Scored:
    """One good picture judged by a bank that has not seen it. index: in `Gathered`; peak: map's maximum."""

    index: int
    score: float
    peak: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds with their evidence. conformal is None for a provisional recipe."""

    thresholds: Thresholds
    scored: list[Scored]
    conformal: ConformalBand | None
    evidence: dict[str, Any]


def held_out_fraction(stated: float | None, default: float, blocks: int) -> float:
    """The share of blocks kept apart: as stated, else the default, or what the smallest promise needs.

    30% of 20 pictures are 6, too few for any rate; up to half of the blocks may be kept apart for it.
    """
    if stated is not None:
        return stated
    return max(default, min(0.5, MIN_HELD_OUT / blocks))


def score_pictures(
    detector: Detector, pictures: Gathered, indices: NDArray[np.int64], advance: Callable[[int], object]
) -> list[Scored]:
    """Judge pictures one by one, as the daemon does. Raises CalibrationError for a score that is not finite."""
    # Boxes are not asked for: no map reaches this threshold.
    limits = Thresholds(0.0, 0.0, float(np.finfo(np.float32).max))
    scored = []
    for index in indices.tolist():
        features = features_of(detector.extractor, pictures, index)
        evidence = detector.judge(features, limits)
        peak = float(evidence.anomaly_map().max()) if evidence.anomaly_map else math.nan
        if not (math.isfinite(evidence.score) and math.isfinite(peak)):
            raise CalibrationError(
                f"{pictures.names[index]} gets the score {evidence.score}: the backbone computes nonsense here; "
                "export it again and compare with `edge-export backbone`"
            )
        scored.append(Scored(index, evidence.score, peak))
        del features, evidence  # of a large picture 400 MB, not to be kept while the next is looked at
        advance(1)
    return scored


def features_of(extractor: Extractor, pictures: Gathered, index: int) -> NDArray[np.float32]:
    """(gh, gw, D) float32 of one picture, all its tiles together. Raises CalibrationError when they are not finite."""
    features = on_host(extractor.extract(pictures.picture(index))[0])
    if not np.isfinite(features).all():
        raise CalibrationError(
            f"the backbone gives NaN or infinity for {pictures.names[index]}: a graph of lower precision may "
            "overflow; export it again in fp32"
        )
    return features


def supported_rate(held_out: int, stated: float | None, undecided_rate: float | None) -> float:
    """The false-reject rate that so many held-out blocks are asked to support: the stated one, else the
    smallest round one. Raises CalibrationError when they do not support it, or none, or no band of that rate."""
    alpha = stated if stated is not None else smallest_supported_rate(held_out)
    if alpha is None:
        raise CalibrationError(
            f"{held_out} parts (or blocks) kept apart from the bank support no false-reject rate of 10% or less: "
            f"{MIN_HELD_OUT} are needed. Record more good parts, keep more of them apart with --held-out, or make "
            "a recipe marked provisional with --provisional"
        )
    if undecided_rate is not None and not undecided_rate < alpha:
        raise CalibrationError(
            f"--undecided-rate {undecided_rate:g} must lie below the false-reject rate, {alpha:g}: it is that part of "
            "the false rejects that comes out NotDecidable instead of NotOK"
        )
    try:
        conformal_band([0.0] * held_out, alpha, undecided_rate)
    except RateNotSupportedError as exc:
        raise CalibrationError(str(exc)) from exc
    return alpha


def calibrate(
    detector: Detector,
    pictures: Gathered,
    held: Sequence[str],
    rate: float | None,
    undecided_rate: float | None,
    progress: Progress,
) -> Calibration:
    """Conformal thresholds from the held-out blocks. rate: false rejects per part, None for the smallest
    round one that they support; undecided_rate: see `core.conformal.conformal_band`. Raises CalibrationError."""
    supported_rate(len(held), rate, undecided_rate)
    indices = pictures.indices(held)
    with progress("calibrating", len(indices)) as advance:
        scored = score_pictures(detector, pictures, indices, advance)
    held_out = evidence_of(pictures, scored)
    thresholds, conformal, evidence = thresholds_from(held_out, rate, undecided_rate)
    return Calibration(thresholds, scored, conformal, {**evidence, "held_out": held_out})


def thresholds_from(
    held_out: Sequence[dict[str, Any]], rate: float | None, undecided_rate: float | None
) -> tuple[Thresholds, ConformalBand, dict[str, Any]]:
    """Thresholds and their evidence from the held-out scores that a recipe keeps.

    held_out: `block`, `score` and `map_maximum` of every picture; rate, undecided_rate: as for `calibrate`.
    Raises CalibrationError when they support no such rate.
    """
    blocks = [entry["block"] for entry in held_out]
    alpha = supported_rate(len(set(blocks)), rate, undecided_rate)
    image = conformal_band(list(block_scores([e["score"] for e in held_out], blocks).values()), alpha, undecided_rate)
    pixel = conformal_threshold(list(block_scores([e["map_maximum"] for e in held_out], blocks).values()), alpha)
    lower, upper = image.lower, image.upper
    evidence: dict[str, Any] = {
        "method": SPLIT_CONFORMAL,
        "unit": "picture" if lower.n == len(held_out) else "block",
        "rate_stated": rate is not None,
        "false_reject_rate": lower.alpha,
        "marginal_rate": lower.marginal_rate,
        "upper_rate": lower.upper_rate,
        "upper_rate_confidence": CONFIDENCE,
        "n": lower.n,
        "rank": lower.rank,
    }
    if undecided_rate is not None:
        evidence["not_ok"] = {
            "undecided_rate": undecided_rate,
            "rate": upper.alpha,
            "marginal_rate": upper.marginal_rate,
            "upper_rate": upper.upper_rate,
            "rank": upper.rank,
        }
    return Thresholds(lower.threshold, upper.threshold, pixel.threshold), image, evidence


def leave_one_out(
    detector_without: Callable[[NDArray[np.int64]], Detector], pictures: Gathered, progress: Progress
) -> Calibration:
    """Provisional thresholds: the largest score that a block gets from a bank of all the others.

    detector_without: makes a detector whose bank is built from these pictures only. No rate can be promised.
    """
    blocks = list(dict.fromkeys(pictures.blocks))
    if len(blocks) < 2:
        raise CalibrationError(
            "a provisional threshold needs at least two good pictures that are not copies of each other, of two "
            "blocks: record some more parts"
        )
    if len(blocks) > MAX_LEAVE_OUT_BLOCKS:
        raise CalibrationError(
            f"{len(blocks)} parts (or blocks) are enough for a calibrated threshold: leave out --provisional"
        )
    scored: list[Scored] = []
    everything = np.arange(len(pictures.blocks))
    with progress("leave-one-out", len(everything)) as advance:
        for block in blocks:
            left_out = pictures.indices([block])
            detector = detector_without(np.setdiff1d(everything, left_out))
            scored += score_pictures(detector, pictures, left_out, advance)
    image, pixel = max(s.score for s in scored), max(s.peak for s in scored)
    evidence = {
        "method": "leave-one-out",
        "unit": "picture" if len(blocks) == len(everything) else "block",
        "n": len(blocks),
        "held_out": evidence_of(pictures, scored),
    }
    return Calibration(Thresholds(image, image, pixel), scored, None, evidence)


def evidence_of(pictures: Gathered, scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """What a recipe keeps of every held-out picture: enough to set another threshold later."""
    return [
        {
            "name": pictures.names[s.index],
            "block": pictures.blocks[s.index],
            "score": s.score,
            "map_maximum": s.peak,
            "sha256": pictures.digests[s.index],
        }
        for s in scored
    ]
