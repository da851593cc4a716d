"""The journal: one durable outcome per trigger, whatever happens to the disk, the file or the process."""

import contextlib
import fcntl
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from wire_kit import inspection, not_ok, view

from edge_daemon.edges.journal import Journal
from edge_daemon.edges.journal_entries import Boot, Concluded, Intent, OutcomeTwiceError, Seen
from edge_daemon.edges.journal_file import JournalBusyError
from edge_daemon.edges.journal_work import withdrawn
from edge_daemon.edges.records import Records
from edge_daemon.errors import JournalError
from edge_daemon.wire.codec import decode_header
from edge_daemon.wire.messages import BoxMessage, Inspection, Provenance

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 20.0


class Answers:
    """Collects what callbacks say, and waits for it."""

    def __init__(self) -> None:
        self.ends: list[Any] = []
        self._changed = threading.Condition()

    def __call__(self, end: Any) -> None:
        with self._changed:
            self.ends.append(end)
            self._changed.notify_all()

    def wait(self, count: int = 1) -> list[Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.ends) >= count, WAIT_S), f"{len(self.ends)} of {count}"
            return list(self.ends)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@contextlib.contextmanager
def opened(path: Path, **options: Any) -> Iterator[tuple[Journal, Boot]]:
    journal = Journal(path, "line-1", **options)
    boot = journal.open()
    try:
        yield journal, boot
    finally:
        journal.close()


def conclude(journal: Journal, *drafts: Inspection) -> list[Concluded]:
    answers = Answers()
    for draft in drafts:
        journal.conclude(draft, answers)
    return answers.wait(len(drafts))


def intend(journal: Journal, *intents: Intent) -> list[JournalError | None]:
    answers = Answers()
    for intent in intents:
        journal.intend(intent, answers)
    return answers.wait(len(intents))


def draft(result_id: str, **changes: Any) -> Inspection:
    return inspection(**({"seq": 0, "boot": 0, "result_id": result_id, "trigger_id": f"t-{result_id}"} | changes))


def intent(result_id: str, **changes: Any) -> Intent:
    return Intent(**({"station": "st1", "result_id": result_id, "trigger_id": f"t-{result_id}"} | changes))


def numbers(journal: Journal, station: str, boot: int, last: int = 10_000) -> list[int]:
    return [entry.seq for entry in journal.read(station, boot, 1, last).entries]


# --- the ordinary way ---------------------------------------------------------------------------------------------


def test_sequence_numbers_have_no_gap_per_station_in_the_order_of_the_calls(path: Path) -> None:
    with opened(path) as (journal, boot):
        drafts = [draft(f"r{n}", station=("st1", "st2")[n % 2]) for n in range(40)]
        ends = conclude(journal, *drafts)
        assert [e.inspection.result_id for e in ends] == [d.result_id for d in drafts]
        for station in ("st1", "st2"):
            assert [e.inspection.seq for e in ends if e.inspection.station == station] == list(range(1, 21))
            assert numbers(journal, station, boot.number) == list(range(1, 21))
            assert journal.last_seq(station) == 20
        assert journal.last_seq("st3") == 0


def test_numbers_stay_without_gap_when_many_threads_conclude_at_once(path: Path) -> None:
    with opened(path) as (journal, boot):
        answers = Answers()

        def work(name: int) -> None:
            for n in range(50):
                journal.conclude(draft(f"r{name}-{n}"), answers)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [e.inspection.seq for e in answers.wait(200)] == list(range(1, 201))
        assert numbers(journal, "st1", boot.number) == list(range(1, 201))


def test_the_record_is_the_bytes_of_the_wire_and_carries_line_and_boot(path: Path) -> None:
    with opened(path) as (journal, boot):
        (end,) = conclude(journal, draft("r1"))
        (entry,) = journal.read("st1", boot.number, 1, 1).entries
        assert entry.header == end.header
        got = decode_header(entry.header)
        assert got == end.inspection
        assert (got.line, got.boot, got.boot_id, got.seq) == ("line-1", boot.number, boot.boot_id, 1)


