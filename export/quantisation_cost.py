"""What int8 costs and gains: the same recipe made with both graphs, the same pictures judged by both."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.pictures import read_picture
from edge_daemon.artefact.recipe import Recipe
from edge_daemon.detectors.base import Detector, judge_picture, on_host
from edge_daemon.detectors.loading import load_verified
from edge_daemon.detectors.patchcore import PatchCoreDetector, PatchCoreSettings
from edge_daemon.engines.nearest import make_engine
from edge_daemon.engines.sessions import EngineOptions, Sessions
from edge_daemon.threads import physical_cores
from export.build import RecipeRequest, build_recipe
from export.calibrate import MIN_PICTURES
from export.dataset import Sample, find_samples
from export.errors import PicturesError
from export.evaluate import evaluate, summarise
from export.gather import Progress
from export.quantise import Quantised

TRIAL_PICTURES = 200
_TRIAL_RATIO = 0.01
_TIMED_RUNS = 30
_BANK_PICTURES, _BANK_ROWS = 40, 2_000
_JUDGED_PICTURES = 40


@dataclass(frozen=True, slots=True)
class QuantisationCost:
    """What int8 alone changes, and two recipes as they would be used, each with its own bank and threshold.

    pictures:               good pictures that the trial recipes were made from
    judged:                 pictures judged against banks of the same patches in either precision: good ones that
                            gave no patch, golden ones, labelled ones
    score_correlation:      Pearson, over all of them; null when they do not vary
    score_correlation_good: over the good ones alone, where differences are small: the hard case
    largest_golden_change:  |int8 − fp32| / fp32 of any golden sample's score, likewise
    threshold_fp32, threshold_int8: of the image score
    image_auroc_*, pixel_auroc_*:   on the labelled pictures; null without
    escape_rate_*, false_reject_rate_*: at each recipe's own threshold, likewise
    false_reject_ci_*:      their Clopper-Pearson bounds: a few good pictures tell little about a rate
    promised_rate:          mean false-reject rate that the trials' thresholds promise; promised_upper_rate: with 95%
                            confidence; null for provisional trials
    session_run_fps_*:      pictures a second of the bare graphs, in turn, on this PC's CPU
    speedup:                median over the turns of their ratio
    """

    pictures: int
    judged: int
    score_correlation: float | None
    score_correlation_good: float | None
    largest_golden_change: float
    threshold_fp32: float
    threshold_int8: float
    session_run_fps_fp32: float
    session_run_fps_int8: float
    speedup: float
    image_auroc_fp32: float | None = None
    image_auroc_int8: float | None = None
    pixel_auroc_fp32: float | None = None
    pixel_auroc_int8: float | None = None
    escape_rate_fp32: float | None = None
    escape_rate_int8: float | None = None
    false_reject_rate_fp32: float | None = None
    false_reject_rate_int8: float | None = None
    false_reject_ci_fp32: list[float] | None = None
    false_reject_ci_int8: list[float] | None = None
    promised_rate: float | None = None
    promised_upper_rate: float | None = None


@dataclass(frozen=True, slots=True)
class _Trial:
    """One of the two recipes, loaded, with its figures on the labelled pictures."""

    recipe: Recipe
    detector: Detector
    figures: dict[str, Any]


def quantisation_cost(
    quantised: Quantised,
    good: Sequence[Path],
    labelled: Path | None,
    step: Callable[[str], None] = lambda _what: None,
) -> QuantisationCost:
    """Make a recipe (1% coreset) of up to 200 of the `good` pictures with each graph and compare them.

    labelled: folder in the layout of MVTec AD; step: told what begins. Raises ExportError or EdgeError.
    """
    samples = find_samples(labelled) if labelled else []
    if len(good) < 2:
        raise PicturesError("two good pictures are the least on which int8 can be compared with fp32")
    used = evenly(good, TRIAL_PICTURES)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "good")
        images.mkdir()
        for number, path in enumerate(used):
            os.symlink(path.absolute(), images / f"{number:06d}{path.suffix}")
        trials = []
        for backbone in (quantised.source, quantised.backbone):
            step(f"a trial recipe in {backbone.precision}")
            graph = Path(folder, f"{backbone.precision}.onnx")
            graph.write_bytes(backbone.model_bytes)
            trials.append(_trial(graph, images, samples))
    before, after = trials
    step("scores and speed")
    fps = _fps(before, after)
    judged, good_only, golden = _paired_scores(before, after, used, samples)
    return QuantisationCost(
        pictures=len(used),
        judged=len(judged),
        score_correlation=_correlation(judged),
        score_correlation_good=_correlation(good_only),
        largest_golden_change=max(abs(b - a) / max(abs(a), 1e-12) for a, b in golden),
        threshold_fp32=before.recipe.manifest.thresholds.lower,
        threshold_int8=after.recipe.manifest.thresholds.lower,
        session_run_fps_fp32=fps[0],
        session_run_fps_int8=fps[1],
        speedup=fps[2],
        **{
            f"{name}_{precision}": trial.figures.get(name)
            for name in ("image_auroc", "pixel_auroc", "escape_rate", "false_reject_rate", "false_reject_ci")
            for precision, trial in (("fp32", before), ("int8", after))
        },
        promised_rate=before.recipe.manifest.calibration.get("marginal_rate"),
        promised_upper_rate=before.recipe.manifest.calibration.get("upper_rate"),
    )


def evenly(paths: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of them, evenly spread."""
    places = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[place] for place in places.tolist()]


