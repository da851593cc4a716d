"""The camera settings of a recipe that exists: stated later, changed or taken out; bank and thresholds untouched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_daemon.artefact.camera import read_camera_file
from edge_daemon.artefact.manifest import CameraPart
from edge_daemon.artefact.recipe import MANIFEST, manifest_bytes, read_files, verify_files, write_recipe
from edge_daemon.artefact.signature import SIGNATURE
from edge_daemon.engines.sessions import EngineOptions
from export.build import output_problems
from export.camera import part_of, with_camera
from export.errors import ExportError
from export.golden import prove


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
    if problems := output_problems(request.out):
        raise ExportError("\n".join(problems))
    camera = None if request.settings is None else part_of(read_camera_file(request.settings))
    files = dict(read_files(request.recipe))
    verified = verify_files(files, str(request.recipe))
    old = verified.manifest
    fields: dict[str, Any] = old.model_dump(mode="json", exclude={"self_sha256"})
    origin = {"digest": verified.digest, "version": old.version, "created_utc": old.created_utc, "change": "camera"}
    fields |= {
        "version": request.version,
        "created_utc": request.created_utc,
        "provenance": {**old.provenance, "made_from": origin},
    }
    notes = []
    if files.pop(SIGNATURE, None) is not None:
        notes.append("the signature was for the old settings and is gone: sign the new recipe")
    files[MANIFEST] = manifest_bytes(with_camera(fields, camera))
    digest = prove(files, f"the new recipe {old.name}", request.engine)
    write_recipe(request.out, files)
    return Bound(digest, camera, notes)
