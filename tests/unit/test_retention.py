"""Records and pictures are kept as long as was said, failed parts longer, and nothing waits for it."""

import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from wire_kit import inspection, not_ok

from edge_daemon.edges.archive import QUEUE, Archive, ArchiveJob, sweep_archive
from edge_daemon.edges.journal import Journal
from edge_daemon.edges.journal_chain import verify
from edge_daemon.edges.retention import Retention, Rules
from edge_daemon.errors import EdgeError, JournalError

WAIT_S = 20.0
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
FOR_EVER = Rules(36_500, 36_500, 1 << 60)
DAY = date(2026, 11, 21)


def never(error: BaseException) -> None:
    raise AssertionError(error)


def fill(journal: Journal, ages_days: list[float], bad: Callable[[int], bool] = lambda _n: False) -> None:
    ended = threading.Semaphore(0)
    for n, age in enumerate(ages_days):
        make = not_ok if bad(n) else inspection
        draft = make(seq=0, boot=0, result_id=f"r{n}")
        times = draft.times.model_copy(update={"utc": (NOW - timedelta(days=age)).isoformat()})
        journal.conclude(draft.model_copy(update={"times": times}), lambda _end: ended.release())
    for _ in ages_days:
        assert ended.acquire(timeout=WAIT_S)


def sweep(journal: Journal, folder: Path, records: Rules = FOR_EVER, pictures: Rules = FOR_EVER) -> Retention:
    retention = Retention(journal, folder / "archive", records, pictures, utc=lambda: NOW)
    retention.sweep()
    return retention


def test_old_records_go_bad_parts_stay_longer_and_a_replay_says_gone(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path, "line-1") as journal:
        fill(journal, [500, 400, 300, 200, 100, 10, 5, 1], bad=lambda n: n in (1, 3))
        assert sweep(journal, tmp_path, Rules(90, 365, 1 << 60)).removed == 4
        replay = journal.read("st1", 1, 1, 100)
        assert [e.seq for e in replay.entries] == [4, 6, 7, 8]
        assert replay.gone == ((1, 3), (5, 5))
        assert sweep(journal, tmp_path, Rules(90, 365, 1 << 60)).removed == 0
    assert verify(path).problems == ()
    with Journal(path, "line-1") as again:
        assert again.boot.last_seq == {"st1": 8}


def test_tombstones_of_neighbours_grow_together(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path, "line-1") as journal:
        fill(journal, [400] * 250 + [1] * 3)
        assert sweep(journal, tmp_path, Rules(90, 90, 1 << 60)).removed == 250
        assert journal.read("st1", 1, 1, 1000).gone == ((1, 250),)
    found = verify(path)
    assert (found.tombstones, found.problems) == (1, ())


