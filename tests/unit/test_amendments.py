"""What the gateway tells of verdicts: on the record once, never beside it, never in a verdict's way."""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from wire_kit import inspection, not_ok

from edge_daemon.client import RefusedError, ReplayClient, connect
from edge_daemon.edges.amendments import AmendmentDesk
from edge_daemon.edges.journal import Journal
from edge_daemon.edges.journal_chain import parse_head, verify
from edge_daemon.edges.journal_entries import Intent, Report, Reported
from edge_daemon.edges.journal_tools import Wanted, csv_row, find
from edge_daemon.edges.replay import ReplayDesk
from edge_daemon.edges.server import AMENDMENTS, REPLAY, RequestServer
from edge_daemon.edges.standing import Kept, StandingAlarmError
from edge_daemon.errors import JournalError, WireError
from edge_daemon.wire.codec import decode_amendment_reply, decode_amendment_request, encode_request
from edge_daemon.wire.messages import AmendmentReply, AmendmentRequest, Inspection
from edge_daemon.wire.roles import ROLES, SOCKETS

WAIT_S = 20.0


def told(**changes: Any) -> AmendmentRequest:
    fields: dict[str, Any] = {
        "request_id": "q1",
        "amendment_id": "a1",
        "station": "st1",
        "trigger_id": "7-run-1",
        "result_id": "r7",
        "kind": "disposition",
        "what": "passed",
        "verdict": "OK",
        "acquisition_id": 7,
        "after_ms": 412.5,
    }
    return AmendmentRequest(**(fields | changes))


