"""The simulated PLC keeps its half of the contract, also when nobody answers."""

from types import SimpleNamespace

from edge_daemon.gateway.registers import decode_command, encode_block
from edge_daemon.gateway.words import Bits, Block, Command, Disposition, ShownResult, Verdict
from tests.plc import Conveyor, ConveyorSettings


class DeafGateway:
    """Takes every write and answers no read, or answers every write but the first so many of a report."""

    connected = True

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.deaf_to_reports = 0

    def write_registers(self, _address: int, words: list[int], device_id: int) -> SimpleNamespace:  # noqa: ARG002
        self.commands.append(decode_command(words))
        lost = bool(self.commands[-1].disposition_id) and self.deaf_to_reports > 0
        self.deaf_to_reports -= lost
        return SimpleNamespace(isError=lambda: lost)

    def read_holding_registers(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(isError=lambda: True)

    def close(self) -> None:
        pass


def test_a_trigger_that_was_given_up_is_seen_low_before_the_next_one_is_high():
    """A part in every cycle: one of them comes in the very cycle in which the last trigger is given up."""
    now = [0.0]
    conveyor = Conveyor(1, ConveyorSettings(pace_s=0.02, to_gate_s=0.5, heartbeat_s=0.4), clock_s=lambda: now[0])
    gateway = conveyor._client = DeafGateway()
    for _ in range(200):
        conveyor._at_photo_eye(now[0])
        conveyor.scan()
        now[0] += 0.02
    raised = [command.acquisition_id for command in gateway.commands if command.trigger]
    assert len(set(raised)) > 4
    for before, after in zip(gateway.commands, gateway.commands[1:], strict=False):
        if before.trigger and after.trigger:
            assert before.acquisition_id == after.acquisition_id, "another id under a Trigger that is still high"
    assert not any(part.passed for part in conveyor.parts)


class AnsweringGateway(DeafGateway):
    """Acknowledges each trigger at once, and calls every part with an even id OK."""

    def read_holding_registers(self, *_: object, **__: object) -> SimpleNamespace:
        command = self.commands[-1]
        number = command.acquisition_id
        block = Block(
            bits=Bits.TRIGGER_ACK | Bits.RESULTS_VALID if number else Bits.NONE,
            trigger_echo=number,
            heartbeat=len(self.commands),
            result=ShownResult(number, Verdict.NOT_OK if number % 2 else Verdict.OK),
        )
        return SimpleNamespace(isError=lambda: False, registers=encode_block(block))


def test_what_became_of_each_part_is_reported_until_it_is_answered_and_once_more_never():
    now = [0.0]
    conveyor = Conveyor(1, ConveyorSettings(pace_s=0.1, to_gate_s=0.5, heartbeat_s=0.4), clock_s=lambda: now[0])
    gateway = conveyor._client = AnsweringGateway()
    gateway.deaf_to_reports = 3
    conveyor.scan()
    for cycle in range(200):
        if cycle % 5 == 0 and cycle < 100:
            conveyor._at_photo_eye(now[0])
        conveyor.scan()
        now[0] += 0.02
    reported = [(c.disposition_id, c.disposition) for c in gateway.commands if c.disposition_id]
    assert reported[:4] == [(1, Disposition.REJECTED)] * 4
    assert reported[3:] == [
        (part.acquisition_id, Disposition.PASSED if part.passed else Disposition.REJECTED) for part in conveyor.parts
    ]
    assert {part.passed for part in conveyor.parts} == {True, False}
    assert all(part.reported_s is not None for part in conveyor.parts)


def test_a_plc_that_was_restarted_reports_nothing_of_the_parts_of_before():
    now = [0.0]
    conveyor = Conveyor(1, ConveyorSettings(pace_s=0.1, to_gate_s=0.5, heartbeat_s=0.4), clock_s=lambda: now[0])
    gateway = conveyor._client = AnsweringGateway()
    conveyor.scan()
    conveyor._at_photo_eye(now[0])
    for _ in range(5):
        conveyor.scan()
    conveyor.restart_plc()
    conveyor._client = gateway
    for _ in range(100):
        now[0] += 0.02
        conveyor.scan()
    assert not any(command.disposition_id for command in gateway.commands)
    assert conveyor.parts[0].passed is False
