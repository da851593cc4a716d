"""Daemon, gateway, PLC and conveyor as real processes, with faults: no part passes that was not judged OK in time.

The cameras are simulated, so that no OK of theirs may release a part; the gateway's commissioning switch is on and the
PLC of this test passes on COMMISSIONING_OK. Everything else is the production path.
"""

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from edge_daemon.artefact.store import Store
from edge_daemon.gateway.words import Verdict
from tests.daemon import DaemonProcess
from tests.gateway_kit import GatewayProcess
from tests.plc import Conveyor, ConveyorSettings, Part
from tests.system.conftest import SmallLine

WINDOW_S = 1.2
DAEMON = """
line = "test"
[cameras.top]
kind = "simulated"
product = "flange"
seed = 5
defect_rate = 0.2
size = [128, 128]
faults = [{{ frame = 30, action = "drop" }}, {{ frame = 61, action = "black" }}]
[stations.st1]
deadline_ms = 900
idle_check_s = 0.2
views = [{{ camera = "top", recipe = "{recipe}" }}]
"""
GATEWAY = f"""
answer_ms = 400
window_ms = {1000 * WINDOW_S}
status_timeout_ms = 800
plc_timeout_ms = 800
commissioning = true
[stations.st1.jobs.1]
name = "flange"
"""
CONVEYOR = ConveyorSettings(pace_s=0.15, to_gate_s=1.6, heartbeat_s=1.4, job_id=1, pass_word=Verdict.COMMISSIONING_OK)
# After the end of a fault: what it left on the belt must be past the gate, errors cleared, the next part on its way.
_SETTLING_S = CONVEYOR.to_gate_s + 1.0


@dataclass
class Fault:
    """One fault as it happened; monotonic seconds."""

    name: str
    began_s: float
    ended_s: float = float("inf")
    needless: int = 0
    wrong: int = 0


@dataclass
class Line:
    """The processes, and what was done to them."""

    daemon: DaemonProcess
    gateway: GatewayProcess
    conveyor: Conveyor
    clock_s: Callable[[], float]
    recipe: str = "flange@1"
    threads: list[threading.Thread] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def begin(self, name: str) -> None:
        fault = Fault(name, self.clock_s())
        self.faults.append(fault)

        def ended() -> None:
            fault.ended_s = self.clock_s()

        getattr(self, name)(ended)

    def after(self, seconds: float, *actions: Callable[[], None]) -> None:
        self.later += [(self.clock_s() + seconds, action) for action in actions]

    def work(self) -> None:
        due = [action for at_s, action in self.later if at_s <= self.clock_s()]
        self.later = [(at_s, action) for at_s, action in self.later if at_s > self.clock_s()]
        for action in due:
            action()

    @property
    def settled(self) -> bool:
        return all(self.clock_s() > fault.ended_s + _SETTLING_S for fault in self.faults)

    def in_background(self, work: Callable[[], None], ended: Callable[[], None]) -> None:
        def both() -> None:
            work()
            ended()

        thread = threading.Thread(target=both)
        self.threads.append(thread)
        thread.start()

    # -- faults --------------------------------------------------------------------------------------

    def daemon_killed(self, ended: Callable[[], None]) -> None:
        self.daemon.kill()
        self.in_background(self.daemon.start, ended)

    def gateway_killed(self, ended: Callable[[], None]) -> None:
        self.gateway.kill()
        self.gateway.spawn()
        self.in_background(self.gateway.wait_until_it_listens, ended)

    def plc_restarted(self, ended: Callable[[], None]) -> None:
        self.conveyor.restart_plc()
        ended()

    def network_cut(self, ended: Callable[[], None]) -> None:
        self.conveyor.cut = True
        self.after(1.0, lambda: setattr(self.conveyor, "cut", False), ended)

    def results_delayed(self, ended: Callable[[], None]) -> None:
        """The daemon stands still, and then says what it had to say."""
        self._freeze(self.daemon.process.pid if self.daemon.process else 0, 1.0, ended)

    def gateway_frozen(self, ended: Callable[[], None]) -> None:
        """It wakes with everything that came meanwhile before it."""
        self._freeze(self.gateway.process.pid if self.gateway.process else 0, 1.5, ended)

    def _freeze(self, pid: int, seconds: float, ended: Callable[[], None]) -> None:
        os.kill(pid, signal.SIGSTOP)
        self.after(seconds, lambda: os.kill(pid, signal.SIGCONT), ended)

    def recipe_changed(self, ended: Callable[[], None]) -> None:
        self.recipe = "flange@2" if self.recipe == "flange@1" else "flange@1"

        def activate() -> None:
            with self.daemon.control() as control:
                job = control.request("activate", {"station": "st1", "recipe": self.recipe})["job"]
                state = control.wait(job)
                assert state.state == "done", state

        self.in_background(activate, ended)


FAULTS = (
    "plc_restarted",
    "recipe_changed",
    "network_cut",
    "gateway_killed",
    "results_delayed",
    "gateway_frozen",
    "daemon_killed",
)


def another_recipe(folder: Path, recipe: Path) -> Path:
    """The same bank with another threshold: version 2, another digest."""
    out = folder / "second.recipe"
    command = ["threshold", "--recipe", str(recipe), "--out", str(out), "--false-reject-rate", "0.2", "--label", "2"]
    subprocess.run([sys.executable, "-m", "export.cli", *command], check=True, capture_output=True)
    return out


