"""No path of the dialogue with the PLC sets OK without proof: every fault, every state, every sort of result.

`violations` walks all of them in virtual time against an oracle that knows by construction which record is true. The
tests of the second half break the dialogue on purpose and show that the same walk finds it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.core.decision import Reason
from edge_daemon.gateway import dialogue as module
from edge_daemon.gateway import release
from edge_daemon.gateway.dialogue import RESULTS_KEPT, TABLE, Dialogue, Phase, Signal
from edge_daemon.gateway.events import AskDaemon, PartReported, PlcWrote, ResultCame, StatusCame, Tick, TriggerAnswered
from edge_daemon.gateway.release import DialogueSettings, Job
from edge_daemon.gateway.words import Bits, Block, Command, Disposition, ErrorCode, ReasonCode, ShownResult, Verdict
from edge_daemon.wire.messages import CameraStatus, Inspection, RecipeRef, Status, TriggerReply, ViewMessage
from tests.wire_kit import inspection, view

MS = 1_000_000
ANSWER, WINDOW, HOLD, SILENCE, STANDSTILL, PLC_SILENCE = (ms * MS for ms in (150, 400, 700, 500, 3_000, 600))
HOUR = 3_600_000 * MS
SETTINGS = DialogueSettings(
    station="st1",
    answer_ns=ANSWER,
    window_ns=WINDOW,
    hold_ns=HOLD,
    status_timeout_ns=SILENCE,
    heartbeat_timeout_ns=STANDSTILL,
    plc_timeout_ns=PLC_SILENCE,
    jobs={1: Job("bottle"), 2: Job("flange", recipe_set="ee" * 32)},
)
# Two cameras, one of which takes two exposures of each part: three views.
CAMERAS = ("side", "top")
VIEWS = (("side", "side"), ("top", "top"), ("top#2", "top"))


@cache
def true_record() -> Inspection:
    views = tuple(view(view=name, camera=camera) for name, camera in VIEWS)
    return inspection(station="st1", boot=7, boot_id="b7", recipe_set="aa" * 32, views=views)


@cache
def true_status() -> Status:
    return Status(line="line-1", station="st1", boot=7, boot_id="b7", utc="", uptime_ms=0.0, state="Ready")


@cache
def camera_states(inspected: int) -> tuple[CameraStatus, ...]:
    return tuple(CameraStatus(camera=camera, connected=True, inspected=inspected) for camera in CAMERAS)


@dataclass
class Trigger:
    """What the daemon was asked, and what it would have recorded."""

    acquisition_id: int
    trigger_id: str
    raised_ns: int
    boot: tuple[int, str]
    recipe_set: str
    seq: int
    answered: bool = False
    void: bool = False
    true_since_ns: int | None = None

    @property
    def result_id(self) -> str:
        return f"r-{self.trigger_id}"


@dataclass
class Rig:
    """A PLC, a daemon and the two clocks around a dialogue; every step reads the block and looks for a wrong OK."""

    settings: DialogueSettings = SETTINGS
    wall_clock: bool = False
    mono_ns: int = HOUR
    wall_ns: int = 400 * HOUR
    boot: tuple[int, str] = (7, "b7")
    recipe_set: str = "aa" * 32
    state: str = "Ready"
    mode: str = "production"
    trigger_ready: bool = True
    speaks: bool = True
    inspected: int = 100
    seq: int = 41
    command: Command = field(default_factory=Command)
    triggers: list[Trigger] = field(default_factory=list)
    runs: int = 0
    beats: int = 0
    wrong: list[str] = field(default_factory=list)
    silent_since_ns: int = 0
    """Of the daemon."""
    heartbeat: int = 0

    def __post_init__(self) -> None:
        self.restart_gateway()

    # -- the world -----------------------------------------------------------------------------------

    def restart_gateway(self) -> None:
        self.runs += 1
        self.dialogue = Dialogue(self.settings, f"run{self.runs}")
        self.heartbeat = 0
        self.void()

    def void(self) -> None:
        """The PLC or the gateway begins anew: nobody may be told of parts of before."""
        for trigger in self.triggers:
            trigger.void = True

    @property
    def now(self) -> int:
        return self.wall_ns if self.wall_clock else self.mono_ns

    def feed(self, event: module.Event) -> Block:
        for effect in self.dialogue.feed(event, self.now):
            if isinstance(effect, AskDaemon):
                self.seq += 1
                self.triggers.append(
                    Trigger(
                        self.command.acquisition_id,
                        effect.trigger_id,
                        self.mono_ns,
                        self.boot,
                        self.recipe_set,
                        self.seq,
                    )
                )
        return self.read()

    def read(self) -> Block:
        block = self.dialogue.block(self.now)
        result = block.result
        if result.verdict is Verdict.OK and not any(self.proven(t) for t in self.of(result.acquisition_id)):
            self.wrong.append(f"OK for part {result.acquisition_id}")
        if result.evaluation == 1 and result.verdict is not Verdict.OK:
            self.wrong.append(f"evaluation OK beside {result.verdict.name}")
        if block.heartbeat != self.heartbeat and not self.beats:
            self.wrong.append(f"heartbeat {block.heartbeat} without an inspection")
        self.heartbeat, self.beats = block.heartbeat, 0
        return block

    def of(self, acquisition_id: int) -> list[Trigger]:
        return [t for t in self.triggers if t.acquisition_id == acquisition_id][-1:]

    def proven(self, trigger: Trigger) -> bool:
        """By construction: its own true record came in time, and its OK has not outlived itself."""
        return (
            trigger.true_since_ns is not None
            and trigger.answered
            and not trigger.void
            and trigger.true_since_ns - trigger.raised_ns <= WINDOW
            and self.mono_ns - trigger.raised_ns <= HOLD
        )

    def wait(self, ns: int, cycle_ns: int = 100 * MS) -> None:
        """Time passes; the PLC writes and the daemon speaks meanwhile as they do."""
        while ns > 0:
            step = min(cycle_ns, ns)
            ns -= step
            self.mono_ns += step
            self.wall_ns += step
            self.status()
            self.write()

    # -- the daemon ----------------------------------------------------------------------------------

    def status(self, **changes: object) -> None:
        if not self.speaks:
            self.feed(Tick())
            return
        fields = {
            "station": "st1",
            "boot": self.boot[0],
            "boot_id": self.boot[1],
            "state": self.state,
            "trigger_ready": self.trigger_ready,
            "mode": self.mode,
            "recipe_set": self.recipe_set,
            "last_seq": self.seq,
            "cameras": camera_states(self.inspected),
            "views": tuple(name for name, _ in VIEWS),
        }
        self.feed(StatusCame(true_status().model_copy(update=fields | changes)))

    def inspects(self) -> None:
        """The inspecting path gets through once more."""
        self.inspected += 1
        self.beats += 1
        self.status()

    def answer(self, trigger: Trigger, accepted: bool = True) -> None:
        reply = TriggerReply.model_construct(
            station="st1",
            trigger_id=trigger.trigger_id,
            accepted=accepted,
            result_id=trigger.result_id,
            attempt=1,
            reason="" if accepted else "missed_busy",
        )
        # A trigger that was taken up late may have been given another part's picture.
        trigger.answered |= accepted and self.mono_ns - trigger.raised_ns <= ANSWER
        self.feed(TriggerAnswered(trigger.trigger_id, reply))

    def record(self, trigger: Trigger) -> Inspection:
        return true_record().model_copy(
            update={
                "trigger_id": trigger.trigger_id,
                "result_id": trigger.result_id,
                "boot": trigger.boot[0],
                "boot_id": trigger.boot[1],
                "recipe_set": trigger.recipe_set,
                "seq": trigger.seq,
            }
        )

    def deliver(self, trigger: Trigger, variant: "Variant") -> None:
        if variant.name == "true" and trigger.boot == self.boot and trigger.true_since_ns is None:
            trigger.true_since_ns = self.mono_ns
        self.feed(ResultCame(variant.bend(self.record(trigger)), replayed=variant.replayed))

    # -- the PLC -------------------------------------------------------------------------------------

    def write(self, **changes: object) -> Block:
        self.command = replace(self.command, **changes)  # type: ignore[arg-type]
        return self.feed(PlcWrote(self.command))

    def come_up(self) -> None:
        """Daemon heard, its path seen moving, PLC enabled with Trigger low."""
        self.status()
        self.inspects()
        self.write(trigger_enable=True)

    def trigger(self, acquisition_id: int, job_id: int = 1) -> Trigger | None:
        """Trigger rises; what the daemon was asked, None when it was not."""
        count = len(self.triggers)
        if not self.command.trigger:  # a level that stands is no new part
            for trigger in self.of(acquisition_id):
                trigger.void = True
        self.write(trigger=True, acquisition_id=acquisition_id, job_id=job_id)
        return self.triggers[-1] if len(self.triggers) > count else None

    def part(self, acquisition_id: int) -> Trigger:
        """A part under way: asked, answered, Trigger low again."""
        trigger = self.trigger(acquisition_id)
        assert trigger is not None
        self.answer(trigger)
        self.write(trigger=False)
        return trigger


# -- results: how a record can be untrue ---------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One way to bend the true record; all but `true` prove nothing."""

    name: str
    bend: Callable[[Inspection], Inspection] = lambda record: record
    replayed: bool = False


