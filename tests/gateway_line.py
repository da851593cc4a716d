"""Daemon, gateway, PLC and conveyor as real processes, faults that happen to them, and a judge who asks none of them.

The cameras are simulated, so that no OK of theirs may release a part; the gateway's commissioning switch is on and the
PLC passes on COMMISSIONING_OK. Everything else is the production path. The reference judgement renders each part's
picture again and scores it with the published formulas in float64 (`tests/oracle.py`), in this process; of the daemon's
records it believes only which picture was taken of which part, and that no two have the same.
"""

import contextlib
import os
import random
import resource
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import oracle_recipe
import torch
from numpy.typing import NDArray

from edge_daemon.artefact.store import Store
from edge_daemon.edges.journal_tools import Wanted, find
from edge_daemon.gateway.outbox import count_waiting
from edge_daemon.gateway.words import Verdict
from edge_daemon.simulation.defects import DefectScript
from edge_daemon.simulation.render import Scene
from edge_daemon.wire.keys import create_server_key, enrol
from tests.conftest import ROOT
from tests.daemon import DaemonProcess
from tests.gateway_kit import GatewayProcess
from tests.plc import Conveyor, ConveyorSettings, Part

SIZE = (128, 128)
SEED, DEFECT_RATE = 5, 0.2
DROPPED, BLACK = 30, 61
WINDOW_S = 1.2
DAEMON = f"""
line = "test"
[cameras.top]
kind = "simulated"
isolated = true
product = "flange"
seed = {SEED}
defect_rate = {DEFECT_RATE}
size = [{SIZE[0]}, {SIZE[1]}]
faults = [{{{{ frame = {DROPPED}, action = "drop" }}}}, {{{{ frame = {BLACK}, action = "black" }}}}]
[stations.st1]
deadline_ms = 900
idle_check_s = 0.2
views = [{{{{ camera = "top", recipe = "{{recipe}}" }}}}]
"""
GATEWAY = f"""
answer_ms = 400
window_ms = {1000 * WINDOW_S}
status_timeout_ms = 800
plc_timeout_ms = 800
commissioning = true
[stations.st1.jobs.1]
name = "oracle"
"""
CONVEYOR = ConveyorSettings(pace_s=0.15, to_gate_s=1.6, heartbeat_s=1.4, job_id=1, pass_word=Verdict.COMMISSIONING_OK)
# After the end of a fault: what it left on the belt must be past the gate, errors cleared, the next part on its way.
_SETTLING_S = CONVEYOR.to_gate_s + 1.0
_FULL_S, _SLOW_S = 1.0, 1.2
_PATIENCE_S = 20.0
# Share of a threshold within which float32 may say the other thing.
_EQUAL = 1e-4

FAULTS = (
    "plc_restarted",
    "recipe_changed",
    "network_cut",
    "gateway_killed",
    "results_delayed",
    "gateway_frozen",
    "camera_killed",
    "journal_slow",
    "journal_full",
    "daemon_killed",
)
# What nobody begins: scripted, or of the machine below.
_UNASKED = ("frame_dropped", "machine_stalled")


