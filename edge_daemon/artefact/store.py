"""The recipe store: every version of every recipe, and which set of them a station runs.

    blobs/sha256/DIGEST                  backbones and banks, each once
    recipes/NAME/VERSION-DIGEST12/       a complete recipe directory; its large files are links to blobs
    active/STATION.json                  the active recipe set and the ones before it
    incoming/                            what is being written; nobody reads it
    damaged/                             recipes that were found damaged and imported anew

Nothing is changed in place, but for signatures, which are no part of a recipe's digest and may come later. Each
step is durable before the next and the last one is a rename, so that a reader, or a restart after a power cut, finds
the old state or the new one. Writers take a lock; readers take none. Recipes are never removed.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_daemon.artefact.manifest import Manifest, RecipeName, Sha256
from edge_daemon.artefact.recipe import MANIFEST, read_files, sha256, verify_files
from edge_daemon.artefact.signature import MAX_SIGNATURE_BYTES, SIGNATURE, Signed, Trust, joined
from edge_daemon.errors import EdgeError, RecipeError, StoreError
from edge_daemon.files import sync_folder

LATEST = "latest"

# Sets before the active one that a station can be rolled back to.
_EARLIER_SETS = 64
_DIGEST_PREFIX = re.compile(r"[0-9a-f]{8,64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class StoredRecipe:
    """A recipe in the store. `path` is a complete recipe directory; `digest` 64 hexadecimal digits."""

    name: str
    version: str
    digest: str
    created_utc: str
    provisional: bool
    path: Path

    @property
    def reference(self) -> str:
        """What names this recipe and no other: NAME@DIGEST12."""
        return f"{self.name}@{self.digest[:12]}"


class RecipeSet(BaseModel):
    """What a station runs: the digest of one recipe for each camera."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipes: Annotated[dict[RecipeName, Sha256], Field(min_length=1)]

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the cameras and digests in canonical form."""
        return recipe_set_digest(self.recipes)


class _ActiveFile(BaseModel):
    """active/STATION.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_: Annotated[Literal["edge-daemon/active/1"], Field(alias="schema")] = "edge-daemon/active/1"
    station: RecipeName
    sets: Annotated[tuple[RecipeSet, ...], Field(min_length=1)]
    """The active set last."""


