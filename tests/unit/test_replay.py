"""Replay: what a reader missed comes again, in order, once, and what cannot come is said to be gone."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from wire_kit import inspection

from edge_daemon.client import Batch, Gone, Position, RefusedError, ReplayClient, Subscriber
from edge_daemon.edges.journal import Journal
from edge_daemon.edges.publisher import Publisher, PublisherConfig
from edge_daemon.edges.records import Records
from edge_daemon.edges.replay import RECORDS_AT_ONCE, ReplayDesk
from edge_daemon.edges.server import REPLAY, RequestServer
from edge_daemon.errors import EdgeError
from edge_daemon.wire.messages import ReplayRequest

WAIT_S = 20.0
ANY_PORT = "tcp://127.0.0.1:*"


class Line:
    """Journal, records, results and replay sockets as in the daemon; no cameras. `budget_ns`: for a commit."""

    def __init__(self, folder: Path, budget_ns: int = 10_000_000_000) -> None:
        self.path = folder / "journal.sqlite"
        self.journal = Journal(self.path, "line-1")
        self.boot = self.journal.open()
        self._context: zmq.Context[Any] = zmq.Context()
        self.publisher = Publisher(self._context, PublisherConfig(ANY_PORT, ANY_PORT, ANY_PORT))
        self.results = self.publisher.open().results
        self._told: dict[str, int] = {}
        self._changed = threading.Condition()
        self.records = Records(self.journal, self.publisher, budget_ns, self._published)
        self.records.open()
        self.desk = ReplayDesk(self.journal, self.boot.number, lambda station: self._told.get(station, 0))
        self._server = RequestServer(self._context, ANY_PORT, REPLAY, self.desk.handle, remembered=0)
        self.replay = self._server.open()

    def _published(self, record: Any) -> None:
        with self._changed:
            self._told[record.station] = record.seq
            self._changed.notify_all()

    def judge(self, count: int, station: str = "st1", prefix: str = "r") -> None:
        """Concludes parts and waits until they are out."""
        last = 0
        for n in range(count):
            done = self.records.conclude(
                inspection(seq=0, boot=0, station=station, result_id=f"{station}-{prefix}{self.boot.number}-{n}")
            )
            assert done is not None
            last = done.seq
        with self._changed:
            assert self._changed.wait_for(lambda: self._told.get(station, 0) >= last, WAIT_S)

    def close(self) -> None:
        self._server.close()
        self.records.close()
        self.publisher.close()
        self._context.term()
        self.journal.close()


@contextlib.contextmanager
def line(folder: Path) -> Iterator[Line]:
    running = Line(folder)
    try:
        yield running
    finally:
        running.close()


class Table:
    """A consumer that keeps records and position together. `fail_at`: batches whose transaction is rolled back."""

    def __init__(self, fail_at: tuple[int, ...] = ()) -> None:
        self.rows: list[tuple[str, int, int]] = []
        self.headers: dict[str, bytes] = {}
        self.gone: list[Gone] = []
        self.position: dict[str, Position] = {}
        self._fail_at = fail_at
        self._calls = 0

    def __call__(self, batch: Batch) -> None:
        self._calls += 1
        if self._calls in self._fail_at:
            raise ConnectionError("the database is gone")
        for record in batch.records:
            i = record.inspection
            assert i.result_id not in self.headers, "told twice"
            self.headers[i.result_id] = record.header
            self.rows.append((i.station, i.boot, i.seq))
        self.gone += batch.gone
        self.position = batch.position


def follow(running: Line, table: Table, rows: int, **options: Any) -> Subscriber:
    """Until the table has so many rows."""
    with Subscriber(running.results, replay=running.replay, since=table.position, **options) as results:
        results.follow(table, until=lambda: len(table.rows) >= rows, check_s=0.05)
    return results


def test_a_new_reader_gets_everything_that_the_journal_holds(tmp_path: Path) -> None:
    table = Table()
    with line(tmp_path) as first:
        first.judge(3)
        first.judge(2, "st2")
    with line(tmp_path) as second:
        second.judge(1)
        follow(second, table, 6)
    assert sorted(table.rows) == [
        ("st1", 1, 1),
        ("st1", 1, 2),
        ("st1", 1, 3),
        ("st1", 2, 1),
        ("st2", 1, 1),
        ("st2", 1, 2),
    ]
    assert [row for row in table.rows if row[0] == "st1"] == [
        ("st1", 1, 1),
        ("st1", 1, 2),
        ("st1", 1, 3),
        ("st1", 2, 1),
    ]
    assert not table.gone


def test_live_records_follow_without_asking_and_are_the_journals_bytes(tmp_path: Path) -> None:
    table = Table()
    with line(tmp_path) as running:
        running.judge(1)
        with Subscriber(running.results, replay=running.replay) as results:
            results.follow(table, until=lambda: len(table.rows) == 1, check_s=0.05)
            while running.publisher.stats().results.subscriptions < 1:
                pass
            running.judge(20, prefix="live")
            results.follow(table, until=lambda: len(table.rows) == 21, check_s=WAIT_S)
        entries = running.journal.read("st1", 1, 1, 100).entries
    assert [row[2] for row in table.rows] == list(range(1, 22))
    assert [table.headers[e.result_id] for e in entries] == [e.header for e in entries]


def test_more_than_one_answer_is_put_together(tmp_path: Path) -> None:
    table = Table()
    count = 2 * RECORDS_AT_ONCE + 7
    with line(tmp_path) as running:
        running.judge(count)
        follow(running, table, count)
    assert [row[2] for row in table.rows] == list(range(1, count + 1))


def test_the_tail_of_earlier_boots_is_not_lost_unseen(tmp_path: Path) -> None:
    table = Table()
    with line(tmp_path) as first:
        first.judge(2)
        follow(first, table, 2)
        first.judge(3, prefix="tail")
    for _ in range(2):  # the reader is away during whole boots
        with line(tmp_path) as boot:
            boot.judge(2)
    with line(tmp_path) as last:
        follow(last, table, 9)
    assert table.rows == [("st1", 1, n) for n in range(1, 6)] + [("st1", b, n) for b in (2, 3) for n in (1, 2)]


def test_a_transaction_that_fails_is_told_again_and_nothing_twice(tmp_path: Path) -> None:
    table = Table(fail_at=(1, 3))
    with line(tmp_path) as running:
        running.judge(RECORDS_AT_ONCE + 10)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                follow(running, table, RECORDS_AT_ONCE + 11)
            running.judge(1, prefix=f"more{len(table.rows)}")
        follow(running, table, RECORDS_AT_ONCE + 12)
    assert [row[2] for row in table.rows] == list(range(1, RECORDS_AT_ONCE + 13))


def test_pruned_records_are_gone_and_said_so(tmp_path: Path) -> None:
    table = Table()
    with line(tmp_path) as running:
        running.judge(10)
        pruned = threading.Event()
        running.journal.prune("st1", 1, 4, lambda _error: pruned.set())
        assert pruned.wait(WAIT_S)
        follow(running, table, 6)
    assert table.gone == [Gone("st1", 1, 1, 4)]
    assert [row[2] for row in table.rows] == [5, 6, 7, 8, 9, 10]


def test_a_boot_that_the_journal_never_knew_is_gone_as_far_as_anybody_knows(tmp_path: Path) -> None:
    """The journal was damaged and a new one started, or this PC was set up anew."""
    with line(tmp_path) as running:
        running.judge(2)
        lost = Table()
        lost.position = {"st1": Position(57, 1000, "another life")}
        follow(running, lost, 2)
        twin = Table()
        twin.position = {"st1": Position(1, 1000, "another life")}
        follow(running, twin, 2)
    assert lost.gone == [Gone("st1", 57, 1001, None)]
    assert twin.gone == [Gone("st1", 1, 1001, None)]
    assert lost.rows == twin.rows == [("st1", 1, 1), ("st1", 1, 2)]


def test_a_replay_never_says_more_than_the_wire_did(tmp_path: Path) -> None:
    """A record on the disk may still be withdrawn because its commit was late; until it is told it is nobody's."""
    with line(tmp_path) as running:
        running.judge(3)
        ahead = ReplayDesk(running.journal, running.boot.number, lambda _station: 2)
        answer = ahead.answer(ReplayRequest(station="st1", boot=1))
        assert [r.seq for r in answer.records] == [1, 2]
        assert answer.next_seq is None
        none_yet = ReplayDesk(running.journal, running.boot.number, lambda _station: 0)
        assert not none_yet.answer(ReplayRequest(station="st1", boot=1)).records


def test_a_withdrawn_result_comes_when_the_journal_has_it_and_as_the_wire_said_it(tmp_path: Path) -> None:
    table = Table()
    with line(tmp_path) as running:
        running.judge(1)
        done = running.journal.conclude(inspection(seq=0, boot=0, result_id="late"), lambda _end: None)
        told = running.journal.withdraw(done)
        running._published(told.inspection)
        follow(running, table, 2)
    assert b'"journaled":false' in table.headers["late"]
    assert b'"reason":"journal"' in table.headers["late"]


def test_questions_that_cannot_be_answered_are_refused(tmp_path: Path) -> None:
    with line(tmp_path) as running, ReplayClient(running.replay) as replay:
        with pytest.raises(RefusedError, match="below first"):
            replay.fetch("st1", 1, 5, 4)
        with pytest.raises(RefusedError, match="first"):
            replay._request(ReplayRequest.model_construct(request_id="a", station="st1", boot=1, first=0))
        assert replay.stations() == ()
        running.journal.close()
        with pytest.raises(RefusedError, match="not open"):
            replay.fetch("st1", 1)
    with pytest.raises(EdgeError, match="replay endpoint"), Subscriber() as results:
        results.follow(Table())
