"""The messages of the daemon, schema by schema. Meaning never changes within a version; readers
ignore fields they do not know.

A message is ZeroMQ multipart: [topic, header, blob...]; the header is UTF-8 JSON, at most 8 KiB.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RESULT_SCHEMA = "edge-daemon/result/1"
IMAGE_SCHEMA = "edge-daemon/image/1"
STATUS_SCHEMA = "edge-daemon/status/1"
EVENT_SCHEMA = "edge-daemon/event/1"
TRIGGER_SCHEMA = "edge-daemon/trigger/1"
CONTROL_SCHEMA = "edge-daemon/control/1"

MAX_HEADER_BYTES = 8192

EvaluationLabel = Literal["Undefined", "OK", "NotOK", "NotDecidable"]
Mode = Literal["production", "setup", "master_part", "bypass"]


class Message(BaseModel):
    """Base of everything on the wire: frozen, unknown fields of newer writers ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null", use_attribute_docstrings=True)


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
    """What one camera's frame gave."""

    camera: str
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
    map_kind: str = ""
    """`exact`, or `upper_bound` where values outside boxes are bounds."""
    health: dict[str, float] = Field(default_factory=dict)
    """Image health measures by name."""
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

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        ser_json_inf_nan="null",
        populate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )
