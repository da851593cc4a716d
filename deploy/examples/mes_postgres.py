"""An MES in one page: every record of a line PC in a PostgreSQL table, each exactly once, whatever happens between.

    pip install edge-daemon "psycopg[binary]"
    python mes_postgres.py "host=mes dbname=quality" --results tcp://127.0.0.1:5561 --replay tcp://127.0.0.1:5566

Records and the position after them are stored in one transaction. When this program, the database, the network or the
daemon goes away, it goes on where the last transaction ended; the table ends as the journal on the line PC. What became
known later (did the PLC take the verdict, what did the gate do?) comes the same way into a table of its own.
"""

import argparse
import json
import sys
import time

import psycopg

from edge_daemon.client import REPLAY, RESULTS, Batch, Position, Subscriber
from edge_daemon.wire.messages import AmendmentRecord

LAYOUT = """
CREATE TABLE IF NOT EXISTS inspection (
    result_id text PRIMARY KEY, station text NOT NULL, boot bigint NOT NULL, seq bigint NOT NULL, part_id text,
    judged_at timestamptz, evaluation text NOT NULL, result_state text NOT NULL, reason text NOT NULL,
    good boolean NOT NULL, header bytea NOT NULL);
CREATE TABLE IF NOT EXISTS position (
    station text PRIMARY KEY, boot bigint NOT NULL, seq bigint NOT NULL, boot_id text NOT NULL);
CREATE TABLE IF NOT EXISTS gone (station text, boot bigint, first bigint, last bigint);
CREATE TABLE IF NOT EXISTS amendment (
    position text PRIMARY KEY, result_id text NOT NULL, station text NOT NULL, kind text NOT NULL, what text,
    written_at timestamptz NOT NULL, body jsonb NOT NULL);
CREATE TABLE IF NOT EXISTS amended_until (one integer PRIMARY KEY CHECK (one = 1), position text NOT NULL);
"""
INSERT = """
INSERT INTO inspection VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (result_id) DO NOTHING
"""
MOVE = """
INSERT INTO position VALUES (%s, %s, %s, %s)
ON CONFLICT (station) DO UPDATE SET boot = EXCLUDED.boot, seq = EXCLUDED.seq, boot_id = EXCLUDED.boot_id
"""

AMEND = "INSERT INTO amendment VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (position) DO NOTHING"
AMENDED = """
INSERT INTO amended_until VALUES (1, %s) ON CONFLICT (one) DO UPDATE SET position = EXCLUDED.position
"""


def keep(database: psycopg.Connection, batch: Batch) -> None:
    """One transaction: the records, what is gone, and how far we are."""
    rows = []
    for record in batch.records:
        i = record.inspection
        # OK alone says nothing of a part: it must have been judged, in production, by a camera that saw it.
        good = (
            i.evaluation == "OK" and i.result_state == "Completed" and i.mode == "production" and not i.simulated
        )  # fmt: skip
        rows.append(
            (i.result_id, i.station, i.boot, i.seq, i.part_id, i.times.utc, i.evaluation, i.result_state, i.reason,
             good, record.header)
        )  # fmt: skip
    with database.transaction(), database.cursor() as cursor:
        cursor.executemany(INSERT, rows)
        cursor.executemany(
            "INSERT INTO gone VALUES (%s, %s, %s, %s)", [(g.station, g.boot, g.first, g.last) for g in batch.gone]
        )
        cursor.executemany(MOVE, [(station, *at) for station, at in batch.position.items()])


def amend(database: psycopg.Connection, amendments: tuple[AmendmentRecord, ...]) -> None:
    """One transaction: the amendments, and how far we are with them."""
    rows = [
        (a.position, a.result_id, a.station, a.kind, a.body.get("what"), a.utc, json.dumps(a.body)) for a in amendments
    ]
    with database.transaction(), database.cursor() as cursor:
        cursor.executemany(AMEND, rows)
        cursor.execute(AMENDED, (amendments[-1].position,))


def follow(arguments: argparse.Namespace) -> None:
    """Until the database goes away: psycopg.OperationalError."""
    with psycopg.connect(arguments.database, autocommit=True) as database:
        database.execute(LAYOUT)
        rows = database.execute("SELECT station, boot, seq, boot_id FROM position")
        until = database.execute("SELECT position FROM amended_until").fetchone()
        since = {station: Position(*at) for station, *at in rows}
        with Subscriber(
            arguments.results, arguments.station, replay=arguments.replay, since=since, key=arguments.key
        ) as results:
            results.follow(
                lambda batch: keep(database, batch),
                check_s=arguments.check_s,
                amend=lambda amendments: amend(database, amendments),
                amended_since=until[0] if until else "",
            )


def main() -> int:
    """Runs until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", help="as libpq takes it: host=… dbname=… user=…, or postgresql://…")
    parser.add_argument("--results", default=RESULTS, metavar="ENDPOINT")
    parser.add_argument("--replay", default=REPLAY, metavar="ENDPOINT")
    parser.add_argument("--station", metavar="NAME", help="of one station only")
    parser.add_argument("--key", metavar="FILE", help="key file of this program, where the daemon uses keys")
    parser.add_argument(
        "--check-s", type=float, default=1.0, metavar="S", help="ask for what is missing every S seconds"
    )
    arguments = parser.parse_args()
    while True:
        try:
            follow(arguments)
        except psycopg.OperationalError as error:
            print(f"the database is away, trying again: {error}", file=sys.stderr, flush=True)
            time.sleep(1)
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())
