"""Disks that are slow, full, failing or damaged, clocks that step: the real daemon says no OK that is not durable.

strace makes the system calls of the journal's log fail or wait, and shows in which order they happen.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_daemon.client import Batch, Gone, Subscriber
from edge_daemon.edges.journal_chain import verify
from edge_daemon.wire.messages import Inspection
from tests.daemon import DaemonProcess
from tests.faults.kills import Load, Row, journal_rows, two_stations

pytestmark = pytest.mark.alone

PATIENCE_S = 60.0
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


needs_strace = pytest.mark.skipif(not strace_works(), reason="needs strace, and the right to trace: apt install strace")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount a small file system")


def config(recipe: Path, budget_ms: float = 200) -> str:
    return two_stations(recipe, budget_ms)


def part(daemon: DaemonProcess, results: Subscriber, name: str) -> Inspection:
    """One part of st1; the record that was published."""
    with daemon.triggers() as triggers:
        reply = triggers.trigger("st1", name)
    while True:
        record = results.receive(PATIENCE_S)
        assert record is not None
        if record.result_id == reply.result_id or record.trigger_id == name:
            return record


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, "it does not happen"
        time.sleep(0.02)


def trusts_its_disk(daemon: DaemonProcess) -> bool:
    """No alarm about the journal, nothing owed. (Under load a full queue is not ready either.)"""
    status = daemon.status()
    alarms = [alarm for station in status["stations"].values() for alarm in station["alarms"] if "journal" in alarm]
    return not alarms and not status["journal"]["failing"] and not status["journal"]["owed"]


def books_are_right(daemon: DaemonProcess, load: Load) -> None:
    """After a clean stop: what was told as durable is in the journal as it was told, nothing is left open."""
    journal = journal_rows(daemon.folder / "state" / "journal.sqlite")
    for result_id, header in load.published.items():
        assert journal[result_id][3] == header
    assert load.accepted <= set(journal)
    withdrawn_stays_withdrawn(load, journal)
    assert verify(daemon.folder / "state" / "journal.sqlite").problems == ()


def withdrawn_stays_withdrawn(load: Load, journal: dict[str, Row]) -> None:
    """Told as failed: the journal must never say OK, now or in a replay."""
    for result_id in load.withdrawn:
        assert json.loads(journal[result_id][3])["evaluation"] != "OK"
        assert json.loads(journal[result_id][3])["journaled"] is False


# --- the order of system calls ------------------------------------------------------------------------------------

_CALL = re.compile(r"^(\d+) +(\w+)\((\d+)<([^>]*)>(.*)$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>.*= 0$")
# The header of a result, and the intent's own JSON, which has a space after each colon.
_RECORD = re.compile(r"edge-daemon/result/1.{0,400}?\\\"result_id\\\":\\\"([0-9a-f]{32})")
_INTENT = re.compile(r"\\\"result_id\\\": \\\"([0-9a-f]{32})")
_ACK = re.compile(r"edge-daemon/trigger/1.{0,400}?\\\"accepted\\\":true,\\\"result_id\\\":\\\"([0-9a-f]{32})")


class Order:
    """Reads a trace from the first line to the last, as the kernel saw the calls."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.acknowledged: list[str] = []
        self.too_early: list[str] = []
        self._written: dict[str, set[str]] = defaultdict(set)
        self._durable: set[str] = set()

    def read(self, trace: Path) -> "Order":
        with trace.open(errors="replace") as lines:
            for line in lines:
                self._line(line.rstrip("\n"))
        return self

    def _line(self, line: str) -> None:
        if resumed := _RESUMED.match(line):
            if resumed[2] in ("fdatasync", "fsync"):
                self._synced(resumed[1])
            return
        call = _CALL.match(line)
        if call is None:
            return
        thread, name, _, target, rest = call.groups()
        if name == "pwrite64" and target.endswith("-wal"):
            self._written[thread] |= {f"record {r}" for r in _RECORD.findall(rest)}
            self._written[thread] |= {f"intent {r}" for r in _INTENT.findall(rest)}
        elif name in ("fdatasync", "fsync") and target.endswith("-wal") and rest.endswith("= 0"):
            self._synced(thread)
        elif name == "sendto":
            self._sent(_RECORD.findall(rest), self.told, ("record",))
            # An intent whose outcome came in the same commit never was in the file by itself.
            self._sent(_ACK.findall(rest), self.acknowledged, ("intent", "record"))

    def _synced(self, thread: str) -> None:
        self._durable |= self._written.pop(thread, set())

    def _sent(self, result_ids: list[str], told: list[str], proofs: tuple[str, ...]) -> None:
        told += result_ids
        self.too_early += [r for r in result_ids if not any(f"{proof} {r}" in self._durable for proof in proofs)]


