"""The journal's SQLite file: layout, opening, damage, and what SQLite's errors mean to an operator.

Why the layout is as it is: deploy/decisions/0003-journal-layout.md.
"""

import fcntl
import logging
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from edge_daemon.errors import JournalError
from edge_daemon.files import replace_durably, set_aside

log = logging.getLogger(__name__)

APPLICATION_ID: Final = 0x45444A31  # "EDJ1", so that no other program's database is taken for a journal
LAYOUT_VERSION: Final = 2
PAGE_BYTES: Final = 4096

# `intent` holds open intents only: the transaction that writes a record removes its intent, so that what a crash
# left unfinished is the whole table and never a search through years of records.
_LAYOUT: Final = """
CREATE TABLE boot (
    number INTEGER PRIMARY KEY,
    boot_id TEXT NOT NULL UNIQUE,
    started_utc TEXT NOT NULL,
    closed_utc TEXT
) STRICT;
CREATE TABLE intent (
    result_id TEXT PRIMARY KEY,
    boot INTEGER NOT NULL REFERENCES boot (number),
    station TEXT NOT NULL,
    trigger_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX intent_by_trigger ON intent (station, trigger_id);
CREATE TABLE record (
    id INTEGER PRIMARY KEY,
    station TEXT NOT NULL,
    boot INTEGER NOT NULL REFERENCES boot (number),
    seq INTEGER NOT NULL,
    result_id TEXT NOT NULL UNIQUE,
    trigger_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    header BLOB NOT NULL,
    previous BLOB,
    chain BLOB,
    UNIQUE (station, boot, seq)
) STRICT;
CREATE INDEX record_by_trigger ON record (station, trigger_id);
CREATE TABLE amendment (
    id INTEGER PRIMARY KEY,
    result_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    utc TEXT NOT NULL,
    body TEXT NOT NULL,
    previous BLOB,
    chain BLOB
) STRICT;
CREATE INDEX amendment_by_result ON amendment (result_id);
CREATE TABLE gone (
    id INTEGER PRIMARY KEY,
    station TEXT NOT NULL,
    boot INTEGER NOT NULL REFERENCES boot (number),
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    why TEXT NOT NULL,
    previous BLOB,
    chain BLOB
) STRICT;
CREATE INDEX gone_by_station ON gone (station, boot);
CREATE TABLE chain (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    since INTEGER NOT NULL,
    links INTEGER NOT NULL,
    head BLOB NOT NULL
) STRICT;
INSERT INTO chain VALUES (1, 0, 0, zeroblob(32));
CREATE TRIGGER record_is_final BEFORE UPDATE ON record
BEGIN SELECT RAISE(ABORT, 'records are never changed, only amended'); END;
CREATE TRIGGER amendment_is_final BEFORE UPDATE ON amendment
BEGIN SELECT RAISE(ABORT, 'amendments are never changed'); END;
"""


# Layout 1 had no hash chain; what it holds stays as it is, and the chain begins after it.
_FROM_LAYOUT_1: Final = """
ALTER TABLE record ADD COLUMN previous BLOB;
ALTER TABLE record ADD COLUMN chain BLOB;
ALTER TABLE amendment ADD COLUMN previous BLOB;
ALTER TABLE amendment ADD COLUMN chain BLOB;
ALTER TABLE gone RENAME TO gone_1;
DROP INDEX gone_by_station;
CREATE TABLE gone (
    id INTEGER PRIMARY KEY,
    station TEXT NOT NULL,
    boot INTEGER NOT NULL REFERENCES boot (number),
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    why TEXT NOT NULL,
    previous BLOB,
    chain BLOB
) STRICT;
INSERT INTO gone (station, boot, first, last, why) SELECT station, boot, first, last, why FROM gone_1;
DROP TABLE gone_1;
CREATE INDEX gone_by_station ON gone (station, boot);
CREATE TABLE chain (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    since INTEGER NOT NULL,
    links INTEGER NOT NULL,
    head BLOB NOT NULL
) STRICT;
INSERT INTO chain SELECT 1, newest, newest, zeroblob(32) FROM (SELECT max(
    (SELECT coalesce(max(id), 0) FROM record),
    (SELECT coalesce(max(id), 0) FROM amendment),
    (SELECT coalesce(max(id), 0) FROM gone)) AS newest);
PRAGMA user_version=2;
"""