def run_line(folder: Path, recipe: Path, parts: int, seed: int, rounds: int) -> tuple[Line, list[dict[str, Any]]]:
    """The line with every fault `rounds` times, in random order; and the journal's records."""
    chance = random.Random(seed)
    plan = [name for _ in range(rounds) for name in chance.sample(FAULTS, len(FAULTS))]
    daemon = DaemonProcess(folder / "daemon", DAEMON.format(recipe=recipe))
    store = Store(daemon.folder / "state" / "store")
    store.add(recipe)
    store.add(another_recipe(folder, recipe))
    with daemon, GatewayProcess(folder / "gateway", daemon.endpoints, GATEWAY) as gateway:
        conveyor = Conveyor(gateway.port, CONVEYOR)
        line = Line(daemon, gateway, conveyor, conveyor.clock_s)
        pause = max(1, (parts - 30) // (len(plan) + 1))

        def between_scans() -> None:
            line.work()
            if plan and line.settled and len(conveyor.parts) >= 15 + pause * len(line.faults):
                line.begin(plan.pop())

        try:
            conveyor.run(parts, between_scans)
        finally:
            conveyor.close()
            for _, action in line.later:
                action()
            for thread in line.threads:
                thread.join()
    return line, daemon.records()


def of_part(records: list[dict[str, Any]], parts: list[Part], utc_at_zero_s: float) -> dict[int, list[dict[str, Any]]]:
    """Records by part number: the PLC's id, and of several rounds of its ids the nearest in time."""
    found: dict[int, list[dict[str, Any]]] = {part.number: [] for part in parts}
    for record in records:
        acquisition_id = int(record["trigger_id"].split("-")[0])
        at_s = datetime.fromisoformat(record["times"]["utc"]).timestamp() - utc_at_zero_s
        candidates = [part for part in parts if part.acquisition_id == acquisition_id]
        nearest = min(candidates, key=lambda part: abs(part.at_eye_s - at_s))
        found[nearest.number].append(record)
    return found


def judged_ok_in_time(records: list[dict[str, Any]]) -> bool:
    return len(records) == 1 and (
        records[0]["evaluation"] == "OK"
        and records[0]["result_state"] == "Completed"
        and records[0]["journaled"]
        and not records[0]["late"]
        and records[0]["times"]["judged_us"] <= 1e6 * WINDOW_S
    )


def check_line(line: Line, records: list[dict[str, Any]]) -> str:
    """Asserts what must hold; the table for people. Needless is a reject of a part that was judged OK in time, or not
    judged at all although it lay there."""
    parts = line.conveyor.parts
    by_part = of_part(records, parts, line.conveyor.utc_at_zero_s)
    quiet = Fault("no fault", 0.0)
    stalls = [Fault("machine_stalled", began_s, ended_s) for began_s, ended_s in line.conveyor.stalls]
    why: Counter[str] = Counter()
    for part in parts:
        ok = judged_ok_in_time(by_part[part.number])
        gate_s = part.at_eye_s + CONVEYOR.to_gate_s
        near = (f for f in (*line.faults, *stalls) if f.began_s <= gate_s and part.at_eye_s <= f.ended_s + _SETTLING_S)
        fault = next(near, quiet)
        fault.wrong += bool(part.passed) and not ok
        if not part.passed and (ok or not by_part[part.number]):
            fault.needless += 1
            why[f"{part.verdict.name if part.verdict else 'no result'}, {'' if ok else 'never '}judged"] += (
                fault is quiet
            )

    names = ("no fault", *FAULTS, "machine_stalled")
    rows = {name: [f for f in (quiet, *line.faults, *stalls) if f.name == name] for name in names}
    table = [f"{'fault':<18}{'count':>6}{'needless rejects':>18}{'wrong passes':>14}"]
    for name, of_name in rows.items():
        needless, wrong = sum(f.needless for f in of_name), sum(f.wrong for f in of_name)
        table.append(f"{name:<18}{len(of_name) if name != 'no fault' else '':>6}{needless:>18}{wrong:>14}")
    passed = sum(bool(part.passed) for part in parts)
    table.append(f"{len(parts)} parts, {passed} passed, {line.conveyor.reject_sensor} at the reject sensor")
    said = Counter(f"{r['result_state']} {r['evaluation']} {r['reason']}".strip() for r in records)
    table.append(f"{len(records)} records: " + ", ".join(f"{count} {words}" for words, count in said.most_common()))
    table.append(f"needless without a fault: {dict(+why)}")
    text = "\n".join(table)

    assert sum(f.wrong for f in (quiet, *line.faults, *stalls)) == 0, text
    assert line.conveyor.reject_sensor == len(parts) - passed, text
    trigger_ids = [record["trigger_id"] for record in records]
    assert len(set(trigger_ids)) == len(trigger_ids), "a trigger has two records"
    assert all(len(of) <= 1 for of in by_part.values()), "a part has two records"
    assert all(by_part[part.number] for part in parts if part.acknowledged), "an acknowledged part has no record"
    assert passed > len(parts) // 4, text
    # A machine with more work than cores takes time that nobody can promise to the parts.
    overloaded = os.getloadavg()[1] > (os.cpu_count() or 1)
    assert quiet.needless <= max(2, len(parts) // (10 if overloaded else 100)), text
    return text


@pytest.mark.timeout(300)
def test_no_part_passes_a_line_full_of_faults_unless_it_was_judged_ok_in_time(
    tmp_path: Path, small_line: SmallLine
) -> None:
    line, records = run_line(tmp_path, small_line.recipe, parts=300, seed=1, rounds=1)
    print("\n" + check_line(line, records))
    assert sorted(fault.name for fault in line.faults) == sorted(FAULTS)