@needs_strace
def test_the_disk_has_every_record_before_the_network_and_every_intent_before_its_answer(
    tmp_path: Path, recipe: Path
) -> None:
    trace = tmp_path / "trace"
    calls = "pwrite64,fdatasync,fsync,sendto"
    prefix = (
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-s",
        "16384",
        "-o",
        str(trace),
        "-e",
        f"trace={calls}",
        "-e",
        "signal=none",
    )
    with DaemonProcess(tmp_path, config(recipe, 10_000), prefix=prefix) as daemon, Load(daemon.endpoints) as load:
        load.wait(lambda: len(load.published) >= 60)
    order = Order().read(trace)
    assert order.too_early == []
    # A few are cut in two where ZeroMQ's buffer ends; and nothing is proven by a trace in which nothing was found.
    assert len(set(order.told) & set(load.published)) >= 0.8 * len(load.published)
    assert len(set(order.acknowledged) & load.accepted) >= 0.5 * len(load.accepted)
    books_are_right(daemon, load)


def test_the_order_is_read_right_from_a_trace(tmp_path: Path) -> None:
    """The reader itself must catch what it is there for."""
    result_id = "ab" * 16
    record = f'\\"schema\\":\\"edge-daemon/result/1\\",\\"result_id\\":\\"{result_id}\\"'
    write = f'7 pwrite64(5</s/journal.sqlite-wal>, "{record}", 4096, 0) = 4096'
    send = f'9 sendto(12<TCP:[1]>, "{record}", 99, 0, NULL, 0) = 99'
    sync, begun, resumed = (
        "7 fdatasync(5</s/journal.sqlite-wal>) = 0",
        "7 fdatasync(5</s/journal.sqlite-wal> <unfinished ...>",
        "7 <... fdatasync resumed>) = 0",
    )
    failed = "7 fdatasync(5</s/journal.sqlite-wal>) = -1 EIO (Input/output error)"
    other = "8 fdatasync(5</s/other>) = 0"
    for lines, early in (
        ([write, sync, send], 0),
        ([write, begun, resumed, send], 0),
        ([write, send, sync], 1),
        ([write, begun, send, resumed], 1),
        ([write, failed, send], 1),
        ([write, other, send], 1),
        ([sync, write, send], 1),
    ):
        trace = tmp_path / "trace"
        trace.write_text("\n".join(lines))
        order = Order().read(trace)
        assert (len(order.told), len(order.too_early)) == (1, early), lines


# --- slow and failing disks ---------------------------------------------------------------------------------------


def injected(tmp_path: Path, what: str) -> tuple[str, ...]:
    """A prefix that meddles with the syncs of the journal's log."""
    log = tmp_path / "state" / "journal.sqlite-wal"
    # SQLite opens the log before strace can know its path; the journal is the only one that calls fdatasync.
    return (
        "strace",
        "-D",
        "-f",
        "-o",
        f"{log.parent.parent}/strace",
        "-e",
        "trace=fdatasync",
        "-e",
        f"inject={what}",
    )


@needs_strace
def test_a_disk_that_fails_withdraws_verdicts_stops_the_triggers_and_comes_back(tmp_path: Path, recipe: Path) -> None:
    prefix = injected(tmp_path, "fdatasync:error=EIO:when=60..65")
    with DaemonProcess(tmp_path, config(recipe, 10_000), prefix=prefix) as daemon, Load(daemon.endpoints) as load:
        load.wait(lambda: bool(load.withdrawn))
        told_before = len(load.published)
        load.wait(lambda: len(load.published) >= told_before + 10)
        until(lambda: trusts_its_disk(daemon))
    books_are_right(daemon, load)
    assert "the disk fails under the journal" in daemon.log.read_text()


@needs_strace
def test_a_commit_that_takes_a_second_withdraws_its_verdict_and_the_journal_says_so_too(
    tmp_path: Path, recipe: Path
) -> None:
    prefix = injected(tmp_path, "fdatasync:delay_enter=1500000:when=60..61")
    with DaemonProcess(tmp_path, config(recipe, 1_000), prefix=prefix) as daemon, Load(daemon.endpoints) as load:
        until(lambda: daemon.status()["journal"]["commit_p99_ms"] >= 1_500)
        load.wait(lambda: bool(load.withdrawn))
        told_before = len(load.published)
        load.wait(lambda: len(load.published) >= told_before + 10)
        until(lambda: daemon.status()["journal"]["owed"] == 0)
    books_are_right(daemon, load)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@needs_root