class JournalBusyError(JournalError):
    """Another process holds the journal."""


class JournalDamagedError(JournalError):
    """The file is no sound database any more."""


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A journal file, open and locked. `alarm` says what an operator must know, empty when all is well."""

    connection: sqlite3.Connection
    lock: IO[str]
    alarm: str

    def close(self) -> None:
        """Closes the database and gives the lock back."""
        try:
            self.connection.close()
        finally:
            self.lock.close()


def open_file(path: Path, *, busy_timeout_ms: int, max_bytes: int | None, check_limit_bytes: int) -> OpenedFile:
    """Opens or creates the journal and takes its lock.

    A damaged file is moved aside with its companions, said in `alarm`, and a new one is started. Files up to
    `check_limit_bytes` are checked page by page; above that (seconds at every start) only as far as they are read.
    Raises JournalError when the file is held by another process, belongs to another program, was written by a
    newer version, or cannot be written.
    """
    lock = _lock(path)
    try:
        had_boots = last_boot_number(path) > 0
        alarm = ""
        if had_boots and not (path.exists() and path.stat().st_size):
            alarm = (
                f"the journal {path} is missing or empty although this PC has run before; a new one was started. "
                "Records of earlier boots cannot be replayed: restore the file, or close the gap in the MES by hand"
            )
        try:
            connection = _connect(path, busy_timeout_ms, max_bytes, check_limit_bytes)
        except JournalDamagedError as exc:
            alarm = _move_aside(path, exc)
            connection = _connect(path, busy_timeout_ms, max_bytes, check_limit_bytes)
        if alarm:
            log.error("%s", alarm)
        return OpenedFile(connection, lock, alarm)
    except OSError as exc:
        lock.close()
        raise JournalError(f"the journal {path} cannot be opened: {exc.strerror or exc}; check the folder") from exc
    except BaseException:
        lock.close()
        raise


def open_for_reading(path: Path, busy_timeout_ms: int) -> sqlite3.Connection:
    """A second connection that cannot write; the caller serialises its use. Raises JournalError."""
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        connection.execute(f"PRAGMA busy_timeout={busy_timeout_ms:d}")
        # Reads: SQLite opens the log now, and not at the first use, when no descriptor may be left.
        connection.execute("PRAGMA schema_version").fetchone()
    except UNREADABLE as exc:
        raise explain(exc, path) from exc
    return connection


UNREADABLE: Final = (sqlite3.Error, ValueError, TypeError, AttributeError, KeyError)
"""What reading a damaged file may end in: columns of another type than was written, JSON that is none any more, text
that is no UTF-8 (SQLite's own messages repeat it). A page that is whole for SQLite can hold all of these."""


def explain(exc: Exception, path: Path) -> JournalError:
    """What SQLite says, in words for the person at the line; or that a row is not what was written."""
    name, foreign = getattr(exc, "sqlite_errorname", ""), not isinstance(exc, sqlite3.Error)
    detail = f"({name or type(exc).__name__}: {str(exc)[:300]})"
    if name.startswith("SQLITE_FULL"):
        return JournalError(f"the disk or the size limit of the journal {path} is full {detail}; make space")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return JournalBusyError(f"the journal {path} is locked by another program {detail}; close that program")
    # All statements are the program's own: an error in one means that the tables are not those that were made.
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or name == "SQLITE_ERROR" or foreign:
        return JournalDamagedError(
            f"the journal {path} is damaged {detail}; restart the daemon: it keeps the file aside and starts anew"
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return JournalError(f"the journal {path} cannot be written {detail}; check owner and mount of its folder")
    if name.startswith("SQLITE_IOERR"):
        return JournalError(f"the disk fails under the journal {path} {detail}; check the disk and its cable")
    return JournalError(f"the journal {path} refuses {detail}")


def last_boot_number(path: Path) -> int:
    """The number in the sidecar file, which outlives a damaged journal; 0 when there is none that can be read."""
    try:
        text = _sidecar(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else 0


def keep_boot_number(path: Path, number: int) -> None:
    """Writes the sidecar file, durable before the number is used. Raises JournalError."""
    try:
        replace_durably(_sidecar(path), f"{number}\n")
    except OSError as exc:
        raise JournalError(
            f"the boot number cannot be kept in {_sidecar(path)}: {exc.strerror or exc}; make space or check the folder"
        ) from exc


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".boot")


def _lock(path: Path) -> IO[str]:
    """Two daemons on one journal would both count the same sequence. The kernel frees the lock with the process."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_path.open("a")
    except OSError as exc:
        raise JournalError(f"the journal's lock {lock_path} cannot be opened: {exc.strerror or exc}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        lock.close()
        raise JournalBusyError(
            f"the journal {path} is in use by another edge-daemon; stop that one, or give this one its own journal"
        ) from exc
    return lock


def _connect(path: Path, busy_timeout_ms: int, max_bytes: int | None, check_limit_bytes: int) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as exc:
        raise explain(exc, path) from exc
    try:
        _prepare(connection, path, busy_timeout_ms, max_bytes, check_limit_bytes)
    except (sqlite3.Error, UnicodeDecodeError) as exc:
        connection.close()
        raise explain(exc, path) from exc
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(
    connection: sqlite3.Connection, path: Path, busy_timeout_ms: int, max_bytes: int | None, check_limit_bytes: int
) -> None:
    def pragma(text: str) -> object:
        row = connection.execute(f"PRAGMA {text}").fetchone()
        return row[0] if row else None

    pragma(f"busy_timeout={busy_timeout_ms:d}")
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and pragma("application_id") != APPLICATION_ID:
        if last_boot_number(path):  # this file was ours
            raise JournalDamagedError("its header is not that of a journal")
        raise JournalError(f"{path} is the database of another program; name another path for the journal")
    version = pragma("user_version")
    if tables and version not in (1, LAYOUT_VERSION):
        raise JournalError(
            f"the journal {path} has layout {version}, this edge-daemon knows {LAYOUT_VERSION}; "
            "install the version that wrote it, or name another path"
        )
    if tables and path.stat().st_size <= check_limit_bytes and (verdict := pragma("quick_check(1)")) != "ok":
        raise JournalDamagedError(str(verdict))
    if (mode := pragma("journal_mode=WAL")) != "wal":
        raise JournalError(f"the journal {path} cannot use a write-ahead log (got {mode}); put it on a local disk")
    pragma("synchronous=FULL")
    pragma("foreign_keys=ON")
    pragma("journal_size_limit=67108864")
    if max_bytes is not None:
        pragma(f"max_page_count={max(max_bytes // PAGE_BYTES, 1):d}")
    if not tables:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_LAYOUT} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={LAYOUT_VERSION};"
            "COMMIT;"
        )
    elif version == 1:
        log.warning("the journal %s gets a hash chain (layout %d)", path, LAYOUT_VERSION)
        connection.executescript(f"BEGIN IMMEDIATE; {_FROM_LAYOUT_1} COMMIT;")


def begin_anew(
    opened: OpenedFile, path: Path, why: JournalError, *, busy_timeout_ms: int, max_bytes: int | None
) -> OpenedFile:
    """The same lock on a new journal, in place of one that opened well and whose rows turned out to be damaged.
    Takes `opened` over. Raises JournalError."""
    opened.connection.close()
    try:
        alarm = _move_aside(path, why)
        log.error("%s", alarm)
        return OpenedFile(_connect(path, busy_timeout_ms, max_bytes, 0), opened.lock, alarm)
    except OSError as exc:
        opened.lock.close()
        raise JournalError(
            f"the journal {path} cannot be moved aside: {exc.strerror or exc}; check the folder"
        ) from exc
    except BaseException:
        opened.lock.close()
        raise


def _move_aside(path: Path, why: JournalError) -> str:
    """Returns the alarm."""
    aside = set_aside(path)
    return (
        f"the journal {path} is damaged ({why}) and was kept as {aside.name}; a new one was started. "
        "Records of earlier boots cannot be replayed, and parts in flight at the last stop have no record; "
        "check the disk"
    )