def test_a_record_is_on_the_disk_before_anybody_is_told(path: Path) -> None:
    """Seen by another connection from inside the callback."""
    rows: list[int] = []

    def look(_: Concluded) -> None:
        with contextlib.closing(sqlite3.connect(path)) as other:
            rows.append(other.execute("SELECT count(*) FROM record").fetchone()[0])

    with opened(path) as (journal, _):
        answers = Answers()
        journal.conclude(draft("r1"), lambda end: (look(end), answers(end)))
        answers.wait()
    assert rows == [1]


def test_every_commit_waits_for_the_disk(path: Path) -> None:
    with opened(path) as (journal, _):
        connection = journal._connection
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_what_is_queued_while_a_commit_runs_shares_the_next_one(path: Path) -> None:
    with opened(path) as (journal, _):
        held, go, answers = threading.Event(), threading.Event(), Answers()
        journal.intend(intent("first"), lambda _: (held.set(), go.wait(WAIT_S)))
        assert held.wait(WAIT_S)
        for n in range(100):
            journal.conclude(draft(f"r{n}"), answers)
        before = journal.stats()
        assert before.queued == 100
        go.set()
        answers.wait(100)
        after = journal.stats()
        assert after.commits == before.commits + 1
        assert (after.queued, after.records, after.failing) == (0, 100, "")
        assert after.commit_p99_ms >= after.commit_p50_ms > 0


# --- one outcome --------------------------------------------------------------------------------------------------


def test_the_first_outcome_wins_and_the_second_is_refused_by_name_without_using_a_number(path: Path) -> None:
    with opened(path) as (journal, boot):
        conclude(journal, draft("r1", evaluation="Undefined", result_state="Failed", reason="late"))
        with pytest.raises(OutcomeTwiceError, match="r1"):
            journal.conclude(draft("r1"), lambda _: None)
        conclude(journal, draft("r2"))
        assert numbers(journal, "st1", boot.number) == [1, 2]
        assert decode_header(journal.read("st1", boot.number, 1, 1).entries[0].header).reason == "late"
        assert journal.stats().second_outcomes == 1


def test_a_second_outcome_in_a_later_boot_is_refused_by_the_file_itself(path: Path) -> None:
    with opened(path) as (journal, first):
        conclude(journal, draft("r1", evaluation="Undefined", result_state="Failed", reason="late"))
    with opened(path) as (journal, second):
        ends = conclude(journal, draft("r1"), draft("r2"))
        assert isinstance(ends[0].error, OutcomeTwiceError)
        assert ends[1].error is None
        assert decode_header(journal.read("st1", first.number, 1, 1).entries[0].header).reason == "late"
        conclude(journal, draft("r3"))
        replay = journal.read("st1", second.number, 1, 3)
        assert [e.seq for e in replay.entries] == [2, 3]
        assert replay.gone == ((1, 1),)


def test_an_ok_that_its_views_do_not_bear_out_is_recorded_as_failed(path: Path) -> None:
    with opened(path) as (journal, _):
        (end,) = conclude(journal, draft("r1", views=()))
        assert (end.inspection.evaluation, end.inspection.result_state) == ("Undefined", "Failed")
        assert end.inspection.reason == "unproven"
        assert end.error is None


def test_what_was_seen_stays_in_the_record_of_an_unproven_ok(path: Path) -> None:
    with opened(path) as (journal, _):
        (end,) = conclude(journal, draft("r1", views=(view(score=9.0),)))
        assert end.inspection.reason == "unproven"
        assert end.inspection.views[0].score == 9.0


def test_a_withdrawn_second_outcome_does_not_touch_the_first(path: Path) -> None:
    """The disk fails just when a second outcome comes in a later boot, so that only its withdrawal is left to write."""
    with opened(path) as (journal, first):
        (end,) = conclude(journal, draft("r1"))
    with opened(path, busy_timeout_ms=1) as (journal, second):
        with locked_by_another_program(path):
            conclude(journal, draft("r1", evaluation="NotOK"))
        conclude(journal, draft("r2"))
        (entry,) = journal.read("st1", first.number, 1, 1).entries
        assert (entry.header, entry.amendments) == (end.header, ())
        replay = journal.read("st1", second.number, 1, 2)
        assert ([e.seq for e in replay.entries], replay.gone) == ([2], ((1, 1),))


