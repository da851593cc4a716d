"""`edge-export recipe`: from a folder of good pictures to a recipe."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.commands.added import add_extension, refuse_extension_options, run_extension
from export.commands.options import bars, json_option, label_option, natural, provider_option, size, stamped

if TYPE_CHECKING:
    from edge_daemon.core.geometry import Region
    from export.bank import Reduce
    from export.build import BuiltRecipe
    from export.view import ViewOptions

DESCRIPTION = """\
Builds a recipe from pictures of good parts, and nothing else. Some of them are kept apart: the memory
bank never sees them, and the threshold comes from their scores.

  edge-export recipe --name bottle --images good/ --out bottle.recipe
  edge-export recipe --name bottle --images good/ --out bottle.recipe --false-reject-rate 0.01
  edge-export recipe --name bottle --images good/ --out bottle.recipe --block 'part(\\d+)'
  edge-export recipe --name bottle --images five/ --out trial.recipe --provisional
  edge-export recipe --name lid --images good/ --out lid.recipe --align 120,80,300,240 --align-rotation 180
  edge-export recipe --name web --images good/ --out web.recipe --tiles --scale 0.5 --mask edges.png
  edge-export recipe --add bottle.recipe --images new/ --out bottle-2.recipe

What belongs together (--block): pictures of one part, or taken within one short run, look alike. If
some are in the bank and others set the threshold, the threshold comes out too low and the line rejects
good parts. `--block 10`: every ten consecutive pictures, by name, stay together. A regular expression:
its first group names the block. Identical pictures always stay together, and so do those that differ
in noise only: the same part again. Where different parts look that much alike (a plain web under a
fixed light), `--block 1` says that every picture shows another part.

What the pictures were taken with (camera.json beside them, from `edge-daemon grab --save`) goes into the recipe:
exposure, gain, region, ... A camera that is set otherwise is not judged by it.

The false-reject rate is per part. To promise 1% at the mean, 99 parts (or blocks) kept apart are
needed; to be 95% sure of it, 299. Without --false-reject-rate the smallest of 0.1%, 0.2%, 0.5%, 1%,
2%, 5%, 10% that the parts kept apart support is taken.

More good parts (--add R): a new recipe with the old one's backbone, view and bank, and what the new pictures
show beyond it, in time proportional to the new ones. Pictures that R knows are skipped. New ones that R does not
call OK are named and refused: look at them, remove what is defective, confirm the rest with --accept. The old
pictures need not be there; where they are, --calibration DIR makes the threshold exact. --dry-run only looks.

