"""Messages to bytes and back. Whatever is not a message of a known schema raises WireError and nothing else."""

import math
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from edge_daemon.core.strict_json import parse_strictly
from edge_daemon.errors import WireError
from edge_daemon.wire.messages import (
    MAX_HEADER_BYTES,
    AmendmentReply,
    AmendmentRequest,
    BoxMessage,
    ControlReply,
    ControlRequest,
    Event,
    Image,
    Inspection,
    JobState,
    Message,
    Part,
    ReplayReply,
    ReplayRequest,
    Status,
    TriggerReply,
    TriggerRequest,
    ViewMessage,
)

RESULT_TOPIC: Final = "result"
IMAGE_TOPIC: Final = "image"
STATUS_TOPIC: Final = "status"
EVENT_TOPIC: Final = "event"

# A box takes at least 40 bytes of JSON, so that no header holds more than this many.
_MOST_BOXES = MAX_HEADER_BYTES // 40
_MOST_TOPIC_CHARS = 64
_LONG_EVENT_CHARS = 1000

M = TypeVar("M", bound=Message)


def topic(kind: str, name: str) -> bytes:
    """`kind/name/`. The trailing slash keeps a subscription to `st1` from catching `st10`.

    Raises WireError when the name is empty, longer than 64 characters or holds a slash or control characters.
    """
    if not name or len(name) > _MOST_TOPIC_CHARS or "/" in name or not name.isprintable():
        raise WireError(f"{name!r} cannot be a topic: 1 to {_MOST_TOPIC_CHARS} printable characters without a slash")
    try:
        return f"{kind}/{name}/".encode()
    except UnicodeEncodeError as exc:
        raise WireError(f"{name!r} cannot be a topic: it is not valid Unicode") from exc


def contradiction(inspection: Inspection) -> str | None:
    """Why an OK does not prove itself, or None. Anything but OK needs no proof.

    OK is the positive branch: completed, on time, durable, at least one view, none twice, and every view OK with a
    finite score at or below its threshold.
    """
    if inspection.evaluation != "OK":
        return None
    if inspection.result_state != "Completed" or inspection.reason or inspection.late or not inspection.journaled:
        return (
            f"OK with state {inspection.result_state}, reason {inspection.reason!r}, "
            f"late {inspection.late}, journaled {inspection.journaled}"
        )
    if not inspection.views:
        return "OK without a view"
    names = [view.view or view.camera for view in inspection.views]
    if len(set(names)) < len(names):
        return f"OK with a view twice: {', '.join(names)}"
    for view in inspection.views:
        if view.evaluation != "OK":
            return f"OK although camera {view.camera!r} says {view.evaluation}"
        if not _at_most(view.score, view.threshold):
            return f"OK although camera {view.camera!r} has score {view.score} against threshold {view.threshold}"
    return None


def _at_most(score: float | None, threshold: float | None) -> bool:
    """True only for finite numbers in order: NaN and null never pass."""
    return score is not None and threshold is not None and -math.inf < score <= threshold < math.inf


def inspection_header(inspection: Inspection) -> bytes:
    """The header's JSON, at most 8192 bytes; the smallest peaks are left out until it fits, `boxes_total` keeps
    the count. Raises WireError when it cannot fit, or when an OK contradicts itself."""
    if why := contradiction(inspection):
        raise WireError(f"result {inspection.result_id} is refused: {why}")
    if not math.isfinite(inspection.deadline_ms):
        raise WireError(f"result {inspection.result_id} is refused: deadline_ms is {inspection.deadline_ms}")
    inspection = _with_countable_boxes(inspection)
    header = _dump(inspection)
    while len(header) > MAX_HEADER_BYTES:
        smaller = _without_smallest_boxes(inspection, len(header) - MAX_HEADER_BYTES) or _without_health(inspection)
        if smaller is None:
            raise WireError(f"result {inspection.result_id} takes {len(header)} bytes without boxes, {_LIMIT}")
        inspection = smaller
        header = _dump(inspection)
    return header


_LIMIT = f"more than the {MAX_HEADER_BYTES} of a header"


def _with_countable_boxes(inspection: Inspection) -> Inspection:
    """Leaves out boxes without finite numbers and those that could never fit; the count stays."""
    if not any(view.boxes for view in inspection.views):
        return inspection
    views = tuple(
        view.model_copy(
            update={
                "boxes": tuple(b for b in view.boxes if math.isfinite(b.peak) and math.isfinite(b.area))[:_MOST_BOXES],
                "boxes_total": max(view.boxes_total, len(view.boxes)),
            }
        )
        for view in inspection.views
    )
    return inspection.model_copy(update={"views": views})