def test_an_outcome_too_large_for_the_wire_still_gets_its_record_and_never_as_a_verdict(path: Path) -> None:
    many = tuple(view(camera=f"camera-{n}") for n in range(60))
    with opened(path) as (journal, boot):
        ends = conclude(
            journal,
            draft("r1", views=many),
            draft("r2", part_id="\ud800" * 9000),
            draft("r3", deadline_ms=float("nan")),
        )
        for end in ends:
            assert (end.inspection.evaluation, end.inspection.result_state) == ("Undefined", "Failed")
            assert end.error is None
        assert numbers(journal, "st1", boot.number) == [1, 2, 3]
        assert journal.stats().unencodable == 3


# --- intents and boots --------------------------------------------------------------------------------------------


def test_boots_are_numbered_and_name_the_last_numbers_of_the_boot_before(path: Path) -> None:
    with opened(path) as (journal, first):
        assert (first.number, first.previous_boot, first.last_seq, first.unfinished) == (1, None, {}, [])
        conclude(journal, draft("a"), draft("b"), draft("c", station="st2"))
    with opened(path) as (_, second):
        assert (second.number, second.previous_boot, second.previous_boot_id) == (2, 1, first.boot_id)
        assert second.last_seq == {"st1": 2, "st2": 1}
        assert second.previous_closed
        assert second.boot_id != first.boot_id
        assert second.alarm == ""


def test_an_intent_without_outcome_is_listed_after_the_restart_with_all_it_knew(path: Path) -> None:
    full = intent(
        "r1", part_id="PN 1", attempt=2, mode="setup", recipe_set="ab", accepted_utc="2026-11-20T08:15:30+00:00",
        utc_uncertainty_us=500, clock_quality="ntp", deadline_ms=150.0, job="bottle", provisional=True, simulated=True,
    )  # fmt: skip
    with opened(path) as (journal, _):
        assert intend(journal, full, intent("r2")) == [None, None]
        conclude(journal, draft("r2"))
    with opened(path) as (_, boot):
        assert boot.unfinished == [full]


def test_unfinished_intents_become_failed_restarted_records_once(path: Path) -> None:
    class Sink:
        def publish_result(self, _: object) -> bool:
            return True

    with opened(path) as (journal, _):
        intend(journal, intent("r1", accepted_utc="2026-11-20T08:15:30+00:00"), intent("r2", station="st2"))
    published = Answers()
    with opened(path) as (journal, boot), Records(journal, Sink(), 10**10, published) as records:
        provenance = Provenance(software="s", config_digest="c")
        assert records.conclude_unfinished(boot.unfinished, provenance) == 2
        first, second = published.wait(2)
        assert (first.result_id, first.evaluation, first.result_state, first.reason) == (
            "r1", "Undefined", "Failed", "restarted",
        )  # fmt: skip
        assert (first.boot, first.seq, first.times.utc) == (2, 1, "2026-11-20T08:15:30+00:00")
        assert (second.station, second.seq) == ("st2", 1)
        assert records.conclude_unfinished(boot.unfinished, provenance) == 0
    with opened(path) as (_, boot):
        assert boot.unfinished == []


def test_the_latest_attempt_of_a_trigger_id_is_known_at_once_and_after_a_restart(path: Path) -> None:
    with opened(path) as (journal, boot):
        assert journal.seen("st1", "17") is None
        answers = Answers()
        journal.intend(intent("r1", trigger_id="17"), answers)
        assert journal.seen("st1", "17") == Seen(1, boot.number, "r1")  # durable or not
        journal.conclude(draft("r2", trigger_id="17", attempt=2), answers)
        answers.wait(2)
        assert journal.seen("st1", "17") == Seen(2, boot.number, "r2")
        assert journal.seen("st2", "17") is None
    with opened(path) as (journal, _):
        assert journal.seen("st1", "17") == Seen(2, 1, "r2")
        conclude(journal, draft("r3", trigger_id="17", attempt=1))
        assert journal.seen("st1", "17") == Seen(1, 2, "r3")


# --- amendments, replay, pruning ----------------------------------------------------------------------------------