def test_a_full_disk_withdraws_verdicts_and_when_there_is_space_the_debts_are_written_first(
    tmp_path: Path, recipe: Path, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    text = config(recipe, 2_000).replace("[journal]", f"[journal]\npath = {json.dumps(str(small_disk / 'j.sqlite'))}")
    with DaemonProcess(tmp_path, text) as daemon, Load(daemon.endpoints) as load:
        load.wait(lambda: len(load.published) >= 5)
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        load.wait(lambda: bool(load.withdrawn))
        until(lambda: "full" in str(daemon.status()["stations"]["st1"]["alarms"]))
        with daemon.triggers() as triggers:
            assert not triggers.trigger("st1", "while full").accepted
        ballast.unlink()
        until(lambda: trusts_its_disk(daemon))
        told_before = len(load.published)
        load.wait(lambda: len(load.published) >= told_before + 5)
    journal = journal_rows(small_disk / "j.sqlite")
    assert load.accepted <= set(journal)
    for result_id, header in load.published.items():
        assert journal[result_id][3] == header
    withdrawn_stays_withdrawn(load, journal)


# --- clocks and damage --------------------------------------------------------------------------------------------


def test_a_clock_set_back_one_hour_changes_no_order_and_no_verdict(tmp_path: Path, recipe: Path) -> None:
    if not FAKETIME.exists():
        pytest.skip("needs libfaketime, to move the clock of the daemon")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    environment = {
        "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    with DaemonProcess(tmp_path, config(recipe), environment=environment) as daemon, daemon.subscriber() as results:
        before = [part(daemon, results, f"a{n}") for n in range(5)]
        offset.write_text("-3600")
        after = [part(daemon, results, f"b{n}") for n in range(5)]
        status = daemon.status()["stations"]["st1"]
    assert after[-1].times.utc < before[0].times.utc
    records = before + after
    assert [r.seq for r in records] == list(range(1, 11))
    assert {(r.result_state, r.late) for r in records} == {("Completed", False)}
    assert all(r.times.judged_us is not None and 0 < r.times.judged_us < 20_000_000 for r in records)
    assert status["counters"]["accepted"] == 10
    assert [r["seq"] for r in daemon.records()] == list(range(1, 11))
    with daemon:
        rows: list[tuple[int, int]] = []
        follow_until(daemon, rows, 10)
    assert rows == [(1, seq) for seq in range(1, 11)]


def follow_until(daemon: DaemonProcess, rows: list[Any], count: int) -> list[Gone]:
    gone: list[Gone] = []

    def keep(batch: Batch) -> None:
        rows.extend((r.inspection.boot, r.inspection.seq) for r in batch.records)
        gone.extend(batch.gone)

    endpoints = daemon.endpoints
    with Subscriber(endpoints["results"], replay=endpoints["replay"]) as results:
        results.follow(keep, until=lambda: len(rows) >= count, check_s=0.1)
    return gone


def test_a_journal_damaged_at_rest_is_kept_aside_said_loudly_and_a_new_one_goes_on(
    tmp_path: Path, recipe: Path
) -> None:
    daemon = DaemonProcess(tmp_path, config(recipe))
    with daemon, daemon.subscriber() as results:
        for n in range(5):
            part(daemon, results, f"a{n}")
        position = {"st1": (1, results.position["st1"][1], "")}
    path = tmp_path / "state" / "journal.sqlite"
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with daemon, daemon.subscriber() as results:
        assert part(daemon, results, "b0").boot == 2
        with Subscriber(
            daemon.endpoints["results"], "st1", replay=daemon.endpoints["replay"], since={"st1": (1, 3)}
        ) as reader:
            batches: list[Batch] = []
            reader.follow(batches.append, until=lambda: any(b.records for b in batches), check_s=0.1)
    assert [g for b in batches for g in b.gone] == [Gone("st1", 1, 4, None)]
    assert [(r.inspection.boot, r.inspection.seq) for b in batches for r in b.records] == [(2, 1)]
    assert list((tmp_path / "state").glob("journal.sqlite.damaged-*"))
    assert "is damaged" in daemon.log.read_text()
    assert position["st1"][1] == 5
    assert verify(path).problems == ()
