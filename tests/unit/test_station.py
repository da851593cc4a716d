"""A station in virtual time: every trigger ends in exactly one record, and nothing unjudged is OK."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edge_daemon.config import StationConfig
from edge_daemon.core.binding import BindFault
from edge_daemon.core.clock import UtcAnchor
from edge_daemon.core.decision import Evaluation, Evidence, Reason, ViewVerdict
from edge_daemon.core.frame import Frame
from edge_daemon.edges.journal_entries import Intent
from edge_daemon.engines.choice import Choice
from edge_daemon.errors import JournalError
from edge_daemon.pipeline.golden import GoldenSample
from edge_daemon.pipeline.inspection import LiveRecipeSet, OpenInspection, ViewOutcome
from edge_daemon.pipeline.messages import Identity
from edge_daemon.pipeline.station import Acceptance, Station, Work
from edge_daemon.wire.messages import Inspection

MS = 1_000_000


class FakeClock:
    def __init__(self) -> None:
        self.now = 1_000_000_000

    def monotonic_ns(self) -> int:
        return self.now

    def utc(self) -> UtcAnchor:
        return UtcAnchor("2026-01-01T00:00:00.000000Z", 100, "ntp")


class FakeOutbox:
    """Keeps what a journal would; `durable` decides when intents are told."""

    def __init__(self) -> None:
        self.intents: dict[str, tuple[Intent, Callable[[JournalError | None], None]]] = {}
        self.records: list[Inspection] = []
        self.unpublished: list[Inspection] = []

    def intend(self, intent: Intent, on_durable: Callable[[JournalError | None], None]) -> None:
        self.intents[intent.result_id] = (intent, on_durable)

    def conclude(self, draft: Inspection) -> None:
        record = draft.model_copy(update={"seq": len(self.records) + 1})
        self.records.append(record)
        self.unpublished.append(record)

    def attempts(self, station: str, trigger_id: str) -> int:
        return sum((r.station, r.trigger_id) == (station, trigger_id) for r in self.records)


def live_recipes(
    cameras: tuple[str, ...], digest: str = "d" * 64, health: object = "some", camera: object = None
) -> LiveRecipeSet:
    thresholds = SimpleNamespace(lower=1.0, upper=1.0, pixel=1.0)
    manifest = SimpleNamespace(
        name="bottle",
        version="1",
        provisional=False,
        thresholds=thresholds,
        backbone=SimpleNamespace(precision="fp32"),
        view=SimpleNamespace(um_per_px=None),
        health=health,
        camera=camera,
    )
    golden = tuple(SimpleNamespace(file=file) for file in ("good.png", "damaged.png", "other.png"))
    recipe = SimpleNamespace(manifest=manifest, digest=digest, golden=golden, signed="nobody")
    ready = SimpleNamespace(recipe=recipe, provider="CPU", choice=Choice("flat", "rule"))
    return LiveRecipeSet.of(cast(Any, dict.fromkeys(cameras, ready)))


class Line:
    """A station with everything around it in the test's hand."""

    def __init__(self, cameras: tuple[str, ...] = ("top",), exposures: int = 1, **config: object) -> None:
        self.clock = FakeClock()
        self.outbox = FakeOutbox()
        views = [
            {"camera": camera, "recipe": "bottle", "exposure": exposure + 1}
            for camera in cameras
            for exposure in range(exposures)
        ]
        settings = StationConfig.model_validate({"views": views, "deadline_ms": 100, "queue": 1, **config})
        identity = Identity("line1", 1, "boot", "test", "digest")
        self.station = Station("st1", settings, identity, self.clock, self.outbox)
        self.work: list[Work] = []
        self.requests: list[tuple[str, OpenInspection]] = []
        self.acks: list[Acceptance] = []

        def request(camera: str) -> Callable[[OpenInspection], None]:
            return lambda inspection: self.requests.append((camera, inspection))

        self.station.attach(
            self.work.append, {camera: request(camera) for camera in cameras}, False, lambda: None, None
        )
        self.cameras = cameras

    def ready(self) -> "Line":
        self.station.activate(live_recipes(self.station.views))
        for camera in self.cameras:
            self.station.camera_up(camera)
        return self

    def trigger(self, trigger_id: str = "1", **more: Any) -> None:
        self.station.trigger(trigger_id, self.acks.append, **more)

    def frame(self, index: int = 0) -> None:
        camera, inspection = self.requests[index]
        pixels = np.zeros((2, 2, 3), np.uint8)
        self.station.frame_arrived(inspection, camera, Frame(camera, 7, pixels, self.clock.now))

    def judged(self, evaluation: Evaluation, index: int = 0, score: float = 0.5) -> None:
        work = self.work[index]
        evidence = Evidence(score, score, (), "exact")
        outcome = ViewOutcome(ViewVerdict(evaluation, Reason.NONE), work.frame, evidence, judged_ns=self.clock.now)
        self.station.view_done(work.inspection, work.view, outcome)

    def golden(
        self,
        file: str = "good.png",
        error: str | None = None,
        took_ms: int = 5,
        view: str = "top",
        recipes: LiveRecipeSet | None = None,
    ) -> bool:
        """A golden sample was inspected, of the active recipes unless others are given."""
        live = recipes or self.station.recipes
        assert live is not None
        (golden,) = (golden for golden in live.views[view].recipe.golden if golden.file == file)
        return self.station.golden_done(GoldenSample(view, live.views[view], golden), took_ms * MS, error)

    def engine_failed(self, error: str, index: int = 0) -> bool:
        """The engine gave no judgement of this frame."""
        news = self.station.engine_failed(self.work[index].inspection, self.work[index].view, error)
        if not self.work[index].inspection.finished:
            self.station.view_done(
                self.work[index].inspection, self.work[index].view, ViewOutcome.failed(Reason.ENGINE)
            )
        return news

    def alarm_texts(self) -> tuple[str, ...]:
        return self.station.status("", 0.0, None, 0).alarms

    def publish(self) -> None:
        while self.outbox.unpublished:
            self.station.published(self.outbox.unpublished.pop(0))

    @property
    def last(self) -> Inspection:
        return self.outbox.records[-1]

    def ready_now(self) -> bool:
        return self.station.status("", 0.0, None, 0).trigger_ready


