"""A station: accepts triggers, keeps what is open, and gives each trigger exactly one outcome."""

import hashlib
import json
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edge_daemon.config import StationConfig
from edge_daemon.core.binding import Bound, Decision, Exposed, FrameBinder, Stray, Unbound
from edge_daemon.core.camera_settings import Settings
from edge_daemon.core.clock import Clock
from edge_daemon.core.decision import (
    Bucket,
    Evaluation,
    Reason,
    ResultState,
    Verdict,
    bucket_of,
    combine,
)
from edge_daemon.core.frame import Frame
from edge_daemon.core.histogram import SECONDS, Distribution, Histogram
from edge_daemon.core.states import State, StationEvent, step
from edge_daemon.detectors.loading import ReadyRecipe
from edge_daemon.edges.journal_entries import Intent
from edge_daemon.errors import CameraSettingsError, JournalError
from edge_daemon.pipeline.camera_match import advice as advice_on_settings
from edge_daemon.pipeline.camera_match import set_otherwise
from edge_daemon.pipeline.golden import GoldenSample, same_recipe
from edge_daemon.pipeline.golden_watch import GoldenWatch
from edge_daemon.pipeline.inspection import LiveRecipeSet, OpenInspection, ViewOutcome
from edge_daemon.pipeline.messages import Identity, earlier, inspection_message
from edge_daemon.pipeline.pulses import advice, binding_window, reason_of
from edge_daemon.wire.messages import CameraStatus, Counters, Inspection, Mode, Status

# Late results in a row after which the station stops taking triggers (the trade's rule: three).
_LATE_LIMIT = 3
_LATENCIES_KEPT = 2048
# Status goes out up to a hundred times a second; quantiles of two thousand numbers need not.
_QUANTILES_EVERY_NS = 1_000_000_000
# A part without a frame gets its record before its deadline, not at it. Its camera's reader says so this much before
# (or an eighth of the deadline); a reader that is stuck is not waited for beyond half of that.
FRAME_RESERVE_NS = 50_000_000
# Parts whose times say how long the next one may take.
_RECENT_PARTS = 256
_NO_LIMITS = (
    "its recipe does not say what a picture must be like: dark, blurred or moved ones are judged like any other; learn "
    "limits from good pictures with `edge-export health`"
)


