"""Daemon and gateway as real processes, a PLC by hand: what became of each verdict is on its record, whoever dies."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from pymodbus.client import ModbusTcpClient

from edge_daemon import ctl
from edge_daemon.client import connect
from edge_daemon.edges.audit import read_trail
from edge_daemon.edges.journal_chain import verify
from edge_daemon.edges.journal_tools import Wanted, find
from edge_daemon.gateway.outbox import count_waiting
from edge_daemon.gateway.registers import (
    COMMAND_ADDRESS,
    RESULT_ADDRESS,
    RESULT_WORDS,
    decode_block,
    encode_command,
)
from edge_daemon.gateway.words import Bits, Block, Command, Disposition, Verdict
from edge_daemon.wire.codec import decode_event
from tests.daemon import DaemonProcess
from tests.gateway_kit import GatewayProcess
from tests.system.conftest import SmallLine

WAIT_S = 30.0
DAEMON = """
line = "test"
[cameras.top]
kind = "simulated"
product = "flange"
seed = 5
size = [128, 128]
[stations.st1]
deadline_ms = 5000
idle_check_s = 0.2
views = [{{ camera = "top", recipe = "{recipe}" }}]
"""
GATEWAY = """
answer_ms = 2000
window_ms = 6000
status_timeout_ms = 2000
plc_timeout_ms = 30000
commissioning = true
[stations.st1.jobs.1]
name = "flange"
[stations.st1.jobs.2]
name = "something else"
"""


class Plc:
    """One cycle at a time."""

    def __init__(self, port: int) -> None:
        self._client = ModbusTcpClient("127.0.0.1", port=port, timeout=2, retries=0)
        self.command: dict[str, Any] = {"trigger_enable": True, "job_id": 1}

    def close(self) -> None:
        self._client.close()

    def cycle(self, **changes: Any) -> Block:
        self.command |= changes
        if not self._client.connected:
            assert self._client.connect()
        words = encode_command(Command(**self.command))
        assert not self._client.write_registers(COMMAND_ADDRESS, words, device_id=1).isError()
        answer = self._client.read_holding_registers(RESULT_ADDRESS, count=RESULT_WORDS, device_id=1)
        block = decode_block(answer.registers)
        assert block is not None
        return block

    def until(self, wanted: Callable[[Block], bool], **changes: Any) -> Block:
        give_up_s = time.monotonic() + WAIT_S
        while not wanted(block := self.cycle(**changes)):
            assert time.monotonic() < give_up_s, block
            time.sleep(0.01)
        return block

    def judged(self, number: int, job_id: int = 1) -> Verdict:
        """A part from photo-eye to verdict, not yet acknowledged."""
        self.until(lambda block: bool(block.bits & Bits.TRIGGER_READY), trigger=False)
        self.until(
            lambda block: bool(block.bits & Bits.TRIGGER_ACK), trigger=True, acquisition_id=number, job_id=job_id
        )
        return self.until(lambda block: block.result.acquisition_id == number, trigger=False).result.verdict

    def acknowledge(self, number: int) -> None:
        self.until(lambda block: block.result.acquisition_id != number, acknowledged_id=number)
        self.cycle(acknowledged_id=0)

    def report(self, number: int, disposition: int) -> None:
        self.cycle(disposition_id=number, disposition=disposition)
        self.cycle(disposition_id=0, disposition=0)


@contextmanager
def running(folder: Path, recipe: Path) -> Iterator[tuple[DaemonProcess, GatewayProcess, Plc]]:
    daemon = DaemonProcess(folder / "daemon", DAEMON.format(recipe=recipe))
    with daemon, GatewayProcess(folder / "gateway", daemon.endpoints, GATEWAY) as gateway:
        plc = Plc(gateway.port)
        try:
            yield daemon, gateway, plc
        finally:
            plc.close()


def recorded(daemon: DaemonProcess, count: int) -> None:
    """Until the daemon has so many amendments of this boot on its disk."""
    give_up_s = time.monotonic() + WAIT_S
    while (told := _told(daemon)) < count:
        assert time.monotonic() < give_up_s, f"{told} of {count} amendments"
        time.sleep(0.02)
    assert told == count


def until(wanted: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not wanted():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def _told(daemon: DaemonProcess) -> int:
    counts = daemon.status()["amendments"]
    return int(counts["deliveries"] + counts["dispositions"])


def on_record(daemon: DaemonProcess) -> dict[int, list[tuple[str, str, str]]]:
    """By the PLC's number: kind, word and code word of each amendment, in order."""
    path = daemon.folder / "state" / "journal.sqlite"
    assert verify(path).problems == ()
    found: dict[int, list[tuple[str, str, str]]] = {}
    for record in find(path, Wanted(station="st1")):
        number = int(record.inspection.trigger_id.partition("-")[0])
        found[number] = [(a.kind, a.body["what"], a.body["verdict"]) for a in record.amendments]
        assert all(a.body["acquisition_id"] == number for a in record.amendments)
    return found


@pytest.fixture(scope="module")
def recipe(small_line: SmallLine) -> Path:
    return small_line.recipe


def test_nothing_that_the_plc_said_while_the_daemon_was_dead_is_lost(tmp_path: Path, recipe: Path) -> None:
    with running(tmp_path, recipe) as (daemon, _gateway, plc):
        first = plc.judged(1)
        plc.acknowledge(1)
        plc.report(1, Disposition.REJECTED)
        recorded(daemon, 2)
        second = plc.judged(2)
        daemon.kill()
        plc.acknowledge(2)
        plc.report(2, Disposition.REMOVED)
        daemon.start()
        recorded(daemon, 2)
        third = plc.judged(3)
        plc.acknowledge(3)
        recorded(daemon, 3)
        assert on_record(daemon) == {
            1: [("delivery", "acknowledged", first.name), ("disposition", "rejected", first.name)],
            2: [("delivery", "acknowledged", second.name), ("disposition", "removed", second.name)],
            3: [("delivery", "acknowledged", third.name)],
        }


