"""A line under observation: the real daemon, one station that is hurt, one beside it, and what each fault did."""

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import zmq

from edge_daemon.client import TriggerClient, connect
from edge_daemon.errors import WireError
from edge_daemon.wire.codec import decode_event, decode_inspection, decode_status
from edge_daemon.wire.messages import Event, Inspection, Status, TriggerReply
from tests.daemon import DaemonProcess

SIDE_PX = 160
HURT, BESIDE, CAMERA = "hurt", "beside", "top"
DEADLINE_MS = 1_500.0
# What the line may rely on, in seconds. Held to strictly by `make faults`; in the ordinary run of tests the PC may be
# busy with anything.
SLACK = 1.0 if os.environ.get("EDGE_TEST_FAULTS") else 4.0
IDLE_DROP_S = 2.0
RECOVERY_S = 2.0
# How long the other station's rate is measured at least, with the fault and without.
WINDOW_S = 2.0
BESIDE_HZ = 10.0
PATIENCE_S = 40.0

Message = Inspection | Status | Event
M = TypeVar("M", Inspection, Status, Event)


class Factory(Protocol):
    def __call__(self, camera: str, **options: object) -> "Line": ...


@dataclass(frozen=True, slots=True)
class Seen:
    """A message and the monotonic time when it was here."""

    at_ns: int
    message: Message


