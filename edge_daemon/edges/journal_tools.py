"""What people do with a journal file: look for records, copy it while it is written, save what a damaged one holds.

All of it only reads the journal, and may run beside the daemon.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from edge_daemon.edges.journal_entries import Amendment
from edge_daemon.edges.journal_file import UNREADABLE, explain, open_for_reading
from edge_daemon.edges.journal_work import effective_header, read_amendments
from edge_daemon.errors import JournalError, WireError
from edge_daemon.wire.codec import decode_header, parse_json
from edge_daemon.wire.messages import MAX_HEADER_BYTES, RESULT_SCHEMA, Inspection

_BUSY_MS: Final = 5_000
_READ_AT_ONCE: Final = 1 << 20
_RECORD_BEGINS: Final = f'{{"schema":"{RESULT_SCHEMA}"'.encode()


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records: UTC of the trigger's arrival from (inclusive) to (exclusive), station, recipe (its name, or the
    beginning of its digest). None means all."""

    begin: datetime | None = None
    end: datetime | None = None
    station: str | None = None
    recipe: str | None = None

    def __contains__(self, inspection: Inspection) -> bool:
        if self.begin is not None or self.end is not None:
            utc = parse_utc(inspection.times.utc)
            if (self.begin is not None and utc < self.begin) or (self.end is not None and utc >= self.end):
                return False
        if self.recipe is None:
            return True
        used = [view.recipe for view in inspection.views if view.recipe is not None]
        return any(r.name == self.recipe or (len(self.recipe) > 6 and r.digest.startswith(self.recipe)) for r in used)


@dataclass(frozen=True, slots=True)
class Found:
    """A record, as a replay would tell it."""

    inspection: Inspection
    header: bytes
    amendments: tuple[Amendment, ...] = ()


def parse_utc(text: str) -> datetime:
    """ISO 8601; without a zone it is UTC. Raises JournalError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise JournalError(f"{text!r} is no time; one looks like 2026-11-21 or 2026-11-21T14:30") from exc
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write. Raises JournalError, also for what goes wrong while it is used."""
    if not path.exists():
        raise JournalError(f"there is no journal {path}; name it with --journal, or the configuration with --config")
    connection = open_for_reading(path, _BUSY_MS)
    try:
        yield connection
    except UNREADABLE as exc:
        raise explain(exc, path) from exc
    finally:
        connection.close()


def find(path: Path, wanted: Wanted) -> Iterator[Found]:
    """Records in the order in which they were written. Raises JournalError."""
    with reading(path) as connection:
        chosen = "WHERE station = ?" if wanted.station is not None else ""
        values = () if wanted.station is None else (wanted.station,)
        rows = connection.execute(f"SELECT result_id, header FROM record {chosen} ORDER BY id", values)
        for result_id, header in rows:
            amendments = read_amendments(connection, result_id)
            told = effective_header(header, amendments)
            try:
                inspection = decode_header(told)
            except WireError as exc:
                raise JournalError(
                    f"record {result_id} cannot be read: {exc}; `edge-daemon journal verify` tells more"
                ) from exc
            if inspection in wanted:
                yield Found(inspection, told, amendments)


COLUMNS: Final = (
    "utc", "line", "station", "boot", "seq", "result_id", "trigger_id", "part_id", "attempt", "mode", "simulated",
    "evaluation", "result_state", "reason", "journaled", "score", "threshold", "boxes", "recipes", "judged_us",
    "delivery", "disposition",
)  # fmt: skip


def csv_row(found: Found) -> dict[str, Any]:
    """One record as a row of a table: of several views the worst score against its threshold. A bar code read later
    counts, as in the amendments; of what the PLC took and what became of the part the last that was told."""
    i = found.inspection
    judged = [view for view in i.views if view.score is not None and view.threshold is not None]
    worst = max(judged, key=lambda v: (v.score or 0.0) - (v.threshold or 0.0), default=None)
    later = [a.body.get("part_id") for a in found.amendments if a.kind == "part_id"]
    row: dict[str, Any] = {
        "utc": i.times.utc,
        "part_id": next((p for p in reversed(later) if p), i.part_id),
        "score": worst.score if worst else None,
        "threshold": worst.threshold if worst else None,
        "boxes": sum(max(view.boxes_total, len(view.boxes)) for view in i.views),
        "recipes": " ".join(sorted({f"{v.recipe.name}@{v.recipe.digest[:12]}" for v in i.views if v.recipe})),
        "judged_us": i.times.judged_us,
        "delivery": _last_word(found, "delivery"),
        "disposition": _last_word(found, "disposition"),
    }
    return {name: _harmless(row[name] if name in row else getattr(i, name)) for name in COLUMNS}


