"""From a recipe on disk to a detector that may judge: the whole load order, nothing switched until all pass."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edge_daemon.artefact.manifest import Manifest
from edge_daemon.artefact.recipe import Golden, Recipe, load_recipe
from edge_daemon.artefact.signature import Trust
from edge_daemon.core.decision import Evidence, Thresholds, judge_score
from edge_daemon.detectors.base import Detector, Extractor, Features
from edge_daemon.detectors.choosing import check_shape, choose_engine
from edge_daemon.detectors.patchcore import PatchCoreDetector, PatchCoreSettings
from edge_daemon.detectors.tiles import TiledExtractor
from edge_daemon.engines.choice import Choice
from edge_daemon.engines.nearest import make_engine
from edge_daemon.engines.sessions import PROVIDERS, Sessions
from edge_daemon.errors import RecipeEngineError, RecipeGoldenError

# Relative tolerance of golden scores by provider and precision. int8 and fp16 graphs and TensorRT
# differ between machines: their thresholds are calibrated where they run (`check_calibrated_on`), and their golden
# samples must still come out within this and with the same evaluation.
_GOLDEN_TOLERANCE = {("CPUExecutionProvider", "fp32"): 1e-5, ("CUDAExecutionProvider", "fp32"): 1e-3}
_GOLDEN_TOLERANCE_OTHER = 1e-2
# Poses are rounded to steps of 1/16 px and 1/64 degree: the last bit of another CPU may move one by a step.
_GOLDEN_TOLERANCE_ALIGNED = 1e-2

STEPS = ("schema and features", "digests", "shapes and values", "engine and provider", "golden samples")


@dataclass(frozen=True, slots=True)
class ReadyRecipe:
    """A recipe that passed every step, with its live detector."""

    recipe: Recipe
    detector: Detector
    choice: Choice = field(default_factory=lambda: Choice("", "rule"))
    """Of the search engine, and why it."""

    @property
    def provider(self) -> str:
        return self.detector.extractor.provider


def build_detector(recipe: Recipe, sessions: Sessions, engine: str = "auto") -> Detector:
    """The detector of a verified recipe. Raises RecipeEngineError or ProviderError.

    engine: the search engine by name; `auto` leaves it to the recipe, and then to the rule.
    """
    manifest = recipe.manifest
    extractor = sessions.extractor(recipe.backbone, manifest.backbone.sha256)
    settings = PatchCoreSettings.of(manifest, recipe.template)
    width, height = settings.size if settings.tiling is None else settings.tiling.tile
    if extractor.key[1:] != (height, width):
        raise RecipeEngineError(
            f"the backbone takes {extractor.key[2]}x{extractor.key[1]} pictures, the recipe says {width}x{height}"
        )
    limits = manifest.thresholds
    name = engine if engine != "auto" else manifest.parameters.engine
    search = make_engine(name, recipe.bank, sessions.graphs(extractor.provider))
    feeding: Extractor = extractor
    if settings.tiling is not None:
        feeding = TiledExtractor(extractor, settings.tiling)
    elif settings.ignored is None and sessions.keeps_on_device(extractor.provider, search.name):
        feeding = sessions.on_device(extractor)
    return PatchCoreDetector(
        settings,
        Thresholds(limits.lower, limits.upper, limits.pixel),
        feeding,
        recipe.bank,
        search,
        recipe.projection,
    )


def check_calibrated_on(manifest: Manifest, provider: str) -> None:
    """Whether the thresholds hold for what runs. Raises RecipeEngineError.

    provider: the execution provider that runs, as onnxruntime names it. In float32 the CPU and CUDA (TF32 off) give
    the same scores up to rounding, and golden samples guard that. A graph of 8 or 16 bits rounds in each provider in
    its own way, and TensorRT rounds by itself: there scores move by more than a threshold can bear, so such a recipe
    judges only where it was calibrated. What does not say where that was, is not known to be calibrated here.
    """
    software = manifest.provenance.get("software")
    calibrated = software.get("provider") if isinstance(software, dict) else None
    precision = manifest.backbone.precision
    rounds = precision != "fp32" or PROVIDERS["tensorrt"] in (provider, calibrated)
    if not rounds or calibrated == provider:
        return
    where = calibrated if isinstance(calibrated, str) else "a provider that it does not name"
    raise RecipeEngineError(
        f"{manifest.name} judges in {precision} and was calibrated on {where}; here {provider} runs, which gives other "
        "scores, and its thresholds say nothing: build the recipe with the provider that is to judge (`edge-export "
        "recipe --provider …`), or set provider and fallback in [engine] so that the one it was built with runs"
    )


def golden_tolerance(provider: str, precision: str, located: bool = False) -> float:
    """Relative tolerance of a golden sample's score; located: the recipe aligns parts."""
    exact = _GOLDEN_TOLERANCE.get((provider, precision), _GOLDEN_TOLERANCE_OTHER)
    return max(exact, _GOLDEN_TOLERANCE_ALIGNED) if located else exact


