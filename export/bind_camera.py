"""The camera settings of a recipe that exists: stated later, changed or taken out; bank and thresholds untouched."""

from dataclasses import dataclass
from pathlib import Path

from edge_daemon.artefact.camera import read_camera_file
from edge_daemon.artefact.manifest import CameraPart
from edge_daemon.engines.sessions import EngineOptions
from export.camera import part_of, with_camera
from export.rewrite import origin_of, read_original, successor, write_successor


@dataclass(frozen=True, slots=True)
class Bound:
    """What was written. camera: None where the settings were taken out; notes: one sentence each."""

    digest: str
    camera: CameraPart | None
    notes: list[str]


@dataclass(frozen=True, slots=True)
class BindRequest:
    """settings: the camera.json of the pictures that the recipe was learned from; None takes the settings out."""

    recipe: Path
    out: Path
    settings: Path | None
    version: str
    created_utc: str
    engine: EngineOptions


def bind_camera(request: BindRequest) -> Bound:
    """Write the recipe again with these settings, none for none. Raises ExportError or EdgeError."""
    original = read_original(request.recipe, request.out)
    camera = None if request.settings is None else part_of(read_camera_file(request.settings))
    origin = origin_of(original.recipe, "camera")
    fields = with_camera(successor(original.recipe, request.version, request.created_utc, origin), camera)
    written = write_successor(original, request.out, fields, request.engine, changed="settings")
    return Bound(written.digest, camera, written.notes)
