"""What proves an OK: everything that may speak against a part's record before it opens a gate.

Both `foreign` and `objection` say what they compare; whatever they do not know is not OK.
"""

import math
from dataclasses import dataclass, field

from edge_daemon.gateway.events import ResultCame
from edge_daemon.gateway.words import NO_SCORE, ReasonCode
from edge_daemon.wire.codec import contradiction
from edge_daemon.wire.messages import Inspection


@dataclass(frozen=True, slots=True)
class Job:
    """A product that the PLC can name. name: what its recipes are called; recipe_set: digest of the one set that may
    judge it, None for whatever set of that name the operator activates."""

    name: str
    recipe_set: str | None = None


@dataclass(frozen=True, slots=True)
class DialogueSettings:
    """What the plant states. All times are measured with this PC's monotonic clock, nanoseconds.

    answer_ns:            from the trigger to the daemon's answer; what is taken up later may show another part
    window_ns:            from the trigger to the verdict; OK is never set later
    hold_ns:              from the trigger on, how long an OK may stand; afterwards it is WITHDRAWN
    status_timeout_ns:    silence after which the daemon counts as dead
    heartbeat_timeout_ns: standstill of the inspecting path after which Trigger Ready drops
    plc_timeout_ns:       silence after which the PLC counts as gone, and everything open is forgotten
    jobs:                 by Job id
    """

    station: str
    answer_ns: int
    window_ns: int
    hold_ns: int
    status_timeout_ns: int
    heartbeat_timeout_ns: int
    plc_timeout_ns: int
    jobs: dict[int, Job] = field(default_factory=dict)
    accept_provisional: bool = False
    commissioning: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.window_ns <= self.hold_ns:
            raise ValueError("an OK must be able to stand at least until the end of its window")
        if not 0 < self.answer_ns <= self.window_ns:
            raise ValueError("the answer must come within the window")
        if min(self.status_timeout_ns, self.heartbeat_timeout_ns, self.plc_timeout_ns) <= 0:
            raise ValueError("a timeout must be positive")


@dataclass(slots=True)
class OpenPart:
    """A trigger under way, and what was true when it came. raised_ns: monotonic; after_seq: the daemon's last record
    before it; views, cameras: those of the station; result_id and attempt: of the daemon's answer, None before it."""

    acquisition_id: int
    trigger_id: str
    job_id: int
    job: Job | None
    boot: tuple[int, str]
    recipe_set: str
    views: tuple[str, ...]
    cameras: frozenset[str]
    after_seq: int
    raised_ns: int
    result_id: str | None = None
    attempt: int | None = None
    early: ResultCame | None = None


def same_trigger(part: OpenPart, inspection: Inspection) -> bool:
    """Whether a record names this part's trigger."""
    return inspection.trigger_id == part.trigger_id


def foreign(part: OpenPart, came: ResultCame, station: str) -> str | None:
    """Why a record is not the answer to this very trigger, or None. Such a record changes nothing: the right one may
    still come."""
    record = came.inspection
    if came.replayed:
        return "it is a replay"
    if record.station != station:
        return "it is another station's"
    if (record.boot, record.boot_id) != part.boot:
        return "it is of another boot of the daemon"
    if record.seq <= part.after_seq:
        return "it is older than the trigger"
    if not record.result_id or record.result_id != part.result_id or record.attempt != part.attempt:
        return "its result id is not the one that the trigger was promised"
    return None


def objection(part: OpenPart, record: Inspection, settings: DialogueSettings, now_ns: int) -> ReasonCode:
    """Why this part's own record does not release it, NONE when nothing speaks against it. Only for an OK."""
    if not inside_window(part, settings, now_ns):
        return ReasonCode.WINDOW
    if not record.journaled:
        return ReasonCode.NOT_JOURNALED
    if not bears_itself_out(record):
        return ReasonCode.UNPROVEN
    if not same_recipes(part, record):
        return ReasonCode.RECIPE_SET
    if part.job is not None and any(view.recipe is None or view.recipe.name != part.job.name for view in record.views):
        return ReasonCode.JOB
    if not each_view_once(part, record):
        return ReasonCode.VIEWS
    if record.provisional and not settings.accept_provisional:
        return ReasonCode.PROVISIONAL
    if record.mode != "production":
        return ReasonCode.NOT_PRODUCTION
    return ReasonCode.SIMULATED if record.simulated else ReasonCode.NONE


def inside_window(part: OpenPart, settings: DialogueSettings, now_ns: int) -> bool:
    """Measured here, with the clock that saw the trigger; what the record says of its own times is not asked."""
    return 0 <= now_ns - part.raised_ns <= settings.window_ns


def answered_in_time(part: OpenPart, settings: DialogueSettings, now_ns: int) -> bool:
    """Whether an answer that comes now is one to a trigger that was taken up while its part lay there."""
    return 0 <= now_ns - part.raised_ns <= settings.answer_ns


def same_recipes(part: OpenPart, record: Inspection) -> bool:
    """Judged by the set that was active at the trigger and, where the job pins one, by that one."""
    pinned = part.job.recipe_set if part.job is not None else None
    same = bool(record.recipe_set) and record.recipe_set == part.recipe_set
    return same and (pinned is None or record.recipe_set == pinned)


def each_view_once(part: OpenPart, record: Inspection) -> bool:
    """Whether the record has every view that the station had at the trigger, and each once. A camera may take several;
    a daemon that does not name its views proves nothing."""
    named = sorted(view.view for view in record.views)
    return (
        named == sorted(part.views)
        and len(set(named)) == len(named) > 0
        and all(named)
        and {view.camera for view in record.views} == part.cameras
    )


def bears_itself_out(record: Inspection) -> bool:
    """Whether an OK proves itself: what the wire asks of it, asked again here, and finite numbers throughout."""
    return (
        record.evaluation == "OK"
        and contradiction(record) is None
        and all(
            _finite(view.score, view.max_distance, view.threshold) and not view.reason and view.recipe is not None
            for view in record.views
        )
    )


def _finite(*values: float | None) -> bool:
    return all(value is not None and math.isfinite(value) and value >= 0 for value in values)


def score_permille(record: Inspection) -> int:
    shares = [
        view.score / view.threshold
        for view in record.views
        if view.score is not None and view.threshold is not None and view.threshold > 0
    ]
    if len(shares) != len(record.views) or not shares or not _finite(*shares):
        return NO_SCORE
    return min(math.ceil(1000 * max(shares)), NO_SCORE - 1)
