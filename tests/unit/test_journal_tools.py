"""What people do with the journal file: verify, export, backup, salvage; from the command line."""

import csv
import io
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from wire_kit import inspection, not_ok, view

from edge_daemon.cli import main
from edge_daemon.edges.journal import Journal
from edge_daemon.edges.journal_chain import verify
from edge_daemon.edges.journal_tools import Wanted, backup, csv_row, find, salvage
from edge_daemon.errors import JournalError
from edge_daemon.wire.messages import Inspection, RecipeRef

WAIT_S = 20.0


def wait_for(journal: Journal, *drafts: Inspection) -> None:
    ended = threading.Semaphore(0)
    for draft in drafts:
        journal.conclude(draft, lambda _end: ended.release())
    for _ in drafts:
        assert ended.acquire(timeout=WAIT_S)


def at(utc: str, result_id: str, **changes: Any) -> Inspection:
    draft = inspection(seq=0, boot=0, result_id=result_id, **changes)
    return draft.model_copy(update={"times": draft.times.model_copy(update={"utc": utc})})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three records of st1, one of st2 by another recipe; the first one's part id came later."""
    path = tmp_path / "journal.sqlite"
    nut = (view(recipe=RecipeRef(name="nut", version="1", digest="12" * 32)),)
    with Journal(path, "line-1") as journal:
        wait_for(
            journal,
            at("2026-11-20T08:00:00.000000Z", "a", part_id=None),
            at("2026-11-20T12:00:00.000000Z", "b", part_id="=cmd()"),
            not_ok(seq=0, boot=0, result_id="c"),
            at("2026-11-21T00:00:00.000000Z", "d", station="st2", views=nut),
        )
        told = threading.Event()
        journal.amend("a", "part_id", {"part_id": "PN-late"}, lambda _error: told.set())
        assert told.wait(WAIT_S)
    return path


def journal(*arguments: object) -> int:
    return main(["journal", *map(str, arguments)])


