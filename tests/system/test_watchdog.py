"""A sound daemon feeds systemd's watchdog whatever the line does. Without systemd: its socket is the test's."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import DaemonProcess, receive
from tests.system.conftest import SmallLine

CONFIG = """
line = "test"
[cameras.top]
kind = "simulated"
product = "flange"
size = [128, 128]
exposure_ms = 300
{camera}
[stations.st1]
deadline_ms = 500
exposed_within_ms = 500
{station}
views = [{{ camera = "top", recipe = "{recipe}" }}]
"""
_PATIENCE_S = 30.0


class Systemd:
    """What the daemon says, in order."""

    def __init__(self, path: Path) -> None:
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}
        self.said: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(_PATIENCE_S)

    def hear(self) -> list[str]:
        lines = self.socket.recv(65_536).decode().split("\n")
        self.said += lines
        return lines

    def hear_all(self) -> list[str]:
        """Everything that was said by now."""
        self.socket.setblocking(False)
        try:
            while True:
                self.hear()
        except BlockingIOError:
            return self.said
        finally:
            self.socket.settimeout(_PATIENCE_S)

    def wait_for_feeds(self, count: int) -> None:
        """Fails when they do not come."""
        self.hear_all()
        while count > 0:
            count -= "WATCHDOG=1" in self.hear()


@contextmanager
def watched(
    folder: Path, small_line: SmallLine, camera: str = "", station: str = "", recipe: str | None = None, **options: Any
) -> Iterator[tuple[DaemonProcess, Systemd]]:
    systemd = Systemd(folder / "notify")
    text = CONFIG.format(recipe=recipe or small_line.recipe, camera=camera, station=station)
    try:
        with DaemonProcess(folder / "line", text, environment=systemd.environment, **options) as daemon:
            yield daemon, systemd
        systemd.hear_all()
    finally:
        systemd.socket.close()


@pytest.mark.parametrize("station", ["", "idle_check_s = 0", "idle_check_s = 60"])
def test_a_line_feeds_the_watchdog_idle_busy_and_drained(tmp_path: Path, small_line: SmallLine, station: str) -> None:
    with watched(tmp_path, small_line, station=station) as (daemon, systemd):
        systemd.wait_for_feeds(2)
        with daemon.triggers() as triggers, daemon.subscriber() as results:
            fed = systemd.hear_all().count("WATCHDOG=1")
            for number in range(12):  # a part waits for its camera all the time: no golden sample is asked for
                triggers.trigger("st1", str(number))
                receive(results, 1)
            assert systemd.hear_all().count("WATCHDOG=1") >= fed + 3
        with daemon.control() as control:
            control.request("drain", {"station": "st1"})
        systemd.wait_for_feeds(2)
    said = systemd.said
    ready = said.index("READY=1")
    assert "WATCHDOG=1" not in said[:ready]
    assert said[ready + 1] == "WATCHDOG_USEC=2000000"  # four deadlines
    assert "STATUS=st1 Ready" in said
    assert said.index("STOPPING=1") > ready


def test_a_line_without_camera_and_without_recipe_feeds_it_too(tmp_path: Path, small_line: SmallLine) -> None:
    def up(status: dict[str, Any]) -> bool:
        return bool(status["stations"])

    with watched(tmp_path, small_line, recipe="none", ready=up) as (_, systemd):
        systemd.wait_for_feeds(3)
    assert any(line.startswith("STATUS=st1 Error") or "recipe" in line for line in systemd.said)


def test_a_camera_that_hangs_starves_nobody(tmp_path: Path, small_line: SmallLine) -> None:
    fault = 'faults = [{ trigger = 2, action = "hang", seconds = 5 }]'
    with watched(tmp_path, small_line, camera=fault) as (daemon, systemd):
        with daemon.triggers() as triggers, daemon.subscriber() as results:
            for number in range(3):
                triggers.trigger("st1", str(number))
                receive(results, 1)
        systemd.wait_for_feeds(3)
