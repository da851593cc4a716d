"""Recipes for stations: resolved in the store, verified, kept alive, switched between two triggers."""

import json
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from edge_daemon.artefact.signature import Signed, Trust
from edge_daemon.artefact.store import Store, StoredRecipe
from edge_daemon.config import StationConfig
from edge_daemon.detectors.loading import ReadyRecipe, load_verified
from edge_daemon.engines.sessions import Sessions
from edge_daemon.errors import EdgeError, RecipeSignatureError, StoreError
from edge_daemon.pipeline.inspection import LiveRecipeSet


class Recipes:
    """Loads recipes by digest; recipes that are the same on several stations are loaded once.

    engine: search engine that the configuration forces, or `auto`; configured: file that remembers what
    the configuration named when a station was last started; trust: whose signatures count; signed_only: stations that
    take signed recipes only.
    """

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        engine: str,
        configured: Path,
        trust: Trust | None = None,
        signed_only: Collection[str] = (),
    ) -> None:
        self.store = store
        self._sessions = sessions
        self._engine = engine
        self._configured = configured
        self._trust = trust or Trust()
        self._signed_only = frozenset(signed_only)
        self._ready: dict[str, ReadyRecipe] = {}
        # Loading is slow and changes the cache: one at a time, whoever asks.
        self._lock = threading.Lock()

    def resolve(self, reference: str, path: Path | None) -> str:
        """Digest of a recipe given by name in the store or by path; a path is imported. Raises EdgeError."""
        return self.store.add(path).digest if path is not None else self.store.resolve(reference).digest

    def signed(self, recipe: StoredRecipe) -> str:
        """Who signed a recipe, in words for a list."""
        return self.store.signed(recipe, self._trust)

    def load(self, station: str, digests: Mapping[str, str]) -> LiveRecipeSet:
        """The live set for {view: recipe digest}, each recipe through the whole load order. Raises EdgeError, also
        for a recipe that nobody trusted signed where the station takes no other."""
        trust = replace(self._trust, required=station in self._signed_only)
        with self._lock:
            return LiveRecipeSet.of({view: self._load(digest, trust) for view, digest in digests.items()})

    def _load(self, digest: str, trust: Trust) -> ReadyRecipe:
        ready = self._ready.get(digest)
        # Loaded for a station that asks for no signature, or when others were trusted: it is asked for one now.
        if ready is None or (trust.required and not self._vouched(ready, trust)):
            stored = self.store.by_digest(digest)
            ready = load_verified(stored.path, self._sessions, self._engine, self.store.backbone, trust=trust)
            if ready.recipe.digest != digest:
                raise StoreError(
                    f"the store gives recipe {ready.recipe.digest[:12]} for {digest[:12]}: import it again"
                )
            self._ready[digest] = ready
        return self._ready[digest]

    def _signed_now(self, ready: ReadyRecipe, trust: Trust) -> Signed:
        """Who signed a loaded recipe, by its file as it is now. Raises RecipeSignatureError, StoreError."""
        return self.store.vouched(self.store.by_digest(ready.recipe.digest), trust)

    def _vouched(self, ready: ReadyRecipe, trust: Trust) -> bool:
        try:
            self._signed_now(ready, trust)
        except RecipeSignatureError:
            return False
        return bool(ready.recipe.signed.by)

    def trust_anew(self, trust: Trust) -> None:
        """Whose signatures count from now on. What runs already is asked by `why_untrusted`."""
        self._trust = trust

    def why_untrusted(self, station: str, live: LiveRecipeSet) -> str:
        """Why the station must not judge by what it runs, now that others are trusted; empty when it may."""
        if station not in self._signed_only:
            return ""
        trust = replace(self._trust, required=True)
        try:
            for ready in live.views.values():
                self._signed_now(ready, trust)
        except EdgeError as error:
            return str(error)
        return ""

    def keep_only(self, digests: set[str]) -> None:
        """Forget recipes, and sessions of graphs, that no station runs."""
        with self._lock:
            self._ready = {d: ready for d, ready in self._ready.items() if d in digests}
            self._sessions.keep_only({r.recipe.manifest.backbone.sha256 for r in self._ready.values()})

    def at_start(self, station: str, config: StationConfig) -> LiveRecipeSet:
        """What a station runs when the daemon starts: the set active last, unless the configuration names
        other recipes than it did then. Raises EdgeError.

        A path counts with its content: a recipe file that was replaced is taken up at the next start.
        """
        named: dict[str, str] = {}
        digests: dict[str, str] = {}
        for view in config.views:
            digest = self.resolve(view.recipe, view.recipe_path)
            digests[view.name] = digest
            named[view.name] = view.recipe if view.recipe_path is None else f"{view.recipe}#{digest}"
        remembered = self._remembered()
        active = self.store.active(station)
        if active is not None and remembered.get(station) == named and set(active.recipes) == set(digests):
            return self.load(station, active.recipes)
        live = self.load(station, digests)
        self.store.activate(station, digests)
        self._remember({**remembered, station: named})
        return live

    def activate(
        self, station: str, digests: Mapping[str, str], refuse: Callable[[LiveRecipeSet], None] = lambda _live: None
    ) -> LiveRecipeSet:
        """Verify a set and make it the station's active one on disk. refuse: what else may be against it; raises
        EdgeError. Raises EdgeError; then nothing changed."""
        live = self.load(station, digests)
        refuse(live)
        self.store.activate(station, digests)
        return live

    def _remembered(self) -> dict[str, dict[str, str]]:
        try:
            data = json.loads(self._configured.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return data if isinstance(data, dict) else {}

    def _remember(self, named: Mapping[str, Mapping[str, str]]) -> None:
        partial = self._configured.with_suffix(".partial")
        try:
            partial.write_text(json.dumps(named, indent=1))
            os.replace(partial, self._configured)
        except OSError as error:
            raise EdgeError(f"{self._configured} cannot be written: {error.strerror}") from error
