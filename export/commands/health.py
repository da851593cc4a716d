"""`edge-export health`: what a recipe demands of a picture before it is judged, and how pictures fare."""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.commands.options import json_option, label_option, recipe_option, stamped
from export.errors import ExportError

if TYPE_CHECKING:
    from edge_daemon.artefact.manifest import HealthPart

DESCRIPTION = """\
A recipe made with health limits refuses pictures that cannot be judged: too dark or bright, blurred, moved,
noisy. They come out NotDecidable with the reason, whatever they would score. This shows the limits, tries
them on pictures, and learns them again without touching bank and threshold.

  edge-export health --recipe bottle.recipe                                   the limits
  edge-export health --recipe bottle.recipe --images last_week/               which of these would be refused
  edge-export health --recipe bottle.recipe --images new_lamp/ --out b2.recipe  learn them again from good pictures
  edge-export health --recipe bottle.recipe --none --out b2.recipe            take them out
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "health",
        help="show, try or relearn what a picture must be like to be judged",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recipe_option(parser)
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="pictures to try; with --out, good ones to learn from"
    )
    parser.add_argument("--none", action="store_true", help="with --out: a recipe without health limits")
    parser.add_argument("--out", type=Path, metavar="PATH", help="the new recipe: NAME.recipe for a file, or a folder")
    parser.add_argument(
        "--camera-settings", type=Path, metavar="FILE", help="camera.json that says what --images were taken with"
    )
    label_option(parser)
    json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show, try or relearn. Raises ExportError or EdgeError."""
    from edge_daemon.artefact.recipe import load_recipe
    from export.relearn import relearn_health, try_health

    if arguments.none and (arguments.out is None or arguments.images is not None):
        raise ExportError("--none takes the limits out: give --out PATH for the new recipe, and no --images")
    if arguments.out is not None and not arguments.none and arguments.images is None:
        raise ExportError("give --images DIR with good pictures to learn from, or --none to take the limits out")
    found: dict[str, Any] = {"recipe": str(arguments.recipe)}
    if arguments.out is not None:
        stamp = stamped(arguments.label)
        made = relearn_health(
            arguments.recipe,
            arguments.images,
            arguments.out,
            stamp.version,
            stamp.created_utc,
            arguments.camera_settings,
        )
        found |= {"recipe": str(arguments.out), "digest": made.digest, "notes": made.notes}
        health = made.health
    else:
        manifest = load_recipe(arguments.recipe).manifest
        health = manifest.health
        if arguments.images is not None:
            found["refused"] = try_health(manifest, arguments.images)
    found["health"] = None if health is None else health.model_dump(mode="json", exclude={"reference"})
    print(json.dumps(found, allow_nan=False) if arguments.json else summary(found, health))
    return 0


def summary(found: dict[str, Any], health: "HealthPart | None") -> str:
    """The same for people."""
    lines = [f"Recipe {found['recipe']}" + (f", digest {found['digest'][:12]}" if "digest" in found else "")]
    if health is None:
        return "\n".join([*lines, "  no health limits: every picture is judged"])
    lines.append(f"  {'measure':<18}{'lowest':>10}{'highest':>10}{'median':>10}   good pictures had")
    for name, limit in health.limits.items():
        ends = "".join(f"{'-' if end is None else format(end, '.4g'):>10}" for end in (limit.lower, limit.upper))
        lines.append(f"  {name:<18}{ends}{limit.centre:>10.4g}   {limit.smallest:.4g} to {limit.largest:.4g}")
    lines.append(
        f"  learned from {health.evidence.get('pictures')} pictures, shifts against {health.evidence['reference']}"
    )
    if (refused := found.get("refused")) is not None:
        counts = Counter(entry["reason"] or "healthy" for entry in refused)
        lines += ["", *(f"  {count:>6} {reason}" for reason, count in counts.most_common())]
        lines += [f"  {entry['picture']}: {entry['message']}" for entry in refused if entry["reason"]]
    return "\n".join([*lines, *(f"  {note}" for note in found.get("notes", []))])
