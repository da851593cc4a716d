"""The messages of the daemon, schema by schema. Meaning never changes within a version; readers
ignore fields they do not know.

A message is ZeroMQ multipart: [topic, header, blob...]; the header is UTF-8 JSON, at most 8 KiB.
"""

from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

RESULT_SCHEMA: Final = "edge-daemon/result/1"
IMAGE_SCHEMA: Final = "edge-daemon/image/1"
STATUS_SCHEMA: Final = "edge-daemon/status/1"
EVENT_SCHEMA: Final = "edge-daemon/event/1"
TRIGGER_SCHEMA: Final = "edge-daemon/trigger/1"
CONTROL_SCHEMA: Final = "edge-daemon/control/1"
REPLAY_SCHEMA: Final = "edge-daemon/replay/1"
AMENDMENT_SCHEMA: Final = "edge-daemon/amendment/1"

MAX_HEADER_BYTES = 8192

EvaluationLabel = Literal["Undefined", "OK", "NotOK", "NotDecidable"]
Mode = Literal["production", "setup", "master_part", "bypass"]
EventKind = Literal["recipe", "camera", "alarm", "audit"]
RequestId = Annotated[str, Field(max_length=64)]
Delivery = Literal["acknowledged", "late", "not_fetched", "overrun", "abandoned", "missed"]
Disposition = Literal["passed", "rejected", "gate_failure", "removed", "lost"]
# What the PLC was shown of a part, as the gateway's code words are called.
ShownWord = Literal["NONE", "OK", "NOT_OK", "NOT_DECIDABLE", "NO_VERDICT", "WITHDRAWN", "COMMISSIONING_OK"]


class Message(BaseModel):
    """Base of everything on the wire: frozen, unknown fields of newer writers ignored, NaN and infinity as null."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        ser_json_inf_nan="null",
        populate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )


class BoxMessage(Message):
    """A region whose anomaly map is at or above the pixel threshold."""

    x: int
    """Left edge, full-frame pixels."""
    y: int
    """Top edge, full-frame pixels."""
    w: int
    """Width, full-frame pixels."""
    h: int
    """Height, full-frame pixels."""
    peak: float
    """Largest anomaly map value inside, in raw distance units."""
    area: float
    """Full-frame pixels at or above the pixel threshold."""
    area_mm2: float | None = None
    """The same in mm², when the recipe has a scale."""
    label: str | None = None
    """Name of the defect, when the recipe can name it."""
    confidence: float | None = None
    """Confidence of the name, 0 to 1."""


class RecipeRef(Message):
    """Which recipe judged."""

    name: str
    version: str
    digest: str
    """SHA-256 of the recipe, hexadecimal."""


class ViewMessage(Message):
    """What one view's frame gave."""

    camera: str
    view: str = ""
    """Name of the view: the camera's, or `top#2` for the second exposure of `top`, or what the configuration says."""
    frame_ids: tuple[int, ...] = ()
    """The camera's own counters of the frames judged; empty when there was none."""
    evaluation: EvaluationLabel
    reason: str = ""
    score: float | None = None
    """Image score in raw units; null when not judged or not finite."""
    max_distance: float | None = None
    """Largest patch distance, before re-weighting."""
    threshold: float | None = None
    """OK up to and including this score."""
    threshold_upper: float | None = None
    """NotOK above this score; between the two NotDecidable."""
    boxes: tuple[BoxMessage, ...] = ()
    """Largest peaks first, as many as fit the header."""
    boxes_total: int = 0
    """How many boxes there were."""
    boxes_below_minimum: int = 0
    """Boxes besides these, left out because they are smaller than the recipe's smallest defect that counts."""
    map_kind: str = ""
    """`exact`, or `upper_bound` where values outside boxes are bounds."""
    health: dict[str, float | None] = Field(default_factory=dict)
    """Image health measures by name; null when not finite."""
    recipe: RecipeRef | None = None
    provider: str = ""
    """The onnxruntime execution provider that ran."""
    precision: str = ""
    """fp32, fp16 or int8."""