def check_golden(recipe: Recipe, detector: Detector, golden: Golden) -> Evidence:
    """One golden sample through the live engine. Raises RecipeGoldenError when it comes out otherwise, RecipeShapeError
    when the graph gives another grid than the recipe says."""
    features = detector.extractor.extract(detector.prepare(golden.pixels).inputs)[0]
    check_shape(recipe, features)
    return check_golden_features(recipe, detector, golden, features)


def check_golden_features(recipe: Recipe, detector: Detector, golden: Golden, features: Features) -> Evidence:
    """The second half of `check_golden`, from what the extractor gave for the sample, (gh, gw, D) float32."""
    evidence = detector.judge(features, detector.thresholds)
    provider = detector.extractor.provider
    manifest = recipe.manifest
    tolerance = golden_tolerance(provider, manifest.backbone.precision, located=manifest.align is not None)
    for name, found, expected in (
        ("score", evidence.score, golden.score),
        ("max_distance", evidence.max_distance, golden.max_distance),
    ):
        # Written so that NaN fails.
        if not abs(found - expected) <= tolerance * max(abs(expected), 1e-6):
            raise RecipeGoldenError(
                f"golden sample {golden.file} of {recipe.manifest.name} gives {name} {found:.7g} on {provider}, the "
                f"recipe says {expected:.7g} (tolerance {tolerance:g}): this PC does not judge as the export did"
            )
    evaluation = judge_score(evidence.score, evidence.max_distance, detector.thresholds).evaluation
    if evaluation.label != golden.evaluation:
        raise RecipeGoldenError(
            f"golden sample {golden.file} of {recipe.manifest.name} is {evaluation.label}, the recipe says "
            f"{golden.evaluation}"
        )
    return evidence


def load_verified(
    path: Path,
    sessions: Sessions,
    engine: str = "auto",
    backbone_of: Callable[[str], bytes] | None = None,
    progress: Callable[[str], None] | None = None,
    trust: Trust | None = None,
) -> ReadyRecipe:
    """The whole load order of a recipe, directory or `.recipe` file, each step with its own error.

    engine: the search engine that the configuration forces; with `auto` the recipe, else what is measured here
    (`choosing.choose_engine`). progress: called with each of `STEPS` as it is passed. trust: whose signature counts,
    and whether one is needed; it is looked at before the graph is. Raises RecipeError's subclasses, ProviderError.
    """
    passed = progress or (lambda _step: None)
    recipe = load_recipe(path, backbone_of, trust or Trust())
    for step in STEPS[:3]:
        passed(step)
    choice = choose_engine(recipe, sessions, engine)
    detector = build_detector(recipe, sessions, choice.engine)
    check_calibrated_on(recipe.manifest, detector.extractor.provider)
    passed(STEPS[3])
    for golden in recipe.golden:
        check_golden(recipe, detector, golden)
    passed(STEPS[4])
    return ReadyRecipe(recipe, detector, choice)
