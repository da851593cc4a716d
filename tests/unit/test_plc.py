"""The simulated PLC keeps its half of the contract, also when nobody answers."""

from types import SimpleNamespace

from edge_daemon.gateway.registers import decode_command
from edge_daemon.gateway.words import Command
from tests.plc import Conveyor, ConveyorSettings


class DeafGateway:
    """Takes every write and answers no read."""

    connected = True

    def __init__(self) -> None:
        self.commands: list[Command] = []

    def write_registers(self, _address: int, words: list[int], device_id: int) -> SimpleNamespace:  # noqa: ARG002
        self.commands.append(decode_command(words))
        return SimpleNamespace(isError=lambda: False)

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
