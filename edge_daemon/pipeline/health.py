"""Image health in front of the inspection: a picture that cannot be judged is not decidable, whatever it would score.

It runs in the thread of the camera's reader, before anything else is done with the frame: the model never sees an
unhealthy picture, and no score can speak for it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edge_daemon.core.decision import Evaluation, Reason, ViewVerdict
from edge_daemon.core.drift import Drift, advance, begin
from edge_daemon.core.frame import in_colour
from edge_daemon.core.health import (
    FRAMES_REMEMBERED,
    HealthLimits,
    Measure,
    Repeats,
    Violation,
    fingerprint,
    measure,
    take_sample,
    violation,
)
from edge_daemon.core.histogram import Distribution
from edge_daemon.detectors.health import health_limits
from edge_daemon.detectors.loading import ReadyRecipe
from edge_daemon.errors import PictureError
from edge_daemon.pipeline.inspection import ViewOutcome
from edge_daemon.pipeline.stages import Stages
from edge_daemon.pipeline.station import Station, Work

Emit = Callable[[str, str, str, str, str], None]
"""`emit(kind, station, name, message, severity)`: an event goes out."""

_FROZEN = Violation(
    Reason.HEALTH_FROZEN,
    f"the picture repeats one of the {FRAMES_REMEMBERED} before it bit by bit, which no living sensor does: restart "
    "the camera, look at its cable and driver (or is it a test pattern?)",
)
_ADVICE: Mapping[Reason, str] = {
    Reason.HEALTH_BLACK: "is the light on, the lens covered?",
    Reason.HEALTH_UNDEREXPOSED: "look at the light and the exposure",
    Reason.HEALTH_OVEREXPOSED: "look at the exposure and for light from outside",
    Reason.HEALTH_BLUR: "look at focus, lens (dirt, water), exposure time and vibration",
    Reason.HEALTH_SHIFT: "look at the fixture, the trigger and the camera's mount",
    Reason.HEALTH_CONTRAST: "look at the lens and the light; is there a part?",
    Reason.HEALTH_NOISE: "look at gain, light and the cable",
}


@dataclass(slots=True)
class _View:
    """What is remembered of one view of one station. Touched by its camera's reader alone.

    recipe: digest of the one that limits and charts are of; recent: the last frames, whatever recipe they were for.
    """

    may_repeat: bool
    recipe: str = ""
    limits: HealthLimits | None = None
    in_colour: bool = False
    charts: dict[Measure, Drift] = field(default_factory=dict)
    recent: Repeats = field(default_factory=Repeats)
    ill: Reason | None = None
    grey: bool = False


_GREY = (
    "there is no colour in the picture and its recipe was learned from pictures in colour: its part fails; look at the "
    "light, the camera's pixel format and white balance, or activate a recipe that was learned from pictures like this"
)


class HealthDesk:
    """Looks at every frame first. Healthy ones go on to `judge`; the others end as not decidable.

    fatal: told of an exception that is no EdgeError, after which the frame fails. The charts of drift begin anew with
    the daemon and with another recipe: a lamp that has aged is told again after some ten parts.
    """

    def __init__(self, judge: Callable[[Work], None], emit: Emit, fatal: Callable[[BaseException], None]) -> None:
        self._judge = judge
        self._emit = emit
        self._fatal = fatal
        self._views: dict[tuple[str, str], _View] = {}
        self._stages = Stages()

    def watch(self, station: Station, view: str, may_repeat: bool) -> None:
        """Expect frames of that view. may_repeat: it replays pictures, which may be the same one twice."""
        self._views[station.name, view] = _View(may_repeat)

    def submit(self, work: Work) -> None:
        """Look at one frame, in this thread, and pass it on when it is healthy."""
        begun = time.perf_counter()
        try:
            found = self._look(work)
        except PictureError:  # nobody can say that it is healthy
            work.station.view_done(work.inspection, work.view, ViewOutcome.failed(Reason.FRAME_SIZE, work.frame))
            return
        except Exception as error:  # a defect of the program: nobody knows whether this picture can be judged
            work.station.view_done(work.inspection, work.view, ViewOutcome.failed(Reason.ENGINE, work.frame))
            self._fatal(error)
            return
        self._stages.add("health", (time.perf_counter() - begun) * 1e3)
        if found is None:
            self._judge(work)
            return
        verdict = ViewVerdict(Evaluation.NOT_DECIDABLE, found.reason)
        work.station.view_done(work.inspection, work.view, ViewOutcome(verdict, work.frame))

    def distributions(self) -> dict[str, Distribution]:
        """Seconds of `health`, since the start."""
        return self._stages.distributions()

    def stages_ms(self) -> dict[str, float]:
        """Median milliseconds of `health` over the last frames."""
        return self._stages.medians()

    # -- one frame -----------------------------------------------------------------------------------

    def _look(self, work: Work) -> Violation | None:
        """What is wrong with the picture. A frame that does not fit its recipe is left to the inspection to refuse.
        Raises PictureError for one of the right size in which health cannot be measured all the same, and for a grey
        one where the recipe knows colours."""
        view = self._views[work.station.name, work.view]
        recipes = work.inspection.recipe_set
        if recipes is None:
            return None
        self._follow(work, view, recipes.views[work.view])
        pixels = work.frame.pixels
        repeated = not view.may_repeat and view.recent.repeats(fingerprint(pixels))
        if (pixels.shape[1], pixels.shape[0]) != recipes.views[work.view].recipe.manifest.view.frame_size:
            return None
        values = self._measured(work, view)
        found = violation(values, view.limits.limits) if view.limits is not None else None
        if repeated and (found is None or found.reason is not Reason.HEALTH_BLACK):
            found = _FROZEN
        self._tell(work, view, found)
        if found is None:
            self._require_colour(work, view)
        if found is None and view.limits is not None:
            self._chart(work, view, values)
        return found

    def _require_colour(self, work: Work, view: _View) -> None:
        """A defect that shows by its colour alone is not to be seen in a grey picture. Raises PictureError."""
        grey, key = view.in_colour and not in_colour(work.frame.pixels), f"grey {work.view}"
        if grey and not view.grey:
            self._emit("alarm", work.station.name, "grey", f"view {work.view}: {_GREY}", "error")
            work.station.warn(key, _GREY)
        elif view.grey and not grey:
            work.station.warning_over(key)
        view.grey = grey
        if grey:
            raise PictureError(_GREY)

    def _measured(self, work: Work, view: _View) -> Mapping[Measure, float]:
        """The measures that the recipe limits, told to inspection and station; none where it has no limits."""
        if view.limits is None:
            return {}
        values = measure(take_sample(work.frame.pixels, view.limits.region), view.limits.reference)
        work.inspection.health[work.view] = {name.value: float(f"{value:.5g}") for name, value in values.items()}
        work.station.health_seen(work.view, work.inspection.health[work.view])
        return values

    def _follow(self, work: Work, view: _View, ready: ReadyRecipe) -> None:
        """Another recipe has limits of its own, and its charts begin anew."""
        if view.recipe == ready.recipe.digest:
            return
        for name in view.charts:
            work.station.warning_over(_drift_key(name, work.view))
        view.recipe, view.limits = ready.recipe.digest, health_limits(ready.recipe.manifest)
        view.in_colour = ready.recipe.in_colour
        view.charts = {name: begin(x.centre) for name, x in view.limits.limits.items()} if view.limits else {}

    def _tell(self, work: Work, view: _View, found: Violation | None) -> None:
        """Alarm at the first unhealthy picture and when the reason changes, all-clear at the first healthy one."""
        key, station, shown = f"health {work.view}", work.station, work.view
        if found is not None:
            advice = _ADVICE.get(found.reason)
            message = f"{found.reason}: {found.message}" + (f"; {advice}" if advice else "")
            if view.ill is not found.reason:
                self._emit("alarm", station.name, found.reason.value, f"camera {shown}: {message}", "error")
            station.warn(key, message)
            view.ill = found.reason
        elif view.ill is not None:
            view.ill = None
            station.warning_over(key)
            self._emit("alarm", station.name, "health_clear", f"camera {shown}: pictures are healthy again", "info")

    def _chart(self, work: Work, view: _View, values: Mapping[Measure, float]) -> None:
        assert view.limits is not None
        for name, limit in view.limits.limits.items():
            before = view.charts[name]
            after = view.charts[name] = advance(before, values[name], limit.centre, limit.drift)
            if after.alarm == before.alarm:
                continue
            station, shown = work.station, work.view
            if after.alarm:
                message = (
                    f"the running mean of {name} has drifted to {after.mean:.4g}, good parts had {limit.centre:.4g}: "
                    "clean the lens, look at light, focus and mount before it costs parts, or relearn the recipe's "
                    "health if this is how it shall be"
                )
                station.warn(_drift_key(name, shown), message)
                self._emit("alarm", station.name, f"drift_{name.value}", f"camera {shown}: {message}", "warning")
            else:
                station.warning_over(_drift_key(name, shown))
                self._emit("alarm", station.name, "drift_clear", f"camera {shown}: {name} has come back", "info")


def _drift_key(name: Measure, view: str) -> str:
    return f"drift_{name.value} {view}"
