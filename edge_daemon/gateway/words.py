"""The words of the dialogue with a PLC: what it commands, what it reads, and the code words on both."""

from dataclasses import dataclass
from enum import IntEnum, IntFlag, StrEnum
from typing import Final

LARGEST_ID: Final = 0xFFFF_FFFF
"""Acquisition Ids are the PLC's: 32 bit, 0 is none. After the largest comes 1."""

NO_SCORE: Final = 0xFFFF


class Verdict(IntEnum):
    """The verdict as a code word of 16 bits.

    Words of the Reed-Muller code RM(1, 4): any two differ in at least eight bits, as each does from all zeros and all
    ones, so that no stuck bit, empty register or broken connection makes an OK. With its bytes swapped OK is none of
    them.
    """

    NONE = 0x0000
    """No result is shown."""
    OK = 0x6996
    """Proven good: the one word that releases a part."""
    NOT_OK = 0x5AA5
    """Judged bad."""
    NOT_DECIDABLE = 0x3CC3
    """Judged, and the answer is that a person must look."""
    NO_VERDICT = 0x33CC
    """The part was not judged, or nothing proves that it was; the reason says why."""
    WITHDRAWN = 0x0FF0
    """Was OK, and was not acknowledged in time."""
    COMMISSIONING_OK = 0x55AA
    """OK of pictures that show no part of this line; only with the commissioning switch. Never releases a part."""


class ErrorCode(IntEnum):
    """Why Trigger Ready is low, or why a trigger was missed. Part of the PLC's contract: numbers never change."""

    NONE = 0
    """Nothing is wrong."""
    DAEMON_SILENT = 1
    """Nothing was heard of the inspection for longer than `status_timeout_ms`: stopped, hung, or not reachable."""
    HEARTBEAT_STANDS = 2
    """The daemon speaks, but nothing goes through its inspection."""
    STATION_ERROR = 3
    """The station is in Error: camera gone, recipe refused, journal failing. `edge-ctl status` says which."""
    STATION_NOT_READY = 4
    """The station takes no trigger now: busy, starting or halted."""
    NOT_PRODUCTION = 5
    """The station is set up, shown master parts or bypassed; its results release nothing."""
    LATE = 6
    """Three parts in a row had no verdict inside their window. Stays until Clear Error."""
    BUFFER_OVERRUN = 7
    """A result came while eight were unacknowledged, and was thrown away. Stays until Clear Error."""
    BUFFER_FULL = 8
    """Eight results wait to be acknowledged."""
    ID_INVALID = 9
    """Trigger with Acquisition Id 0."""
    ID_IN_USE = 10
    """Trigger with the Acquisition Id of a part that is open or whose result was not acknowledged."""
    JOB_UNKNOWN = 11
    """Trigger with a Job id that the gateway's configuration does not name."""
    DAEMON_REFUSED = 12
    """The daemon did not take the trigger; its record says `missed` and why."""
    NO_ANSWER = 13
    """The daemon did not answer the trigger within `answer_ms`; it may have taken it later, for the record only."""
    RECIPE_NOT_PINNED = 14
    """Another recipe set is active than the configuration pins for this job."""
    TOO_MANY_OPEN = 15
    """More parts are under way than the gateway follows."""


class ReasonCode(IntEnum):
    """Why a result is not OK. Part of the PLC's contract: numbers never change."""

    NONE = 0
    """A plain verdict."""
    # The gateway's own.
    WINDOW = 1
    """No verdict inside the window."""
    DAEMON_SILENT = 2
    """The daemon fell silent with the part under way."""
    DAEMON_RESTARTED = 3
    """The daemon started anew with the part under way."""
    RECIPE_SET = 4
    """Judged by another recipe set than was active at the trigger."""
    JOB = 5
    """Judged by a recipe of another name than the job's."""
    VIEWS = 6
    """A view is missing, there twice, or none of the station's."""
    UNPROVEN = 7
    """Called OK, and its own record does not bear it out."""
    NOT_JOURNALED = 8
    """The record is not durable."""
    NOT_PRODUCTION = 9
    """Judged in another mode than production."""
    SIMULATED = 10
    """The picture shows no part of this line."""
    PROVISIONAL = 11
    """The recipe's threshold comes from a few pictures only."""
    HELD_TOO_LONG = 12
    """The OK was not acknowledged in time."""
    # The daemon's, by their words on the wire.
    LATE = 100
    """The daemon's deadline passed."""
    NO_FRAME = 101
    """No picture came."""
    CAMERA = 102
    """The camera failed."""
    FRAME_SIZE = 103
    """The picture has another size than the recipe's, or is grey where that was learned in colour."""
    MISSING_VIEW = 104
    """A view has no picture."""
    SCORE_NOT_FINITE = 105
    """The computation gave no number."""
    BETWEEN_THRESHOLDS = 106
    """Uncertain: a person must look."""
    HEALTH = 107
    """The picture is not one that can be judged: light, focus, contrast, position."""
    JOB_MISMATCH = 108
    """Another product is active than the job names."""
    ENGINE = 109
    """The computation failed."""
    JOURNAL = 110
    """The record did not reach the disk in time."""
    DAEMON_UNPROVEN = 111
    """The daemon refused its own OK."""
    RESTARTED = 112
    """The daemon went down with the part under way."""
    STOPPED = 113
    """The daemon was stopped."""
    MISSED = 114
    """The daemon did not take the trigger."""
    TRIGGER = 115
    """Nothing says which pulse, frame and part belong together."""
    NOT_LOCATED = 116
    """The part was not found in the picture."""
    EXPOSED_LATE = 117
    """The picture was taken so late that it may show another part."""
    GOLDEN_SAMPLE = 118
    """A sample picture of the recipe came out wrong: nothing that was judged meanwhile counts."""
    CAMERA_SETTINGS = 119
    """The camera is not set as it was for the recipe's pictures: exposure, gain, region or the like."""
    OTHER = 199
    """A word that this gateway does not know."""

    @classmethod
    def of_wire(cls, reason: str) -> "ReasonCode":
        """The code of the daemon's word; a newer daemon's unknown one is OTHER."""
        for start, code in (("health_", cls.HEALTH), ("missed_", cls.MISSED), ("trigger_", cls.TRIGGER)):
            if reason.startswith(start):
                return code
        named = {"unproven": cls.DAEMON_UNPROVEN, "camera_clock": cls.TRIGGER, "out_of_step": cls.TRIGGER}
        if reason in named:
            return named[reason]
        known = {code.name.lower(): code for code in cls if cls.LATE <= code < cls.OTHER}
        return known.get(reason, cls.OTHER) if reason else cls.NONE