def test_a_journal_that_is_too_large_loses_its_oldest_good_parts_first(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite", "line-1") as journal:
        fill(journal, [1.0] * 1200, bad=lambda n: n < 20)
        limit = journal.size_bytes() // 2
        sweep(journal, tmp_path, Rules(3650, 3650, limit))
        assert journal.size_bytes() <= limit
        kept = [e.seq for e in journal.read("st1", 1, 1, 5000, limit=5000).entries]
        assert kept[:20] == list(range(1, 21))
        assert kept[-1] == 1200
        assert kept[20:] == list(range(kept[20], 1201))


def test_when_no_good_part_is_left_the_others_go_too(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite", "line-1") as journal:
        fill(journal, [1.0] * 300, bad=lambda _n: True)
        sweep(journal, tmp_path, Rules(3650, 3650, journal.size_bytes() // 2))
        kept = [e.seq for e in journal.read("st1", 1, 1, 5000).entries]
        assert 0 < len(kept) < 300
        assert kept[-1] == 300


def test_a_journal_that_fails_keeps_everything_and_says_so(tmp_path: Path) -> None:
    class Failing(Journal):
        def remove(self, _numbers: Any, on_durable: Callable[[JournalError | None], None]) -> None:
            on_durable(JournalError("the disk is full"))

    with Failing(tmp_path / "journal.sqlite", "line-1") as journal:
        fill(journal, [400.0])
        with pytest.raises(JournalError, match="the disk is full"):
            sweep(journal, tmp_path, Rules(90, 90, 1 << 60))
        assert len(journal.read("st1", 1, 1, 9).entries) == 1


def test_retention_runs_beside_the_line_and_stops(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite", "line-1") as journal:
        fill(journal, [400.0] * 5)
        rules = Rules(90, 90, 1 << 60)
        retention = Retention(journal, tmp_path, rules, rules, period_s=0.001, utc=lambda: NOW, on_fatal=never)
        retention.open()
        with pytest.raises(EdgeError, match="already"):
            retention.open()
        while retention.removed < 5:
            pass
        retention.close()
        retention.close()


# --- pictures -----------------------------------------------------------------------------------------------------


def job(result_id: str = "r1", ok: bool = False, day: date = DAY, data: bytes = b"x" * 100) -> ArchiveJob:
    return ArchiveJob("st1", day, ok, result_id, lambda: [("top.frame.png", data), ("top.heatmap.png", data)])


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_pictures_are_files_named_by_the_result(tmp_path: Path) -> None:
    with Archive(tmp_path, 0, never) as archive:
        assert archive.submit(job("r1"))
        assert archive.submit(job("r2", ok=True))
    assert names(tmp_path) == [
        "st1/2026-11-21/not_ok/r1.top.frame.png",
        "st1/2026-11-21/not_ok/r1.top.heatmap.png",
        "st1/2026-11-21/ok/r2.top.frame.png",
        "st1/2026-11-21/ok/r2.top.heatmap.png",
    ]
    assert archive.stats().written == 4


def test_a_slow_disk_drops_pictures_and_never_makes_anybody_wait(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> list[tuple[str, bytes]]:
        begun.set()
        assert go_on.wait(WAIT_S)
        return []

    with Archive(tmp_path, 0, never) as archive:
        archive.submit(ArchiveJob("st1", DAY, False, "slow", slow))
        assert begun.wait(WAIT_S)
        taken = [archive.submit(job(f"r{n}")) for n in range(QUEUE + 5)]
        assert taken == [True] * QUEUE + [False] * 5
        assert archive.stats().dropped == 5
        go_on.set()


def test_on_a_disk_that_is_nearly_full_the_journal_comes_first(tmp_path: Path) -> None:
    with Archive(tmp_path, 1 << 60, never) as archive:
        archive.submit(job())
    assert archive.stats().no_space == 1
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_and_pictures_that_cannot_be_made_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "st1").write_text("a file where the folder should be")

    def broken() -> list[tuple[str, bytes]]:
        raise EdgeError("no colours")

    with Archive(tmp_path, 0, never) as archive:
        archive.submit(job())
        archive.submit(ArchiveJob("st2", DAY, False, "r2", broken))
        archive.submit(ArchiveJob("st2", DAY, False, "r3", lambda: [("a.png", b"a")]))
    stats = archive.stats()
    assert (stats.failed, stats.written) == (2, 1)
    assert "no colours" in stats.problem


def put(folder: Path, days_ago: int, ok: bool, size: int = 100) -> Path:
    day = (DAY - timedelta(days=days_ago)).isoformat()
    path = folder / "st1" / day / ("ok" if ok else "not_ok") / "r.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * size)
    return path


def test_old_pictures_go_and_those_of_bad_parts_later(tmp_path: Path) -> None:
    old_ok, old_bad, older_bad, new_ok = (
        put(tmp_path, 40, True),
        put(tmp_path, 40, False),
        put(tmp_path, 400, False),
        put(tmp_path, 1, True),
    )
    assert sweep_archive(tmp_path, DAY, 30, 365, 1 << 40) == 2
    assert [p.exists() for p in (old_ok, old_bad, older_bad, new_ok)] == [False, True, False, True]
    assert not older_bad.parent.parent.exists()


def test_too_many_pictures_lose_the_oldest_days_of_good_parts_first(tmp_path: Path) -> None:
    ok_3, bad_3, ok_2, ok_0 = (
        put(tmp_path, 3, True),
        put(tmp_path, 3, False),
        put(tmp_path, 2, True),
        put(tmp_path, 0, True),
    )
    assert sweep_archive(tmp_path, DAY, 30, 365, 250) == 2
    assert [p.exists() for p in (ok_3, ok_2, bad_3, ok_0)] == [False, False, True, True]
    assert sweep_archive(tmp_path, DAY, 30, 365, 10) == 1
    assert ok_0.exists()  # never what is being written today


def test_what_is_not_the_archives_is_never_deleted(tmp_path: Path) -> None:
    strange = tmp_path / "st1" / "holiday" / "ok" / "r.png"
    strange.parent.mkdir(parents=True)
    strange.write_bytes(b"x" * 100)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "r.png").write_bytes(b"x")
    (tmp_path / "st1" / "2020-01-01").mkdir()
    (tmp_path / "st1" / "2020-01-01" / "ok").symlink_to(outside)
    assert sweep_archive(tmp_path, DAY, 1, 1, 0) == 0
    assert strange.exists()
    assert (outside / "r.png").exists()
    assert sweep_archive(tmp_path / "nothing", DAY, 1, 1, 0) == 0
