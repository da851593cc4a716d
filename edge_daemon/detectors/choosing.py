"""Which search engine a recipe gets on this PC, and why."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edge_daemon.artefact.recipe import Recipe
from edge_daemon.core.distances import LARGEST_SQUARED_NORM, largest_squared_norm
from edge_daemon.detectors.base import Features, on_host
from edge_daemon.detectors.patchcore import PatchCoreSettings, project_patches
from edge_daemon.engines.choice import Choice, Kind, by_rule, candidates, in_turn
from edge_daemon.engines.device import DeviceFeatures
from edge_daemon.engines.graph import GraphEngine
from edge_daemon.engines.nearest import NearestNeighbour, make_engine
from edge_daemon.engines.sessions import Sessions
from edge_daemon.errors import EdgeError, RecipeShapeError

Array = NDArray[np.float32]

# The rows that were near to these frames are what the search of the next one begins with.
_FRAMES = 4


def choose_engine(recipe: Recipe, sessions: Sessions, forced: str = "auto") -> Choice:
    """The engine for a recipe whose bytes are verified. forced: by the configuration; `auto` by nothing.

    Where neither configuration nor recipe names one it is measured on the recipe's golden pictures, once for
    each kind of bank (`engines.choice`); never longer than a second or so, and not while frames are judged. A
    measurement that fails leaves the rule: whether the recipe may judge is decided by the steps of its loading.
    """
    if forced != "auto":
        return Choice(forced, "forced")
    parameters, rows = recipe.manifest.parameters, len(recipe.bank)
    if parameters.engine != "auto":
        return Choice(parameters.engine, "recipe")
    if sessions.choices is None or recipe.manifest.tiles is not None:  # a large picture takes seconds: not to be tried
        return Choice(by_rule(rows), "rule")
    try:
        extractor = sessions.extractor(recipe.backbone, recipe.manifest.backbone.sha256)
        down, across = recipe.manifest.grid
        kind = Kind.of((rows, recipe.bank.shape[1]), down * across, extractor.provider)
        return sessions.choices.choose(kind, rows, partial(_measure, recipe, sessions, extractor.provider))
    except EdgeError as error:
        return Choice(by_rule(rows), "rule", f"the measurement failed: {error}")


def _measure(recipe: Recipe, sessions: Sessions, provider: str) -> Mapping[str, float]:
    """Milliseconds per frame of each engine worth trying, from features to the proven maximum."""
    frames = _golden_features(recipe, sessions, provider)
    engines = _engines(recipe, sessions, provider)
    if not frames or len(engines) < 2:
        return {}
    near = [next(iter(engines.values())).complete(_on_host(f, recipe.projection)).rows for f in frames]
    return in_turn({name: _way(engine, frames, near, recipe.projection) for name, engine in engines.items()})


def _golden_features(recipe: Recipe, sessions: Sessions, provider: str) -> list[Features]:
    """Of the golden pictures of good parts, or of all where there is none; finite ones only."""
    settings = PatchCoreSettings.of(recipe.manifest, recipe.template)
    extractor = sessions.extractor(recipe.backbone, recipe.manifest.backbone.sha256)
    if provider != "CPUExecutionProvider":
        extract: Callable[..., Sequence[Features] | Array] = sessions.on_device(extractor).extract
    else:
        extract = extractor.extract
    golden = [g for g in recipe.golden if g.kind == "good"] or list(recipe.golden)
    features = [extract(settings.prepare(g.pixels).inputs)[0] for g in golden[:_FRAMES]]
    for found in features:
        check_shape(recipe, found)
    return [f for f in features if largest_squared_norm(_on_host(f, recipe.projection)) <= LARGEST_SQUARED_NORM]


def _engines(recipe: Recipe, sessions: Sessions, provider: str) -> dict[str, NearestNeighbour]:
    """By name; one that cannot be had here is left out."""
    made = dict[str, NearestNeighbour]()
    names = candidates(len(recipe.bank), provider)
    for name in names if len(names) > 1 else ():
        try:
            made[name] = make_engine(name, recipe.bank, sessions.graphs(provider))
        except EdgeError:
            continue
    return made


def check_shape(recipe: Recipe, features: Features) -> None:
    """That the graph gives what the recipe says, (gh, gw, D): a mask of another grid would lie elsewhere, a bank of
    other dimensions compares with nothing. Raises RecipeShapeError."""
    manifest = recipe.manifest
    said, found = (*manifest.grid, manifest.backbone.dim), tuple(int(n) for n in features.shape)
    if found != said:
        raise RecipeShapeError(
            f"the backbone of {manifest.name} gives {found} (cells down, across, dimensions), the recipe says {said}: "
            "make the recipe again"
        )


def _on_host(features: Features, projection: Array | None) -> Array:
    grid = on_host(features)
    return project_patches(grid.reshape(-1, grid.shape[-1]), projection)


def _way(
    engine: NearestNeighbour, frames: Sequence[Features], near: Sequence[NDArray[np.int64]], projection: Array | None
) -> Callable[[int], object]:
    """One turn: a frame, with the rows of the other frames as hints; without hints where there is no other.

    A frame's own rows would make the search look faster than it is on the line.
    """
    there = engine.graphs.upload(projection) if isinstance(engine, GraphEngine) and projection is not None else None

    def run(turn: int) -> object:
        index = turn % len(frames)
        frame, grid = frames[index], (frames[index].shape[0], frames[index].shape[1])
        others = [rows for i, rows in enumerate(near) if i != index]
        hints = np.stack(others) if others else None
        if isinstance(engine, GraphEngine) and isinstance(frame, DeviceFeatures):
            return engine.maximum(frame.patches(there), grid, hints)
        return engine.maximum(_on_host(frame, projection), grid, hints)

    return run
