"""What pictures were taken with: `camera.json` beside them, or a file that says so.

It goes into the recipe, and no camera that is set otherwise is judged by that.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_daemon.artefact.camera import CAMERA_FILE, CameraFile, own_file, read_camera_file
from edge_daemon.artefact.manifest import CAMERA_FEATURE, CameraPart, Manifest
from edge_daemon.core.camera_settings import counting, differences, in_short, in_words
from export.errors import PicturesError

_SHOWN = 3


def taken_with(folder: Path, paths: Sequence[Path], stated: Path | None) -> CameraPart | None:
    """The settings that all pictures of the folder were taken with, None where nothing says them.

    paths: the pictures; stated: a file that says it for those that no `camera.json` of their folder, or of one between
    it and `folder`, speaks for, nor one of their own (`own_file`). Raises PicturesError when they were not all taken
    with the same, or only some of them are known; CameraSettingsError for a file that cannot be read.
    """
    found = {path: read_camera_file(path) for path in _files(folder, paths)}
    said = [*([(stated, read_camera_file(stated))] if stated is not None else []), *found.items()]
    if not said:
        return None
    (first, camera), *others = said
    for path, other in others:
        if unlike := differences(camera.settings, other.settings):
            raise PicturesError(
                f"the pictures in {folder} were taken with different settings: "
                f"{in_words(unlike, str(path), str(first))}. A recipe is learned from pictures of one setting: make "
                "one for each"
            )
    unknown = [] if stated is not None else [path for path in paths if not _spoken_for(path, found)]
    if unknown:
        names = ", ".join(p.relative_to(folder).as_posix() for p in unknown[:_SHOWN])
        raise PicturesError(
            f"{len(unknown)} of {len(paths)} pictures in {folder} have no {CAMERA_FILE} that says what they were taken "
            f"with ({names}{', ...' if len(unknown) > _SHOWN else ''}), the others have: give --camera-settings FILE "
            "if they were taken with the same"
        )
    return part_of(camera)


def _files(folder: Path, paths: Sequence[Path]) -> Iterator[Path]:
    """Those that speak for a picture, the uppermost first."""
    folders = {parent for path in paths for parent in path.parents if parent == folder or folder in parent.parents}
    for place in sorted(folders, key=lambda path: (len(path.parts), path)):
        if (place / CAMERA_FILE).exists():
            yield place / CAMERA_FILE
    yield from (own_file(path) for path in paths if own_file(path).exists())


def _spoken_for(path: Path, found: Collection[Path]) -> bool:
    return own_file(path) in found or any(parent / CAMERA_FILE in found for parent in path.parents)


def part_of(camera: CameraFile) -> CameraPart:
    """The part of recipe.json: what shapes the picture, and nothing else."""
    return CameraPart(settings=counting(camera.settings), kind=camera.kind, taken_utc=camera.taken_utc)


def require_same(manifest: Manifest, folder: Path, paths: Sequence[Path], stated: Path | None = None) -> None:
    """Raises PicturesError when pictures that are to join a recipe were taken with other settings, or nobody knows."""
    old = manifest.camera
    if old is None:
        return
    new = taken_with(folder, paths, stated)
    if new is None:
        raise PicturesError(
            f"nothing says what the pictures in {folder} were taken with, and {manifest.name} was learned from "
            f"pictures with {in_short(old.settings)}: give --camera-settings FILE, the {CAMERA_FILE} of the camera "
            "that took them"
        )
    if unlike := differences(old.settings, new.settings):
        raise PicturesError(
            f"the pictures in {folder} were taken with other settings than those of {manifest.name}: "
            f"{in_words(unlike, 'the new pictures', manifest.name)}. Take them as the old ones, or build a new recipe"
        )


def with_camera(fields: Mapping[str, Any], camera: CameraPart | None) -> dict[str, Any]:
    """The fields of recipe.json with these settings in the place of any that it has; None takes them out."""
    features = [feature for feature in fields["required_features"] if feature != CAMERA_FEATURE]
    changed = {key: value for key, value in fields.items() if key != "camera"}
    if camera is None:
        return {**changed, "required_features": features}
    return {**changed, "required_features": [*features, CAMERA_FEATURE], "camera": camera.model_dump(mode="json")}


def camera_notes(folder: Path, camera: CameraPart | None) -> list[str]:
    """What the engineer should know of a recipe without settings."""
    if camera is not None:
        return []
    return [
        f"nothing says what the pictures in {folder} were taken with: the daemon judges by this recipe whatever "
        f"exposure, gain and region the camera has. `edge-daemon grab --save` takes pictures with a {CAMERA_FILE}; "
        "--camera-settings FILE gives one"
    ]
