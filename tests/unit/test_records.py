"""The way of an outcome out: durable first, in order, and withdrawn when the disk is too slow."""

import contextlib
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from wire_kit import inspection

from edge_daemon.edges.journal import Journal
from edge_daemon.edges.journal_entries import Concluded, Intent, OutcomeTwiceError
from edge_daemon.edges.journal_work import withdrawn
from edge_daemon.edges.records import Records
from edge_daemon.errors import JournalError
from edge_daemon.wire.codec import decode_inspection, inspection_header
from edge_daemon.wire.messages import Inspection

WAIT_S = 20.0
BUDGET_NS = 200_000_000
LONG_NS = 3_600_000_000_000


class Sink:
    """A publisher that keeps what it is given."""

    def __init__(self, takes: bool = True) -> None:
        self.published: list[Inspection] = []
        self._takes = takes

    def publish_result(self, frames: Sequence[bytes]) -> bool:
        self.published.append(decode_inspection(list(frames)))
        return self._takes


class Told:
    """What `on_published` said, to be waited for."""

    def __init__(self) -> None:
        self.all: list[Inspection] = []
        self._changed = threading.Condition()

    def __call__(self, outcome: Inspection) -> None:
        with self._changed:
            self.all.append(outcome)
            self._changed.notify_all()

    def wait(self, count: int) -> list[Inspection]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, WAIT_S)
            return list(self.all)


class HandJournal:
    """A journal whose disk is the test: it answers when told."""

    def __init__(self) -> None:
        self.open: dict[str, tuple[Inspection, Callable[[Concluded], None]]] = {}
        self.withdrawals: list[str] = []

    def conclude(self, draft: Inspection, on_done: Callable[[Concluded], None]) -> Inspection:
        if draft.result_id in self.open:
            raise OutcomeTwiceError(f"{draft.result_id} has its outcome already")
        bound = draft.model_copy(update={"seq": len(self.open) + 1})
        self.open[draft.result_id] = (bound, on_done)
        return bound

    def withdraw(self, inspection: Inspection) -> Concluded:
        self.withdrawals.append(inspection.result_id)
        told = withdrawn(inspection)
        return Concluded(told, inspection_header(told), JournalError("too slow"))

    def commit(self, result_id: str, error: JournalError | None = None) -> None:
        bound, on_done = self.open[result_id]
        told = bound if error is None else withdrawn(bound)
        on_done(Concluded(told, inspection_header(told), error))


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


@contextlib.contextmanager
def by_hand(
    budget_ns: int = LONG_NS, sink: Sink | None = None
) -> Iterator[tuple[Records, HandJournal, Sink, Told, Clock]]:
    journal, told, clock = HandJournal(), Told(), Clock()
    sink = sink or Sink()
    with Records(journal, sink, budget_ns, told, clock_ns=clock) as records:
        yield records, journal, sink, told, clock


def draft(result_id: str, **changes: Any) -> Inspection:
    return inspection(**({"seq": 0, "result_id": result_id} | changes))


def test_nothing_is_published_before_it_is_durable() -> None:
    with by_hand() as (records, journal, sink, told, _):
        records.conclude(draft("r1"))
        assert sink.published == []
        assert records.stats().waiting == 1
        journal.commit("r1")
        assert told.wait(1)[0].evaluation == "OK"
        assert sink.published == told.all


def test_outcomes_go_out_in_the_order_of_their_conclusion_whatever_the_order_of_the_commits() -> None:
    with by_hand() as (records, journal, sink, told, _):
        for name in ("r1", "r2", "r3"):
            records.conclude(draft(name))
        journal.commit("r3")
        journal.commit("r2")
        assert sink.published == []
        journal.commit("r1")
        assert [o.result_id for o in told.wait(3)] == ["r1", "r2", "r3"]


@pytest.mark.parametrize("evaluation", ["OK", "NotOK", "NotDecidable"])
def test_a_verdict_whose_commit_fails_goes_out_withdrawn(evaluation: str) -> None:
    with by_hand() as (records, journal, sink, told, _):
        records.conclude(draft("r1", evaluation=evaluation))
        journal.commit("r1", JournalError("disk full"))
        told.wait(1)
        (out,) = sink.published
        assert (out.seq, out.result_id, out.journaled) == (1, "r1", False)
        assert (out.evaluation, out.result_state, out.reason) == ("Undefined", "Failed", "journal")
        assert records.stats().withdrawn == 1


def test_a_verdict_whose_commit_outlasts_the_budget_is_withdrawn_and_the_late_commit_only_counted() -> None:
    with by_hand(budget_ns=1_000_000) as (records, journal, sink, told, clock):
        records.conclude(draft("r1"))
        clock.now_ns = 1_000_000
        assert told.wait(1)[0].evaluation == "Undefined"
        assert journal.withdrawals == ["r1"]
        journal.commit("r1")
        records.conclude(draft("r2"))
        journal.commit("r2")
        assert [o.evaluation for o in told.wait(2)] == ["Undefined", "OK"]
        assert records.stats().late_commits == 1
        assert len(sink.published) == 2


def test_a_commit_after_the_budget_is_too_late_even_when_nobody_has_looked_yet() -> None:
    with by_hand(budget_ns=LONG_NS) as (records, journal, sink, told, clock):
        records.conclude(draft("r1"))
        records.conclude(draft("r2"))
        clock.now_ns = LONG_NS + 1
        journal.commit("r2")
        journal.commit("r1")
        assert [o.evaluation for o in told.wait(2)] == ["Undefined", "Undefined"]
        assert sorted(journal.withdrawals) == ["r1", "r2"]
        assert [o.result_id for o in sink.published] == ["r1", "r2"]


