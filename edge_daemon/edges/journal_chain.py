"""The hash chain over the journal: what was written cannot be changed afterwards without being noticed.

Every record, amendment and tombstone is a link; it carries the hash of the link before it. The head, the hash of the
newest link, goes out in every status message and so is known outside the PC: who changes the file can make the chain
fit again, but not the heads that others have kept. See deploy/decisions/0003-journal-layout.md.
"""

import hashlib
import heapq
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from edge_daemon.edges.journal_file import UNREADABLE, explain, open_for_reading
from edge_daemon.errors import JournalError, WireError
from edge_daemon.wire.codec import parse_json

START: Final = bytes(32)
# More of them would only repeat what the first ones say.
_PROBLEMS_TOLD: Final = 50


class Head(NamedTuple):
    """Number and hash of the newest link."""

    links: int
    digest: bytes

    def __str__(self) -> str:
        return f"{self.links}:{self.digest.hex()}"


def parse_head(text: str) -> Head:
    """The inverse of `str(head)`. Raises JournalError."""
    number, _, digest = text.strip().partition(":")
    try:
        head = Head(int(number), bytes.fromhex(digest))
    except ValueError:
        head = Head(-1, b"")
    if head.links < 0 or len(head.digest) != len(START):
        raise JournalError(
            f"{text[:100]!r} is no head of a journal; one looks like 4711:9f86d0… as status messages carry it"
        )
    return head


def link_digest(number: int, previous: bytes, kind: str, body: bytes) -> bytes:
    """SHA-256 over the hash before, the link's number (8 bytes, big-endian), its kind, a zero byte and its content."""
    return hashlib.sha256(previous + number.to_bytes(8, "big") + kind.encode() + b"\0" + body).digest()


def amendment_body(result_id: str, kind: str, utc: str, body: str) -> bytes:
    """An amendment's content as it is hashed."""
    return json.dumps([result_id, kind, utc, body]).encode()


def gone_body(station: str, boot: int, first: int, last: int, why: str) -> bytes:
    """A tombstone's content as it is hashed."""
    return json.dumps([station, boot, first, last, why]).encode()


def read_head(connection: sqlite3.Connection) -> Head:
    """Of what this connection sees. Raises sqlite3.Error."""
    return Head(*connection.execute("SELECT links, head FROM chain").fetchone())