class Line:
    """A journal with its desk. `tell` waits for the one answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = Journal(path, "line-1")
        self.boot = self.journal.open()
        self.alarms: list[tuple[str, str]] = []
        self.told_of: set[str] = set()
        self.not_kept: StandingAlarmError | None = None
        self.desk = AmendmentDesk(self.journal, self._alarm)

    def _alarm(self, station: str, key: str, text: str, on_kept: Kept) -> bool:
        new = key not in self.told_of
        if new:
            self.told_of.add(key)
            self.alarms.append((station, text))
        threading.Thread(target=on_kept, args=(self.not_kept,)).start()
        return new

    def record(self, draft: Inspection | None = None, **changes: Any) -> None:
        ended = threading.Event()
        fields = {"seq": 0, "boot": 0, "result_id": "r7", "trigger_id": "7-run-1"} | changes
        self.journal.conclude((draft or inspection()).model_copy(update=fields), lambda _end: ended.set())
        assert ended.wait(WAIT_S)

    def tell(self, request: AmendmentRequest) -> AmendmentReply:
        answers: list[AmendmentReply] = []
        answered = threading.Event()

        def reply(answer: AmendmentReply) -> None:
            answers.append(answer)
            answered.set()

        self.desk.handle(request, reply)
        assert answered.wait(WAIT_S)
        (answer,) = answers
        return answer

    def amendments(self, station: str = "st1") -> list[tuple[str, dict[str, Any]]]:
        entries = self.journal.read(station, self.boot.number, 1, 100).entries
        return [(a.kind, a.body) for entry in entries for a in entry.amendments]


@contextlib.contextmanager
def line(path: Path) -> Iterator[Line]:
    running = Line(path)
    try:
        yield running
    finally:
        running.journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_a_report_is_on_the_record_with_what_was_shown_and_when(path: Path) -> None:
    with line(path) as at:
        at.record()
        assert at.tell(told(kind="delivery", what="acknowledged", utc="2026-11-21T08:00:00Z")).ok
        ((kind, body),) = at.amendments()
        assert kind == "delivery"
        assert body == {
            "amendment_id": "a1",
            "what": "acknowledged",
            "verdict": "OK",
            "reason": "",
            "acquisition_id": 7,
            "after_ms": 412.5,
            "utc": "2026-11-21T08:00:00Z",
            "gateway": "",
        }
        assert at.desk.stats().deliveries == 1
    (found,) = find(path, Wanted())
    assert [a.kind for a in found.amendments] == ["delivery"]
    row = csv_row(found)
    assert (row["delivery"], row["disposition"]) == ("acknowledged", None)
    assert verify(path).problems == ()


def test_what_is_told_twice_is_recorded_once_also_by_a_daemon_that_was_restarted(path: Path) -> None:
    with line(path) as at:
        at.record()
        answers = [at.tell(told(request_id=f"q{n}")) for n in range(3)]
        assert [(a.ok, a.result_id, a.amendment_id) for a in answers] == [(True, "r7", "a1")] * 3
        assert len(at.amendments()) == 1
    with line(path) as at:
        assert at.tell(told()).ok
        assert at.desk.stats().repeated == 1
        entries = at.journal.read("st1", at.boot.number - 1, 1, 10).entries
        assert len(entries[0].amendments) == 1


def test_one_id_for_two_different_things_is_refused_and_the_first_stands(path: Path) -> None:
    with line(path) as at:
        at.record()
        at.tell(told())
        for other in (told(what="rejected"), told(kind="delivery", what="missed"), told(after_ms=1.0)):
            assert at.tell(other).reason == "amendment_id_reused"
        assert [body["what"] for _, body in at.amendments()] == ["passed"]


@pytest.mark.parametrize(
    "changes",
    [
        {"result_id": "r8"},
        {"station": "st10"},
        {"trigger_id": "7-run-2"},
        {"result_id": "", "trigger_id": "8-run-1"},
        {"result_id": "' OR 1 --"},
    ],
    ids=str,
)
def test_what_names_no_record_of_its_own_station_and_trigger_is_refused(path: Path, changes: dict[str, str]) -> None:
    with line(path) as at:
        at.record()
        answer = at.tell(told(**changes, what="rejected"))
        assert (answer.ok, answer.reason) == (False, "unknown_result")
        assert "pruned" in answer.message
        assert at.amendments() == []


def test_a_report_on_a_record_of_an_earlier_boot_belongs_to_that_record(path: Path) -> None:
    with line(path) as at:
        at.record()
    with line(path) as at:
        at.record(result_id="r8", trigger_id="8-run-1")
        assert at.tell(told()).ok
        assert at.amendments() == []
        assert [a.kind for a in at.journal.read("st1", at.boot.number - 1, 1, 9).entries[0].amendments] == [
            "disposition"
        ]


def test_without_a_result_id_the_trigger_names_the_record(path: Path) -> None:
    with line(path) as at:
        at.record(not_ok())
        answer = at.tell(told(result_id="", kind="delivery", what="missed", verdict="NONE"))
        assert (answer.ok, answer.result_id) == (True, "r7")


def test_a_report_that_is_quicker_than_the_record_is_to_come_again(path: Path) -> None:
    with line(path) as at:
        intended = threading.Event()
        at.journal.intend(Intent("st1", "r7", "7-run-1"), lambda _error: intended.set())
        assert intended.wait(WAIT_S)
        assert at.tell(told()).reason == "pending"
        assert at.alarms == []
        at.record()
        assert at.tell(told()).ok


def test_one_record_has_only_so_many_reports(path: Path) -> None:
    with line(path) as at:
        at.record()
        answers = [at.tell(told(amendment_id=f"a{n}")) for n in range(20)]
        assert [a.ok for a in answers] == [True] * 16 + [False] * 4
        assert answers[-1].reason == "too_many"
        assert len(at.amendments()) == 16


def test_reports_beyond_what_may_wait_are_refused_and_a_verdict_does_not_wait_behind_those_that_do(path: Path) -> None:
    """The writer is held: everything that comes meanwhile is in the next commits, verdicts in the first of them."""
    with line(path) as at:
        at.record()
        held, release = threading.Event(), threading.Event()
        at.journal.intend(Intent("st1", "x", "x"), lambda _error: (held.set(), release.wait(WAIT_S)))
        assert held.wait(WAIT_S)
        answers: list[AmendmentReply] = []
        for n in range(1_100):
            at.desk.handle(told(amendment_id=f"a{n}"), answers.append)
        assert [a.reason for a in answers] == ["journal"] * (1_100 - 1_024)
        before: list[int] = []
        done = threading.Event()

        def concluded(_end: object) -> None:
            before.append(len(answers))
            done.set()

        fields = {"seq": 0, "boot": 0, "result_id": "r8", "trigger_id": "8"}
        at.journal.conclude(inspection(**fields), concluded)
        release.set()
        assert done.wait(WAIT_S)
        assert before == [1_100 - 1_024]
    assert len(answers) == 1_100, "closing writes what waits"


def test_a_journal_that_is_closed_or_full_says_so_and_nothing_counts_as_told(path: Path) -> None:
    with line(path) as at:
        at.record()
        desk = at.desk
    answers: list[AmendmentReply] = []
    desk.handle(told(), answers.append)
    assert [(a.ok, a.reason) for a in answers] == [(False, "journal")]
    assert desk.stats().not_written == 1
    with pytest.raises(JournalError, match="JSON"):
        at.journal.report(_bad_report(), lambda _reported: None)


def _bad_report() -> Report:
    return Report("st1", "t", "", "delivery", "a", {"amendment_id": object()})


def test_what_an_earlier_version_wrote_beside_a_record_does_not_disturb(path: Path) -> None:
    with line(path) as at:
        at.record()
        done = threading.Event()
        at.journal.amend("r7", "delivery", {"acknowledged": True}, lambda _error: done.set())
        assert done.wait(WAIT_S)
        assert at.tell(told()).ok


# --- what a reader hears of it ------------------------------------------------------------------------------------


def test_a_reader_is_told_each_amendment_once_in_order_and_goes_on_where_it_was(path: Path) -> None:
    with line(path) as at, zmq.Context() as context:
        at.record()
        at.record(not_ok(), result_id="r8", trigger_id="8-run-1", station="st2")
        at.tell(told(kind="delivery", what="acknowledged", amendment_id="d7"))
        desk = ReplayDesk(at.journal, at.boot.number, lambda _station: 99)
        server = RequestServer(context, "tcp://127.0.0.1:*", REPLAY, desk.handle, remembered=0)
        with contextlib.closing(server), ReplayClient(server.open(), timeout_s=WAIT_S) as asker:
            first = asker.amendments()
            assert [(a.station, a.result_id, a.kind, a.body["what"]) for a in first.amendments] == [
                ("st1", "r7", "delivery", "acknowledged")
            ]
            at.tell(told(station="st2", trigger_id="8-run-1", result_id="r8", what="rejected", verdict="NOT_OK"))
            then = asker.amendments(first.amendments[-1].position)
            assert [(a.station, a.kind, a.body["what"]) for a in then.amendments] == [
                ("st2", "disposition", "rejected")
            ]
            assert asker.amendments(then.amendments[-1].position).amendments == ()
            with pytest.raises(RefusedError, match="no head"):
                asker.amendments("where was I")


def test_a_reader_of_another_journal_is_told_everything_from_the_oldest_on(tmp_path: Path) -> None:
    positions = []
    for name in ("one", "two"):
        with line(tmp_path / f"{name}.sqlite") as at:
            at.record()
            for n in range(4):
                at.tell(told(amendment_id=f"{name}-{n}"))
            positions = [*positions, *(later.position for later in at.journal.later(None).entries)]
    with line(tmp_path / "one.sqlite") as at:
        assert not at.journal.later(parse_head(positions[1])).begun_anew
        for foreign in (positions[5], "4711:" + "9f" * 32):
            found = at.journal.later(parse_head(foreign))
            assert found.begun_anew
            assert [later.position for later in found.entries] == positions[:4]


def test_more_amendments_than_one_answer_holds_come_in_several(path: Path) -> None:
    with line(path) as at:
        at.record()
        for n in range(5):
            at.tell(told(amendment_id=f"a{n}"))
        page = at.journal.later(None, limit=3)
        assert (len(page.entries), page.more) == (3, True)
        rest = at.journal.later(parse_head(page.entries[-1].position), limit=3)
        assert (len(rest.entries), rest.more) == (2, False)


def test_amendments_of_a_record_that_was_pruned_are_gone_and_the_reader_goes_on(path: Path) -> None:
    with line(path) as at:
        at.record()
        at.tell(told())
        position = parse_head(at.journal.later(None).entries[0].position)
        pruned = threading.Event()
        at.journal.prune("st1", at.boot.number, 1, lambda _error: pruned.set())
        assert pruned.wait(WAIT_S)
        at.record(result_id="r8", trigger_id="8-run-1")
        at.tell(told(trigger_id="8-run-1", result_id="r8"))
        found = at.journal.later(position)
        assert not found.begun_anew
        assert [later.result_id for later in found.entries] == ["r8"]
        assert at.tell(told(what="rejected", amendment_id="a2")).reason == "unknown_result"


# --- the accident -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "request_changes", "why"),
    [
        (inspection(), {}, None),
        (not_ok(), {}, "record says NotOK"),
        (not_ok(), {"what": "gate_failure", "verdict": "NOT_OK"}, "not seen by the reject sensor"),
        (not_ok(), {"what": "rejected", "verdict": "NOT_OK"}, None),
        (not_ok(), {"what": "removed", "verdict": "NOT_OK"}, None),
        (inspection(evaluation="Undefined", result_state="Failed", reason="late"), {}, r"Undefined \(late\)"),
        (inspection(), {"verdict": "NONE"}, "never shown its OK"),
        (inspection(), {"verdict": "NO_VERDICT"}, "but NO_VERDICT"),
        (inspection(simulated=True), {"verdict": "COMMISSIONING_OK"}, None),
        (inspection(), {"verdict": "COMMISSIONING_OK"}, "but COMMISSIONING_OK"),
        (None, {}, "no record"),
        (None, {"what": "rejected"}, None),
        (not_ok(), {"kind": "delivery", "what": "missed"}, None),
    ],
)
def test_a_part_that_passes_although_nothing_released_it_is_an_alarm(
    path: Path, record: Inspection | None, request_changes: dict[str, str], why: str | None
) -> None:
    with line(path) as at:
        if record is not None:
            at.record(record)
        at.tell(told(**request_changes))
        at.tell(told(**request_changes))
        assert len(at.alarms) == (why is not None), at.alarms
        assert at.desk.stats().passed_without_ok == len(at.alarms)
        if why is not None:
            ((station, text),) = at.alarms
            assert station == "st1"
            assert "part 7" in text
            assert re.search(why, text)


def test_a_report_of_an_accident_is_not_answered_well_until_its_alarm_outlives_the_daemon(path: Path) -> None:
    with line(path) as at:
        at.record(not_ok())
        at.not_kept = StandingAlarmError("the standing alarms cannot be written")
        first = at.tell(told())
        assert (first.ok, first.reason) == (False, "journal")
        assert "cannot be written" in first.message
        at.not_kept = None
        assert at.tell(told()).ok
        assert (len(at.alarms), len(at.amendments())) == (1, 1)


def test_a_withdrawn_ok_releases_nothing(path: Path) -> None:
    """What the wire said counts, and not what the disk took of it too late."""
    with line(path) as at:
        at.record()
        done = threading.Event()
        body = {"superseded_by": at.journal.read("st1", at.boot.number, 1, 1).entries[0].header.decode()}
        body["superseded_by"] = body["superseded_by"].replace('"evaluation":"OK"', '"evaluation":"Undefined"', 1)
        at.journal.amend("r7", "journal", body, lambda _error: done.set())
        assert done.wait(WAIT_S)
        at.tell(told())
        assert len(at.alarms) == 1


def test_the_alarm_comes_again_from_a_daemon_that_died_before_it_could_have_told_it(path: Path) -> None:
    with line(path) as at:
        at.record(not_ok())
        at.journal.report(_as_report(told()), lambda _reported: None)
    with line(path) as at:
        assert at.tell(told()).ok
        assert len(at.alarms) == 1


def _as_report(request: AmendmentRequest) -> Any:
    """As the desk hands it to the journal."""
    kept: list[Any] = []

    class Catches:
        def report(self, report: Any, on_done: Any) -> None:
            kept.append(report)
            on_done(Reported("recorded", header=b'{"evaluation":"OK"}'))

    AmendmentDesk(Catches(), lambda *_: None).handle(request, lambda _answer: None)
    return kept[0]


# --- the door -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"what": "acknowledged"},
        {"kind": "delivery", "what": "passed"},
        {"kind": "journal"},
        {"kind": "part_id"},
        {"what": "PASSED"},
        {"amendment_id": ""},
        {"request_id": ""},
        {"trigger_id": ""},
        {"after_ms": -1},
        {"after_ms": "1"},
        {"acquisition_id": 2**32},
        {"verdict": "GOOD"},
        {"station": "s" * 65},
    ],
    ids=str,
)
def test_what_is_no_report_is_refused_by_name(changes: dict[str, Any]) -> None:
    fields = json.loads(encode_request(told())) | changes
    with pytest.raises(WireError, match="AmendmentRequest"):
        decode_amendment_request(json.dumps(fields).encode())


def test_only_the_gateway_may_tell() -> None:
    assert SOCKETS["amendments"] == {"gateway"}
    assert set(ROLES) - SOCKETS["amendments"] == {"viewer", "operator", "engineer"}


def test_over_the_socket_every_report_has_one_answer_and_a_flood_is_refused(path: Path) -> None:
    with line(path) as at, zmq.Context() as context:
        at.record()
        server = RequestServer(context, "tcp://127.0.0.1:*", AMENDMENTS, at.desk.handle, remembered=0, max_per_s=20)
        bound = server.open()
        with contextlib.closing(server), contextlib.closing(connect(context, zmq.DEALER, bound)) as asker:
            assert asker.poll(WAIT_S * 1_000, zmq.POLLOUT)
            for n in range(30):
                asker.send(encode_request(told(request_id=f"q{n}")))
            replies = []
            while len(replies) < 20:
                assert asker.poll(WAIT_S * 1_000)
                replies.append(decode_amendment_reply(asker.recv_multipart()[-1]))
        assert {r.reason for r in replies} <= {"", "too_fast"}
        assert any(r.ok for r in replies)
        assert len({r.request_id for r in replies}) == len(replies)
        assert len(at.amendments()) == 1