def changed(name: str, **update: object) -> Variant:
    return Variant(name, lambda record: record.model_copy(update=update))


def bent_view(name: str, **update: object) -> Variant:
    def bend(record: Inspection) -> Inspection:
        first, *others = record.views
        return record.model_copy(update={"views": (first.model_copy(update=update), *others)})

    return Variant(name, bend)


def with_views(name: str, choose: Callable[[tuple[ViewMessage, ...]], tuple[ViewMessage, ...]]) -> Variant:
    return Variant(name, lambda record: record.model_copy(update={"views": choose(record.views)}))


TRUE = Variant("true")
VARIANTS = [
    TRUE,
    Variant("replayed", replayed=True),
    changed("stale", seq=0),
    changed("simulated", simulated=True),
    changed("provisional", provisional=True),
    changed("setup", mode="setup"),
    changed("master part", mode="master_part"),
    changed("bypass", mode="bypass"),
    changed("other trigger", trigger_id="1-run0-1"),
    changed("empty trigger", trigger_id=""),
    changed("other result id", result_id="r-other"),
    changed("empty result id", result_id=""),
    changed("other attempt", attempt=2),
    changed("other station", station="st10"),
    changed("other boot", boot=6),
    changed("other boot id", boot_id="b6"),
    changed("other recipe set", recipe_set="bb" * 32),
    changed("no recipe set", recipe_set=""),
    changed("not journaled", journaled=False),
    changed("late", late=True),
    changed("a reason", reason="camera"),
    changed("failed", result_state="Failed"),
    changed("aborted", result_state="Aborted"),
    changed("undefined", evaluation="Undefined"),
    changed("not ok", evaluation="NotOK"),
    changed("not decidable", evaluation="NotDecidable"),
    with_views("no view", lambda views: views[:0]),
    with_views("a camera missing", lambda views: views[1:]),
    with_views("a view missing", lambda views: views[:2]),
    with_views("a view twice", lambda views: (views[0], views[1], views[1])),
    with_views("a view doubled", lambda views: (*views, views[1])),
    with_views("a view too many", lambda views: (*views, view(view="back", camera="back"))),
    with_views("an exposure too many", lambda views: (*views, view(view="top#3", camera="top"))),
    bent_view("view of another camera", camera="back"),
    bent_view("another view of the camera", view="side#2"),
    bent_view("view without a name", view=""),
    bent_view("view not ok", evaluation="NotOK"),
    bent_view("view undefined", evaluation="Undefined"),
    bent_view("view with a reason", reason="between_thresholds"),
    bent_view("score nan", score=math.nan),
    bent_view("score null", score=None),
    bent_view("score infinite", score=-math.inf),
    bent_view("score negative", score=-1.0),
    bent_view("score above", score=math.nextafter(2.0, 3.0)),
    bent_view("threshold nan", threshold=math.nan),
    bent_view("threshold infinite", threshold=math.inf),
    bent_view("threshold null", threshold=None),
    bent_view("distance nan", max_distance=math.nan),
    bent_view("distance null", max_distance=None),
    bent_view("no recipe", recipe=None),
    bent_view("other job", recipe=RecipeRef(name="flange", version="1", digest="ab" * 32)),
]

