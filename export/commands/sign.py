"""`edge-export sign` and `signing-key`: vouch for a recipe, so that stations which ask for it take it."""

import argparse
import getpass
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from export.commands.options import json_option, stamped
from export.errors import ExportError

if TYPE_CHECKING:
    from export.signing import SignedRecipe

_VARIABLE = "EDGE_EXPORT_PASSPHRASE"

DESCRIPTION = f"""\
Signs recipes: you say that you have looked at this recipe and that it may judge parts. A station with
`require_signed_recipes = true` runs no others. Every byte of the recipe is verified first, and covered by
the signature; name, version and digest do not change. Several people may sign one recipe.

  edge-export signing-key --out anna.key            once; keep the file to yourself
  edge-export sign --key anna.key bottle.recipe
  edge-export sign --remove bottle.recipe           takes all signatures out

A change of threshold or health limits makes another recipe, which has to be signed again. A locked key asks for
its passphrase; {_VARIABLE} gives it where nobody can type.
"""

KEY_DESCRIPTION = f"""\
Makes a private key for `edge-export sign`, and prints the public key: the line that goes into the
configuration of every PC that shall trust it. Whoever has the private key can sign: keep it off the line PCs.

  edge-export signing-key --out anna.key --lock     locked with a passphrase (asked for, or {_VARIABLE})
  edge-export signing-key --public anna.key         the public key again
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register both commands."""
    key = subparsers.add_parser(
        "signing-key",
        help="make a key to sign recipes with",
        description=KEY_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = key.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="where to write the private key; never replaced")
    what.add_argument("--public", type=Path, metavar="FILE", help="print the public key of this private key")
    key.add_argument("--lock", action="store_true", help="with --out: lock the file with a passphrase")
    key.set_defaults(run=run_key)

    parser = subparsers.add_parser(
        "sign",
        help="vouch for recipes with your key",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="+", type=Path, help=".recipe file or recipe folder, signed in place")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--key", type=Path, metavar="FILE", help="your private key")
    how.add_argument("--remove", action="store_true", help="take all signatures out instead")
    parser.set_defaults(run=run)
    for each in (key, parser):
        json_option(each)


def run_key(arguments: argparse.Namespace) -> int:
    """Make a key, or show its public half. Raises ExportError."""
    from edge_daemon.artefact.signature import key_id
    from export.signing import make_key, public_key, read_key

    if arguments.public is not None:
        path, public = arguments.public, public_key(read_key(arguments.public, _passphrase))
    else:
        path, public = arguments.out, make_key(arguments.out, _new_passphrase() if arguments.lock else None)
    if arguments.json:
        print(json.dumps({"key": str(path), "public_key": public, "id": key_id(public)}))
        return 0
    name = path.stem.lower().replace(".", "-").replace(" ", "-") or "signer"
    print(f"{path}: key {key_id(public)}. In the configuration of the PCs that trust it:\n")
    print(f'[security.trusted_signers]\n{name} = "{public}"')
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Sign, or take signatures out. Raises ExportError or EdgeError."""
    from export.signing import id_of, read_key, remove_signatures, sign_recipe

    key = None if arguments.remove else read_key(arguments.key, _passphrase)
    done: list[SignedRecipe] = []
    for path in arguments.recipe:
        signed_utc = stamped(None).created_utc
        done.append(remove_signatures(path) if key is None else sign_recipe(path, key, signed_utc))
        if not arguments.json:
            print(_told(done[-1], "" if key is None else id_of(key)))
    if arguments.json:
        print(json.dumps({"recipes": [_figures(signed) for signed in done]}))
    return 0


def _told(signed: "SignedRecipe", key: str) -> str:
    m = signed.recipe.manifest
    limits = m.thresholds
    what = f"{m.name} {m.version} ({signed.recipe.digest[:12]}), OK up to {limits.lower:.6g}"
    what += ", PROVISIONAL threshold" if m.provisional else ""
    if not key:
        return f"{signed.path}: {what}: carries no signature now"
    others = [other for other in signed.keys if other != key]
    return f"{signed.path}: {what}: signed with key {key}" + (f", beside {', '.join(others)}" if others else "")


def _figures(signed: "SignedRecipe") -> dict[str, object]:
    m = signed.recipe.manifest
    return {
        "recipe": str(signed.path),
        "name": m.name,
        "version": m.version,
        "digest": signed.recipe.digest,
        "signed_by": list(signed.keys),
    }


def _passphrase() -> bytes:
    given = os.environ.get(_VARIABLE)
    return (getpass.getpass("Passphrase of the key: ") if given is None else given).encode()


def _new_passphrase() -> bytes:
    """Asked for twice. Raises ExportError when empty or not the same."""
    given = os.environ.get(_VARIABLE)
    first = getpass.getpass("Passphrase for the new key: ") if given is None else given
    if given is None and getpass.getpass("Again: ") != first:
        raise ExportError("the two passphrases differ; no key was made")
    if not first:
        raise ExportError("an empty passphrase locks nothing; leave --lock out for a key without one")
    return first.encode()
