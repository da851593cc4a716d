"""The archive: pictures of parts as files named by their result, kept for as long as the configuration says.

    FOLDER/<station>/<day>/<ok or not_ok>/<result id>.<view>.frame.png
                                          <result id>.<view>.heatmap.png

Nothing waits for it: what its queue cannot take is dropped and counted, and on a disk that is nearly full it writes
nothing at all, because the journal needs the space.
"""

import contextlib
import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from edge_daemon.errors import EdgeError

log = logging.getLogger(__name__)

# Each holds the frames of one part.
QUEUE: Final = 16
_LOWEST_PRIORITY: Final = 19


@dataclass(frozen=True, slots=True)
class ArchiveStats:
    """waiting: of at most 16. dropped: the queue was full. no_space: not written, the disk is nearly full.
    failed: could not be made or written; `problem` is the last reason."""

    waiting: int
    written: int
    dropped: int
    no_space: int
    failed: int
    problem: str


@dataclass(frozen=True, slots=True)
class ArchiveJob:
    """Pictures of one part. make: (name, bytes) of each; called in the archive's thread."""

    station: str
    day: date
    ok: bool
    result_id: str
    make: Callable[[], Sequence[tuple[str, bytes]]]


class Archive:
    """Writes pictures on a thread of the lowest priority.

    folder:         where; made when the first picture comes
    min_free_bytes: below so much free space nothing is written
    on_fatal:       told when the thread fails in a way nobody foresaw

    `submit` never waits. Files appear whole or not at all; they are not synced: a picture proves nothing.
    """

    def __init__(self, folder: Path, min_free_bytes: int, on_fatal: Callable[[BaseException], None]) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._on_fatal = on_fatal
        self._queue: queue.Queue[ArchiveJob | None] = queue.Queue(QUEUE)
        self._lock = threading.Lock()
        self._counts = {"written": 0, "dropped": 0, "no_space": 0, "failed": 0}
        self._problem = ""
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Starts writing."""
        if self._thread is not None:
            raise EdgeError("the archive is open already")
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Writes what is queued and stops. May be called twice."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> "Archive":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, job: ArchiveJob) -> bool:
        """False when it is dropped: the queue is full."""
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            self._count("dropped")
            return False
        return True

    def stats(self) -> ArchiveStats:
        with self._lock:
            return ArchiveStats(waiting=self._queue.qsize(), problem=self._problem, **self._counts)

    def _count(self, name: str, problem: str = "") -> None:
        with self._lock:
            self._counts[name] += 1
            if problem and problem != self._problem:
                log.error("%s", problem)
            self._problem = problem or self._problem

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        while (job := self._queue.get()) is not None:
            try:
                self._write(job)
            except EdgeError as exc:
                self._count("failed", f"pictures of {job.result_id} could not be made: {exc}")
            except OSError as exc:
                self._count("failed", f"pictures cannot be kept in {self._folder}: {exc.strerror or exc}; check it")
            except Exception as exc:  # a defect of the program
                self._on_fatal(exc)
                return

    def _write(self, job: ArchiveJob) -> None:
        folder = self._folder / job.station / job.day.isoformat() / ("ok" if job.ok else "not_ok")
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < self._min_free_bytes:
            self._count("no_space", f"no pictures are kept: less than {self._min_free_bytes >> 20} MiB are free")
            return
        for name, data in job.make():
            path = folder / f"{job.result_id}.{name}"
            temporary = path.with_name(f".{path.name}.new")
            try:
                temporary.write_bytes(data)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            self._count("written")


@dataclass(frozen=True, slots=True)
class _Day:
    """One folder of pictures: one station, one day, OK or not."""

    day: date
    ok: bool
    path: Path


def sweep_archive(folder: Path, today: date, keep_days: float, keep_not_ok_days: float, max_bytes: int) -> int:
    """Deletes pictures that are too old, then, while they take more than `max_bytes`, the oldest day of OK parts, and
    when there is none the oldest day of the others. Returns how many folders went. A day is the smallest unit.

    Raises EdgeError when something cannot be deleted.
    """
    try:
        days = sorted(_days(folder), key=lambda d: (not d.ok, d.day))
        gone = [d for d in days if d.day < today - timedelta(days=keep_days if d.ok else keep_not_ok_days)]
        for old in gone:
            shutil.rmtree(old.path)
        kept = [(d, _bytes_in(d.path)) for d in days if d not in gone]
        total = sum(size for _, size in kept)
        for candidate, size in kept:
            if total <= max_bytes or candidate.day == today:
                continue
            shutil.rmtree(candidate.path)
            gone.append(candidate)
            total -= size
        for removed in gone:
            with contextlib.suppress(OSError):  # the day's other folder is still there
                removed.path.parent.rmdir()
    except OSError as exc:
        raise EdgeError(
            f"pictures in {folder} cannot be deleted: {exc.strerror or exc}; check owner and mount"
        ) from exc
    return len(gone)


def _days(folder: Path) -> Iterator[_Day]:
    """Only what has the shape that `Archive` gives: nothing else is ever deleted."""
    if not folder.is_dir():
        return
    for path in folder.glob("*/*/*"):
        if path.name in ("ok", "not_ok") and path.is_dir() and not path.is_symlink():
            with contextlib.suppress(ValueError):
                yield _Day(date.fromisoformat(path.parent.name), path.name == "ok", path)


def _bytes_in(folder: Path) -> int:
    with os.scandir(folder) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
