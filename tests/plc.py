"""A PLC and its conveyor, simulated: the PLC's side of the contract in deploy/docs/gateway.md, over Modbus/TCP.

The scan cycle writes the whole command block and reads the whole result block, as a PLC's does. Parts come at an even
pace, are triggered at the photo-eye, tracked by their id, and reach the gate a fixed time later: there the PLC lets a
part pass only if it has taken the OK word for that very id and the heartbeat moved within T. A broken connection,
an exception or a torn block is a scan without news. What the sensors behind the gate saw of a part whose trigger was
answered is reported with the command, until that request is answered.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException

from edge_daemon.gateway.registers import (
    COMMAND_ADDRESS,
    RESULT_ADDRESS,
    RESULT_WORDS,
    decode_block,
    encode_command,
)
from edge_daemon.gateway.words import Bits, Block, Command, Disposition, Verdict

_PATIENCE_S = 30.0


@dataclass
class Part:
    """A part on the belt. number: of the belt, never repeated; acquisition_id: the PLC's, begins again with it."""

    number: int
    acquisition_id: int
    at_eye_s: float
    answered: bool = False
    acknowledged: bool = False
    verdict: Verdict | None = None
    verdict_s: float = 0.0
    passed: bool | None = None
    """None until it is at the gate."""
    reported_s: float | None = None
    """When the request that reported what became of it was answered; None for a part that nobody reported."""


@dataclass
class ConveyorSettings:
    """All in seconds. to_gate_s: way from photo-eye to gate; heartbeat_s: T, shorter than that."""

    pace_s: float
    to_gate_s: float
    heartbeat_s: float
    scan_s: float = 0.02
    unit: int = 1
    job_id: int = 0
    pass_word: Verdict = Verdict.OK


@dataclass
class Plc:
    """What a restart of the PLC wipes out."""

    command: Command = field(default_factory=Command)
    next_id: int = 1
    heartbeat: int | None = None
    heartbeat_moved_s: float = -1e9
    trigger_for: Part | None = None
    trigger_since_s: float = 0.0
    trigger_low: bool = False
    """Whether the gateway has seen Trigger low since the last one."""
    tracked: dict[int, Part] = field(default_factory=dict)
    to_report: deque[Part] = field(default_factory=deque)
    started: bool = False


