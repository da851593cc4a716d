"""What stands against the recipes of a running station, and when a golden sample is to be inspected.

Two things say that nothing judged here can be believed: a golden sample that came out otherwise than it must, and an
engine that could not judge a part. The alarms that keep the station from judging are not kept beside these but made of
them (`GoldenWatch.alarms`), so that none can outlive its cause or be lost before it.
"""

from collections.abc import Callable, Mapping, Sequence

from edge_daemon.config import StationConfig
from edge_daemon.detectors.loading import ReadyRecipe
from edge_daemon.pipeline.golden import GoldenSample, GoldenTurns, same_recipe
from edge_daemon.pipeline.inspection import LiveRecipeSet

# A station that only a golden sample can bring back to Ready has one inspected at least this often.
_RECOVERY_NS = 1_000_000_000
# A station that judges parts for so many times `golden_check_s` without a golden sample says so.
_OVERDUE = 5
_UNPROVEN = (
    "no part is judged until a golden sample of this view comes out right, and one is tried at once: if that does not "
    "help, look at the provider and its driver (`edge-daemon doctor`), restart the daemon, or activate another recipe"
)
_DISTRUSTED = (
    "no part is judged until this sample comes out right, and it is tried again and again: look at the provider and "
    "its driver (`edge-daemon doctor`), restart the daemon, or activate another recipe"
)


