"""A line whose daemon is killed again and again, under load, and the books that are kept of it."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import zmq

from edge_daemon.client import ReplayClient, connect
from edge_daemon.edges.journal_chain import verify
from edge_daemon.edges.journal_tools import Wanted, find
from edge_daemon.wire.codec import decode_inspection, decode_trigger_reply, encode_request
from edge_daemon.wire.messages import TriggerRequest
from tests.conftest import ROOT
from tests.daemon import DaemonProcess
from tests.postgres import Postgres

PATIENCE_S = 60.0
# Between two triggers, when nothing else is to be done: some times what the stations can judge, half of what one client
# may ask for.
TRIGGER_EVERY_MS = 4

# station, boot, seq, header
Row = tuple[str, int, int, bytes]

# A commit that is late on a busy machine is another fault, with a test of its own.
_CONFIG = """
line = "faults"
[journal]
commit_budget_ms = {budget_ms}
[cameras.top]
kind = "folder"
path = {pictures}
[cameras.side]
kind = "folder"
path = {pictures}
[stations.st1]
deadline_ms = 20000
queue = 4
idle_check_s = 0
views = [{{ camera = "top", recipe = {recipe} }}]
[stations.st2]
deadline_ms = 20000
queue = 4
idle_check_s = 0
views = [{{ camera = "side", recipe = {recipe} }}]
"""


def two_stations(recipe: Path, budget_ms: float = 10_000) -> str:
    """The configuration of two stations that judge the pictures beside a recipe. budget_ms: what a commit may take."""
    pictures = json.dumps(str(recipe.parent / "good"))
    return _CONFIG.format(budget_ms=budget_ms, pictures=pictures, recipe=json.dumps(str(recipe)))


class Load:
    """Asks for parts without end and listens to what is published: what the world outside was told."""

    def __init__(self, endpoints: dict[str, str]) -> None:
        self._endpoints = endpoints
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.news = threading.Condition()
        self.accepted: set[str] = set()
        self.published: dict[str, bytes] = {}
        self.withdrawn: set[str] = set()
        self.boots: set[str] = set()

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with zmq.Context() as context:
            results = connect(context, zmq.SUB, self._endpoints["results"])
            results.setsockopt(zmq.SUBSCRIBE, b"")
            triggers = connect(context, zmq.DEALER, self._endpoints["triggers"])
            for socket in (results, triggers):
                socket.setsockopt(zmq.RECONNECT_IVL, 10)
                socket.setsockopt(zmq.RECONNECT_IVL_MAX, 20)
            poller = zmq.Poller()
            poller.register(results, zmq.POLLIN)
            poller.register(triggers, zmq.POLLIN)
            number = 0
            while not self._stop.is_set():
                ready = dict(poller.poll(TRIGGER_EVERY_MS))
                if results in ready:
                    self._hear(results.recv_multipart())
                if triggers in ready:
                    self._answered(triggers.recv_multipart()[-1])
                elif triggers.poll(0, zmq.POLLOUT):
                    number += 1
                    request = TriggerRequest(station=("st1", "st2")[number % 2], trigger_id=f"t{number}")
                    with suppress(zmq.Again):  # killed since it was asked
                        triggers.send_multipart([b"", encode_request(request)], zmq.DONTWAIT)
            results.close(0)
            triggers.close(0)

    def _hear(self, frames: list[bytes]) -> None:
        told = decode_inspection(frames)
        with self.news:
            if told.journaled:
                assert self.published.setdefault(told.result_id, frames[1]) == frames[1], "told twice, and differently"
            else:
                self.withdrawn.add(told.result_id)
            self.boots.add(told.boot_id)
            self.news.notify_all()

    def _answered(self, body: bytes) -> None:
        reply = decode_trigger_reply(body)
        if reply.accepted and reply.result_id is not None:
            self.accepted.add(reply.result_id)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.news:
            assert self.news.wait_for(condition, PATIENCE_S), "nothing is published"


class Victim:
    """The real daemon, forked from a nursery so that it is there in a fraction of a second."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.written = DaemonProcess(folder, two_stations(recipe))
        self.endpoints = self.written.endpoints
        self.journal = folder / "state" / "journal.sqlite"
        self._log = (folder / "daemon.log").open("ab")
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.nursery", str(self.written.config)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT,
        )  # fmt: skip
        self.pid = 0

    def start(self) -> None:
        assert self._nursery.stdin is not None
        assert self._nursery.stdout is not None
        self._nursery.stdin.write("start\n")
        self._nursery.stdin.flush()
        self.pid = int(self._nursery.stdout.readline())

    def end(self, number: int, expected: int) -> None:
        """Sends a signal and waits for the end. The daemon must not have ended by itself."""
        assert self._nursery.stdout is not None
        os.kill(self.pid, number)
        ended = self._nursery.stdout.readline().strip()
        assert ended == f"ended {expected}", f"{ended}\n{self.log()}"
        self.pid = 0

    def log(self) -> str:
        return self.written.log.read_text(errors="replace")[-6000:]

    def close(self) -> None:
        if self.pid:
            self.end(signal.SIGKILL, -signal.SIGKILL)
        self._nursery.communicate()
        self._log.close()