class Conveyor:
    """`scan` is one cycle; `run` scans until every part is past the gate. reject_sensor counts what the gate threw."""

    def __init__(self, port: int, settings: ConveyorSettings, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.clock_s = clock_s
        self._client = ModbusTcpClient("127.0.0.1", port=port, timeout=0.2, retries=0)
        self.plc = Plc()
        self.utc_at_zero_s = time.time() - clock_s()
        self.parts: list[Part] = []
        self.reject_sensor = 0
        self.scans = 0
        self.scans_without_news = 0
        self.cut = False
        self.ready = False
        self.feed_ended = False
        """Set it to let no more parts come; `run` ends when the last is past the gate."""
        self.stalls: list[tuple[float, float]] = []
        """Scans that the machine under this simulation held up, as no PLC's are: begin and end."""

    def close(self) -> None:
        self._client.close()

    def restart_plc(self) -> None:
        """Its memory is gone; the parts are on the belt all the same, and nobody vouches for them."""
        self._client.close()
        self.plc = Plc()

    def run(self, count: int, between_scans: Callable[[], None]) -> None:
        """Lets `count` parts come by, the first when Trigger Ready is there. Raises TimeoutError if it never comes."""
        give_up_s = self.clock_s() + _PATIENCE_S
        while not self.ready:
            if self.clock_s() > give_up_s:
                raise TimeoutError(f"no Trigger Ready within {_PATIENCE_S:g} s")
            self.scan()
            time.sleep(self.settings.scan_s)
        next_part_s = self.clock_s()
        while (len(self.parts) < count and not self.feed_ended) or any(
            part.passed is None for part in self.parts[-200:]
        ):
            now_s, missed = self.clock_s(), self.scans_without_news
            between_scans()
            if now_s >= next_part_s and len(self.parts) < count and not self.feed_ended:
                self._at_photo_eye(now_s)
                next_part_s = max(next_part_s + self.settings.pace_s, now_s - self.settings.pace_s)
            self.scan()
            if self.clock_s() - now_s > 5 * self.settings.scan_s and not self.cut and self.scans_without_news == missed:
                self.stalls.append((now_s, self.clock_s()))
            time.sleep(max(0.0, self.settings.scan_s - (self.clock_s() - now_s)))

    def _at_photo_eye(self, now_s: float) -> None:
        plc = self.plc
        part = Part(len(self.parts), plc.next_id, now_s)
        self.parts.append(part)
        plc.next_id = plc.next_id % 0xFFFF_FFFF + 1
        if plc.trigger_for is None and plc.trigger_low:
            plc.trigger_for, plc.trigger_since_s = part, now_s
            plc.tracked[part.acquisition_id] = part
        # else the last trigger is not through, or not seen low: this part is not asked for, and rejected at the gate.

    def scan(self) -> None:
        """One cycle: write, read, track, gate."""
        self.scans += 1
        plc, now_s = self.plc, self.clock_s()
        self._compose_command()
        block = None if self.cut else self._exchange(plc.command)
        if block is None:
            self.scans_without_news += 1
        else:
            self._take(block, self.clock_s())
        self._gate(self.clock_s())
        if plc.trigger_for is not None and now_s - plc.trigger_since_s > self.settings.to_gate_s:
            plc.trigger_for = None

    def _compose_command(self) -> None:
        plc = self.plc
        part, report = plc.trigger_for, plc.to_report[0] if plc.to_report else None
        # A restarted PLC begins with Trigger Enable low, so that the gateway forgets what was before.
        plc.command = Command(
            trigger_enable=plc.started,
            trigger=part is not None and plc.started,
            clear_error=self.scans % 50 == 0,
            job_id=self.settings.job_id,
            acquisition_id=part.acquisition_id if part else 0,
            acknowledged_id=plc.command.acknowledged_id,
            disposition_id=report.acquisition_id if report else 0,
            disposition=(Disposition.PASSED if report.passed else Disposition.REJECTED) if report else 0,
        )

    def _exchange(self, command: Command) -> Block | None:
        unit = self.settings.unit
        try:
            if not self._client.connected and not self._client.connect():
                return None
            words = encode_command(command)
            if self._client.write_registers(COMMAND_ADDRESS, words, device_id=unit).isError():
                return None
            self.plc.started, self.plc.trigger_low = True, not command.trigger
            if command.disposition_id:
                self.plc.to_report.popleft().reported_s = self.clock_s()
            answer = self._client.read_holding_registers(RESULT_ADDRESS, count=RESULT_WORDS, device_id=unit)
        except (ModbusException, OSError):
            self._client.close()
            return None
        return None if answer.isError() else decode_block(answer.registers)

    def _take(self, block: Block, now_s: float) -> None:
        plc = self.plc
        self.ready = bool(block.bits & Bits.TRIGGER_READY)
        if plc.heartbeat is not None and block.heartbeat != plc.heartbeat:
            plc.heartbeat_moved_s = now_s
        plc.heartbeat = block.heartbeat
        part = plc.trigger_for
        if part is not None and block.trigger_echo == part.acquisition_id:
            part.answered, part.acknowledged = True, bool(block.bits & Bits.TRIGGER_ACK)
            plc.trigger_for = None
        result = block.result
        mine = plc.tracked.get(result.acquisition_id)
        if block.bits & Bits.RESULTS_VALID:
            if mine is not None and mine.verdict is None:
                mine.verdict, mine.verdict_s = result.verdict, now_s
            plc.command = Command(**{**_fields(plc.command), "acknowledged_id": result.acquisition_id})
        else:
            plc.command = Command(**{**_fields(plc.command), "acknowledged_id": 0})

    def _gate(self, now_s: float) -> None:
        for part in self.parts[-200:]:
            if part.passed is None and now_s >= part.at_eye_s + self.settings.to_gate_s:
                known = self.plc.tracked.pop(part.acquisition_id, None) is part
                beating = now_s - self.plc.heartbeat_moved_s <= self.settings.heartbeat_s
                part.passed = known and part.verdict is self.settings.pass_word and beating
                self.reject_sensor += not part.passed
                if known and part.answered:
                    self.plc.to_report.append(part)


def _fields(command: Command) -> dict[str, object]:
    return {name: getattr(command, name) for name in Command.__dataclass_fields__}