class GoldenWatch:
    """Golden samples and engine failures of one station. Guarded by its lock; times are monotonic nanoseconds."""

    def __init__(self, views: Sequence[str], config: StationConfig) -> None:
        self._config = config
        self._turns = GoldenTurns()
        self._inspected_ns = dict.fromkeys(views, 0)
        # view -> when the engine last failed a part and what it said, until it is proven
        self._engine_failed: dict[str, tuple[int, str]] = {}
        self._overdue: dict[str, str] = {}  # view -> what is told of it
        self._halted_ns = 0  # when the station was last seen not to judge

    # -- what stands ---------------------------------------------------------------------------------

    def alarms(self) -> dict[str, str]:
        """Why no part may be judged: key -> message, empty when one may."""
        samples = {f"golden {sample.name}": f"{error}; {_DISTRUSTED}" for sample, error in self._turns.failures()}
        return samples | {f"engine {view}": f"{e}; {_UNPROVEN}" for view, (_, e) in self._engine_failed.items()}

    def warnings(self) -> dict[str, str]:
        """What is to be told although parts are judged: key -> message."""
        return {f"golden overdue {view}": message for view, message in self._overdue.items()}

    def failures(self) -> list[tuple[GoldenSample, str]]:
        """The samples that came out wrong and have not come out right since, each with what was wrong."""
        return self._turns.failures()

    def good_ns(self) -> Mapping[str, int]:
        """By view, when a sample last came out right: when its recipe was loaded, or later."""
        return self._turns.good_ns()

    # -- whose turn it is ----------------------------------------------------------------------------

    def due(self, recipes: LiveRecipeSet, now_ns: int, late: bool) -> GoldenSample | None:
        """The sample that an idle station should inspect now; None while all views are fresh. late: whether only one
        that is in time ends an alarm."""
        period_ns = self._period_ns(late)
        stalest = min(self._inspected_ns, key=lambda view: self._inspected_ns[view])
        if period_ns == 0 or now_ns - self._inspected_ns[stalest] < period_ns:
            return None
        return self._turns.turn(stalest, recipes.views[stalest])

    def _period_ns(self, late: bool) -> int:
        """How long a view may go uninspected, 0 for ever. Where nothing but a golden sample leads out of Error, it is
        asked for also by a station that is configured to do without; at once after the engine has failed a part."""
        configured_ns = int(self._config.idle_check_s * 1e9)
        if self._engine_failed and not self._turns.failing:
            return 1
        if self._turns.failing or late:
            return min(configured_ns or _RECOVERY_NS, _RECOVERY_NS)
        return configured_ns

    def due_between_parts(
        self, recipes: LiveRecipeSet, now_ns: int, slowest_part_ns: Callable[[], int]
    ) -> tuple[GoldenSample, int] | None:
        """The sample that a busy station should inspect, and how long that takes (ns). None while every view has had
        one within `golden_check_s`, or where the next part would be late by it."""
        view, asked_ns = self._turns.longest_unasked()
        if now_ns - asked_ns < self._config.golden_check_s * 1e9:
            return None
        part_ns = slowest_part_ns()
        takes_ns = self._turns.takes_ns(view) or part_ns
        if takes_ns + part_ns > self._config.deadline_ms * 1e6:
            return None
        return self._turns.turn(view, recipes.views[view]), takes_ns

    def takes_ns(self, view: str) -> int | None:
        """How long a sample of this view takes, the slowest one; None before any was timed."""
        return self._turns.takes_ns(view)

    # -- what happened -------------------------------------------------------------------------------

    def inspected(self, view: str, now_ns: int) -> None:
        """A part or a golden sample of the view was judged."""
        self._inspected_ns[view] = now_ns

    def passed(self, sample: GoldenSample, now_ns: int, took_ns: int) -> bool:
        """A sample came out right; whether that takes anything back that stood."""
        self._turns.timed(sample, now_ns, took_ns, right=True)
        self._overdue.pop(sample.view, None)
        failed_ns, _ = self._engine_failed.get(sample.view, (None, ""))
        # One that was under way already when the engine failed says nothing about what came after.
        proves = failed_ns is not None and now_ns - took_ns >= failed_ns
        if proves:
            del self._engine_failed[sample.view]
        return self._turns.passed(sample) or proves

    def failed(self, sample: GoldenSample, now_ns: int, took_ns: int, error: str) -> bool:
        """A sample came out wrong; whether that is news."""
        self._turns.timed(sample, now_ns, took_ns, right=False)
        return self._turns.failed(sample, error)

    def failed_elsewhere(self, views: Mapping[str, ReadyRecipe], sample: GoldenSample, error: str) -> bool:
        """A sample of another station, or of another view, came out wrong; whether any of these judges by its recipe
        and is stopped by it: where a recipe is shared, so is the engine that judges."""
        affected = [view for view, own in views.items() if same_recipe(own, sample.ready)]
        for view in affected:
            self._turns.failed(GoldenSample(view, views[view], sample.golden), error)
        return bool(affected)

    def engine_failed(self, view: str, now_ns: int, error: str) -> bool:
        """The engine could not judge a part's frame; whether that is news."""
        news = view not in self._engine_failed
        self._engine_failed[view] = now_ns, error
        return news

    def replaced(self, before: Mapping[str, ReadyRecipe], after: LiveRecipeSet, now_ns: int) -> None:
        """Other recipes judge from now on. What is known against a recipe goes with it, to another view too."""
        gone = self._turns.replaced(before, after, now_ns)
        for view, ready in before.items():
            if not same_recipe(ready, after.views.get(view)):
                self._engine_failed.pop(view, None)
                self._overdue.pop(view, None)
        for sample, error in gone:
            self.failed_elsewhere(after.views, sample, error)

    def not_judging(self, now_ns: int) -> None:
        """The station is halted or has no recipes: nobody can have expected a sample of it until now."""
        self._halted_ns = now_ns

    def look(self, now_ns: int) -> str:
        """Whether samples come out right often enough; a new warning that says they do not, else empty."""
        told, limit_s = "", _OVERDUE * self._config.golden_check_s
        for view, good_ns in self._turns.good_ns().items():
            overdue = now_ns - max(good_ns, self._halted_ns) > limit_s * 1e9
            if overdue and not self._turns.failing and view not in self._overdue:
                told = self._overdue[view] = _overdue(view, limit_s)
        return told


def _overdue(view: str, limit_s: float) -> str:
    return (
        f"no golden sample of view {view} has been inspected for {limit_s:g} s: parts come so close that one would "
        "make them late, and nothing shows that this PC still judges as the export did; raise deadline_ms, or leave "
        "the station a second without parts now and then"
    )