class Mes:
    """The example consumer in a process of its own."""

    def __init__(self, folder: Path, endpoints: dict[str, str], database: str) -> None:
        self._command = [
            sys.executable, str(ROOT / "deploy" / "examples" / "mes_postgres.py"), database, "--check-s", "0.2",
            "--results", endpoints["results"], "--replay", endpoints["replay"],
        ]  # fmt: skip
        self._log = folder / "mes.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._process is not None:
            assert self._process.poll() is None, self._log.read_text()
            self._process.kill()
            self._process.wait()
            self._process = None


class Round:
    """One life of the daemon: from its start to a kill at a random moment, in or after its start."""

    def __init__(self, random_source: random.Random) -> None:
        self.in_start = random_source.random() < 0.3
        self.after_s = random_source.uniform(0.0, 0.35 if self.in_start else 0.25)

    def run(self, victim: Victim, load: Load) -> None:
        before = len(load.boots)
        victim.start()
        if not self.in_start:
            load.wait(lambda: len(load.boots) > before)
        # A random moment is what is tested here; there is nothing to wait for.
        time.sleep(self.after_s)
        victim.end(signal.SIGKILL, -signal.SIGKILL)


def settle(victim: Victim, load: Load) -> None:
    """One last life, in which everything that was left open is answered, and a clean stop."""
    before = len(load.boots)
    victim.start()
    load.wait(lambda: len(load.boots) > before)


def caught_up(endpoints: dict[str, str], database: str) -> None:
    """Waits until the table has what the daemon can tell."""
    give_up = time.monotonic() + PATIENCE_S
    with ReplayClient(endpoints["replay"], timeout_s=10) as replay, psycopg.connect(database, autocommit=True) as mes:
        while time.monotonic() < give_up:
            behind = []
            for station in replay.stations():
                row = mes.execute("SELECT boot, seq FROM position WHERE station = %s", (station,)).fetchone() or (0, 0)
                reply = replay.fetch(station, row[0], row[1] + 1)
                behind += [station] if reply.records or reply.gone or reply.next_boot else []
            if not behind:
                return
            time.sleep(0.05)
    raise AssertionError(f"the consumer stays behind: {behind}")


def journal_rows(path: Path) -> dict[str, Row]:
    """By result_id, as a replay tells them."""
    return {
        f.inspection.result_id: (f.inspection.station, f.inspection.boot, f.inspection.seq, f.header)
        for f in find(path, Wanted())
    }


def table_rows(database: str) -> dict[str, Row]:
    """The same of the MES's table."""
    with psycopg.connect(database) as mes:
        rows = mes.execute("SELECT result_id, station, boot, seq, header FROM inspection").fetchall()
    return {result_id: (station, boot, seq, bytes(header)) for result_id, station, boot, seq, header in rows}


def audit(victim: Victim, load: Load, database: str) -> str:
    """Everything that must hold, once the daemon has stopped cleanly. Returns a line for the report."""
    journal = journal_rows(victim.journal)
    missing = {i for i, header in load.published.items() if journal.get(i, ("", 0, 0, b""))[3] != header}
    assert not missing, f"published and not in the journal: {sorted(missing)[:5]}"
    unanswered = load.accepted - set(journal)
    assert not unanswered, f"accepted and without an outcome: {sorted(unanswered)[:5]}"
    assert table_rows(database) == journal, "the table is not the journal"
    problems = verify(victim.journal).problems
    assert not problems, problems
    restarted = sum(b'"reason":"restarted"' in header for *_, header in journal.values())
    return (
        f"{len(load.accepted)} triggers accepted, {len(journal)} records, {len(load.published)} seen published, "
        f"{restarted} restarted, {len(load.withdrawn)} withdrawn; nothing missing, table equal"
    )


def try_postgres() -> Postgres:
    postgres = Postgres()
    try:
        postgres.start()
    except BaseException:
        postgres.close()
        raise
    return postgres
