"""Golden samples: pictures with what they must give, by which every PC proves that it judges as the export did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.pictures import decode_picture, encode_png, read_picture
from edge_daemon.artefact.recipe import Golden, sha256, verify_files
from edge_daemon.core.align import aligned
from edge_daemon.core.decision import Evaluation, Evidence, Thresholds, judge_score
from edge_daemon.core.geometry import Region
from edge_daemon.core.mask import ignored_pixels, in_frame
from edge_daemon.core.picture import map_region
from edge_daemon.detectors.base import judge_picture
from edge_daemon.detectors.loading import build_detector, check_calibrated_on, check_golden
from edge_daemon.detectors.patchcore import PatchCoreDetector, PatchCoreSettings
from edge_daemon.engines.sessions import EngineOptions, Sessions
from edge_daemon.errors import NotLocatedError
from export.calibrate import Calibration, features_of
from export.errors import CalibrationError
from export.gather import Gathered

# A golden sample this close to a threshold (relative) might change sides on another PC and be refused there.
_CLEAR_OF_LIMIT = 0.02
# The rounding of another CPU is relative to the embeddings' length, not to a score near zero.
_CLEAR_OF_ZERO = 0.1
_CLEARLY_DAMAGED = 1.1  # times the threshold
_ADDED = "golden/added-"
_PLACES_TRIED = 1000


BLIND = (
    "WARNING: damage pasted on a good part does not come out clearly NotOK: this recipe may be blind. It has "
    "no damaged golden sample; look at the pictures, the region and the model size before it is used"
)


@dataclass(frozen=True, slots=True)
class GoldenSample:
    """A golden sample as it goes into the recipe."""

    file: str
    kind: str
    png: bytes
    evidence: Evidence
    evaluation: Evaluation

    def manifest_entry(self) -> dict[str, Any]:
        """Its line in recipe.json."""
        return {
            "file": self.file,
            "sha256": sha256(self.png),
            "kind": self.kind,
            "score": self.evidence.score,
            "max_distance": self.evidence.max_distance,
            "evaluation": self.evaluation.label,
        }


def golden_samples(
    detector: PatchCoreDetector, pictures: Gathered, calibration: Calibration, seed: int
) -> tuple[list[GoldenSample], list[str]]:
    """Lowest, median and highest good picture that no rounding can move over the threshold, and a damaged one."""
    candidates = _good_candidates(detector, pictures, calibration)
    golden = [
        _judge_golden(detector, f"golden/good-{number}.png", "good", read_picture(pictures.paths[index]))
        for number, index in enumerate(candidates, start=1)
    ]
    middle = candidates[len(candidates) // 2] if candidates else calibration.scored[0].index
    damaged = _damaged_sample(detector, seed, read_picture(pictures.paths[middle]))
    notes = []
    if damaged is None:
        notes.append(BLIND)
    else:
        golden.append(damaged)
    if not golden:
        raise CalibrationError(
            "no picture lies clearly on one side of the threshold, so none can prove the recipe on another PC: "
            "more, or more varied, good parts are needed"
        )
    return golden, notes


def golden_again(
    detector: PatchCoreDetector, old: Sequence[Golden], pictures: Gathered, calibration: Calibration, seed: int
) -> tuple[list[GoldenSample], list[str]]:
    """An older recipe's golden samples judged with a new bank, and up to three good pictures of those just scored.

    Raises CalibrationError when the old damaged sample is NotOK no longer: the new bank would pass what was damage.
    """
    golden, notes = [], []
    candidates = _good_candidates(detector, pictures, calibration) if calibration.scored else []
    for sample in old:
        if sample.file.startswith(_ADDED) and candidates:
            continue
        again = _judge_golden(detector, sample.file, sample.kind, sample.pixels)
        if sample.kind == "damaged" and again.evaluation is not Evaluation.NOT_OK:
            raise CalibrationError(
                f"the damaged golden sample {sample.file} would come out {again.evaluation.label} (score "
                f"{again.evidence.score:.4g}, threshold {detector.thresholds.upper:.4g}): with these pictures the "
                "recipe would no longer find what it found. There are probably defects among them; nothing was written"
            )
        if sample.kind == "damaged":
            proves = clearly_damaged(again.evidence.score, detector.thresholds)
        else:
            proves = clear_of(again.evidence.score, detector.thresholds)
        if proves:
            golden.append(again)
        else:
            notes.append(f"{sample.file} lies too close to the new threshold to prove anything and is left out")
    golden += [
        _judge_golden(detector, f"{_ADDED}{number}.png", "good", read_picture(pictures.paths[index]))
        for number, index in enumerate(candidates, start=1)
    ]
    return _with_damage(detector, golden, [sample.pixels for sample in old if sample.kind == "good"], seed, notes)


def _with_damage(
    detector: PatchCoreDetector,
    golden: list[GoldenSample],
    good: Sequence[NDArray[np.uint8]],
    seed: int,
    notes: list[str],
) -> tuple[list[GoldenSample], list[str]]:
    """A damaged sample made of the first good picture, where there is none."""
    if not any(sample.kind == "damaged" for sample in golden):
        damaged = _damaged_sample(detector, seed, good[0]) if good else None
        if damaged is None:
            notes.append(BLIND)
        else:
            golden.append(damaged)
    if not golden:
        raise CalibrationError(
            "no golden sample lies clearly on one side of the new threshold, so none could prove the recipe on another "
            "PC: build the recipe again from all pictures"
        )
    return golden, notes


def _good_candidates(detector: PatchCoreDetector, pictures: Gathered, calibration: Calibration) -> list[int]:
    """Up to three pictures, lowest, median and highest score of those clear of zero and of the threshold."""
    limit = calibration.thresholds.lower
    scores = {s.index: s.score for s in calibration.scored}
    if calibration.conformal is None:  # now in the bank, they score lower than when they were left out
        for index in scores:
            features = features_of(detector.extractor, pictures, index)
            scores[index] = detector.judge(features, calibration.thresholds).score
            del features  # not to be kept while the next picture is looked at
    clear = sorted(
        (score, index)
        for index, score in scores.items()
        if score > _CLEAR_OF_ZERO * limit and clear_of(score, calibration.thresholds)
    )
    chosen = dict.fromkeys([0, len(clear) // 2, len(clear) - 1] if clear else [])
    return [clear[place][1] for place in chosen]


def _judge_golden(detector: PatchCoreDetector, file: str, kind: str, pixels: NDArray[np.uint8]) -> GoldenSample:
    """What the live engine gives for the picture as it will be read from the recipe."""
    png = encode_png(pixels)
    evidence = judge_picture(detector, decode_picture(png, file))
    verdict = judge_score(evidence.score, evidence.max_distance, detector.thresholds)
    # The maps would keep the features, of a large picture 400 MB for each sample.
    return GoldenSample(file, kind, png, replace(evidence, anomaly_map=None, shown_map=None), verdict.evaluation)


def _damaged_sample(detector: PatchCoreDetector, seed: int, pixels: NDArray[np.uint8]) -> GoldenSample | None:
    """A good picture with seeded damage, larger each time until it is clearly NotOK; None when it never is."""
    pixels = _at_rest(detector.settings, pixels)
    for share in (0.15, 0.25, 0.4):
        spoiled = damage(pixels, detector.settings, share, seed)
        if spoiled is None:
            continue
        try:
            golden = _judge_golden(detector, "golden/damaged-1.png", "damaged", spoiled)
        except NotLocatedError:  # so much damage that the part is not found: no proof that it is seen
            continue
        if golden.evaluation is Evaluation.NOT_OK and clearly_damaged(golden.evidence.score, detector.thresholds):
            return golden
    return None


def _at_rest(settings: PatchCoreSettings, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frame with its part where the golden one lies, so that region and mask are where they are judged."""
    pose = None if settings.locator is None else settings.locator.locate(pixels)
    return pixels if pose is None else aligned(pixels, pose)