def _last_word(found: Found, kind: str) -> str | None:
    words = [a.body.get("what") for a in found.amendments if a.kind == kind and isinstance(a.body, dict)]
    return words[-1] if words and isinstance(words[-1], str) else None


def _harmless(value: object) -> object:
    """Bar codes come from outside: a spreadsheet must not take one for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def backup(path: Path, target: Path) -> int:
    """A sound copy, also while the daemon writes; its size in bytes. `target` appears whole or not at all.

    One picture of the file in one go: a copy in steps would begin anew with every record that is written meanwhile.
    Raises JournalError.
    """
    if target.exists():
        raise JournalError(f"{target} exists already; name a new file for the backup")
    part = target.with_name(f"{target.name}.part")
    try:
        with reading(path) as connection, contextlib.closing(sqlite3.connect(part)) as copy:
            connection.backup(copy, pages=-1)
            copy.execute("PRAGMA journal_mode=DELETE")
            (sound,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise JournalError(f"the copy of {path} is damaged ({sound}), and so is the journal; see `journal salvage`")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except (OSError, sqlite3.Error) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
        raise JournalError(f"the backup {target} cannot be written: {reason}; check space and owner") from exc
    finally:
        part.unlink(missing_ok=True)
    return target.stat().st_size


@dataclass(frozen=True, slots=True)
class Saved:
    """A record out of a damaged file. `table`: read through SQLite; else found among the bytes, where amendments are
    not known, and a record that was pruned may turn up again."""

    inspection: Inspection
    header: bytes
    table: bool


def salvage(path: Path) -> Iterator[Saved]:
    """Every record that can still be read from a damaged journal and its log, each once. Raises JournalError when
    there is no such file."""
    if not path.exists():
        raise JournalError(f"there is no file {path}; damaged journals are kept beside the new one, as *.damaged-*")
    seen: set[str] = set()
    for header, table in _all_headers(path):
        try:
            inspection = decode_header(header)
        except WireError:
            continue
        if inspection.result_id not in seen:
            seen.add(inspection.result_id)
            yield Saved(inspection, header, table)


def _all_headers(path: Path) -> Iterator[tuple[bytes, bool]]:
    with contextlib.suppress(JournalError):
        for header in _headers_by_table(path):
            yield header, True
    for file in (path, path.with_name(f"{path.name}-wal")):
        with contextlib.suppress(FileNotFoundError):
            for header in _headers_among_bytes(file):
                yield header, False


def _headers_by_table(path: Path) -> Iterator[bytes]:
    """Row by row, from both ends: what lies behind a broken page is reached from the other side."""
    for order, beyond in (("ASC", ">"), ("DESC", "<")):
        at = -1 if order == "ASC" else 1 << 62
        with reading(path) as connection:
            while True:
                try:
                    row = connection.execute(
                        f"SELECT id, result_id, header FROM record WHERE id {beyond} ? ORDER BY id {order} LIMIT 1",
                        (at,),
                    ).fetchone()
                    if row is None:
                        return
                    at = row[0]
                    yield effective_header(row[2], read_amendments(connection, row[1]))
                except UNREADABLE:
                    break


def _headers_among_bytes(path: Path) -> Iterator[bytes]:
    """Whatever begins like a record and is whole. Those that SQLite split over several pages are not found."""
    with path.open("rb") as file:
        tail = b""
        while chunk := file.read(_READ_AT_ONCE):
            text = tail + chunk
            begin = text.find(_RECORD_BEGINS)
            while begin >= 0 and begin + MAX_HEADER_BYTES <= len(text):
                yield from _whole_object(text[begin : begin + MAX_HEADER_BYTES])
                begin = text.find(_RECORD_BEGINS, begin + 1)
            tail = text[begin:] if begin >= 0 else text[-len(_RECORD_BEGINS) :]
        begin = tail.find(_RECORD_BEGINS)
        while begin >= 0:
            yield from _whole_object(tail[begin : begin + MAX_HEADER_BYTES])
            begin = tail.find(_RECORD_BEGINS, begin + 1)


def _whole_object(data: bytes) -> Iterator[bytes]:
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError, WireError):
        _, end = json.JSONDecoder().raw_decode(text)
        header = text[:end].encode()
        parse_json(header)
        yield header
