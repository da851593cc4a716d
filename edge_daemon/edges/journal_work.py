"""What the journal's writer thread writes: one class for each kind of entry, in the transaction that it is given."""

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from edge_daemon.core.decision import Evaluation, Reason, ResultState
from edge_daemon.edges.journal_chain import amendment_body, append, gone_body
from edge_daemon.edges.journal_entries import (
    Amendment,
    Concluded,
    Fate,
    Intent,
    OutcomeTwiceError,
    Report,
    Reported,
)
from edge_daemon.errors import JournalError, WireError
from edge_daemon.wire.codec import inspection_header
from edge_daemon.wire.messages import Inspection

log = logging.getLogger(__name__)

# Of one record. A gateway tells two; what a PLC takes back and says anew has room.
_REPORTS_OF_A_RECORD: Final = 16
_PENDING: Final = Reported("pending")
# The database is sound but does not take this entry: a broken key, a value it cannot hold.
REFUSALS: Final = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    ValueError,
    OverflowError,
    TypeError,
)


class Writable(Protocol):
    def write(self, connection: sqlite3.Connection) -> None: ...


class Work(Writable, Protocol):
    """Something queued for the writer thread."""

    def done(self, error: JournalError | None) -> None: ...


def utc_now() -> str:
    """ISO 8601 UTC with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def withdrawn(inspection: Inspection) -> Inspection:
    """What goes out instead of a verdict that could not be made durable in time: same seq and result_id.

    Without a verdict (missed, failed) there is nothing to withdraw: state and reason stay.
    """
    changes: dict[str, object] = {"journaled": False}
    if inspection.result_state == ResultState.COMPLETED.value:
        changes |= failed(Reason.JOURNAL)
    return inspection.model_copy(update=changes)


def failed(reason: Reason) -> dict[str, object]:
    return {
        "evaluation": Evaluation.UNDEFINED.label,
        "result_state": ResultState.FAILED.value,
        "reason": reason.value,
    }


@dataclass(slots=True)
class Intend:
    intent: Intent
    boot: int
    on_durable: Callable[[JournalError | None], None]

    def write(self, connection: sqlite3.Connection) -> None:
        i = self.intent
        connection.execute(
            "INSERT INTO intent (result_id, boot, station, trigger_id, attempt, body) VALUES (?, ?, ?, ?, ?, ?)",
            (i.result_id, self.boot, i.station, i.trigger_id, i.attempt, json.dumps(asdict(i))),
        )

    def done(self, error: JournalError | None) -> None:
        self.on_durable(error)


@dataclass(slots=True)
class Conclude:
    inspection: Inspection
    header: bytes
    on_done: Callable[[Concluded], None]
    settle: Callable[["Conclude", JournalError | None], None]

    def write(self, connection: sqlite3.Connection) -> None:
        _insert_record(connection, self.inspection, self.header)

    def done(self, error: JournalError | None) -> None:
        self.settle(self, error)


@dataclass(slots=True)
class Withdraw:
    """Makes the journal say what the wire said. Writing it twice changes nothing."""

    inspection: Inspection
    header: bytes

    def write(self, connection: sqlite3.Connection) -> None:
        told = self.inspection
        row = connection.execute(
            "SELECT station, boot, seq, header FROM record WHERE result_id = ?", (told.result_id,)
        ).fetchone()
        if row is None:
            _insert_record(connection, told, self.header)
        elif tuple(row[:3]) != (told.station, told.boot, told.seq):
            raise sqlite3.IntegrityError("another outcome was recorded first")
        elif bytes(row[3]) != self.header:
            body = {"superseded_by": self.header.decode()}
            _insert_amendment(connection, told.result_id, "journal", utc_now(), json.dumps(body))


@dataclass(slots=True)
class Amend:
    result_id: str
    kind: str
    utc: str
    body: str
    on_durable: Callable[[JournalError | None], None] | None

    def write(self, connection: sqlite3.Connection) -> None:
        _insert_amendment(connection, self.result_id, self.kind, self.utc, self.body)

    def done(self, error: JournalError | None) -> None:
        if self.on_durable is not None:
            self.on_durable(error)
        elif error is not None:
            log.error("the %s amendment of %s is not recorded: %s", self.kind, self.result_id, error)


@dataclass(slots=True)
class Tell:
    """A report: looks first, so that nothing is written twice, or beside no record."""

    report: Report
    text: str
    utc: str
    on_done: Callable[[Reported], None]
    reported: Reported = _PENDING

    def write(self, connection: sqlite3.Connection) -> None:
        report = self.report
        found = self._record(connection)
        if found is None:
            waits = connection.execute(
                "SELECT 1 FROM intent WHERE result_id = ? OR (station = ? AND trigger_id = ?)",
                (report.result_id, report.station, report.trigger_id),
            ).fetchone()
            self.reported = Reported("pending" if waits else "unknown_result")
            return
        result_id, header = found
        amendments = read_amendments(connection, result_id)
        told = [a for a in amendments if a.kind in ("delivery", "disposition")]
        same = [a for a in told if a.body.get("amendment_id") == report.amendment_id]
        fate: Fate = "recorded"
        if same:
            fate = "repeated" if (same[0].kind, same[0].body) == (report.kind, report.body) else "amendment_id_reused"
        elif len(told) >= _REPORTS_OF_A_RECORD:
            fate = "too_many"
        else:
            _insert_amendment(connection, result_id, report.kind, self.utc, self.text)
        self.reported = Reported(fate, result_id, effective_header(header, amendments))

    def _record(self, connection: sqlite3.Connection) -> tuple[str, bytes] | None:
        """Of this very station and trigger: an id that is somebody else's is none."""
        report = self.report
        row = connection.execute(
            "SELECT result_id, header FROM record WHERE station = ?1 AND trigger_id = ?2 AND ?3 IN ('', result_id) "
            "ORDER BY boot DESC, attempt DESC LIMIT 1",
            (report.station, report.trigger_id, report.result_id),
        ).fetchone()
        return (row[0], bytes(row[1])) if row else None

    def done(self, error: JournalError | None) -> None:
        self.on_done(self.reported if error is None else Reported("pending", error=error))