# One of each kind: there is no need to meet every fault with every way to spoil a number.
KINDS = (
    "true",
    "replayed",
    "stale",
    "simulated",
    "other trigger",
    "other boot",
    "other recipe set",
    "score nan",
    "not ok",
)
assert {*KINDS} <= {variant.name for variant in VARIANTS}

# -- faults of DESIGN 6 --------------------------------------------------------------------------------


def nothing(rig: Rig) -> None:
    """No fault."""


def station_error(rig: Rig) -> None:
    """Camera gone, provider lost, recipe refused, journal full: the station is in Error."""
    rig.state, rig.trigger_ready = "Error", False
    rig.status()


def camera_hung(rig: Rig) -> None:
    """Status goes on, nothing is inspected."""
    rig.wait(STANDSTILL + 100 * MS)


def busy(rig: Rig) -> None:
    rig.trigger_ready = False
    rig.status()


def recipe_changed(rig: Rig) -> None:
    rig.recipe_set = "bb" * 32
    rig.status()


def journal_slow(rig: Rig) -> None:
    """The verdict hangs in the commit beyond the window."""
    rig.wait(WINDOW + 1)


def daemon_killed(rig: Rig) -> None:
    rig.speaks = False
    rig.wait(SILENCE + 100 * MS)


def daemon_restarted(rig: Rig) -> None:
    """A new boot, its counters and numbers from the start."""
    rig.boot, rig.seq, rig.inspected = (rig.boot[0] + 1, f"b{rig.boot[0] + 1}"), 0, 0
    rig.status()
    rig.inspects()


def daemon_restarted_with_its_number(rig: Rig) -> None:
    """The PC was set up anew: the same boot number, another boot."""
    rig.boot = (rig.boot[0], "b-other")
    rig.status()


def clock_back(rig: Rig) -> None:
    rig.wall_ns -= HOUR
    rig.feed(Tick())


def clock_creeps_back(rig: Rig) -> None:
    """The window passes, and the clock on the wall is set back by as much."""
    rig.wait(WINDOW + 1)
    rig.wall_ns -= WINDOW + 1
    rig.feed(Tick())


def clock_forward(rig: Rig) -> None:
    rig.wall_ns += HOUR
    rig.feed(Tick())


def mode_left(rig: Rig) -> None:
    rig.mode = "setup"
    rig.status()


def gateway_killed(rig: Rig) -> None:
    rig.restart_gateway()
    rig.status()
    rig.inspects()
    rig.write()