def _without_smallest_boxes(inspection: Inspection, excess_bytes: int) -> Inspection | None:
    """Leaves out enough boxes, smallest peak first, to save the excess; None when there is none left."""
    boxes = [(box.peak, v, b) for v, view in enumerate(inspection.views) for b, box in enumerate(view.boxes)]
    if not boxes:
        return None
    dropped: set[tuple[int, int]] = set()
    for _, v, b in sorted(boxes):
        dropped.add((v, b))
        excess_bytes -= len(_dump(inspection.views[v].boxes[b])) + 1  # and its comma
        if excess_bytes <= 0:
            break

    def kept(v: int, view: ViewMessage) -> tuple[BoxMessage, ...]:
        return tuple(box for b, box in enumerate(view.boxes) if (v, b) not in dropped)

    views = tuple(view.model_copy(update={"boxes": kept(v, view)}) for v, view in enumerate(inspection.views))
    return inspection.model_copy(update={"views": views})


def _without_health(inspection: Inspection) -> Inspection | None:
    if not any(view.health for view in inspection.views):
        return None
    return inspection.model_copy(
        update={"views": tuple(view.model_copy(update={"health": {}}) for view in inspection.views)}
    )


def encode_inspection(inspection: Inspection, blobs: Sequence[bytes] = ()) -> list[bytes]:
    """[topic, header, blob...]. Raises WireError as `inspection_header`, or when blobs and `parts` disagree."""
    _check_parts(inspection.parts, len(blobs))
    return [topic(RESULT_TOPIC, inspection.station), inspection_header(inspection), *blobs]


def inspection_frames(station: str, header: bytes) -> list[bytes]:
    """The frames of a header that exists already, as the journal keeps it."""
    return [topic(RESULT_TOPIC, station), header]


def decode_inspection(frames: Sequence[bytes]) -> Inspection:
    """Inverse of `encode_inspection`; the blobs stay where they are, in frames[2:]. A replayed message may come
    without its blobs. Raises WireError."""
    inspection = _decode_published(frames, Inspection, RESULT_TOPIC)
    _check_topic(frames[0], RESULT_TOPIC, inspection.station)
    if len(frames) > 2:
        _check_parts(inspection.parts, len(frames) - 2)
    if why := contradiction(inspection):
        raise WireError(f"result {inspection.result_id} contradicts itself: {why}; do not accept the part")
    return inspection


def decode_header(header: bytes) -> Inspection:
    """An inspection from its header alone, as the journal keeps it. Raises WireError."""
    inspection = _load(header, Inspection)
    if why := contradiction(inspection):
        raise WireError(f"result {inspection.result_id} contradicts itself: {why}; do not accept the part")
    return inspection


def encode_image(image: Image, blobs: Sequence[bytes]) -> list[bytes]:
    """[topic, header, blob...]. Raises WireError when the header is too large or blobs and `parts` disagree."""
    _check_parts(image.parts, len(blobs))
    return [topic(IMAGE_TOPIC, image.station), _fitting(image, {"details": {}}), *blobs]


def decode_image(frames: Sequence[bytes]) -> tuple[Image, tuple[bytes, ...]]:
    """Inverse of `encode_image`. Raises WireError."""
    image = _decode_published(frames, Image, IMAGE_TOPIC)
    _check_topic(frames[0], IMAGE_TOPIC, image.station)
    _check_parts(image.parts, len(frames) - 2)
    return image, tuple(frames[2:])


def encode_status(status: Status) -> list[bytes]:
    """[topic, header]; details that do not fit are left out. Raises WireError."""
    return [topic(STATUS_TOPIC, status.station), _fitting(status, {"details": {"left_out": True}})]


def decode_status(frames: Sequence[bytes]) -> Status:
    """Inverse of `encode_status`. Raises WireError."""
    status = _decode_published(frames, Status, STATUS_TOPIC)
    _check_topic(frames[0], STATUS_TOPIC, status.station)
    return status


def encode_event(event: Event) -> list[bytes]:
    """[topic, header]; what does not fit is cut: details first, then a long message. Raises WireError."""
    shorter = {"details": {"left_out": True}, "message": event.message[:_LONG_EVENT_CHARS]}
    return [topic(EVENT_TOPIC, event.kind), _fitting(event, shorter)]