class Outbox(Protocol):
    """Where intents and outcomes become durable and public; see `edges.records`."""

    def intend(self, intent: Intent, on_durable: Callable[[JournalError | None], None]) -> None: ...

    def conclude(self, draft: Inspection) -> object: ...

    def attempts(self, station: str, trigger_id: str) -> int:
        """How many attempts of this trigger id are on record."""
        ...


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Answer to a trigger: a refused one has its result too (missed)."""

    accepted: bool
    result_id: str
    attempt: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Work:
    """One frame to judge."""

    station: "Station"
    inspection: OpenInspection
    view: str
    frame: Frame


@dataclass(slots=True)
class _CameraState:
    connected: bool = False
    message: str = "not connected yet"
    frames: int = 0
    inspected: int = 0
    untriggered: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    settings: Settings | None = None  # as last read back; None before the camera was first open


class Station:
    """State of one station. Every method may be called from any thread; none of them blocks on I/O."""

    def __init__(self, name: str, config: StationConfig, identity: Identity, clock: Clock, outbox: Outbox) -> None:
        self.name = name
        self.config = config
        self.views = tuple(view.name for view in config.views)
        self._camera_of = {view.name: view.camera for view in config.views}
        self._bound_to_settings = frozenset(view.name for view in config.views if view.camera_settings == "require")
        self.cameras = tuple(dict.fromkeys(view.camera for view in config.views))
        self._identity = identity
        self._clock = clock
        self._outbox = outbox
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._state = State.PREOPERATIONAL
        self._alarms: dict[str, str] = {}
        self._warnings: dict[str, str] = {}
        self._health: dict[str, Mapping[str, float]] = {}
        self._recipes: LiveRecipeSet | None = None
        self._golden = GoldenWatch(self.views, config)
        self._open: dict[str, OpenInspection] = {}
        self._concluding: dict[str, int] = {}
        self._counts = dict.fromkeys(Bucket, 0)
        self._reasons: dict[Bucket, Counter[str]] = {bucket: Counter() for bucket in Bucket}
        self._accepted = 0
        self._last_seq = 0
        self._late_in_a_row = 0
        self._second_outcomes = 0
        self._recent_ns: deque[int] = deque(maxlen=_RECENT_PARTS)
        self._latencies_ms: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        self._latency = Histogram(SECONDS)
        self._quantiles: dict[str, float] = {}
        self._quantiles_ns = 0
        self._camera_states = {camera: _CameraState() for camera in self.cameras}
        self._exact_searches = dict.fromkeys(self.views, 0)
        self._judged = dict.fromkeys(self.views, 0)
        self._binders: dict[str, FrameBinder[Frame]] = {}
        # Announcements reach the binders in the order of their times, after their intents.
        self._in_turn = threading.Lock()
        self._camera_settings_digest = ""
        self._simulated = False
        self._submit: Callable[[Work], None] = _unattached
        self._request_frame: Mapping[str, Callable[[OpenInspection], None]] = {}
        self._changed: Callable[[], None] = _nothing
        self._on_pictures: Callable[[OpenInspection, Inspection], None] | None = None
        self._on_alarm: Callable[[str, str, str], None] = _unheard
        if config.trigger == "hardware":
            window, now_ns = binding_window(config.hardware), clock.monotonic_ns()
            self._binders = {camera: FrameBinder(window, now_ns) for camera in self.cameras}
            for camera in self.cameras:
                self._follow_step(camera)

    def attach(
        self,
        submit: Callable[[Work], None],
        request_frame: Mapping[str, Callable[[OpenInspection], None]],
        simulated: bool,
        changed: Callable[[], None],
        on_pictures: Callable[[OpenInspection, Inspection], None] | None,
        on_alarm: Callable[[str, str, str], None] | None = None,
    ) -> None:
        """Connect the neighbours: who judges frames, who grabs them by camera, who hears of changes and
        who makes pictures. simulated: any camera shows no real part. on_alarm: told of (name, message, severity) when
        cameras and recipes do not go together, and when they do again."""
        self._submit, self._request_frame, self._simulated = submit, request_frame, simulated
        self._changed, self._on_pictures, self._on_alarm = changed, on_pictures, on_alarm or _unheard

    # -- accepting -----------------------------------------------------------------------------------

    def trigger(
        self,
        trigger_id: str,
        ack: Callable[[Acceptance], None],
        part_id: str | None = None,
        job: str | None = None,
        mode: Mode | None = None,
    ) -> None:
        """One trigger by message. `ack` is called once: when the intent is durable, or at once when the
        trigger is missed. The outcome follows on the results socket in either case."""
        with self._in_turn if self._binders else nullcontext():
            inspection, verdict = self._accept(trigger_id, part_id, job, mode)
            missed = verdict is not None and verdict.state is ResultState.ABORTED
            if not missed:
                self._intend(inspection, ack)
            self._announce(inspection, refused=verdict is not None)
        if verdict is not None:
            self._finish(inspection, verdict)
            if missed:
                ack(Acceptance(False, inspection.result_id, inspection.attempt, verdict.reason))
        elif not self._binders:
            for camera in self.cameras:
                self._request_frame[camera](inspection)

    def _intend(self, inspection: OpenInspection, ack: Callable[[Acceptance], None]) -> None:
        def durable(error: JournalError | None) -> None:
            if error is not None:
                self._finish(inspection, Verdict(Evaluation.UNDEFINED, ResultState.FAILED, Reason.JOURNAL))
            reason = Reason.NONE if error is None else Reason.JOURNAL
            ack(Acceptance(error is None, inspection.result_id, inspection.attempt, reason))

        self._outbox.intend(self._intent(inspection), durable)

    def frame_without_trigger(self, camera: str, frame: Frame, exposed_ns: int | None = None) -> None:
        """A frame of a free-running camera: its own trigger. No other boot had one of its id, and no other frame of
        this one: the journal, which would take a millisecond, need not be asked. exposed_ns: when it was, if the part
        has moved on since; the deadline counts from then, so that a frame that lay somewhere does not pass for new."""
        trigger_id = f"{camera}-{self._identity.boot}-{frame.frame_id}"
        inspection, verdict = self._accept(trigger_id, None, None, None, new=True, at_ns=exposed_ns)
        view = self.views_of(camera)[0]
        inspection.frames[view] = frame
        if verdict is not None:
            self._finish(inspection, verdict)
            return
        self._outbox.intend(self._intent(inspection), lambda error: self._intent_failed(inspection, error))
        self.frame_arrived(inspection, view, frame)

    def frame_lost(self, camera: str) -> None:
        """A free-running camera lost one frame, and a part with it perhaps: a trigger that failed."""
        inspection, verdict = self._accept(f"{camera}-lost-{uuid.uuid4().hex[:8]}", None, None, None, new=True)
        failed = Verdict(Evaluation.UNDEFINED, ResultState.FAILED, Reason.CAMERA)
        self._finish(inspection, verdict if verdict is not None else failed)

    def _intent_failed(self, inspection: OpenInspection, error: JournalError | None) -> None:
        if error is not None:
            self._finish(inspection, Verdict(Evaluation.UNDEFINED, ResultState.FAILED, Reason.JOURNAL))

    def _accept(
        self,
        trigger_id: str,
        part_id: str | None,
        job: str | None,
        mode: Mode | None,
        *,
        new: bool = False,
        at_ns: int | None = None,
    ) -> tuple[OpenInspection, Verdict | None]:
        """Count the trigger and bind it to the active recipe set. The verdict is given where none is to
        be sought: missed, or a job that does not match. new: nothing is on record under this id. at_ns: when it
        triggered, if that was before now."""
        now, anchor = self._clock.monotonic_ns(), self._clock.utc()
        if at_ns is not None and at_ns < now:
            now, anchor = at_ns, earlier(anchor, now - at_ns)
        # A station that is not in production can never be raised to it by a request.
        effective: Mode = (mode or "production") if self.config.mode == "production" else self.config.mode
        attempts = 0 if new else self._outbox.attempts(self.name, trigger_id)
        with self._lock:
            again = [i for i in self._open.values() if i.trigger_id == trigger_id]
            attempt = max(attempts, *(i.attempt for i in again), 0) + 1 if again else attempts + 1
            inspection = OpenInspection(
                result_id=uuid.uuid4().hex,
                trigger_id=trigger_id,
                part_id=part_id,
                attempt=attempt,
                mode=effective,
                recipe_set=self._recipes,
                accepted_ns=now,
                anchor=anchor,
                deadline_ns=now + int(self.config.deadline_ms * 1e6),
                simulated=self._simulated,
                camera_settings_digest=self._camera_settings_digest,
            )
            refusal = self._refusal(bool(again))
            self._accepted += 1
            self._open[inspection.result_id] = inspection
            if refusal is not None:
                return inspection, Verdict(Evaluation.UNDEFINED, ResultState.ABORTED, refusal)
            event = StationEvent.RUN if self.config.trigger == "free_run" else StationEvent.TRIGGER
            self._state = step(self._state, event)
            if job is not None and not (self._recipes and self._recipes.matches(job)):
                verdict = Verdict(Evaluation.NOT_DECIDABLE, ResultState.COMPLETED, Reason.JOB_MISMATCH)
                return inspection, verdict
        self._changed()
        return inspection, None

    def _refusal(self, duplicate: bool) -> Reason | None:
        """Why a trigger is missed, None when it can be taken."""
        if self._state is State.HALTED:
            return Reason.STOPPED
        if self._state not in (State.READY, State.SINGLE_EXECUTION, State.CONTINUOUS_EXECUTION):
            return Reason.MISSED_NOT_READY
        if duplicate:
            return Reason.MISSED_DUPLICATE
        if len(self._open) > self.config.queue:
            return Reason.MISSED_BUSY
        return None

    def _intent(self, inspection: OpenInspection) -> Intent:
        return Intent(
            station=self.name,
            result_id=inspection.result_id,
            trigger_id=inspection.trigger_id,
            part_id=inspection.part_id,
            attempt=inspection.attempt,
            mode=inspection.mode,
            recipe_set=inspection.recipe_set.digest if inspection.recipe_set else "",
            accepted_utc=inspection.anchor.text,
            utc_uncertainty_us=inspection.anchor.uncertainty_us,
            clock_quality=inspection.anchor.quality,
            deadline_ms=self.config.deadline_ms,
            provisional=inspection.recipe_set.provisional if inspection.recipe_set else False,
            simulated=inspection.simulated,
        )

    # -- frames and outcomes -------------------------------------------------------------------------

    def views_of(self, camera: str) -> tuple[str, ...]:
        """The views that this camera takes, in the order of their exposures."""
        own = sorted((view for view in self.config.views if view.camera == camera), key=lambda view: view.exposure)
        return tuple(view.name for view in own)

    def frame_arrived(self, inspection: OpenInspection, view: str, frame: Frame) -> None:
        """A view's frame is there; it is judged unless the inspection has ended meanwhile."""
        with self._lock:
            self._camera_states[self._camera_of[view]].frames += 1
            if inspection.finished or view in inspection.outcomes:
                return
            inspection.frames[view] = frame
            inspection.camera_settings_digest = self._camera_settings_digest
        self._hand_over(inspection, view, frame)

    def _hand_over(self, inspection: OpenInspection, view: str, frame: Frame) -> None:
        """Have a frame judged, unless it was taken with other settings than its recipe's pictures. The frame's own
        settings count: the camera may have others by now."""
        recipes = inspection.recipe_set
        if view in self._bound_to_settings and recipes and set_otherwise(recipes.views[view], frame.settings):
            self.view_done(inspection, view, ViewOutcome.failed(Reason.CAMERA_SETTINGS, frame))
        else:
            self._submit(Work(self, inspection, view, frame))

    def view_done(self, inspection: OpenInspection, view: str, outcome: ViewOutcome) -> None:
        """A view was judged, or could not be. The last one ends the inspection."""
        with self._lock:
            if outcome.evidence is not None:
                self._inspected(view)
                self._judged[view] += 1
                self._exact_searches[view] += outcome.evidence.exact_searches
            if inspection.finished or view in inspection.outcomes:  # a view that has failed stays so
                self._second_outcomes += 1
                return
            inspection.outcomes[view] = outcome
        self._finish_when_complete(inspection)

    def _finish_when_complete(self, inspection: OpenInspection) -> None:
        """End an inspection of which every view has its outcome, and every frame is surely its part's."""
        with self._lock:
            if inspection.finished or inspection.unconfirmed or len(inspection.outcomes) < len(self.views):
                return
            views = [inspection.outcomes[view].verdict for view in self.views]
        self._finish(inspection, combine(views, expected_views=len(self.views)))

    def _inspected(self, view: str) -> None:
        self._camera_states[self._camera_of[view]].inspected += 1
        self._golden.inspected(view, self._clock.monotonic_ns())

    def _finish(self, inspection: OpenInspection, verdict: Verdict) -> None:
        """The first terminal outcome wins; a judgement past the deadline is Failed/late, whatever it says, and one by
        an engine that a golden sample has shown to be wrong is Failed too."""
        with self._lock:
            if inspection.finished:
                self._second_outcomes += 1
                return
            past = self._clock.monotonic_ns() > inspection.deadline_ns
            if past and verdict.state is ResultState.COMPLETED:
                verdict = Verdict(Evaluation.UNDEFINED, ResultState.FAILED, Reason.LATE)
            elif inspection.distrusted and verdict.state is ResultState.COMPLETED:
                verdict = Verdict(Evaluation.UNDEFINED, ResultState.FAILED, Reason.GOLDEN_SAMPLE)
            inspection.finished = True
            for binder in self._binders.values():
                binder.forget(inspection.result_id)
            del self._open[inspection.result_id]
            self._concluding[inspection.result_id] = inspection.accepted_ns
            self._count_late(verdict)
            if verdict.state is ResultState.COMPLETED:
                self._recent_ns.append(self._clock.monotonic_ns() - inspection.accepted_ns)
            if not self._open and self._state in (State.SINGLE_EXECUTION, State.CONTINUOUS_EXECUTION):
                self._state = step(self._state, StationEvent.IDLE)
            self._room.notify_all()
        pictures = self._wants_pictures(inspection, verdict)
        draft = inspection_message(
            self._identity, self.name, inspection, verdict, self._camera_of, self.config.deadline_ms, past, pictures
        )
        self._outbox.conclude(draft)
        if pictures and self._on_pictures is not None:
            self._on_pictures(inspection, draft)
        self._changed()

    def _count_late(self, verdict: Verdict) -> None:
        if verdict.reason is Reason.LATE:
            self._late_in_a_row += 1
            if self._late_in_a_row >= _LATE_LIMIT:
                self._raise_alarm("late", f"{self._late_in_a_row} results in a row came after the deadline")
        elif verdict.state is ResultState.COMPLETED:
            self._late_in_a_row = 0

    def _wants_pictures(self, inspection: OpenInspection, verdict: Verdict) -> bool:
        if self._on_pictures is None or not any(o.evidence for o in inspection.outcomes.values()):
            return False
        policy = self.config.images.publish
        return policy == "always" or (policy == "not_ok" and verdict.evaluation is not Evaluation.OK)

    def expire(self, now_ns: int) -> None:
        """End every inspection whose deadline has passed, and shortly before it those that still have no frame."""
        with self._lock:
            expired = [i for i in self._open.values() if now_ns >= self._ends_ns(i)]
            for inspection in expired:
                for view in self.views:
                    if view not in inspection.frames and view not in inspection.outcomes:
                        # Its reader would have said so long before the deadline, were it not stuck.
                        camera = self._camera_of[view]
                        self._raise_alarm(f"silent {camera}", f"camera {camera} hangs: no answer by the deadline")
                    self._give_up(inspection, view)
        for inspection in expired:
            reasons = {o.verdict.reason for o in inspection.outcomes.values() if not o.verdict.judged}
            reason = Reason.NO_FRAME if Reason.NO_FRAME in reasons else Reason.LATE
            self._finish(inspection, Verdict(Evaluation.UNDEFINED, ResultState.FAILED, reason))

    def _give_up(self, inspection: OpenInspection, view: str) -> None:
        frame = inspection.frames.get(view)
        if view in inspection.unconfirmed:  # judged perhaps, but nobody can say which part it shows
            inspection.outcomes[view] = ViewOutcome.failed(Reason.LATE, frame)
        reason = Reason.NO_FRAME if frame is None else Reason.LATE
        inspection.outcomes.setdefault(view, ViewOutcome.failed(reason, frame))

    def _ends_ns(self, inspection: OpenInspection) -> int:
        """When an inspection ends whatever is missing: without a frame before its deadline."""
        if all(view in inspection.frames or view in inspection.outcomes for view in self.views):
            return inspection.deadline_ns
        reserve_ns = min(FRAME_RESERVE_NS, (inspection.deadline_ns - inspection.accepted_ns) // 8)
        return inspection.deadline_ns - reserve_ns // 2

    def next_deadline_ns(self) -> int | None:
        """Monotonic time at which `expire` has something to do at the earliest."""
        with self._lock:
            return min((self._ends_ns(i) for i in self._open.values()), default=None)

    def published(self, record: Inspection) -> None:
        """A record went out (called by the outbox, in the order of seq)."""
        with self._lock:
            bucket = bucket_of(Evaluation.from_label(record.evaluation), ResultState(record.result_state))
            self._counts[bucket] += 1
            self._reasons[bucket][record.reason] += 1
            self._last_seq = max(self._last_seq, record.seq)
            accepted_ns = self._concluding.pop(record.result_id, None)
            if accepted_ns is None:
                # A trigger of the boot before, which ends in this one.
                self._accepted += 1
            else:
                took_ns = self._clock.monotonic_ns() - accepted_ns
                self._latencies_ms.append(took_ns / 1e6)
                self._latency.add(took_ns / 1e9)
        self._changed()

    # -- pulses on a wire ----------------------------------------------------------------------------

    def _announce(self, inspection: OpenInspection, refused: bool) -> None:
        """Tell the binders of a pulse, also of one whose trigger is not taken: its exposure will take place."""
        ends: list[OpenInspection] = []
        with self._lock:
            for camera, binder in self._binders.items():
                refused = refused or inspection.finished
                ends += self._decided(
                    camera, binder.announce(inspection.result_id, inspection.accepted_ns, refused=refused)
                )
        self._finish_each(ends)

    def frame_of_pulse(self, camera: str, frame: Frame) -> None:
        """A pulse brought this frame of a camera that counts; whose part it shows is for the binder to say. Called by
        the camera's reader, for every frame, in the order in which they come."""
        if frame.device_frame_id is None:
            self.frame_nobody_asked_for(camera)
            self._interrupted(camera)
            return
        with self._lock:
            self._camera_states[camera].frames += 1
            exposed = Exposed(frame, frame.frame_id, frame.arrived_ns, frame.exposed_ns, frame.exposed_uncertainty_ns)
            decisions = self._binders[camera].exposed(exposed, self._clock.monotonic_ns())
        self._carry_out(camera, decisions)

    def pulses_fetched(self, camera: str, until_ns: int) -> None:
        """The camera's reader has handed in every frame that arrived before `until_ns`."""
        with self._lock:
            decisions = self._binders[camera].tick(until_ns)
        self._carry_out(camera, decisions)

    def next_pulse_ns(self, camera: str) -> int | None:
        """When `pulses_fetched` has something to decide at the earliest; None for nothing in sight."""
        with self._lock:
            return self._binders[camera].next_ns()

    def out_of_step(self, camera: str) -> str:
        """The alarm while no frame of this camera can be told to belong to the part that was announced; else empty."""
        with self._lock:
            return self._alarms.get(f"out of step {camera}", "")

    def _interrupted(self, camera: str) -> None:
        """The stream began anew: nothing that was announced before can be told to belong to what comes."""
        if (binder := self._binders.get(camera)) is not None:
            with self._lock:
                ends = self._decided(camera, binder.interrupted(self._clock.monotonic_ns()))
            self._finish_each(ends)

    def _carry_out(self, camera: str, decisions: list[Decision[Frame]]) -> None:
        """Judge what was bound, fail what was not, publish what was confirmed. In the reader's thread."""
        with self._lock:
            ends = self._decided(camera, decisions)
            bound = [(self._open.get(d.key), d.frame) for d in decisions if isinstance(d, Bound)]
        view = self.views_of(camera)[0]
        for inspection, frame in bound:
            if inspection is not None:
                self._hand_over(inspection, view, frame)
        self._finish_each(ends)

    def _decided(self, camera: str, decisions: Iterable[Decision[Frame]]) -> list[OpenInspection]:
        """Note what the binder says; returns the inspections that may have ended by it."""
        view, ends = self.views_of(camera)[0], []
        for decision in decisions:
            if isinstance(decision, Stray):
                self._camera_states[camera].untriggered += 1
                continue
            inspection = self._open.get(decision.key)
            if inspection is None:
                continue
            if isinstance(decision, Bound):
                inspection.unconfirmed.add(view)
                inspection.frames[view] = decision.frame
                inspection.camera_settings_digest = self._camera_settings_digest
                continue
            inspection.unconfirmed.discard(view)
            if isinstance(decision, Unbound):  # whatever was judged meanwhile may have been another part
                inspection.outcomes[view] = ViewOutcome.failed(reason_of(decision.fault), inspection.frames.get(view))
            ends.append(inspection)
        self._follow_step(camera)
        return ends

    def _finish_each(self, inspections: Iterable[OpenInspection]) -> None:
        for inspection in inspections:
            self._finish_when_complete(inspection)

    def _follow_step(self, camera: str) -> None:
        """Out of step: an alarm until the silence is over."""
        key, binder = f"out of step {camera}", self._binders[camera]
        if binder.in_step:
            if key in self._alarms:
                self._clear_alarm(key)
                self._changed()
        elif key not in self._alarms:
            self._raise_alarm(key, advice(camera, binder.last_doubt, self.config.hardware))
            self._changed()

    # -- readiness -----------------------------------------------------------------------------------

    def activate(self, recipes: LiveRecipeSet) -> None:
        """Judge every trigger accepted from now on by this set. Inspections under way keep theirs."""
        with self._lock:
            before, self._recipes = self._recipes, recipes
            self._golden.replaced(before.views if before else {}, recipes, self._clock.monotonic_ns())
            self._clear_alarm("recipes")
            self._warn_of_missing_limits(recipes)
            if self._state is State.PREOPERATIONAL:
                self._state = step(self._state, StationEvent.RECIPES_VERIFIED)
            told = self._compare_settings()
            self._settle()
        self._tell(told)
        self._changed()

    def _warn_of_missing_limits(self, recipes: LiveRecipeSet) -> None:
        for view, ready in recipes.views.items():
            key = f"no health limits {view}"
            self._warnings.pop(key, None)
            if ready.recipe.manifest.health is None:
                self._warnings[key] = _NO_LIMITS

    @property
    def recipes(self) -> LiveRecipeSet | None:
        """The active recipe set."""
        with self._lock:
            return self._recipes

    def alarm(self, key: str, message: str) -> None:
        """Something makes the station unfit to judge: Error, Trigger Ready drops."""
        with self._lock:
            if self._alarms.get(key) == message:
                return
            self._raise_alarm(key, message)
        self._changed()

    def all_clear(self, key: str) -> None:
        """That something is over."""
        with self._lock:
            if key not in self._alarms:
                return
            self._clear_alarm(key)
        self._changed()

    def warn(self, key: str, message: str) -> None:
        """Something is wrong, but the station stays fit to judge: an alarm in status, and Trigger Ready stays. An
        unhealthy picture ends as not decidable by itself, and only the next trigger can show a healthy one."""
        with self._lock:
            known, self._warnings[key] = key in self._warnings, message
        if not known:
            self._changed()

    def warning_over(self, key: str) -> None:
        """That something is over."""
        with self._lock:
            known = self._warnings.pop(key, None)
        if known is not None:
            self._changed()

    def health_seen(self, view: str, measures: Mapping[str, float]) -> None:
        """What was measured of a view's last picture, for the status."""
        with self._lock:
            self._health[view] = measures

    def _raise_alarm(self, key: str, message: str) -> None:
        self._alarms[key] = message
        self._fault()

    def _fault(self) -> None:
        if self._state is not State.HALTED:
            self._state = step(self._state, StationEvent.FAULT)

    def _clear_alarm(self, key: str) -> None:
        self._alarms.pop(key, None)
        self._settle()

    def _settle(self) -> None:
        """Up from Error to Ready as far as recipes, cameras and alarms allow."""
        if self._recipes is None or self._alarms or self._golden.alarms():
            return
        if self._state is State.ERROR:
            self._state = step(self._state, StationEvent.RECOVERED)
        if self._state is State.INITIALIZED and all(c.connected for c in self._camera_states.values()):
            self._state = step(self._state, StationEvent.ALL_WELL)

    def camera_up(self, camera: str) -> None:
        """The camera is open and delivers."""
        with self._lock:
            self._camera_states[camera].connected = True
            self._camera_states[camera].message = ""
            self._clear_alarm(f"camera {camera}")
        self._interrupted(camera)
        self._changed()

    def camera_down(self, camera: str, message: str, reason: Reason = Reason.CAMERA) -> None:
        """The camera is gone: Trigger Ready drops, then whatever waits for a frame of it fails, not at the
        deadline but now."""
        with self._lock:
            self._camera_states[camera].connected = False
            self._camera_states[camera].message = message
            self._raise_alarm(f"camera {camera}", message)
            waiting = [
                (inspection, view)
                for inspection in self._open.values()
                for view in self.views_of(camera)
                if view not in inspection.frames and view not in inspection.outcomes
            ]
        for inspection, view in waiting:
            self.view_done(inspection, view, ViewOutcome.failed(reason))
        self._interrupted(camera)
        self._changed()

    def camera_answers(self, camera: str) -> None:
        """The camera's reader is not stuck in a call that hangs, or no longer."""
        self.all_clear(f"silent {camera}")

    def camera_counters(self, camera: str, counters: Mapping[str, int]) -> None:
        """What the camera and its stream have counted so far, for status and metrics."""
        with self._lock:
            self._camera_states[camera].counters = dict(counters)

    def camera_settings(self, camera: str, settings: Settings) -> None:
        """The settings that were read back from the open camera; the digest of all cameras' goes into results. Called
        before the camera is said to be up, and before a frame that was taken with them is handed in."""
        with self._lock:
            self._camera_states[camera].settings = dict(settings)
            of_all = {name: state.settings for name, state in self._camera_states.items() if state.settings}
            text = json.dumps(of_all, sort_keys=True, separators=(",", ":"))
            self._camera_settings_digest = hashlib.sha256(text.encode()).hexdigest() if of_all else ""
            told = self._compare_settings()
        self._tell(told)
        if told:
            self._changed()

    def refuse_settings(self, recipes: LiveRecipeSet) -> None:
        """Raises CameraSettingsError when a camera that is open now is not set as it was for the pictures of its
        recipe. One that is not open is compared when it is."""
        with self._lock:
            for view in self.views:
                camera, ready = self._camera_of[view], recipes.views[view]
                state = self._camera_states[camera]
                if view not in self._bound_to_settings or not state.connected:
                    continue
                if found := set_otherwise(ready, state.settings):
                    raise CameraSettingsError(advice_on_settings(camera, ready, found, judged=False))

    def _compare_settings(self) -> list[tuple[str, str, str]]:
        """Raise and clear the alarms of views whose camera is, or is not, set as it was for the recipe's pictures.
        Returns what is to be told of it: (name, message, severity)."""
        told = []
        for view in self.views:
            key, required = f"camera settings {view}", view in self._bound_to_settings
            known, problem = self._alarms.get(key, self._warnings.get(key, "")), self._settings_problem(view, required)
            if problem == known:
                continue
            if not problem:
                self._warnings.pop(key, None)
                self._clear_alarm(key)
                told.append(("camera_settings_clear", f"view {view}: the camera is set as the recipe says", "info"))
            elif required:
                self._raise_alarm(key, problem)
                told.append(("camera_settings", f"view {view}: {problem}", "error"))
            else:
                self._warnings[key] = problem
                told.append(("camera_settings", f"view {view}: {problem}", "warning"))
        return told

    def _settings_problem(self, view: str, required: bool) -> str:
        """What is wrong with the settings of a view's camera, empty for nothing, or as long as it was never open."""
        camera = self._camera_of[view]
        settings = self._camera_states[camera].settings
        if self._recipes is None or settings is None:
            return ""
        ready = self._recipes.views[view]
        found = set_otherwise(ready, settings)
        return advice_on_settings(camera, ready, found, judged=not required) if found else ""

    def _tell(self, told: Iterable[tuple[str, str, str]]) -> None:
        for name, message, severity in told:
            self._on_alarm(name, message, severity)

    def frame_nobody_asked_for(self, camera: str) -> None:
        """A frame came without a trigger in triggered use; it is counted and never judged."""
        with self._lock:
            self._camera_states[camera].untriggered += 1

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until a free-running camera's next frame would be taken; False after the timeout."""
        with self._room:
            return self._room.wait_for(self._has_room, timeout_s)

    def _has_room(self) -> bool:
        return self._refusal(duplicate=False) is None and len(self._concluding) <= 64

    def halt(self) -> None:
        """Take no more triggers; what is open is finished."""
        with self._lock:
            self._state = step(self._state, StationEvent.HALT)
        self._changed()

    def resume(self) -> None:
        """Take triggers again. Raises RefusedEventError unless halted."""
        with self._lock:
            self._state = step(self._state, StationEvent.RESUME)
            if self._recipes is not None:
                self._state = step(self._state, StationEvent.RECIPES_VERIFIED)
            if self._alarms or self._golden.alarms():
                self._state = step(self._state, StationEvent.FAULT)
            self._settle()
            self._room.notify_all()
        self._changed()

    @property
    def judges(self) -> bool:
        """Whether parts, or golden samples when there are none, are to be judged here: it has recipes and is not
        halted."""
        with self._lock:
            return self._recipes is not None and self._state is not State.HALTED

    @property
    def idle(self) -> bool:
        """Whether nothing is open and nothing waits for the journal."""
        with self._lock:
            return not self._open and not self._concluding

    @property
    def standing(self) -> tuple[bool, tuple[str, ...], str]:
        """Trigger Ready, alarms and recipe set: what whoever triggers must hear of at once.

        In free run nobody waits for Trigger Ready, and it changes with every frame: there being busy does not
        count.
        """
        with self._lock:
            refusal = self._refusal(duplicate=False)
            busy_only = self.config.trigger == "free_run" and refusal is Reason.MISSED_BUSY
            return refusal is None or busy_only, tuple(self._told()), self._recipes.digest if self._recipes else ""

    def _told(self) -> dict[str, str]:
        """Every alarm and warning, as status tells them."""
        return self._alarms | self._golden.alarms() | self._warnings | self._golden.warnings()

    # -- golden samples ------------------------------------------------------------------------------

    def golden_due(self, now_ns: int) -> GoldenSample | None:
        """The golden sample that should be inspected now; None while a trigger is open or all views are fresh."""
        with self._lock:
            if self._open or self._recipes is None or self._state is State.HALTED:
                return None
            return self._golden.due(self._recipes, now_ns, late="late" in self._alarms)

    def golden_between_parts(self, now_ns: int) -> tuple[GoldenSample, int] | None:
        """The golden sample that should be inspected although parts come, here or at another station, and for how long
        it keeps them waiting (ns). None while every view has had one within `golden_check_s`, or where the next part
        of this station would be late by it."""
        with self._lock:
            if self._recipes is None or self._state is State.HALTED:
                return None
            if (idle := self.golden_due(now_ns)) is not None:
                return idle, self._golden.takes_ns(idle.view) or self._slowest_part_ns()
            return self._golden.due_between_parts(self._recipes, now_ns, self._slowest_part_ns)

    def can_wait(self, now_ns: int, wait_ns: int) -> bool:
        """Whether nothing that is open here would be late if nobody worked on it for so long, and one more trigger
        would be taken meanwhile."""
        with self._lock:
            if self._open and self.config.trigger != "free_run" and len(self._open) > self.config.queue:
                return False
            ends_ns = now_ns + wait_ns + self._slowest_part_ns()
            return all(ends_ns <= inspection.deadline_ns for inspection in self._open.values())

    def _slowest_part_ns(self) -> int:
        return max(self._recent_ns, default=0)

    def golden_overdue(self, now_ns: int) -> str:
        """Look whether golden samples come out right often enough; a new alarm that says they do not, else empty."""
        with self._lock:
            if self._recipes is None or self._state is State.HALTED:
                self._golden.not_judging(now_ns)
                return ""
            told = self._golden.look(now_ns)
        if told:
            self._changed()
        return told

    def golden_done(self, sample: GoldenSample, took_ns: int, error: str | None) -> bool:
        """A golden sample was inspected in `took_ns`, rightly or not; whether that is news. A pass in time ends the
        alarm `late`. Of recipes that were replaced meanwhile nothing counts but what it says of parts under way."""
        with self._lock:
            if error is not None:
                self._distrust_parts(sample.ready)
            if self._recipes is None or not same_recipe(self._recipes.views.get(sample.view), sample.ready):
                return False
            self._inspected(sample.view)
            now_ns = self._clock.monotonic_ns()
            if error is not None:
                news = self._golden.failed(sample, now_ns, took_ns, error)
                self._fault()
            else:
                news = self._golden.passed(sample, now_ns, took_ns)
                if took_ns < self.config.deadline_ms * 1e6 and self._alarms.pop("late", None) is not None:
                    self._late_in_a_row = 0
                self._settle()
        self._changed()
        return news

    def golden_failed_elsewhere(self, sample: GoldenSample, error: str) -> None:
        """Another station's golden sample came out wrong; where a recipe is shared, so is the engine that judges."""
        with self._lock:
            self._distrust_parts(sample.ready)
            views = self._recipes.views if self._recipes is not None else {}
            affected = self._golden.failed_elsewhere(views, sample, error)
            if affected:
                self._fault()
        if affected:
            self._changed()

    def golden_failures(self) -> list[tuple[GoldenSample, str]]:
        """What stands against the recipes of this station: samples that came out wrong, and what was wrong."""
        with self._lock:
            return self._golden.failures()

    def engine_failed(self, inspection: OpenInspection, view: str, error: str) -> bool:
        """The engine could not judge a part's frame; whether that is news. Nobody knows what it does with the next
        one: only a golden sample of the view that comes out right ends the alarm, and one is asked for at once."""
        with self._lock:
            used = inspection.recipe_set.views.get(view) if inspection.recipe_set else None
            if self._recipes is None or not same_recipe(self._recipes.views.get(view), used):
                return False
            news = self._golden.engine_failed(view, self._clock.monotonic_ns(), error)
            self._fault()
        self._changed()
        return news

    def _distrust_parts(self, ready: ReadyRecipe) -> None:
        """Whatever is under way by this recipe gets no verdict; nothing new is accepted while the alarm stands."""
        for inspection in self._open.values():
            bound = inspection.recipe_set.views.values() if inspection.recipe_set else ()
            inspection.distrusted |= any(same_recipe(own, ready) for own in bound)

    # -- status --------------------------------------------------------------------------------------

    def counters(self) -> Counters:
        """The invariant: accepted = ok + not_ok + not_decidable + failed + missed + in_flight."""
        with self._lock:
            return Counters(
                accepted=self._accepted,
                in_flight=len(self._open) + len(self._concluding),
                **{bucket.value: count for bucket, count in self._counts.items()},
            )

    def status(self, utc: str, uptime_ms: float, previous_boot: int | None, previous_last_seq: int) -> Status:
        """The station's status message."""
        with self._lock:
            details: dict[str, object] = {
                "latency_ms": self._latency_quantiles(),
                "outcomes": {bucket.value: dict(reasons) for bucket, reasons in self._reasons.items() if reasons},
                "open": len(self._open),
                "waiting_for_journal": len(self._concluding),
                "second_outcomes": self._second_outcomes,
                "untriggered_frames": {c: s.untriggered for c, s in self._camera_states.items()},
                "camera_counters": {c: s.counters for c, s in self._camera_states.items()},
            }
            if self._binders:
                details["in_step"] = {c: binder.in_step for c, binder in self._binders.items()}
            if self._recipes is not None:
                details["providers"] = sorted({ready.provider for ready in self._recipes.views.values()})
                details["health"] = dict(self._health)
                now_ns = self._clock.monotonic_ns()
                details["golden_age_s"] = {v: round((now_ns - ns) / 1e9, 3) for v, ns in self._golden.good_ns().items()}
                details["recipes"] = {
                    c: f"{r.recipe.manifest.name}@{r.recipe.manifest.version}" for c, r in self._recipes.views.items()
                }
                details["search"] = {
                    c: {"engine": r.choice.engine, "why": r.choice.reason, **self._searches(c)}
                    for c, r in self._recipes.views.items()
                }
            cameras = tuple(
                CameraStatus(
                    camera=camera, connected=s.connected, frames=s.frames, inspected=s.inspected, message=s.message
                )
                for camera, s in self._camera_states.items()
            )
            return Status(
                line=self._identity.line,
                station=self.name,
                boot=self._identity.boot,
                boot_id=self._identity.boot_id,
                utc=utc,
                uptime_ms=uptime_ms,
                state=self._state.value,
                trigger_ready=self._refusal(duplicate=False) is None,
                mode=self.config.mode,
                recipe_set=self._recipes.digest if self._recipes else "",
                counters=self.counters(),
                last_seq=self._last_seq,
                previous_boot=previous_boot,
                previous_last_seq=previous_last_seq,
                cameras=cameras,
                views=self.views,
                alarms=tuple(f"{key}: {message}" for key, message in sorted(self._told().items())),
                details=details,
            )

    def latency(self) -> Distribution:
        """Seconds from trigger to publication, since the start."""
        return self._latency.read()

    def _searches(self, view: str) -> dict[str, float]:
        """Of the view's judged frames of this boot, the mean of patches that had to be searched exactly."""
        judged = self._judged.get(view, 0)
        return {"exact_searches_per_frame": round(self._exact_searches[view] / judged, 2)} if judged else {}

    def _latency_quantiles(self) -> dict[str, float]:
        """Milliseconds from trigger to publication, over the last results."""
        now = self._clock.monotonic_ns()
        if self._latencies_ms and now - self._quantiles_ns >= _QUANTILES_EVERY_NS:
            values = np.percentile(self._latencies_ms, (50, 95, 99))
            self._quantiles = {name: round(float(v), 3) for name, v in zip(("p50", "p95", "p99"), values, strict=True)}
            self._quantiles_ns = now
        return self._quantiles


def _unattached(_work: Work) -> None:
    raise RuntimeError("the station was not attached to the pipeline")


def _nothing() -> None:
    return None


def _unheard(_name: str, _message: str, _severity: str) -> None:
    return None