def exported(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert journal("export", "--journal", path, *arguments) == 0
    return [json.loads(line)["record"]["result_id"] for line in capsys.readouterr().out.splitlines()]


def test_records_are_found_by_time_station_and_recipe(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(path, capsys) == ["a", "b", "c", "d"]
    assert exported(path, capsys, "--from", "2026-11-20T08:15", "--to", "2026-11-21") == ["b", "c"]
    assert exported(path, capsys, "--station", "st2") == ["d"]
    assert exported(path, capsys, "--recipe", "nut") == ["d"]
    assert exported(path, capsys, "--recipe", "12" * 5) == ["d"]
    assert exported(path, capsys, "--recipe", "bolt") == []


def test_the_table_for_a_spreadsheet_has_late_part_ids_and_no_formulas(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert journal("export", "--journal", path, "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["part_id"] for row in rows] == ["PN-late", "'=cmd()", "PN-0042", "PN-0042"]
    assert [row["evaluation"] for row in rows] == ["OK", "OK", "NotOK", "OK"]
    assert rows[2]["score"] == "3.5"
    assert rows[3]["recipes"] == "nut@" + "12" * 6


def test_an_export_goes_to_a_new_file_only(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    assert journal("export", "--journal", path, "--out", out) == 0
    assert len(out.read_text().splitlines()) == 4
    assert journal("export", "--journal", path, "--out", out) == 1
    assert "exists already" in capsys.readouterr().err
    assert len(out.read_text().splitlines()) == 4


def test_verify_says_what_is_wrong_and_ends_with_a_status(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert journal("verify", "--journal", path) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert journal("verify", "--journal", path, "--json", "--head", "99:" + "00" * 32) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["sound"], found["records"]) == (False, 4)
    assert "was taken away" in found["problems"][0]
    assert journal("verify", "--journal", path, "--head", "nonsense") == 1
    assert journal("verify", "--journal", path.with_name("none")) == 1


def test_a_backup_is_sound_while_the_daemon_writes(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.sqlite"
    with Journal(path, "line-1") as running:
        stop = threading.Event()

        def load() -> None:
            n = 0
            while not stop.is_set():
                wait_for(running, inspection(seq=0, boot=0, result_id=f"load-{n}"))
                n += 1

        writer = threading.Thread(target=load)
        writer.start()
        try:
            assert backup(path, target) == target.stat().st_size
        finally:
            stop.set()
            writer.join()
    found = verify(target)
    assert found.problems == ()
    assert found.records >= 4
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("backup")] == ["backup.sqlite"]


def test_a_backup_never_overwrites_and_leaves_nothing_half_done(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert journal("backup", tmp_path / "b.sqlite", "--journal", path) == 0
    assert journal("backup", tmp_path / "b.sqlite", "--journal", path) == 1
    assert "exists already" in capsys.readouterr().err
    assert journal("backup", tmp_path / "no folder" / "b.sqlite", "--journal", path) == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_restored_backup_goes_on_without_using_a_number_twice(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    backup(path, copy)
    with Journal(path, "line-1") as running:
        wait_for(running, inspection(seq=0, boot=0, result_id="after"))
    copy.replace(path)
    with Journal(path, "line-1") as restored:
        assert restored.boot.number == 3
        assert not restored.boot.alarm
    assert verify(path).problems == ()


@pytest.mark.parametrize("damage", ["header", "first pages", "middle", "no tables"])
def test_what_can_be_read_of_a_damaged_journal_is_saved(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path, "line-1") as running:
        wait_for(running, *(inspection(seq=0, boot=0, result_id=f"r{n}") for n in range(300)))
    data = bytearray(path.read_bytes())
    begin, length = {
        "header": (0, 100),
        "first pages": (0, 9 * 4096),
        "middle": (len(data) // 2, 4096),
        "no tables": (100, 3996),
    }[damage]
    data[begin : begin + length] = b"\xa5" * length
    path.write_bytes(data)
    saved = list(salvage(path))
    ids = {found.inspection.result_id for found in saved}
    assert len(ids) == len(saved)
    # A page holds up to three records; the first ones of a file are not records at all.
    assert len(ids) >= 300 - 3 * (length // 4096 + 1)
    assert ids <= {f"r{n}" for n in range(300)}


def test_records_that_are_only_in_the_log_are_saved_too(path: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.sqlite"
    with Journal(path, "line-1") as running:
        wait_for(running, *(inspection(seq=0, boot=0, result_id=f"log-{n}") for n in range(5)))
        torn.write_bytes(b"\xa5" * 4096)
        torn.with_name("torn.sqlite-wal").write_bytes(path.with_name(f"{path.name}-wal").read_bytes())
    assert {found.inspection.result_id for found in salvage(torn)} >= {f"log-{n}" for n in range(5)}


def test_salvage_says_how_much_and_refuses_what_is_not_there(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert journal("salvage", path, "--out", tmp_path / "saved.jsonl") == 0
    assert "4 records saved" in capsys.readouterr().err
    assert journal("salvage", tmp_path / "none") == 1
    (tmp_path / "noise").write_bytes(b'{"schema":"edge-daemon/result/1"' * 2000)
    assert journal("salvage", tmp_path / "noise") == 1
    with pytest.raises(JournalError, match="there is no file"):
        list(salvage(tmp_path / "none"))


def test_a_record_that_cannot_be_read_ends_an_export_in_words(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER record_is_final")
    connection.execute("UPDATE record SET header = x'00' WHERE result_id = 'b'")
    connection.commit()
    connection.close()
    assert journal("export", "--journal", path) == 1
    assert "record b cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE record SET header = x'ff' WHERE seq = 1",
        "UPDATE record SET header = x''",
        "UPDATE record SET station = CAST(x'ff' AS TEXT) WHERE result_id = 'a'",
        "UPDATE amendment SET body = '{'",
        "UPDATE amendment SET body = '[]', kind = 'journal'",
        "UPDATE amendment SET body = '{\"superseded_by\": 7}', kind = 'journal'",
        "UPDATE amendment SET result_id = CAST(x'ff' AS TEXT)",
        "DELETE FROM chain",
        "DROP TABLE amendment",
    ],
)
def test_rows_that_nobody_wrote_are_told_and_the_others_are_saved(path: Path, damage: str) -> None:
    """SQLite finds nothing wrong with a file like this: its pages are whole."""
    connection = sqlite3.connect(path)
    triggers = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for (name,) in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    connection.executescript(damage)
    connection.close()
    told = 0
    for use in (verify, lambda path: [csv_row(found) for found in find(path, Wanted())]):
        try:
            told += bool(getattr(use(path), "problems", ()))
        except JournalError:
            told += 1
    assert told
    list(salvage(path))


def test_a_schema_that_is_no_text_is_told(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CREATE TABLE amendment", b"CREATE TABLE \xc8mendment", 1))
    with pytest.raises(JournalError):
        list(find(path, Wanted()))
    with pytest.raises(JournalError):
        verify(path)
    assert [saved.inspection.result_id for saved in salvage(path)]