class Provenance(Message):
    """What judged: software and settings."""

    software: str
    config_digest: str
    camera_settings_digest: str = ""


class Times(Message):
    """Monotonic offsets in microseconds from the trigger's arrival, and one UTC anchor for it."""

    utc: str
    """ISO 8601 UTC of the trigger's arrival."""
    utc_uncertainty_us: int
    clock_quality: str
    """`ntp`, `ptp`, `unsynchronised` or `unknown`."""
    frame_us: int | None = None
    """Last frame complete."""
    model_us: int | None = None
    """Handed to the model."""
    features_us: int | None = None
    """Features computed."""
    judged_us: int | None = None
    """Verdict known."""


class Part(Message):
    """Describes one blob that follows the header."""

    kind: str
    media_type: str
    camera: str = ""


class Inspection(Message):
    """One record per trigger: what came of it. Topic `result/<station>/`."""

    schema_: Annotated[Literal["edge-daemon/result/1"], Field(alias="schema")] = RESULT_SCHEMA
    line: str
    station: str
    boot: int
    """Number of the daemon's boot on this PC, counted by the journal."""
    boot_id: str
    """Random id of that boot."""
    seq: int
    """1, 2, 3, … without a gap per station and boot."""
    result_id: str
    trigger_id: str
    part_id: str | None = None
    attempt: int = 1
    mode: Mode = "production"
    provisional: bool = False
    """True when any recipe's threshold is provisional."""
    simulated: bool = False
    """True when any frame came from a simulated or replayed camera."""
    evaluation: EvaluationLabel
    result_state: Literal["Completed", "Aborted", "Failed"]
    reason: str = ""
    recipe_set: str = ""
    """Digest of the set of recipes that the trigger was bound to."""
    views: tuple[ViewMessage, ...] = ()
    provenance: Provenance
    times: Times
    deadline_ms: float
    late: bool = False
    journaled: bool = True
    image_ref: str | None = None
    """Topic and id under which pictures of this inspection go out, when they do."""
    parts: tuple[Part, ...] = ()
    """What the blobs after the header are, in order."""


class Image(Message):
    """Pictures of one inspection, one message per view. Topic `image/<station>/`, on a socket of their own:
    never waited for, dropped first when the PC or a reader is slow."""

    schema_: Annotated[Literal["edge-daemon/image/1"], Field(alias="schema")] = IMAGE_SCHEMA
    line: str
    station: str
    boot: int
    boot_id: str
    result_id: str
    """The inspection it belongs to; the verdict is there, not here."""
    trigger_id: str = ""
    camera: str = ""
    view: str = ""
    """Name of the view, as in the result."""
    frame_size: tuple[int, int] | None = None
    """Width and height of the full frame that boxes refer to."""
    map_kind: str = ""
    """`exact`, or `upper_bound` where values outside boxes are bounds."""
    heat_range: tuple[float | None, float | None] | None = None
    """Anomaly map values shown as the lightest and the strongest heat, raw distance units."""
    details: dict[str, Any] = Field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    """What the blobs after the header are, in order."""


class Counters(Message):
    """The invariant of a station: accepted = ok + not_ok + not_decidable + failed + missed + in_flight."""

    accepted: int = 0
    ok: int = 0
    not_ok: int = 0
    not_decidable: int = 0
    failed: int = 0
    missed: int = 0
    in_flight: int = 0

    @property
    def balanced(self) -> bool:
        """Whether the invariant holds."""
        done = self.ok + self.not_ok + self.not_decidable + self.failed + self.missed
        return self.accepted == done + self.in_flight


