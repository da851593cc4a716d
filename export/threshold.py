"""Another threshold for a recipe, from the calibration scores that it keeps: no pictures, no new bank."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from edge_daemon.artefact.manifest import GoldenPart, Manifest
from edge_daemon.core.conformal import ROUND_RATES, RateNotSupportedError, block_scores, conformal_threshold
from edge_daemon.core.decision import Evaluation, Thresholds, judge_score
from edge_daemon.engines.sessions import EngineOptions
from export.calibrate import SPLIT_CONFORMAL, thresholds_from
from export.errors import CalibrationError
from export.golden import BLIND, clear_of, clearly_damaged
from export.rewrite import origin_of, read_original, successor, write_successor


class _HeldOut(BaseModel):
    """What is needed of a held-out picture; the evidence may say more."""

    model_config = ConfigDict(frozen=True, extra="allow")

    block: str
    score: float = Field(ge=0, allow_inf_nan=False)
    map_maximum: float = Field(ge=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class ThresholdRequest:
    """false_reject_rate: per part, 0 to 1, None for the smallest round one; undecided_rate: the part of it that
    comes out NotDecidable, None for no band; version, created_utc: of the new recipe."""

    recipe: Path
    out: Path
    created_utc: str
    version: str
    false_reject_rate: float | None = None
    undecided_rate: float | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True, slots=True)
class ChangedThreshold:
    """What was written. before: thresholds of the recipe it was made from; notes: one sentence each."""

    path: Path
    digest: str
    manifest: dict[str, Any]
    before: Thresholds
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold that the scores support. rate: stated; upper_rate: its 95% upper confidence bound."""

    rate: float
    threshold: float
    upper_rate: float


def change_threshold(request: ThresholdRequest) -> ChangedThreshold:
    """Write the recipe again with other thresholds, proven as a new one is. Raises ExportError or EdgeError."""
    original = read_original(request.recipe, request.out, _rate_problems(request))
    recipe, old = original.recipe, original.recipe.manifest
    held_out = held_out_scores(old)
    thresholds, _, evidence = thresholds_from(held_out, request.false_reject_rate, request.undecided_rate)
    golden, notes = _golden(old, thresholds)
    kept = {key: value for key, value in old.calibration.items() if key not in _OF_A_THRESHOLD}
    origin = {**origin_of(recipe, "threshold"), "thresholds": old.thresholds.model_dump(mode="json")}
    fields = successor(recipe, request.version, request.created_utc, origin) | {
        "thresholds": {"lower": thresholds.lower, "upper": thresholds.upper, "pixel": thresholds.pixel},
        "calibration": {**kept, **evidence},
        "golden": golden,
    }
    written = write_successor(original, request.out, fields, request.engine, changed="threshold")
    before = Thresholds(old.thresholds.lower, old.thresholds.upper, old.thresholds.pixel)
    return ChangedThreshold(request.out, written.digest, json.loads(written.manifest), before, [*notes, *written.notes])


def choices(manifest: Manifest) -> list[Choice]:
    """The threshold of every round rate that the recipe's scores support. Raises CalibrationError."""
    held_out = held_out_scores(manifest)
    scores = list(block_scores([e["score"] for e in held_out], [e["block"] for e in held_out]).values())
    found = []
    for rate in ROUND_RATES:
        try:
            threshold = conformal_threshold(scores, rate)
        except RateNotSupportedError:
            continue
        found.append(Choice(rate, threshold.threshold, threshold.upper_rate))
    return found


def held_out_scores(manifest: Manifest) -> list[dict[str, Any]]:
    """The calibration scores of a recipe. Raises CalibrationError when it has none that promise a rate."""
    name, calibration = manifest.name, manifest.calibration
    if manifest.provisional:
        raise CalibrationError(
            f"{name} is provisional: its leave-one-out scores promise no rate, so no other threshold can be taken from "
            "them. Record more good parts and build the recipe again"
        )
    if calibration.get("method") != SPLIT_CONFORMAL:
        raise CalibrationError(
            f"the thresholds of {name} are not from pictures kept apart (method {calibration.get('method')!r}): "
            "build the recipe again"
        )
    entries = calibration.get("held_out")
    try:
        TypeAdapter(list[_HeldOut]).validate_python(entries)
    except ValidationError as exc:
        raise CalibrationError(
            f"{name} does not keep the calibration scores as it should ({exc.error_count()} of them are missing or no "
            "finite numbers): build the recipe again"
        ) from exc
    assert isinstance(entries, list)
    return entries


# Keys of the evidence that belong to one threshold; all others are about the pictures and stay.
_OF_A_THRESHOLD = frozenset(
    {"rate_stated", "false_reject_rate", "marginal_rate", "upper_rate", "upper_rate_confidence", "rank", "not_ok"}
)


def _rate_problems(request: ThresholdRequest) -> list[str]:
    stated = {"--false-reject-rate": request.false_reject_rate, "--undecided-rate": request.undecided_rate}
    return [
        f"{option} must lie between 0 and 1, not {rate:g}"
        for option, rate in stated.items()
        if rate is not None and not 0 < rate < 1
    ]


def _golden(manifest: Manifest, thresholds: Thresholds) -> tuple[list[dict[str, Any]], list[str]]:
    """The golden samples that lie clear of the new thresholds, with their new evaluation.

    Raises CalibrationError when none does: nothing would prove the recipe on another PC.
    """
    golden, notes = [], []
    for part in manifest.golden:
        if _still_proves(part, thresholds):
            evaluation = judge_score(part.score, part.max_distance, thresholds).evaluation
            golden.append({**part.model_dump(mode="json"), "evaluation": evaluation.label})
        else:
            notes.append(f"{part.file} lies too close to the new threshold to prove anything and is left out")
    damaged = [part for part in golden if part["kind"] == "damaged"]
    if not damaged:
        notes.append(BLIND)
    if not golden:
        raise CalibrationError(
            f"no golden sample of {manifest.name} lies clearly on one side of the new threshold, so none could prove "
            "the recipe on another PC: choose another rate, or build the recipe again"
        )
    return golden, notes


def _still_proves(part: GoldenPart, thresholds: Thresholds) -> bool:
    if part.kind == "good":
        return clear_of(part.score, thresholds)
    evaluation = judge_score(part.score, part.max_distance, thresholds).evaluation
    return evaluation is Evaluation.NOT_OK and clearly_damaged(part.score, thresholds)
