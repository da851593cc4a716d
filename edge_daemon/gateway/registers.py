"""The dialogue's words in Modbus registers: two blocks, each written or read in one request, high word first.

`COMMANDS` and `RESULTS` are the layout; encoding, decoding and the page for the PLC's programmer come from them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from edge_daemon.gateway.words import Bits, Block, Command, CommandBits, ErrorCode, ReasonCode, ShownResult, Verdict

LAYOUT_VERSION: Final = 1
COMMAND_ADDRESS: Final = 0
RESULT_ADDRESS: Final = 100


@dataclass(frozen=True, slots=True)
class Register:
    """One value: its name, how many registers of 16 bits it takes, and what it means."""

    name: str
    words: int
    meaning: str


COMMANDS: Final = (
    Register("command", 1, "bits, see below"),
    Register("job_id", 1, "Job id: number of the product, 0 where the operator chooses it"),
    Register("acquisition_id", 2, "Acquisition Id: your number of the part that Trigger is for; 1 to 4294967295"),
    Register("results_ack", 2, "Inspection Results Ack: id of the result that you have taken; 0 for none"),
)
"""PLC to gateway, from `COMMAND_ADDRESS`."""

REPORTS: Final = (
    Register("disposition_id", 2, "Acquisition Id of the part that you report on; 0 for none"),
    Register("disposition", 1, "what became of it, see below; 0 for nothing to report"),
)
"""PLC to gateway, right after the commands, in the same request. A program that knows nothing of it leaves it out."""

RESULTS: Final = (
    Register("layout", 1, f"always {LAYOUT_VERSION}; anything else is not this map"),
    Register("status", 1, "bits, see below"),
    Register("error_code", 1, "Error Code: why Trigger Ready is low; 0 when nothing is wrong"),
    Register("state", 1, "state of OPC 40100-1, 1 to 7; 0 unknown"),
    Register("trigger_echo", 2, "Acquisition Id that Trigger Ack or Missed Acquisition speak of; 0 otherwise"),
    Register("missed_reason", 1, "Error Code of a missed trigger"),
    Register("open_parts", 1, "parts under way"),
    Register("heartbeat", 2, "moves only when something went all the way through the inspection; see your obligations"),
    Register("unacknowledged", 1, "results that wait for Inspection Results Ack, the shown one included; at most 8"),
    Register("result_id", 2, "Acquisition Id of the shown result; 0 for none"),
    Register("verdict", 1, "code word, see below"),
    Register("evaluation", 1, "OPC 40001-101: 0 Undefined, 1 OK, 2 NotOK, 3 NotDecidable; for display only"),
    Register("reason", 1, "why the verdict is not OK, see below"),
    Register("score_permille", 1, "worst view's score in thousandths of its threshold; 65535 for none"),
    Register("result_job_id", 1, "Job id that came with the trigger"),
    Register("result_id_again", 2, "the same as result_id; if the two differ, read again"),
)
"""Gateway to PLC, from `RESULT_ADDRESS`."""

COMMAND_WORDS: Final = sum(register.words for register in COMMANDS)
REPORT_ADDRESS: Final = COMMAND_ADDRESS + COMMAND_WORDS
REPORT_WORDS: Final = sum(register.words for register in REPORTS)
COMMAND_LENGTHS: Final = (COMMAND_WORDS, COMMAND_WORDS + REPORT_WORDS)
"""The command block comes alone, or with the report."""
RESULT_WORDS: Final = sum(register.words for register in RESULTS)


def placed(layout: Sequence[Register], address: int) -> Iterator[tuple[int, Register]]:
    """Each value with its address."""
    for register in layout:
        yield address, register
        address += register.words


def encode_block(block: Block) -> list[int]:
    """RESULT_WORDS registers."""
    result = block.result
    return _encode(
        RESULTS,
        (
            LAYOUT_VERSION,
            block.bits,
            block.error,
            block.station_state,
            block.trigger_echo,
            block.missed_reason,
            block.open_parts,
            block.heartbeat,
            block.unacknowledged,
            result.acquisition_id,
            result.verdict,
            result.evaluation,
            result.reason,
            result.score_permille,
            result.job_id,
            result.acquisition_id,
        ),
    )


def decode_block(words: Sequence[int]) -> Block | None:
    """Inverse of `encode_block`, as a PLC reads it: None when it is torn or of another layout."""
    if len(words) != RESULT_WORDS:
        return None
    values = _decode(RESULTS, words)
    (layout, bits, error, state, echo, missed, open_parts, heartbeat, waiting, first, *result, last) = values
    verdict, evaluation, reason, score_permille, job_id = result
    if layout != LAYOUT_VERSION or first != last:
        return None
    try:
        shown = ShownResult(first, Verdict(verdict), ReasonCode(reason), evaluation, score_permille, job_id)
        return Block(
            Bits(bits), ErrorCode(error), echo, ErrorCode(missed), heartbeat, state, waiting, open_parts, shown
        )
    except ValueError:
        return None


def encode_command(command: Command) -> list[int]:
    """COMMAND_WORDS registers, and REPORT_WORDS more where the PLC reports on a part."""
    bits = CommandBits.NONE
    bits |= CommandBits.TRIGGER_ENABLE if command.trigger_enable else CommandBits.NONE
    bits |= CommandBits.TRIGGER if command.trigger else CommandBits.NONE
    bits |= CommandBits.CLEAR_ERROR if command.clear_error else CommandBits.NONE
    bits |= CommandBits.SET_OFFLINE if command.set_offline else CommandBits.NONE
    words = _encode(COMMANDS, (bits, command.job_id, command.acquisition_id, command.acknowledged_id))
    if command.disposition_id or command.disposition:
        words += _encode(REPORTS, (command.disposition_id, command.disposition))
    return words


def decode_command(words: Sequence[int]) -> Command:
    """Inverse of `encode_command`; bits without a meaning are passed over. words: as many as COMMAND_LENGTHS says."""
    bits, job_id, acquisition_id, acknowledged_id = _decode(COMMANDS, words[:COMMAND_WORDS])
    report = words[COMMAND_WORDS:]
    disposition_id, disposition = _decode(REPORTS, report) if report else (0, 0)
    return Command(
        trigger_enable=bool(bits & CommandBits.TRIGGER_ENABLE),
        trigger=bool(bits & CommandBits.TRIGGER),
        clear_error=bool(bits & CommandBits.CLEAR_ERROR),
        set_offline=bool(bits & CommandBits.SET_OFFLINE),
        job_id=job_id,
        acquisition_id=acquisition_id,
        acknowledged_id=acknowledged_id,
        disposition_id=disposition_id,
        disposition=disposition,
    )


def _encode(layout: Sequence[Register], values: Sequence[int]) -> list[int]:
    words: list[int] = []
    for register, value in zip(layout, values, strict=True):
        # A count that outgrows its register stays at the largest: it must not look like a small one.
        value = min(int(value), (1 << 16 * register.words) - 1)
        words += [value >> 16 * (register.words - 1 - place) & 0xFFFF for place in range(register.words)]
    return words


def _decode(layout: Sequence[Register], words: Sequence[int]) -> list[int]:
    values, at = [], 0
    for register in layout:
        value = 0
        for word in words[at : at + register.words]:
            value = value << 16 | word
        values.append(value)
        at += register.words
    return values
