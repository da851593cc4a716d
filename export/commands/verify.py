"""`edge-export verify`: would the daemon take this recipe?"""

import argparse
import json
import sys
from typing import Any

from export.commands.options import json_option, provider_option, recipe_option
from export.errors import ExportError

DESCRIPTION = """\
Takes a recipe through the same load order as the daemon, up to its golden samples through the live
engine, and says which step refuses it and why. Exit status 0: it would be loaded, 1: it would not.

  edge-export verify --recipe bottle.recipe
  edge-export verify --recipe bottle.recipe --signer "…="       as a station that asks for this signature
"""

_TICK, _CROSS = "✓", "✗"
_STEP_OF_ERROR = {
    "RecipeUnreadable": 0,
    "RecipeSchemaError": 0,
    "RecipeFeatureError": 0,
    "RecipeDigestError": 1,
    "RecipeSignatureError": 1,
    "RecipeShapeError": 2,
    "RecipeEngineError": 3,
    "ProviderError": 3,
    "RecipeGoldenError": 4,
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "verify",
        help="check a recipe as the daemon does before it loads it",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recipe_option(parser)
    provider_option(parser, "judges, as in the daemon's config")
    parser.add_argument(
        "--signer", action="append", metavar="KEY", help="refuse what none of these public keys signed (repeatable)"
    )
    json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Verify and print each step. Exit status 1 when a step refuses."""
    from edge_daemon.artefact.signature import Trust, checked_public_key, key_id
    from edge_daemon.detectors.loading import STEPS, load_verified
    from edge_daemon.engines.sessions import EngineOptions, Sessions
    from edge_daemon.errors import EdgeError

    try:
        signers = [checked_public_key(key) for key in arguments.signer or ()]
    except ValueError as exc:
        raise ExportError(f"--signer {exc}") from exc
    passed: list[str] = []
    found: dict[str, Any] = {"recipe": str(arguments.recipe), "valid": False}
    try:
        ready = load_verified(
            arguments.recipe,
            Sessions(EngineOptions(provider=arguments.provider)),
            progress=passed.append,
            trust=Trust({key: f"key {key_id(key)}" for key in signers}, required=bool(signers)),
        )
    except EdgeError as exc:
        # The first three steps are one call; the class of its error tells how far it came.
        failed = max(len(passed), _STEP_OF_ERROR.get(type(exc).__name__, 0))
        passed = list(STEPS[:failed])
        found |= {"failed_step": STEPS[failed], "error": type(exc).__name__, "message": str(exc)}
    else:
        manifest = ready.recipe.manifest
        found |= {
            "valid": True,
            "name": manifest.name,
            "version": manifest.version,
            "digest": ready.recipe.digest,
            "provisional": manifest.provisional,
            "camera": None if manifest.camera is None else manifest.camera.model_dump(mode="json"),
            "provider": ready.provider,
            "backbone": manifest.backbone.name,
            "precision": manifest.backbone.precision,
            "search": manifest.parameters.engine,
            "golden": len(ready.recipe.golden),
            "signed_by": str(ready.recipe.signed),
        }
    found["steps"] = passed
    if arguments.json:
        print(json.dumps(found))
    else:
        _print(found, STEPS)
    return 0 if found["valid"] else 1


def _print(found: dict[str, Any], steps: tuple[str, ...]) -> None:
    from edge_daemon.core.camera_settings import in_short

    tick, cross = (_TICK, _CROSS) if (sys.stdout.encoding or "").lower().startswith("utf") else ("ok", "FAILED")
    for step in found["steps"]:
        print(f"  {tick} {step}")
    if not found["valid"]:
        print(f"  {cross} {found['failed_step']}\n\n{found['error']}: {found['message']}")
        not_reached = steps[len(found["steps"]) + 1 :]
        print(f"The daemon refuses this recipe. Not reached: {', '.join(not_reached) or 'nothing'}.")
        return
    provisional = ", PROVISIONAL threshold" if found["provisional"] else ""
    print(
        f"{found['name']} {found['version']} ({found['digest'][:12]}{provisional}) is valid on {found['provider']}, "
        f"{found['backbone']} in {found['precision']}; ",
        end="",
    )
    print(found["signed_by"] if found["signed_by"] == "unsigned" else f"signed by {found['signed_by']}")
    if found["camera"] is not None:
        print(f"It judges only what a camera takes with {in_short(found['camera']['settings'])}.")