@dataclass(slots=True)
class Remove:
    """Retention: single records, oldest first. Neighbouring tombstones grow together."""

    numbers: tuple[int, ...]
    on_durable: Callable[[JournalError | None], None]

    def write(self, connection: sqlite3.Connection) -> None:
        for number in self.numbers:
            row = connection.execute(
                "SELECT station, boot, seq, result_id FROM record WHERE id = ?", (number,)
            ).fetchone()
            if row is None:
                continue
            station, boot, seq, result_id = row
            connection.execute("DELETE FROM amendment WHERE result_id = ?", (result_id,))
            connection.execute("DELETE FROM record WHERE id = ?", (number,))
            self._bury(connection, station, boot, seq)

    @staticmethod
    def _bury(connection: sqlite3.Connection, station: str, boot: int, seq: int) -> None:
        first = last = seq
        rows = connection.execute(
            "SELECT id, first, last FROM gone WHERE station = ? AND boot = ? AND why = 'pruned' "
            "AND (last = ? OR first = ?)",
            (station, boot, seq - 1, seq + 1),
        ).fetchall()
        for number, begin, end in rows:
            first, last = min(first, begin), max(last, end)
            connection.execute("DELETE FROM gone WHERE id = ?", (number,))
        mark_gone(connection, station, boot, first, last, "pruned")

    def done(self, error: JournalError | None) -> None:
        self.on_durable(error)


@dataclass(slots=True)
class Prune:
    station: str
    boot: int
    through_seq: int
    on_durable: Callable[[JournalError | None], None] | None

    def write(self, connection: sqlite3.Connection) -> None:
        chosen = "station = ? AND boot = ? AND seq <= ?"
        values = (self.station, self.boot, self.through_seq)
        (last,) = connection.execute(f"SELECT max(seq) FROM record WHERE {chosen}", values).fetchone()
        if last is None:
            return
        connection.execute(
            f"DELETE FROM amendment WHERE result_id IN (SELECT result_id FROM record WHERE {chosen})", values
        )
        connection.execute(f"DELETE FROM record WHERE {chosen}", values)
        connection.execute("DELETE FROM gone WHERE station = ? AND boot = ? AND last <= ?", (*values[:2], last))
        mark_gone(connection, self.station, self.boot, 1, last, "pruned")

    def done(self, error: JournalError | None) -> None:
        if self.on_durable is not None:
            self.on_durable(error)


