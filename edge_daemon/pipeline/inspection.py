"""One inspection on its way: from an accepted trigger to the first terminal outcome."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_daemon.artefact.store import recipe_set_digest
from edge_daemon.core.clock import UtcAnchor
from edge_daemon.core.decision import Evaluation, Evidence, Reason, ViewVerdict
from edge_daemon.core.frame import Frame
from edge_daemon.detectors.loading import ReadyRecipe
from edge_daemon.wire.messages import Mode


@dataclass(frozen=True, slots=True)
class LiveRecipeSet:
    """What a station runs: one verified recipe per view, by the view's name. digest: SHA-256 over all of them."""

    views: Mapping[str, ReadyRecipe]
    digest: str

    @classmethod
    def of(cls, views: Mapping[str, ReadyRecipe]) -> "LiveRecipeSet":
        """The set of these recipes; its digest depends on names of views and recipe digests alone."""
        return cls(dict(views), recipe_set_digest({view: ready.recipe.digest for view, ready in views.items()}))

    @property
    def provisional(self) -> bool:
        return any(ready.recipe.manifest.provisional for ready in self.views.values())

    def matches(self, job: str) -> bool:
        """Whether a job id names this set: its digest (or 12 and more digits of it), or the name that all
        of its recipes bear."""
        if len(job) >= 12 and self.digest.startswith(job):
            return True
        return {ready.recipe.manifest.name for ready in self.views.values()} == {job}


@dataclass(frozen=True, slots=True)
class ViewOutcome:
    """What came of one view; times are monotonic nanoseconds."""

    verdict: ViewVerdict
    frame: Frame | None = None
    evidence: Evidence | None = None
    model_ns: int | None = None
    features_ns: int | None = None
    judged_ns: int | None = None

    @classmethod
    def failed(cls, reason: Reason, frame: Frame | None = None) -> "ViewOutcome":
        """A view that could not be judged."""
        return cls(ViewVerdict(Evaluation.UNDEFINED, reason, judged=False), frame)


@dataclass(slots=True)
class OpenInspection:
    """An accepted trigger without an outcome yet. Owned by its station, changed under the station's lock.

    frames, outcomes, health: by the name of the view. unconfirmed: views whose frame may yet turn out to be another
    part's; while there is one, nothing is published. distrusted: a golden sample of its recipes came out wrong while it
    was under way; it has no verdict.
    """

    result_id: str
    trigger_id: str
    part_id: str | None
    attempt: int
    mode: Mode
    recipe_set: LiveRecipeSet | None
    accepted_ns: int
    anchor: UtcAnchor
    deadline_ns: int
    simulated: bool = False
    camera_settings_digest: str = ""
    frames: dict[str, Frame] = field(default_factory=dict)
    outcomes: dict[str, ViewOutcome] = field(default_factory=dict)
    health: dict[str, Mapping[str, float]] = field(default_factory=dict)
    unconfirmed: set[str] = field(default_factory=set)
    distrusted: bool = False
    finished: bool = False