def test_a_second_outcome_is_counted_and_never_published() -> None:
    with by_hand() as (records, journal, sink, told, _):
        assert records.conclude(draft("r1", evaluation="NotOK")) is not None
        assert records.conclude(draft("r1")) is None
        journal.commit("r1")
        told.wait(1)
        records.conclude(draft("r2"))
        journal.commit("r2", OutcomeTwiceError("recorded already"))
        records.conclude(draft("r3"))
        journal.commit("r3")
        told.wait(2)
        assert [o.result_id for o in sink.published] == ["r1", "r3"]
        assert records.stats().second_outcomes == 2


def test_a_publisher_that_is_full_is_counted_and_the_record_stays_for_replay() -> None:
    with by_hand(sink=Sink(takes=False)) as (records, journal, _, told, __):
        records.conclude(draft("r1"))
        journal.commit("r1")
        told.wait(1)
        assert records.stats().not_taken == 1


def test_closing_publishes_what_waits_and_then_refuses() -> None:
    with by_hand(budget_ns=1) as (records, journal, sink, _, clock):
        records.conclude(draft("r1"))
        clock.now_ns = 1
    assert [o.evaluation for o in sink.published] == ["Undefined"]
    records.close()
    with pytest.raises(JournalError, match="closed"):
        records.conclude(draft("r2"))
    assert list(journal.open) == ["r1"]


def test_a_failing_listener_is_reported() -> None:
    fatal = Told()

    def fail(_: Inspection) -> None:
        raise RuntimeError("a defect")

    journal = HandJournal()
    with Records(journal, Sink(), LONG_NS, fail, on_fatal=fatal) as records:  # type: ignore[arg-type]
        records.conclude(draft("r1"))
        journal.commit("r1")
        assert isinstance(fatal.wait(1)[0], RuntimeError)
        with pytest.raises(JournalError):
            records.conclude(draft("r2"))


# --- with the real journal ----------------------------------------------------------------------------------------


def test_a_locked_disk_withdraws_within_the_budget_and_replay_says_what_the_wire_said(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    sink, told = Sink(), Told()
    journal = Journal(path, "line-1", busy_timeout_ms=int(WAIT_S * 1000))
    boot = journal.open()
    with Records(journal, sink, 20_000_000, told) as records:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for n in range(5):
                records.conclude(draft(f"r{n}"))
            stuck = told.wait(5)
            other.execute("ROLLBACK")
        assert {o.evaluation for o in stuck} == {"Undefined"}
    journal.close()
    with Journal(path, "line-1") as again:
        replay = again.read("st1", boot.number, 1, 100)
        assert [entry.header for entry in replay.entries] == [inspection_header(o) for o in sink.published]
        assert all(entry.amendments for entry in replay.entries)


def test_under_load_from_several_threads_every_outcome_goes_out_once_and_in_order(tmp_path: Path) -> None:
    sink, told = Sink(), Told()
    with (
        Journal(tmp_path / "journal.sqlite", "line-1") as journal,
        Records(journal, sink, LONG_NS, told) as records,
    ):

        def work(station: str) -> None:
            for n in range(60):
                records.conclude(draft(f"{station}-{n}", station=station))

        threads = [threading.Thread(target=work, args=(f"st{s}",)) for s in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told.wait(240)
        for s in range(4):
            assert [o.seq for o in sink.published if o.station == f"st{s}"] == list(range(1, 61))
        assert records.stats().published == 240


def test_outcomes_may_be_concluded_from_inside_the_journals_own_callbacks(tmp_path: Path) -> None:
    """A trigger whose intent fails is concluded at once, from the writer thread."""
    sink, told = Sink(), Told()
    with (
        Journal(tmp_path / "journal.sqlite", "line-1") as journal,
        Records(journal, sink, LONG_NS, told) as records,
    ):
        for n in range(50):
            intent = Intent("st1", f"r{n}", f"t{n}")
            journal.intend(intent, lambda _, n=n: records.conclude(draft(f"r{n}")))  # type: ignore[misc]
        told.wait(50)
    assert [o.seq for o in sink.published] == list(range(1, 51))


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_disk_does_the_journal_ends_up_saying_what_the_wire_said(tmp_path: Path, seed: int) -> None:
    """Another program locks the file at random moments while outcomes are concluded under a tight budget."""
    rng = random.Random(seed)
    path = tmp_path / "journal.sqlite"
    sink, told = Sink(), Told()
    journal = Journal(path, "line-1", busy_timeout_ms=5, queue_limit=40)
    boot = journal.open()
    pause = threading.Event()
    with (
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
        Records(journal, sink, 8_000_000, told) as records,
    ):
        other.execute("PRAGMA busy_timeout=20000")
        for n in range(250):
            records.conclude(draft(f"r{n}", station=rng.choice(["st1", "st2"])))
            if rng.random() < 0.08 and not other.in_transaction:
                other.execute("BEGIN IMMEDIATE")
            elif rng.random() < 0.1 and other.in_transaction:
                other.execute("ROLLBACK")
            if rng.random() < 0.1:
                pause.wait(rng.random() * 0.01)
        if not other.in_transaction:
            other.execute("BEGIN IMMEDIATE")
        records.conclude(draft("last"))
        assert not told.wait(251)[-1].journaled
        other.execute("ROLLBACK")
    journal.close()
    with Journal(path, "line-1") as again:
        for station in ("st1", "st2"):
            replay = again.read(station, boot.number, 1, 10_000)
            assert replay.gone == ()
            assert [e.header for e in replay.entries] == [
                inspection_header(o) for o in sink.published if o.station == station
            ]


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        Records(HandJournal(), Sink(), 0, lambda _: None)