def plc_restarted(rig: Rig) -> None:
    """Its memory is zero, and it counts from 1 again."""
    rig.void()
    rig.command = Command()
    rig.write()
    rig.write(trigger_enable=True)


def plc_silent(rig: Rig) -> None:
    rig.void()
    rig.mono_ns += PLC_SILENCE + 1
    rig.wall_ns += PLC_SILENCE + 1
    rig.read()
    rig.status()
    rig.write()


def plc_offline(rig: Rig) -> None:
    rig.void()
    rig.write(set_offline=True)
    rig.write(set_offline=False)


def disabled(rig: Rig) -> None:
    rig.void()
    rig.write(trigger_enable=False)
    rig.write(trigger_enable=True)


def stranger(rig: Rig) -> None:
    """Status and records of a station that is not ours."""
    rig.status(station="st10", boot=99, recipe_set="cc" * 32)


def answer_held_up(rig: Rig) -> None:
    """The daemon stood still when the trigger came, or the network held it up."""
    rig.wait(ANSWER + 1)


def gate_reports(rig: Rig) -> None:
    """That part 1 passed: whatever the gate says, it is no verdict."""
    rig.write(disposition_id=1, disposition=Disposition.PASSED)
    rig.write(disposition_id=0, disposition=0)
    rig.feed(PartReported(1, Disposition.PASSED))


FAULTS = [
    nothing,
    gate_reports,
    answer_held_up,
    station_error,
    camera_hung,
    busy,
    recipe_changed,
    journal_slow,
    daemon_killed,
    daemon_restarted,
    daemon_restarted_with_its_number,
    clock_back,
    clock_creeps_back,
    clock_forward,
    mode_left,
    gateway_killed,
    plc_restarted,
    plc_silent,
    plc_offline,
    disabled,
    stranger,
]

# -- states of the dialogue ----------------------------------------------------------------------------


def phantom(rig: Rig, acquisition_id: int = 1) -> Trigger:
    """A trigger of an earlier gateway: whatever is said of it is stale."""
    trigger = Trigger(acquisition_id, f"{acquisition_id}-run0-1", rig.mono_ns, rig.boot, rig.recipe_set, rig.seq + 1)
    trigger.void = trigger.answered = True
    rig.triggers.append(trigger)
    return trigger


def offline(rig: Rig) -> Trigger:
    rig.status()
    rig.inspects()
    return phantom(rig)


def not_enabled(rig: Rig) -> Trigger:
    rig.come_up()
    rig.write(trigger_enable=False)
    return phantom(rig)


def rearm(rig: Rig) -> Trigger:
    rig.status()
    rig.inspects()
    rig.write(trigger_enable=True, trigger=True, acquisition_id=1)
    return phantom(rig)


def idle(rig: Rig) -> Trigger:
    rig.come_up()
    return phantom(rig)


def asked(rig: Rig) -> Trigger:
    rig.come_up()
    trigger = rig.trigger(1)
    assert trigger is not None
    return trigger


def acknowledged(rig: Rig) -> Trigger:
    trigger = asked(rig)
    rig.answer(trigger)
    return trigger


def under_way(rig: Rig) -> Trigger:
    rig.come_up()
    return rig.part(1)


def missed(rig: Rig) -> Trigger:
    trigger = asked(rig)
    rig.answer(trigger, accepted=False)
    return trigger


def taken_back(rig: Rig) -> Trigger:
    """Trigger fell before its acknowledgement."""
    trigger = asked(rig)
    trigger.void = True
    rig.write(trigger=False)
    return trigger


def after_an_ok(rig: Rig) -> Trigger:
    """Part 1 is OK and shown, part 2 under way."""
    rig.come_up()
    rig.deliver(rig.part(1), TRUE)
    return rig.part(2)


def two_under_way(rig: Rig) -> Trigger:
    """The record that comes is the second part's; the first one waits."""
    rig.come_up()
    rig.part(1)
    return rig.part(2)


def buffer_full(rig: Rig) -> Trigger:
    rig.come_up()
    parts = [rig.part(number) for number in range(1, RESULTS_KEPT + 2)]
    for part in parts[:-1]:
        rig.deliver(part, TRUE)
    return parts[-1]


def id_used_again(rig: Rig) -> Trigger:
    """The PLC counts the id of an open part anew: nothing may be said of it."""
    rig.come_up()
    part = rig.part(1)
    rig.trigger(1)
    rig.write(trigger=False)
    return part


STATES = [
    offline,
    not_enabled,
    rearm,
    idle,
    asked,
    acknowledged,
    under_way,
    missed,
    taken_back,
    after_an_ok,
    two_under_way,
    buffer_full,
    id_used_again,
]


def before_the_fault(rig: Rig, trigger: Trigger, variant: Variant, fault: Callable[[Rig], None]) -> None:
    rig.deliver(trigger, variant)
    fault(rig)


def after_the_fault(rig: Rig, trigger: Trigger, variant: Variant, fault: Callable[[Rig], None]) -> None:
    fault(rig)
    rig.deliver(trigger, variant)


