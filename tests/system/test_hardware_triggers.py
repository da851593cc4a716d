"""Parts on a conveyor, pulses on a wire, announcements by message, and everything that can go wrong between them."""

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge_daemon.client import Subscriber, TriggerClient
from edge_daemon.wire.messages import Inspection
from tests.daemon import DaemonProcess, receive
from tests.system.conftest import SmallLine

pytestmark = pytest.mark.alone

SEED = 5
FIRST = 3000
SPACING_S = 0.4
# Wide enough for a PC that others keep busy: an announcement may come 0.3 s after its pulse.
STATION = """
line = "test"
[cameras.top]
kind = "simulated"
product = "flange"
seed = {seed}
size = [128, 128]
pulses = "{pulses}"
faults = [{faults}]
{camera}
[stations.st1]
trigger = "hardware"
deadline_ms = 5000
queue = 20
idle_check_s = 0
views = [{{ camera = "top", recipe = "{recipe}" }}]
[stations.st1.hardware]
earliest_ms = -300
latest_ms = 50
longest_delay_ms = 800
quiet_ms = 1200
"""


@dataclass
class Conveyor:
    """Parts that pass a camera, one after the other. Part n of the run is announced as trigger `n`."""

    daemon: DaemonProcess
    pulses: Path
    triggers: TriggerClient
    results: Subscriber
    parts: int = 0
    frames: dict[int, int] = field(default_factory=dict)  # part: the number of its exposure
    announced: list[int] = field(default_factory=list)
    found: list[Inspection] = field(default_factory=list)

    def part(self, *, pulse: bool = True, announce: bool = True) -> int:
        """The next part passes; what others do meanwhile takes its time."""
        due = time.monotonic() + SPACING_S
        number, self.parts = self.parts, self.parts + 1
        if pulse:
            self._pulse(number)
        if announce:
            self.announced.append(number)
            self.triggers.trigger("st1", str(number))
        while (left_s := due - time.monotonic()) > 0:
            self._receive(left_s)
        return number

    def _pulse(self, number: int) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wire, contextlib.suppress(OSError):
            # A camera that is gone sees no pulse.
            wire.sendto(f"{FIRST + number} {time.monotonic_ns()}".encode(), str(self.pulses))
            self.frames[number] = len(self.frames) + 1

    def stop_until_ready(self) -> None:
        """No more parts until each has its record and the station takes triggers again."""
        give_up = time.monotonic() + 60
        while len(self.found) < len(self.announced) or not self.status()["trigger_ready"]:
            assert time.monotonic() < give_up, self.status()
            self._receive(0.05)

    def status(self) -> dict[str, Any]:
        return dict(self.daemon.status()["stations"]["st1"])

    def _receive(self, timeout_s: float) -> None:
        inspection = self.results.receive(timeout_s)
        if inspection is not None:
            self.found.append(inspection)

    @property
    def outcomes(self) -> dict[int, Inspection]:
        return {int(record.trigger_id): record for record in self.found}


