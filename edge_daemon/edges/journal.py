"""The journal: every accepted trigger, and the one outcome of each, durable before anybody is told.

One writer thread; everything queued goes into one transaction (group commit), so that thirty parts a second cost
as many waits for the disk as the disk can do, not sixty. See DESIGN 5.5 and deploy/decisions/0003-journal-layout.md.
"""

import json
import logging
import sqlite3
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from edge_daemon.core.decision import Reason
from edge_daemon.edges.journal_chain import START, Head, read_head
from edge_daemon.edges.journal_entries import (
    Amendment,
    AmendmentKind,
    Boot,
    Concluded,
    Entry,
    Intent,
    JournalStats,
    KnownBoot,
    Later,
    Laters,
    OldRecord,
    OutcomeTwiceError,
    Replay,
    Report,
    Reported,
    Seen,
)
from edge_daemon.edges.journal_file import (
    UNREADABLE,
    JournalDamagedError,
    OpenedFile,
    begin_anew,
    explain,
    keep_boot_number,
    last_boot_number,
    open_file,
    open_for_reading,
)
from edge_daemon.edges.journal_work import (
    REFUSALS,
    Amend,
    Conclude,
    Intend,
    Prune,
    Remove,
    Tell,
    Withdraw,
    Work,
    barest,
    effective_header,
    failed,
    mark_gone,
    read_amendments,
    transaction,
    try_alone,
    utc_now,
    withdraw,
)
from edge_daemon.errors import JournalError, WireError
from edge_daemon.wire.codec import contradiction, inspection_header
from edge_daemon.wire.messages import Inspection

log = logging.getLogger(__name__)

# Outcomes and trigger ids of this boot kept in memory: all that can be on their way to the disk (the queue's 4,096)
# or be owed to it (as many again). The database knows the older ones: by its unique keys, and by `seen`.
_REMEMBERED: Final = 8_192
# Withdrawn records kept until the disk takes them, about 12 MB; past that only the range of numbers is kept.
_MOST_OWED: Final = 4_096
_RETRY_S: Final = 1.0
# What the gateway reports waits for company: with a record under way each costs 0.1 to 0.2 ms, while a commit of its
# own would stand before the next verdict. Entries, nanoseconds, entries of one commit.
_MOST_REPORTS: Final = 1_024
_REPORT_WAITS_NS: Final = 100_000_000
_REPORTS_AT_ONCE: Final = 8
_COMMITS_MEASURED: Final = 1_024


@dataclass(frozen=True, slots=True)
class _Batch:
    """What goes into one transaction: what is queued, withdrawn records that are owed, ranges that are lost.

    Taken under the lock in one piece, so that a withdrawal is never written before what it withdraws.
    """

    work: list[Work]
    owed: list["Withdraw"]
    lost: dict[str, list[tuple[int, int]]]


@dataclass(slots=True)
class _Numbers:
    """Counters of JournalStats; changed under the journal's lock."""

    commits: int = 0
    commit_failures: int = 0
    records: int = 0
    second_outcomes: int = 0
    unencodable: int = 0
    failing: str = ""
    commit_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_COMMITS_MEASURED))