def test_nothing_is_lost_when_the_gateway_is_killed_while_the_daemon_is_dead(tmp_path: Path, recipe: Path) -> None:
    with running(tmp_path, recipe) as (daemon, gateway, plc):
        first, outbox = plc.judged(1), tmp_path / "gateway" / "state"
        plc.acknowledge(1)
        recorded(daemon, 1)
        second = plc.judged(2)
        daemon.kill()
        plc.acknowledge(2)
        plc.report(1, Disposition.REJECTED)
        plc.report(2, Disposition.GATE_FAILURE)
        until(lambda: count_waiting(outbox) == 3)
        gateway.kill()
        plc.close()
        gateway.spawn()
        gateway.wait_until_it_listens()
        until(lambda: "3 amendments of before" in gateway.log.read_text())
        gateway.kill()
        gateway.spawn()
        gateway.wait_until_it_listens()
        daemon.start()
        recorded(daemon, 3)
        until(lambda: count_waiting(outbox) == 0)
        assert on_record(daemon) == {
            1: [("delivery", "acknowledged", first.name), ("disposition", "rejected", first.name)],
            2: [("delivery", "acknowledged", second.name), ("disposition", "gate_failure", second.name)],
        }


def test_a_disk_that_takes_nothing_keeps_no_plc_and_no_record_waiting(tmp_path: Path, recipe: Path) -> None:
    """A file where the folder should be: what the daemon takes at once is on record all the same."""
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "state").write_text("")
    with running(tmp_path, recipe) as (daemon, gateway, plc):
        first = plc.judged(1)
        plc.acknowledge(1)
        recorded(daemon, 1)
        assert on_record(daemon) == {1: [("delivery", "acknowledged", first.name)]}
        until(lambda: "alarm outbox_failing" in gateway.log.read_text())


def test_a_gateway_killed_between_verdict_and_amendment_leaves_nothing_untrue(tmp_path: Path, recipe: Path) -> None:
    with running(tmp_path, recipe) as (daemon, gateway, plc):
        plc.judged(1)
        gateway.kill()
        plc.close()
        gateway.spawn()
        gateway.wait_until_it_listens()
        plc.cycle(trigger_enable=False)
        plc.cycle(trigger_enable=True)
        plc.report(1, Disposition.PASSED)
        second = plc.judged(2)
        plc.acknowledge(2)
        recorded(daemon, 1)
        assert on_record(daemon) == {1: [], 2: [("delivery", "acknowledged", second.name)]}
        assert "nothing is known of that here" in gateway.log.read_text()


def test_a_part_that_passed_although_it_was_not_ok_is_an_alarm_within_the_second(tmp_path: Path, recipe: Path) -> None:
    with running(tmp_path, recipe) as (daemon, _gateway, plc), zmq.Context() as context:
        events = connect(context, zmq.SUB, daemon.endpoints["status"])
        events.setsockopt(zmq.SUBSCRIBE, b"event/alarm/")
        try:
            assert plc.judged(1, job_id=2) is Verdict.NOT_DECIDABLE
            plc.acknowledge(1)
            plc.report(1, Disposition.PASSED)
            assert events.poll(WAIT_S * 1_000)
            event = decode_event(events.recv_multipart())
        finally:
            events.close(0)
        assert (event.name, event.severity, event.station) == ("passed_without_ok", "error", "st1")
        assert "part 1" in event.message
        assert "NotDecidable" in event.message
        until(lambda: daemon.status()["amendments"]["passed_without_ok"] == 1)
        assert plc.cycle().bits & Bits.TRIGGER_READY, "the line is not stopped by it"


def test_an_accident_stands_in_status_until_it_is_acknowledged_whoever_is_killed(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def alarms() -> list[str]:
        told = daemon.status()["stations"]["st1"]["alarms"]
        return [alarm for alarm in told if alarm.startswith("passed_without_ok: ")]

    with running(tmp_path, recipe) as (daemon, gateway, plc):
        assert plc.judged(1, job_id=2) is Verdict.NOT_DECIDABLE
        plc.acknowledge(1)
        plc.report(1, Disposition.PASSED)
        until(lambda: bool(alarms()))
        daemon.kill()
        gateway.kill()
        gateway.spawn()
        daemon.start()
        until(lambda: len(alarms()) == 1)
        assert "part 1 " in alarms()[0]
        at = ["--control", daemon.endpoints["control"]]
        assert ctl.main([*at, "acknowledge", "st1", "no_such"]) == 1
        assert "no alarm stands" in capsys.readouterr().err
        assert ctl.main([*at, "acknowledge", "st1"]) == 0
        assert "acknowledged: passed_without_ok: part 1 " in capsys.readouterr().out
        until(lambda: not alarms())
        trail = [entry for read in read_trail(daemon.folder / "state" / "audit.jsonl") if (entry := read.entry)]
        assert [(e.outcome, e.args) for e in trail if e.command == "acknowledge"] == [
            ("begun", {"station": "st1", "alarm": "passed_without_ok", "through": 1}),
            ("done", {}),
        ]
        daemon.kill()
        daemon.start()
        assert alarms() == []
        assert daemon.status()["standing_alarms"] == {}
        gateway.wait_until_it_listens()