def _insert_record(connection: sqlite3.Connection, inspection: Inspection, header: bytes) -> None:
    number, previous, chain = append(connection, "record", header)
    connection.execute(
        "INSERT INTO record (id, station, boot, seq, result_id, trigger_id, attempt, header, previous, chain) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            number,
            inspection.station,
            inspection.boot,
            inspection.seq,
            inspection.result_id,
            inspection.trigger_id,
            inspection.attempt,
            header,
            previous,
            chain,
        ),
    )
    connection.execute("DELETE FROM intent WHERE result_id = ?", (inspection.result_id,))


def _insert_amendment(connection: sqlite3.Connection, result_id: str, kind: str, utc: str, body: str) -> None:
    link = append(connection, "amendment", amendment_body(result_id, kind, utc, body))
    connection.execute(
        "INSERT INTO amendment (result_id, kind, utc, body, id, previous, chain) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (result_id, kind, utc, body, *link),
    )


def mark_gone(connection: sqlite3.Connection, station: str, boot: int, first: int, last: int, why: str) -> None:
    link = append(connection, "gone", gone_body(station, boot, first, last, why))
    connection.execute(
        "INSERT INTO gone (station, boot, first, last, why, id, previous, chain) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (station, boot, first, last, why, *link),
    )


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite rolls back by itself on a full disk
            connection.execute("ROLLBACK")
        raise


def withdraw(inspection: Inspection, error: JournalError) -> Concluded:
    told = withdrawn(inspection)
    try:
        return Concluded(told, inspection_header(told), error)
    except WireError:  # a few bytes longer than what just fitted
        told = barest(told)
        return Concluded(told, inspection_header(told), error)


def try_alone(connection: sqlite3.Connection, work: Writable) -> JournalError | None:
    """Writes one entry inside the transaction; the error when it is refused, the rest of the batch untouched."""
    connection.execute("SAVEPOINT alone")
    try:
        work.write(connection)
    except REFUSALS as exc:
        connection.execute("ROLLBACK TO alone")
        connection.execute("RELEASE alone")
        refusal = OutcomeTwiceError if isinstance(exc, sqlite3.IntegrityError) else JournalError
        return refusal(f"the journal does not take this entry: {exc}")
    connection.execute("RELEASE alone")
    return None


def barest(inspection: Inspection) -> Inspection:
    """The least that still is a record of this trigger, with nothing in it that could be too long."""

    def short(text: str) -> str:
        return text[:64].encode("ascii", "replace").decode()

    changes = {
        "views": (),
        "parts": (),
        "image_ref": None,
        "trigger_id": short(inspection.trigger_id),
        "part_id": None if inspection.part_id is None else short(inspection.part_id),
        "deadline_ms": 0.0,
    }
    state = failed(Reason.UNPROVEN) if inspection.result_state == ResultState.COMPLETED.value else {}
    return inspection.model_copy(update=changes | state)


def read_amendments(connection: sqlite3.Connection, result_id: str) -> tuple[Amendment, ...]:
    """Of one record, oldest first. Raises sqlite3.Error."""
    rows = connection.execute("SELECT kind, utc, body FROM amendment WHERE result_id = ? ORDER BY id", (result_id,))
    return tuple(Amendment(kind, utc, json.loads(body)) for kind, utc, body in rows)


def effective_header(header: bytes, amendments: Sequence[Amendment]) -> bytes:
    """What the wire said: a record that was withdrawn after all is superseded by an amendment."""
    for amendment in amendments:
        if amendment.kind == "journal" and "superseded_by" in amendment.body:
            header = amendment.body["superseded_by"].encode()
    return bytes(header)