class Reference:
    """What lay under the camera, and what the formulas say of it. thresholds: by version of the recipe."""

    def __init__(self) -> None:
        self._scene = Scene("flange", SIZE)
        self._truth = DefectScript(SEED, DEFECT_RATE)
        self._network = oracle.small_network()
        good = [self._scene.part(SEED + 1, index).pixels for index in range(60)]
        bank = oracle_recipe.random_bank(self._network, good[:24], "anomalib", rows=1_200)
        self._bank = bank.astype(np.float32)
        held_out = [self._of(pixels) for pixels in good[24:]]
        self.thresholds = {"1": float(np.quantile(held_out, 0.8)), "2": float(np.quantile(held_out, 0.6))}
        self._golden = good[24 + int(np.argmin(held_out))]
        self.score = lru_cache(None)(self._score)

    def write_recipes(self, folder: Path) -> list[Path]:
        """Versions 1 and 2: the same bank with another threshold."""
        backbone = oracle_recipe.fused_small(self._network, SIZE, "anomalib")
        return [
            oracle_recipe.build(
                folder / f"{version}.recipe", backbone, self._bank, self._golden, (limit,) * 3, version=version
            )
            for version, limit in self.thresholds.items()
        ]

    def _score(self, frame_id: int) -> float:
        """Image score of the picture that frame shows, in every life of the camera."""
        index = frame_id - 1
        pixels = self._scene.part(SEED, index, self._truth.truth(index)).pixels
        return self._of(np.zeros_like(pixels) if frame_id == BLACK else pixels)

    def _of(self, pixels: NDArray[np.uint8]) -> float:
        with one_torch_thread():
            embedding = oracle.embed(oracle.feature_maps(self._network, pixels), "anomalib")
            return oracle.judge(embedding, self._bank, "anomalib", SIZE).score


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """A second one takes the core from the line that is being watched, and ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
    """The processes, and what was done to them. versions: of the recipe, with the times of their activation."""

    daemon: DaemonProcess
    gateway: GatewayProcess
    conveyor: Conveyor
    clock_s: Callable[[], float]
    versions: list[tuple[str, float, float]] = field(default_factory=lambda: [("1", 0.0, 0.0)])
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

    def wait_until_ready(self) -> None:
        give_up_s = self.clock_s() + _PATIENCE_S
        while not self.daemon.status()["stations"]["st1"]["trigger_ready"] and self.clock_s() < give_up_s:
            time.sleep(0.05)

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
        """In the middle of everything."""
        version, began_s = "2" if self.versions[-1][0] == "1" else "1", self.clock_s()

        def activate() -> None:
            with self.daemon.control() as control:
                job = control.request("activate", {"station": "st1", "recipe": f"oracle@{version}"})["job"]
                state = control.wait(job, ask_every_s=0.05)
                assert state.state == "done", state
            self.versions.append((version, began_s, self.clock_s()))

        self.in_background(activate, ended)

    def camera_killed(self, ended: Callable[[], None]) -> None:
        """Its process is gone, with whatever it had exposed."""
        (camera,) = camera_processes(self.daemon)
        os.kill(camera, signal.SIGKILL)

        def back() -> None:
            give_up_s = self.clock_s() + _PATIENCE_S
            while camera_processes(self.daemon) in ([], [camera]) and self.clock_s() < give_up_s:
                time.sleep(0.02)
            self.wait_until_ready()

        self.in_background(back, ended)

    def journal_slow(self, ended: Callable[[], None]) -> None:
        """Another program holds the file's lock, again and again, for longer than a commit may take."""

        def hold() -> None:
            until_s = self.clock_s() + _SLOW_S
            with contextlib.closing(sqlite3.connect(self.daemon.folder / "state" / "journal.sqlite")) as other:
                other.isolation_level = None
                while self.clock_s() < until_s:
                    other.execute("BEGIN IMMEDIATE")
                    time.sleep(0.22)
                    other.execute("ROLLBACK")
                    time.sleep(0.02)
            self.wait_until_ready()

        self.in_background(hold, ended)

    def journal_full(self, ended: Callable[[], None]) -> None:
        """Nothing more can be written beyond the first pages of any file. (A disk that is merely full lets SQLite write
        over its own log for some hundred parts; `tests/faults/test_disk_faults.py` fills one.)"""
        process = self.daemon.process
        assert process is not None
        limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4_096, limits[1]))

        def space() -> None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
            self.in_background(self.wait_until_ready, ended)

        self.after(_FULL_S, space)