An --out that ends in .recipe becomes one file, anything else a folder. It appears complete or not at all.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "recipe",
        help="build a recipe from pictures of good parts",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    needed = parser.add_argument_group("needed")
    needed.add_argument("--name", help="name of the product and view: letters, digits, _ . - (with --add: the old one)")
    needed.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="good parts only; PNG, JPEG, BMP, TIFF"
    )
    needed.add_argument("--out", type=Path, metavar="PATH", help="NAME.recipe for a file, or a folder")
    add_extension(parser)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--backbone",
        type=Path,
        metavar="PATH",
        help="file or folder of `edge-export backbone` (default: the embedded one)",
    )
    model.add_argument(
        "--profile", choices=("anomalib", "paper"), help="which PatchCore (default: the backbone's, else anomalib)"
    )
    model.add_argument(
        "--size", type=size, metavar="256|WxH", help="model input in pixels (default: the backbone's, else 256)"
    )
    model.add_argument(
        "--coreset-ratio",
        type=float,
        metavar="SHARE",
        help="share of the patches kept in the bank (default 0.1, and at most 100,000 patches)",
    )
    model.add_argument(
        "--reduce",
        type=dimensions,
        metavar="DIMS|auto",
        help="dimensions of the embeddings after a PCA, fitted on the bank's pictures: a quicker search; auto: as "
        "few as keep the distances among good parts (default: all)",
    )
    model.add_argument(
        "--search",
        choices=("certified", "flat", "graph", "numpy"),
        help="engine of the nearest-neighbour search, for every PC that takes the recipe; all give the same scores and "
        "boxes, in different time: certified looks only where the answer may change, flat compares every row, graph "
        "does so on the provider, numpy is the slow reference. [engine] search in a daemon's config has the last word "
        "(default: what that PC finds fastest)",
    )
    view = parser.add_argument_group("view")
    view.add_argument(
        "--roi", type=region, metavar="X,Y,W,H", help="only this rectangle of the picture is judged, in pixels"
    )
    view.add_argument("--um-per-px", type=float, metavar="UM", help="scale, micrometres a pixel, for areas in mm²")
    view.add_argument(
        "--min-defect-mm2",
        type=float,
        metavar="MM2",
        help="boxes of a smaller area are counted, not drawn; what is NotOK stays NotOK (needs --um-per-px)",
    )
    view.add_argument(
        "--mask", type=Path, metavar="FILE", help="picture of the frame's size, white where nothing is judged"
    )
    view.add_argument(
        "--tiles",
        action="store_true",
        help="judge a large picture in overlapping tiles of the model's size, instead of shrinking it to that",
    )
    view.add_argument(
        "--scale", type=float, metavar="SHARE", help="with --tiles: shrink the picture to this share first (default 1)"
    )
    camera = parser.add_argument_group("camera").add_mutually_exclusive_group()
    camera.add_argument(
        "--camera-settings",
        type=Path,
        metavar="FILE",
        help="camera.json that says what the pictures were taken with (default: those in the folder of the pictures)",
    )
    camera.add_argument(
        "--no-camera-settings",
        action="store_true",
        help="leave them out of the recipe: it judges whatever the camera's settings are",
    )
    place = parser.add_argument_group("alignment")
    place.add_argument(
        "--align",
        type=region,
        metavar="X,Y,W,H",
        help="locate the part by this rectangle of the golden picture, and judge it as if it lay as there; "
        "--roi (default: the same rectangle) and --mask are then pixels of the golden picture",
    )
    place.add_argument(
        "--align-picture", type=Path, metavar="FILE", help="the golden picture (default: the first of --images by name)"
    )
    place.add_argument(
        "--align-shift", type=natural, metavar="PX", help="how far parts may lie from it, in x and in y (default 40)"
    )
    place.add_argument(
        "--align-rotation",
        type=float,
        metavar="DEG",
        help="how far parts may be turned either way, 180 for any angle (default 15)",
    )
    place.add_argument(
        "--align-correlation",
        type=float,
        metavar="R",
        help="what is less alike is not the part and comes out NotDecidable, 0 to 1 (default 0.7)",
    )
    limits = parser.add_argument_group("threshold")
    limits.add_argument(
        "--false-reject-rate",
        type=float,
        metavar="RATE",
        help="good parts rejected, 0.01 for 1%% (default: smallest supported)",
    )
    limits.add_argument(
        "--undecided-rate",
        type=float,
        metavar="RATE",
        help="of these, good parts NotDecidable instead of NotOK (default: no band)",
    )
    limits.add_argument(
        "--held-out",
        type=float,
        metavar="SHARE",
        help="share kept apart from the bank (default 0.3, more where few parts need it)",
    )
    limits.add_argument(
        "--block", metavar="N|REGEX", help="what belongs together, see above (default: every picture by itself)"
    )
    limits.add_argument(
        "--provisional",
        action="store_true",
        help="for a few pictures: threshold by leave-one-out, marked in every result",
    )
    run_group = parser.add_argument_group("run")
    limits.add_argument(
        "--drop-suspects",
        action="store_true",
        help="leave pictures that do not look like the others out of the bank; never out of those kept apart",
    )
    run_group.add_argument(
        "--no-health",
        action="store_true",
        help="learn no health limits: pictures too dark, blurred or shifted are judged like any other",
    )
    label_option(run_group, "of the recipe")
    run_group.add_argument(
        "--skip-unreadable", action="store_true", help="leave out pictures that cannot be read, and name them"
    )
    run_group.add_argument(
        "--seed", type=natural, default=0, help="of the split, the projection, the coreset and the damage (default 0)"
    )
    provider_option(run_group, "computes the features")
    run_group.add_argument(
        "--threads", type=natural, default=0, metavar="N", help="threads of the network (default 0: one per core)"
    )
    run_group.add_argument(
        "--progress", action="store_true", help="progress bars even when standard error is no terminal"
    )
    json_option(run_group)
    parser.set_defaults(run=run)


