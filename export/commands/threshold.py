"""`edge-export threshold`: another threshold for a recipe, without its pictures."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.commands.options import json_option, label_option, provider_option, recipe_option, stamped
from export.errors import ExportError

if TYPE_CHECKING:
    from export.threshold import ChangedThreshold

DESCRIPTION = """\
A recipe keeps the scores of the good pictures that its bank has not seen. This takes another threshold
from them: no pictures are needed, nothing is built, and the bank stays bit for bit the same.

  edge-export threshold --recipe bottle.recipe                      which rates the scores support
  edge-export threshold --recipe bottle.recipe --false-reject-rate 0.02 --out strict.recipe
  edge-export threshold --recipe bottle.recipe --false-reject-rate 0.05 --undecided-rate 0.03 --out band.recipe

A larger false-reject rate makes a lower threshold: more good parts are rejected, fewer defects escape.
A rate that the pictures do not support is refused, with how many are missing.

With --undecided-rate U, parts between two thresholds come out NotDecidable: of the false rejects R, at
most R - U are called NotOK. The line rejects what is not OK, NotDecidable included, so R stays its
false-reject rate.

The new recipe is a recipe of its own: new version, new digest, and a note of what it was made from.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "threshold",
        help="change a recipe's threshold without building it again",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recipe_option(parser)
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="NAME.recipe for a file, or a folder; without it, nothing is written"
    )
    parser.add_argument(
        "--false-reject-rate",
        type=float,
        metavar="RATE",
        help="good parts rejected, 0.01 for 1%% (default: smallest supported)",
    )
    parser.add_argument(
        "--undecided-rate", type=float, metavar="RATE", help="of these, good parts NotDecidable instead of NotOK"
    )
    label_option(parser)
    provider_option(parser)
    json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the choices or write the changed recipe. Raises ExportError or EdgeError."""
    if arguments.out is None:
        if arguments.false_reject_rate is not None or arguments.undecided_rate is not None:
            raise ExportError("a changed recipe needs --out PATH: recipes are never changed in place")
        return _show_choices(arguments)
    from edge_daemon.engines.sessions import EngineOptions
    from export.threshold import ThresholdRequest, change_threshold

    stamp = stamped(arguments.label)
    changed = change_threshold(
        ThresholdRequest(
            recipe=arguments.recipe,
            out=arguments.out,
            created_utc=stamp.created_utc,
            version=stamp.version,
            false_reject_rate=arguments.false_reject_rate,
            undecided_rate=arguments.undecided_rate,
            engine=EngineOptions(provider=arguments.provider),
        )
    )
    print(json.dumps(figures(changed), allow_nan=False) if arguments.json else summary(changed))
    return 0


def figures(changed: "ChangedThreshold") -> dict[str, Any]:
    """The summary as data."""
    manifest = changed.manifest
    before = changed.before
    return {
        "recipe": str(changed.path),
        "name": manifest["name"],
        "version": manifest["version"],
        "digest": changed.digest,
        "thresholds": manifest["thresholds"],
        "thresholds_before": {"lower": before.lower, "upper": before.upper, "pixel": before.pixel},
        "calibration": {key: value for key, value in manifest["calibration"].items() if key != "held_out"},
        "golden": manifest["golden"],
        "notes": changed.notes,
    }


def summary(changed: "ChangedThreshold") -> str:
    """The summary for a vision engineer."""
    from export.commands.recipe import threshold_lines

    m = changed.manifest
    limits, before = m["thresholds"], changed.before
    band = f" to {limits['upper']:.6g}" if limits["upper"] > limits["lower"] else ""
    band_before = f" to {before.upper:.6g}" if before.upper > before.lower else ""
    lines = [
        f"Recipe {m['name']} {m['version']}: {changed.path}",
        f"  digest      {changed.digest[:12]}",
        f"  threshold   {limits['lower']:.6g}{band} (image score), before {before.lower:.6g}{band_before}; "
        f"{limits['pixel']:.6g} (boxes), before {before.pixel:.6g}",
        *threshold_lines(m),
        "  golden      " + ", ".join(f"{g['kind']} {g['score']:.4g} {g['evaluation']}" for g in m["golden"]),
    ]
    return "\n".join([*lines, *(f"  {note}" for note in changed.notes)])


def _show_choices(arguments: argparse.Namespace) -> int:
    from edge_daemon.artefact.recipe import load_recipe
    from export.threshold import choices, held_out_scores

    manifest = load_recipe(arguments.recipe).manifest
    found = choices(manifest)
    blocks = len({entry["block"] for entry in held_out_scores(manifest)})
    if arguments.json:
        rows = [{"rate": c.rate, "threshold": c.threshold, "upper_rate": c.upper_rate} for c in found]
        now = manifest.thresholds.model_dump()
        print(json.dumps({"recipe": str(arguments.recipe), "n": blocks, "thresholds": now, "choices": rows}))
        return 0
    print(f"{manifest.name} {manifest.version}: {blocks} good parts (or blocks) kept apart, now at ", end="")
    print(f"{manifest.thresholds.lower:.6g}")
    print("  false rejects   threshold   with 95% confidence")
    for c in found:
        print(f"  {c.rate:>13.1%}   {c.threshold:<9.6g}   {c.upper_rate:.2%} at most")
    return 0