def late(rig: Rig, trigger: Trigger, variant: Variant, fault: Callable[[Rig], None]) -> None:
    fault(rig)
    rig.wait(WINDOW + 1)
    rig.deliver(trigger, variant)


def twice(rig: Rig, trigger: Trigger, variant: Variant, fault: Callable[[Rig], None]) -> None:
    rig.deliver(trigger, variant)
    rig.write(acknowledged_id=trigger.acquisition_id)
    fault(rig)
    rig.deliver(trigger, variant)


TIMINGS = [before_the_fault, after_the_fault, late, twice]


def finish(rig: Rig, trigger: Trigger) -> None:
    """What follows on every path: a late answer, the acknowledgement, and a next part that nobody judges."""
    if not trigger.answered and not trigger.void:
        rig.answer(trigger)
    rig.write(trigger=False)
    for _ in range(2):
        rig.write(acknowledged_id=rig.read().result.acquisition_id)
    following = rig.trigger(1001)
    if following is not None:
        rig.answer(following)
    rig.write(trigger=False)
    rig.wait(HOLD + 1, cycle_ns=350 * MS)


def paths() -> Iterator[tuple[str, Callable[[Rig], None]]]:
    """Every state x timing x sort of record, and every state x fault x timing x kind of record, as a name and what
    happens."""
    kinds = [variant for variant in VARIANTS if variant.name in KINDS]
    combinations = (*product(STATES, [nothing], TIMINGS, VARIANTS), *product(STATES, FAULTS[1:], TIMINGS, kinds))
    for state, fault, timing, variant in combinations:

        def walk(rig: Rig, state=state, fault=fault, timing=timing, variant=variant) -> None:  # type: ignore[no-untyped-def]
            trigger = state(rig)
            timing(rig, trigger, variant, fault)
            finish(rig, trigger)

        yield f"{state.__name__}, {timing.__name__} {fault.__name__}, record {variant.name}", walk


def violations(rig: Callable[[], Rig] = Rig) -> Iterator[str]:
    """Every wrong OK and every heartbeat that nobody inspected for, by path."""
    for name, walk in paths():
        world = rig()
        walk(world)
        yield from (f"{name}: {wrong}" for wrong in world.wrong)


def test_no_path_sets_ok_without_proof() -> None:
    assert list(violations()) == []


def test_the_walk_visits_every_phase_and_every_row_of_the_table() -> None:
    """So that the proof above is about all of it."""
    visited: set[tuple[Phase, Signal]] = set()

    class Watched(Dialogue):
        def _signal(self, signal: Signal) -> bool:
            visited.add((self._phase, signal))
            return super()._signal(signal)

    class WatchedRig(Rig):
        def restart_gateway(self) -> None:
            super().restart_gateway()
            self.dialogue = Watched(self.settings, f"run{self.runs}")

    for state, fault in product(STATES, FAULTS):
        rig = WatchedRig()
        trigger = state(rig)
        fault(rig)
        finish(rig, trigger)
    assert set(TABLE) <= visited


# -- mutants: each breaks one proof, and the walk finds it ----------------------------------------------


def hold_ok_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict of the part before stands while the id is already the next one's."""
    last = [ShownResult()]

    def shown(result: ShownResult | None) -> ShownResult:
        if result is not None and last[0].verdict is Verdict.OK and result.acquisition_id != last[0].acquisition_id:
            return replace(result, verdict=Verdict.OK)
        last[0] = result or last[0]
        return result or ShownResult()

    monkeypatch.setattr(module, "shown", shown)


def compare_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """First in, first out."""
    monkeypatch.setattr(module, "same_trigger", lambda *_: True)
    original = module.foreign

    def foreign(part: module.OpenPart, came: ResultCame, station: str) -> str | None:
        ids = {"result_id": part.result_id, "attempt": part.attempt, "seq": part.after_seq + 1}
        return original(part, replace(came, inspection=came.inspection.model_copy(update=ids)), station)

    monkeypatch.setattr(module, "foreign", foreign)