@contextlib.contextmanager
def conveyor(tmp_path: Path, recipe: Path, faults: list[tuple[int, str]], camera: str = "") -> Iterator[Conveyor]:
    """faults: (number of the exposure, rest of the fault's table); camera: more keys of its table."""
    pulses = tmp_path / "pulses"
    table = ", ".join(f"{{ frame = {frame}, {rest} }}" for frame, rest in faults)
    text = STATION.format(seed=SEED, pulses=pulses, faults=table, recipe=recipe, camera=camera)
    with (
        DaemonProcess(tmp_path / "line", text) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        yield Conveyor(daemon, pulses, triggers, results)


def scores(tmp_path: Path, recipe: Path, parts: int) -> dict[int, float | None]:
    """What each part scores where nothing can be mistaken: one software trigger after the other."""
    text = STATION.format(seed=SEED, pulses="", faults="", recipe=recipe, camera="").partition(
        "[stations.st1.hardware]"
    )[0]
    text = text.replace('pulses = ""', f"first_index = {FIRST}").replace('trigger = "hardware"', "")
    found = {}
    with (
        DaemonProcess(tmp_path / "alone", text) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        for number in range(parts):
            triggers.trigger("st1", str(number))
            (record,) = receive(results, 1)
            found[number] = record.views[0].score
    return found


def judged(record: Inspection) -> bool:
    return record.result_state == "Completed"


@pytest.mark.timeout(300)
def test_whatever_happens_to_pulses_frames_and_clock_no_verdict_lands_on_another_part(
    tmp_path: Path, small_line: SmallLine
) -> None:
    """Each part is known by the number of its exposure, and by its score: no two look alike."""
    phases = {
        "nothing": "",
        "drop": 'action = "drop"',
        "shifted order": 'action = "swapped"',
        "late": 'action = "late"',
        "doubled": 'action = "doubled"',
        "clock ahead": f'action = "clock_jump", seconds = {SPACING_S}',
        "clock behind": f'action = "clock_jump", seconds = -{SPACING_S}',
        "incomplete": 'action = "error"',
    }
    # Each phase: two parts, the one with the fault, two more.
    faults = [(5 * n + 3, fault) for n, fault in enumerate(phases.values()) if fault]
    disturbed: dict[str, int] = {}
    with conveyor(tmp_path, small_line.recipe, faults) as line:
        for name in phases:
            for place in range(5):
                number = line.part()
                if place == 2:
                    disturbed[name] = number
            line.stop_until_ready()
        line.part()
        disturbed["missed pulse"] = line.part(pulse=False)
        line.part()
        line.stop_until_ready()
        line.part()
        line.part(announce=False)
        line.part()
        line.stop_until_ready()
        counters, untriggered = line.status()["counters"], line.status()["details"]["untriggered_frames"]["top"]

    assert sorted(int(record.trigger_id) for record in line.found) == line.announced, "one record for each trigger"
    assert counters["accepted"] == len(line.announced)
    alone = scores(tmp_path, small_line.recipe, line.parts)
    assert len(set(alone.values())) == line.parts, "parts that look alike prove nothing"
    for number, record in line.outcomes.items():
        assert record.evaluation != "OK" or judged(record)
        assert not record.late, f"part {number} had its record after its deadline"
        if judged(record):
            assert record.views[0].frame_ids == (line.frames[number],), number
            assert record.views[0].score == alone[number], number
    failed = {name for name, number in disturbed.items() if not judged(line.outcomes[number])}
    assert failed >= {"drop", "doubled", "clock ahead", "clock behind", "incomplete", "missed pulse"}
    assert untriggered >= 1
    assert judged(line.outcomes[0]), line.outcomes[0]
    assert sum(map(judged, line.found)) > len(line.announced) // 3, {n: r.reason for n, r in line.outcomes.items()}


@pytest.mark.parametrize(
    ("fault", "camera"),
    [('action = "disconnect", seconds = 0.5', ""), ('action = "crash"', "isolated = true")],
    ids=["disconnected", "process died"],
)
def test_a_camera_that_is_lost_between_pulses_comes_back_in_step(
    tmp_path: Path, small_line: SmallLine, fault: str, camera: str
) -> None:
    with conveyor(tmp_path, small_line.recipe, [(2, fault)], camera) as line:
        for _ in range(4):
            line.part()
        line.stop_until_ready()
        assert line.outcomes[1].reason in ("camera", "missed_not_ready"), (
            "the pulse may be quicker than its announcement"
        )
        for _ in range(5):
            number = line.part()
            line.stop_until_ready()
            if judged(line.outcomes[number]):
                break
    assert judged(line.outcomes[number])


def test_two_exposures_of_a_part_are_one_record_and_a_missing_one_is_never_ok(
    tmp_path: Path, small_line: SmallLine
) -> None:
    text = f"""
line = "test"
[cameras.top]
kind = "simulated"
product = "flange"
seed = {SEED}
size = [128, 128]
faults = [{{ frame = 4, action = "drop" }}]
[stations.st1]
deadline_ms = 5000
frame_timeout_ms = 1000
views = [
  {{ camera = "top", recipe = "{small_line.recipe}" }},
  {{ camera = "top", exposure = 2, view = "dark", recipe = "{small_line.recipe}" }},
]
"""
    with (
        DaemonProcess(tmp_path / "line", text) as daemon,
        daemon.subscriber() as results,
        daemon.triggers() as triggers,
    ):
        found = []
        for number in range(3):
            assert triggers.trigger("st1", str(number)).accepted
            found += receive(results, 1)
        assert daemon.status()["stations"]["st1"]["views"] == ["top", "dark"]
    views = [{view.view: view.frame_ids for view in record.views} for record in found]
    assert views == [{"top": (1,), "dark": (2,)}, {"top": (3,), "dark": ()}, {"top": (5,), "dark": (6,)}]
    assert [(r.result_state, r.reason) for r in found][1] == ("Failed", "no_frame")
    assert [r.result_state for r in found] == ["Completed", "Failed", "Completed"]
