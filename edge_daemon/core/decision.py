"""From evidence to evaluation. OK is the positive branch: whatever cannot be proven is not OK."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import numpy as np
from numpy.typing import NDArray

from edge_daemon.core.align import Pose
from edge_daemon.core.geometry import Box


class Evaluation(IntEnum):
    """ResultEvaluation of OPC 40001-101. OK is never zero."""

    UNDEFINED = 0
    OK = 1
    NOT_OK = 2
    NOT_DECIDABLE = 3

    @property
    def label(self) -> str:
        """The name on the wire: Undefined, OK, NotOK, NotDecidable."""
        return _LABELS[self]

    @classmethod
    def from_label(cls, label: str) -> "Evaluation":
        """Inverse of `label`. Raises KeyError on any other text."""
        return _BY_LABEL[label]


_LABELS = {
    Evaluation.UNDEFINED: "Undefined",
    Evaluation.OK: "OK",
    Evaluation.NOT_OK: "NotOK",
    Evaluation.NOT_DECIDABLE: "NotDecidable",
}
_BY_LABEL = {label: evaluation for evaluation, label in _LABELS.items()}


class ResultState(StrEnum):
    """ResultState of OPC 40100-1, as far as a finished inspection can have one."""

    COMPLETED = "Completed"
    ABORTED = "Aborted"  # the trigger was never taken up: missed
    FAILED = "Failed"


class Reason(StrEnum):
    """Why an inspection has no verdict, or no certain one. Part of the wire's vocabulary."""

    NONE = ""
    LATE = "late"
    NO_FRAME = "no_frame"
    EXPOSED_LATE = "exposed_late"  # so long after its trigger that the picture may show another part
    CAMERA = "camera"
    FRAME_SIZE = "frame_size"
    CAMERA_SETTINGS = "camera_settings"  # not those of the recipe's pictures, or not known
    # A pulse on a wire: nobody can say which part a picture shows; see `core.binding`.
    TRIGGER_AMBIGUOUS = "trigger_ambiguous"
    TRIGGER_COUNT = "trigger_count"
    CAMERA_CLOCK = "camera_clock"
    OUT_OF_STEP = "out_of_step"
    MISSING_VIEW = "missing_view"
    SCORE_NOT_FINITE = "score_not_finite"
    BETWEEN_THRESHOLDS = "between_thresholds"
    # The picture is not one that can be judged, whatever its score would be; see `core.health`.
    HEALTH_BLACK = "health_black"
    HEALTH_FROZEN = "health_frozen"
    HEALTH_UNDEREXPOSED = "health_underexposed"
    HEALTH_OVEREXPOSED = "health_overexposed"
    HEALTH_BLUR = "health_blur"
    HEALTH_SHIFT = "health_shift"
    HEALTH_CONTRAST = "health_contrast"
    HEALTH_NOISE = "health_noise"
    NOT_LOCATED = "not_located"  # the part was not found where the recipe looks for it; see `core.align`
    JOB_MISMATCH = "job_mismatch"
    ENGINE = "engine"
    GOLDEN_SAMPLE = "golden_sample"  # judged by what a golden sample has shown to be wrong; see `pipeline.golden`
    JOURNAL = "journal"
    UNPROVEN = "unproven"  # an OK whose own record does not bear it out
    RESTARTED = "restarted"
    STOPPED = "stopped"
    MISSED_BUSY = "missed_busy"
    MISSED_NOT_READY = "missed_not_ready"
    MISSED_DUPLICATE = "missed_duplicate"


class Bucket(StrEnum):
    """The disjoint buckets of the invariant: accepted = sum of these + in flight."""

    OK = "ok"
    NOT_OK = "not_ok"
    NOT_DECIDABLE = "not_decidable"
    FAILED = "failed"
    MISSED = "missed"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Decision limits in raw score units: OK up to `lower`, NotOK above `upper`, NotDecidable between.
    `pixel` only draws boxes."""

    lower: float
    upper: float
    pixel: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lower) and math.isfinite(self.upper) and math.isfinite(self.pixel)):
            raise ValueError("thresholds must be finite")
        if not 0 <= self.lower <= self.upper:
            raise ValueError(f"thresholds must satisfy 0 <= lower <= upper, got {self.lower} and {self.upper}")


@dataclass(frozen=True, slots=True)
class ViewVerdict:
    """What one view says; `judged` is False when there is nothing to judge by (no frame, late, error)."""

    evaluation: Evaluation
    reason: Reason
    judged: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an inspection says: evaluation, OPC state and the reason when it is not a plain verdict."""

    evaluation: Evaluation
    state: ResultState
    reason: Reason

    @property
    def bucket(self) -> Bucket:
        return bucket_of(self.evaluation, self.state)