def test_amendments_are_kept_beside_the_record_in_order_and_never_change_it(path: Path) -> None:
    with opened(path) as (journal, boot):
        (end,) = conclude(journal, draft("r1"))
        answers = Answers()
        journal.amend("r1", "delivery", {"acknowledged": True}, answers)
        journal.amend("r1", "part_id", {"part_id": "PN 9"}, answers)
        assert answers.wait(2) == [None, None]
        (entry,) = journal.read("st1", boot.number, 1, 1).entries
        assert entry.header == end.header
        assert [(a.kind, a.body) for a in entry.amendments] == [
            ("delivery", {"acknowledged": True}),
            ("part_id", {"part_id": "PN 9"}),
        ]


@pytest.mark.parametrize(
    ("kind", "body"), [("opinion", {}), ("delivery", {"x": float("nan")}), ("delivery", {"x": {1}})]
)
def test_an_amendment_that_cannot_be_recorded_is_refused(path: Path, kind: Any, body: dict[str, Any]) -> None:
    with opened(path) as (journal, _), pytest.raises(JournalError):
        journal.amend("r1", kind, body)


def test_the_file_itself_refuses_to_change_a_record(path: Path) -> None:
    with opened(path) as (journal, _):
        conclude(journal, draft("r1"))
    with (
        contextlib.closing(sqlite3.connect(path)) as other,
        pytest.raises(sqlite3.IntegrityError, match="never changed"),
    ):
        other.execute("UPDATE record SET header = x'00'")


def test_a_replay_comes_in_pieces_and_names_what_is_gone(path: Path) -> None:
    with opened(path) as (journal, boot):
        conclude(journal, *(draft(f"r{n}") for n in range(10)))
        answers = Answers()
        journal.prune("st1", boot.number, 4, answers)
        assert answers.wait() == [None]
        first = journal.read("st1", boot.number, 1, 100, limit=3)
        assert ([e.seq for e in first.entries], first.gone, first.next_seq) == ([5, 6, 7], ((1, 4),), 8)
        rest = journal.read("st1", boot.number, 8, 100, limit=3)
        assert ([e.seq for e in rest.entries], rest.gone, rest.next_seq) == ([8, 9, 10], (), None)
        assert journal.read("st1", 99, 1, 5).gone == ((1, 5),)
        assert journal.read("st9", boot.number, 1, 5) == journal.read("st1", boot.number, 50, 60)
        with pytest.raises(JournalError):
            journal.read("st1", boot.number, 5, 4)
    with opened(path) as (journal, second):
        assert second.last_seq == {"st1": 10}
        answers = Answers()
        conclude(journal, draft("r10"), draft("r11"))
        journal.prune("st1", second.number, 99, answers)
        answers.wait()
    with opened(path) as (_, third):
        assert third.last_seq == {"st1": 2}


# --- a disk that is slow, full or failing -------------------------------------------------------------------------