def damage(pixels: NDArray[np.uint8], settings: PatchCoreSettings, share: float, seed: int) -> NDArray[np.uint8] | None:
    """Paste coarse noise over a square of what is judged, nowhere under the mask; the frame outside it stays as it is.

    pixels: (H, W) or (H, W, 3) uint8, the part at rest; share: side of the square over the shorter side of the judged
    rectangle (in tiles: of a tile). Grains are an eighth of the square, so that they survive the resize to model
    size. None where the mask leaves no room for it.
    """
    rng = np.random.default_rng(seed)
    region = settings.region or Region(0, 0, *settings.frame_size)
    width = region.w * settings.size[0] // settings.resize_to[0]
    height = region.h * settings.size[1] // settings.resize_to[1]
    shorter = min(width, height)
    if settings.tiling is not None:
        shorter = min(shorter, min(settings.tiling.tile) * region.w // settings.resize_to[0])
    side = max(1, int(shorter * share))
    left, top = region.x + (region.w - width) // 2, region.y + (region.h - height) // 2
    hidden = _hidden(settings)
    for _ in range(_PLACES_TRIED):
        x = left + int(rng.integers(width - side + 1))
        y = top + int(rng.integers(height - side + 1))
        if hidden is None or not hidden[y : y + side, x : x + side].any():
            break
    else:
        return None
    grains = rng.integers(0, 2, (8, 8, 3), dtype=np.uint8) * np.uint8(255)
    noise = np.asarray(cv2.resize(grains, (side, side), interpolation=cv2.INTER_NEAREST), np.uint8)
    spoiled = pixels.copy()
    spoiled[y : y + side, x : x + side] = noise if pixels.ndim == 3 else noise[..., 0]
    return spoiled


def _hidden(settings: PatchCoreSettings) -> NDArray[np.bool_] | None:
    """Full-frame pixels under the mask, (H, W) bool; None without one."""
    if settings.ignored is None:
        return None
    pixels = ignored_pixels(settings.ignored, settings.size, settings.extent)
    covers = map_region(settings.frame_size, settings.region, settings.resize_to, settings.size)
    return in_frame(pixels, covers, settings.frame_size)


def clear_of(score: float, thresholds: Thresholds) -> bool:
    """No rounding of another PC moves the score over a threshold."""
    return all(abs(score - limit) > _CLEAR_OF_LIMIT * limit for limit in (thresholds.lower, thresholds.upper))


def clearly_damaged(score: float, thresholds: Thresholds) -> bool:
    """Damage that is found with room to spare."""
    return score > _CLEARLY_DAMAGED * thresholds.upper


def prove(files: Mapping[str, bytes], what: str, engine: EngineOptions) -> str:
    """The whole load order on what is about to be written, in a session of its own. Returns the digest."""
    recipe = verify_files(files, what)
    detector = build_detector(recipe, Sessions(engine))
    check_calibrated_on(recipe.manifest, detector.extractor.provider)
    for golden in recipe.golden:
        check_golden(recipe, detector, golden)
    return recipe.digest
