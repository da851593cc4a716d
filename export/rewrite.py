"""A recipe that exists, written again with some of recipe.json changed: new version, new digest, and a note of where it
came from. What is changed is the caller's; what every change must do is here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_daemon.artefact.recipe import MANIFEST, Recipe, manifest_bytes, read_files, verify_files, write_recipe
from edge_daemon.artefact.signature import SIGNATURE
from edge_daemon.engines.sessions import EngineOptions
from export.build import output_problems
from export.errors import ExportError
from export.golden import prove


@dataclass(frozen=True, slots=True)
class Original:
    """A recipe whose bytes verify, and its files by name, the signature too."""

    recipe: Recipe
    files: Mapping[str, bytes]


def read_original(path: Path, out: Path, problems: Sequence[str] = ()) -> Original:
    """The recipe that is to be written again to `out`. problems: what the caller has against it, told with the rest.

    Raises ExportError when there are any, or nothing may be written there; EdgeError when the recipe is damaged.
    """
    if found := [*problems, *target_problems(path, out)]:
        raise ExportError("\n".join(found))
    files = read_files(path)
    return Original(verify_files(files, str(path)), files)


def target_problems(path: Path, out: Path) -> list[str]:
    """What keeps a recipe made from the one at `path` from being written to `out`."""
    found = output_problems(out)
    if out.resolve() == path.resolve():
        found.append(f"--out {out} is the old recipe: give the new one a name of its own")
    return found


def origin_of(recipe: Recipe, change: str) -> dict[str, Any]:
    """Where a changed recipe comes from, for its `made_from`. change: one word for what was done."""
    old = recipe.manifest
    return {"digest": recipe.digest, "version": old.version, "created_utc": old.created_utc, "change": change}


def successor(recipe: Recipe, version: str, created_utc: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of recipe.json of the next version, all else as it was. origin: `origin_of` it, and what more is to be
    known of the change."""
    old = recipe.manifest
    fields: dict[str, Any] = old.model_dump(mode="json", exclude={"self_sha256"})
    provenance = {**old.provenance, "made_from": dict(origin)}
    return {**fields, "version": version, "created_utc": created_utc, "provenance": provenance}


@dataclass(frozen=True, slots=True)
class Written:
    """What was written. manifest: recipe.json; notes: one sentence each."""

    digest: str
    manifest: bytes
    notes: list[str]


def write_successor(
    original: Original, out: Path, fields: Mapping[str, Any], engine: EngineOptions, *, changed: str
) -> Written:
    """Prove the recipe with these fields, in an engine of its own, and write it with those files of the original that
    it still names. changed: what the signature was for and is no longer.

    Raises ExportError or EdgeError; then nothing was written.
    """
    gone = {part.file for part in original.recipe.manifest.golden} - {part["file"] for part in fields["golden"]}
    files = {name: data for name, data in original.files.items() if name not in {SIGNATURE, *gone}}
    files[MANIFEST] = manifest_bytes(fields)
    digest = prove(files, f"the new recipe {fields['name']}", engine)
    write_recipe(out, files)
    notes = signature_notes(original.files, changed)
    return Written(digest, files[MANIFEST], notes)


def signature_notes(files: Mapping[str, bytes], changed: str) -> list[str]:
    """What the engineer should know of the signature of a recipe that was changed. files: of the old one."""
    return [f"the signature was for the old {changed} and is gone: sign the new recipe"] if SIGNATURE in files else []