@contextlib.contextmanager
def locked_by_another_program(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_record_that_cannot_be_written_comes_back_withdrawn_and_is_written_when_the_disk_is_back(path: Path) -> None:
    with opened(path, busy_timeout_ms=1) as (journal, boot):
        conclude(journal, draft("r1"))
        with locked_by_another_program(path):
            (end,) = conclude(journal, draft("r2"))
            assert isinstance(end.error, JournalError)
            assert "locked" in str(end.error)
            told = end.inspection
            assert (told.seq, told.result_id, told.journaled) == (2, "r2", False)
            assert (told.evaluation, told.result_state, told.reason) == ("Undefined", "Failed", "journal")
            assert journal.stats().failing
            assert numbers(journal, "st1", boot.number) == [1]
            assert journal.read("st1", boot.number, 1, 9).gone == ()  # still to come
            assert intend(journal, intent("r9"))[0] is not None
        conclude(journal, draft("r3"))
        entries = journal.read("st1", boot.number, 1, 9).entries
        assert [e.seq for e in entries] == [1, 2, 3]
        assert entries[1].header == end.header
        assert (journal.stats().failing, journal.stats().owed) == ("", 0)


def test_recovery_is_noticed_although_nothing_is_inspected(path: Path) -> None:
    with opened(path, busy_timeout_ms=1) as (journal, boot):
        with locked_by_another_program(path):
            conclude(journal, draft("r1"))
        watch = threading.Event()
        while numbers(journal, "st1", boot.number) != [1]:
            watch.wait(0.01)
        assert journal.stats().failing == ""


def test_what_is_owed_at_the_end_is_tried_once_more_and_otherwise_said(path: Path) -> None:
    journal = Journal(path, "line-1", busy_timeout_ms=1)
    journal.open()
    with locked_by_another_program(path):
        conclude(journal, draft("r1"))
        with pytest.raises(JournalError, match="1 outcomes"):
            journal.close()
    with opened(path) as (journal, boot):
        assert not boot.previous_closed


def test_a_missed_trigger_has_no_verdict_to_withdraw() -> None:
    missed = inspection(evaluation="Undefined", result_state="Aborted", reason="missed_busy", views=())
    assert withdrawn(missed) == missed.model_copy(update={"journaled": False})


def test_a_commit_that_arrives_after_the_withdrawal_is_superseded_by_an_amendment(path: Path) -> None:
    with opened(path) as (journal, boot):
        answers = Answers()
        bound = journal.conclude(draft("r1"), answers)
        told = journal.withdraw(bound)
        answers.wait()
        conclude(journal, draft("r2"))
        entry = journal.read("st1", boot.number, 1, 1).entries[0]
        assert entry.header == told.header
        assert decode_header(entry.header).evaluation == "Undefined"
        assert [a.kind for a in entry.amendments] == ["journal"]
        with contextlib.closing(sqlite3.connect(path)) as other:
            (kept,) = other.execute("SELECT header FROM record WHERE seq = 1").fetchone()
        assert decode_header(kept).evaluation == "OK"  # nothing is ever changed


def test_a_withdrawal_that_fits_no_header_any_more_still_goes_out(path: Path) -> None:
    room = inspection(seq=1, views=(view(camera="c" * 6400),))
    with opened(path) as (journal, _):
        spare = 8192 - len(journal.conclude(draft("probe", views=room.views), lambda _: None).model_dump_json())
        tight = draft("tight", views=(view(camera="c" * (6400 + spare)),))
        answers = Answers()
        bound = journal.conclude(tight, answers)
        assert answers.wait()[-1].inspection.evaluation == "OK"
        assert decode_header(journal.withdraw(bound).header).evaluation == "Undefined"


def test_a_full_journal_says_so_withdraws_and_loses_no_number(path: Path) -> None:
    with opened(path, max_bytes=400_000) as (journal, boot):
        boxes = tuple(BoxMessage(x=n, y=n, w=1, h=1, peak=1.0, area=1.0) for n in range(80))
        seq = 0
        while True:
            seq += 1
            (end,) = conclude(journal, draft(f"r{seq}", **_as_not_ok(boxes)))
            assert end.inspection.seq == seq
            if end.error:
                break
            assert seq < 200
        assert "full" in str(end.error)
        assert "make space" in str(end.error)
        assert end.inspection.evaluation == "Undefined"
        answers = Answers()
        journal.prune("st1", boot.number, seq // 2, answers)
        while answers.wait(len(answers.ends) + 1)[-1] is not None:
            journal.prune("st1", boot.number, seq // 2, answers)
        conclude(journal, draft("after", **_as_not_ok(boxes)))
        replay = journal.read("st1", boot.number, 1, 1000)
        assert replay.gone == ((1, seq // 2),)
        assert [e.seq for e in replay.entries] == list(range(seq // 2 + 1, seq + 2))


def _as_not_ok(boxes: tuple[BoxMessage, ...]) -> dict[str, Any]:
    bad = not_ok()
    return {"evaluation": "NotOK", "views": (bad.views[0].model_copy(update={"boxes": boxes}),)}


def test_a_queue_that_is_full_withdraws_at_once_instead_of_growing(path: Path) -> None:
    with opened(path, queue_limit=2) as (journal, boot):
        held, go, answers = threading.Event(), threading.Event(), Answers()
        journal.intend(intent("first"), lambda _: (held.set(), go.wait(WAIT_S)))
        assert held.wait(WAIT_S)
        for n in range(1, 5):
            journal.conclude(draft(f"r{n}"), answers)
        refused = answers.wait(2)
        assert [e.inspection.seq for e in refused] == [3, 4]
        assert all("behind" in str(e.error) for e in refused)
        journal.intend(intent("late"), answers)
        assert "behind" in str(answers.wait(3)[-1])
        go.set()
        answers.wait(5)
        conclude(journal, draft("r5"))
        assert numbers(journal, "st1", boot.number) == [1, 2, 3, 4, 5]
        assert not decode_header(journal.read("st1", boot.number, 3, 3).entries[0].header).journaled


def test_when_too_many_records_wait_for_the_disk_their_numbers_are_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_daemon.edges.journal._MOST_OWED", 3)
    with opened(path, busy_timeout_ms=1) as (journal, boot):
        with locked_by_another_program(path):
            for n in range(8):
                conclude(journal, draft(f"r{n}"))
        conclude(journal, draft("after"))
        replay = journal.read("st1", boot.number, 1, 100)
        assert [e.seq for e in replay.entries] == [1, 2, 3, 9]
        assert replay.gone == ((4, 8),)
        with contextlib.closing(sqlite3.connect(path)) as other:
            assert other.execute("SELECT station, first, last, why FROM gone").fetchall() == [("st1", 4, 8, "lost")]


def test_a_value_the_database_cannot_hold_is_refused_alone(path: Path) -> None:
    with opened(path) as (journal, _):
        held, go, answers = threading.Event(), threading.Event(), Answers()
        journal.intend(intent("first"), lambda _: (held.set(), go.wait(WAIT_S)))
        assert held.wait(WAIT_S)
        journal.intend(intent("big", attempt=2**70), answers)
        journal.intend(intent("good"), answers)
        journal.intend(intent("good"), answers)
        go.set()
        big, good, again = answers.wait(3)
        assert isinstance(big, JournalError)
        assert good is None
        assert isinstance(again, OutcomeTwiceError)


def test_a_callback_that_fails_is_reported_and_the_journal_goes_on(path: Path) -> None:
    fatal = Answers()
    with opened(path, on_fatal=fatal) as (journal, _):

        def fail(_: object) -> None:
            raise RuntimeError("a defect")

        journal.intend(intent("r1"), fail)
        assert isinstance(fatal.wait()[0], RuntimeError)
        assert conclude(journal, draft("r2"))[0].error is None


def test_after_closing_nothing_is_accepted_and_nothing_hangs(path: Path) -> None:
    with opened(path) as (journal, _):
        pass
    journal.close()
    answers = Answers()
    journal.intend(intent("r1"), answers)
    journal.conclude(draft("r2"), answers)
    refused, withdrawn_end = answers.wait(2)
    assert isinstance(refused, JournalError)
    assert withdrawn_end.inspection.journaled is False
    with pytest.raises(JournalError):
        journal.open()
    with pytest.raises(JournalError):
        journal.seen("st1", "unknown")


# --- opening ------------------------------------------------------------------------------------------------------


def test_a_second_daemon_on_the_same_journal_is_refused(path: Path) -> None:
    with opened(path), pytest.raises(JournalBusyError, match="another edge-daemon"):
        Journal(path, "line-1").open()


def test_a_journal_in_a_folder_that_cannot_exist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(tmp_path / "file" / "journal.sqlite", "l").open()


def test_the_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE precious (x)")
        other.commit()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another program"):
        Journal(path, "l").open()
    assert path.read_bytes() == before


def test_a_journal_of_a_newer_version_is_refused(path: Path) -> None:
    with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 3")
    with pytest.raises(JournalError, match="layout 3"):
        Journal(path, "l").open()


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 + 100)


def _scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(random.Random(1).randbytes(3 * 4096))


def _replace(path: Path) -> None:
    path.write_bytes(b"not a database, " * 500)


def _blank_application_id(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(68)
        file.write(bytes(4))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "overwritten": _scribble,
    "no database at all": _replace,
    "a wrong header": _blank_application_id,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_journal_is_kept_aside_said_loudly_and_numbers_go_on(
    path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with opened(path) as (journal, boot):
            conclude(journal, *(draft(f"b{boot.number}-{n}") for n in range(20)))
    damage(path)
    damaged_bytes = path.read_bytes()
    with opened(path) as (journal, boot):
        assert boot.number == 4
        assert boot.previous_boot == 3
        assert boot.unfinished == []
        assert "damaged" in boot.alarm
        assert "check the disk" in boot.alarm
        assert boot.alarm in caplog.text
        assert conclude(journal, draft("r1"))[0].error is None
        assert journal.read("st1", 3, 1, 20).gone == ((1, 20),)
        (aside,) = [p for p in path.parent.glob("journal.sqlite.damaged-*") if not p.name.endswith(("-wal", "-shm"))]
        assert aside.read_bytes() == damaged_bytes
    with opened(path) as (_, boot):
        assert (boot.number, boot.alarm) == (5, "")


def test_a_journal_that_vanished_is_said_and_its_number_not_used_again(path: Path) -> None:
    with opened(path) as (journal, _):
        conclude(journal, draft("r1"))
    path.unlink()
    with opened(path) as (_, boot):
        assert (boot.number, boot.previous_boot) == (2, 1)
        assert "missing" in boot.alarm


def test_without_the_sidecar_the_journal_itself_counts(path: Path) -> None:
    for _ in range(2):
        with opened(path):
            pass
    path.with_name("journal.sqlite.boot").write_text("rubbish")
    with opened(path) as (_, boot):
        assert boot.number == 3


@pytest.mark.parametrize(
    "damage",
    [
        "INSERT INTO intent VALUES ('r', 1, 'st1', '1', 1, '{')",
        "INSERT INTO intent VALUES ('r', 1, 'st1', '1', 1, '[]')",
        "INSERT INTO intent VALUES ('r', 1, 'st1', '1', 1, '{\"station\": \"st1\"}')",
        "DROP TABLE intent",
        "DROP TABLE chain",
        "DELETE FROM chain",
        "PRAGMA writable_schema=ON; UPDATE sqlite_schema SET sql = 'CREATE TABLE boot (x)' WHERE name = 'boot'",
        "PRAGMA writable_schema=ON; UPDATE sqlite_schema SET sql = CAST(x'c8ff' AS TEXT) WHERE name = 'boot'",
    ],
)
def test_a_journal_whose_pages_are_whole_and_whose_rows_are_not_is_kept_aside_too(path: Path, damage: str) -> None:
    """The line begins again with a new one; before, the daemon did not start until somebody came."""
    with Journal(path, "line-1") as journal:
        first = journal.boot.number
    connection = sqlite3.connect(path)
    connection.executescript(damage)
    connection.close()
    with Journal(path, "line-1") as journal:
        assert "damaged" in journal.boot.alarm
        assert journal.boot.number > first
        answers = Answers()
        journal.conclude(inspection(seq=0, boot=0), answers)
        answers.wait()
    assert [aside for aside in path.parent.glob("journal.sqlite.damaged-*") if aside.stat().st_size]


def test_damaged_and_without_sidecar_a_number_never_used_before_is_taken(path: Path) -> None:
    with opened(path):
        pass
    path.with_name("journal.sqlite.boot").unlink()
    path.write_bytes(b"not a database, " * 500)
    with opened(path) as (_, boot):
        assert boot.number > 1_700_000_000


def test_a_failed_open_gives_the_lock_back(path: Path) -> None:
    path.mkdir()
    with pytest.raises(JournalError):
        Journal(path, "l").open()
    with path.with_name("journal.sqlite.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- processes that die -------------------------------------------------------------------------------------------

WRITER = """
import itertools, resource, sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from edge_daemon.edges.journal import Journal
from edge_daemon.edges.journal_entries import Intent
from wire_kit import inspection

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + chr(10))
    sys.stdout.flush()

def fate(error):
    return "lost" if error else "kept"

def told(end):
    say("record", end.inspection.result_id, end.inspection.station, end.inspection.seq, fate(end.error))

if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
journal = Journal(Path({path!r}), "line-1")
boot = journal.open()
say("boot", boot.number, ",".join(sorted(i.result_id for i in boot.unfinished)))
for n in itertools.count():
    result_id = f"b{{boot.number}}-{{n}}"
    station = ("st1", "st2")[n % 2]
    journal.intend(Intent(station, result_id, result_id), lambda e, r=result_id: say("intent", r, fate(e)))
    if n % 7:
        draft = inspection(station=station, result_id=result_id, trigger_id=result_id)
        journal.conclude(draft, told)
    if journal.stats().queued > 50:
        sys.stdin.readline()
"""


def _writer(path: Path, limit: int = 0) -> subprocess.Popen[str]:
    script = WRITER.format(tests=str(ROOT / "tests"), root=str(ROOT), path=str(path), limit=limit)
    return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _run_until(process: subprocess.Popen[str], enough: Callable[[list[list[str]]], bool]) -> list[list[str]]:
    """What the writer acknowledged until it was killed; it is let go on for each line that was read."""
    assert process.stdin is not None
    assert process.stdout is not None
    said: list[list[str]] = []
    try:
        while not enough(said):
            line = process.stdout.readline()
            assert line, "the writer ended by itself"
            said.append(line.split())
            process.stdin.write("\n")
            process.stdin.flush()
    finally:
        process.send_signal(signal.SIGKILL)
        said += [line.split() for line in process.stdout if line.endswith("\n")]
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()
    return said


def test_a_daemon_killed_at_any_moment_loses_nothing_that_it_acknowledged(path: Path) -> None:
    """Five boots under load, each killed with SIGKILL; then every acknowledged record is read back."""
    rounds = 5
    rng = random.Random(20261120)
    kept: dict[str, tuple[int, str, int]] = {}
    intended: set[str] = set()
    for _ in range(rounds):
        length = rng.randrange(30, 400)
        said = _run_until(_writer(path), lambda lines, length=length: len(lines) >= length)
        number = int(said[0][1])
        assert number == 1 + len({boot for boot, _, _ in kept.values()})
        for words in said[1:]:
            if words[0] == "record" and words[-1] == "kept":
                kept[words[1]] = (number, words[2], int(words[3]))
            elif words[0] == "intent" and words[-1] == "kept":
                intended.add(words[1])
    assert len(kept) > 100
    with opened(path) as (journal, boot):
        assert boot.number == rounds + 1
        assert boot.alarm == ""
        assert not boot.previous_closed
        found: dict[str, tuple[int, str, int]] = {}
        for number in range(1, rounds + 1):
            for station in ("st1", "st2"):
                replay = journal.read(station, number, 1, 10**6, limit=10**6)
                assert replay.gone == ()
                assert [e.seq for e in replay.entries] == list(range(1, len(replay.entries) + 1))
                for entry in replay.entries:
                    assert entry.result_id not in found
                    assert decode_header(entry.header).seq == entry.seq
                    found[entry.result_id] = (number, station, entry.seq)
        assert kept.items() <= found.items()
        unfinished = {i.result_id for i in boot.unfinished}
        assert intended - set(found) <= unfinished
        assert not unfinished & set(found)
        for station in ("st1", "st2"):
            last = max((seq for number, name, seq in found.values() if (number, name) == (rounds, station)), default=0)
            assert boot.last_seq.get(station, 0) == last


def test_a_disk_that_refuses_to_grow_ends_in_withdrawn_records_and_a_sound_journal(path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel fail the writes themselves, as a full disk or a quota does."""
    said = _run_until(
        _writer(path, limit=200_000), lambda lines: any(w[-1] == "lost" for w in lines if w[0] == "record")
    )
    kept = {words[1] for words in said if words[0] == "record" and words[-1] == "kept"}
    assert kept
    with opened(path) as (journal, boot):
        assert boot.alarm == ""
        found = {e.result_id for s in ("st1", "st2") for e in journal.read(s, 1, 1, 10**6, limit=10**6).entries}
        assert kept <= found


def test_the_intent_table_can_be_read_by_a_newer_version_with_more_fields(path: Path) -> None:
    with opened(path) as (journal, _):
        intend(journal, intent("r1"))
    with contextlib.closing(sqlite3.connect(path)) as other:
        (body,) = other.execute("SELECT body FROM intent").fetchone()
        other.execute("UPDATE intent SET body = ?", (json.dumps(json.loads(body) | {"added_later": 1}),))
        other.commit()
    with opened(path) as (_, boot):
        assert boot.unfinished == [intent("r1")]


def test_an_open_journal_has_every_descriptor_that_it_will_need(path: Path) -> None:
    """SQLite opens the log of a connection at its first read: of the one for replays that was after ten minutes."""
    with opened(path) as (journal, _):
        conclude(journal, draft("r1"))
        before = len(os.listdir("/proc/self/fd"))
        assert journal.seen("st1", "t-r1") is not None
        assert [record.station for record in journal.oldest(10)] == ["st1"]
        assert journal.size_bytes() > 0
        assert len(os.listdir("/proc/self/fd")) == before
