"""A station: accepts triggers, keeps what is open, and gives each trigger exactly one outcome."""

import hashlib
import json
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edge_daemon.config import StationConfig
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
from edge_daemon.core.states import State, StationEvent, step
from edge_daemon.edges.journal import Intent
from edge_daemon.errors import JournalError
from edge_daemon.pipeline.inspection import LiveRecipeSet, OpenInspection, ViewOutcome
from edge_daemon.pipeline.messages import Identity, inspection_message
from edge_daemon.wire.messages import CameraStatus, Counters, Inspection, Mode, Status

# Late results in a row after which the station stops taking triggers (the trade's rule: three).
_LATE_LIMIT = 3
_LATENCIES_KEPT = 2048
# Status goes out up to a hundred times a second; quantiles of two thousand numbers need not.
_QUANTILES_EVERY_NS = 1_000_000_000


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
    camera: str
    frame: Frame


@dataclass(slots=True)
class _CameraState:
    connected: bool = False
    message: str = "not connected yet"
    frames: int = 0
    inspected: int = 0
    untriggered: int = 0
    counters: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)


class Station:
    """State of one station. Every method may be called from any thread; none of them blocks on I/O."""

    def __init__(self, name: str, config: StationConfig, identity: Identity, clock: Clock, outbox: Outbox) -> None:
        self.name = name
        self.config = config
        self.cameras = tuple(view.camera for view in config.views)
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
        self._open: dict[str, OpenInspection] = {}
        self._concluding: dict[str, int] = {}
        self._counts = dict.fromkeys(Bucket, 0)
        self._accepted = 0
        self._last_seq = 0
        self._late_in_a_row = 0
        self._second_outcomes = 0
        self._latencies_ms: deque[float] = deque(maxlen=_LATENCIES_KEPT)
        self._quantiles: dict[str, float] = {}
        self._quantiles_ns = 0
        self._camera_states = {camera: _CameraState() for camera in self.cameras}
        self._last_inspected_ns = dict.fromkeys(self.cameras, 0)
        self._camera_settings_digest = ""
        self._simulated = False
        self._submit: Callable[[Work], None] = _unattached
        self._request_frame: Mapping[str, Callable[[OpenInspection], None]] = {}
        self._changed: Callable[[], None] = _nothing
        self._on_pictures: Callable[[OpenInspection, Inspection], None] | None = None

    def attach(
        self,
        submit: Callable[[Work], None],
        request_frame: Mapping[str, Callable[[OpenInspection], None]],
        simulated: bool,
        changed: Callable[[], None],
        on_pictures: Callable[[OpenInspection, Inspection], None] | None,
    ) -> None:
        """Connect the neighbours: who judges frames, who grabs them by camera, who hears of changes and
        who makes pictures. simulated: any camera shows no real part."""
        self._submit, self._request_frame, self._simulated = submit, request_frame, simulated
        self._changed, self._on_pictures = changed, on_pictures

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
        inspection, verdict = self._accept(trigger_id, part_id, job, mode)
        if verdict is not None and verdict.state is ResultState.ABORTED:
            self._finish(inspection, verdict)
            ack(Acceptance(False, inspection.result_id, inspection.attempt, verdict.reason))
            return

        def durable(error: JournalError | None) -> None:
            if error is not None:
                self._finish(inspection, Verdict(Evaluation.UNDEFINED, ResultState.FAILED, Reason.JOURNAL))
            reason = Reason.NONE if error is None else Reason.JOURNAL
            ack(Acceptance(error is None, inspection.result_id, inspection.attempt, reason))

        self._outbox.intend(self._intent(inspection), durable)
        if verdict is not None:
            self._finish(inspection, verdict)
            return
        for camera in self.cameras:
            self._request_frame[camera](inspection)

    def frame_without_trigger(self, camera: str, frame: Frame) -> None:
        """A frame of a free-running camera: its own trigger."""
        inspection, verdict = self._accept(f"{camera}-{frame.frame_id}", None, None, None)
        inspection.frames[camera] = frame
        if verdict is not None:
            self._finish(inspection, verdict)
            return
        self._outbox.intend(self._intent(inspection), lambda error: self._intent_failed(inspection, error))
        self.frame_arrived(inspection, camera, frame)

    def frame_lost(self, camera: str) -> None:
        """A free-running camera lost one frame, and a part with it perhaps: a trigger that failed."""
        inspection, verdict = self._accept(f"{camera}-lost-{uuid.uuid4().hex[:8]}", None, None, None)
        failed = Verdict(Evaluation.UNDEFINED, ResultState.FAILED, Reason.CAMERA)
        self._finish(inspection, verdict if verdict is not None else failed)

    def _intent_failed(self, inspection: OpenInspection, error: JournalError | None) -> None:
        if error is not None:
            self._finish(inspection, Verdict(Evaluation.UNDEFINED, ResultState.FAILED, Reason.JOURNAL))

    def _accept(
        self, trigger_id: str, part_id: str | None, job: str | None, mode: Mode | None
    ) -> tuple[OpenInspection, Verdict | None]:
        """Count the trigger and bind it to the active recipe set. The verdict is given where none is to
        be sought: missed, or a job that does not match."""
        now, anchor = self._clock.monotonic_ns(), self._clock.utc()
        # A station that is not in production can never be raised to it by a request.
        effective: Mode = (mode or "production") if self.config.mode == "production" else self.config.mode
        attempts = self._outbox.attempts(self.name, trigger_id)
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
            event = StationEvent.TRIGGER if self.config.trigger == "software" else StationEvent.RUN
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

    def frame_arrived(self, inspection: OpenInspection, camera: str, frame: Frame) -> None:
        """A view's frame is there; it is judged unless the inspection has ended meanwhile."""
        with self._lock:
            self._camera_states[camera].frames += 1
            if inspection.finished or camera in inspection.outcomes:
                return
            inspection.frames[camera] = frame
            inspection.camera_settings_digest = self._camera_settings_digest
        self._submit(Work(self, inspection, camera, frame))

    def view_done(self, inspection: OpenInspection, camera: str, outcome: ViewOutcome) -> None:
        """A view was judged, or could not be. The last one ends the inspection."""
        with self._lock:
            if outcome.evidence is not None:
                self._inspected(camera)
            if inspection.finished or camera in inspection.outcomes:  # a view that has failed stays so
                self._second_outcomes += 1
                return
            inspection.outcomes[camera] = outcome
            if len(inspection.outcomes) < len(self.cameras):
                return
            views = [inspection.outcomes[c].verdict for c in self.cameras]
        self._finish(inspection, combine(views, expected_views=len(self.cameras)))

    def _inspected(self, camera: str) -> None:
        self._camera_states[camera].inspected += 1
        self._last_inspected_ns[camera] = self._clock.monotonic_ns()

    def _finish(self, inspection: OpenInspection, verdict: Verdict) -> None:
        """The first terminal outcome wins; a judgement past the deadline is Failed/late, whatever it says."""
        with self._lock:
            if inspection.finished:
                self._second_outcomes += 1
                return
            past = self._clock.monotonic_ns() > inspection.deadline_ns
            if past and verdict.state is ResultState.COMPLETED:
                verdict = Verdict(Evaluation.UNDEFINED, ResultState.FAILED, Reason.LATE)
            inspection.finished = True
            del self._open[inspection.result_id]
            self._concluding[inspection.result_id] = inspection.accepted_ns
            self._count_late(verdict)
            if not self._open and self._state in (State.SINGLE_EXECUTION, State.CONTINUOUS_EXECUTION):
                self._state = step(self._state, StationEvent.IDLE)
            self._room.notify_all()
        pictures = self._wants_pictures(inspection, verdict)
        draft = inspection_message(
            self._identity, self.name, inspection, verdict, self.config.deadline_ms, past, pictures
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
        """End every inspection whose deadline has passed: no frame, or judged too late."""
        with self._lock:
            expired = [i for i in self._open.values() if now_ns >= i.deadline_ns]
            for inspection in expired:
                for camera in self.cameras:
                    reason = Reason.LATE if camera in inspection.frames else Reason.NO_FRAME
                    if camera not in inspection.frames and camera not in inspection.outcomes:
                        # Its reader would have said so long before the deadline, were it not stuck.
                        self._raise_alarm(f"silent {camera}", f"camera {camera} hangs: no answer by the deadline")
                    inspection.outcomes.setdefault(camera, ViewOutcome.failed(reason, inspection.frames.get(camera)))
        for inspection in expired:
            reasons = {o.verdict.reason for o in inspection.outcomes.values() if not o.verdict.judged}
            reason = Reason.NO_FRAME if Reason.NO_FRAME in reasons else Reason.LATE
            self._finish(inspection, Verdict(Evaluation.UNDEFINED, ResultState.FAILED, reason))

    def next_deadline_ns(self) -> int | None:
        """Monotonic time of the first deadline still open."""
        with self._lock:
            return min((i.deadline_ns for i in self._open.values()), default=None)

    def published(self, record: Inspection) -> None:
        """A record went out (called by the outbox, in the order of seq)."""
        with self._lock:
            bucket = bucket_of(Evaluation.from_label(record.evaluation), ResultState(record.result_state))
            self._counts[bucket] += 1
            self._last_seq = max(self._last_seq, record.seq)
            accepted_ns = self._concluding.pop(record.result_id, None)
            if accepted_ns is None:
                # A trigger of the boot before, which ends in this one.
                self._accepted += 1
            else:
                self._latencies_ms.append((self._clock.monotonic_ns() - accepted_ns) / 1e6)
        self._changed()

    # -- readiness -----------------------------------------------------------------------------------

    def activate(self, recipes: LiveRecipeSet) -> None:
        """Judge every trigger accepted from now on by this set. Inspections under way keep theirs."""
        with self._lock:
            self._recipes = recipes
            self._clear_alarm("recipes")
            if self._state is State.PREOPERATIONAL:
                self._state = step(self._state, StationEvent.RECIPES_VERIFIED)
            self._settle()
        self._changed()

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

    def health_seen(self, camera: str, measures: Mapping[str, float]) -> None:
        """What was measured of a camera's last picture, for the status."""
        with self._lock:
            self._health[camera] = measures

    def _raise_alarm(self, key: str, message: str) -> None:
        self._alarms[key] = message
        if self._state is not State.HALTED:
            self._state = step(self._state, StationEvent.FAULT)

    def _clear_alarm(self, key: str) -> None:
        self._alarms.pop(key, None)
        self._settle()

    def _settle(self) -> None:
        """Up from Error to Ready as far as recipes, cameras and alarms allow."""
        if self._alarms or self._recipes is None:
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
        self._changed()

    def camera_down(self, camera: str, message: str, reason: Reason = Reason.CAMERA) -> None:
        """The camera is gone: Trigger Ready drops, then whatever waits for a frame of it fails, not at the
        deadline but now."""
        with self._lock:
            self._camera_states[camera].connected = False
            self._camera_states[camera].message = message
            self._raise_alarm(f"camera {camera}", message)
            waiting = [i for i in self._open.values() if camera not in i.frames and camera not in i.outcomes]
        for inspection in waiting:
            self.view_done(inspection, camera, ViewOutcome.failed(reason))
        self._changed()

    def camera_answers(self, camera: str) -> None:
        """The camera's reader is not stuck in a call that hangs, or no longer."""
        self.all_clear(f"silent {camera}")

    def camera_counters(self, camera: str, counters: Mapping[str, int]) -> None:
        """What the camera and its stream have counted so far, for status and metrics."""
        with self._lock:
            self._camera_states[camera].counters = dict(counters)

    def camera_settings(self, camera: str, settings: Mapping[str, str | int | float | bool]) -> None:
        """The settings that were read back from the open camera; the digest of all cameras' goes into results."""
        with self._lock:
            self._camera_states[camera].settings = dict(settings)
            of_all = {name: state.settings for name, state in self._camera_states.items() if state.settings}
            text = json.dumps(of_all, sort_keys=True, separators=(",", ":"))
            self._camera_settings_digest = hashlib.sha256(text.encode()).hexdigest() if of_all else ""

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
            if self._alarms:
                self._state = step(self._state, StationEvent.FAULT)
            self._settle()
            self._room.notify_all()
        self._changed()

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
            alarms = (*self._alarms, *self._warnings)
            return refusal is None or busy_only, alarms, self._recipes.digest if self._recipes else ""

    # -- golden samples when idle --------------------------------------------------------------------

    def golden_due(self, now_ns: int) -> str | None:
        """The camera whose golden sample should be inspected now; None while a trigger is open or all are fresh."""
        period_ns = int(self.config.idle_check_s * 1e9)
        with self._lock:
            if period_ns == 0 or self._open or self._recipes is None or self._state is State.HALTED:
                return None
            stalest = min(self.cameras, key=lambda camera: self._last_inspected_ns[camera])
            return stalest if now_ns - self._last_inspected_ns[stalest] >= period_ns else None

    def golden_done(self, camera: str, took_ns: int, error: str | None) -> None:
        """A golden sample was inspected in `took_ns`, rightly or not. A pass in time ends the alarm `late`."""
        with self._lock:
            self._inspected(camera)
            if error is not None:
                self._raise_alarm(f"golden {camera}", error)
            else:
                self._clear_alarm(f"golden {camera}")
                if took_ns < self.config.deadline_ms * 1e6 and "late" in self._alarms:
                    self._late_in_a_row = 0
                    self._clear_alarm("late")
        self._changed()

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
                "open": len(self._open),
                "waiting_for_journal": len(self._concluding),
                "second_outcomes": self._second_outcomes,
                "untriggered_frames": {c: s.untriggered for c, s in self._camera_states.items()},
                "camera_counters": {c: s.counters for c, s in self._camera_states.items()},
            }
            if self._recipes is not None:
                details["providers"] = sorted({ready.provider for ready in self._recipes.views.values()})
                details["health"] = dict(self._health)
                details["recipes"] = {
                    c: f"{r.recipe.manifest.name}@{r.recipe.manifest.version}" for c, r in self._recipes.views.items()
                }
                details["search"] = {
                    c: {"engine": r.choice.engine, "why": r.choice.reason} for c, r in self._recipes.views.items()
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
                alarms=tuple(f"{key}: {message}" for key, message in sorted((self._alarms | self._warnings).items())),
                details=details,
            )

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