class CameraStatus(Message):
    """One camera of a station."""

    camera: str
    connected: bool
    frames: int = 0
    """Frames that arrived in this boot."""
    inspected: int = 0
    """Frames that went all the way through the inspecting path in this boot, golden samples included. Only that
    path advances it, so a number that stands still means that nothing is being inspected."""
    message: str = ""
    """Why it is not connected, or what is wrong."""


class Status(Message):
    """State of a station, or of the daemon itself (station `daemon`). Topic `status/<station>/`, on change and at
    least ten times a second."""

    schema_: Annotated[Literal["edge-daemon/status/1"], Field(alias="schema")] = STATUS_SCHEMA
    line: str
    station: str
    boot: int
    boot_id: str
    utc: str
    uptime_ms: float
    """Since the start of the daemon, monotonic."""
    state: str
    """State of OPC 40100-1: Preoperational, Halted, Error, Initialized, Ready, SingleExecution, ContinuousExecution."""
    trigger_ready: bool = False
    """Whether a trigger would be accepted now."""
    mode: Mode | None = None
    recipe_set: str = ""
    """Digest of the active set of recipes."""
    counters: Counters | None = None
    """Counts of this boot."""
    last_seq: int = 0
    """Sequence number of the last result of this boot; 0 before the first."""
    previous_boot: int | None = None
    """Number of the boot before, null on the first."""
    previous_last_seq: int = 0
    """Last sequence number of this station in the boot before, so that no tail of it is lost unseen."""
    journal_head: str = ""
    """Number and hash of the newest entry of the journal, `4711:9f86…`: kept outside the PC, it shows later whether
    the journal was changed (`edge-daemon journal verify --head`)."""
    cameras: tuple[CameraStatus, ...] = ()
    views: tuple[str, ...] = ()
    """Names of the station's views: every result that was judged has each of them, once."""
    alarms: tuple[str, ...] = ()
    details: dict[str, Any] = Field(default_factory=dict)
    """Measures for people and dashboards: queues, thread pools, providers, commit times."""


class Event(Message):
    """Something that happened. Topic `event/<kind>/`."""

    schema_: Annotated[Literal["edge-daemon/event/1"], Field(alias="schema")] = EVENT_SCHEMA
    line: str
    station: str = ""
    """Empty when it concerns the whole daemon."""
    boot: int
    boot_id: str
    kind: EventKind
    name: str
    """Short and stable, for programs: `camera_lost`, `recipe_activated`, `journal_full`."""
    severity: Literal["info", "warning", "error"] = "info"
    utc: str
    message: str
    """For people: what happened, to what, what to do."""
    details: dict[str, Any] = Field(default_factory=dict)


class TriggerRequest(Message):
    """Ask for one inspection of one part at one station."""

    schema_: Annotated[Literal["edge-daemon/trigger/1"], Field(alias="schema")] = TRIGGER_SCHEMA
    request_id: RequestId = ""
    """Repeat a request with the same id after a lost answer: the first answer comes again and no second part is
    inspected. Empty: every request is a trigger of its own."""
    station: Annotated[str, Field(min_length=1, max_length=64)]
    trigger_id: Annotated[str, Field(min_length=1, max_length=64)]
    """The asker's own number for this part, as text."""
    part_id: Annotated[str, Field(max_length=128)] | None = None
    job: Annotated[str, Field(max_length=128)] | None = None
    """What the asker believes to be inspected; a job that does not match the active recipes is NotDecidable."""
    mode: Mode | None = None
    """Null for the mode of the station."""


class TriggerReply(Message):
    """Whether the trigger was accepted. The verdict comes on the results socket, accepted or not."""

    schema_: Annotated[Literal["edge-daemon/trigger/1"], Field(alias="schema")] = TRIGGER_SCHEMA
    request_id: str = ""
    station: str = ""
    trigger_id: str = ""
    accepted: bool
    result_id: str | None = None
    """Under which the one result of this trigger goes out; also set for a missed one."""
    attempt: int | None = None
    reason: str = ""
    """Why not accepted: `missed_busy`, `missed_not_ready`, `missed_duplicate`, `journal`, `stopped`; or, without a
    result because it never was a trigger: `malformed`, `unknown_station`, `busy`, `request_id_reused`, `internal`."""
    message: str = ""
    """The same for people."""


