"""What the gateway has to tell the daemon, in a file of its own until it is on the daemon's disk.

A thread of its own writes it: who hands something over never waits, neither the PLC nor a verdict. What the daemon has
taken before it was written is not written at all.

What is written outlives a `kill -9` at once: the kernel has it. It is on the disk itself, and outlives a power cut, a
second later, if it still waits then: so a gateway whose daemon lives hardly ever syncs the disk of the verdicts. What
is taken out too late is told twice, and the daemon records each once. See deploy/decisions/0017-amendments.md.
"""

import fcntl
import logging
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from edge_daemon.errors import WireError
from edge_daemon.files import set_aside
from edge_daemon.gateway.errors import OutboxError
from edge_daemon.wire.codec import decode_amendment_request, encode_request
from edge_daemon.wire.messages import AmendmentRequest

log = logging.getLogger(__name__)

FILE: Final = "outbox.sqlite"
_APPLICATION_ID: Final = 0x4544474F  # "EDGO"
_LAYOUT_VERSION: Final = 1
_PAGE_BYTES: Final = 4096
MOST_BYTES: Final = 64 * 1024 * 1024
"""Some 20,000 amendments take 15 MB."""
_AGAIN_S: Final = 1.0
_TIDY_S: Final = 1.0
_SYNC_S: Final = 1.0
_LAYOUT: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE waiting (id INTEGER PRIMARY KEY, amendment_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL) STRICT;
PRAGMA application_id={_APPLICATION_ID};
PRAGMA user_version={_LAYOUT_VERSION};
COMMIT;
"""
# What reading a damaged file may end in: see `edges/journal_file.py`.
_UNREADABLE: Final = (sqlite3.Error, ValueError, TypeError, AttributeError, WireError)


class _DamagedError(Exception):
    """The file is no sound outbox."""


class Outbox:
    """Keeps amendments in `folder` between `keep` and `forget`, both of which return at once.

    on_found: told in the outbox's thread of what an earlier gateway left here, once, in its order
    on_fatal: told in that thread of a defect, which ends it

    A file that cannot be written is tried again every second; meanwhile `alarms` says so, and what is kept is in
    memory alone. A damaged one is moved aside; what can be read of it goes into a new one.
    """

    def __init__(
        self,
        folder: Path,
        on_found: Callable[[Sequence[AmendmentRequest]], None],
        on_fatal: Callable[[BaseException], None],
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._path = folder / FILE
        self._on_found = on_found
        self._on_fatal = on_fatal
        self._most_bytes = most_bytes
        self._thread: threading.Thread | None = None
        self._file: sqlite3.Connection | None = None
        self._lock_file: IO[str] | None = None
        self._sync_at_s: float | None = None
        self._synced_to_s = 0.0
        self._moved = False
        self._changed = threading.Condition()  # guards what follows
        self._kept: OrderedDict[str, AmendmentRequest] = OrderedDict()
        self._unwritten: OrderedDict[str, AmendmentRequest] = OrderedDict()
        self._written_at_s: dict[str, float] = {}  # by the monotonic clock, of what waits, in this order
        self._gone: set[str] = set()
        self._barriers: list[Future[None]] = []
        self._alarms: dict[str, str] = {}
        self._tidy_at_s: float | None = None
        self._closing = False

    def open(self) -> None:
        """Starts its thread, which opens the file."""
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 3.0) -> None:
        """Writes what is not written yet, as far as the disk lets it within the timeout. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.error("the disk under %s does not answer; what was not written is lost", self._path)
            self._thread = None

    def keep(self, request: AmendmentRequest) -> None:
        """Written soon, in the order in which it comes."""
        with self._changed:
            if request.amendment_id not in self._kept:
                self._kept[request.amendment_id] = self._unwritten[request.amendment_id] = request
                self._changed.notify()

    def forget(self, amendment_id: str) -> None:
        """The daemon has it, or nobody wants it any more."""
        with self._changed:
            if self._kept.pop(amendment_id, None) is None:
                return
            self._written_at_s.pop(amendment_id, None)
            if self._unwritten.pop(amendment_id, None) is None:
                self._gone.add(amendment_id)
                if self._tidy_at_s is None:  # in a second will do, together with others
                    self._tidy_at_s = time.monotonic() + _TIDY_S
                    self._changed.notify()

    def written(self) -> "Future[None]":
        """Done when all that was handed over before is written, or forgotten. Never done while nothing can be written:
        wait with a timeout."""
        barrier: Future[None] = Future()
        with self._changed:
            self._barriers.append(barrier)
            self._changed.notify()
        return barrier

    @property
    def alarms(self) -> Mapping[str, str]:
        """What an operator must know, by name: `outbox_failing` while nothing can be written, `outbox_damaged` until
        the next start."""
        with self._changed:
            return dict(self._alarms)

    # -- its thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except Exception as exc:  # a defect: the gateway ends, and is started anew
            self._on_fatal(exc)
        finally:
            self._leave()

    def _step(self) -> bool:
        """Waits for work and does it; False at the end."""
        try:
            file = self._file or self._enter()
            with self._changed:
                self._wait_for_work()
                closing = self._closing
                batch, self._unwritten = self._unwritten, OrderedDict()
                gone, self._gone, self._tidy_at_s = self._gone, set(), None
                barriers, self._barriers = self._barriers, []
            try:
                self._write(file, batch, gone)
            except BaseException:
                self._give_back(batch, gone, barriers)
                raise
            self._all_clear()
            for barrier in barriers:
                if barrier.set_running_or_notify_cancel():
                    barrier.set_result(None)
            self._sync(file)
        except (OutboxError, OSError, sqlite3.Error, UnicodeDecodeError, _DamagedError) as exc:
            closing = self._trouble(exc)
        return not closing

    def _wait_for_work(self) -> None:
        while not (self._unwritten or self._barriers or self._closing):
            due_s = [at_s for at_s in (self._tidy_at_s, self._sync_at_s) if at_s is not None]
            left_s = min(due_s) - time.monotonic() if due_s else None
            if left_s is not None and left_s <= 0:
                return
            self._changed.wait(left_s)

    def _write(self, file: sqlite3.Connection, batch: Mapping[str, AmendmentRequest], gone: set[str]) -> None:
        if not batch and not gone:
            return
        file.execute("BEGIN IMMEDIATE")
        try:
            file.executemany("DELETE FROM waiting WHERE amendment_id = ?", [(name,) for name in gone])
            rows = [(name, encode_request(request)) for name, request in batch.items()]
            file.executemany("INSERT OR IGNORE INTO waiting (amendment_id, body) VALUES (?, ?)", rows)
            file.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                file.execute("ROLLBACK")
            raise
        now_s = time.monotonic()
        with self._changed:
            self._written_at_s.update((name, now_s) for name in batch if name in self._kept)
        if batch and self._sync_at_s is None:
            self._sync_at_s = now_s + _SYNC_S

    def _give_back(self, batch: Mapping[str, AmendmentRequest], gone: set[str], barriers: list["Future[None]"]) -> None:
        with self._changed:
            still = [(name, request) for name, request in batch.items() if name in self._kept]
            self._unwritten = OrderedDict([*still, *self._unwritten.items()])
            self._gone = (self._gone | gone) - batch.keys()
            self._barriers = [barrier for barrier in (*barriers, *self._barriers) if not barrier.cancelled()]

    def _sync(self, file: sqlite3.Connection) -> None:
        """What still waits after its second goes to the disk itself; a checkpoint syncs the log first, then the
        file."""
        now_s = time.monotonic()
        if self._sync_at_s is None or now_s < self._sync_at_s:
            return
        with self._changed:
            unsynced_s = (at_s for at_s in self._written_at_s.values() if at_s >= self._synced_to_s)
            oldest_s = next(unsynced_s, None)
        if oldest_s is None or now_s < oldest_s + _SYNC_S:
            self._sync_at_s = None if oldest_s is None else oldest_s + _SYNC_S
            return
        file.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._sync_at_s, self._synced_to_s = None, now_s

    def _trouble(self, exc: Exception) -> bool:
        """Says it and waits before the next attempt; whether it is the end."""
        self._shut()
        # Not twice at once: a disk on which every new file is damaged would be filled with them.
        at_once = _is_damage(exc) and self._move_aside(exc) and not self._moved
        self._moved = self._moved or at_once
        if not _is_damage(exc):
            self._alarm("outbox_failing", _told(exc, self._path))
        with self._changed:
            if not at_once:
                self._changed.wait_for(lambda: self._closing, _AGAIN_S)
            return self._closing

    # -- the file ------------------------------------------------------------------------------------

    def _enter(self) -> sqlite3.Connection:
        """Opens the file and holds it against what is kept: each of both must be in the other."""
        self._take_lock()
        file = self._file = _connect(self._path, self._most_bytes)
        rows = dict(_rows(file))
        with self._changed:
            found = self._take_up(rows)
            self._gone &= rows.keys()
            self._unwritten = OrderedDict((n, r) for n, r in self._kept.items() if n not in rows)
        self._tell_found(found)
        return file

    def _take_up(self, rows: Mapping[str, AmendmentRequest]) -> list[AmendmentRequest]:
        """Keep what the file holds and nobody knows of yet; returns that. Guarded by the caller."""
        found = {name: request for name, request in rows.items() if name not in self._kept and name not in self._gone}
        self._kept.update(found)
        return list(found.values())

    def _tell_found(self, found: Sequence[AmendmentRequest]) -> None:
        if found:
            log.info("%d amendments of before are told now, from %s", len(found), self._path)
            self._on_found(found)

    def _take_lock(self) -> None:
        """The kernel frees it with the process."""
        if self._lock_file is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = self._path.with_name(f"{FILE}.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            lock.close()
            raise OutboxError(
                f"{self._path} is in use by another edge-gateway; stop that one, or give this one its own state_dir"
            ) from exc
        self._lock_file = lock

    def _move_aside(self, why: Exception) -> bool:
        """What can still be read is kept on; the rest is in a file beside. Whether that could be done."""
        rescued, moved = _rescue(self._path), False
        with self._changed:
            found = self._take_up(rescued)
        try:
            aside = set_aside(self._path)
        except OSError as exc:
            self._alarm("outbox_failing", _told(exc, self._path))
        else:
            moved = True
            self._alarm(
                "outbox_damaged",
                f"{self._path} is damaged ({why}) and was kept as {aside.name}; {len(found)} amendments in it could be "
                "read and are told, others of an earlier gateway may be lost: their records do not say what became of "
                "the part. Check the disk",
            )
        self._tell_found(found)
        return moved

    def _shut(self) -> None:
        if self._file is not None:
            with suppress(sqlite3.Error):
                self._file.close()
            self._file, self._sync_at_s = None, None

    def _leave(self) -> None:
        self._shut()
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def _alarm(self, name: str, text: str) -> None:
        with self._changed:
            self._alarms[name] = text

    def _all_clear(self) -> None:
        self._moved = False
        with self._changed:
            self._alarms.pop("outbox_failing", None)


def count_waiting(folder: Path) -> int:
    """How many amendments wait in the file; 0 where there is none. Changes nothing. Raises OutboxError."""
    path = folder / FILE
    if not path.exists():
        return 0
    try:
        file = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return int(file.execute("SELECT count(*) FROM waiting").fetchone()[0])
        finally:
            file.close()
    except (sqlite3.Error, UnicodeDecodeError) as exc:
        raise OutboxError(_told(exc, path)) from exc


def _connect(path: Path, most_bytes: int) -> sqlite3.Connection:
    """Raises sqlite3.Error, _DamagedError."""
    file = sqlite3.connect(path, isolation_level=None)
    try:
        file.execute("PRAGMA busy_timeout=1000")
        tables = file.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        marks = [file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if tables and marks != [_APPLICATION_ID, _LAYOUT_VERSION]:
            raise _DamagedError(f"its marks are {marks[0]:#x} and {marks[1]}")
        if tables and (verdict := file.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise _DamagedError(str(verdict)[:300])
        file.execute("PRAGMA journal_mode=WAL").fetchall()
        # A commit is a write and no sync: the log is synced by checkpoints.
        file.execute("PRAGMA synchronous=NORMAL")
        file.execute("PRAGMA journal_size_limit=4194304").fetchall()
        file.execute(f"PRAGMA max_page_count={max(most_bytes // _PAGE_BYTES, 1):d}").fetchall()
        if not tables:
            file.executescript(_LAYOUT)
    except BaseException:
        file.close()
        raise
    return file


def _rows(file: sqlite3.Connection) -> list[tuple[str, AmendmentRequest]]:
    """All of it, or _DamagedError."""
    try:
        return [
            (str(name), decode_amendment_request(body))
            for name, body in file.execute("SELECT amendment_id, body FROM waiting ORDER BY id")
        ]
    except _UNREADABLE as exc:
        raise _DamagedError(str(exc)[:300]) from exc


def _rescue(path: Path) -> dict[str, AmendmentRequest]:
    """Row by row, until the file says no more."""
    found: dict[str, AmendmentRequest] = {}
    with suppress(*_UNREADABLE):
        file = sqlite3.connect(path, isolation_level=None)
        try:
            for name, body in file.execute("SELECT amendment_id, body FROM waiting ORDER BY id"):
                with suppress(*_UNREADABLE):
                    found[str(name)] = decode_amendment_request(body)
        finally:
            file.close()
    return found


def _is_damage(exc: Exception) -> bool:
    """SQLite's own messages repeat what is in the file, which may be no text."""
    name = getattr(exc, "sqlite_errorname", "")
    # All statements are the program's own: an error in one means that the table is not the one that was made.
    damaged = name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or name == "SQLITE_ERROR"
    return damaged or isinstance(exc, _DamagedError | UnicodeDecodeError)


def _told(exc: Exception, path: Path) -> str:
    if isinstance(exc, OutboxError):
        return str(exc)
    detail = getattr(exc, "sqlite_errorname", "") or getattr(exc, "strerror", "") or type(exc).__name__
    return (
        f"what became of parts cannot be kept in {path} ({detail}: {str(exc)[:200]}), only in memory: what the daemon "
        "has not taken is lost if the gateway ends. Make space; check owner and mount of the folder"
    )