class Disposition(IntEnum):
    """What really became of a part, as gate and reject sensor saw it. Part of the PLC's contract: numbers never
    change."""

    NONE = 0
    """Nothing to report."""
    PASSED = 1
    """Went on as good."""
    REJECTED = 2
    """Thrown out, and the reject sensor saw it."""
    GATE_FAILURE = 3
    """Should have been thrown out, and the reject sensor did not see it: it may have passed. Stop the line."""
    REMOVED = 4
    """Taken off by hand before the gate."""
    LOST = 5
    """Did not come to the gate."""


class Bits(IntFlag):
    """Status word, gateway to PLC."""

    NONE = 0
    ONLINE = 1 << 0
    """The gateway hears the daemon and the PLC, and was not set offline."""
    TRIGGER_READY = 1 << 1
    """A trigger would be taken now."""
    TRIGGER_ACK = 1 << 2
    """The trigger of the echoed id was taken; stays until Trigger is low."""
    MISSED_ACQUISITION = 1 << 3
    """The trigger of the echoed id was not taken; stays until Trigger is low."""
    SYSTEM_BUSY = 1 << 4
    """At least one part is under way."""
    RESULTS_VALID = 1 << 5
    """The result in this block is one."""
    BUFFER_OVERRUN = 1 << 6
    """A result was thrown away; stays until Clear Error."""
    ERROR = 1 << 7
    """`error_code` says what is wrong."""
    COMMISSIONING = 1 << 8
    """The commissioning switch is on: the word COMMISSIONING_OK may appear."""


class CommandBits(IntFlag):
    """Command word, PLC to gateway."""

    NONE = 0
    TRIGGER_ENABLE = 1 << 0
    """The PLC wants parts judged; low forgets everything that is open."""
    TRIGGER = 1 << 1
    """A part is there; held until the answer."""
    CLEAR_ERROR = 1 << 2
    """Its rise ends errors that stay."""
    SET_OFFLINE = 1 << 3
    """Forget everything that is open, take nothing."""


class Station(StrEnum):
    """States of OPC 40100-1 as the daemon names them, in the order of their numbers in the block (from 1)."""

    PREOPERATIONAL = "Preoperational"
    HALTED = "Halted"
    ERROR = "Error"
    INITIALIZED = "Initialized"
    READY = "Ready"
    SINGLE_EXECUTION = "SingleExecution"
    CONTINUOUS_EXECUTION = "ContinuousExecution"


@dataclass(frozen=True, slots=True)
class Command:
    """What the PLC writes, all of it in one request.

    acquisition_id: of the part that Trigger is for; acknowledged_id: Inspection Results Ack, the id of the result that
    the PLC has taken, 0 for none; job_id: number of the product, 0 where the PLC leaves it to the operator;
    disposition_id, disposition: of which part the PLC reports what (`Disposition`), 0 for none: nobody has to.
    """

    trigger_enable: bool = False
    trigger: bool = False
    clear_error: bool = False
    set_offline: bool = False
    job_id: int = 0
    acquisition_id: int = 0
    acknowledged_id: int = 0
    disposition_id: int = 0
    disposition: int = 0


@dataclass(frozen=True, slots=True)
class ShownResult:
    """The result that the PLC may read. evaluation: as in OPC 40001-101; score_permille: worst view's score in
    thousandths of its threshold, at most 65534, 65535 where there is none."""

    acquisition_id: int = 0
    verdict: Verdict = Verdict.NONE
    reason: ReasonCode = ReasonCode.NONE
    evaluation: int = 0
    score_permille: int = NO_SCORE
    job_id: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """What the PLC reads, all of it in one request. trigger_echo: id of the trigger that Trigger Ack or Missed
    Acquisition speak of; missed_reason: why that one was missed; station_state: 1 to 7, 0 when unknown."""

    bits: Bits = Bits.NONE
    error: ErrorCode = ErrorCode.NONE
    trigger_echo: int = 0
    missed_reason: ErrorCode = ErrorCode.NONE
    heartbeat: int = 0
    station_state: int = 0
    unacknowledged: int = 0
    open_parts: int = 0
    result: ShownResult = ShownResult()
