"""`edge-export recipe --add`: more good pictures for a recipe that exists."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.commands.options import bars, stamped
from export.errors import ExportError

if TYPE_CHECKING:
    from export.extend import ExtendedRecipe

# What a recipe is, and does not become otherwise by more pictures.
_STAYS = ("backbone", "profile", "size", "coreset_ratio", "reduce", "search", "roi", "um_per_px")
_VIEW = (
    "min_defect_mm2",
    "mask",
    "tiles",
    "scale",
    "align",
    "align_picture",
    "align_shift",
    "align_rotation",
    "align_correlation",
)
_ONLY_HERE = ("calibration", "accept", "dry_run")


def add_extension(parser: argparse.ArgumentParser) -> None:
    """The options that only --add has."""
    group = parser.add_argument_group("more good parts")
    group.add_argument("--add", type=Path, metavar="RECIPE", help="extend this recipe with the pictures in --images")
    group.add_argument(
        "--accept",
        action="append",
        metavar="NAME",
        help="a new picture that is good though the old recipe rejects it; may be repeated, patterns work",
    )
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="the folder the old recipe was built from: its pictures kept apart are judged again",
    )
    group.add_argument("--dry-run", action="store_true", help="look at the new pictures and write nothing")


def refuse_extension_options(arguments: argparse.Namespace) -> None:
    """For a recipe built anew. Raises ExportError."""
    missing = [f"--{option}" for option in ("name", "out") if getattr(arguments, option) is None]
    if missing:
        raise ExportError(f"a new recipe needs {' and '.join(missing)}: edge-export recipe --help")
    stray = [_option(name) for name in _ONLY_HERE if getattr(arguments, name)]
    if stray:
        raise ExportError(f"{', '.join(stray)} belong to --add RECIPE, which was not given")


def run_extension(arguments: argparse.Namespace) -> int:
    """Extend and summarise. Raises ExportError or EdgeError."""
    stray = [_option(name) for name in _STAYS if getattr(arguments, name) is not None]
    stray += [_option(name) for name in _VIEW if getattr(arguments, name) not in (None, False)]
    stray += [_option(name) for name in ("provisional", "no_camera_settings") if getattr(arguments, name)]
    if stray:
        raise ExportError(
            f"{', '.join(stray)} cannot be given with --add: backbone, view and size stay the old recipe's. To change "
            "them, build a new recipe"
        )
    from edge_daemon.engines.sessions import EngineOptions
    from export.extend import ExtendRequest, extend_recipe

    stamp = stamped(arguments.label)
    request = ExtendRequest(
        recipe=arguments.add,
        images=arguments.images,
        out=arguments.out,
        created_utc=stamp.created_utc,
        version=stamp.version,
        name=arguments.name,
        calibration=arguments.calibration,
        accept=tuple(arguments.accept or ()),
        drop_suspects=arguments.drop_suspects,
        false_reject_rate=arguments.false_reject_rate,
        undecided_rate=arguments.undecided_rate,
        held_out=arguments.held_out,
        block=arguments.block,
        skip_unreadable=arguments.skip_unreadable,
        camera_settings=arguments.camera_settings,
        seed=arguments.seed,
        dry_run=arguments.dry_run,
        engine=EngineOptions(provider=arguments.provider, intra_op_threads=arguments.threads),
    )
    extended = extend_recipe(request, bars(shown=True if arguments.progress else None))
    for skipped in extended.pictures.skipped:
        print(f"left out: {skipped}", file=sys.stderr)
    print(json.dumps(figures(extended), allow_nan=False) if arguments.json else summary(extended))
    return 0


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def figures(extended: "ExtendedRecipe") -> dict[str, Any]:
    """The summary as data."""
    plan, old, manifest = extended.plan, extended.parent.manifest, extended.manifest
    found: dict[str, Any] = {
        "recipe": None if extended.path is None else str(extended.path),
        "dry_run": extended.path is None,
        "made_from": {"name": old.name, "version": old.version, "digest": extended.parent.digest},
        "already_known": len(plan.sides.known),
        "copies_of_known": plan.sides.copies,
        "added_to_bank": len(plan.in_bank),
        "added_to_calibration": len(plan.sides.held),
        "suspects": [
            {"name": s.name, "score": s.score, "times_threshold": s.times, "accepted": s.accepted}
            for s in plan.strangers
        ],
        "dropped_suspects": [s.name for s in plan.dropped],
        "bank_rows_before": old.bank.rows,
        "thresholds_before": old.thresholds.model_dump(),
        "skipped": extended.pictures.skipped,
        "notes": extended.notes,
    }
    if manifest is None:
        return found
    calibration = {key: value for key, value in manifest["calibration"].items() if key != "held_out"}
    return found | {
        "name": manifest["name"],
        "version": manifest["version"],
        "digest": extended.digest,
        "backbone": manifest["backbone"]["name"],
        "precision": manifest["backbone"]["precision"],
        "bank_rows": manifest["bank"]["rows"],
        "thresholds": manifest["thresholds"],
        "calibration": calibration,
        "golden": manifest["golden"],
    }


def summary(extended: "ExtendedRecipe") -> str:
    """The summary for a vision engineer."""
    plan, old, m = extended.plan, extended.parent.manifest, extended.manifest
    sides = (
        f"{len(plan.in_bank)} new for the bank, {len(plan.sides.held)} new kept apart, "
        f"{len(plan.sides.known)} known already"
    )
    if m is None:
        lines = [f"{old.name} {old.version} would be extended; nothing was written", f"  pictures    {sides}"]
        lines += [
            f"  SUSPECT     {s.name}: score {s.score:.4g}, {s.times:.2f} times the old threshold"
            + (" (accepted)" if s.accepted else "")
            for s in plan.strangers
        ]
        if not plan.strangers:
            lines.append("  suspects    none: the old recipe calls all of them OK")
        return "\n".join([*lines, *(f"  {note}" for note in extended.notes)])
    from export.commands.recipe import threshold_lines

    limits, before = m["thresholds"], old.thresholds
    band = f", NotDecidable to {limits['upper']:.6g}" if limits["upper"] > limits["lower"] else ""
    lines = [
        f"Recipe {m['name']} {m['version']}: {extended.path}, from version {old.version}",
        f"  digest      {(extended.digest or '')[:12]}",
        f"  pictures    {sides}",
        f"  model       {m['backbone']['name']} ({m['backbone']['precision']})",
        f"  bank        {m['bank']['rows']} patches, before {old.bank.rows}",
        f"  threshold   {limits['lower']:.6g}{band} (image score), before {before.lower:.6g}; "
        f"{limits['pixel']:.6g} (boxes), before {before.pixel:.6g}",
        *threshold_lines(m),
        "  golden      " + ", ".join(f"{g['kind']} {g['score']:.4g} {g['evaluation']}" for g in m["golden"]),
    ]
    return "\n".join([*lines, *(f"  {note}" for note in extended.notes)])
