"""`edge-daemon journal`: verify, salvage, export, backup."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from edge_daemon.errors import JournalError

_HELP = """\
Looks at the journal of this PC, copies it, or saves what a damaged one holds. Never writes to it; may run beside the
daemon."""

_EXAMPLES = """\
examples:
  edge-daemon journal verify --config edge.toml
  edge-daemon journal verify --head 4711:9f86d0…    against what a status message said outside this PC
  edge-daemon journal export --from 2026-11-21 --station st1 --format csv --out shift.csv
  edge-daemon journal export --recipe bottle | jq .evaluation
  edge-daemon journal backup /mnt/backup/journal-2026-11-21.sqlite
  edge-daemon journal salvage state/journal.sqlite.damaged-20261121T081530Z --out saved.jsonl
"""

_VERIFY_HELP = """\
Reads the whole journal and checks the hash chain: an entry that was changed, taken out or put in is named. Who can
write the file can also make the whole chain fit again; only a head that was kept outside shows that. Status messages
carry it (`journal_head`): keep one now and then and give it with --head. Exit status 0 when sound, 1 when not."""

_SALVAGE_HELP = """\
Every record that can still be read from a damaged journal (the daemon keeps those as *.damaged-*) and its log, one JSON
object a line. Records found among the bytes of a destroyed file are marked with "table": false: their amendments are
unknown, and one that had been pruned may turn up again."""

_EXPORT_HELP = """\
Records as a replay tells them, in the order in which they were written. jsonl: one object a line, the record under
`record` and what became known later under `amendments`. csv: one row a record for a spreadsheet."""

_BACKUP_HELP = """\
A sound copy of the journal while the daemon writes it. To restore: stop the daemon, put the copy in the place of
journal.sqlite, remove journal.sqlite-wal and -shm, leave journal.sqlite.boot, start. Boots go on counting, so no number
is used twice."""


def add_journal(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    add_config: Callable[[argparse.ArgumentParser], None],
) -> None:
    """The subcommands; add_config: gives a parser its --config."""
    journal = commands.add_parser(
        "journal",
        help="verify, export, back up or salvage records",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = journal.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def action(name: str, short: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(
            name,
            help=short,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    verify = action("verify", "was anything changed, or lost?", _VERIFY_HELP)
    verify.add_argument("--head", metavar="NUMBER:HASH", help="a head that was kept outside this PC")
    verify.add_argument("--json", action="store_true", help="one JSON object instead of text")
    verify.set_defaults(run=_verify)

    export = action("export", "records as CSV or JSON lines", _EXPORT_HELP)
    export.add_argument("--from", dest="begin", metavar="TIME", help="UTC, ISO 8601: 2026-11-21 or 2026-11-21T14:30")
    export.add_argument("--to", dest="end", metavar="TIME", help="up to, and without, this time")
    export.add_argument("--station", metavar="NAME", help="of this station only")
    export.add_argument(
        "--recipe", metavar="NAME", help="judged by this recipe: its name, or 7 characters of its digest"
    )
    export.add_argument("--format", choices=("jsonl", "csv"), default="jsonl", help="default jsonl")
    export.set_defaults(run=_export)

    backup = action("backup", "a sound copy, while the daemon runs", _BACKUP_HELP)
    backup.add_argument("target", type=Path, help="a file that does not exist yet")
    backup.set_defaults(run=_backup)

    salvage = action("salvage", "what a damaged journal still holds", _SALVAGE_HELP)
    salvage.add_argument("file", type=Path, help="the damaged file; its -wal lies beside it")
    salvage.set_defaults(run=_salvage)

    for parser in (verify, export, backup):
        add_config(parser)
        parser.add_argument("--journal", type=Path, metavar="FILE", help="this file, whatever the configuration says")
    for parser in (export, salvage):
        parser.add_argument("--out", type=Path, metavar="FILE", help="a new file; standard output when left out")


def _path(arguments: argparse.Namespace) -> Path:
    from edge_daemon.config import load_config

    if arguments.journal is not None:
        return Path(arguments.journal)
    return load_config(arguments.config, recipes_must_exist=False).journal_path


def _verify(arguments: argparse.Namespace) -> int:
    from edge_daemon.edges.journal_chain import parse_head, verify

    path = _path(arguments)
    found = verify(path, parse_head(arguments.head) if arguments.head else None)
    if arguments.json:
        document = asdict(found) | {"journal": str(path), "sound": not found.problems, "head": str(found.head)}
        print(json.dumps(document))
    else:
        print(f"{path}: {found.records} records, {found.amendments} amendments, {found.tombstones} tombstones")
        print(f"  head {found.head}")
        for note in found.notes:
            print(f"  · {note}")
        for problem in found.problems:
            print(f"  ✗ {problem}")
        if not found.problems:
            print("  ✓ nothing was changed, taken out or put in")
    return 1 if found.problems else 0


def _export(arguments: argparse.Namespace) -> int:
    from edge_daemon.edges.journal_tools import COLUMNS, Wanted, csv_row, find, parse_utc

    wanted = Wanted(
        begin=parse_utc(arguments.begin) if arguments.begin else None,
        end=parse_utc(arguments.end) if arguments.end else None,
        station=arguments.station,
        recipe=arguments.recipe,
    )
    path = _path(arguments)
    count = 0
    with _output(arguments.out) as out:
        table = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        if arguments.format == "csv":
            table.writeheader()
        for found in find(path, wanted):
            if arguments.format == "csv":
                table.writerow(csv_row(found))
            else:
                amendments = [asdict(amendment) for amendment in found.amendments]
                out.write(json.dumps({"record": json.loads(found.header), "amendments": amendments}) + "\n")
            count += 1
    print(f"{count} records", file=sys.stderr)
    return 0


def _backup(arguments: argparse.Namespace) -> int:
    from edge_daemon.edges.journal_tools import backup

    size = backup(_path(arguments), arguments.target)
    print(f"{arguments.target}: {size / 1e6:.1f} MB")
    return 0


def _salvage(arguments: argparse.Namespace) -> int:
    from edge_daemon.edges.journal_tools import salvage

    tables = found = 0
    with _output(arguments.out) as out:
        for saved in salvage(arguments.file):
            out.write(json.dumps({"record": json.loads(saved.header), "table": saved.table}) + "\n")
            tables += saved.table
            found += not saved.table
    print(f"{tables + found} records saved, {found} of them from among the bytes", file=sys.stderr)
    return 0 if tables + found else 1


@contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a new file that is on the disk in the end."""
    if path is None:
        yield sys.stdout
        return
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as exc:
        raise JournalError(f"{path} exists already; name a new file") from exc
    except OSError as exc:
        raise JournalError(f"{path} cannot be written: {exc.strerror or exc}; check space and owner") from exc
