"""Golden samples of a running station: whose turn it is, and which ones came out otherwise than they must.

A sample that came out wrong says that nothing judged by its recipe can be believed. Only the same sample, come out
right, takes that back, or another recipe in its place: another sample of the recipe proves nothing about this one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from edge_daemon.artefact.recipe import Golden
from edge_daemon.detectors.loading import ReadyRecipe
from edge_daemon.pipeline.inspection import LiveRecipeSet


@dataclass(frozen=True, slots=True)
class GoldenSample:
    """One golden sample of a view's recipe, to be inspected by the live engine."""

    view: str
    ready: ReadyRecipe
    golden: Golden

    @property
    def name(self) -> str:
        """For people: view and file."""
        return f"{self.view} {self.golden.file}"


class GoldenTurns:
    """One turn per view: samples that failed first, the one that waited longest before the others; else all of the
    recipe's, one after the other. Guarded by its station's lock."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._failed: dict[str, dict[str, GoldenSample]] = {}  # view -> file -> sample, the next to be asked first

    @property
    def failing(self) -> bool:
        """Whether any sample came out wrong and has not come out right since."""
        return any(self._failed.values())

    def turn(self, view: str, ready: ReadyRecipe) -> GoldenSample:
        """The sample of this view that is to be inspected next; the same until it is `passed` or `failed`."""
        for failed in self._failed.get(view, {}).values():
            return GoldenSample(view, ready, failed.golden)
        samples = ready.recipe.golden
        return GoldenSample(view, ready, samples[self._next.get(view, 0) % len(samples)])

    def passed(self, sample: GoldenSample) -> bool:
        """It came out as it must. Whether it was one that had failed."""
        self._advance(sample)
        return self._failed.get(sample.view, {}).pop(sample.golden.file, None) is not None

    def failed(self, sample: GoldenSample) -> bool:
        """It came out otherwise, and is asked again after the others that did. Whether that is news."""
        self._advance(sample)
        known = self._failed.setdefault(sample.view, {})
        news = known.pop(sample.golden.file, None) is None
        known[sample.golden.file] = sample
        return news

    def _advance(self, sample: GoldenSample) -> None:
        samples = sample.ready.recipe.golden
        place = self._next.get(sample.view, 0) % len(samples)
        if samples[place].file == sample.golden.file:
            self._next[sample.view] = place + 1

    def replaced(self, before: Mapping[str, ReadyRecipe], after: LiveRecipeSet) -> list[GoldenSample]:
        """Other recipes judge from now on. A view's turn begins anew with its recipe; returns the samples that had
        failed and are no longer asked."""
        gone: list[GoldenSample] = []
        for view, ready in before.items():
            if view not in after.views or after.views[view].recipe.digest != ready.recipe.digest:
                self._next.pop(view, None)
                gone += self._failed.pop(view, {}).values()
        return gone