def camera_processes(daemon: DaemonProcess) -> list[int]:
    """Children of the daemon that look at a camera."""
    assert daemon.process is not None
    found = []
    for children in Path(f"/proc/{daemon.process.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in children.read_text().split()]
    return [pid for pid in found if b"cameras" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


Beside = Callable[[DaemonProcess, GatewayProcess], contextlib.AbstractContextManager[object]]


def nobody(_daemon: DaemonProcess, _gateway: GatewayProcess) -> contextlib.AbstractContextManager[object]:
    """Nobody else is there."""
    return contextlib.nullcontext()


def run_line(
    folder: Path,
    reference: Reference,
    parts: int,
    seed: int,
    rounds: int,
    more: str = "",
    beside: Beside = nobody,
    keys: bool = False,
) -> tuple[Line, list[dict[str, Any]]]:
    """The line with every fault `rounds` times, in random order, and at least so many parts; and the journal.

    more: of the daemon's configuration; beside: who else is at the network meanwhile; keys: whether the daemon listens
    everywhere, and lets in only whom it knows
    """
    chance = random.Random(seed)
    plan = [name for _ in range(rounds) for name in chance.sample(FAULTS, len(FAULTS))]
    first, second = reference.write_recipes(folder)
    engineer, plc = key_files(folder) if keys else (None, None)
    text = DAEMON.format(recipe=first) + more
    daemon = DaemonProcess(folder / "daemon", text, key=engineer, host="0.0.0.0" if keys else "127.0.0.1")
    store = Store(daemon.folder / "state" / "store")
    store.add(first)
    store.add(second)
    gateway = GatewayProcess(folder / "gateway", daemon.endpoints, GATEWAY, 'clients = ["127.0.0.1"]', plc)
    with daemon, gateway, beside(daemon, gateway):
        line = _faults_happen(daemon, gateway, plan, parts)
        give_up_s = time.monotonic() + _PATIENCE_S
        while waiting := count_waiting(folder / "gateway" / "state"):
            assert time.monotonic() < give_up_s, f"{waiting} amendments are not on record"
            time.sleep(0.05)
    return line, daemon.records()


def key_files(folder: Path) -> tuple[Path, Path]:
    """Of an engineer and of the gateway, both known to the daemon of `run_line`."""
    keys = folder / "daemon" / "state" / "keys"
    create_server_key(keys)
    files = folder / "engineer.key", folder / "gateway.key"
    enrol(keys, "engineer", "engineer", files[0])
    enrol(keys, "gateway", "gateway", files[1])
    return files


def _faults_happen(daemon: DaemonProcess, gateway: GatewayProcess, plan: list[str], parts: int) -> Line:
    conveyor = Conveyor(gateway.port, CONVEYOR)
    line = Line(daemon, gateway, conveyor, conveyor.clock_s)
    pause = max(1, (parts - 30) // (len(plan) + 1))

    def between_scans() -> None:
        line.work()
        if plan and line.settled and len(conveyor.parts) >= 15 + pause * len(line.faults):
            line.begin(plan.pop())
        conveyor.feed_ended = len(conveyor.parts) >= parts and not plan and line.settled

    try:
        conveyor.run(10 * parts, between_scans)
    finally:
        conveyor.close()
        while line.later:
            _, action = line.later.pop()
            action()
        for thread in line.threads:
            thread.join()
    return line


# -- the judge -------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class Judged:
    """What the reference says of one part. ok: None where no picture of it was ever judged, or the part lies so near
    the threshold that either answer is right."""

    seen: bool
    ok: bool | None


def judge(reference: Reference, records: list[dict[str, Any]], versions: set[str]) -> Judged:
    """By the reference alone, with what the record says was seen. Asserts that the daemon's score is the formulas'.

    versions: of the recipe, that may have been active when the part was triggered
    """
    frame_id = frame_of(records[0]) if len(records) == 1 else None
    view = records[0]["views"][0] if frame_id is not None else {}
    if frame_id is None or view["score"] is None:
        return Judged(False, None)
    score, version = reference.score(frame_id), view["recipe"]["version"]
    assert version in versions, f"judged by version {version}, active was {versions}"
    limit = reference.thresholds[version]
    assert abs(view["score"] - score) <= _EQUAL * score, f"frame {frame_id}: {view['score']}, by the formulas {score}"
    if abs(score - limit) <= _EQUAL * limit:
        return Judged(True, None)
    ok = score <= limit
    if records[0]["result_state"] == "Completed":
        assert (records[0]["evaluation"] == "OK") == ok, f"frame {frame_id}: {records[0]['evaluation']}, {score=}"
    return Judged(True, ok)


def frame_of(record: dict[str, Any]) -> int | None:
    """The frame that was taken of its part."""
    frames: list[int] = [number for view in record["views"] for number in view["frame_ids"]]
    assert len(frames) <= 1, f"one camera, {len(frames)} frames"
    return frames[0] if frames else None


def active_at(line: Line, from_s: float, to_s: float) -> set[str]:
    """Versions of the recipe that a trigger in this time may have been bound to."""
    before = [version for version, _, done_s in line.versions if done_s <= from_s][-1]
    return {before} | {version for version, began_s, done_s in line.versions if began_s <= to_s and done_s > from_s}


def no_picture_is_of_two_parts(by_part: dict[int, list[dict[str, Any]]]) -> None:
    """Within a life of the camera pictures follow each other as the parts do: none is another part's."""
    last: dict[int, int] = {}
    for number in sorted(by_part):
        for record in by_part[number]:
            frame_id = frame_of(record)
            if frame_id is not None:
                assert frame_id > last.get(record["boot"], 0), f"part {number} has the picture of one before it"
                last[record["boot"]] = frame_id


def dropped_frames(by_part: dict[int, list[dict[str, Any]]], parts: list[Part]) -> list[Fault]:
    """The scripted one of each life: the part after the one before it."""
    found, after = [], set()
    for part in parts:
        for record in by_part[part.number]:
            if record["boot"] in after and frame_of(record) is None:
                found.append(Fault("frame_dropped", part.at_eye_s, part.at_eye_s + 0.9))
            after.discard(record["boot"])
            if frame_of(record) == DROPPED - 1:
                after.add(record["boot"])
    return found


def check_line(line: Line, records: list[dict[str, Any]], reference: Reference, needless_share: float = 0.01) -> str:
    """Asserts what must hold; the table for people, which is kept in out/ too. Needless is a reject of a part that the
    reference calls OK, or of one that was never judged although it lay there; needless_share: of all parts, as many may
    be rejected so while no fault is near."""
    parts = line.conveyor.parts
    by_part = of_part(records, parts, line.conveyor.utc_at_zero_s)
    quiet = Fault("no fault", 0.0)
    unasked = [Fault("machine_stalled", *stall) for stall in line.conveyor.stalls] + dropped_frames(by_part, parts)
    faults = [*line.faults, *unasked]
    why: Counter[str] = Counter()
    in_quiet = 0
    for part in parts:
        own = by_part[part.number]
        gate_s = part.at_eye_s + CONVEYOR.to_gate_s
        judged = judge(reference, own, active_at(line, part.at_eye_s - 0.1, gate_s))
        near = (f for f in faults if f.began_s <= gate_s and part.at_eye_s <= f.ended_s + _SETTLING_S)
        fault = next(near, quiet)
        in_quiet += fault is quiet
        proven = judged.seen and judged.ok is not False and _in_time(own)
        fault.wrong += bool(part.passed) and not proven
        if not part.passed and (judged.ok or not judged.seen):
            fault.needless += 1
            if fault is quiet:
                why[f"{_word(part)}, {_what_happened(own)} {_since(faults, part)}"] += 1
    text = table([quiet, *faults], line, records, in_quiet, why)
    text += "\n" + check_dispositions(line, by_part)
    keep(text, f"gateway-line-{len(parts) // 100 * 100}" if line.faults else "gateway-line-attacked")

    assert sum(f.wrong for f in (quiet, *faults)) == 0, text
    passed = sum(bool(part.passed) for part in parts)
    assert line.conveyor.reject_sensor == len(parts) - passed, text
    trigger_ids = [record["trigger_id"] for record in records]
    assert len(set(trigger_ids)) == len(trigger_ids), "a trigger has two records"
    assert all(len(of) <= 1 for of in by_part.values()), "a part has two records"
    assert all(by_part[part.number] for part in parts if part.acknowledged), "an acknowledged part has no record"
    no_picture_is_of_two_parts(by_part)
    assert passed > len(parts) // 4, text
    # A machine with more work than cores takes time that nobody can promise to the parts.
    overloaded = os.getloadavg()[1] > (os.cpu_count() or 1)
    assert quiet.needless <= max(2, len(parts) * max(needless_share, 0.1 if overloaded else 0.0)), text
    return text


def check_dispositions(line: Line, by_part: dict[int, list[dict[str, Any]]]) -> str:
    """Asserts that no record says of its part what the conveyor did not do, and that each says it whose part was
    reported to the gateway that had triggered it; and that nobody was alarmed by a part that had its OK."""
    state = line.daemon.folder / "state"
    on_record: dict[str, list[str]] = {}
    for record in find(state / "journal.sqlite", Wanted(station="st1")):
        words = [a.body["what"] for a in record.amendments if a.kind == "disposition"]
        on_record[record.inspection.trigger_id] = words
    kills_s = [fault.began_s for fault in line.faults if fault.name == "gateway_killed"]
    right, without = 0, 0
    for part in line.conveyor.parts:
        truth = "passed" if part.passed else "rejected"
        told = [word for record in by_part[part.number] for word in on_record[record["trigger_id"]]]
        assert told in ([], [truth]), f"part {part.number}: its record says {told}, the conveyor {truth}"
        right, without = right + bool(told), without + (not told and bool(by_part[part.number]))
        if part.reported_s is not None and by_part[part.number]:
            # Half a second: a report may be answered, and its gateway killed, before its file has it.
            killed = any(part.at_eye_s - 0.1 <= kill_s <= part.reported_s + 0.5 for kill_s in kills_s)
            assert told or killed, f"part {part.number}: its record does not say that it was {truth}"
    assert right > len(line.conveyor.parts) // 2
    assert not (state / "standing-alarms.json").exists()
    return f"{right} records say what became of their part, as the conveyor did; {without} say nothing"


def _in_time(records: list[dict[str, Any]]) -> bool:
    """Said so while it counted: the word of the record, beside the time at which the PLC had it."""
    record = records[0]
    return bool(record["journaled"] and not record["late"] and record["result_state"] == "Completed")


def _word(part: Part) -> str:
    return part.verdict.name if part.verdict else "no result"


def _what_happened(records: list[dict[str, Any]]) -> str:
    return f"{records[0]['result_state']} {records[0]['reason']}".strip() if records else "no record"


def _since(faults: list[Fault], part: Part) -> str:
    """Which fault was the last before it, and for how long it had been over."""
    before = [fault for fault in faults if fault.ended_s < part.at_eye_s]
    last = max(before, key=lambda fault: fault.ended_s, default=None)
    return f"{part.at_eye_s - last.ended_s:.0f} s after {last.name}" if last else "before any fault"


def table(faults: list[Fault], line: Line, records: list[dict[str, Any]], in_quiet: int, why: Counter[str]) -> str:
    """fault x count x needless rejects x wrong passes."""
    rows = [f"{'fault':<18}{'count':>6}{'needless rejects':>18}{'wrong passes':>14}"]
    for name in ("no fault", *FAULTS, *_UNASKED):
        of_name = [fault for fault in faults if fault.name == name]
        needless, wrong = sum(f.needless for f in of_name), sum(f.wrong for f in of_name)
        rows.append(f"{name:<18}{len(of_name) if name != 'no fault' else '':>6}{needless:>18}{wrong:>14}")
    parts = line.conveyor.parts
    passed = sum(bool(part.passed) for part in parts)
    rows.append(f"{len(parts)} parts, {passed} passed, {line.conveyor.reject_sensor} at the reject sensor")
    said = Counter(f"{r['result_state']} {r['evaluation']} {r['reason']}".strip() for r in records)
    rows.append(f"{len(records)} records: " + ", ".join(f"{count} {words}" for words, count in said.most_common()))
    rows.append(f"{in_quiet} parts were near no fault; needless among them: {dict(why)}")
    return "\n".join(rows)


def keep(text: str, name: str) -> None:
    """Beside what the other measurements leave."""
    folder = ROOT / "out" / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(text + "\n")
