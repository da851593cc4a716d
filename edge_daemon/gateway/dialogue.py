"""The dialogue with a PLC about one station (DESIGN 5.8). Pure: time is an argument, events in, effects and block out.

The handshake of the trigger is one table, `TABLE`. Beside it stand the parts under way and the results that the PLC has
not acknowledged, oldest first, at most eight; the PLC sees the oldest.

What the PLC took of a verdict, and what it reports of the part afterwards, goes out as `Tell`: for the record, and read
by nothing here.

OK is set by `_conclude` alone, for a part that is open, when nothing in `foreign` and nothing in `objection` speaks
against the result (`gateway.release`).
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from edge_daemon.gateway.events import (
    AskDaemon,
    Effect,
    Event,
    Note,
    PartReported,
    PlcWrote,
    ResultCame,
    StatusCame,
    Tell,
    Tick,
    TriggerAnswered,
)
from edge_daemon.gateway.release import (
    DialogueSettings,
    OpenPart,
    answered_in_time,
    foreign,
    inside_window,
    objection,
    same_trigger,
    score_permille,
)
from edge_daemon.gateway.words import (
    LARGEST_ID,
    Bits,
    Block,
    Command,
    Disposition,
    ErrorCode,
    ReasonCode,
    ShownResult,
    Station,
    Verdict,
)
from edge_daemon.wire.messages import Delivery, Inspection, Status, TriggerReply

RESULTS_KEPT: Final = 8
"""Results that wait to be acknowledged; one more is an overrun, said so."""
_PARTS_OPEN: Final = 64
# Between photo-eye and reject sensor, and some more: of older ones no disposition is known any more.
_PARTS_KNOWN: Final = 1_024
_MAY_HAVE_PASSED: Final = (Disposition.PASSED, Disposition.GATE_FAILURE)
_TOO_LATE: Final = (ReasonCode.WINDOW, ReasonCode.HELD_TOO_LONG, ReasonCode.DAEMON_SILENT, ReasonCode.DAEMON_RESTARTED)
_LATE_IN_A_ROW: Final = 3
_EVALUATIONS: Final = {Verdict.OK: 1, Verdict.NOT_OK: 2, Verdict.NOT_DECIDABLE: 3}
_STATE_NUMBERS: Final = {state.value: number for number, state in enumerate(Station, start=1)}


class Phase(StrEnum):
    """Where the handshake of the trigger stands."""

    OFFLINE = "offline"
    DISABLED = "disabled"
    REARM = "rearm"
    IDLE = "idle"
    ASKED = "asked"
    ACKNOWLEDGED = "acknowledged"
    MISSED = "missed"


class Signal(StrEnum):
    """What moves the handshake."""

    LOST = "PLC lost or set offline"
    HEARD = "PLC heard"
    DISABLE = "Trigger Enable low"
    ENABLE = "Trigger Enable high"
    RAISED = "Trigger high"
    RELEASED = "Trigger low"
    TAKEN = "trigger taken"
    REFUSED = "trigger refused"


_P, _S = Phase, Signal
_HEARD_PHASES = (_P.DISABLED, _P.REARM, _P.IDLE, _P.ASKED, _P.ACKNOWLEDGED, _P.MISSED)

TABLE: Final[dict[tuple[Phase, Signal], Phase]] = {
    **{(phase, _S.LOST): _P.OFFLINE for phase in _P},
    **{(phase, _S.DISABLE): _P.DISABLED for phase in _HEARD_PHASES},
    (_P.OFFLINE, _S.HEARD): _P.DISABLED,
    # Trigger must be seen low first: a level that an earlier gateway has served is not a new part.
    (_P.DISABLED, _S.ENABLE): _P.REARM,
    (_P.REARM, _S.RELEASED): _P.IDLE,
    (_P.IDLE, _S.RAISED): _P.ASKED,
    (_P.ASKED, _S.TAKEN): _P.ACKNOWLEDGED,
    (_P.ASKED, _S.REFUSED): _P.MISSED,
    # The PLC gave up: the part stays unjudged, whatever the daemon says of it later.
    (_P.ASKED, _S.RELEASED): _P.IDLE,
    (_P.ACKNOWLEDGED, _S.RELEASED): _P.IDLE,
    (_P.MISSED, _S.RELEASED): _P.IDLE,
}
"""(phase, signal) -> phase. A signal without a row changes nothing."""


@dataclass(slots=True)
class _Held:
    """A result that waits to be acknowledged. until_ns: when an OK in it ends."""

    part: OpenPart
    result: ShownResult
    until_ns: int


@dataclass(slots=True)
class _Heard:
    """The daemon's last status, when it came, and what the gateway makes of the inspecting path's counter."""

    status: Status
    at_ns: int
    counter: int
    moved_ns: int | None = None


@dataclass(slots=True)
class _Known:
    """A part that the PLC may still report on. asked: whether the daemon can have a record of it; verdict: the word
    that could release it, whatever became of that later; told: dispositions so far."""

    trigger_id: str
    raised_ns: int
    asked: bool = False
    result_id: str = ""
    verdict: Verdict = Verdict.NONE
    reason: ReasonCode = ReasonCode.NONE
    told: set[Disposition] = field(default_factory=set)


@dataclass(slots=True)
class DialogueCounts:
    """For metrics and tests. stray: records of no open part; foreign: such as name one and are not its answer;
    verdicts: as they were shown first; withdrawn: OKs among them that ended unacknowledged; delivered, disposed: by
    their words on the wire; passed_without_ok: parts that may have passed although no OK was shown; unknown_parts:
    dispositions of parts that this start of the gateway did not trigger, or of no known code."""

    triggers: int = 0
    missed: int = 0
    ok: int = 0
    not_ok: int = 0
    no_verdict: int = 0
    overruns: int = 0
    stray: int = 0
    foreign: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    missed_for: Counter[ErrorCode] = field(default_factory=Counter)
    withdrawn: int = 0
    delivered: Counter[str] = field(default_factory=Counter)
    disposed: Counter[str] = field(default_factory=Counter)
    passed_without_ok: int = 0
    unknown_parts: int = 0

    def copy(self) -> "DialogueCounts":
        """One that does not change any more."""
        return deepcopy(self)


class Dialogue:
    """One station's dialogue. `feed` takes what happened, `block` is what the PLC may read at that moment.

    run: id of this start of the gateway, part of every trigger id, so that neither a record of an earlier gateway nor
    one of an earlier round of the PLC's ids is ever taken for an answer.
    Times must not go back. Not thread-safe.
    """

    def __init__(self, settings: DialogueSettings, run: str) -> None:
        self.settings = settings
        self.counts = DialogueCounts()
        self._run = run
        self._phase = Phase.OFFLINE
        self._command = Command()
        self._seen_ns: int | None = None
        self._heard: _Heard | None = None
        self._heartbeat = 0
        self._open: dict[str, OpenPart] = {}
        self._asked: str | None = None
        self._echo = 0
        self._missed_reason = ErrorCode.NONE
        self._held: deque[_Held] = deque()
        self._latched = ErrorCode.NONE
        self._late = 0
        self._known: OrderedDict[int, _Known] = OrderedDict()
        self._reported = (0, 0)
        self._now_ns = 0
        self._effects: list[Effect] = []

    @property
    def phase(self) -> Phase:
        return self._phase

    def plc_silence_ns(self, now_ns: int) -> int | None:
        """How long ago the PLC wrote, None when it counts as gone. For metrics."""
        return None if self._seen_ns is None else now_ns - self._seen_ns

    def heartbeat_age_ns(self, now_ns: int) -> int | None:
        """How long the inspecting path has stood still, None when it was never seen moving. For metrics."""
        moved_ns = self._heard.moved_ns if self._heard is not None else None
        return None if moved_ns is None else now_ns - moved_ns

    def daemon_silence_ns(self, now_ns: int) -> int | None:
        """How long ago the daemon spoke, None before its first word. For metrics."""
        return None if self._heard is None else now_ns - self._heard.at_ns

    @property
    def open_parts(self) -> Sequence[OpenPart]:
        return tuple(self._open.values())

    def feed(self, event: Event, now_ns: int) -> list[Effect]:
        """What happened, when; what is to be done about it. Raises nothing on any sequence of events."""
        # A sign of life after the silence limit must not hide the silence.
        self._let_time_pass(now_ns)
        match event:
            case PlcWrote(command):
                self._seen_ns = now_ns
                self._plc_wrote(command, now_ns)
            case StatusCame(status):
                self._status_came(status, now_ns)
            case TriggerAnswered(trigger_id, reply):
                self._answered(trigger_id, reply, now_ns)
            case ResultCame():
                self._result_came(event, now_ns)
            case PartReported(acquisition_id, disposition):
                self._dispose(acquisition_id, disposition)
            case Tick():
                pass
        effects, self._effects = self._effects, []
        return effects

    def block(self, now_ns: int) -> Block:
        """What the PLC reads at this moment; whatever ran out of time until now is gone from it."""
        self._let_time_pass(now_ns)
        error = self._obstacle(now_ns)
        bits = 0
        for bit, on in (
            (Bits.ONLINE, self._phase is not Phase.OFFLINE and self._fresh(now_ns) is not None),
            (Bits.TRIGGER_READY, self._phase is Phase.IDLE and error is ErrorCode.NONE),
            (Bits.TRIGGER_ACK, self._phase is Phase.ACKNOWLEDGED),
            (Bits.MISSED_ACQUISITION, self._phase is Phase.MISSED),
            (Bits.SYSTEM_BUSY, bool(self._open)),
            (Bits.RESULTS_VALID, bool(self._held)),
            (Bits.BUFFER_OVERRUN, self._latched is ErrorCode.BUFFER_OVERRUN),
            (Bits.ERROR, error not in (ErrorCode.NONE, ErrorCode.STATION_NOT_READY, ErrorCode.BUFFER_FULL)),
            (Bits.COMMISSIONING, self.settings.commissioning),
        ):
            bits += int(bit) if on else 0
        return Block(
            bits=Bits(bits),
            error=error,
            trigger_echo=self._echo if self._phase in (Phase.ACKNOWLEDGED, Phase.MISSED) else 0,
            missed_reason=self._missed_reason if self._phase is Phase.MISSED else ErrorCode.NONE,
            heartbeat=self._heartbeat,
            station_state=_STATE_NUMBERS.get(self._heard.status.state, 0) if self._heard else 0,
            unacknowledged=len(self._held),
            open_parts=len(self._open),
            result=shown(self._held[0].result if self._held else None),
        )

    # -- time ----------------------------------------------------------------------------------------

    def _let_time_pass(self, now_ns: int) -> None:
        self._now_ns = now_ns
        if self._seen_ns is not None and now_ns - self._seen_ns > self.settings.plc_timeout_ns:
            self._lose_plc()
        if self._heard is not None and self._fresh(now_ns) is None:
            for part in self.open_parts:
                self._end_without_verdict(part, ReasonCode.DAEMON_SILENT)
        for part in self.open_parts:
            if part.result_id is None and not answered_in_time(part, self.settings, now_ns):
                self._give_up(part)
            elif not inside_window(part, self.settings, now_ns):
                self._end_without_verdict(part, ReasonCode.WINDOW)
                self._late += 1
                if self._late >= _LATE_IN_A_ROW:
                    self._latched = ErrorCode.LATE
        for held in self._held:
            if now_ns > held.until_ns and held.result.verdict in (Verdict.OK, Verdict.COMMISSIONING_OK):
                self._note(f"part {held.result.acquisition_id}: its OK was not acknowledged in time and is withdrawn")
                self.counts.withdrawn += 1
                held.result = replace(
                    held.result, verdict=Verdict.WITHDRAWN, evaluation=0, reason=ReasonCode.HELD_TOO_LONG
                )

    def _give_up(self, part: OpenPart) -> None:
        """The daemon may still take this trigger, and then the camera sees whatever lies there by then."""
        del self._open[part.trigger_id]
        self._deliver(part, "missed")
        if self._asked == part.trigger_id:
            self._miss(ErrorCode.NO_ANSWER)

    def _fresh(self, now_ns: int) -> _Heard | None:
        """What was heard of the daemon, None when that is too long ago."""
        heard = self._heard
        if heard is None or now_ns - heard.at_ns > self.settings.status_timeout_ns:
            return None
        return heard

    def _obstacle(self, now_ns: int) -> ErrorCode:
        """Why no trigger can be taken now, the worst first."""
        heard = self._fresh(now_ns)
        if self._latched is not ErrorCode.NONE:
            return self._latched
        if heard is None:
            return ErrorCode.DAEMON_SILENT
        if heard.moved_ns is None or now_ns - heard.moved_ns > self.settings.heartbeat_timeout_ns:
            return ErrorCode.HEARTBEAT_STANDS
        if heard.status.state == Station.ERROR:
            return ErrorCode.STATION_ERROR
        if heard.status.mode != "production" and not self.settings.commissioning:
            return ErrorCode.NOT_PRODUCTION
        if not heard.status.trigger_ready:
            return ErrorCode.STATION_NOT_READY
        return ErrorCode.BUFFER_FULL if len(self._held) >= RESULTS_KEPT else ErrorCode.NONE

    # -- the PLC -------------------------------------------------------------------------------------

    def _signal(self, signal: Signal) -> bool:
        """Whether the table has a row for it."""
        following = TABLE.get((self._phase, signal))
        if following is None:
            return False
        self._phase = following
        return True

    def _lose_plc(self) -> None:
        if self._phase is not Phase.OFFLINE:
            self._note(f"the PLC is silent; {len(self._open)} parts under way are forgotten")
        self._seen_ns = None
        self._signal(Signal.LOST)
        self._forget()

    def _forget(self) -> None:
        """Nobody waits for these any more; what comes of them later is for the record only."""
        for part in self._open.values():
            self._deliver(part, "abandoned")
        for held in self._held:
            self._deliver(held.part, "not_fetched", held.result)
        self._open.clear()
        self._held.clear()
        self._asked = None
        self._late = 0

    def _plc_wrote(self, command: Command, now_ns: int) -> None:
        before, self._command = self._command, command
        self._report(command.disposition_id, command.disposition)
        if command.set_offline:
            self._signal(Signal.LOST)
            self._forget()
            return
        self._signal(Signal.HEARD)
        if not command.trigger_enable:
            self._signal(Signal.DISABLE)
            self._forget()
        else:
            self._signal(Signal.ENABLE)
        if command.clear_error and not before.clear_error:
            self._latched, self._late = ErrorCode.NONE, 0
        self._acknowledge(command.acknowledged_id)
        if not command.trigger:
            self._release()
        elif self._signal(Signal.RAISED):
            self._raise(command, now_ns)

    def _acknowledge(self, acquisition_id: int) -> None:
        """The PLC has taken the result that it sees, by its id: the next one may be seen. Any other id is nothing."""
        if self._held and acquisition_id == self._held[0].result.acquisition_id:
            held = self._held.popleft()
            self._deliver(held.part, "late" if held.result.reason in _TOO_LATE else "acknowledged", held.result)

    def _release(self) -> None:
        asked = self._phase is Phase.ASKED
        if self._signal(Signal.RELEASED) and asked and self._asked is not None:
            part = self._open.pop(self._asked, None)
            if part is not None:
                self._deliver(part, "abandoned")
            self._note(f"part {part.acquisition_id if part else '?'}: the PLC took its trigger back before the answer")
        self._asked = None if self._phase is Phase.IDLE else self._asked

    def _raise(self, command: Command, now_ns: int) -> None:
        """A trigger. It goes to the daemon whenever that can bind it to a record, also when it will be missed."""
        self.counts.triggers += 1
        self._echo = command.acquisition_id
        heard = self._fresh(now_ns)
        refusal = self._refusal(command, heard)
        trigger_id = f"{command.acquisition_id}-{self._run}-{self.counts.triggers}"
        known = self._know(command.acquisition_id, trigger_id, now_ns)
        if refusal is not ErrorCode.NONE or heard is None:
            self._miss(refusal)
            return
        status, job = heard.status, self.settings.jobs.get(command.job_id)
        known.asked = True
        self._open[trigger_id] = OpenPart(
            acquisition_id=command.acquisition_id,
            trigger_id=trigger_id,
            job_id=command.job_id,
            job=job,
            boot=(status.boot, status.boot_id),
            recipe_set=status.recipe_set,
            views=status.views,
            cameras=frozenset(camera.camera for camera in status.cameras),
            after_seq=status.last_seq,
            raised_ns=now_ns,
        )
        self._asked = trigger_id
        self._effects.append(AskDaemon(trigger_id, job.name if job else None))

    def _refusal(self, command: Command, heard: _Heard | None) -> ErrorCode:
        """Why a trigger is not even passed on."""
        acquisition_id, job = command.acquisition_id, self.settings.jobs.get(command.job_id)
        if not 0 < acquisition_id <= LARGEST_ID:
            return ErrorCode.ID_INVALID
        if self._withdraw(acquisition_id):
            return ErrorCode.ID_IN_USE
        if self._latched is not ErrorCode.NONE:
            return self._latched
        if heard is None:
            return ErrorCode.DAEMON_SILENT
        if len(self._held) >= RESULTS_KEPT:
            return ErrorCode.BUFFER_FULL
        if len(self._open) >= _PARTS_OPEN:
            return ErrorCode.TOO_MANY_OPEN
        if command.job_id and job is None:
            return ErrorCode.JOB_UNKNOWN
        if job is not None and job.recipe_set is not None and job.recipe_set != heard.status.recipe_set:
            return ErrorCode.RECIPE_NOT_PINNED
        return ErrorCode.NONE

    def _withdraw(self, acquisition_id: int) -> bool:
        """The PLC counts this id anew while an older part still has it: nothing may be said of either."""
        parts = [part for part in self._open.values() if part.acquisition_id == acquisition_id]
        held = [held for held in self._held if held.result.acquisition_id == acquisition_id]
        for part in parts:
            del self._open[part.trigger_id]
            self._deliver(part, "abandoned")
        for entry in held:
            self._held.remove(entry)
            self._deliver(entry.part, "not_fetched", entry.result)
        return bool(parts or held)

    def _miss(self, reason: ErrorCode) -> None:
        self.counts.missed += 1
        self.counts.missed_for[reason] += 1
        self._missed_reason = reason
        self._asked = None
        self._signal(Signal.REFUSED)
        self._note(f"part {self._echo}: trigger missed, {reason.name}")

    # -- the daemon ----------------------------------------------------------------------------------

    def _status_came(self, status: Status, now_ns: int) -> None:
        if status.station != self.settings.station:
            return
        before, counter = self._heard, path_counter(status)
        same_boot = before is not None and (before.status.boot, before.status.boot_id) == (status.boot, status.boot_id)
        moved = before.moved_ns if before is not None and same_boot else None
        if before is not None and same_boot and counter > before.counter:
            # Only what the inspecting path counted inside one boot is a beat; a restart alone is none.
            self._heartbeat, moved = beat(counter), now_ns
        self._heard = _Heard(status, now_ns, counter, moved)
        if not same_boot:
            for part in self.open_parts:
                if part.boot != (status.boot, status.boot_id):
                    self._end_without_verdict(part, ReasonCode.DAEMON_RESTARTED)

    def _answered(self, trigger_id: str, reply: TriggerReply | None, now_ns: int) -> None:
        part = self._open.get(trigger_id)
        if part is None:
            return
        known = self._known_as(part)
        if known is not None:
            known.asked = reply is not None
            known.result_id = (reply.result_id if reply is not None else None) or ""
        if reply is None or not reply.accepted or not reply.result_id or reply.station != self.settings.station:
            del self._open[trigger_id]
            if reply is not None:  # without an answer nothing was sent, and there is no record
                self._deliver(part, "missed")
            if self._asked == trigger_id:
                self._miss(ErrorCode.NO_ANSWER if reply is None else ErrorCode.DAEMON_REFUSED)
            return
        part.result_id, part.attempt = reply.result_id, reply.attempt
        if self._asked == trigger_id:
            self._asked = None
            self._signal(Signal.TAKEN)
        if part.early is not None:
            self._result_came(part.early, now_ns)

    def _result_came(self, came: ResultCame, now_ns: int) -> None:
        part = next((part for part in self._open.values() if same_trigger(part, came.inspection)), None)
        if part is None:
            self.counts.stray += 1
            return
        if part.result_id is None:
            # The daemon's answer is on its way on another socket; without it nothing says whose record this is.
            part.early = came
            return
        why = foreign(part, came, self.settings.station)
        if why is not None:
            self.counts.foreign += 1
            self._note(f"part {part.acquisition_id}: a record of its trigger is passed over, {why}")
            return
        self._conclude(part, came.inspection, now_ns)

    def _conclude(self, part: OpenPart, record: Inspection, now_ns: int) -> None:
        """The one place that sets OK."""
        self._late = 0
        verdict, reason = Verdict.NO_VERDICT, ReasonCode.of_wire(record.reason)
        if record.evaluation == "OK":
            reason = objection(part, record, self.settings, now_ns)
            if reason is ReasonCode.NONE:
                verdict = Verdict.OK
            elif self.settings.commissioning and reason in (ReasonCode.SIMULATED, ReasonCode.NOT_PRODUCTION):
                verdict = Verdict.COMMISSIONING_OK
        elif record.result_state == "Completed" and record.evaluation in ("NotOK", "NotDecidable"):
            verdict = Verdict.NOT_OK if record.evaluation == "NotOK" else Verdict.NOT_DECIDABLE
        result = ShownResult(
            acquisition_id=part.acquisition_id,
            verdict=verdict,
            reason=reason,
            # Never 1 beside a verdict that is not OK: somebody will look at the wrong register.
            evaluation=_EVALUATIONS.get(verdict, 0),
            score_permille=score_permille(record),
            job_id=part.job_id,
        )
        self._end(part, result)

    def _end_without_verdict(self, part: OpenPart, reason: ReasonCode) -> None:
        if self._asked == part.trigger_id:  # never taken: Missed Acquisition says it, and there is no result
            del self._open[part.trigger_id]
            self._deliver(part, "missed")
            self._miss(ErrorCode.NO_ANSWER)
            return
        self._end(part, ShownResult(part.acquisition_id, Verdict.NO_VERDICT, reason, job_id=part.job_id))

    def _end(self, part: OpenPart, result: ShownResult) -> None:
        del self._open[part.trigger_id]
        if result.verdict is Verdict.NO_VERDICT:
            self.counts.no_verdict += 1
            self._note(f"part {part.acquisition_id}: no verdict, {result.reason.name}")
        self.counts.ok += result.verdict is Verdict.OK
        self.counts.not_ok += result.verdict in (Verdict.NOT_OK, Verdict.NOT_DECIDABLE)
        self.counts.verdicts[result.verdict] += 1
        if len(self._held) >= RESULTS_KEPT:
            self.counts.overruns += 1
            self._latched = ErrorCode.BUFFER_OVERRUN
            self._note(f"part {part.acquisition_id}: its result is lost, {RESULTS_KEPT} wait to be acknowledged")
            self._deliver(part, "overrun")
            return
        self._held.append(_Held(part, result, part.raised_ns + self.settings.hold_ns))
        known = self._known_as(part)
        if known is not None:
            known.verdict, known.reason = result.verdict, result.reason

    # -- for the record ------------------------------------------------------------------------------

    def _know(self, acquisition_id: int, trigger_id: str, now_ns: int) -> _Known:
        """The newest part of this id is the one that a report is about."""
        self._known.pop(acquisition_id, None)
        known = self._known[acquisition_id] = _Known(trigger_id, now_ns)
        while len(self._known) > _PARTS_KNOWN:
            self._known.popitem(last=False)
        return known

    def _known_as(self, part: OpenPart) -> _Known | None:
        known = self._known.get(part.acquisition_id)
        return known if known is not None and known.trigger_id == part.trigger_id else None

    def _deliver(self, part: OpenPart, what: Delivery, result: ShownResult | None = None) -> None:
        """The end of a verdict's way. result: what was shown."""
        self.counts.delivered[what] += 1
        known = self._known_as(part)
        self._effects.append(
            Tell(
                "delivery",
                what,
                part.acquisition_id,
                part.trigger_id,
                part.result_id or (known.result_id if known is not None else ""),
                result.verdict if result is not None else Verdict.NONE,
                result.reason if result is not None else ReasonCode.NONE,
                self._now_ns - part.raised_ns,
            )
        )

    def _report(self, acquisition_id: int, code: int) -> None:
        """What the PLC says became of a part. It writes so in every cycle until it has something else to say."""
        before, self._reported = self._reported, (acquisition_id, code)
        if self._reported != before and 0 not in self._reported:
            self._dispose(acquisition_id, code)

    def _dispose(self, acquisition_id: int, code: int) -> None:
        known = self._known.get(acquisition_id)
        if known is None or code not in {int(known_code) for known_code in Disposition}:
            self.counts.unknown_parts += 1
            self._note(f"part {acquisition_id}: the PLC reports {code} of it, and nothing is known of that here")
            return
        disposition = Disposition(code)
        if disposition in known.told:
            return
        known.told.add(disposition)
        what = disposition.name.lower()
        self.counts.disposed[what] += 1
        may_have_passed = disposition in _MAY_HAVE_PASSED
        released = known.verdict is Verdict.OK or (
            known.verdict is Verdict.COMMISSIONING_OK and self.settings.commissioning
        )
        if may_have_passed and not released:
            self.counts.passed_without_ok += 1
            self._note(f"part {acquisition_id}: {what} AND NOT RELEASED ({known.verdict.name}, {known.reason.name})")
        if known.asked or may_have_passed:  # of a part that nobody asked about only the accident is worth telling
            self._effects.append(
                Tell(
                    "disposition",
                    what,
                    acquisition_id,
                    known.trigger_id,
                    known.result_id,
                    known.verdict,
                    known.reason,
                    self._now_ns - known.raised_ns,
                )
            )

    def _note(self, text: str) -> None:
        self._effects.append(Note(f"{self.settings.station}: {text}"))


def shown(result: ShownResult | None) -> ShownResult:
    """What stands in the block for the oldest unacknowledged result; nothing of an earlier one remains."""
    return result if result is not None else ShownResult()


def path_counter(status: Status) -> int:
    """What only the inspecting path advances; of several cameras the one that is furthest behind."""
    return min((camera.inspected for camera in status.cameras), default=0)


def beat(counter: int) -> int:
    """The counter as the PLC reads it, in 32 bit."""
    return counter & LARGEST_ID
