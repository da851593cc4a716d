"""What goes into the journal and what comes out of it."""

from dataclasses import dataclass
from typing import Any, Literal

from edge_daemon.errors import JournalError
from edge_daemon.wire.messages import Inspection, Mode

AmendmentKind = Literal["delivery", "disposition", "part_id", "journal"]


class OutcomeTwiceError(JournalError):
    """A trigger has its outcome already: the first one stands, this one is a diagnostic."""


@dataclass(frozen=True, slots=True)
class Intent:
    """An accepted trigger, with what a record needs if the daemon dies before the outcome.

    accepted_utc: ISO 8601 UTC of the trigger's arrival; utc_uncertainty_us and clock_quality as in `Times`.
    """

    station: str
    result_id: str
    trigger_id: str
    part_id: str | None = None
    attempt: int = 1
    mode: Mode = "production"
    recipe_set: str = ""
    accepted_utc: str = ""
    utc_uncertainty_us: int = 0
    clock_quality: str = "unknown"
    deadline_ms: float = 0.0
    job: str | None = None
    provisional: bool = False
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Boot:
    """What `open` found. `last_seq`: by station, of the boot before. `unfinished`: intents without outcome, oldest
    first. `alarm`: what an operator must be told about the file, or empty."""

    number: int
    boot_id: str
    last_seq: dict[str, int]
    previous_boot: int | None
    previous_boot_id: str | None
    previous_closed: bool
    unfinished: list[Intent]
    alarm: str


@dataclass(frozen=True, slots=True)
class KnownBoot:
    """A boot that this journal has records of, or could have."""

    number: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Concluded:
    """The end of one `conclude`: what may be told to the world, and its bytes.

    Without `error` the record is durable. With it, `inspection` is the withdrawn one, `journaled` False. With an
    OutcomeTwiceError nothing may be told at all.
    """

    inspection: Inspection
    header: bytes
    error: JournalError | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """The latest attempt of a trigger id. `boot` tells an id of this boot from one of a PLC that started anew."""

    attempt: int
    boot: int
    result_id: str


@dataclass(frozen=True, slots=True)
class Amendment:
    """A later addition to a record."""

    kind: str
    utc: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Later:
    """An amendment in the order of the journal. position: its link, `Head` as text."""

    position: str
    station: str
    result_id: str
    amendment: Amendment


@dataclass(frozen=True, slots=True)
class Laters:
    """Amendments in order. begun_anew: the position asked from is not of this journal, and these begin with the
    oldest."""

    entries: tuple[Later, ...]
    more: bool
    begun_anew: bool


Fate = Literal["recorded", "repeated", "pending", "unknown_result", "amendment_id_reused", "too_many"]


@dataclass(frozen=True, slots=True)
class Report:
    """An amendment that comes from outside, perhaps more than once. result_id: empty where the reporter was never told
    it; then the latest attempt of the trigger is meant. amendment_id: also in `body`; the same report, the same id."""

    station: str
    trigger_id: str
    result_id: str
    kind: AmendmentKind
    amendment_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reported:
    """What became of a report. `recorded`: by this very call; `repeated`: it was there already; with any other fate
    nothing was written. header: of its record, as the wire told it; empty where there is none."""

    fate: Fate
    result_id: str = ""
    header: bytes = b""
    error: JournalError | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One record as it went out: `header` is what the wire said, also where that superseded what was committed."""

    seq: int
    result_id: str
    header: bytes
    amendments: tuple[Amendment, ...] = ()


@dataclass(frozen=True, slots=True)
class OldRecord:
    """What retention needs to know of a record. utc: of the trigger's arrival, ISO 8601."""

    number: int
    station: str
    utc: str
    evaluation: str


@dataclass(frozen=True, slots=True)
class Replay:
    """Records in order, the ranges that no longer exist, and where to go on (None at the end of what was asked)."""

    entries: tuple[Entry, ...]
    gone: tuple[tuple[int, int], ...]
    next_seq: int | None


@dataclass(frozen=True, slots=True)
class JournalStats:
    """failing: the last commit's error, empty when it succeeded: while it is not, no trigger can be accepted.
    owed: withdrawn records that wait for the disk. queue_limit: past it intents are refused, outcomes withdrawn."""

    queued: int
    queue_limit: int
    owed: int
    failing: str
    commits: int
    commit_failures: int
    commit_p50_ms: float
    commit_p99_ms: float
    records: int
    second_outcomes: int
    unencodable: int