class PulsedLine(Line):
    """A station whose parts are announced, and pulses that bring frames: 1 ms to 5 ms from the announcement to the
    exposure, 2 ms to 20 ms on to the frame."""

    def __init__(self, cameras: tuple[str, ...] = ("top",), **config: object) -> None:
        times = {"earliest_ms": 1, "latest_ms": 5, "shortest_delay_ms": 2, "longest_delay_ms": 20, "quiet_ms": 700}
        super().__init__(cameras, trigger="hardware", hardware=times, **config)
        self.exposures = dict.fromkeys(cameras, 0)

    def ready(self) -> "PulsedLine":
        super().ready()
        self.silence()
        return self

    def wait(self, ms: float) -> None:
        """Time passes, and the readers look whether there is a frame."""
        until = self.clock.now + round(ms * MS)
        while self.clock.now < until:
            self.clock.now = min(until, self.clock.now + 10 * MS)
            for camera in self.cameras:
                self.station.pulses_fetched(camera, self.clock.now)

    def silence(self) -> None:
        self.wait(720)

    def exposed(self, camera: str = "top", part: int = 0, lost: bool = False, off_ms: float = 0) -> None:
        """An exposure of 3 ms ago is complete; its pixels say which part lay there."""
        frame = self.picture(camera, part, off_ms)
        if not lost:
            self.station.frame_of_pulse(camera, frame)

    def picture(self, camera: str, part: int, off_ms: float = 0) -> Frame:
        self.exposures[camera] += 1
        number, exposed_ns = self.exposures[camera], self.clock.now - 3 * MS + round(off_ms * MS)
        pixels = np.full((2, 2, 3), part % 256, np.uint8)
        return Frame(camera, number, pixels, self.clock.now, device_frame_id=number, exposed_ns=exposed_ns)

    def part(self, number: int, camera: str = "top", **more: Any) -> None:
        """One part, announced and exposed."""
        self.trigger(str(number))
        self.wait(6)
        self.exposed(camera, number, **more)

    def alarms(self) -> str:
        return " ".join(self.station.status("", 0.0, None, 0).alarms)

    def reasons(self) -> dict[str, str]:
        return {record.trigger_id: record.reason or record.evaluation for record in self.outbox.records}