def bucket_of(evaluation: Evaluation, state: ResultState) -> Bucket:
    """The one bucket of the invariant that a finished inspection is counted in."""
    if state is ResultState.ABORTED:
        return Bucket.MISSED
    if state is ResultState.FAILED:
        return Bucket.FAILED
    return {
        Evaluation.OK: Bucket.OK,
        Evaluation.NOT_OK: Bucket.NOT_OK,
        Evaluation.NOT_DECIDABLE: Bucket.NOT_DECIDABLE,
        Evaluation.UNDEFINED: Bucket.FAILED,
    }[evaluation]


def judge_score(score: float, max_distance: float, thresholds: Thresholds) -> ViewVerdict:
    """Evaluation of one image score. A tie at the threshold is OK; NaN and infinity never pass."""
    if not (math.isfinite(score) and math.isfinite(max_distance)) or score < 0:
        return ViewVerdict(Evaluation.UNDEFINED, Reason.SCORE_NOT_FINITE, judged=False)
    if score <= thresholds.lower:
        return ViewVerdict(Evaluation.OK, Reason.NONE)
    if score <= thresholds.upper:
        return ViewVerdict(Evaluation.NOT_DECIDABLE, Reason.BETWEEN_THRESHOLDS)
    return ViewVerdict(Evaluation.NOT_OK, Reason.NONE)


def combine(views: Sequence[ViewVerdict], expected_views: int) -> Verdict:
    """One verdict from all views: the worst rules, and a missing or unjudged view never gives OK."""
    unjudged = [v for v in views if not v.judged or v.evaluation is Evaluation.UNDEFINED]
    if unjudged:
        return Verdict(Evaluation.UNDEFINED, ResultState.FAILED, unjudged[0].reason)
    if expected_views < 1 or len(views) != expected_views:
        return Verdict(Evaluation.UNDEFINED, ResultState.FAILED, Reason.MISSING_VIEW)
    for worst in (Evaluation.NOT_OK, Evaluation.NOT_DECIDABLE):
        for view in views:
            if view.evaluation is worst:
                return Verdict(worst, ResultState.COMPLETED, view.reason)
    if all(view.evaluation is Evaluation.OK for view in views):
        return Verdict(Evaluation.OK, ResultState.COMPLETED, Reason.NONE)
    return Verdict(Evaluation.UNDEFINED, ResultState.FAILED, Reason.MISSING_VIEW)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a detector found in one frame, before any threshold on the score.

    score: image score in raw units; max_distance: largest patch distance before re-weighting;
    boxes: largest peaks first, full-frame pixels; map_kind: of `shown_map`: `exact`, or `upper_bound` outside
    boxes; anomaly_map: makes the exact (H, W) float32 map at model size, raw distance units, when somebody
    wants it, which may take a search of its own; shown_map: makes the one that is published, from what the
    judgement already knows; exact_searches: patches whose nearest row had to be searched exactly, for the score and
    for the boxes; pose: how the part lay, None where it was not looked for: maps are of the aligned picture, boxes of
    the frame itself;
    boxes_below_minimum: boxes left out because they are smaller than what counts.
    """

    score: float
    max_distance: float
    boxes: tuple[Box, ...]
    map_kind: str
    anomaly_map: Callable[[], NDArray[np.float32]] | None = field(default=None, compare=False, repr=False)
    shown_map: Callable[[], NDArray[np.float32]] | None = field(default=None, compare=False, repr=False)
    exact_searches: int = field(default=0, compare=False)
    pose: Pose | None = None
    boxes_below_minimum: int = 0