def _trial(graph: Path, images: Path, samples: Sequence[Sample]) -> _Trial:
    path = graph.with_suffix(".recipe")
    request = RecipeRequest(
        name="trial",
        images=images,
        out=path,
        created_utc="1970-01-01T00:00:00+00:00",
        version="trial",
        backbone=graph,
        coreset_ratio=_TRIAL_RATIO,
        provisional=sum(1 for _ in images.iterdir()) < MIN_PICTURES,
    )
    build_recipe(request, _no_progress())
    ready = load_verified(path, Sessions(EngineOptions(intra_op_threads=physical_cores())))
    if not samples:
        return _Trial(ready.recipe, ready.detector, {})
    return _Trial(ready.recipe, ready.detector, summarise(evaluate(ready.detector, ready.recipe.manifest, samples)))


def _no_progress() -> Progress:
    return lambda _what, _total: nullcontext(lambda _done: None)


_Pairs = list[tuple[float, float]]


def _paired_scores(
    before: _Trial, after: _Trial, good: Sequence[Path], samples: Sequence[Sample]
) -> tuple[_Pairs, _Pairs, _Pairs]:
    """(fp32, int8) scores of all judged pictures, of the good ones, of the golden ones.

    Both precisions compare with the same patches: coresets of their own would differ by chance, and their
    scores with them (correlation among good parts 0.70 on bottle, where the graphs themselves give 0.99).
    """
    judges = _same_bank(before, after, evenly(good[::2], _BANK_PICTURES))

    def scores(pixels: NDArray[np.uint8]) -> tuple[float, float]:
        first, second = (judge_picture(judge, pixels).score for judge in judges)
        return first, second

    unseen = [scores(read_picture(path)) for path in evenly(good[1::2], _JUDGED_PICTURES)]
    golden = [(sample.kind, scores(sample.pixels)) for sample in before.recipe.golden]
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, min(len(samples), 2 * _JUDGED_PICTURES)).astype(int)]
    labelled = [(sample.defective, scores(read_picture(sample.path))) for sample in chosen]
    good_pairs = unseen + [pair for defective, pair in labelled if not defective]
    bad_pairs = [pair for defective, pair in labelled if defective]
    bad_pairs += [pair for kind, pair in golden if kind == "damaged"]
    return good_pairs + bad_pairs, good_pairs, [pair for _, pair in golden]


def _same_bank(before: _Trial, after: _Trial, paths: Sequence[Path]) -> tuple[PatchCoreDetector, PatchCoreDetector]:
    """Detectors of both precisions whose banks are the same patches of these pictures, drawn with a seed."""
    pictures = [read_picture(path) for path in paths]
    made, rows = [], None
    for trial in (before, after):
        features = [trial.detector.extractor.extract(trial.detector.prepare(p).inputs)[0] for p in pictures]
        patches = np.concatenate([f.reshape(-1, f.shape[-1]) for f in map(on_host, features)])
        if rows is None:
            count = min(_BANK_ROWS, len(patches))
            rows = np.random.default_rng(0).choice(len(patches), count, replace=False)
        bank = np.ascontiguousarray(patches[rows])
        settings = PatchCoreSettings.of(trial.recipe.manifest)
        engine = make_engine("flat", bank)
        made.append(PatchCoreDetector(settings, trial.detector.thresholds, trial.detector.extractor, bank, engine))
    return made[0], made[1]


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    if len(pairs) < 3:
        return None
    x, y = np.array(pairs, np.float64).T
    if x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _fps(before: _Trial, after: _Trial) -> tuple[float, float, float]:
    """(fp32, int8, median ratio) pictures a second of the two graphs, taken in turn: load hits both alike."""
    golden = before.recipe.golden[0].pixels
    picture: NDArray[np.uint8] = before.detector.prepare(golden).inputs
    times: list[tuple[float, float]] = []
    for _ in range(_TIMED_RUNS + 1):
        turn = []
        for trial in (before, after):
            begun = time.perf_counter()
            trial.detector.extractor.extract(picture)
            turn.append(time.perf_counter() - begun)
        times.append((turn[0], turn[1]))
    del times[0]  # the first run of a session allocates
    return (
        1 / statistics.median(t for t, _ in times),
        1 / statistics.median(t for _, t in times),
        statistics.median(a / b for a, b in times),
    )
