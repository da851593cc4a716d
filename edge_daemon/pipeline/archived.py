"""What the archive keeps of a part: the full frame as it came, and the heat over it."""

from contextlib import suppress

import cv2

from edge_daemon.artefact.camera import CAMERA_FILE, stated
from edge_daemon.core.geometry import Region
from edge_daemon.core.picture import map_region, overlay
from edge_daemon.errors import CameraSettingsError, EdgeError
from edge_daemon.pipeline.inspection import OpenInspection, ViewOutcome


def archived_pictures(inspection: OpenInspection) -> list[tuple[str, bytes]]:
    """(name, contents) of each view: `<view>.frame.png`, lossless and in full size, `<view>.camera.json` with what it
    was taken with, where the camera says so, and `<view>.heatmap.png`. Raises EdgeError."""
    pictures = []
    for view, outcome in sorted(inspection.outcomes.items()):
        if outcome.frame is None:
            continue
        pixels = outcome.frame.pixels
        pictures.append((f"{view}.frame.png", _png(pixels)))
        if outcome.frame.settings:
            with suppress(CameraSettingsError):  # of a driver that reports something odd: the picture matters more
                said = stated(outcome.frame.camera, "", inspection.anchor.text, outcome.frame.settings)
                pictures.append((f"{view}.{CAMERA_FILE}", f"{said.model_dump_json(indent=2)}\n".encode()))
        if (heat := _heat(inspection, view, outcome)) is not None:
            pictures.append((f"{view}.heatmap.png", heat))
    return pictures


def _heat(inspection: OpenInspection, view: str, outcome: ViewOutcome) -> bytes | None:
    evidence, recipes = outcome.evidence, inspection.recipe_set
    if evidence is None or recipes is None or outcome.frame is None:
        return None
    manifest = recipes.views[view].recipe.manifest
    region = Region(*manifest.view.region) if manifest.view.region else None
    covers = map_region(manifest.view.frame_size, region, manifest.preprocess.resize_to, manifest.preprocess.size)
    make_map = evidence.shown_map or evidence.anomaly_map
    anomaly = make_map() if make_map else None
    return _png(overlay(outcome.frame.pixels, anomaly, manifest.thresholds.pixel, evidence.boxes, covers))


def _png(rgb: cv2.typing.MatLike) -> bytes:
    picture = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR) if rgb.ndim == 3 else rgb
    encoded, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not encoded:
        raise EdgeError("a picture could not be encoded")
    return data.tobytes()
