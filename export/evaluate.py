"""What a recipe is worth on labelled pictures: judged on the daemon's own path, compared with the truth."""

import hashlib
import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge_daemon.artefact.manifest import Manifest
from edge_daemon.artefact.pictures import read_picture
from edge_daemon.core.align import Pose, aligned
from edge_daemon.core.conformal import clopper_pearson
from edge_daemon.core.decision import Evaluation, Evidence, Reason, Thresholds, judge_score
from edge_daemon.core.geometry import Box
from edge_daemon.core.health import HealthLimits, measure, take_sample, violation
from edge_daemon.core.quality import PixelQuality, auroc, f1_max, pixel_quality
from edge_daemon.detectors.base import Detector, Features, Prepared, on_host
from edge_daemon.detectors.health import health_limits
from edge_daemon.detectors.patchcore import PatchCoreDetector, project_patches
from edge_daemon.errors import NotLocatedError, PictureError
from export.dataset import GOOD, Sample, mask_at_model_size, read_mask
from export.errors import ExportError, PicturesError

CONFIDENCE = 0.95

_MAPS_IN_MEMORY_BYTES = 512 * 2**20  # beyond this the maps go to a file in the temporary folder
_PATCH_SAMPLE = 3000  # of each kind, for the report's PCA
_DEFECTIVE_CELL = 0.25  # share of a grid cell under the ground truth that makes its patch a defective one

Progress = Callable[[Sequence[Sample]], Iterable[Sample]]


class EvaluationError(ExportError):
    """A recipe gives no usable scores, or there is no room to evaluate it."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What the recipe says of one picture. duration_ms: alignment, resize, features and judgement, without decoding;
    health: why the picture itself is not decidable, whatever its score; empty for a healthy one; pose: how the part
    lay, None where it is not looked for; boxes_below_minimum: boxes too small to count; exact_searches: patches whose
    nearest row had to be searched exactly, boxes included."""

    sample: Sample
    score: float
    max_distance: float
    evaluation: Evaluation
    boxes: tuple[Box, ...]
    duration_ms: float
    health: str = ""
    pose: Pose | None = None
    boxes_below_minimum: int = 0
    exact_searches: int = 0

    @property
    def escaped(self) -> bool:
        """A defective part passed as good."""
        return self.sample.defective and self.evaluation is Evaluation.OK

    @property
    def falsely_rejected(self) -> bool:
        """A good part not passed: the line rejects what is not decidable, too."""
        return not self.sample.defective and self.evaluation is not Evaluation.OK


@dataclass(frozen=True, slots=True)
class PatchSample:
    """Patch embeddings picked evenly from all pictures: of good ones, and of defective ones where the
    ground truth marks them. (N, D) float32 each, N may be 0."""

    good: NDArray[np.float32]
    defective: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """All pictures judged. maps: (N, H, W) float32 in their order, masks: the same shape, bool, both of the aligned
    pictures; N is 0 when neither ground truth nor a report asked for them. skipped: pictures left out, with the reason.
    notes: what a reader of the figures has to know. not_located: pictures in which the part was not found: they have
    no score, and count as NotDecidable."""

    judged: tuple[Judged, ...]
    thresholds: Thresholds
    maps: NDArray[np.float32]
    masks: NDArray[np.bool_]
    patches: PatchSample | None
    pixels: PixelQuality
    skipped: tuple[str, ...]
    notes: tuple[str, ...]
    not_located: tuple[Sample, ...] = ()

    @property
    def scores(self) -> NDArray[np.float64]:
        """(N,) image scores."""
        return np.array([j.score for j in self.judged])

    @property
    def defective(self) -> NDArray[np.bool_]:
        """(N,) True where the label says defective."""
        return np.array([j.sample.defective for j in self.judged], bool)


def evaluate(
    detector: Detector,
    manifest: Manifest,
    samples: Sequence[Sample],
    *,
    skip_unreadable: bool = False,
    for_report: bool = False,
    progress: Progress = lambda samples: samples,
) -> Evaluated:
    """Judge every picture as the daemon would, one at a time, and compare with the ground truth.

    for_report: keep the maps of all pictures and a sample of patches. Raises PicturesError for a picture
    or mask that cannot be used (`skip_unreadable` counts and names it instead), EvaluationError for a
    score that is not a finite number.
    """
    keep_maps = for_report or any(sample.mask is not None for sample in samples)
    work = _Work(detector, manifest, len(samples), keep_maps, for_report)
    for sample in progress(samples):
        try:
            work.take(sample)
        except PictureError as exc:
            if not skip_unreadable:
                raise PicturesError(f"{exc}. Repair or remove it, or give --skip-unreadable") from exc
            work.skipped.append(f"{sample.name}: {exc}")
    if not work.judged and work.not_located:
        raise PicturesError(
            f"the part was located in none of the {len(samples)} pictures: are they of this product and camera?"
        )
    if not work.judged:
        raise PicturesError(f"none of the {len(samples)} pictures could be used; the first: {work.skipped[0]}")
    return work.finish()


