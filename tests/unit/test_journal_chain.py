"""The hash chain: whoever changes the journal is found out."""

import re
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from wire_kit import inspection

from edge_daemon.edges.journal import Journal
from edge_daemon.edges.journal_chain import Head, parse_head, verify
from edge_daemon.edges.journal_file import _LAYOUT, APPLICATION_ID
from edge_daemon.errors import JournalError
from edge_daemon.wire.codec import inspection_header

WAIT_S = 20.0


def write(path: Path, count: int = 5, prune_through: int = 0, **changes: Any) -> str:
    """Records, an amendment of the first and perhaps a prune; the head."""
    with Journal(path, "line-1") as journal:
        ended = threading.Semaphore(0)
        for n in range(count):
            journal.conclude(
                inspection(seq=0, boot=0, result_id=f"r{journal.boot.number}-{n}", **changes),
                lambda _end: ended.release(),
            )
        journal.amend(f"r{journal.boot.number}-0", "disposition", {"gate": "open"}, lambda _error: ended.release())
        expected = count + 1
        if prune_through:
            journal.prune("st1", journal.boot.number, prune_through, lambda _error: ended.release())
            expected += 1
        for _ in range(expected):
            assert ended.acquire(timeout=WAIT_S)
        return journal.head


def tamper(path: Path, *statements: str) -> None:
    """As somebody with a SQLite browser would."""
    connection = sqlite3.connect(path)
    try:
        for name in ("record_is_final", "amendment_is_final"):
            connection.execute(f"DROP TRIGGER IF EXISTS {name}")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    finally:
        connection.close()


def problems(path: Path, known: str = "") -> str:
    return "\n".join(verify(path, parse_head(known) if known else None).problems)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_a_sound_journal_verifies_across_boots_and_against_the_head_that_was_known(path: Path) -> None:
    early = write(path)
    late = write(path, 3)
    found = verify(path, parse_head(early))
    assert (found.records, found.amendments, found.problems) == (8, 2, ())
    assert str(found.head) == late
    assert verify(path, parse_head(late)).problems == ()
    assert any("no head from outside" in note for note in verify(path).notes)


def test_a_journal_is_verified_while_it_is_written(path: Path) -> None:
    write(path)
    with Journal(path, "line-1"):
        assert verify(path).problems == ()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "UPDATE record SET header = CAST(replace(CAST(header AS TEXT), '4711', '4712') AS BLOB) WHERE seq = 3",
            "record 3 .* was changed",
        ),
        ("UPDATE amendment SET body = '{}'", "disposition amendment .* was changed"),
        ("DELETE FROM record WHERE seq = 3", "missing without a tombstone"),
        ("DELETE FROM record WHERE seq = 5", "missing although nothing was ever pruned"),
        ("DELETE FROM amendment", "missing although nothing was ever pruned"),
        ("UPDATE record SET trigger_id = 'x', seq = 77 WHERE seq = 3", "columns are not those of its header"),
        ("UPDATE chain SET links = links - 1", "not the one that the chain ends with"),
    ],
)
def test_what_was_changed_taken_out_or_put_in_is_named(path: Path, statement: str, said: str) -> None:
    write(path)
    tamper(path, statement)
    found = verify(path)
    assert re.search(said, "\n".join(found.problems))


def test_a_chain_that_was_made_to_fit_again_is_found_by_the_head_known_outside(path: Path, tmp_path: Path) -> None:
    known = write(path)
    forged = tmp_path / "forged.sqlite"
    write(forged, evaluation="NotDecidable")
    assert problems(forged) == ""
    assert "was written anew" in problems(forged, known)


def test_an_end_that_was_taken_away_is_found_by_the_head_known_outside(path: Path, tmp_path: Path) -> None:
    write(path)
    backup = tmp_path / "backup.sqlite"
    backup.write_bytes(path.read_bytes())
    known = write(path)
    assert problems(backup) == ""
    assert "its end was taken away" in problems(backup, known)


def test_pruned_entries_are_no_forgery(path: Path) -> None:
    early = write(path, prune_through=3)
    found = verify(path)
    assert (found.records, found.tombstones, found.problems) == (2, 1, ())
    assert verify(path, parse_head(early)).problems == ()
    assert any("was pruned" in note for note in verify(path, Head(1, bytes(32))).notes)


def test_a_journal_of_the_layout_before_goes_on_and_says_what_the_chain_does_not_cover(path: Path) -> None:
    old = _LAYOUT.split("CREATE TABLE chain")[0]
    for column in (
        "    previous BLOB,\n",
        "    chain BLOB,\n",
        ",\n    previous BLOB,\n    chain BLOB",
        ",\n    chain BLOB",
    ):
        old = old.replace(column, "")
    old = old.replace("    body TEXT NOT NULL,\n", "    body TEXT NOT NULL\n").replace(
        "why TEXT NOT NULL,\n", "why TEXT NOT NULL\n"
    )
    old = old.replace("CREATE TABLE gone (\n    id INTEGER PRIMARY KEY,", "CREATE TABLE gone (")
    assert "previous" not in old
    connection = sqlite3.connect(path)
    connection.executescript(f"{old} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=1;")
    header = inspection_header(inspection(boot=1, seq=1, result_id="old"))
    connection.execute("INSERT INTO boot VALUES (1, 'first', '2026', NULL)")
    connection.execute("INSERT INTO record VALUES (1, 'st1', 1, 1, 'old', '4711', 1, ?)", (header,))
    connection.execute("INSERT INTO gone VALUES ('st1', 1, 2, 3, 'lost')")
    connection.commit()
    connection.close()
    write(path)
    found = verify(path)
    assert found.problems == ()
    assert (found.records, found.tombstones) == (6, 1)
    assert any("older than the chain" in note for note in found.notes)
    with Journal(path, "line-1") as journal:
        replay = journal.read("st1", 1, 1, 9)
        assert ([e.header for e in replay.entries], replay.gone) == ([header], ((2, 3),))


def test_what_is_no_journal_and_no_head_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no journal"):
        verify(tmp_path / "nothing")
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at as one " * 20)
    with pytest.raises(JournalError, match="damaged"):
        verify(tmp_path / "text")
    for text in ("", "4711", "4711:xyz", "-1:" + "00" * 32, "5:00"):
        with pytest.raises(JournalError, match="no head"):
            parse_head(text)