def recipe_set_digest(recipes: Mapping[str, str]) -> str:
    """SHA-256, hexadecimal, of a recipe set: {camera: recipe digest} as JSON with sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(dict(recipes), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Store:
    """The store at a path. The constructor touches nothing; an absent folder is an empty store."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # ------------------------------------------------------------ recipes

    def add(self, recipe: Path) -> StoredRecipe:
        """Verify a recipe, directory or `.recipe` file, and keep it. What is there already is left, or
        written anew when it is damaged; signatures that it does not have yet are taken over.

        Raises RecipeError when the recipe is refused and StoreError when it cannot be kept; the store is
        then as it was.
        """
        files = read_files(recipe)
        manifest = verify_files(files, str(recipe), self.backbone).manifest
        with _wrapped(f"recipe {manifest.name} cannot be kept in {self.path}"), self._writing():
            target = self._recipe_path(manifest)
            if not self._is_intact(target):
                staged = self._stage(manifest, files)
                self._set_aside(target)
                _make_directory(target.parent)
                os.rename(staged, target)
                sync_folder(target.parent)
            elif SIGNATURE in files:
                self._put_signatures(target, manifest.self_sha256, files[SIGNATURE])
        return _stored(manifest, target)

    def list(self) -> tuple[StoredRecipe, ...]:
        """All recipes, by name, the newest of each name last. Unreadable ones are left out: see `damaged`."""
        found = [_read_stored(path) for path in self._recipe_paths()]
        return tuple(sorted((r for r in found if isinstance(r, StoredRecipe)), key=_age))

    def damaged(self) -> tuple[str, ...]:
        """One sentence for each recipe whose recipe.json cannot be read."""
        return tuple(str(r) for r in map(_read_stored, self._recipe_paths()) if isinstance(r, StoreError))

    def find(self, name: str, selector: str = LATEST) -> StoredRecipe:
        """One recipe by name and `latest` (by creation), a version, or a digest or its first 8 digits or more.

        Raises StoreError when there is none, or more than one.
        """
        recipes = self.list()
        named = [r for r in recipes if r.name == name]
        if not named:
            raise StoreError(self._no_such_name(name, {r.name for r in recipes}))
        if selector == LATEST:
            return named[-1]
        fitting = [r for r in named if r.version == selector or _is_prefix(selector, r.digest)]
        if len(fitting) == 1:
            return fitting[0]
        known = ", ".join(f"{r.version} ({r.digest[:12]})" for r in fitting or named)
        if fitting:
            raise StoreError(f"recipe {name}@{selector} is not unique in {self.path}: {known}; name the digest")
        raise StoreError(f"there is no recipe {name}@{selector} in {self.path}; versions: {known}")

    def resolve(self, reference: str) -> StoredRecipe:
        """`NAME`, `NAME@VERSION` or `NAME@DIGEST`, as a configuration names recipes. Raises StoreError."""
        name, at, selector = reference.partition("@")
        return self.find(name, selector if at else LATEST)

    def by_digest(self, digest: str) -> StoredRecipe:
        """The recipe with this digest, 64 hexadecimal digits. Raises StoreError."""
        self._blob_path(digest)  # refuses what is no digest, before it becomes a pattern of names
        for recipe in map(_read_stored, self._recipe_paths(f"-{digest[:12]}")):
            if isinstance(recipe, StoredRecipe) and recipe.digest == digest:
                return recipe
        raise StoreError(f"there is no recipe with digest {digest[:12]} in {self.path}: import it")

    def backbone(self, digest: str) -> bytes:
        """The bytes of a backbone, checked against their digest. Raises StoreError.

        Made for `load_recipe(path, store.backbone)`, where a recipe carries only the digest.
        """
        path = self._blob_path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise StoreError(f"the store {self.path} has no backbone {digest[:12]}: import a recipe with it") from error
        except OSError as error:
            raise StoreError(f"the backbone {path} cannot be read: {error.strerror}") from error
        if sha256(data) != digest:
            raise StoreError(f"the backbone {path} is damaged: import a recipe that carries it again")
        return data

    def signed(self, recipe: StoredRecipe, trust: Trust) -> str:
        """Who signed a recipe, in words for a list: names, `unsigned`, `unknown key …` or `damaged signature`. What a
        station may run is decided when the recipe is loaded."""
        try:
            return str(self.vouched(recipe, replace(trust, required=False)))
        except EdgeError:
            return "damaged signature"

    def vouched(self, recipe: StoredRecipe, trust: Trust) -> Signed:
        """Who signed a recipe, by its file as it is now. Raises RecipeSignatureError as `Trust.judge`, StoreError."""
        try:
            raw = _signature_file(recipe.path)
        except OSError as error:
            text = f"the signature of {recipe.name} in {recipe.path} cannot be read: {error.strerror}"
            raise StoreError(text) from error
        return trust.judge(raw, recipe.digest, recipe.name)

    # ------------------------------------------------------------ what a station runs

    def activate(self, station: str, recipes: Mapping[str, str]) -> RecipeSet:
        """Make {camera: recipe digest} the station's active set, by one rename. Raises StoreError."""
        chosen = _recipe_set(station, recipes)
        for digest in chosen.recipes.values():
            self.by_digest(digest)
        with _wrapped(f"the recipe set of station {station} cannot be activated"), self._writing():
            sets = self._sets(station)
            if not sets or sets[-1] != chosen:
                self._write_sets(station, (*sets, chosen)[-_EARLIER_SETS - 1 :])
        return chosen

    def active(self, station: str) -> RecipeSet | None:
        """The station's active set, None when nothing was ever activated. Raises StoreError when damaged."""
        sets = self._sets(station)
        return sets[-1] if sets else None

    def previous(self, station: str) -> RecipeSet | None:
        """The set that `rollback` would make active, None when there is none. Raises StoreError."""
        sets = self._sets(station)
        return sets[-2] if len(sets) > 1 else None

    def rollback(self, station: str) -> RecipeSet:
        """Make the set before the active one active again; once more, the one before that. Raises StoreError."""
        with _wrapped(f"station {station} cannot be rolled back"), self._writing():
            sets = self._sets(station)
            if len(sets) < 2:
                raise StoreError(f"station {station} has no recipe set before the active one: activate one instead")
            for digest in sets[-2].recipes.values():
                self.by_digest(digest)
            self._write_sets(station, sets[:-1])
        return sets[-2]

    # ------------------------------------------------------------ inside

    def _recipe_paths(self, ending: str = "") -> tuple[Path, ...]:
        try:
            return tuple(sorted((self.path / "recipes").glob(f"*/*{ending}")))
        except OSError as error:
            raise StoreError(f"the store {self.path} cannot be read: {error.strerror}") from error

    def _recipe_path(self, manifest: Manifest) -> Path:
        # The schema leaves the version free; the digest beside it keeps the name unique.
        version = re.sub(r"[^A-Za-z0-9_.+-]", "_", manifest.version)[:64]
        return self.path / "recipes" / manifest.name / f"{version}-{manifest.self_sha256[:12]}"

    def _blob_path(self, digest: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise StoreError(f"{digest!r} is no SHA-256 digest")
        return self.path / "blobs" / "sha256" / digest

    def _no_such_name(self, name: str, known: set[str]) -> str:
        close = get_close_matches(name, known, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        there = f"recipes: {', '.join(sorted(known))}" if known else "it is empty"
        return (
            f"there is no recipe '{name}'{hint} in {self.path}, {there}; import one with "
            "`edge-daemon store import FILE.recipe`"
        )

    def _is_intact(self, target: Path) -> bool:
        if not target.exists():
            return False
        try:
            verify_files(read_files(target), str(target), self.backbone)
        except (RecipeError, StoreError):
            return False
        return True

    def _set_aside(self, target: Path) -> None:
        if os.path.lexists(target):
            place = _free_name(self.path / "damaged", f"{target.parent.name}-{target.name}")
            _make_directory(place.parent)
            os.rename(target, place)
            sync_folder(place.parent)

    def _stage(self, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
        """The recipe's directory in `incoming`, complete and durable."""
        staged = self.path / "incoming" / "recipe"
        blobs = {manifest.bank.file: manifest.bank.sha256}
        if manifest.backbone.file is not None:
            blobs[manifest.backbone.file] = manifest.backbone.sha256
        _make_directory(staged)
        for name, data in files.items():
            _make_directory((staged / name).parent)
            if name in blobs:
                self._put_blob(blobs[name], data)
                _link(self._blob_path(blobs[name]), staged / name)
            else:
                _write_file(staged / name, data)
        for directory in {(staged / name).parent for name in files}:
            sync_folder(directory)
        return staged

    def _put_blob(self, digest: str, data: bytes) -> None:
        """Keep verified bytes under their digest, over what may be damaged there."""
        path = self._blob_path(digest)
        try:
            if path.read_bytes() == data:
                return
        except FileNotFoundError:
            pass
        partial = self.path / "incoming" / "blob"
        _write_file(partial, data)
        _make_directory(path.parent)
        os.replace(partial, path)
        sync_folder(path.parent)

    def _put_signatures(self, target: Path, digest: str, new: bytes) -> None:
        """Add signatures to those of a recipe that is there, by one rename."""
        old = _signature_file(target)
        both = joined(digest, new, old, str(target))
        if both != old:
            partial = self.path / "incoming" / SIGNATURE
            _write_file(partial, both)
            os.replace(partial, target / SIGNATURE)
            sync_folder(target)

    def _active_path(self, station: str) -> Path:
        if not _NAME.fullmatch(station):
            raise StoreError(f"{station!r} is no name of a station")
        return self.path / "active" / f"{station}.json"

    def _sets(self, station: str) -> tuple[RecipeSet, ...]:
        path = self._active_path(station)
        try:
            found = _ActiveFile.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"the active recipe set {path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise StoreError(
                f"the active recipe set {path} is damaged: nothing says what station {station} should run; "
                "delete the file, then activate a recipe set again"
            ) from error
        if found.station != station:
            raise StoreError(f"the active recipe set {path} belongs to station {found.station}: delete it")
        return found.sets

    def _write_sets(self, station: str, sets: tuple[RecipeSet, ...]) -> None:
        path = self._active_path(station)
        partial = self.path / "incoming" / "active"
        _write_file(partial, _ActiveFile(station=station, sets=sets).model_dump_json(indent=1).encode())
        _make_directory(path.parent)
        os.replace(partial, path)
        sync_folder(path.parent)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Alone among the writers, of this process and others, with an empty `incoming`."""
        _make_directory(self.path)
        with (self.path / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            incoming = self.path / "incoming"
            shutil.rmtree(incoming, ignore_errors=True)  # what a power cut left
            try:
                _make_directory(incoming)
                yield
            except Exception:
                shutil.rmtree(incoming, ignore_errors=True)  # a full disk must not stay full for it
                raise


def _recipe_set(station: str, recipes: Mapping[str, str]) -> RecipeSet:
    try:
        return RecipeSet(recipes=dict(recipes))
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(f"this is no recipe set for station {station}: {first['msg']}") from error


def _stored(manifest: Manifest, path: Path) -> StoredRecipe:
    return StoredRecipe(
        manifest.name, manifest.version, manifest.self_sha256, manifest.created_utc, manifest.provisional, path
    )


def _read_stored(path: Path) -> StoredRecipe | StoreError:
    """What recipe.json says; its digests are checked when the recipe is loaded."""
    try:
        return _stored(Manifest.model_validate_json((path / MANIFEST).read_bytes()), path)
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its recipe.json is damaged"
        return StoreError(f"recipe {path} cannot be read ({reason}): import it again")


def _signature_file(path: Path) -> bytes | None:
    """A recipe's file `signature`, None where there is none."""
    try:
        with (path / SIGNATURE).open("rb") as file:
            return file.read(MAX_SIGNATURE_BYTES + 1)
    except FileNotFoundError:
        return None


def _age(recipe: StoredRecipe) -> tuple[str, str, str]:
    return (recipe.name, recipe.created_utc, recipe.digest)


def _is_prefix(selector: str, digest: str) -> bool:
    return _DIGEST_PREFIX.fullmatch(selector) is not None and digest.startswith(selector)


def _free_name(folder: Path, name: str) -> Path:
    number = 1
    while os.path.lexists(folder / f"{name}.{number}"):
        number += 1
    return folder / f"{name}.{number}"


@contextmanager
def _wrapped(what: str) -> Iterator[None]:
    """Errors of the operating system, in the operator's words."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {error.strerror or error}; nothing was changed: see to it and try again") from error


# ---------------------------------------------------------------- files that last


def _make_directory(path: Path) -> None:
    """Make a directory and those above it, durable from the topmost new one down."""
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def _write_file(path: Path, data: bytes) -> None:
    """Write a new, read-only file and wait until the disk has it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())


def _link(blob: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system knows no links."""
    try:
        os.link(blob, target)
    except OSError:
        _write_file(target, blob.read_bytes())