class ControlRequest(Message):
    """A command of an operator or engineer."""

    schema_: Annotated[Literal["edge-daemon/control/1"], Field(alias="schema")] = CONTROL_SCHEMA
    request_id: Annotated[RequestId, Field(min_length=1)]
    """A repeated id gets the first answer, and the command runs once."""
    command: Annotated[str, Field(min_length=1, max_length=64)]
    args: dict[str, Any] = Field(default_factory=dict)


class ControlFault(Message):
    """Why a command was refused or failed."""

    code: str
    """For programs, stable: `malformed`, `unknown_command`, `busy`, `request_id_reused`, `internal`, ..."""
    message: str
    """For people: what happened, to what, what to do."""


class ControlReply(Message):
    """Answer to a command: a result, an error, or the id of a job that goes on."""

    schema_: Annotated[Literal["edge-daemon/control/1"], Field(alias="schema")] = CONTROL_SCHEMA
    request_id: str = ""
    ok: bool
    result: dict[str, Any] | None = None
    error: ControlFault | None = None
    job: str | None = None
    """Set when the command goes on; ask for it with the command `job`."""


class JobState(Message):
    """Result of the command `job`."""

    job: str
    command: str = ""
    state: Literal["running", "done", "failed"]
    progress: float | None = None
    """0 to 1, null when unknown."""
    result: dict[str, Any] | None = None
    error: ControlFault | None = None


class ReplayRequest(Message):
    """Ask for records of one station and boot that the journal holds, in order."""

    schema_: Annotated[Literal["edge-daemon/replay/1"], Field(alias="schema")] = REPLAY_SCHEMA
    request_id: RequestId = ""
    station: Annotated[str, Field(max_length=64)] = ""
    """Empty: no records, only which stations there are."""
    boot: Annotated[int, Field(ge=0, le=2**62)] = 0
    """Number of the boot; 0 for none: the answer says in `next_boot` which is the oldest."""
    boot_id: Annotated[str, Field(max_length=64)] = ""
    """Its random id, where it is known: tells a boot of this journal from one with the same number of another."""
    first: Annotated[int, Field(ge=1, le=2**62)] = 1
    last: Annotated[int, Field(ge=1, le=2**62)] | None = None
    """Null: as far as there are any."""
    amendments_after: Annotated[str, Field(max_length=100)] | None = None
    """Given, amendments are asked for and no records: those of all stations after this position, in the order in which
    they were written. Empty: from the oldest on; then the position of the last one that the asker has."""


class AmendmentRecord(Message):
    """What became known of a record after it went out."""

    position: str
    """Number and hash of its link in the journal, to go on from."""
    station: str
    result_id: str
    kind: str
    """`delivery`, `disposition`, `part_id`; readers pass over kinds that they do not know."""
    utc: str
    """When it was written."""
    body: dict[str, Any]


class ReplayRecord(Message):
    """One record of a replay. What became known of it later: ask for amendments."""

    seq: int
    result_id: str
    header: str
    """The header of the result message, byte for byte as UTF-8 text."""


class SeqRange(Message):
    """Sequence numbers from first to last."""

    first: int
    last: int | None
    """Null: nobody knows how far."""


