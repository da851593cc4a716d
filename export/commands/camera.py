"""`edge-export camera`: what a camera must be set to for a recipe to judge its pictures."""

import argparse
import json
from pathlib import Path
from typing import Any

from export.commands.options import json_option, label_option, provider_option, recipe_option, stamped
from export.errors import ExportError

DESCRIPTION = """\
A recipe that knows what its pictures were taken with (exposure, gain, region, ...) judges nothing that a camera
takes with other settings. This shows the settings, and states, changes or removes them in a recipe that exists,
without touching bank and threshold.

  edge-export camera --recipe bottle.recipe                                          the settings
  edge-export camera --recipe bottle.recipe --settings good/camera.json --out b2.recipe
  edge-export camera --recipe bottle.recipe --none --out b2.recipe                   judge whatever they are

State only what the recipe's pictures were really taken with: `edge-daemon grab --save` on the line that took them
writes camera.json. After an update of the software that lets a driver report more than the recipe knows, that is the
way to say so.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "camera",
        help="show, state or remove the camera settings that a recipe is for",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recipe_option(parser)
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--settings", type=Path, metavar="FILE", help="camera.json of the pictures that the recipe was learned from"
    )
    change.add_argument("--none", action="store_true", help="take the settings out")
    parser.add_argument("--out", type=Path, metavar="PATH", help="the new recipe: NAME.recipe for a file, or a folder")
    label_option(parser)
    provider_option(parser)
    json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show or change. Raises ExportError or EdgeError."""
    from edge_daemon.artefact.recipe import load_recipe

    changes = arguments.none or arguments.settings is not None
    if changes != (arguments.out is not None):
        raise ExportError("a changed recipe needs --settings FILE or --none, and --out PATH: none is changed in place")
    found: dict[str, Any] = {"recipe": str(arguments.recipe), "notes": []}
    if changes:
        found |= _changed(arguments)
    else:
        camera = load_recipe(arguments.recipe).manifest.camera
        found["camera"] = None if camera is None else camera.model_dump(mode="json")
    print(json.dumps(found, allow_nan=False) if arguments.json else summary(found))
    return 0


def _changed(arguments: argparse.Namespace) -> dict[str, Any]:
    from edge_daemon.engines.sessions import EngineOptions
    from export.bind_camera import BindRequest, bind_camera

    stamp = stamped(arguments.label)
    bound = bind_camera(
        BindRequest(
            recipe=arguments.recipe,
            out=arguments.out,
            settings=arguments.settings,
            version=stamp.version,
            created_utc=stamp.created_utc,
            engine=EngineOptions(provider=arguments.provider),
        )
    )
    camera = None if bound.camera is None else bound.camera.model_dump(mode="json")
    return {"recipe": str(arguments.out), "digest": bound.digest, "notes": bound.notes, "camera": camera}


def summary(found: dict[str, Any]) -> str:
    """The same for people."""
    from edge_daemon.core.camera_settings import in_short

    camera = found["camera"]
    lines = [f"Recipe {found['recipe']}" + (f", digest {found['digest'][:12]}" if "digest" in found else "")]
    if camera is None:
        lines.append("  no camera settings: it judges whatever the camera is set to")
    else:
        lines += [f"  {in_short({key: value})}" for key, value in camera["settings"].items()]
        lines.append(f"  from pictures of {camera['taken_utc'] or 'a time unknown'}, camera of kind {camera['kind']}")
    return "\n".join([*lines, *(f"  {note}" for note in found["notes"])])