class Journal:
    """The durable record of one line PC. All methods may be called from any thread.

    path:             the SQLite file; beside it live `.boot` (boot number), `.lock` and SQLite's own files
    queue_limit:      outcomes and intents that may wait for the disk
    busy_timeout_ms:  how long a commit waits for another program that has locked the file
    max_bytes:        size limit of the file; None for the disk's
    on_fatal:         told when the writer thread or a callback fails in a way nobody foresaw

    open -> ... -> close. Callbacks come from the writer thread, after the commit, in the order of the calls; they
    must be short. `close` may be called twice.
    """

    def __init__(
        self,
        path: Path,
        line: str,
        *,
        queue_limit: int = 4096,
        busy_timeout_ms: int = 250,
        max_bytes: int | None = None,
        check_limit_bytes: int = 256 * 1024 * 1024,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._path = path
        self._line = line
        self._queue_limit = queue_limit
        self._busy_timeout_ms = busy_timeout_ms
        self._max_bytes = max_bytes
        self._check_limit_bytes = check_limit_bytes
        self._on_fatal = on_fatal
        self._wake = threading.Condition()  # guards everything below
        self._queue: deque[Work] = deque()
        self._reports: deque[tuple[int, Work]] = deque()  # with the time by which each is written, monotonic
        self._owed: deque[Withdraw] = deque()
        self._lost: dict[str, list[tuple[int, int]]] = {}
        self._last_seq: dict[str, int] = {}
        self._concluded: OrderedDict[str, None] = OrderedDict()
        self._seen: OrderedDict[tuple[str, str], Seen] = OrderedDict()
        self._numbers = _Numbers()
        self._closing = False
        self._tried_last = False
        self._head: Head | None = None
        self._boot: Boot | None = None
        self._file: OpenedFile | None = None
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        # Of its own: no trigger waits until a long replay has been read.
        self._replayer: sqlite3.Connection | None = None
        self._replaying = threading.Lock()
        self._writer: threading.Thread | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    def open(self) -> Boot:
        """Takes the file, numbers the boot and starts the writer. Raises JournalError; see `open_file`."""
        if self._boot is not None:
            raise JournalError(f"the journal {self._path} is open already, or was closed; make a new Journal")
        opened = self._open_file()
        try:
            try:
                boot, self._head = self._begun(opened)
            except JournalDamagedError as exc:  # page by page it is whole, but its rows are not what was written
                opened = begin_anew(
                    opened, self._path, exc, busy_timeout_ms=self._busy_timeout_ms, max_bytes=self._max_bytes
                )
                boot, self._head = self._begun(opened)
            self._reader = open_for_reading(self._path, self._busy_timeout_ms)
            self._replayer = open_for_reading(self._path, self._busy_timeout_ms)
        except BaseException:
            opened.close()
            raise
        self._file = opened
        self._boot = boot
        self._writer = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._writer.start()
        return boot

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what is queued, marks the boot as closed and gives the file back.

        Raises JournalError when the disk does not answer in time (the file is then left to the process's end), or
        when outcomes remain that could not be written.
        """
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._writer is not None:
            self._writer.join(timeout_s)
            if self._writer.is_alive():
                raise JournalError(
                    f"the journal {self._path} did not finish within {timeout_s:g} s; the disk does not answer"
                )
            self._writer = None
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        with self._replaying:
            if self._replayer is not None:
                self._replayer.close()
                self._replayer = None
        if self._file is not None:
            opened, self._file = self._file, None
            try:
                self._end_boot(opened.connection)
            finally:
                opened.close()

    def __enter__(self) -> "Journal":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_file(self) -> OpenedFile:
        return open_file(
            self._path,
            busy_timeout_ms=self._busy_timeout_ms,
            max_bytes=self._max_bytes,
            check_limit_bytes=self._check_limit_bytes,
        )

    def _begun(self, opened: OpenedFile) -> tuple[Boot, Head]:
        """The boot, and where the chain stands. Raises JournalError, JournalDamagedError for rows that are none."""
        try:
            return self._begin_boot(opened), read_head(opened.connection)
        except UNREADABLE as exc:
            raise explain(exc, self._path) from exc

    def _begin_boot(self, opened: OpenedFile) -> Boot:
        connection = opened.connection
        row = connection.execute("SELECT number, boot_id, closed_utc FROM boot ORDER BY number DESC LIMIT 1").fetchone()
        previous, previous_id, previous_closed = row or (None, None, None)
        counted = last_boot_number(self._path)
        number = max(previous or 0, counted) + 1
        if opened.alarm and number == 1:
            # Damaged, and the sidecar gone too. A number that was used before would make readers skip the new
            # records as old ones; seconds since 1970 are above any number ever counted.
            number = int(time.time())
        boot_id = uuid.uuid4().hex
        last_seq: dict[str, int] = {}
        if previous is not None:
            last_seq = dict(
                connection.execute(
                    "SELECT station, max(seq) FROM (SELECT station, seq FROM record WHERE boot = ?1 "
                    "UNION ALL SELECT station, last FROM gone WHERE boot = ?1) GROUP BY station",
                    (previous,),
                )
            )
        unfinished = [_read_intent(body) for (body,) in connection.execute("SELECT body FROM intent ORDER BY rowid")]
        keep_boot_number(self._path, number)
        connection.execute(
            "INSERT INTO boot (number, boot_id, started_utc) VALUES (?, ?, ?)", (number, boot_id, utc_now())
        )
        return Boot(
            number=number,
            boot_id=boot_id,
            last_seq=last_seq,
            previous_boot=previous or counted or None,
            previous_boot_id=previous_id,
            previous_closed=previous_closed is not None,
            unfinished=unfinished,
            alarm=opened.alarm,
        )

    def _end_boot(self, connection: sqlite3.Connection) -> None:
        with self._wake:
            unwritten = len(self._owed) + len(self._lost)
        if unwritten:
            raise JournalError(f"the journal {self._path} ends without {unwritten} outcomes: {self._numbers.failing}")
        try:
            connection.execute("UPDATE boot SET closed_utc = ? WHERE number = ?", (utc_now(), self.boot.number))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as exc:
            raise explain(exc, self._path) from exc

    # --- what the pipeline calls --------------------------------------------------------------------------------

    @property
    def boot(self) -> Boot:
        """This boot. Raises JournalError before `open`."""
        if self._boot is None:
            raise JournalError(f"the journal {self._path} is not open")
        return self._boot

    def intend(self, intent: Intent, on_durable: Callable[[JournalError | None], None]) -> None:
        """Records that a trigger is being taken up. Called back once durable, or with the error that makes the
        trigger impossible to accept; at once when the queue is full or the journal is closing."""
        work = Intend(intent, self.boot.number, on_durable)
        with self._wake:
            self._remember(intent.station, intent.trigger_id, intent.attempt, intent.result_id)
            refused = self._enqueue(work)
        if refused is not None:
            on_durable(refused)

    def conclude(self, draft: Inspection, on_done: Callable[[Concluded], None]) -> Inspection:
        """The outcome of a trigger: gets the next seq of its station and goes to the disk.

        draft: complete but for line, boot, boot_id and seq, which are set here.
        Returns the inspection as recorded. An OK that its own views do not bear out is recorded as Failed.
        `on_done` is called once durable, or with the withdrawn inspection if it cannot be; at once, in this thread,
        when the queue is full or the journal is closing.
        Raises OutcomeTwiceError when the trigger has its outcome already; no seq is used up.
        """
        boot = self.boot
        with self._wake:
            if draft.result_id in self._concluded:
                self._numbers.second_outcomes += 1
                raise OutcomeTwiceError(
                    f"trigger {draft.trigger_id} of {draft.station} has its outcome already "
                    f"(result {draft.result_id}); a later one changes nothing"
                )
            seq = self._last_seq.get(draft.station, 0) + 1
            inspection, header = self._encodable(
                draft.model_copy(update={"line": self._line, "boot": boot.number, "boot_id": boot.boot_id, "seq": seq})
            )
            self._last_seq[draft.station] = seq
            self._concluded[draft.result_id] = None
            _forget_oldest(self._concluded)
            self._remember(draft.station, draft.trigger_id, draft.attempt, draft.result_id)
            work = Conclude(inspection, header, on_done, self._settle)
            refused = self._enqueue(work)
        if refused is not None:
            work.done(refused)
        return inspection

    def withdraw(self, inspection: Inspection) -> Concluded:
        """Takes back what `conclude` returned because its commit takes too long: what goes out instead. Whatever
        the disk still takes of the first version is superseded by an amendment."""
        concluded = withdraw(inspection, JournalError(f"the journal {self._path} took longer than its budget"))
        self._owe(Withdraw(concluded.inspection, concluded.header))
        return concluded

    def amend(
        self,
        result_id: str,
        kind: AmendmentKind,
        body: dict[str, Any],
        on_durable: Callable[[JournalError | None], None] | None = None,
    ) -> None:
        """Adds to a record what became known later; nothing is ever changed. Called back like `intend`.
        Raises JournalError when kind or body cannot be recorded."""
        if kind not in get_args(AmendmentKind):
            raise JournalError(f"{kind!r} is no kind of amendment; known are {', '.join(get_args(AmendmentKind))}")
        try:
            text = json.dumps(body, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise JournalError(f"the amendment of {result_id} cannot be written as JSON: {exc}") from exc
        with self._wake:
            refused = self._enqueue(Amend(result_id, kind, utc_now(), text, on_durable))
        if refused is not None and on_durable is not None:
            on_durable(refused)

    def report(self, report: Report, on_done: Callable[[Reported], None]) -> None:
        """Like `amend`, for what comes from outside: recorded once, and only for a record that exists. Verdicts never
        wait for it; it waits for them, at most a tenth of a second when there are none. Called back once durable, or
        with `error` when nothing was written. Raises JournalError when the body cannot be recorded."""
        try:
            text = json.dumps(report.body, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise JournalError(f"the report on {report.trigger_id} cannot be written as JSON: {exc}") from exc
        refused: JournalError | None = None
        with self._wake:
            if self._closing or self._boot is None:
                refused = JournalError(f"the journal {self._path} is closed")
            elif len(self._reports) >= _MOST_REPORTS:
                refused = JournalError(f"{_MOST_REPORTS} reports wait for the journal {self._path} already")
            else:
                due_ns = time.monotonic_ns() + _REPORT_WAITS_NS
                self._reports.append((due_ns, Tell(report, text, utc_now(), on_done)))
                self._wake.notify()
        if refused is not None:
            on_done(Reported("pending", error=refused))

    def seen(self, station: str, trigger_id: str) -> Seen | None:
        """The latest attempt of this trigger id, in this boot or in the journal. Raises JournalError."""
        with self._wake:
            if found := self._seen.get((station, trigger_id)):
                return found
        with self._read() as connection:
            row = connection.execute(
                "SELECT attempt, boot, result_id FROM ("
                "SELECT attempt, boot, result_id FROM record WHERE station = ?1 AND trigger_id = ?2 UNION ALL "
                "SELECT attempt, boot, result_id FROM intent WHERE station = ?1 AND trigger_id = ?2) "
                "ORDER BY boot DESC, attempt DESC LIMIT 1",
                (station, trigger_id),
            ).fetchone()
        return Seen(*row) if row else None

    def last_seq(self, station: str) -> int:
        """Last sequence number given in this boot, 0 before the first."""
        with self._wake:
            return self._last_seq.get(station, 0)

    def read(self, station: str, boot: int, first: int, last: int, limit: int = 1000) -> Replay:
        """Records of one station and boot, seq `first` to `last`, at most `limit` at once, in order.

        What was pruned, lost or never existed is in `gone`, up to the last number that the journal knows of that
        boot; a boot it does not know is gone altogether. Raises JournalError.
        """
        if first < 1 or last < first or limit < 1:
            raise JournalError(f"cannot replay seq {first} to {last}: the first is 1 and the range goes upwards")
        with self._wake:
            owed = [w.inspection.seq for w in self._owed if w.inspection.station == station]
            owed += [begin for begin, _ in self._lost.get(station, ())]
        with self._replay() as connection:
            known = connection.execute("SELECT 1 FROM boot WHERE number = ?", (boot,)).fetchone()
            if not known:
                return Replay((), ((first, last),), None)
            end = min(last, _last_known(connection, station, boot))
            if boot == self.boot.number and owed:
                end = min(end, min(owed) - 1)  # those are still to come
            rows = connection.execute(
                "SELECT seq, result_id, header FROM record WHERE station = ? AND boot = ? AND seq BETWEEN ? AND ? "
                "ORDER BY seq LIMIT ?",
                (station, boot, first, end, limit + 1),
            ).fetchall()
            more = len(rows) > limit
            entries = tuple(_entry(connection, *row) for row in rows[:limit])
        if more:
            end = entries[-1].seq
        return Replay(entries, _holes([entry.seq for entry in entries], first, end), end + 1 if more else None)

    def later(self, after: Head | None, limit: int = 1000) -> Laters:
        """Deliveries, dispositions and bar codes that were added after a link of the chain, None for all. Those of
        records that were pruned are gone with them. Raises JournalError."""
        with self._replay() as connection:
            anew = after is not None and not _is_link(connection, after)
            begin = 0 if after is None or anew else after.links
            rows = connection.execute(
                "SELECT a.id, a.chain, r.station, a.result_id, a.kind, a.utc, a.body FROM amendment a "
                "JOIN record r ON r.result_id = a.result_id "
                "WHERE a.id > ? AND a.kind IN ('delivery', 'disposition', 'part_id') ORDER BY a.id LIMIT ?",
                (begin, limit + 1),
            ).fetchall()
        entries = tuple(
            Later(str(Head(number, chain or START)), station, result_id, Amendment(kind, utc, json.loads(body)))
            for number, chain, station, result_id, kind, utc, body in rows[:limit]
        )
        return Laters(entries, len(rows) > limit, anew)

    def boots(self) -> tuple[KnownBoot, ...]:
        """Every boot that the journal knows, ascending. Raises JournalError."""
        with self._replay() as connection:
            rows = connection.execute("SELECT number, boot_id FROM boot ORDER BY number").fetchall()
        return tuple(KnownBoot(*row) for row in rows)

    def stations(self) -> tuple[str, ...]:
        """Every station that has or had records, also of earlier configurations. Raises JournalError."""
        with self._replay() as connection:
            rows = connection.execute(_STATIONS).fetchall()
        return tuple(station for (station,) in rows if station is not None)

    def prune(
        self, station: str, boot: int, through_seq: int, on_durable: Callable[[JournalError | None], None] | None = None
    ) -> None:
        """Removes the oldest records of one station and boot, up to and including a number, with their amendments;
        a replay of them answers `gone` from then on. Called back like `intend`."""
        with self._wake:
            refused = self._enqueue(Prune(station, boot, through_seq, on_durable))
        if refused is not None and on_durable is not None:
            on_durable(refused)

    def remove(self, numbers: Sequence[int], on_durable: Callable[[JournalError | None], None]) -> None:
        """Removes records by their number in the journal (`oldest`), with their amendments; a replay of them answers
        `gone` from then on. A few hundred at once: everything else waits for the same commit. Called back like
        `intend`."""
        with self._wake:
            refused = self._enqueue(Remove(tuple(numbers), on_durable))
        if refused is not None:
            on_durable(refused)

    def oldest(self, limit: int, after: int = 0) -> tuple[OldRecord, ...]:
        """The oldest records, in the order in which they were written. Raises JournalError."""
        with self._replay() as connection:
            rows = connection.execute(
                "SELECT id, station, json_extract(CAST(header AS TEXT), '$.times.utc'), "
                "json_extract(CAST(header AS TEXT), '$.evaluation') FROM record WHERE id > ? ORDER BY id LIMIT ?",
                (after, limit),
            ).fetchall()
        return tuple(OldRecord(number, station, utc or "", evaluation) for number, station, utc, evaluation in rows)

    def size_bytes(self) -> int:
        """What the records take, without pages that are free. Raises JournalError."""
        with self._replay() as connection:
            pages, free, size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        return int((pages - free) * size)

    @property
    def failing(self) -> str:
        """Why the last commit failed; empty while the disk takes records. Cheap, for every status."""
        return self._numbers.failing

    @property
    def head(self) -> str:
        """Newest link of the hash chain that is durable, `NUMBER:HASH`. Cheap, for every status."""
        return str(self._head) if self._head is not None else ""

    def stats(self) -> JournalStats:
        """Counters of this boot; commit times over the last 1,024 commits."""
        with self._wake:
            numbers = self._numbers
            times = sorted(numbers.commit_ms)
            return JournalStats(
                queued=len(self._queue),
                queue_limit=self._queue_limit,
                owed=len(self._owed),
                failing=numbers.failing,
                commits=numbers.commits,
                commit_failures=numbers.commit_failures,
                commit_p50_ms=times[len(times) // 2] if times else 0.0,
                commit_p99_ms=times[len(times) * 99 // 100] if times else 0.0,
                records=numbers.records,
                second_outcomes=numbers.second_outcomes,
                unencodable=numbers.unencodable,
            )

    # --- inside, under the lock ---------------------------------------------------------------------------------

    def _enqueue(self, work: Work) -> JournalError | None:
        if self._closing or self._boot is None:
            return JournalError(f"the journal {self._path} is closed")
        if len(self._queue) >= self._queue_limit:
            self._numbers.commit_failures += 1
            return JournalError(
                f"the journal {self._path} is {self._queue_limit} entries behind: the disk is too slow for this line"
            )
        self._queue.append(work)
        self._wake.notify()
        return None

    def _remember(self, station: str, trigger_id: str, attempt: int, result_id: str) -> None:
        key = (station, trigger_id)
        before = self._seen.pop(key, None)
        if before is None or before.attempt <= attempt:
            before = Seen(attempt, self.boot.number, result_id)
        self._seen[key] = before
        _forget_oldest(self._seen)

    def _encodable(self, inspection: Inspection) -> tuple[Inspection, bytes]:
        """The inspection and its bytes; what cannot be written whole, or is an OK without proof, becomes Failed:
        a trigger has a record whatever happens."""
        if why := contradiction(inspection):
            log.error("result %s of %s becomes Failed: %s", inspection.result_id, inspection.station, why)
            inspection = inspection.model_copy(update=failed(Reason.UNPROVEN))
        try:
            return inspection, inspection_header(inspection)
        except WireError as exc:
            log.error("result %s of %s becomes Failed: %s", inspection.result_id, inspection.station, exc)
            self._numbers.unencodable += 1
            bare = barest(inspection)
            return bare, inspection_header(bare)

    # --- the writer thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                self._commit(batch)
        except BaseException as exc:
            log.critical("the journal's writer ends: %s", exc, exc_info=True)
            with self._wake:
                self._closing = True
                self._numbers.failing = f"the writer ended: {exc}"
                abandoned = [*self._queue, *(work for _, work in self._reports)]
                self._queue.clear()
                self._reports.clear()
            for work in abandoned:
                self._tell(work, JournalError(f"the journal's writer ended: {exc}"))
            self._report(exc)

    def _next_batch(self) -> _Batch | None:
        """Everything that waits; None when there is nothing left to do for ever."""
        with self._wake:
            while not self._queue:
                indebted = bool(self._owed or self._lost)
                if indebted and not self._numbers.failing:
                    break
                if self._closing:
                    if self._reports:
                        break
                    if not indebted or self._tried_last:
                        return None
                    self._tried_last = True
                    break
                if not self._wake.wait(self._patience_s()):
                    break
            reports = [self._reports.popleft()[1] for _ in range(min(len(self._reports), _REPORTS_AT_ONCE))]
            batch = _Batch([*self._queue, *reports], list(self._owed), {s: list(r) for s, r in self._lost.items()})
            self._queue.clear()
            return batch

    def _patience_s(self) -> float | None:
        """How long the writer may sleep while no record comes; None for ever."""
        if self._numbers.failing:
            return _RETRY_S
        if not self._reports:
            return None
        return max(0, self._reports[0][0] - time.monotonic_ns()) / 1e9

    def _commit(self, batch: _Batch) -> None:
        started_ns = time.monotonic_ns()
        refused: dict[int, JournalError] = {}
        error: JournalError | None = None
        try:
            refused = self._write(batch)
        except sqlite3.Error as exc:
            error = explain(exc, self._path)
            error.__cause__ = exc
        taken_ms = (time.monotonic_ns() - started_ns) / 1e6
        with self._wake:
            self._account(error, taken_ms, batch)
        for index, work in enumerate(batch.work):
            self._tell(work, error or refused.get(index))

    def _write(self, batch: _Batch) -> dict[int, JournalError]:
        """One transaction. What the database refuses for its content is refused alone, by its index."""
        connection = self._connection
        try:
            with transaction(connection):
                for work in batch.work:
                    work.write(connection)
                self._write_debts(connection, batch)
                head = read_head(connection)
            self._head = head
            return {}
        except REFUSALS:
            pass  # one of them: once more, each by itself
        refused: dict[int, JournalError] = {}
        with transaction(connection):
            for index, work in enumerate(batch.work):
                if refusal := try_alone(connection, work):
                    refused[index] = refusal
            self._write_debts(connection, batch)
            head = read_head(connection)
        self._head = head
        return refused

    def _write_debts(self, connection: sqlite3.Connection, batch: _Batch) -> None:
        """After the work: a record withdrawn while it waited is in this very transaction, and is amended by it."""
        boot = self.boot.number
        for debt in batch.owed:
            if try_alone(connection, debt):
                mark_gone(connection, debt.inspection.station, boot, debt.inspection.seq, debt.inspection.seq, "lost")
        for station, ranges in batch.lost.items():
            for first, last in ranges:
                mark_gone(connection, station, boot, first, last, "lost")
        if not batch.work and not batch.owed and not batch.lost:
            # Shows whether the disk is back although nothing waits: only a real write can tell.
            connection.execute("UPDATE boot SET closed_utc = NULL WHERE number = ?", (boot,))

    def _account(self, error: JournalError | None, taken_ms: float, batch: _Batch) -> None:
        numbers = self._numbers
        if error is not None:
            if not numbers.failing:
                log.error("%s", error)
            numbers.failing = str(error)
            numbers.commit_failures += 1
            return
        if numbers.failing:
            log.warning("the journal %s writes again", self._path)
        numbers.failing = ""
        numbers.commits += 1
        numbers.commit_ms.append(taken_ms)
        for _ in batch.owed:
            self._owed.popleft()
        for station, written in batch.lost.items():
            left = [span for span in self._lost[station] if span not in written]
            if left:
                self._lost[station] = left
            else:
                del self._lost[station]

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._file is not None
        return self._file.connection

    def _owe(self, debt: "Withdraw") -> None:
        """Keeps a withdrawn record until the disk takes it; when too many wait, only their numbers."""
        with self._wake:
            if len(self._owed) < _MOST_OWED:
                self._owed.append(debt)
            else:
                self._lose(debt.inspection.station, debt.inspection.seq)
            self._wake.notify()

    def _lose(self, station: str, seq: int) -> None:
        ranges = self._lost.setdefault(station, [])
        if ranges and ranges[-1][1] == seq - 1:
            ranges[-1] = (ranges[-1][0], seq)
        elif not any(first <= seq <= last for first, last in ranges):
            ranges.append((seq, seq))

    def _tell(self, work: Work, error: JournalError | None) -> None:
        try:
            work.done(error)
        except Exception as exc:
            log.critical("a callback of the journal failed: %s", exc, exc_info=True)
            self._report(exc)

    def _report(self, exc: BaseException) -> None:
        if self._on_fatal is not None:
            self._on_fatal(exc)

    def _settle(self, work: "Conclude", error: JournalError | None) -> None:
        """The end of a `conclude`; a record that did not reach the disk is owed in its withdrawn form."""
        if error is None:
            with self._wake:
                self._numbers.records += 1
            work.on_done(Concluded(work.inspection, work.header))
            return
        if isinstance(error, OutcomeTwiceError):
            with self._wake:
                self._numbers.second_outcomes += 1
                self._lose(work.inspection.station, work.inspection.seq)
            work.on_done(Concluded(work.inspection, work.header, error))
            return
        concluded = withdraw(work.inspection, error)
        self._owe(Withdraw(concluded.inspection, concluded.header))
        work.on_done(concluded)

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._reading, self._reading_from(self._reader) as connection:
            yield connection

    @contextmanager
    def _replay(self) -> Iterator[sqlite3.Connection]:
        with self._replaying, self._reading_from(self._replayer) as connection:
            yield connection

    @contextmanager
    def _reading_from(self, connection: sqlite3.Connection | None) -> Iterator[sqlite3.Connection]:
        if connection is None:
            raise JournalError(f"the journal {self._path} is not open")
        try:
            yield connection
        except sqlite3.Error as exc:
            raise explain(exc, self._path) from exc


# From one station's first index entry to the next one's: a DISTINCT would read every entry of years.
_STATIONS: Final = """
WITH RECURSIVE a (station) AS (SELECT min(station) FROM record
    UNION ALL SELECT (SELECT min(station) FROM record WHERE station > a.station) FROM a WHERE a.station IS NOT NULL),
b (station) AS (SELECT min(station) FROM gone
    UNION ALL SELECT (SELECT min(station) FROM gone WHERE station > b.station) FROM b WHERE b.station IS NOT NULL)
SELECT station FROM a UNION SELECT station FROM b
"""


def _read_intent(body: str) -> Intent:
    known = Intent.__dataclass_fields__
    return Intent(**{name: value for name, value in json.loads(body).items() if name in known})


def _last_known(connection: sqlite3.Connection, station: str, boot: int) -> int:
    row = connection.execute(
        "SELECT max(last) FROM (SELECT max(seq) AS last FROM record WHERE station = ?1 AND boot = ?2 "
        "UNION ALL SELECT max(last) FROM gone WHERE station = ?1 AND boot = ?2)",
        (station, boot),
    ).fetchone()
    return int(row[0] or 0)


def _is_link(connection: sqlite3.Connection, head: Head) -> bool:
    """Whether a link is one of this journal, as far as that can be told: one that was pruned is taken for its own."""
    if head.links > read_head(connection).links:
        return False
    found = connection.execute(
        "SELECT chain FROM amendment WHERE id = ?1 UNION ALL SELECT chain FROM record WHERE id = ?1 "
        "UNION ALL SELECT chain FROM gone WHERE id = ?1",
        (head.links,),
    ).fetchone()
    return found is None or (found[0] or START) == head.digest


def _entry(connection: sqlite3.Connection, seq: int, result_id: str, header: bytes) -> Entry:
    amendments = read_amendments(connection, result_id)
    return Entry(seq, result_id, effective_header(header, amendments), amendments)


def _holes(present: Sequence[int], first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Ranges of first..last that are not in `present`, which ascends."""
    holes = []
    expected = first
    for seq in [*present, last + 1]:
        if seq > expected:
            holes.append((expected, seq - 1))
        expected = seq + 1
    return tuple(holes)


def _forget_oldest(memory: OrderedDict[Any, Any]) -> None:
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
