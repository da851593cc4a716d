"""The doctor finds what is wrong with a PC, and says nothing against one that is well."""

import ipaddress
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge_daemon.check import Report, check
from edge_daemon.doctor import Diagnosis, Interface, Machine, examine, read_interfaces, time_fsync
from edge_daemon.edges.journal import Journal

_CONFIG = """
line = "l1"
state_dir = "state"

[cameras.top]
{camera}

[stations.st1]
views = [{{ camera = "top", recipe = "missing" }}]
"""
_SIMULATED = 'kind = "simulated"\nproduct = "cap"'
_NETWORK_CAMERA = 'kind = "gige"\nserial = "A1"'


@pytest.fixture
def pc(tmp_path: Path) -> Machine:
    """A PC without fault."""
    files = {
        "proc/sys/net/core/rmem_max": "33554432",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
        "dev/video0": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return Machine(
        sys=tmp_path / "sys",
        proc=tmp_path / "proc",
        dev=tmp_path / "dev",
        interfaces=lambda: (card("eth0", "10.0.0.0/24"), card("eth1", "10.0.1.0/24")),
        clock_quality=lambda: ("ntp", 500),
        fsync_ms=lambda _folder: [1.0] * 100,
        pools=lambda: {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        check=lambda _path: Report((), (), ""),
    )


def card(name: str, network: str, mtu: int = 9000) -> Interface:
    return Interface(name, ipaddress.IPv4Network(network), mtu, physical=True)


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., list[Diagnosis]]:
    """Examines a line with this camera on this PC."""

    def ask(pc: Machine, camera: str = _SIMULATED, engine: str = "") -> list[Diagnosis]:
        path = tmp_path / "edge.toml"
        path.write_text(_CONFIG.format(camera=camera) + engine)
        return [d for d in examine(path, pc) if d.topic != "config"]

    return ask


def faults(found: list[Diagnosis]) -> list[tuple[str, str]]:
    return [(d.topic, d.level) for d in found if d.level != "ok"]


def test_a_pc_without_fault_hears_only_what_is_well(ask: Callable[..., list[Diagnosis]], pc: Machine) -> None:
    found = ask(pc)
    assert faults([d for d in found if "free" not in d.text]) == []
    assert {d.topic for d in found} == {"disk", "journal", "clock", "threads", "cpu"}


def test_the_configuration_is_examined_as_check_does(tmp_path: Path, pc: Machine) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(_CONFIG.format(camera=_SIMULATED) + "\nnonsense = 1\n")
    found = examine(path, replace(pc, check=check))
    assert any(d.topic == "config" and d.level == "error" and "nonsense" in d.text for d in found)
    assert any(d.topic == "clock" for d in found), "a broken configuration hides what is wrong with the PC"


@pytest.mark.parametrize(("slowest_ms", "level"), [(4.0, "ok"), (60.0, "hint"), (250.0, "error")])
def test_a_disk_is_judged_by_its_slow_commits_and_not_by_the_usual_ones(
    ask: Callable[..., list[Diagnosis]], pc: Machine, slowest_ms: float, level: str
) -> None:
    found = ask(replace(pc, fsync_ms=lambda _folder: [1.0] * 98 + [slowest_ms] * 2))
    durable = next(d for d in found if d.topic == "disk" and "99 of 100" in d.text)
    assert durable.level == level


def test_commits_are_timed_on_the_disk_itself_and_leave_nothing_behind(tmp_path: Path) -> None:
    taken = time_fsync(tmp_path)
    assert len(taken) == 100
    assert all(ms > 0 for ms in taken)
    assert list(tmp_path.iterdir()) == []


def test_a_sound_journal_is_sound_while_the_daemon_writes_it(
    ask: Callable[..., list[Diagnosis]], pc: Machine, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    journal = Journal(tmp_path / "state/journal.sqlite", "l1", on_fatal=pytest.fail)
    journal.open()
    try:
        found = [d for d in ask(pc) if d.topic == "journal"]
    finally:
        journal.close()
    assert [(d.level, "1 start of the daemon" in d.text) for d in found] == [("ok", True)]


def test_a_damaged_journal_is_an_error(ask: Callable[..., list[Diagnosis]], pc: Machine, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/journal.sqlite").write_bytes(b"no database" * 1000)
    assert faults([d for d in ask(pc) if d.topic == "journal"]) == [("journal", "error")]


def test_pages_damaged_at_rest_are_found(ask: Callable[..., list[Diagnosis]], pc: Machine, tmp_path: Path) -> None:
    path = tmp_path / "state/journal.sqlite"
    path.parent.mkdir()
    journal = Journal(path, "l1", on_fatal=pytest.fail)
    journal.open()
    journal.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=DELETE")
        rows = [(str(i), "y" * 900) for i in range(200)]
        db.executemany("INSERT INTO amendment (result_id, kind, utc, body) VALUES (?, 'x', 'x', ?)", rows)
    db.close()
    content = bytearray(path.read_bytes())
    for page in range(20, 40):
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    found = [d for d in ask(pc) if d.topic == "journal"]
    assert faults(found) == [("journal", "error")]


def test_a_journal_that_lost_power_says_how_many_triggers_wait(
    ask: Callable[..., list[Diagnosis]], pc: Machine, tmp_path: Path
) -> None:
    path = tmp_path / "state/journal.sqlite"
    path.parent.mkdir()
    for _ in range(2):
        journal = Journal(path, "l1", on_fatal=pytest.fail)
        journal.open()
        journal.close()
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO intent VALUES ('r', 1, 'st1', 't', 1, '{}')")
    db.close()
    assert any("1 trigger(s)" in d.text and d.level == "hint" for d in ask(pc))


def test_the_network_is_nobodys_business_without_cameras_on_it(
    ask: Callable[..., list[Diagnosis]], pc: Machine
) -> None:
    same = replace(pc, interfaces=lambda: (card("eth0", "10.0.0.0/16"), card("eth1", "10.0.1.0/24", mtu=1500)))
    assert not [d for d in ask(same) if d.topic == "network"]


def test_cards_in_one_subnet_small_packets_and_small_buffers_are_found(
    ask: Callable[..., list[Diagnosis]], pc: Machine
) -> None:
    (pc.proc / "sys/net/core/rmem_max").write_text("212992\n")
    same = replace(pc, interfaces=lambda: (card("eth0", "10.0.0.0/16"), card("eth1", "10.0.1.0/24", mtu=1500)))
    found = [d for d in ask(same, camera=_NETWORK_CAMERA) if d.topic == "network"]
    assert faults(found) == [("network", "error"), ("network", "hint"), ("network", "hint")]
    assert "eth0" in found[0].text
    assert "eth1" in found[0].text
    assert "eth1: MTU 1500" in found[1].text
    assert "0.2 MB" in found[2].text


def test_a_device_that_is_not_there_is_an_error(ask: Callable[..., list[Diagnosis]], pc: Machine) -> None:
    found = ask(pc, camera='kind = "usb"\ndevice = 3')
    assert faults([d for d in found if d.topic == "cameras"]) == [("cameras", "error")]


@pytest.mark.parametrize(
    ("change", "topic", "words"),
    [
        ({"clock_quality": lambda: ("unsynchronised", 10**6)}, "clock", "not synchronised"),
        ({"clock_quality": lambda: ("unknown", 10**6)}, "clock", "does not say"),
        ({"clock_quality": lambda: ("ntp", 900_000)}, "clock", "900 ms off"),
        ({"pools": lambda: {"OMP_NUM_THREADS": "512"}}, "threads", "512"),
        ({"pools": lambda: {"OMP_WAIT_POLICY": "ACTIVE"}}, "threads", "spins"),
    ],
)
def test_what_makes_a_line_slow_is_a_hint(
    ask: Callable[..., list[Diagnosis]], pc: Machine, change: dict[str, Callable[..., object]], topic: str, words: str
) -> None:
    found = [d for d in ask(replace(pc, **change)) if d.topic == topic]  # type: ignore[arg-type]
    assert faults(found) == [(topic, "hint")]
    assert words in found[0].text


def test_a_card_without_driver_is_an_error_where_it_is_demanded(
    ask: Callable[..., list[Diagnosis]], pc: Machine
) -> None:
    found = ask(pc, engine='[engine]\nprovider = "cuda"\n')
    assert ("provider", "error") in faults(found)
    (pc.dev / "nvidia0").touch()
    assert ("provider", "hint") in faults(ask(pc)), "a card that nobody uses is worth a word"


def test_the_interfaces_of_this_pc_can_be_read() -> None:
    for interface in read_interfaces():
        assert interface.mtu > 0
        assert not interface.network.is_loopback


def test_the_command_prints_every_finding_and_fails_when_one_will_hurt(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(_CONFIG.format(camera=_SIMULATED))
    command = [sys.executable, "-m", "edge_daemon.cli", "doctor", "--config", str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert told.returncode == 1, told.stderr
    assert any(line.startswith("✗ config") and "missing" in line for line in told.stdout.splitlines())
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, timeout=60)
    answer = json.loads(as_json.stdout)
    assert answer["ok"] is False
    assert {"topic", "level", "text"} == set(answer["findings"][0])