def decode_event(frames: Sequence[bytes]) -> Event:
    """Inverse of `encode_event`. Raises WireError."""
    event = _decode_published(frames, Event, EVENT_TOPIC)
    _check_topic(frames[0], EVENT_TOPIC, event.kind)
    return event


def encode_request(
    message: (
        TriggerRequest
        | TriggerReply
        | ControlRequest
        | ControlReply
        | ReplayRequest
        | ReplayReply
        | AmendmentRequest
        | AmendmentReply
    ),
) -> bytes:
    """One frame of JSON. Raises WireError when it holds something that JSON does not know."""
    return _dump(message)


def decode_trigger_request(body: bytes) -> TriggerRequest:
    """Raises WireError."""
    return _load(body, TriggerRequest)


def decode_trigger_reply(body: bytes) -> TriggerReply:
    """Raises WireError."""
    return _load(body, TriggerReply)


def decode_control_request(body: bytes) -> ControlRequest:
    """Raises WireError."""
    return _load(body, ControlRequest)


def decode_control_reply(body: bytes) -> ControlReply:
    """Raises WireError."""
    return _load(body, ControlReply)


def decode_replay_request(body: bytes) -> ReplayRequest:
    """Raises WireError."""
    return _load(body, ReplayRequest)


def decode_replay_reply(body: bytes) -> ReplayReply:
    """The records in it are still text: `decode_header`. Raises WireError."""
    return _load(body, ReplayReply)


def decode_amendment_request(body: bytes) -> AmendmentRequest:
    """Raises WireError."""
    return _load(body, AmendmentRequest)


def decode_amendment_reply(body: bytes) -> AmendmentReply:
    """Raises WireError."""
    return _load(body, AmendmentReply)


def decode_job(result: dict[str, Any] | None) -> JobState:
    """State of a job from the result of the command `job`. Raises WireError."""
    try:
        return JobState.model_validate(result)
    except ValidationError as exc:
        raise WireError(f"no job state: {_summary(exc)}") from exc


def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object with finite numbers and no key twice. Raises WireError."""
    try:
        value = parse_strictly(bytes(body).decode())
    except (ValueError, RecursionError, TypeError) as exc:
        raise WireError(f"no JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise WireError(f"no JSON object but {type(value).__name__}")
    return value


def _dump(message: Message) -> bytes:
    try:
        # warnings="error": a value of the wrong type, possible after model_copy, is refused and not guessed.
        return message.model_dump_json(warnings="error").encode()
    except (PydanticSerializationError, UnicodeError, RecursionError, ValueError) as exc:
        raise WireError(f"a {type(message).__name__} cannot be written as JSON: {exc}") from exc


def _load(body: bytes, model: type[M]) -> M:
    parse_json(body)  # pydantic alone would let NaN, infinity and doubled keys pass
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as exc:
        raise WireError(f"no {model.__name__}: {_summary(exc)}") from exc


def _summary(exc: ValidationError) -> str:
    problems = exc.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{'.'.join(map(str, p['loc'])) or 'message'}: {p['msg']}" for p in problems[:3]]
    return "; ".join(told) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")


def _fitting(message: Message, shorter: dict[str, Any]) -> bytes:
    header = _dump(message)
    if len(header) > MAX_HEADER_BYTES:
        header = _dump(message.model_copy(update=shorter))
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"a {type(message).__name__} takes {len(header)} bytes, {_LIMIT}")
    return header


def _decode_published(frames: Sequence[bytes], model: type[M], kind: str) -> M:
    if len(frames) < 2 or not all(isinstance(frame, bytes) for frame in frames):
        raise WireError(f"a {kind} message has a topic and a header, got {len(frames)} frames")
    if len(frames[1]) > MAX_HEADER_BYTES:
        raise WireError(f"the header has {len(frames[1])} bytes, {_LIMIT}")
    return _load(frames[1], model)


def _check_topic(got: bytes, kind: str, name: str) -> None:
    if got != topic(kind, name):
        raise WireError(f"the topic {got[:80]!r} is not that of the header, {kind}/{name}/")


def _check_parts(parts: Sequence[Part], blobs: int) -> None:
    if len(parts) != blobs:
        raise WireError(f"the header describes {len(parts)} parts, but there are {blobs} blobs")