class ReplayReply(Message):
    """Records in order. What has been told on the results socket and nothing that is still to be told."""

    schema_: Annotated[Literal["edge-daemon/replay/1"], Field(alias="schema")] = REPLAY_SCHEMA
    request_id: str = ""
    ok: bool
    station: str = ""
    boot: int = 0
    boot_id: str = ""
    """Empty when the journal does not know the boot."""
    records: tuple[ReplayRecord, ...] = ()
    gone: tuple[SeqRange, ...] = ()
    """What was asked for and exists no more (pruned or lost), between and before these records."""
    next_seq: int | None = None
    """Where to go on in this boot; null when this was all that was asked for."""
    next_boot: int | None = None
    """The boot after this one; null when this is the daemon's own. To be asked for once `next_seq` is null."""
    stations: tuple[str, ...] = ()
    """Stations that the journal knows; only in the answer to a request without a station."""
    amendments: tuple[AmendmentRecord, ...] = ()
    """In order; only where they were asked for."""
    more: bool = False
    """There are more amendments: ask for those after the last one of these."""
    begun_anew: bool = False
    """The journal is not the one that the position is of: these are its amendments from the oldest on."""
    reason: str = ""
    """Why not: `malformed`, `busy`, `failed`, `stopped`."""
    message: str = ""
    """The same for people."""


class AmendmentRequest(Message):
    """What the gateway tells of a verdict that went out: whether the PLC took it, and what really happened with the
    part. Added to the record, which never changes."""

    schema_: Annotated[Literal["edge-daemon/amendment/1"], Field(alias="schema")] = AMENDMENT_SCHEMA
    request_id: Annotated[RequestId, Field(min_length=1)]
    """Of this attempt: a new one each time, so that no earlier refusal comes as its answer."""
    amendment_id: Annotated[str, Field(min_length=1, max_length=64)]
    """Of what is told: the same in each attempt. It is recorded once, however often it is told."""
    station: Annotated[str, Field(min_length=1, max_length=64)]
    trigger_id: Annotated[str, Field(min_length=1, max_length=64)]
    result_id: Annotated[str, Field(max_length=64)] = ""
    """The record; empty where the answer to the trigger never came: then `trigger_id` names it."""
    kind: Literal["delivery", "disposition"]
    what: Delivery | Disposition
    """Of a delivery: `acknowledged` (the PLC took `verdict`), `late` (it took that there is no verdict in time),
    `not_fetched` (it was shown and forgotten unacknowledged), `overrun` (never shown, too many waited), `abandoned`
    (the PLC gave the part up before the verdict), `missed` (the trigger was not taken). Of a disposition: `passed`,
    `rejected`, `gate_failure` (it should have been rejected, and the reject sensor did not see it), `removed`,
    `lost` (it did not come to the gate)."""
    verdict: ShownWord = "NONE"
    """The code word that the PLC was shown of the part."""
    reason: Annotated[str, Field(max_length=64)] = ""
    """Why that is not OK, in the gateway's words."""
    acquisition_id: Annotated[int, Field(ge=0, le=0xFFFF_FFFF)] = 0
    """The PLC's number of the part."""
    after_ms: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
    """From the trigger to what is told, by the gateway's monotonic clock."""
    utc: Annotated[str, Field(max_length=40)] = ""
    """The same by the clock on its wall."""
    gateway: Annotated[str, Field(max_length=64)] = ""
    """Which start of the gateway tells it."""

    @model_validator(mode="after")
    def _word_of_its_kind(self) -> "AmendmentRequest":
        if self.what not in get_args(Delivery if self.kind == "delivery" else Disposition):
            raise ValueError(f"{self.what} is no {self.kind}")
        return self


class AmendmentReply(Message):
    """Whether it is on the disk."""

    schema_: Annotated[Literal["edge-daemon/amendment/1"], Field(alias="schema")] = AMENDMENT_SCHEMA
    request_id: str = ""
    amendment_id: str = ""
    ok: bool
    """It is on the disk, now or since it was told before."""
    result_id: str = ""
    reason: str = ""
    """Why not. To be told again: `pending` (the record itself is not on the disk yet), `journal`, `busy`, `too_fast`,
    `stopped`. Never to be recorded: `unknown_result`, `amendment_id_reused`, `too_many`, `malformed`."""
    message: str = ""
    """The same for people."""