def test_a_good_part_is_ok_once_its_frame_was_judged_in_time() -> None:
    line = Line().ready()
    line.trigger()
    line.frame()
    line.judged(Evaluation.OK)
    assert (line.last.evaluation, line.last.result_state, line.last.seq) == ("OK", "Completed", 1)
    assert line.last.views[0].score == 0.5
    assert not line.last.late


def test_the_acknowledgement_waits_for_the_durable_intent() -> None:
    line = Line().ready()
    line.trigger()
    assert line.acks == []
    (_, durable) = next(iter(line.outbox.intents.values()))
    durable(None)
    assert [a.accepted for a in line.acks] == [True]


def test_an_intent_that_is_not_durable_fails_the_part() -> None:
    line = Line().ready()
    line.trigger()
    (_, durable) = next(iter(line.outbox.intents.values()))
    durable(JournalError("disk full"))
    assert [(a.accepted, a.reason) for a in line.acks] == [(False, Reason.JOURNAL)]
    assert (line.last.evaluation, line.last.reason) == ("Undefined", "journal")
    line.frame()
    assert line.work == []
    assert len(line.outbox.records) == 1


def test_a_judgement_after_the_deadline_is_failed_late_and_never_ok() -> None:
    line = Line().ready()
    line.trigger()
    line.frame()
    line.clock.now += 100 * MS + 1
    line.judged(Evaluation.OK)
    assert (line.last.evaluation, line.last.result_state, line.last.reason) == ("Undefined", "Failed", "late")
    assert line.last.late


def test_the_deadline_ends_an_inspection_whose_frame_never_came_and_a_later_frame_changes_nothing() -> None:
    line = Line().ready()
    line.trigger()
    line.clock.now += 100 * MS
    line.station.expire(line.clock.now)
    assert (line.last.result_state, line.last.reason) == ("Failed", "no_frame")
    assert not line.ready_now(), "a camera that hangs would fail the next part too"
    line.station.camera_answers("top")
    assert line.ready_now()
    line.frame()
    line.station.expire(line.clock.now + 1000 * MS)
    assert len(line.outbox.records) == 1
    assert line.work == []


def test_a_judgement_of_an_expired_inspection_is_a_diagnostic_and_no_second_record() -> None:
    line = Line().ready()
    line.trigger()
    line.frame()
    line.clock.now += 101 * MS
    line.station.expire(line.clock.now)
    line.judged(Evaluation.OK)
    assert [r.reason for r in line.outbox.records] == ["late"]
    assert line.station.status("", 0, None, 0).details["second_outcomes"] == 1


def test_triggers_beyond_the_queue_are_missed_counted_and_published() -> None:
    line = Line(queue=1).ready()
    for name in ("1", "2", "3"):
        line.trigger(name)
    assert [(a.accepted, a.reason) for a in line.acks] == [(False, Reason.MISSED_BUSY)]
    assert (line.last.trigger_id, line.last.result_state, line.last.evaluation) == ("3", "Aborted", "Undefined")
    line.publish()
    counters = line.station.counters()
    assert (counters.accepted, counters.missed, counters.in_flight) == (3, 1, 2)


def test_a_trigger_id_that_is_still_open_is_missed_and_a_later_one_is_the_next_attempt() -> None:
    line = Line(queue=5).ready()
    line.trigger("7")
    line.trigger("7")
    assert (line.last.reason, line.last.attempt) == ("missed_duplicate", 2)
    line.frame()
    line.judged(Evaluation.OK)
    line.trigger("7")
    assert len(line.requests) == 2
    assert line.requests[1][1].attempt == 3


