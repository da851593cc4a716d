"""Golden samples of a running station: whose turn it is, and which ones came out otherwise than they must.

A sample that came out wrong says that nothing judged by its recipe can be believed. Only the same sample, come out
right, takes that back, or another recipe in its place: another sample of the recipe proves nothing about this one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

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


# On the monotonic clock: longer ago than anything.
_NEVER_NS = -(10**18)


@dataclass(slots=True)
class _Times:
    """Of a view's samples, in monotonic nanoseconds: when one was last inspected, when one last came out right, and how
    long each took the last time."""

    asked_ns: int
    good_ns: int
    took_ns: dict[str, int] = field(default_factory=dict)


class GoldenTurns:
    """One turn per view: samples that failed first, the one that waited longest before the others; else all of the
    recipe's, one after the other. Guarded by its station's lock."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        # view -> file -> sample and what was wrong, the next to be asked first
        self._failed: dict[str, dict[str, tuple[GoldenSample, str]]] = {}
        self._times: dict[str, _Times] = {}

    @property
    def failing(self) -> bool:
        """Whether any sample came out wrong and has not come out right since."""
        return any(self._failed.values())

    def turn(self, view: str, ready: ReadyRecipe) -> GoldenSample:
        """The sample of this view that is to be inspected next; the same until it is `passed` or `failed`."""
        for failed, _ in self._failed.get(view, {}).values():
            return GoldenSample(view, ready, failed.golden)
        samples = ready.recipe.golden
        return GoldenSample(view, ready, samples[self._next.get(view, 0) % len(samples)])

    def passed(self, sample: GoldenSample) -> bool:
        """It came out as it must. Whether it was one that had failed."""
        self._advance(sample)
        return self._failed.get(sample.view, {}).pop(sample.golden.file, None) is not None

    def failed(self, sample: GoldenSample, error: str) -> bool:
        """It came out otherwise, and is asked again after the others that did. Whether that is news."""
        self._advance(sample)
        known = self._failed.setdefault(sample.view, {})
        news = known.pop(sample.golden.file, None) is None
        known[sample.golden.file] = (sample, error)
        return news

    def failures(self) -> list[tuple[GoldenSample, str]]:
        """The samples that came out wrong and have not come out right since, each with what was wrong."""
        return [failed for of_view in self._failed.values() for failed in of_view.values()]

    def timed(self, sample: GoldenSample, now_ns: int, took_ns: int, right: bool) -> None:
        """A sample was inspected in that time."""
        times = self._times.setdefault(sample.view, _Times(now_ns, now_ns))
        times.asked_ns = now_ns
        times.took_ns[sample.golden.file] = took_ns
        if right:
            times.good_ns = now_ns

    def longest_unasked(self) -> tuple[str, int]:
        """The view whose samples have waited longest for their turn, and since when. There must be recipes."""
        view = min(self._times, key=lambda name: self._times[name].asked_ns)
        return view, self._times[view].asked_ns

    def good_ns(self) -> Mapping[str, int]:
        """By view, when a sample last came out right: when its recipe was loaded, or later."""
        return {view: times.good_ns for view, times in self._times.items()}

    def takes_ns(self, view: str) -> int | None:
        """How long a sample of this view takes, the slowest one; None before any was timed."""
        return max(self._times[view].took_ns.values(), default=None)

    def _advance(self, sample: GoldenSample) -> None:
        samples = sample.ready.recipe.golden
        place = self._next.get(sample.view, 0) % len(samples)
        if samples[place].file == sample.golden.file:
            self._next[sample.view] = place + 1

    def replaced(
        self, before: Mapping[str, ReadyRecipe], after: LiveRecipeSet, now_ns: int
    ) -> list[tuple[GoldenSample, str]]:
        """Other recipes judge from now on. A view's turn begins anew with its recipe; returns the samples that had
        failed and are no longer asked, each with what was wrong.

        A recipe's samples came out right when it was loaded. That may be long ago, for another station: here it is
        their turn at once.
        """
        gone: list[tuple[GoldenSample, str]] = []
        for view in {**before, **after.views}:
            if not same_recipe(before.get(view), after.views.get(view)):
                self._next.pop(view, None)
                self._times.pop(view, None)
                gone += self._failed.pop(view, {}).values()
        self._times |= {view: _Times(_NEVER_NS, now_ns) for view in after.views if view not in self._times}
        return gone


def same_recipe(one: ReadyRecipe | None, other: ReadyRecipe | None) -> bool:
    """Whether both are there, and judge by the same recipe: golden samples of one say what the other is worth."""
    return one is not None and other is not None and one.recipe.digest == other.recipe.digest