def region(text: str) -> "Region":
    """`x,y,w,h` in pixels."""
    from edge_daemon.core.geometry import Region

    try:
        x, y, w, h = (int(part) for part in text.split(","))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not x,y,w,h in whole pixels, as in 100,50,640,480") from exc
    if min(x, y) < 0 or min(w, h) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no rectangle: x and y from 0, w and h from 1")
    return Region(x, y, w, h)


def dimensions(text: str) -> "Reduce":
    """`96` or `auto`."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of dimensions, 1 or more, nor auto")
    return int(text)


def view_options(arguments: argparse.Namespace) -> "ViewOptions":
    """How the recipe looks at the frame. Raises ExportError for options without the one that they belong to."""
    from export.errors import ExportError
    from export.view import Align, ViewOptions

    stated = {
        "picture": arguments.align_picture,
        "shift_px": arguments.align_shift,
        "rotation_deg": arguments.align_rotation,
        "correlation": arguments.align_correlation,
    }
    given = {name: value for name, value in stated.items() if value is not None}
    if given and arguments.align is None:
        raise ExportError("--align-… options say how to locate the part: give its rectangle with --align X,Y,W,H")
    if arguments.scale is not None and not arguments.tiles:
        raise ExportError("--scale is of a picture in tiles: give --tiles as well, or --size for the model's input")
    scale = (1.0 if arguments.scale is None else arguments.scale) if arguments.tiles else None
    align = None if arguments.align is None else Align(arguments.align, **given)
    return ViewOptions(align, arguments.mask, scale, arguments.min_defect_mm2)


def run(arguments: argparse.Namespace) -> int:
    """Build and summarise. Raises ExportError or EdgeError."""
    # One BLAS thread: the coreset's products are small, and waking a pool for each costs more than they do
    # (3 s against 8 to 15 s on a busy two-core PC). Read once, when numpy is first imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if arguments.add is not None:
        return run_extension(arguments)
    refuse_extension_options(arguments)
    from edge_daemon.engines.sessions import EngineOptions
    from export.build import RecipeRequest, build_recipe

    stamp = stamped(arguments.label)
    request = RecipeRequest(
        name=arguments.name,
        images=arguments.images,
        out=arguments.out,
        created_utc=stamp.created_utc,
        version=stamp.version,
        backbone=arguments.backbone,
        profile=arguments.profile,
        size=arguments.size,
        coreset_ratio=arguments.coreset_ratio,
        false_reject_rate=arguments.false_reject_rate,
        undecided_rate=arguments.undecided_rate,
        drop_suspects=arguments.drop_suspects,
        reduce=arguments.reduce,
        search=arguments.search,
        held_out=arguments.held_out,
        block=arguments.block,
        region=arguments.roi,
        um_per_px=arguments.um_per_px,
        look=view_options(arguments),
        provisional=arguments.provisional,
        skip_unreadable=arguments.skip_unreadable,
        health=not arguments.no_health,
        camera=not arguments.no_camera_settings,
        camera_settings=arguments.camera_settings,
        seed=arguments.seed,
        engine=EngineOptions(provider=arguments.provider, intra_op_threads=arguments.threads),
    )
    built = build_recipe(request, bars(shown=True if arguments.progress else None))
    for skipped in built.skipped:
        print(f"left out: {skipped}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(figures(built), allow_nan=False))
    else:
        print(summary(built))
    return 0


def figures(built: "BuiltRecipe") -> dict[str, Any]:
    """The summary as data."""
    manifest = built.manifest
    calibration = {key: value for key, value in manifest["calibration"].items() if key != "held_out"}
    return {
        "recipe": str(built.path),
        "name": manifest["name"],
        "version": manifest["version"],
        "digest": built.digest,
        "bytes": size_on_disk(built.path),
        "pictures": built.pictures,
        "bank_pictures": built.bank_pictures,
        "patches": built.patches,
        "bank_rows": manifest["bank"]["rows"],
        "dim": manifest["bank"]["dim"],
        "backbone": manifest["backbone"]["name"],
        "precision": manifest["backbone"]["precision"],
        "profile": manifest["parameters"]["profile"],
        "search": manifest["parameters"].get("engine", "auto"),
        "size": manifest["preprocess"]["size"],
        "thresholds": manifest["thresholds"],
        "provisional": manifest["provisional"],
        "calibration": calibration,
        "suspects": manifest["provenance"]["pictures"]["suspects"],
        "golden": manifest["golden"],
        "camera": manifest.get("camera"),
        "skipped": built.skipped,
        "notes": built.notes,
    }


def summary(built: "BuiltRecipe") -> str:
    """The summary for a vision engineer."""
    m = built.manifest
    width, height = m["view"]["frame_size"]
    limits = m["thresholds"]
    band = f", NotDecidable to {limits['upper']:.6g}" if limits["upper"] > limits["lower"] else ""
    sizes = f"{m['preprocess']['size'][0]}x{m['preprocess']['size'][1]}"
    lines = [
        f"Recipe {m['name']} {m['version']}: {built.path} ({size_on_disk(built.path) / 1e6:.1f} MB)",
        f"  digest      {built.digest[:12]}",
        f"  pictures    {built.pictures} good, {width}x{height} px"
        + (f", of which {','.join(map(str, m['view']['region']))} is judged" if m["view"]["region"] else ""),
        f"  model       {m['backbone']['name']} ({m['backbone']['precision']}) at {sizes}, "
        f"profile {m['parameters']['profile']}",
        f"  bank        {m['bank']['rows']} of {built.patches} patches from {built.bank_pictures} pictures, "
        f"{m['bank']['dim']} dimensions" + _forced_search(m["parameters"]),
        f"  threshold   {limits['lower']:.6g}{band} (image score), {limits['pixel']:.6g} (boxes)",
        *threshold_lines(m),
        "  golden      " + ", ".join(f"{g['kind']} {g['score']:.4g} {g['evaluation']}" for g in m["golden"]),
        *camera_lines(m),
    ]
    lines += [f"  {note}" for note in built.notes]
    return "\n".join(lines)


def _forced_search(parameters: dict[str, Any]) -> str:
    engine = parameters.get("engine", "auto")
    return "" if engine == "auto" else f", searched with {engine}"


def threshold_lines(manifest: dict[str, Any]) -> list[str]:
    """What the threshold promises, in words."""
    evidence = manifest["calibration"]
    unit = {"picture": "parts", "block": "blocks"}[evidence["unit"]]
    scores = sorted(entry["score"] for entry in evidence["held_out"])
    spread = (
        f"  scores      {scores[0]:.4g} to {scores[-1]:.4g}, median {scores[len(scores) // 2]:.4g}, "
        "of good pictures that the bank had not seen"
    )
    if manifest["provisional"]:
        return [f"  promise     none: PROVISIONAL, the largest leave-one-out score of {evidence['n']} {unit}", spread]
    chosen = "as stated" if evidence["rate_stated"] else f"the smallest round rate that {evidence['n']} {unit} support"
    return [
        f"  promise     at most {evidence['false_reject_rate']:.2%} of good parts rejected ({chosen})",
        f"              score {evidence['rank']} of {evidence['n']} kept apart: {evidence['marginal_rate']:.2%} at the "
        f"mean, {evidence['upper_rate']:.2%} at most with {evidence['upper_rate_confidence']:.0%} confidence",
        *_band_lines(evidence),
        spread,
    ]


def _band_lines(evidence: dict[str, Any]) -> list[str]:
    band = evidence.get("not_ok")
    if band is None:
        return []
    return [
        f"              of these, at most {band['rate']:.2%} NotOK and the rest NotDecidable: score {band['rank']} of "
        f"{evidence['n']}, {band['marginal_rate']:.2%} at the mean, {band['upper_rate']:.2%} at most",
    ]


def camera_lines(manifest: dict[str, Any]) -> list[str]:
    """What a camera must be set to; empty where the recipe does not say."""
    from edge_daemon.core.camera_settings import in_short

    camera = manifest.get("camera")
    return [] if camera is None else [f"  camera      {in_short(camera['settings'])}; no other is judged"]


def size_on_disk(path: Path) -> int:
    """Bytes of a recipe, file or folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