def append(connection: sqlite3.Connection, kind: str, body: bytes) -> tuple[int, bytes, bytes]:
    """A new link, inside the caller's transaction: its number, the hash before and its own. Raises sqlite3.Error."""
    links, previous = read_head(connection)
    digest = link_digest(links + 1, previous, kind, body)
    connection.execute("UPDATE chain SET links = ?, head = ?", (links + 1, digest))
    return links + 1, previous, digest


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` found. `problems` is empty for a sound journal; `notes` say what could not be checked."""

    records: int
    amendments: int
    tombstones: int
    head: Head
    problems: tuple[str, ...]
    notes: tuple[str, ...]


class _Link(NamedTuple):
    number: int
    kind: str
    body: bytes
    previous: bytes | None
    digest: bytes | None
    where: str


def verify(path: Path, known: Head | None = None) -> Verdict:
    """Reads the whole journal, also while the daemon writes it.

    known: a head that somebody outside has kept
    Finds pages that are damaged, links that were changed, inserted or taken out, columns that do not agree with their
    record, sequence numbers missing without a tombstone, and an end that is not the one known outside.
    Raises JournalError when the file is no journal or cannot be read.
    """
    if not path.exists():
        raise JournalError(f"there is no journal {path}; name it with --journal, or the configuration with --config")
    connection = open_for_reading(path, 5_000)
    try:
        connection.execute("BEGIN")  # one picture of a file that is being written
        return _verify(connection, known)
    except UNREADABLE as exc:
        raise explain(exc, path) from exc
    finally:
        connection.close()


def _verify(connection: sqlite3.Connection, known: Head | None) -> Verdict:
    problems: list[str] = []
    notes: list[str] = []
    (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if sound != "ok":
        problems.append(f"the file is damaged: {sound}; `edge-daemon journal salvage` saves what can be read")
    head = read_head(connection)
    (since,) = connection.execute("SELECT since FROM chain").fetchone()
    if since:
        notes.append(f"entries up to number {since} are older than the chain and are not covered by it")
    counts: Counter[str] = Counter()
    last, digest_before, missing, at_known = since, None if since else START, 0, None
    for link in _links(connection):
        counts[link.kind] += 1
        if link.number <= since and link.digest is None:
            continue
        if link.number == last:
            problems.append(f"{link.where}: link {link.number} exists twice")
        missing += max(0, link.number - last - 1)
        if link.number == last + 1 and digest_before is not None and link.previous != digest_before:
            problems.append(f"{link.where}: does not follow the link before it (link {link.number})")
        if link.digest != link_digest(link.number, link.previous or b"", link.kind, link.body):
            problems.append(f"{link.where}: was changed after it was written (link {link.number})")
        if known is not None and link.number == known.links:
            at_known = link.digest
        last, digest_before = link.number, link.digest
    missing += max(0, head.links - last)
    if last > head.links or (last == head.links and digest_before not in (None, head.digest)):
        problems.append("the newest entry is not the one that the chain ends with")
    pruned = connection.execute("SELECT count(*) FROM gone WHERE why = 'pruned'").fetchone()[0]
    if missing and not pruned:
        problems.append(f"{missing} entries are missing although nothing was ever pruned")
    problems += _unexplained_holes(connection)
    problems += _against_known(head, known, at_known, notes)
    told = problems[:_PROBLEMS_TOLD]
    if len(problems) > len(told):
        told.append(f"and {len(problems) - len(told)} more")
    return Verdict(counts["record"], counts["amendment"], counts["gone"], head, tuple(told), tuple(notes))


def _against_known(head: Head, known: Head | None, found: bytes | None, notes: list[str]) -> Iterator[str]:
    if known is None:
        notes.append("no head from outside was given: a forger who wrote the whole chain anew would not be noticed")
    elif known.links > head.links:
        yield f"the journal ends at link {head.links}, but was known to reach {known.links}: its end was taken away"
    elif known.links and found is None:
        notes.append(f"link {known.links} was pruned; the head that is known outside cannot be compared")
    elif known.links and found != known.digest:
        yield f"link {known.links} is not the one that was known outside: the journal was written anew"


def _links(connection: sqlite3.Connection) -> Iterator[_Link]:
    """All links by number, without holding more than one of each kind."""

    def records() -> Iterator[_Link]:
        rows = connection.execute(
            "SELECT id, station, boot, seq, result_id, header, previous, chain FROM record ORDER BY id"
        )
        for number, station, boot, seq, result_id, header, previous, chain in rows:
            where = f"record {seq} of {station}, boot {boot}"
            if _says(header) != (station, boot, seq, result_id):
                where += ", whose columns are not those of its header,"
                chain = b"" if chain is not None else None
            yield _Link(number, "record", header, previous, chain, where)

    def amendments() -> Iterator[_Link]:
        rows = connection.execute("SELECT id, result_id, kind, utc, body, previous, chain FROM amendment ORDER BY id")
        for number, result_id, kind, utc, body, previous, chain in rows:
            content = amendment_body(result_id, kind, utc, body)
            yield _Link(number, "amendment", content, previous, chain, f"{kind} amendment of {result_id}")

    def tombstones() -> Iterator[_Link]:
        rows = connection.execute("SELECT id, station, boot, first, last, why, previous, chain FROM gone ORDER BY id")
        for number, station, boot, first, last, why, previous, chain in rows:
            content = gone_body(station, boot, first, last, why)
            yield _Link(number, "gone", content, previous, chain, f"tombstone {first} to {last} of {station}")

    return heapq.merge(records(), amendments(), tombstones(), key=lambda link: link.number)


def _says(header: bytes) -> tuple[object, ...]:
    try:
        fields = parse_json(header)
    except WireError:
        return ()
    return tuple(fields.get(name) for name in ("station", "boot", "seq", "result_id"))


def _unexplained_holes(connection: sqlite3.Connection) -> Iterator[str]:
    """Sequence numbers up to the last one that have neither a record nor a tombstone."""
    rows = connection.execute(
        "SELECT station, boot, seq, seq FROM record UNION ALL SELECT station, boot, first, last FROM gone "
        "ORDER BY 1, 2, 3"
    )
    at: tuple[str, int] | None = None
    expected = 1
    for station, boot, first, last in rows:
        if at != (station, boot):
            at, expected = (station, boot), 1
        if first > expected:
            yield f"results {expected} to {first - 1} of {station}, boot {boot}, are missing without a tombstone"
        expected = max(expected, last + 1)
