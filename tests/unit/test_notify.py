"""What systemd is told, over a real datagram socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_daemon.notify import Notifier

S = 1_000_000_000


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def heard(self) -> list[str]:
        lines: list[str] = []
        while True:
            try:
                lines += self._socket.recv(65_536).decode().split("\n")
            except BlockingIOError:
                return lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    other = Systemd(str(tmp_path / "notify") if request.param == "path" else f"@edge-test-{os.getpid()}")
    yield other
    other.close()


@pytest.fixture
def notifier(systemd: Systemd) -> Iterator[Notifier]:
    told = Notifier(systemd.address, watchdog_us=20_000_000)
    yield told
    told.close()


def test_the_watchdog_is_fed_only_when_something_has_passed(systemd: Systemd, notifier: Notifier) -> None:
    notifier.feed(0, 100 * S)
    assert systemd.heard() == []  # nothing has been inspected yet
    notifier.feed(1, 101 * S)
    assert systemd.heard() == ["WATCHDOG=1"]
    for second in range(102, 300):
        notifier.feed(1, second * S)
    assert systemd.heard() == []


def test_the_watchdog_is_fed_four_times_in_its_period_and_not_for_every_part(
    systemd: Systemd, notifier: Notifier
) -> None:
    for tenth in range(200):
        notifier.feed(tenth + 1, 100 * S + tenth * S // 10)
    assert systemd.heard() == ["WATCHDOG=1"] * 4


def test_a_longer_period_is_asked_for_and_a_shorter_one_is_not(systemd: Systemd, notifier: Notifier) -> None:
    notifier.allow(10 * S)
    assert systemd.heard() == []
    notifier.allow(240 * S)
    assert systemd.heard() == ["WATCHDOG_USEC=240000000"]
    assert notifier.watchdog_ns == 240 * S


def test_a_status_is_one_line_sent_when_it_changes_and_at_most_once_a_second(
    systemd: Systemd, notifier: Notifier
) -> None:
    notifier.status("st1 Ready", 10 * S)
    notifier.status("st1 Ready", 12 * S)
    notifier.status("st1 Error:\nWATCHDOG=1", 12 * S)
    notifier.status("st1 Ready", 12 * S + 1)
    assert systemd.heard() == ["STATUS=st1 Ready", "STATUS=st1 Error: WATCHDOG=1"]
    notifier.status("x" * 5_000, 20 * S)
    assert len(systemd.heard()[0]) < 320


def test_what_systemd_does_not_take_is_said_with_the_next_call_but_never_an_old_feed(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "notify"), watchdog_us=4_000_000)
    notifier.ready()
    for second in range(1, 50):
        notifier.feed(second, second * S)
    systemd = Systemd(str(tmp_path / "notify"))
    notifier.feed(49, 50 * S)
    assert systemd.heard() == ["READY=1"]
    notifier.feed(50, 51 * S)
    assert systemd.heard() == ["WATCHDOG=1"]
    notifier.close()
    systemd.close()


def test_the_start_the_reload_and_the_stop_are_told(systemd: Systemd, notifier: Notifier) -> None:
    notifier.busy_starting(600)
    notifier.ready()
    notifier.reloading(5 * S)
    notifier.ready()
    notifier.stopping(31.5)
    assert systemd.heard() == [
        "EXTEND_TIMEOUT_USEC=600000000",
        "READY=1",
        "RELOADING=1",
        "MONOTONIC_USEC=5000000",
        "READY=1",
        "STOPPING=1",
        "EXTEND_TIMEOUT_USEC=31500000",
    ]


def test_without_systemd_nothing_is_said_and_nothing_fails() -> None:
    notifier = Notifier.from_environment({})
    notifier.ready()
    notifier.feed(1, S)
    notifier.status("st1 Ready", S)
    assert notifier.watchdog_ns == 0
    notifier.close()
    notifier.close()


@pytest.mark.parametrize(
    ("variables", "period_ns"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30 * S),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30 * S),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),  # another process's
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({}, 0),
    ],
)
def test_the_environment_is_read_once_and_kept_from_children(variables: dict[str, str], period_ns: int) -> None:
    environ = {"NOTIFY_SOCKET": "/run/systemd/notify", "OTHER": "kept", **variables}
    assert Notifier.from_environment(environ).watchdog_ns == period_ns
    assert environ == {"OTHER": "kept"}
