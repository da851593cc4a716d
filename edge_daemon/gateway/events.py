"""What happens to the dialogue with a PLC, and what it wants done."""

from dataclasses import dataclass
from typing import Literal

from edge_daemon.gateway.words import Command, ReasonCode, Verdict
from edge_daemon.wire.messages import Inspection, Status, TriggerReply


@dataclass(frozen=True, slots=True)
class PlcWrote:
    """The PLC wrote its command block. Only that counts as its sign of life: anybody may read."""

    command: Command


@dataclass(frozen=True, slots=True)
class StatusCame:
    """The daemon told the state of a station."""

    status: Status


@dataclass(frozen=True, slots=True)
class TriggerAnswered:
    """The daemon answered a trigger; None when it did not, or was not there to be asked."""

    trigger_id: str
    reply: TriggerReply | None


@dataclass(frozen=True, slots=True)
class ResultCame:
    """A record arrived. replayed: it comes from the journal and not from the inspection."""

    inspection: Inspection
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class PartReported:
    """Somebody who may say so reports what became of a part. No sign of life of the PLC, and no command."""

    acquisition_id: int
    disposition: int


Event = PlcWrote | StatusCame | TriggerAnswered | ResultCame | PartReported | Tick


@dataclass(frozen=True, slots=True)
class AskDaemon:
    """Send this trigger, now or never. `trigger_id` never occurs twice, whatever the PLC's ids do."""

    trigger_id: str
    job: str | None


@dataclass(frozen=True, slots=True)
class Note:
    """For the log: what happened to which part."""

    text: str


@dataclass(frozen=True, slots=True)
class Tell:
    """For the record of a part: what the PLC took of its verdict (`Delivery`), or what became of the part itself (a
    `Disposition`). Each is told once. result_id: empty where the daemon never said it; verdict, reason: as last shown;
    after_ns: from the trigger."""

    kind: Literal["delivery", "disposition"]
    what: str
    acquisition_id: int
    trigger_id: str
    result_id: str
    verdict: Verdict
    reason: ReasonCode
    after_ns: int

    @property
    def amendment_id(self) -> str:
        """The same whenever it is told."""
        return f"{self.trigger_id}-{self.kind}-{self.what}"


Effect = AskDaemon | Note | Tell
