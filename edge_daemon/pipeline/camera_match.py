"""Whether a camera is set as it was for the pictures that its recipe was learned from."""

from edge_daemon.core.camera_settings import Difference, Settings, differences, in_words
from edge_daemon.detectors.loading import ReadyRecipe


def set_otherwise(ready: ReadyRecipe, settings: Settings | None) -> tuple[Difference, ...]:
    """What is not as in the recipe; nothing where the recipe says nothing of settings.

    settings: as read back from the camera, None where nobody has read them: then nothing is as in the recipe.
    """
    camera = ready.recipe.manifest.camera
    return () if camera is None else differences(camera.settings, settings or {})


def advice(camera: str, ready: ReadyRecipe, found: tuple[Difference, ...], *, judged: bool) -> str:
    """For people: what differs, what the line does, what to do. judged: the view only warns."""
    manifest = ready.recipe.manifest
    consequence = "parts are judged all the same (`camera_settings` of the view)" if judged else "no part is judged"
    return (
        f"camera {camera} is not set as it was for the pictures of {manifest.name} {manifest.version}: "
        f"{in_words(found, 'the camera', 'the recipe')}; {consequence}. Set [cameras.{camera}], or the camera itself, "
        "to what the recipe says, or activate a recipe whose pictures were taken as the camera is set now"
    )
