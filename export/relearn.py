"""Health limits of a recipe that exists: tried on pictures, or learned again, bank and thresholds untouched."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_daemon.artefact.manifest import HealthPart, Manifest
from edge_daemon.artefact.pictures import read_picture
from edge_daemon.core.health import HealthLimits, Violation, measure, take_sample, violation
from edge_daemon.detectors.health import health_limits, health_region
from edge_daemon.engines.sessions import EngineOptions
from edge_daemon.errors import PictureError
from export.camera import require_same
from export.errors import ExportError, PicturesError
from export.gather import list_pictures
from export.health import Learned, learn_health, with_health
from export.rewrite import origin_of, read_original, successor, write_successor


@dataclass(frozen=True, slots=True)
class Relearned:
    """What was written. health: None where the limits were taken out; notes: one sentence each."""

    digest: str
    health: HealthPart | None
    notes: list[str]


def relearn_health(
    recipe: Path, images: Path | None, out: Path, version: str, created_utc: str, camera_settings: Path | None = None
) -> Relearned:
    """Write the recipe again with limits from these good pictures, none for none. camera_settings: a file that says
    what they were taken with. Raises ExportError or EdgeError."""
    original = read_original(recipe, out)
    learned = None if images is None else _learn(original.recipe.manifest, images, camera_settings)
    health, notes = (None, []) if learned is None else (learned.health, learned.notes)
    origin = origin_of(original.recipe, "health")
    fields = with_health(successor(original.recipe, version, created_utc, origin), health)
    written = write_successor(original, out, fields, EngineOptions(), changed="limits")
    return Relearned(written.digest, health, [*notes, *written.notes])


def _learn(manifest: Manifest, images: Path, camera_settings: Path | None) -> Learned:
    paths = list_pictures(images)
    require_same(manifest, images, paths, camera_settings)
    names = [path.relative_to(images).as_posix() for path in paths]
    width, height = manifest.view.frame_size
    for path in paths:
        found = read_picture(path).shape
        if (found[1], found[0]) != (width, height):
            raise PicturesError(f"{path} is {found[1]}x{found[0]} px, the recipe judges frames of {width}x{height}")
    located = manifest.align is not None
    return learn_health(paths, names, names, health_region(manifest), _silent, located=located)


def try_health(manifest: Manifest, images: Path) -> list[dict[str, Any]]:
    """Each picture with the reason why it would not be judged, empty when it would. Raises ExportError."""
    limits = health_limits(manifest)
    if limits is None:
        raise ExportError(f"{manifest.name} has no health limits: learn some with --images DIR --out PATH")
    found = []
    for path in list_pictures(images):
        ill = look_at(path, limits)
        reason, message = ("", "") if ill is None else (ill.reason.value, ill.message)
        found.append({"picture": path.relative_to(images).as_posix(), "reason": reason, "message": message})
    return found


def look_at(path: Path, limits: HealthLimits) -> Violation | None:
    """What is wrong with a picture. Raises PicturesError when it cannot be read or does not fit."""
    try:
        sample = take_sample(read_picture(path), limits.region)
    except PictureError as exc:
        raise PicturesError(str(exc)) from exc
    return violation(measure(sample, limits.reference), limits.limits)


def _silent(_what: str, _total: int) -> AbstractContextManager[Callable[[int], object]]:
    return nullcontext(lambda _done: None)
