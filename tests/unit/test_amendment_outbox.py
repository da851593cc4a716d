"""What the gateway tells for the record: each once, kept while the daemon is away, never in the way of a verdict."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_daemon.gateway.amendments import ANSWER_NS, IN_FLIGHT, PAUSE_NS, AmendmentQueue, amendment
from edge_daemon.gateway.dialogue import Dialogue
from edge_daemon.gateway.events import Effect, Event, Tell
from edge_daemon.gateway.registers import COMMAND_WORDS, decode_command, encode_command
from edge_daemon.gateway.release import DialogueSettings
from edge_daemon.gateway.words import Command, Disposition, ErrorCode, ReasonCode, Verdict
from edge_daemon.wire.codec import decode_amendment_request, encode_request
from edge_daemon.wire.messages import AmendmentReply, AmendmentRequest
from tests.unit.test_dialogue import (
    HOLD,
    MS,
    PLC_SILENCE,
    SETTINGS,
    TRUE,
    WINDOW,
    Rig,
    Trigger,
    buffer_full,
    changed,
    daemon_killed,
)


class Listening(Dialogue):
    """Keeps what is to be told."""

    def __init__(self, settings: DialogueSettings, run: str, told: list[Tell]) -> None:
        super().__init__(settings, run)
        self._told = told

    def feed(self, event: Event, now_ns: int) -> list[Effect]:
        effects = super().feed(event, now_ns)
        self._told += [effect for effect in effects if isinstance(effect, Tell)]
        return effects


class Teller(Rig):
    """A rig that keeps what its dialogues want told."""

    def __post_init__(self) -> None:
        self.told: list[Tell] = []
        super().__post_init__()

    def restart_gateway(self) -> None:
        super().restart_gateway()
        self.dialogue = Listening(self.settings, f"run{self.runs}", self.told)


def up(settings: Any = SETTINGS) -> Teller:
    rig = Teller(settings=settings)
    rig.come_up()
    return rig


def words(rig: Teller) -> list[tuple[str, str, int]]:
    return [(tell.kind, tell.what, tell.acquisition_id) for tell in rig.told]


def judged(rig: Teller, number: int = 1, **changes: object) -> Trigger:
    """A part whose result is shown."""
    part = rig.part(number)
    rig.deliver(part, changed("bent", **changes) if changes else TRUE)
    return part


def reports(rig: Teller, number: int, disposition: int) -> None:
    rig.write(disposition_id=number, disposition=disposition)
    rig.write(disposition_id=0, disposition=0)


# --- delivery -----------------------------------------------------------------------------------------------------


def test_what_the_plc_acknowledges_is_told_once_with_the_word_that_it_took() -> None:
    rig = up()
    part = judged(rig)
    rig.wait(50 * MS, cycle_ns=50 * MS)
    for _ in range(3):
        rig.write(acknowledged_id=1)
    (tell,) = rig.told
    assert (tell.kind, tell.what, tell.trigger_id, tell.result_id) == (
        "delivery",
        "acknowledged",
        part.trigger_id,
        part.result_id,
    )
    assert (tell.verdict, tell.reason, tell.after_ns) == (Verdict.OK, ReasonCode.NONE, 50 * MS)


def test_an_ok_that_was_withdrawn_and_a_window_that_passed_are_told_as_late() -> None:
    rig = up()
    judged(rig)
    rig.wait(HOLD + 1)
    rig.write(acknowledged_id=1)
    rig.part(2)
    rig.wait(WINDOW + 1)
    rig.write(acknowledged_id=2)
    assert words(rig) == [("delivery", "late", 1), ("delivery", "late", 2)]
    assert [tell.verdict for tell in rig.told] == [Verdict.WITHDRAWN, Verdict.NO_VERDICT]


@pytest.mark.parametrize(
    "gives_up",
    [
        lambda rig: rig.write(trigger_enable=False),
        lambda rig: rig.write(set_offline=True),
        lambda rig: setattr(rig, "mono_ns", rig.mono_ns + PLC_SILENCE + 1) or rig.status(),
    ],
)
def test_a_plc_that_stops_gives_up_what_is_under_way_and_leaves_what_is_shown(gives_up: Any) -> None:
    rig = up()
    judged(rig)
    rig.part(2)
    gives_up(rig)
    assert sorted(words(rig)) == [("delivery", "abandoned", 2), ("delivery", "not_fetched", 1)]
    gives_up(rig)
    assert len(rig.told) == 2


def test_a_trigger_that_is_not_taken_is_told_as_missed_by_the_name_of_its_trigger() -> None:
    rig = up()
    refused = rig.trigger(1)
    assert refused is not None
    rig.answer(refused, accepted=False)
    rig.write(trigger=False)
    unanswered = rig.trigger(2)
    assert unanswered is not None
    rig.wait(SETTINGS.answer_ns + 1, cycle_ns=SETTINGS.answer_ns + 1)
    assert words(rig) == [("delivery", "missed", 1), ("delivery", "missed", 2)]
    assert [tell.result_id for tell in rig.told] == [refused.result_id, ""]
    assert rig.told[1].trigger_id == unanswered.trigger_id


def test_a_trigger_taken_back_and_an_id_used_again_are_abandoned_or_not_fetched() -> None:
    rig = up()
    assert rig.trigger(1) is not None
    rig.write(trigger=False)
    judged(rig, 2)
    rig.trigger(2)
    assert words(rig) == [("delivery", "abandoned", 1), ("delivery", "not_fetched", 2)]


def test_a_result_that_found_no_room_is_told_as_overrun() -> None:
    rig = Teller()
    ninth = buffer_full(rig)
    rig.deliver(ninth, TRUE)
    assert words(rig) == [("delivery", "overrun", 9)]
    assert rig.told[0].verdict is Verdict.NONE, "it was never shown"


def test_every_part_under_way_has_one_end_of_its_delivery_whatever_happens() -> None:
    rig = up()
    for number in range(1, 9):
        rig.part(number)
        if number % 2:
            rig.deliver(rig.triggers[-1], TRUE)
        if number % 3 == 0:
            rig.write(acknowledged_id=rig.read().result.acquisition_id)
    daemon_killed(rig)
    rig.write(set_offline=True)
    told = [tell.acquisition_id for tell in rig.told if tell.kind == "delivery"]
    assert sorted(told) == list(range(1, 9))


# --- disposition --------------------------------------------------------------------------------------------------


def test_what_became_of_a_part_is_told_once_however_long_the_plc_says_it() -> None:
    rig = up()
    part = judged(rig)
    rig.write(acknowledged_id=1)
    rig.told.clear()
    for _ in range(5):
        rig.write(disposition_id=1, disposition=Disposition.PASSED)
    reports(rig, 1, Disposition.PASSED)
    (tell,) = rig.told
    assert (tell.kind, tell.what, tell.result_id, tell.verdict) == ("disposition", "passed", part.result_id, Verdict.OK)
    assert rig.dialogue.counts.passed_without_ok == 0


def test_a_gate_that_failed_after_all_is_told_beside_what_was_told_before() -> None:
    rig = up()
    judged(rig, evaluation="NotOK")
    reports(rig, 1, Disposition.REJECTED)
    reports(rig, 1, Disposition.GATE_FAILURE)
    assert words(rig) == [("disposition", "rejected", 1), ("disposition", "gate_failure", 1)]
    assert len({tell.amendment_id for tell in rig.told}) == 2
    assert rig.dialogue.counts.passed_without_ok == 1


@pytest.mark.parametrize("disposition", [Disposition.PASSED, Disposition.GATE_FAILURE])
def test_a_part_that_may_have_passed_without_an_ok_is_counted_and_told(disposition: Disposition) -> None:
    rig = up()
    judged(rig, 1, evaluation="NotOK")
    rig.part(2)
    reports(rig, 1, disposition)
    reports(rig, 2, disposition)
    assert rig.dialogue.counts.passed_without_ok == 2
    assert [tell.verdict for tell in rig.told] == [Verdict.NOT_OK, Verdict.NONE]


def test_a_part_that_no_trigger_was_passed_on_for_is_told_only_if_it_may_have_passed() -> None:
    rig = up()
    rig.speaks = False
    rig.wait(SETTINGS.status_timeout_ns + 100 * MS)
    assert rig.trigger(5) is None
    assert rig.read().missed_reason is ErrorCode.DAEMON_SILENT
    rig.write(trigger=False)
    reports(rig, 5, Disposition.REJECTED)
    assert rig.told == []
    reports(rig, 5, Disposition.PASSED)
    assert words(rig) == [("disposition", "passed", 5)]
    assert rig.dialogue.counts.passed_without_ok == 1


@pytest.mark.parametrize(("number", "code"), [(7, 1), (1, 6), (1, 0xFFFF), (0, 1), (1, 0), (2**32 - 1, 2)])
def test_a_report_on_nothing_or_of_nothing_is_not_told(number: int, code: int) -> None:
    rig = up()
    judged(rig)
    reports(rig, number, code)
    assert rig.told == []
    assert rig.dialogue.counts.unknown_parts == (number != 0 and code != 0)


def test_a_gateway_that_was_killed_in_between_tells_nothing_of_parts_that_it_does_not_know() -> None:
    rig = up()
    judged(rig)
    rig.restart_gateway()
    rig.come_up()
    reports(rig, 1, Disposition.PASSED)
    assert rig.told == []
    assert rig.dialogue.counts.unknown_parts == 1


def test_an_id_that_is_counted_anew_means_the_newest_part() -> None:
    rig = up()
    judged(rig)
    rig.write(acknowledged_id=1)
    second = judged(rig)
    reports(rig, 1, Disposition.REJECTED)
    assert rig.told[-1].trigger_id == second.trigger_id


def test_ten_thousand_parts_and_reports_leave_no_more_than_a_belt_full_in_memory() -> None:
    dialogue = Dialogue(SETTINGS, "run")
    for number in range(1, 10_001):
        dialogue._know(number, f"t{number}", 0)
    assert len(dialogue._known) == 1_024
    assert 10_000 in dialogue._known


def test_neither_report_nor_acknowledgement_changes_what_is_shown_of_other_parts() -> None:
    rig = up()
    judged(rig)
    before = rig.read()
    for number in (1, 2, 3):
        for code in range(7):
            reports(rig, number, code)
    assert replace(rig.read(), heartbeat=before.heartbeat) == before


def test_the_wall_clock_may_jump_and_the_time_since_the_trigger_does_not() -> None:
    rig = up()
    judged(rig)
    rig.wall_ns -= 10**18
    rig.wait(50 * MS, cycle_ns=50 * MS)
    rig.write(acknowledged_id=1)
    assert rig.told[0].after_ns == 50 * MS


# --- registers ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1))
def test_a_report_survives_its_registers(number: int, code: int) -> None:
    command = Command(trigger_enable=True, acquisition_id=9, disposition_id=number, disposition=code)
    assert decode_command(encode_command(command)) == command


def test_a_program_that_knows_nothing_of_reports_writes_what_it_always_wrote() -> None:
    registers = encode_command(Command(trigger_enable=True, acquisition_id=70_000, acknowledged_id=3))
    assert registers == [1, 0, 1, 4464, 0, 3]
    assert len(registers) == COMMAND_WORDS
    assert decode_command(registers).disposition == 0


# --- the queue ----------------------------------------------------------------------------------------------------

TELL = Tell("delivery", "acknowledged", 1, "1-run-1", "r1", Verdict.OK, ReasonCode.NONE, 5 * MS)


def message(number: int, kind: str = "delivery") -> AmendmentRequest:
    what = "acknowledged" if kind == "delivery" else "rejected"
    tell = replace(TELL, kind=kind, what=what, acquisition_id=number, trigger_id=f"{number}-run-{number}")  # type: ignore[arg-type]
    return amendment("st1", tell, "run", "2026-11-21T08:00:00.000+00:00")


def answer(request: AmendmentRequest, ok: bool = True, reason: str = "") -> AmendmentReply:
    return AmendmentReply(request_id=request.request_id, amendment_id=request.amendment_id, ok=ok, reason=reason)


def test_what_is_made_is_what_the_daemon_reads() -> None:
    for tell in (TELL, replace(TELL, kind="disposition", what="gate_failure", acquisition_id=2**32 - 1, after_ns=-5)):
        made = amendment("st1", tell, "0123abcd", "2026-11-21T08:00:00.000+00:00")
        assert decode_amendment_request(encode_request(made)) == made
    longest = replace(TELL, kind="disposition", what="gate_failure", trigger_id=f"{2**32 - 1}-0123abcd-{10**10}")
    decode_amendment_request(encode_request(amendment("s" * 64, longest, "0123abcd", "")))


def test_each_is_sent_until_it_is_answered_and_then_no_more() -> None:
    queue = AmendmentQueue()
    queue.put(message(1))
    queue.put(message(1))
    (first,) = queue.due(0)
    assert queue.due(ANSWER_NS - 1) == []
    assert queue.due(ANSWER_NS) == []
    (second,) = queue.due(ANSWER_NS + PAUSE_NS)
    assert first.amendment_id == second.amendment_id
    assert first.request_id != second.request_id
    queue.answered(answer(first), ANSWER_NS + PAUSE_NS)
    assert len(queue) == 1, "an answer to an attempt that was given up is none"
    queue.answered(answer(second), ANSWER_NS + PAUSE_NS)
    assert (len(queue), queue.due(10**12)) == (0, [])
    assert (queue.counts.told, queue.counts.recorded, queue.counts.retried) == (1, 1, 1)


@pytest.mark.parametrize(
    "reason", ["pending", "journal", "busy", "too_fast", "stopped", "internal", "from a newer one"]
)
def test_a_refusal_for_now_is_tried_again_after_a_pause(reason: str) -> None:
    queue = AmendmentQueue()
    queue.put(message(1))
    (sent,) = queue.due(0)
    assert queue.answered(answer(sent, ok=False, reason=reason), 0) is None
    assert queue.due(PAUSE_NS - 1) == []
    assert len(queue.due(PAUSE_NS)) == 1


@pytest.mark.parametrize("reason", ["unknown_result", "amendment_id_reused", "too_many", "malformed"])
def test_a_refusal_for_ever_is_said_and_counted(reason: str) -> None:
    queue = AmendmentQueue()
    queue.put(message(4711))
    (sent,) = queue.due(0)
    said = queue.answered(answer(sent, ok=False, reason=reason), 0)
    assert said is not None
    assert "4711" in said
    assert reason in said
    assert (len(queue), queue.counts.refused) == (0, 1)


def test_a_daemon_that_is_down_loses_none_up_to_the_bound_and_beyond_it_the_oldest_deliveries() -> None:
    queue = AmendmentQueue(most_kept=100)
    queue.put(message(0, "disposition"))
    for number in range(1, 110):
        queue.put(message(number))
        for request in queue.due(number):
            queue.not_sent(request.request_id, number)
    assert (len(queue), queue.counts.dropped) == (100, 10)
    recorded: list[int] = []
    now_ns = 10 * PAUSE_NS
    while len(queue):
        now_ns += 1
        for request in queue.due(now_ns):
            queue.answered(answer(request), now_ns)
            recorded.append(request.acquisition_id)
    assert recorded == [0, *range(11, 110)]


def test_only_so_many_are_under_way_at_once_and_a_daemon_that_is_away_is_not_hammered() -> None:
    queue = AmendmentQueue()
    for number in range(100):
        queue.put(message(number))
    under_way = queue.due(0)
    assert len(under_way) == IN_FLIGHT
    assert queue.due(1) == []
    queue.not_sent(under_way[0].request_id, 1)
    queue.answered(answer(under_way[1]), 2)
    assert queue.due(PAUSE_NS) == []
    assert len(queue.due(PAUSE_NS + 1)) == 2


def test_an_answer_to_nothing_changes_nothing() -> None:
    queue = AmendmentQueue()
    queue.put(message(1))
    assert queue.answered(answer(message(1)), 0) is None
    assert queue.answered(answer(message(9), ok=False, reason="malformed"), 0) is None
    assert len(queue) == 1


EVENTS = st.lists(
    st.tuples(st.sampled_from(["put", "due", "ok", "busy", "lost", "wait"]), st.integers(0, 30)), max_size=60
)


@given(EVENTS)
def test_whatever_the_network_does_what_was_told_is_recorded_refused_dropped_or_waits(
    events: list[tuple[str, int]],
) -> None:
    queue, now_ns, under_way = AmendmentQueue(most_kept=8), 0, dict[str, AmendmentRequest]()
    for name, number in events:
        match name:
            case "put":
                queue.put(message(number, "delivery" if number % 2 else "disposition"))
            case "due":
                under_way |= {request.request_id: request for request in queue.due(now_ns)}
            case "wait":
                now_ns += number * ANSWER_NS // 4
            case _ if under_way:
                request = under_way[list(under_way)[number % len(under_way)]]
                if name == "lost":
                    queue.not_sent(request.request_id, now_ns)
                else:
                    queue.answered(answer(request, name == "ok", "" if name == "ok" else "busy"), now_ns)
        counts = queue.counts
        assert counts.told == counts.recorded + counts.refused + counts.dropped + len(queue)
        assert len(queue) <= 8
        assert len(queue._flying) <= IN_FLIGHT
