"""How long records and pictures are kept. Runs beside the line, in small steps that no verdict has to wait for."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from edge_daemon.edges.archive import sweep_archive
from edge_daemon.edges.journal_entries import OldRecord
from edge_daemon.errors import EdgeError, JournalError

log = logging.getLogger(__name__)

# Records removed in one transaction: some milliseconds, well inside any commit budget.
RECORDS_AT_ONCE: Final = 100
_LOOKED_AT_ONCE: Final = 500
# Of the time that a removal took, before the next: the line's own commits come first.
_REST: Final = 4.0
_PATIENCE_S: Final = 30.0


class PrunedJournal(Protocol):
    """What Retention needs of a journal. All raise JournalError."""

    def oldest(self, limit: int, after: int = 0) -> tuple[OldRecord, ...]: ...

    def remove(self, numbers: Sequence[int], on_durable: Callable[[JournalError | None], None]) -> None: ...

    def size_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """keep_days for OK parts, keep_not_ok_days for all others. Past max_bytes the oldest OK ones go first, and the
    others only when no OK one is left."""

    keep_days: float
    keep_not_ok_days: float
    max_bytes: int


class Retention:
    """Removes what is too old or too much, every `period_s`, on a thread of its own.

    records, pictures: the rules; archive: folder of the pictures
    utc:      the time now; a record's age is that of its own time stamp
    on_fatal: told when the thread fails in a way nobody foresaw
    """

    def __init__(
        self,
        journal: PrunedJournal,
        archive: Path,
        records: Rules,
        pictures: Rules,
        *,
        period_s: float = 600.0,
        utc: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._journal = journal
        self._archive = archive
        self._records = records
        self._pictures = pictures
        self._period_s = period_s
        self._utc = utc
        self._on_fatal = on_fatal
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.removed = 0

    def open(self) -> None:
        """Starts."""
        if self._thread is not None:
            raise EdgeError("retention runs already")
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops after the step under way. May be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def sweep(self) -> None:
        """Everything that is due now. Raises EdgeError."""
        self._sweep_records()
        rules = self._pictures
        sweep_archive(self._archive, self._utc().date(), rules.keep_days, rules.keep_not_ok_days, rules.max_bytes)

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._period_s):
                try:
                    self.sweep()
                except EdgeError as exc:
                    log.error("what is too old is kept for now: %s", exc)
        except BaseException as exc:
            if self._on_fatal is None:
                raise
            self._on_fatal(exc)

    def _sweep_records(self) -> None:
        rules, now = self._records, self._utc()
        ok_before = (now - timedelta(days=rules.keep_days)).isoformat()
        others_before = (now - timedelta(days=rules.keep_not_ok_days)).isoformat()

        def too_old(record: OldRecord) -> bool:
            # ISO 8601 in UTC sorts as text; a record without a time is kept.
            return "" < record.utc < (ok_before if record.evaluation == "OK" else others_before)

        self._remove_where(too_old, until=lambda record: record.utc >= max(ok_before, others_before))
        for chosen in (lambda record: record.evaluation == "OK", lambda _record: True):
            if self._journal.size_bytes() > rules.max_bytes:
                self._remove_where(chosen, enough=lambda: self._journal.size_bytes() <= rules.max_bytes)

    def _remove_where(
        self,
        chosen: Callable[[OldRecord], bool],
        until: Callable[[OldRecord], bool] = lambda _record: False,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """From the oldest on. until: nothing after this record is looked at; enough: asked after each step."""
        after = 0
        while not self._stop.is_set():
            records = self._journal.oldest(_LOOKED_AT_ONCE, after)
            if not records:
                return
            after = records[-1].number
            numbers = [record.number for record in records if chosen(record)]
            for begin in range(0, len(numbers), RECORDS_AT_ONCE):
                self._remove(numbers[begin : begin + RECORDS_AT_ONCE])
                if enough() or self._stop.is_set():
                    return
            if any(until(record) for record in records):
                return

    def _remove(self, numbers: Sequence[int]) -> None:
        """One step, and a rest."""
        started_s = time.monotonic()
        ended = threading.Event()
        errors: list[JournalError | None] = []

        def done(error: JournalError | None) -> None:
            errors.append(error)
            ended.set()

        self._journal.remove(numbers, done)
        if not ended.wait(_PATIENCE_S):
            raise JournalError("the journal does not answer; old records are kept until it does")
        if errors[0] is not None:
            raise errors[0]
        self.removed += len(numbers)
        self._stop.wait(_REST * (time.monotonic() - started_s))