@dataclass(frozen=True, slots=True)
class Account:
    """One line of the table; None for what does not apply."""

    fault: str
    expected: str
    seen: str
    failed_s: float | None = None
    dropped_s: float | None = None
    recovered_s: float | None = None

    def __str__(self) -> str:
        def shown(seconds: float | None) -> str:
            return "-" if seconds is None else f"{seconds:.2f} s"

        return (
            f"{self.fault:<34} seen: {self.seen:<30} expected: {self.expected:<31} "
            f"FAILED {shown(self.failed_s):>7}  not ready {shown(self.dropped_s):>7}  back {shown(self.recovered_s):>7}"
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the camera of the station `hurt`.

    inject, restore: the fault and its end; pending: whether a trigger waits for its frame; stall: makes sure of that,
    where the frame would else be quicker than the fault; hold_s: how long the fault lasts at least.
    """

    name: str
    inject: Callable[[], object]
    restore: Callable[[], object]
    pending: bool = True
    stall: Callable[[], object] | None = None
    hold_s: float = 0.0
    reasons: tuple[str, ...] = ("camera", "no_frame")


class Observer:
    """Everything that a daemon publishes, with the time of its arrival; read in a thread of its own."""

    def __init__(self, endpoints: dict[str, str]) -> None:
        self._endpoints = endpoints
        self._news = threading.Condition()
        self._seen: list[Seen] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with zmq.Context() as context:
            sockets = [connect(context, zmq.SUB, self._endpoints[name]) for name in ("results", "status")]
            poller = zmq.Poller()
            for socket in sockets:
                socket.setsockopt(zmq.SUBSCRIBE, b"")
                poller.register(socket, zmq.POLLIN)
            while not self._stop.is_set():
                for socket, _ in poller.poll(50):
                    self._take(socket.recv_multipart())
            for socket in sockets:
                socket.close(0)

    def _take(self, frames: list[bytes]) -> None:
        decode: dict[bytes, Callable[[list[bytes]], Message]] = {
            b"result": decode_inspection, b"status": decode_status, b"event": decode_event,
        }  # fmt: skip
        try:
            message = decode[frames[0].split(b"/")[0]](frames)
        except WireError as error:
            raise AssertionError(f"the daemon published what nobody can read: {error}") from error
        with self._news:
            self._seen.append(Seen(time.monotonic_ns(), message))
            self._news.notify_all()

    def all(self, kind: type[M], since_ns: int = 0) -> list[tuple[int, M]]:
        """Every message of this kind so far, as (time, message)."""
        with self._news:
            first = bisect_left(self._seen, since_ns, key=lambda seen: seen.at_ns)
            return [(s.at_ns, s.message) for s in self._seen[first:] if isinstance(s.message, kind)]

    def first(
        self, kind: type[M], fits: Callable[[M], bool], since_ns: int = 0, patience_s: float = PATIENCE_S
    ) -> tuple[int, M]:
        """The first that fits, past or to come, as (time, message). Fails when none comes."""
        until = time.monotonic() + patience_s
        with self._news:
            looked_at = bisect_left(self._seen, since_ns, key=lambda seen: seen.at_ns)
            while True:
                for seen in self._seen[looked_at:]:
                    if seen.at_ns >= since_ns and isinstance(seen.message, kind) and fits(seen.message):
                        return seen.at_ns, seen.message
                looked_at = len(self._seen)
                left = until - time.monotonic()
                assert left > 0, f"no such {kind.__name__} came within {patience_s:g} s"
                self._news.wait(left)

    def until(self, at_ns: int) -> None:
        """Until that time has come; status messages tell it ten times a second."""
        self.first(Status, lambda _: True, since_ns=at_ns)


def _config(recipe: Path, camera: str, deadline_ms: float, station: str) -> str:
    return f"""
line = "faults"
[cameras.{CAMERA}]
{camera}
[cameras.shelf]
kind = "folder"
path = "{recipe.parent / "good"}"
loop = true
preload = true
rate_hz = {BESIDE_HZ}
[stations.{HURT}]
views = [{{ camera = "{CAMERA}", recipe = "{recipe}" }}]
deadline_ms = {deadline_ms}
{station}
[stations.{BESIDE}]
views = [{{ camera = "shelf", recipe = "{recipe}" }}]
trigger = "free_run"
deadline_ms = 10000
"""


class Line:
    """The daemon, its observer, and a client that triggers the station `hurt`.

    camera: body of the table of its camera; present: whether that camera is there at the start; station: more keys of
    the station.
    """

    def __init__(
        self, folder: Path, recipe: Path, camera: str, *, present: bool = True, deadline_ms: float = DEADLINE_MS,
        station: str = "",
    ) -> None:  # fmt: skip
        self.deadline_ms = deadline_ms
        self.daemon = DaemonProcess(folder, _config(recipe, camera, deadline_ms, station), self._is_ready(present))
        self.observer = Observer(self.daemon.endpoints)
        self._client: TriggerClient | None = None
        self._sent: dict[str, int] = {}
        self._observing = self._free_running = False

    @staticmethod
    def _is_ready(present: bool) -> Callable[[dict[str, Any]], bool]:
        def ready(status: dict[str, Any]) -> bool:
            stations = status.get("stations", {})
            beside = stations.get(BESIDE, {}).get("counters") or {}
            return beside.get("accepted", 0) > 0 and (not present or stations[HURT]["trigger_ready"])

        return ready

    def __enter__(self) -> "Line":
        self.daemon.start()
        self.observer.start()
        self._observing = True
        self._client = TriggerClient(self.daemon.endpoints["triggers"], timeout_s=20)
        self.observer.first(Status, lambda s: s.station == HURT)
        self.observer.first(Inspection, lambda i: i.station == BESIDE)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.end()
            return
        self._settle()
        self._close()
        status = self.daemon.stop()
        assert status == 0, f"the daemon ended with {status}:\n{self.daemon.log.read_text()}"
        self._prove_records()

    def end(self) -> None:
        """Whatever state it is in."""
        self._close()
        self.daemon.kill()

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._observing:
            self.observer.close()
            self._observing = False

    @property
    def pid(self) -> int:
        """Of the daemon."""
        assert self.daemon.process is not None
        return self.daemon.process.pid

    # -- acting --------------------------------------------------------------------------------------

    def trigger(self) -> TriggerReply:
        """One part for the station `hurt`; the answer says whether it was accepted."""
        assert self._client is not None
        trigger_id = f"part-{len(self._sent) + 1}"
        self._sent[trigger_id] = time.monotonic_ns()
        return self._client.trigger(HURT, trigger_id)

    def outcome(self, reply: TriggerReply) -> tuple[int, Inspection]:
        """(time, record) of that trigger."""
        since_ns = self._sent.get(reply.trigger_id, 0)
        return self.observer.first(Inspection, lambda i: i.result_id == reply.result_id, since_ns)

    def part(self) -> Inspection:
        """One part, start to end."""
        return self.outcome(self.trigger())[1]

    def good_part(self) -> Inspection:
        """One part that is looked at."""
        record = self.part()
        assert record.result_state == "Completed", f"{record}\nthe camera has counted {self._counted()}"
        return record

    def _counted(self) -> object:
        """What the camera has counted, as the status says it half a second later."""
        self.observer.until(time.monotonic_ns() + 600_000_000)
        told = [s.details for _, s in self.observer.all(Status) if s.station == HURT][-1]
        return told["camera_counters"], told["untriggered_frames"]

    def sent_ns(self, trigger_id: str) -> int:
        """When that trigger was sent, monotonic."""
        return self._sent[trigger_id]

    def free_running(self) -> None:
        """Nobody triggers the station: what it accepted is not compared with what was sent."""
        self._free_running = True

    def suffer(self, fault: Fault) -> Account:
        """Let it happen, hold the daemon to every rule, and see the camera come back."""
        for _ in range(2):
            self.good_part()
        without_hz = self._rate_of_the_other(time.monotonic_ns(), WINDOW_S)
        if fault.stall is not None:
            fault.stall()
            reply = self.trigger()
            began_ns = time.monotonic_ns()
            fault.inject()
        else:
            began_ns = time.monotonic_ns()
            fault.inject()
            reply = self.trigger() if fault.pending else None
        failed_s, seen = self._failed(fault, reply, began_ns)
        limit_s = self.deadline_ms / 1e3 if reply else IDLE_DROP_S
        dropped_s = self.dropped(began_ns)
        assert dropped_s <= limit_s * SLACK, f"Trigger Ready dropped after {dropped_s:.2f} s"
        self.observer.until(began_ns + round(fault.hold_s * 1e9))
        missed = self.part()
        assert (missed.evaluation, missed.result_state) == ("Undefined", "Aborted"), missed
        recovered_s = self.recovered(fault.restore)
        assert recovered_s <= RECOVERY_S * SLACK, f"it came back after {recovered_s:.2f} s"
        self.good_part()
        self._prove_other_unhurt(began_ns, without_hz)
        expected = "failed: " + " or ".join(fault.reasons) if reply else "not ready"
        return Account(fault.name, expected, seen, failed_s, dropped_s, recovered_s)

    def _failed(self, fault: Fault, reply: TriggerReply | None, began_ns: int) -> tuple[float | None, str]:
        if reply is None:
            return None, "not ready"
        assert reply.accepted, reply
        at_ns, record = self.outcome(reply)
        assert (record.evaluation, record.result_state) == ("Undefined", "Failed"), record
        assert record.reason in fault.reasons, record
        took_ms = (at_ns - self._sent[record.trigger_id]) / 1e6
        assert took_ms < self.deadline_ms * SLACK, f"FAILED after {took_ms:.0f} ms"
        return (at_ns - began_ns) / 1e9, f"failed: {record.reason}"

    def dropped(self, since_ns: int) -> float:
        """Seconds until Trigger Ready dropped because of the camera."""

        def is_down(status: Status) -> bool:
            return status.station == HURT and not status.trigger_ready and not status.cameras[0].connected

        return (self.observer.first(Status, is_down, since_ns)[0] - since_ns) / 1e9

    def recovered(self, restore: Callable[[], object]) -> float:
        """Seconds from the camera being reachable again, when `restore` returns, until it is back, has said so, and
        triggers are taken."""
        since_ns = time.monotonic_ns()
        restore()
        back_ns = time.monotonic_ns()
        self.observer.first(Event, lambda e: e.name == "camera_connected" and CAMERA in e.message, since_ns)
        at_ns, _ = self.observer.first(Status, lambda s: s.station == HURT and s.trigger_ready, since_ns)
        return max(0.0, (at_ns - back_ns) / 1e9)

    # -- proving -------------------------------------------------------------------------------------

    def _rate_of_the_other(self, since_ns: int, seconds: float) -> float:
        until_ns = since_ns + round(seconds * 1e9)
        self.observer.until(until_ns)
        mine = [i for at, i in self.observer.all(Inspection, since_ns) if i.station == BESIDE and at <= until_ns]
        return len(mine) / seconds

    def _prove_other_unhurt(self, began_ns: int, without_hz: float) -> None:
        """The other station's rate with the fault is what it was without, and no part of it was lost."""
        seconds = max(WINDOW_S, (time.monotonic_ns() - began_ns) / 1e9)
        with_hz = self._rate_of_the_other(began_ns, seconds)
        parts_off = 2 if SLACK == 1.0 else 0.5 * without_hz * seconds
        assert with_hz * seconds >= without_hz * seconds - parts_off, (
            f"the other station judged {with_hz:.1f} parts a second with the fault, {without_hz:.1f} without"
        )
        lost = [i for _, i in self.observer.all(Inspection) if i.station == BESIDE and i.result_state != "Completed"]
        assert not lost, f"the other station lost parts: {lost}"

    def _settle(self) -> None:
        """Everything that was accepted has its record, and the sums were right all the time."""
        if not self._free_running:
            self.observer.first(Status, self._is_settled)
        for _, status in self.observer.all(Status):
            assert status.counters is None or status.counters.balanced, status

    def _is_settled(self, status: Status) -> bool:
        counters = status.counters if status.station == HURT else None
        return counters is not None and counters.accepted == len(self._sent) and counters.in_flight == 0

    def _prove_records(self) -> None:
        """One record a trigger, and never an OK without a frame of its own."""
        records = [r for r in self.daemon.records() if r["station"] == HURT]
        if not self._free_running:
            assert sorted(r["trigger_id"] for r in records) == sorted(self._sent)
        frames = [tuple(view["frame_ids"]) for r in records for view in r["views"] if r["evaluation"] == "OK"]
        assert all(frames), "an OK without a frame"
        assert len(set(frames)) == len(frames), "one frame released two parts"