@dataclass(slots=True)
class _Work:
    """The running state of one evaluation."""

    detector: Detector
    manifest: Manifest
    expected: int
    keep_maps: bool
    keep_patches: bool
    judged: list[Judged] = field(default_factory=list)
    not_located: list[Sample] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    maps: NDArray[np.float32] = field(init=False)
    masks: NDArray[np.bool_] = field(init=False)
    good_patches: list[Features] = field(default_factory=list)
    defective_patches: list[Features] = field(default_factory=list)
    calibrated_on: frozenset[str] = field(init=False)
    health: HealthLimits | None = field(init=False)
    seen: int = 0
    warm: bool = False

    def __post_init__(self) -> None:
        self.health = health_limits(self.manifest)
        width, height = self.manifest.preprocess.size
        shape = (self.expected if self.keep_maps else 0, height, width)
        self.maps = _large_array(shape, np.float32)
        self.masks = _large_array(shape, np.bool_)
        held_out = self.manifest.calibration.get("held_out")
        entries = held_out if isinstance(held_out, list) else []
        self.calibrated_on = frozenset(str(e["sha256"]) for e in entries if isinstance(e, dict) and "sha256" in e)

    def take(self, sample: Sample) -> None:
        """Judge one picture. Raises PictureError when it or its mask is unusable, and keeps nothing of it."""
        pixels = read_picture(sample.path)
        marked = read_mask(sample, pixels.shape)
        try:
            if not self.warm:  # the first run of a session allocates; that is no picture's time
                self._judge(pixels)
                self.warm = True
            started_ns = time.perf_counter_ns()
            prepared, features, evidence = self._judge(pixels)
            duration_ms = (time.perf_counter_ns() - started_ns) / 1e6
        except NotLocatedError:
            self.not_located.append(sample)
            return
        if prepared.pose is not None:
            marked = aligned(marked.astype(np.uint8) * 255, prepared.pose) > 127
        mask = mask_at_model_size(marked, self.manifest.view, self.manifest.preprocess)
        verdict = judge_score(evidence.score, evidence.max_distance, self.detector.thresholds)
        ill = self._ill(pixels)
        if not verdict.judged:
            raise EvaluationError(
                f"{sample.name}: the score is {evidence.score}, no finite number from 0 up; the recipe or the "
                "provider is broken: run `edge-export verify`"
            )
        if self.keep_maps and evidence.anomaly_map is not None:
            self.maps[len(self.judged)] = evidence.anomaly_map()
            self.masks[len(self.judged)] = mask
        if self.keep_patches:
            self._sample_patches(sample, features, mask)
        if hashlib.sha256(np.ascontiguousarray(prepared.inputs).data).hexdigest() in self.calibrated_on:
            self.seen += 1
        self.judged.append(
            Judged(
                sample,
                evidence.score,
                evidence.max_distance,
                Evaluation.NOT_DECIDABLE if ill else verdict.evaluation,
                evidence.boxes,
                duration_ms,
                ill,
                prepared.pose,
                evidence.boxes_below_minimum,
                evidence.exact_searches,
            )
        )

    def _judge(self, pixels: NDArray[np.uint8]) -> tuple[Prepared, Features, Evidence]:
        """`detectors.base.judge_picture`, with the model's inputs and the features kept."""
        prepared = self.detector.prepare(pixels)
        features = self.detector.extractor.extract(prepared.inputs)[0]
        return prepared, features, self.detector.judge(features, self.detector.thresholds, prepared.pose)

    def _ill(self, pixels: NDArray[np.uint8]) -> str:
        """Why the daemon would not judge this picture; empty when it would."""
        if self.health is None:
            return ""
        sample = take_sample(pixels, self.health.region)
        found = violation(measure(sample, self.health.reference), self.health.limits)
        return "" if found is None else found.reason.value

    def _sample_patches(self, sample: Sample, features: Features, mask: NDArray[np.bool_]) -> None:
        projection = self.detector.projection if isinstance(self.detector, PatchCoreDetector) else None
        cells = on_host(features)
        patches = project_patches(cells.reshape(-1, cells.shape[-1]), projection)
        if not sample.defective:
            eligible, kept = np.arange(len(patches)), self.good_patches
        else:
            eligible, kept = np.flatnonzero(defective_cells(mask, self.manifest)), self.defective_patches
        count = min(len(eligible), -(-_PATCH_SAMPLE * 2 // self.expected))
        chosen = np.random.default_rng(len(self.judged)).choice(eligible, count, replace=False)
        kept.append(patches[chosen])

    def finish(self) -> Evaluated:
        """Everything together, pixel figures over the pictures whose truth is known."""
        samples = [j.sample for j in self.judged]
        known = [i for i, s in enumerate(samples) if not s.defective or s.mask] if self.keep_maps else []
        return Evaluated(
            judged=tuple(self.judged),
            thresholds=self.detector.thresholds,
            maps=self.maps[: len(samples)],
            masks=self.masks[: len(samples)],
            patches=self._patches() if self.keep_patches else None,
            pixels=pixel_quality([self.maps[i] for i in known], [self.masks[i] for i in known]),
            skipped=tuple(self.skipped),
            notes=tuple(self._notes(samples)),
            not_located=tuple(self.not_located),
        )

    def _patches(self) -> PatchSample:
        none = np.empty((0, self.manifest.bank.dim), np.float32)
        return PatchSample(np.concatenate([none, *self.good_patches]), np.concatenate([none, *self.defective_patches]))

    def _notes(self, samples: Sequence[Sample]) -> Iterable[str]:
        defective = [s for s in samples if s.defective]
        unmarked = [s for s in defective if s.mask is None]
        if not defective:
            yield "Only good pictures: there is no image AUROC, escape rate or pixel figure to give."
        elif len(defective) == len(samples):
            yield "Only defective pictures: there is no image AUROC or false-reject rate to give."
        if defective and len(unmarked) == len(defective):
            yield "No ground truth masks: there is no pixel AUROC or AUPRO to give."
        elif unmarked:
            yield f"{len(unmarked)} defective pictures have no mask and are left out of pixel AUROC and AUPRO."
        outside = [s.name for i, s in enumerate(samples) if s.mask and self.keep_maps and not self.masks[i].any()]
        if outside:
            yield (
                f"{len(outside)} masks mark nothing that the recipe looks at (outside its region, or lost in the "
                f"resize), first {outside[0]}: such a defect cannot be found."
            )
        if self.seen:
            yield (
                f"{self.seen} of these pictures set the recipe's threshold: the false-reject rate is not independent "
                "of it. Evaluate on pictures that the recipe was not made from."
            )
        unhealthy = [j for j in self.judged if j.health]
        if unhealthy:
            reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(j.health for j in unhealthy).items())
            yield (
                f"{len(unhealthy)} pictures are not like good ones as pictures ({reasons}), first "
                f"{unhealthy[0].sample.name}: the daemon calls them NotDecidable whatever they score, and so does this."
            )
        if self.not_located:
            yield (
                f"in {len(self.not_located)} pictures the part was not located, first {self.not_located[0].name}: the "
                "daemon calls them NotDecidable and so does this; they have no score and are in no AUROC."
            )
        yield from self._broken_promise()
        if self.skipped:
            yield f"{len(self.skipped)} pictures could not be used and are in no figure, first {self.skipped[0]}"

    def _broken_promise(self) -> Iterable[str]:
        """A note when the good pictures here are rejected more often than the recipe's calibration allows."""
        good = [j for j in self.judged if not j.sample.defective]
        rejected = sum(j.falsely_rejected for j in good) + sum(not s.defective for s in self.not_located)
        count = len(good) + sum(not s.defective for s in self.not_located)
        stated = stated_rate(self.manifest, "upper_rate")
        if good and stated is not None and clopper_pearson(rejected, count, CONFIDENCE)[0] > stated:
            yield (
                f"{rejected} of {count} good pictures are rejected, more than the {stated:.2%} that the recipe's "
                "calibration bounds: they are not like the good pictures it was made from."
            )


def stated_rate(manifest: Manifest, key: str) -> float | None:
    """A rate of the recipe's calibration evidence, None when it states none that makes sense."""
    value = manifest.calibration.get(key)
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def defective_cells(mask: NDArray[np.bool_], manifest: Manifest) -> NDArray[np.bool_]:
    """Which patches of the grid the ground truth covers to a quarter or more, (gh · gw,) bool.

    mask: (H, W) bool at model size; the grid covers `manifest.extent`, which may reach beyond it.
    """
    height, width = mask.shape
    right, bottom = max(0, manifest.extent[0] - width), max(0, manifest.extent[1] - height)
    padded = np.pad(mask.astype(np.float32), ((0, bottom), (0, right)))
    cover = cv2.resize(padded, manifest.grid[::-1], interpolation=cv2.INTER_AREA)
    cells: NDArray[np.bool_] = (cover >= _DEFECTIVE_CELL).ravel()
    return cells


def _large_array(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros in memory, or in an unnamed temporary file when there are very many."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= _MAPS_IN_MEMORY_BYTES:
        return np.zeros(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk found later would be a SIGBUS
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as exc:
        raise EvaluationError(
            f"no room for {size / 2**30:.1f} GiB of anomaly maps in {tempfile.gettempdir()} ({exc.strerror}); "
            "set TMPDIR to a folder with space"
        ) from exc


def summarise(evaluated: Evaluated) -> dict[str, Any]:
    """The figures of an evaluation, ready for JSON; null where the data do not define one.

    Rates are shares of 0 to 1 with Clopper-Pearson bounds. A good part counts as falsely rejected unless
    it is OK; a defective one as escaped when it is OK: what is not decidable is rejected by the line, and
    counted by itself as well.
    """
    good = [j for j in evaluated.judged if not j.sample.defective]
    defective = [j for j in evaluated.judged if j.sample.defective]
    rejected, escaped = sum(j.falsely_rejected for j in good), sum(j.escaped for j in defective)
    lost_good = sum(not s.defective for s in evaluated.not_located)
    lost_defective = len(evaluated.not_located) - lost_good
    rejected, count_good, count_defective = rejected + lost_good, len(good) + lost_good, len(defective) + lost_defective
    scores, truth = evaluated.scores, evaluated.defective
    best_f1 = f1_max(scores, truth) if good else None
    durations = [j.duration_ms for j in evaluated.judged]
    searches = [j.exact_searches for j in evaluated.judged]
    return {
        "image_auroc": auroc(scores, truth),
        "pixel_auroc": evaluated.pixels.auroc,
        "aupro": evaluated.pixels.aupro,
        "false_reject_rate": rejected / count_good if count_good else None,
        "false_reject_ci": _bounds(rejected, count_good),
        "escape_rate": escaped / count_defective if count_defective else None,
        "escape_ci": _bounds(escaped, count_defective),
        "confidence": CONFIDENCE,
        "threshold": evaluated.thresholds.lower,
        "threshold_upper": evaluated.thresholds.upper,
        "threshold_pixel": evaluated.thresholds.pixel,
        "ms_per_image": float(np.median(durations)),
        "ms_per_image_p99": float(np.percentile(durations, 99)),
        "exact_searches": float(np.median(searches)),
        "exact_searches_most": max(searches),
        "images": len(evaluated.judged) + len(evaluated.not_located),
        "good": count_good,
        "defective": count_defective,
        "not_decidable": sum(j.evaluation is Evaluation.NOT_DECIDABLE for j in evaluated.judged)
        + len(evaluated.not_located),
        "not_located": len(evaluated.not_located),
        "unhealthy": sum(bool(j.health) for j in evaluated.judged),
        "f1_max": best_f1[0] if best_f1 else None,
        "classes": [_class_row(evaluated, name) for name in _class_names(evaluated)],
        "skipped": list(evaluated.skipped),
        "notes": list(evaluated.notes),
    }


def score_list(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Every picture with its score and evaluation, ready for JSON."""
    return [
        {
            "picture": j.sample.name,
            "class": j.sample.defect,
            "score": j.score,
            "max_distance": j.max_distance,
            "evaluation": j.evaluation.label,
            "health": j.health,
            "boxes": len(j.boxes),
            "boxes_below_minimum": j.boxes_below_minimum,
            "exact_searches": j.exact_searches,
        }
        for j in evaluated.judged
    ] + [
        {
            "picture": s.name,
            "class": s.defect,
            "score": None,
            "max_distance": None,
            "evaluation": Evaluation.NOT_DECIDABLE.label,
            "health": Reason.NOT_LOCATED.value,
            "boxes": 0,
            "boxes_below_minimum": 0,
            "exact_searches": 0,
        }
        for s in evaluated.not_located
    ]


def _bounds(count: int, of: int) -> list[float] | None:
    return list(clopper_pearson(count, of, CONFIDENCE)) if of else None


def _class_names(evaluated: Evaluated) -> list[str]:
    return sorted({j.sample.defect for j in evaluated.judged}, key=lambda name: (name != GOOD, name))


def _class_row(evaluated: Evaluated, name: str) -> dict[str, Any]:
    """One label's counts, and how well it alone separates from the good pictures."""
    mine = [j for j in evaluated.judged if j.sample.defect == name]
    beside_good = [j for j in evaluated.judged if j.sample.defect in (name, GOOD)]
    wrong = sum(j.escaped or j.falsely_rejected for j in mine)
    return {
        "class": name,
        "images": len(mine),
        "ok": sum(j.evaluation is Evaluation.OK for j in mine),
        "not_decidable": sum(j.evaluation is Evaluation.NOT_DECIDABLE for j in mine),
        "not_ok": sum(j.evaluation is Evaluation.NOT_OK for j in mine),
        "wrong": wrong,
        "wrong_ci": _bounds(wrong, len(mine)),
        "image_auroc": auroc([j.score for j in beside_good], [j.sample.defective for j in beside_good]),
        "lowest_score": min(j.score for j in mine),
        "highest_score": max(j.score for j in mine),
    }
