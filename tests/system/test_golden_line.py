"""Golden samples of a real daemon whose station is never idle."""

from pathlib import Path
from typing import Any

from edge_daemon.client import TriggerClient
from tests.daemon import DaemonProcess
from tests.system.conftest import SmallLine

CONFIG = """
line = "test"
[cameras.top]
kind = "simulated"
product = "flange"
size = [128, 128]
exposure_ms = 100
[stations.st1]
idle_check_s = 0
golden_check_s = 1
deadline_ms = 5000
queue = 2
views = [{{ camera = "top", recipe = "{recipe}" }}]
"""
_MOST_PARTS = 300


def test_golden_samples_are_inspected_between_parts_that_never_end(tmp_path: Path, small_line: SmallLine) -> None:
    """Always two parts or three are open: they ask for the camera's next picture before they have the last."""
    with (
        DaemonProcess(tmp_path, CONFIG.format(recipe=small_line.recipe)) as daemon,
        daemon.triggers() as triggers,
    ):
        sent, golden = 0, 0
        while golden < 3 and sent < _MOST_PARTS:
            station = daemon.status()["stations"]["st1"]
            sent += keep_busy(triggers, station, sent)
            counters = station["counters"]
            parts = sum(counters[outcome] for outcome in ("ok", "not_ok", "not_decidable"))
            # A part counts as inspected before its record is out.
            golden = station["cameras"][0]["inspected"] - parts - counters["in_flight"]
            assert not station["alarms"]
        assert golden >= 3
        assert station["details"]["golden_age_s"]["top"] < station["uptime_ms"] / 1e3
    assert {record["reason"] for record in daemon.records()} == {""}, "none is late, none missed"


def keep_busy(triggers: TriggerClient, station: dict[str, Any], sent: int) -> int:
    """Trigger while fewer than two parts are open; how many."""
    missing = max(0, 2 - station["details"]["open"])
    for number in range(missing):
        assert triggers.trigger("st1", str(sent + number)).accepted
    return missing
