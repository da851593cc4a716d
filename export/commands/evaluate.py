"""`edge-export evaluate`: what a recipe is worth on labelled pictures."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.commands.options import json_option, provider_option, recipe_option

if TYPE_CHECKING:
    from edge_daemon.detectors.loading import ReadyRecipe
    from export.evaluate import Evaluated

DESCRIPTION = """\
Judges labelled pictures with a recipe, on the daemon's own path, and compares with the truth.

  edge-export evaluate --recipe bottle.recipe --data mvtec/bottle
  edge-export evaluate --recipe bottle.recipe --data mvtec/bottle --report bottle.html
  edge-export evaluate --recipe bottle.recipe --data mvtec/bottle --json | jq .image_auroc

DATA is laid out as MVTec AD: test/good, test/<defect> and ground_truth/<defect>/<name>_mask.png.
Without `test` the folders good and <defect> may stand in DATA itself; without folders all pictures
are good. What the data do not define (escape rate without defects, AUPRO without masks) is null.

False reject: a good part that is not OK. Escape: a defective part that is OK. A part between two
thresholds (not decidable) is rejected by the line, and counted by itself as well.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a recipe on labelled pictures, with an HTML report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recipe_option(parser)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="labelled pictures, see above")
    json_option(parser)
    parser.add_argument("--scores", action="store_true", help="with --json: add every picture's score and evaluation")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="write a report with every picture, readable without a network (needs the extra `export`)",
    )
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave out pictures that cannot be read, and name them"
    )
    provider_option(parser, "computes the features")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads of network and search (default 0: one per core)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print, write the report. Raises ExportError or EdgeError."""
    from edge_daemon.threads import set_thread_environment

    if "numpy" not in sys.modules:  # the daemon's pools, so that ms_per_image is the daemon's, too
        set_thread_environment(arguments.threads)
    from tqdm import tqdm

    from edge_daemon.detectors.loading import load_verified
    from edge_daemon.engines.sessions import EngineOptions, Sessions
    from export.dataset import find_samples
    from export.evaluate import evaluate, score_list, summarise

    if arguments.report is not None:
        from export.report import check_requirements

        check_requirements(arguments.report)  # before minutes of work, not after
    options = EngineOptions(provider=arguments.provider, intra_op_threads=arguments.threads)
    ready = load_verified(arguments.recipe, Sessions(options))
    samples = find_samples(arguments.data)
    evaluated = evaluate(
        ready.detector,
        ready.recipe.manifest,
        samples,
        skip_unreadable=arguments.skip_unreadable,
        for_report=arguments.report is not None,
        progress=lambda items: tqdm(items, desc="judging", unit="image", disable=None, file=sys.stderr),
    )
    figures = {"recipe": identity(ready), "data": str(arguments.data), **summarise(evaluated)}
    if arguments.report is not None:
        from export.report import write_report

        figures["report"] = str(arguments.report)
        write_report(arguments.report, evaluated, figures, ready.recipe)
    if arguments.json:
        if arguments.scores:
            figures["scores"] = score_list(evaluated)
        print(json.dumps(figures, allow_nan=False))
    else:
        print(table(figures, evaluated))
    return 0


def identity(ready: "ReadyRecipe") -> dict[str, Any]:
    """Which recipe judged, on what, searched by what, and which rates its calibration states. patches: of a picture."""
    from export.evaluate import stated_rate

    manifest = ready.recipe.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": ready.recipe.digest,
        "provisional": manifest.provisional,
        "provider": ready.provider,
        "precision": manifest.backbone.precision,
        "camera": None if manifest.camera is None else manifest.camera.model_dump(mode="json"),
        "false_reject_rate_stated": stated_rate(manifest, "false_reject_rate"),
        "false_reject_rate_marginal": stated_rate(manifest, "marginal_rate"),
        "false_reject_rate_upper": stated_rate(manifest, "upper_rate"),
        "false_reject_rate_confidence": stated_rate(manifest, "upper_rate_confidence"),
        "search": ready.choice.engine,
        "patches": math.prod(manifest.grid),
    }


def table(figures: dict[str, Any], evaluated: "Evaluated") -> str:
    """The figures for a terminal."""
    recipe = figures["recipe"]
    provisional = ", PROVISIONAL threshold" if recipe["provisional"] else ""
    lines = [
        f"Recipe {recipe['name']} {recipe['version']} ({recipe['digest'][:12]}{provisional}) on {figures['data']}",
        f"{figures['images']} images: {figures['good']} good, {figures['defective']} defective",
        "",
        f"  image AUROC    {_share(figures['image_auroc'])}",
        f"  pixel AUROC    {_share(figures['pixel_auroc'])}",
        f"  AUPRO (0.3)    {_share(figures['aupro'])}",
        f"  false rejects  {_rate(figures['false_reject_rate'], figures['false_reject_ci'])}",
        f"    promised     {_promise(recipe)}",
        f"  escapes        {_rate(figures['escape_rate'], figures['escape_ci'])}",
        f"  not decidable  {figures['not_decidable']} of {figures['images']}",
        f"  threshold      {figures['threshold']:.6g}"
        + (f", upper {figures['threshold_upper']:.6g}" if figures["threshold_upper"] > figures["threshold"] else ""),
        f"  time           {figures['ms_per_image']:.1f} ms per image at the median, "
        f"{figures['ms_per_image_p99']:.1f} ms at the 99th percentile, {recipe['provider']}",
        f"  search         {recipe['search']}: {figures['exact_searches']:g} exact searches per image at the median, "
        f"{figures['exact_searches_most']} at the most, boxes included; {recipe['patches']} patches",
        "",
        f"  {'class':<24}{'images':>7}{'OK':>6}{'n.d.':>6}{'NotOK':>7}{'wrong':>7}{'AUROC':>9}   scores",
    ]
    lines += [
        f"  {row['class'][:23]:<24}{row['images']:>7}{row['ok']:>6}{row['not_decidable']:>6}{row['not_ok']:>7}"
        f"{row['wrong']:>7}{_share(row['image_auroc']):>9}   {row['lowest_score']:.4g} to {row['highest_score']:.4g}"
        for row in figures["classes"]
    ]
    wrong = [j for j in evaluated.judged if j.escaped or j.falsely_rejected]
    if wrong:
        lines += ["", "Wrongly judged:"]
        lines += [
            f"  {'escape' if j.escaped else 'false reject':<13} {j.sample.name}  score {j.score:.6g}" for j in wrong
        ]
    lines += ["", *figures["notes"]] if figures["notes"] else []
    lines += ["", f"Report: {figures['report']}"] if "report" in figures else []
    return "\n".join(lines)


def _promise(recipe: dict[str, Any]) -> str:
    """What the calibration says of false rejects, beside what was found."""
    stated, mean = recipe["false_reject_rate_stated"], recipe["false_reject_rate_marginal"]
    upper, confidence = recipe["false_reject_rate_upper"], recipe["false_reject_rate_confidence"]
    if recipe["provisional"]:
        return "nothing: the threshold is provisional"
    if stated is None:
        return "-"
    details = [f"{mean:.2%} at the mean"] if mean is not None else []
    details += [f"{upper:.2%} at most with {confidence:.0%} confidence"] if None not in (upper, confidence) else []
    return f"at most {stated:.2%}" + (": " + ", ".join(details) if details else "")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rate(rate: float | None, bounds: list[float] | None) -> str:
    if rate is None or bounds is None:
        return "-"
    return f"{rate:.2%}  (95% confidence: {bounds[0]:.2%} to {bounds[1]:.2%})"