def make_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Dialogue.block
    monkeypatch.setattr(
        Dialogue, "block", lambda self, now_ns: replace(original(self, now_ns), heartbeat=now_ns // 1_000_000)
    )


def accept_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.foreign
    monkeypatch.setattr(
        module, "foreign", lambda part, came, station: original(part, replace(came, replayed=False), station)
    )


def let_nan_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison the wrong way round: nothing is larger than NaN."""

    def bears_itself_out(record: Inspection) -> bool:
        return not any((view.score or 0) > (view.threshold or 0) for view in record.views)

    monkeypatch.setattr(release, "bears_itself_out", bears_itself_out)


def compare_no_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "same_recipes", lambda *_: True)


def compare_no_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.foreign

    def foreign(part: module.OpenPart, came: ResultCame, station: str) -> str | None:
        boot = {"boot": part.boot[0], "boot_id": part.boot[1]}
        return original(part, replace(came, inspection=came.inspection.model_copy(update=boot)), station)

    monkeypatch.setattr(module, "foreign", foreign)


def take_late_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "answered_in_time", lambda *_: True)


def look_at_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (module, release):
        monkeypatch.setattr(place, "inside_window", lambda *_: True)


def release_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.objection

    def objection(part: module.OpenPart, record: Inspection, settings: DialogueSettings, now_ns: int) -> ReasonCode:
        return original(part, record.model_copy(update={"simulated": False}), settings, now_ns)

    monkeypatch.setattr(module, "objection", objection)


def believe_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passed must have been good."""
    original = Dialogue._report

    def report(self: Dialogue, acquisition_id: int, code: int) -> None:
        original(self, acquisition_id, code)
        for part in self.open_parts:
            if part.acquisition_id == acquisition_id and code == Disposition.PASSED:
                self._end(part, ShownResult(acquisition_id, Verdict.OK, ReasonCode.NONE, 1))

    monkeypatch.setattr(Dialogue, "_report", report)


MUTANTS = [
    believe_the_gate,
    hold_ok_over,
    compare_no_id,
    make_a_heartbeat,
    accept_replays,
    let_nan_pass,
    compare_no_recipe,
    compare_no_boot,
    take_late_answers,
    look_at_no_window,
    release_simulated,
]


@pytest.mark.parametrize("break_it", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_walk_catches_a_dialogue_that_does(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    break_it(monkeypatch)
    assert next(violations(), None) is not None


def test_the_walk_catches_a_window_measured_by_the_clock_on_the_wall() -> None:
    assert next(violations(lambda: Rig(wall_clock=True)), None) is not None


# -- what must work -------------------------------------------------------------------------------------


def ready() -> Rig:
    rig = Rig()
    rig.come_up()
    return rig


def result(rig: Rig) -> ShownResult:
    return rig.read().result


@pytest.mark.parametrize("state", [acknowledged, under_way])
def test_a_true_record_in_time_is_ok_under_the_id_of_its_part(state: Callable[[Rig], Trigger]) -> None:
    rig = Rig()
    trigger = state(rig)
    rig.deliver(trigger, TRUE)
    assert result(rig) == ShownResult(1, Verdict.OK, ReasonCode.NONE, 1, 625, 1)
    assert rig.read().bits & Bits.RESULTS_VALID


def test_a_record_that_is_quicker_than_the_answer_waits_for_it() -> None:
    rig = Rig()
    trigger = asked(rig)
    rig.deliver(trigger, TRUE)
    assert result(rig) == ShownResult()
    rig.answer(trigger)
    assert result(rig).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("variant", "verdict", "reason"),
    [
        ("simulated", Verdict.NO_VERDICT, ReasonCode.SIMULATED),
        ("provisional", Verdict.NO_VERDICT, ReasonCode.PROVISIONAL),
        ("setup", Verdict.NO_VERDICT, ReasonCode.NOT_PRODUCTION),
        ("not ok", Verdict.NOT_OK, ReasonCode.NONE),
        ("not decidable", Verdict.NOT_DECIDABLE, ReasonCode.NONE),
        ("not journaled", Verdict.NO_VERDICT, ReasonCode.NOT_JOURNALED),
        ("score nan", Verdict.NO_VERDICT, ReasonCode.UNPROVEN),
        ("other recipe set", Verdict.NO_VERDICT, ReasonCode.RECIPE_SET),
        ("other job", Verdict.NO_VERDICT, ReasonCode.JOB),
        ("a view missing", Verdict.NO_VERDICT, ReasonCode.VIEWS),
    ],
)
def test_the_reason_says_why_a_part_is_not_ok(variant: str, verdict: Verdict, reason: ReasonCode) -> None:
    rig = ready()
    rig.deliver(rig.part(1), next(v for v in VARIANTS if v.name == variant))
    assert (result(rig).verdict, result(rig).reason) == (verdict, reason)


def test_a_foreign_record_leaves_the_part_open_for_its_own() -> None:
    rig = ready()
    part = rig.part(1)
    for name in ("replayed", "stale", "other boot", "other result id", "other attempt"):
        rig.deliver(part, next(v for v in VARIANTS if v.name == name))
        assert result(rig) == ShownResult()
    rig.deliver(part, TRUE)
    assert result(rig).verdict is Verdict.OK
    assert rig.dialogue.counts.foreign == 5


def test_commissioning_shows_a_simulated_ok_as_another_word_and_never_as_ok() -> None:
    rig = Rig(settings=replace(SETTINGS, commissioning=True))
    rig.come_up()
    assert rig.read().bits & Bits.COMMISSIONING
    rig.deliver(rig.part(1), changed("simulated", simulated=True))
    assert result(rig).verdict is Verdict.COMMISSIONING_OK
    for variant in VARIANTS[1:]:
        rig = Rig(settings=replace(SETTINGS, commissioning=True))
        rig.come_up()
        rig.deliver(rig.part(1), variant)
        assert result(rig).verdict is not Verdict.OK, variant.name


def test_provisional_recipes_release_parts_only_where_the_configuration_says_so() -> None:
    rig = Rig(settings=replace(SETTINGS, accept_provisional=True))
    rig.come_up()
    rig.deliver(rig.part(1), changed("provisional", provisional=True))
    assert result(rig).verdict is Verdict.OK


def test_a_result_stays_until_it_is_acknowledged_by_its_id() -> None:
    rig = ready()
    first, second = rig.part(1), rig.part(2)
    rig.deliver(second, TRUE)
    rig.deliver(first, changed("not ok", evaluation="NotOK"))
    assert result(rig).acquisition_id == 2
    rig.write(acknowledged_id=1)
    assert result(rig).acquisition_id == 2
    rig.write(acknowledged_id=2)
    assert (result(rig).acquisition_id, result(rig).verdict) == (1, Verdict.NOT_OK)
    block = rig.write(acknowledged_id=1)
    assert block.result == ShownResult()
    assert not block.bits & Bits.RESULTS_VALID


def test_an_ok_that_nobody_acknowledges_is_withdrawn_and_keeps_its_id() -> None:
    rig = ready()
    rig.deliver(rig.part(1), TRUE)
    rig.wait(HOLD)
    assert result(rig).verdict is Verdict.OK
    rig.wait(1)
    withdrawn = ShownResult(1, Verdict.WITHDRAWN, ReasonCode.HELD_TOO_LONG, 0, 625, 1)
    assert result(rig) == withdrawn


def test_the_window_is_closed_to_the_nanosecond() -> None:
    for after, verdict in ((WINDOW, Verdict.OK), (WINDOW + 1, Verdict.NO_VERDICT)):
        rig = ready()
        part = rig.part(1)
        rig.wait(after)
        rig.deliver(part, TRUE)
        assert result(rig).verdict is verdict


def test_a_trigger_that_the_daemon_took_up_late_is_missed_and_its_record_releases_nothing() -> None:
    for after, verdict in ((ANSWER, Verdict.OK), (ANSWER + 1, Verdict.NONE)):
        rig = Rig()
        trigger = asked(rig)
        rig.wait(after, cycle_ns=after)
        rig.answer(trigger)
        rig.deliver(trigger, TRUE)
        assert result(rig).verdict is verdict
    assert rig.read().missed_reason is ErrorCode.NO_ANSWER


def test_three_late_parts_in_a_row_raise_an_error_that_stays_until_it_is_cleared() -> None:
    rig = ready()
    for number in (1, 2, 3):
        rig.part(number)
        rig.wait(WINDOW + 1)
        assert result(rig).reason is ReasonCode.WINDOW
        rig.write(acknowledged_id=number)
    assert rig.read().error is ErrorCode.LATE
    assert rig.trigger(4) is None
    assert rig.read().missed_reason is ErrorCode.LATE
    rig.write(trigger=False, clear_error=True)
    assert rig.read().error is ErrorCode.NONE


def test_eight_results_wait_and_one_more_is_an_overrun_that_is_said() -> None:
    rig = Rig()
    ninth = buffer_full(rig)
    assert rig.read().error is ErrorCode.BUFFER_FULL
    assert not rig.read().bits & Bits.TRIGGER_READY
    rig.deliver(ninth, TRUE)
    block = rig.read()
    assert block.unacknowledged == RESULTS_KEPT
    assert block.bits & Bits.BUFFER_OVERRUN
    assert block.error is ErrorCode.BUFFER_OVERRUN
    for number in range(1, RESULTS_KEPT + 1):
        assert result(rig).acquisition_id == number
        rig.write(acknowledged_id=number)
    assert result(rig) == ShownResult()
    assert not rig.write(clear_error=True).bits & Bits.BUFFER_OVERRUN


@pytest.mark.parametrize(
    ("acquisition_id", "job_id", "reason"),
    [
        (0, 1, ErrorCode.ID_INVALID),
        (2**32, 1, ErrorCode.ID_INVALID),
        (5, 9, ErrorCode.JOB_UNKNOWN),
        (5, 2, ErrorCode.RECIPE_NOT_PINNED),
    ],
)
def test_a_trigger_that_cannot_be_right_is_missed_and_says_why(
    acquisition_id: int, job_id: int, reason: ErrorCode
) -> None:
    rig = ready()
    assert rig.trigger(acquisition_id, job_id) is None
    block = rig.read()
    assert block.bits & Bits.MISSED_ACQUISITION
    assert (block.missed_reason, block.trigger_echo) == (reason, acquisition_id)
    block = rig.write(trigger=False)
    assert block.bits & Bits.TRIGGER_READY
    assert (block.missed_reason, block.trigger_echo) == (ErrorCode.NONE, 0)


def test_ids_wrap_and_a_plc_that_restarts_may_begin_with_any() -> None:
    rig = ready()
    for number in (2**32 - 1, 1, 2):
        rig.deliver(rig.part(number), TRUE)
        assert (result(rig).acquisition_id, result(rig).verdict) == (number, Verdict.OK)
        rig.write(acknowledged_id=number)
    plc_restarted(rig)
    rig.deliver(rig.part(1), TRUE)
    assert (result(rig).acquisition_id, result(rig).verdict) == (1, Verdict.OK)
    assert rig.wrong == []


def test_an_id_that_is_still_in_use_is_refused_and_its_older_result_withdrawn() -> None:
    rig = ready()
    rig.deliver(rig.part(1), TRUE)
    assert rig.trigger(1) is None
    assert result(rig) == ShownResult()
    assert rig.read().missed_reason is ErrorCode.ID_IN_USE


def test_trigger_ready_needs_everything() -> None:
    assert ready().read().bits & Bits.TRIGGER_READY
    for fault, error in (
        (station_error, ErrorCode.STATION_ERROR),
        (busy, ErrorCode.STATION_NOT_READY),
        (camera_hung, ErrorCode.HEARTBEAT_STANDS),
        (daemon_killed, ErrorCode.DAEMON_SILENT),
        (mode_left, ErrorCode.NOT_PRODUCTION),
    ):
        rig = ready()
        fault(rig)
        block = rig.read()
        assert (block.error, block.bits & Bits.TRIGGER_READY) == (error, Bits.NONE), fault.__name__


def test_a_station_that_is_busy_still_gets_the_trigger_so_that_its_miss_is_on_record() -> None:
    rig = ready()
    busy(rig)
    trigger = rig.trigger(1)
    assert trigger is not None
    rig.answer(trigger, accepted=False)
    assert rig.read().missed_reason is ErrorCode.DAEMON_REFUSED


def test_the_heartbeat_is_the_slowest_cameras_counter_and_a_restart_is_none() -> None:
    rig = ready()
    assert rig.read().heartbeat == 101
    one_stands = (
        CameraStatus(camera="side", connected=True, inspected=101),
        CameraStatus(camera="top", connected=True, inspected=150),
    )
    rig.status(cameras=one_stands)
    assert rig.read().heartbeat == 101
    rig.boot, rig.inspected = (8, "b8"), 0
    rig.status()
    assert rig.read().heartbeat == 101
    rig.inspects()
    assert rig.read().heartbeat == 1


def test_a_dead_daemon_stops_the_heartbeat_and_ends_every_open_part() -> None:
    rig = ready()
    rig.part(1)
    before = rig.read().heartbeat
    rig.speaks = False
    rig.wait(WINDOW - 100 * MS)
    rig.mono_ns += SILENCE
    block = rig.read()
    assert block.heartbeat == before
    assert (block.error, block.result.reason) == (ErrorCode.DAEMON_SILENT, ReasonCode.DAEMON_SILENT)
    assert not block.bits & (Bits.ONLINE | Bits.TRIGGER_READY | Bits.SYSTEM_BUSY)


def test_a_trigger_level_from_before_the_gateway_started_is_no_new_part() -> None:
    rig = Rig()
    rearm(rig)
    assert rig.dialogue.phase is Phase.REARM
    assert [t for t in rig.triggers if not t.void] == []


def test_the_words_of_the_daemon_have_codes_and_an_unknown_one_is_other() -> None:
    codes = {ReasonCode.of_wire(reason.value) for reason in Reason} - {ReasonCode.NONE, ReasonCode.OTHER}
    assert {*codes, ReasonCode.NOT_LOCATED} == {
        code for code in ReasonCode if ReasonCode.LATE <= code < ReasonCode.OTHER
    }
    assert {ReasonCode.of_wire(word) for word in ("from a newer daemon", "none", "window")} == {ReasonCode.OTHER}


def test_any_two_code_words_differ_in_eight_bits_and_none_is_ok_with_its_bytes_swapped() -> None:
    words = [int(word) for word in Verdict]
    assert all(bin(a ^ b).count("1") >= 8 for a, b in product([*words, 0xFFFF], repeat=2) if a != b)
    assert int.from_bytes(int(Verdict.OK).to_bytes(2, "big"), "little") not in words


ACTIONS: list[Callable[[Rig], object]] = [
    *(lambda rig, n=n: rig.trigger(n) for n in (1, 2, 3)),
    *(lambda rig, n=n: rig.write(acknowledged_id=n) for n in (1, 2, 3)),
    lambda rig: rig.write(trigger=False),
    lambda rig: rig.inspects(),
    lambda rig: rig.wait(150 * MS),
    lambda rig: rig.write(clear_error=not rig.command.clear_error),
    lambda rig: [rig.answer(t) for t in rig.triggers[-1:] if not t.answered],
    lambda rig: [rig.deliver(t, TRUE) for t in rig.triggers[-1:]],
    lambda rig: [rig.deliver(t, TRUE) for t in rig.triggers[-2:-1]],
    lambda rig: [rig.deliver(t, VARIANTS[1]) for t in rig.triggers[-1:]],
    *FAULTS,
]


@given(st.lists(st.sampled_from(ACTIONS), max_size=40))
def test_no_sequence_of_events_sets_ok_without_proof(actions: list[Callable[[Rig], object]]) -> None:
    rig = ready()
    for action in actions:
        action(rig)
    assert rig.wrong == []