@pytest.mark.parametrize("how", ["no recipe", "no camera", "halted", "alarm"])
def test_a_station_that_is_not_ready_misses_the_trigger_and_says_so(how: str) -> None:
    line = Line()
    if how != "no recipe":
        line.station.activate(live_recipes(("top",)))
    if how != "no camera":
        line.station.camera_up("top")
    if how == "halted":
        line.station.halt()
    if how == "alarm":
        line.station.alarm("journal", "disk full")
    assert not line.ready_now()
    line.trigger()
    assert line.last.result_state == "Aborted"
    assert line.last.evaluation == "Undefined"
    assert line.requests == []


def test_a_lost_camera_fails_the_pending_trigger_at_once_and_drops_trigger_ready() -> None:
    line = Line().ready()
    line.trigger()
    line.station.camera_down("top", "cable pulled")
    assert (line.last.result_state, line.last.reason) == ("Failed", "camera")
    assert not line.ready_now()
    line.station.camera_up("top")
    assert line.ready_now()


def test_the_worst_view_rules_and_a_view_that_is_missing_is_never_ok() -> None:
    line = Line(cameras=("left", "right")).ready()
    line.trigger()
    line.frame(0)
    line.judged(Evaluation.OK, 0)
    assert line.outbox.records == []
    line.clock.now += 100 * MS
    line.station.expire(line.clock.now)
    assert (line.last.evaluation, line.last.result_state, line.last.reason) == ("Undefined", "Failed", "no_frame")
    assert [v.evaluation for v in line.last.views] == ["OK", "Undefined"]


def test_a_job_that_does_not_match_the_active_recipes_is_not_decidable() -> None:
    line = Line().ready()
    line.trigger(job="capsule")
    assert (line.last.evaluation, line.last.reason) == ("NotDecidable", "job_mismatch")
    assert line.requests == []
    line.trigger("2", job="bottle")
    assert len(line.requests) == 1


def test_three_late_results_in_a_row_raise_error_until_a_golden_sample_passes_in_time() -> None:
    line = Line(queue=5).ready()
    for index in range(3):
        line.trigger(str(index))
        line.frame(index)
        line.clock.now += 200 * MS
        line.judged(Evaluation.OK, index)
    status = line.station.status("", 0.0, None, 0)
    assert status.state == "Error"
    assert not status.trigger_ready
    line.golden(took_ms=500)
    assert not line.ready_now()
    line.golden(took_ms=5)
    assert line.ready_now()


def test_an_inspection_keeps_the_recipes_it_was_accepted_with() -> None:
    line = Line(queue=5).ready()
    line.trigger("1")
    before = line.station.recipes
    line.station.activate(live_recipes(("top",), "e" * 64))
    line.trigger("2")
    line.frame(0)
    line.judged(Evaluation.OK, 0)
    assert before is not None
    assert line.last.recipe_set == before.digest
    assert line.last.views[0].recipe is not None
    assert line.last.views[0].recipe.digest == "d" * 64


def test_recipes_without_health_limits_are_an_alarm_that_leaves_the_station_ready() -> None:
    line = Line(cameras=("left", "right")).ready()
    assert line.alarm_texts() == ()
    line.station.activate(live_recipes(("left", "right"), "e" * 64, health=None))
    left, right = line.alarm_texts()
    assert left.startswith("no health limits left: its recipe does not say what a picture must be like")
    assert right.startswith("no health limits right")
    assert line.ready_now()
    line.station.activate(live_recipes(("left", "right")))
    assert line.alarm_texts() == ()


def test_a_request_never_raises_a_setup_station_to_production() -> None:
    line = Line(mode="setup").ready()
    line.trigger(mode="production")
    assert line.requests[0][1].mode == "setup"


class AnyOrder(RuleBasedStateMachine):
    """Triggers, frames, verdicts, faults and time in any order: the invariant of the design holds at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.line = Line(cameras=("left", "right"), queue=3).ready()
        self.count = 0

    @rule(again=st.booleans())
    def trigger(self, again: bool) -> None:
        self.count += not again
        self.line.trigger(str(self.count))

    @precondition(lambda self: self.line.requests)
    @rule(data=st.data())
    def frame(self, data: st.DataObject) -> None:
        self.line.frame(data.draw(st.integers(0, len(self.line.requests) - 1)))

    @precondition(lambda self: self.line.work)
    @rule(data=st.data(), evaluation=st.sampled_from([Evaluation.OK, Evaluation.NOT_OK, Evaluation.UNDEFINED]))
    def judged(self, data: st.DataObject, evaluation: Evaluation) -> None:
        self.line.judged(evaluation, data.draw(st.integers(0, len(self.line.work) - 1)))

    @rule(ms=st.integers(1, 120))
    def time_passes(self, ms: int) -> None:
        self.line.clock.now += ms * MS
        self.line.station.expire(self.line.clock.now)

    @rule(camera=st.sampled_from(["left", "right"]), up=st.booleans())
    def camera(self, camera: str, up: bool) -> None:
        if up:
            self.line.station.camera_up(camera)
        else:
            self.line.station.camera_down(camera, "gone")

    @precondition(lambda self: self.line.outbox.intents)
    @rule(data=st.data(), fails=st.booleans())
    def intent_durable(self, data: st.DataObject, fails: bool) -> None:
        # By place, not by name: names are random and would make the choice differ between runs.
        place = data.draw(st.integers(0, len(self.line.outbox.intents) - 1))
        key = list(self.line.outbox.intents)[place]
        _, told = self.line.outbox.intents.pop(key)
        told(JournalError("full") if fails else None)

    @rule()
    def publish(self) -> None:
        self.line.publish()

    @invariant()
    def every_trigger_is_accounted_for(self) -> None:
        assert self.line.station.counters().balanced

    @invariant()
    def no_trigger_has_two_records(self) -> None:
        ids = [record.result_id for record in self.line.outbox.records]
        assert len(ids) == len(set(ids))

    @invariant()
    def ok_is_proven_by_every_view_in_time(self) -> None:
        for record in self.line.outbox.records:
            if record.evaluation == "OK":
                assert [view.evaluation for view in record.views] == ["OK", "OK"]
                assert not record.late
                assert record.result_state == "Completed"

    def teardown(self) -> None:
        self.line.clock.now += 1_000 * MS
        self.line.station.expire(self.line.clock.now)
        self.line.publish()
        counters = self.line.station.counters()
        assert counters.in_flight == 0
        assert counters.accepted == len(self.line.outbox.records)


AnyOrder.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyOrder = AnyOrder.TestCase


def test_what_whoever_triggers_must_hear_of_at_once_is_trigger_ready_alarms_and_recipes() -> None:
    line = Line(queue=0).ready()
    fit = line.station.standing
    assert fit[0]
    line.trigger()
    assert not line.station.standing[0], "busy: Trigger Ready has dropped"
    line.frame()
    line.judged(Evaluation.OK)
    line.publish()
    assert line.station.standing == fit
    line.station.alarm("journal", "disk full")
    assert line.station.standing[:2] == (False, ("journal",))
    line.station.all_clear("journal")
    assert line.station.standing == fit


def test_a_free_running_station_that_is_only_busy_keeps_its_standing() -> None:
    line = Line(queue=0, trigger="free_run").ready()
    fit = line.station.standing
    line.station.frame_without_trigger("top", Frame("top", 1, np.zeros((2, 2, 3), np.uint8), line.clock.now))
    assert not line.ready_now()
    assert line.station.standing == fit
    line.station.halt()
    assert not line.station.standing[0]


def test_the_time_of_a_free_running_frame_counts_from_its_exposure_and_not_from_when_it_was_fetched() -> None:
    line = Line(trigger="free_run", deadline_ms=100, queue=5).ready()
    begun_ns = line.clock.now
    line.clock.now += 80 * MS
    for number in (1, 2):
        frame = Frame("top", number, np.zeros((2, 2, 3), np.uint8), line.clock.now)
        line.station.frame_without_trigger("top", frame, begun_ns if number == 1 else None)
    line.clock.now += 30 * MS
    line.judged(Evaluation.OK, 0)
    assert (line.last.evaluation, line.last.reason, line.last.late) == ("Undefined", "late", True)
    assert line.last.times.utc == "2025-12-31T23:59:59.920000Z"
    assert line.last.times.frame_us == 80_000
    line.judged(Evaluation.OK, 1)
    assert line.last.evaluation == "OK"


# -- several exposures of one part --------------------------------------------------------------------


def test_two_exposures_of_one_camera_are_two_views_and_the_worst_rules() -> None:
    line = Line(exposures=2).ready()
    line.trigger()
    assert [camera for camera, _ in line.requests] == ["top"], "its reader takes both, one after the other"
    inspection = line.requests[0][1]
    for number, (view, evaluation) in enumerate([("top", Evaluation.OK), ("top#2", Evaluation.NOT_OK)]):
        line.station.frame_arrived(inspection, view, Frame("top", number + 1, np.zeros((2, 2, 3), np.uint8), 0))
        line.judged(evaluation, number)
    assert line.last.evaluation == "NotOK"
    assert [(v.view, v.camera, v.evaluation, v.frame_ids) for v in line.last.views] == [
        ("top", "top", "OK", (1,)),
        ("top#2", "top", "NotOK", (2,)),
    ]


def test_an_exposure_that_is_missing_is_never_ok() -> None:
    line = Line(exposures=2).ready()
    line.trigger()
    line.frame()
    line.judged(Evaluation.OK)
    assert line.outbox.records == []
    line.station.camera_down("top", "gone")
    assert (line.last.evaluation, line.last.result_state, line.last.reason) == ("Undefined", "Failed", "camera")
    assert [v.evaluation for v in line.last.views] == ["OK", "Undefined"]


def test_status_names_the_views_that_every_judged_part_has() -> None:
    assert Line(exposures=3).ready().station.status("", 0.0, None, 0).views == ("top", "top#2", "top#3")


def test_status_says_how_many_patches_of_a_frame_were_searched_exactly() -> None:
    line = Line(queue=5).ready()
    assert line.station.status("", 0.0, None, 0).details["search"]["top"] == {"engine": "flat", "why": "rule"}
    for number, searches in enumerate((3, 4)):
        line.trigger(str(number))
        line.frame(number)
        evidence = Evidence(0.5, 0.5, (), "exact", exact_searches=searches)
        outcome = ViewOutcome(ViewVerdict(Evaluation.OK, Reason.NONE), line.work[number].frame, evidence)
        line.station.view_done(line.work[number].inspection, "top", outcome)
    assert line.station.status("", 0.0, None, 0).details["search"]["top"]["exact_searches_per_frame"] == 3.5


# -- pulses on a wire -----------------------------------------------------------------------------------


def test_a_station_with_pulses_is_ready_after_silence_and_not_before() -> None:
    line = PulsedLine()
    Line.ready(line)
    assert not line.ready_now()
    assert "out of step top" in line.alarms()
    assert "stop the parts" in line.alarms()
    line.silence()
    assert line.ready_now()
    assert line.alarms() == ""


def test_the_verdict_of_a_pulse_waits_until_no_second_frame_can_turn_up() -> None:
    line = PulsedLine().ready()
    line.part(1)
    line.judged(Evaluation.OK)
    assert line.outbox.records == [], "judged, but not yet surely its own frame"
    line.wait(30)
    assert (line.last.trigger_id, line.last.evaluation) == ("1", "OK")


def test_a_second_frame_takes_the_verdict_back_that_was_not_out_yet() -> None:
    line = PulsedLine().ready()
    line.part(1)
    line.judged(Evaluation.OK)
    line.exposed(part=1)
    line.wait(10)
    assert (line.last.evaluation, line.last.result_state, line.last.reason) == (
        "Undefined",
        "Failed",
        "trigger_ambiguous",
    )
    assert [(v.evaluation, v.score) for v in line.last.views] == [("Undefined", None)]
    assert not line.ready_now()
    line.silence()
    assert line.ready_now()


def test_a_lost_frame_fails_its_part_before_the_deadline_and_costs_no_other() -> None:
    line = PulsedLine(deadline_ms=100).ready()
    for number in (1, 3):
        line.part(number)
        line.judged(Evaluation.OK, -1)
        line.wait(30)
        if number == 1:
            line.part(2, lost=True)
            line.wait(30)
            assert line.last.reason == "no_frame"
            assert line.ready_now()
    assert line.reasons() == {"1": "OK", "2": "no_frame", "3": "OK"}


def test_a_pulse_that_the_camera_missed_fails_every_part_until_there_was_silence() -> None:
    line = PulsedLine(deadline_ms=100, queue=5).ready()
    line.trigger("1")
    line.wait(40)
    line.part(2)
    line.wait(30)
    assert line.reasons() == {"1": "no_frame", "2": "trigger_count"}
    line.part(3)
    assert line.reasons()["3"] == "missed_not_ready"
    line.silence()
    line.part(4)
    line.judged(Evaluation.OK)
    line.wait(30)
    assert line.reasons()["4"] == "OK"


def test_the_frame_of_a_missed_trigger_is_nobodys() -> None:
    line = PulsedLine(queue=0, deadline_ms=200).ready()
    line.part(1)
    line.wait(14)
    line.part(2)
    assert line.reasons() == {"2": "missed_busy"}
    line.judged(Evaluation.OK)
    line.wait(30)
    line.part(3)
    line.judged(Evaluation.NOT_OK, 1)
    line.wait(30)
    assert line.reasons() == {"2": "missed_busy", "1": "OK", "3": "NotOK"}
    assert line.station.status("", 0.0, None, 0).details["untriggered_frames"] == {"top": 1}


def test_a_frame_that_nobody_announced_is_counted_and_drops_trigger_ready() -> None:
    line = PulsedLine().ready()
    line.exposed()
    line.wait(10)
    assert not line.ready_now()
    assert line.work == []
    assert line.station.status("", 0.0, None, 0).details["untriggered_frames"] == {"top": 1}
    assert BindFault.STRAY.value in line.alarms()


def test_a_clock_that_jumped_judges_nothing() -> None:
    line = PulsedLine().ready()
    line.part(1, off_ms=40)
    assert line.reasons() == {"1": "camera_clock"}
    assert line.work == []


def test_a_camera_that_stops_counting_judges_nothing() -> None:
    line = PulsedLine().ready()
    line.trigger()
    line.station.frame_of_pulse("top", Frame("top", 1, np.zeros((2, 2, 3), np.uint8), line.clock.now))
    assert line.reasons() == {"1": "camera"}
    assert line.work == []


def test_a_lost_camera_fails_a_judged_part_whose_frame_was_not_confirmed() -> None:
    line = PulsedLine().ready()
    line.part(1)
    line.judged(Evaluation.OK)
    line.station.camera_down("top", "cable pulled")
    assert line.reasons() == {"1": "camera"}
    line.station.camera_up("top")
    assert not line.ready_now(), "frames of before may still come"
    line.silence()
    assert line.ready_now()


def test_a_reader_that_is_stuck_fails_the_part_before_its_deadline() -> None:
    line = PulsedLine(deadline_ms=100).ready()
    line.part(1)
    line.judged(Evaluation.OK)
    line.clock.now += 20 * MS
    line.trigger("2")
    due = line.station.next_deadline_ns()
    assert due is not None
    line.clock.now = due
    line.station.expire(due)
    assert line.reasons() == {"1": "late"}
    due = line.station.next_deadline_ns()
    assert due is not None
    line.clock.now = due
    line.station.expire(due)
    assert line.reasons() == {"1": "late", "2": "no_frame"}
    assert line.last.times.judged_us is None
    assert not line.ready_now()
    assert "silent top" in line.alarms()


def test_every_view_of_a_pulse_has_a_binder_of_its_own_and_all_must_be_sure() -> None:
    line = PulsedLine(cameras=("left", "right"), deadline_ms=100).ready()
    line.trigger("1")
    line.wait(6)
    line.exposed("left", 1)
    line.exposed("right", 1)
    line.judged(Evaluation.OK, 0)
    line.judged(Evaluation.OK, 1)
    line.exposed("right", 1)
    line.wait(30)
    assert line.reasons() == {"1": "trigger_ambiguous"}
    assert [view.evaluation for view in line.last.views] == ["OK", "Undefined"]


class AnyPulses(RuleBasedStateMachine):
    """Parts under a camera on a wire, each good or bad by its number, with one fault at a time, and time: whatever
    happens, a verdict is that of the part which its trigger announced."""

    def __init__(self) -> None:
        super().__init__()
        self.line = PulsedLine(queue=3, deadline_ms=100).ready()
        self.number = 0
        self.held: Frame | None = None
        self.judged_until = 0

    def show(self, frame: Frame, clock: bool) -> None:
        """Hand the frame in, as having arrived now."""
        exposed_ns = frame.exposed_ns if clock else None
        self.line.station.frame_of_pulse("top", replace(frame, arrived_ns=self.line.clock.now, exposed_ns=exposed_ns))

    @rule(
        fault=st.sampled_from(
            ["", "", "", "", "lost", "missed", "unannounced", "doubled", "held", "held", "clock", "other clock"]
        ),
        first=st.booleans(),
        clock=st.booleans(),
        gap_ms=st.sampled_from([26, 34, 34, 34, 34, 720]),
        at_once=st.sampled_from([True, True, True, False]),
    )
    def part(self, fault: str, first: bool, clock: bool, gap_ms: int, at_once: bool) -> None:
        self.number += 1
        if fault != "unannounced":
            self.line.trigger(str(self.number))
        self.line.wait(6)
        if fault != "missed":
            off_ms = {"clock": 40, "other clock": -40}.get(fault, 0)
            frame, held, self.held = self.line.picture("top", self.number, off_ms), self.held, None
            frames = [held, frame] if first else [frame, held]
            if fault == "held":
                self.held, frames = frame, [held]
                gap_ms = min(gap_ms, 34)  # no frame is later than the silence lasts: that much a plant states
            if fault == "doubled":
                frames.append(frame)
            for one in frames:
                if one is not None and not (fault == "lost" and one is frame):
                    self.show(one, clock)
        while at_once and self.line.work[self.judged_until :]:
            self.judged()
        self.line.wait(gap_ms)

    @precondition(lambda self: self.line.work[self.judged_until :])
    @rule()
    def judged(self) -> None:
        shown = int(self.line.work[self.judged_until].frame.pixels[0, 0, 0])
        self.line.judged(truth(shown), self.judged_until)
        self.judged_until += 1

    @rule(ms=st.integers(1, 120))
    def time_passes(self, ms: int) -> None:
        self.line.wait(ms)
        self.line.station.expire(self.line.clock.now)

    @rule()
    def the_camera_is_lost_and_comes_back(self) -> None:
        self.line.station.camera_down("top", "gone")
        self.line.wait(10)
        self.line.station.camera_up("top")

    @invariant()
    def no_verdict_is_that_of_another_part(self) -> None:
        for record in self.line.outbox.records:
            if record.result_state == "Completed":
                assert record.evaluation == truth(int(record.trigger_id)).label

    @invariant()
    def every_trigger_is_accounted_for(self) -> None:
        assert self.line.station.counters().balanced

    def teardown(self) -> None:
        self.line.wait(1_000)
        self.line.station.expire(self.line.clock.now)
        self.line.golden()  # should three have been late
        assert self.line.ready_now(), "silence puts it in step"
        ids = [record.trigger_id for record in self.line.outbox.records]
        assert len(ids) == len(set(ids)) == self.line.station.counters().accepted


def truth(part: int) -> Evaluation:
    """Good or bad, in an order that no shift by a few parts leaves as it is."""
    return Evaluation.OK if (part * 2654435761 >> 7) % 2 else Evaluation.NOT_OK


AnyPulses.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyPulses = AnyPulses.TestCase
