"""The wire: golden bytes, round trips, and garbage that never becomes a verdict."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_kit import box, inspection, not_ok, view

from edge_daemon.errors import WireError
from edge_daemon.wire import codec
from edge_daemon.wire.messages import (
    MAX_HEADER_BYTES,
    AmendmentReply,
    AmendmentRequest,
    BoxMessage,
    CameraStatus,
    ControlFault,
    ControlReply,
    ControlRequest,
    Counters,
    Event,
    Image,
    Inspection,
    Message,
    Part,
    ReplayRecord,
    ReplayReply,
    ReplayRequest,
    SeqRange,
    Status,
    TriggerReply,
    TriggerRequest,
    ViewMessage,
)
from edge_daemon.wire.schema import message_schemas

GOLDEN = Path(__file__).parent.parent / "golden"


def golden_messages() -> dict[str, list[bytes]]:
    png = Part(kind="heatmap", media_type="image/png", camera="top")
    daemon = {"line": "line-1", "boot": 7, "boot_id": "0123456789abcdef0123456789abcdef"}
    failed = inspection(
        evaluation="Undefined",
        result_state="Failed",
        reason="journal",
        journaled=False,
        part_id=None,
        views=(view(evaluation="Undefined", score=math.nan, max_distance=math.inf, reason="score_not_finite"),),
    )
    status = Status(
        **daemon,
        station="st1",
        utc="2026-11-20T08:15:30.123456+00:00",
        uptime_ms=1234.5,
        state="Ready",
        trigger_ready=True,
        mode="production",
        counters=Counters(accepted=3, ok=1, not_ok=1, in_flight=1),
        last_seq=2,
        previous_boot=6,
        previous_last_seq=99,
        cameras=(CameraStatus(camera="top", connected=True, frames=3, inspected=5),),
        details={"queue": {"waiting": 0}, "ratio": math.nan},
    )
    event = Event(
        **daemon,
        station="st1",
        kind="alarm",
        name="camera_lost",
        severity="error",
        utc="2026-11-20T08:15:30.123456+00:00",
        message="camera top does not answer",
    )
    image = Image(**daemon, station="st1", result_id="fe" * 16, trigger_id="4711", camera="top", parts=(png,))
    return {
        "result_ok": codec.encode_inspection(inspection()),
        "result_not_ok": codec.encode_inspection(not_ok()),
        "result_withdrawn": codec.encode_inspection(failed),
        "image": codec.encode_image(image, [b"\x89PNG"]),
        "status": codec.encode_status(status),
        "event": codec.encode_event(event),
        "trigger_request": [
            codec.encode_request(TriggerRequest(request_id="r1", station="st1", trigger_id="4711", job="bottle"))
        ],
        "trigger_reply": [
            codec.encode_request(
                TriggerReply(
                    request_id="r1", station="st1", trigger_id="4711", accepted=True, result_id="fe" * 16, attempt=1
                )
            )
        ],
        "control_request": [codec.encode_request(ControlRequest(request_id="r2", command="status"))],
        "control_reply": [
            codec.encode_request(
                ControlReply(request_id="r2", ok=False, error=ControlFault(code="unknown_command", message="no"))
            )
        ],
        "amendment_request": [
            codec.encode_request(
                AmendmentRequest(
                    request_id="r4",
                    amendment_id="4711-disposition-1",
                    station="st1",
                    trigger_id="4711-0123abcd-1",
                    result_id="fe" * 16,
                    kind="disposition",
                    what="rejected",
                    verdict="NOT_OK",
                    reason="NONE",
                    acquisition_id=4711,
                    after_ms=1250.5,
                    utc="2026-11-20T08:15:31.373956+00:00",
                    gateway="0123abcd",
                )
            )
        ],
        "amendment_reply": [
            codec.encode_request(
                AmendmentReply(
                    request_id="r4",
                    amendment_id="4711-disposition-1",
                    ok=False,
                    result_id="fe" * 16,
                    reason="too_many",
                    message="no",
                )
            )
        ],
        "replay_request": [codec.encode_request(ReplayRequest(request_id="r3", station="st1", boot=7, first=40))],
        "replay_reply": [
            codec.encode_request(
                ReplayReply(
                    request_id="r3",
                    ok=True,
                    station="st1",
                    boot=7,
                    boot_id="0123456789abcdef0123456789abcdef",
                    records=(ReplayRecord(seq=42, result_id="fe" * 16, header='{"schema":"…"}'),),
                    gone=(SeqRange(first=40, last=41),),
                    next_boot=8,
                )
            )
        ],
    }


@pytest.mark.parametrize("name", sorted(golden_messages()))
def test_bytes_on_the_wire_are_those_of_this_version_of_the_schema(name: str) -> None:
    """When this fails, readers in the field break. A field was added: run once with EDGE_TEST_WRITE_GOLDEN=1 and read
    the difference. A meaning changed: it is a new version of the schema."""
    written = b"\n".join(golden_messages()[name])
    if os.environ.get("EDGE_TEST_WRITE_GOLDEN"):
        (GOLDEN / f"{name}.bin").write_bytes(written)
    assert written == (GOLDEN / f"{name}.bin").read_bytes()


def test_golden_results_read_back() -> None:
    frames = golden_messages()
    assert codec.decode_inspection(frames["result_ok"]) == inspection()
    assert codec.decode_inspection(frames["result_not_ok"]) == not_ok()
    withdrawn = codec.decode_inspection(frames["result_withdrawn"])
    assert withdrawn.views[0].score is None
    assert withdrawn.views[0].max_distance is None
    assert codec.decode_status(frames["status"]).counters == Counters(accepted=3, ok=1, not_ok=1, in_flight=1)
    assert codec.decode_event(frames["event"]).name == "camera_lost"
    image, blobs = codec.decode_image(frames["image"])
    assert image.camera == "top"
    assert blobs == (b"\x89PNG",)


def test_a_subscription_to_one_station_does_not_catch_another_whose_name_begins_alike() -> None:
    assert not codec.topic("result", "st10").startswith(codec.topic("result", "st1"))


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "a\0", "x" * 65, "\ud800"])
def test_a_name_that_would_break_topics_is_refused(name: str) -> None:
    with pytest.raises(WireError, match="topic"):
        codec.topic("result", name)


# --- OK must prove itself -----------------------------------------------------------------------------------------

UNPROVEN = {
    "no view": {"views": ()},
    "late": {"late": True},
    "not durable": {"journaled": False},
    "with a reason": {"reason": "late"},
    "not completed": {"result_state": "Failed"},
    "a view NotOK": {"views": (view(), view(camera="side", evaluation="NotOK"))},
    "a view twice": {"views": (view(), view(camera="side"), view())},
    "a named view twice": {"views": (view(view="top#2"), view(view="top"), view(view="top#2"))},
    "a view unjudged": {"views": (view(), view(evaluation="Undefined", score=None))},
    "score missing": {"views": (view(score=None),)},
    "score NaN": {"views": (view(score=math.nan),)},
    "score above": {"views": (view(score=2.0000001),)},
    "score minus infinity": {"views": (view(score=-math.inf),)},
    "threshold missing": {"views": (view(threshold=None),)},
    "threshold infinite": {"views": (view(threshold=math.inf),)},
    "threshold NaN": {"views": (view(threshold=math.nan),)},
}


@pytest.mark.parametrize("changes", UNPROVEN.values(), ids=UNPROVEN)
def test_an_ok_without_proof_is_neither_written_nor_read(changes: dict[str, Any]) -> None:
    unproven = inspection(**changes)
    with pytest.raises(WireError, match="OK"):
        codec.encode_inspection(unproven)
    with pytest.raises(WireError):
        codec.decode_inspection([codec.topic("result", "st1"), unproven.model_dump_json().encode()])


def test_a_tie_at_the_threshold_is_ok() -> None:
    tie = inspection(views=(view(score=2.0),))
    assert codec.decode_inspection(codec.encode_inspection(tie)) == tie


# --- size ---------------------------------------------------------------------------------------------------------


def test_the_smallest_peaks_are_left_out_until_the_header_fits_and_the_count_stays() -> None:
    boxes = tuple(box(float(peak), x=peak) for peak in range(500, 0, -1))
    crowded = not_ok(views=(view(evaluation="NotOK", score=9.0, boxes=boxes, boxes_total=1200),))
    frames = codec.encode_inspection(crowded)
    got = codec.decode_inspection(frames).views[0]
    assert MAX_HEADER_BYTES - 200 < len(frames[1]) <= MAX_HEADER_BYTES
    assert got.boxes == boxes[: len(got.boxes)]
    assert len(got.boxes) > 50
    assert got.boxes_total == 1200


def test_the_smallest_peaks_of_all_views_go_first() -> None:
    faint = tuple(box(0.1, x=x) for x in range(100))
    strong = tuple(box(9.0, x=x) for x in range(40))
    views = (view(evaluation="NotOK", boxes=faint), view(evaluation="NotOK", boxes=strong, camera="side"))
    got = codec.decode_inspection(codec.encode_inspection(not_ok(views=views)))
    assert got.views[1].boxes == strong
    assert len(got.views[0].boxes) < 100
    assert got.views[0].boxes_total == 100


def test_boxes_without_finite_numbers_are_left_out_and_counted() -> None:
    boxes = (box(math.nan), box(3.0), box(2.0, area=math.inf))
    got = codec.decode_inspection(codec.encode_inspection(not_ok(views=(view(evaluation="NotOK", boxes=boxes),))))
    assert [b.peak for b in got.views[0].boxes] == [3.0]
    assert got.views[0].boxes_total == 3


def test_health_measures_give_way_before_a_result_does() -> None:
    health = {f"measure_{n}": 0.123456789 for n in range(400)}
    got = codec.decode_inspection(codec.encode_inspection(inspection(views=(view(health=health),))))
    assert got.evaluation == "OK"
    assert got.views[0].health == {}


def test_what_cannot_fit_is_refused_by_name() -> None:
    with pytest.raises(WireError, match=r"fedcba.* takes \d+ bytes"):
        codec.encode_inspection(inspection(part_id="x" * 9000))


def test_nan_in_health_is_null_and_reads_back() -> None:
    frames = codec.encode_inspection(inspection(views=(view(health={"focus": math.nan}),)))
    assert b"NaN" not in frames[1]
    assert codec.decode_inspection(frames).views[0].health == {"focus": None}


@pytest.mark.parametrize("deadline_ms", [math.nan, math.inf])
def test_a_deadline_that_is_no_number_is_refused(deadline_ms: float) -> None:
    with pytest.raises(WireError, match="deadline"):
        codec.encode_inspection(inspection(deadline_ms=deadline_ms))


def test_blobs_and_their_descriptions_must_agree() -> None:
    described = inspection(parts=(Part(kind="thumbnail", media_type="image/jpeg"),))
    frames = codec.encode_inspection(described, [b"jpeg"])
    assert codec.decode_inspection(frames) == described
    assert codec.decode_inspection(frames[:2]) == described  # a replay has no blobs
    with pytest.raises(WireError, match="blobs"):
        codec.encode_inspection(described)
    with pytest.raises(WireError, match="blobs"):
        codec.decode_inspection([*frames, b"one too many"])


def test_a_status_or_event_too_large_for_a_header_loses_its_details_and_not_itself() -> None:
    daemon: dict[str, Any] = {"line": "l", "boot": 1, "boot_id": "b", "station": "st1", "utc": "u"}
    status = Status(**daemon, uptime_ms=1.0, state="Ready", details={"long": "x" * 10_000})
    assert codec.decode_status(codec.encode_status(status)).details == {"left_out": True}
    event = Event(**daemon, kind="audit", name="n", message="m" * 20_000)
    assert codec.decode_event(codec.encode_event(event)).message == "m" * 1000


# --- reading ------------------------------------------------------------------------------------------------------


def changed(**changes: Any) -> list[bytes]:
    header = json.loads(codec.encode_inspection(inspection())[1])
    return [codec.topic("result", "st1"), json.dumps(header | changes).encode()]


def test_fields_of_a_newer_writer_are_ignored() -> None:
    assert codec.decode_inspection(changed(colour="blue")) == inspection()


REFUSED: dict[str, list[bytes]] = {
    "nothing": [],
    "no header": [b"result/st1/"],
    "empty header": [b"result/st1/", b""],
    "not UTF-8": [b"result/st1/", b"\xff\xfe"],
    "an array": [b"result/st1/", b"[]"],
    "too deep": [b"result/st1/", b'{"a":' * 1000 + b"1" + b"}" * 1000],
    "too long": [b"result/st1/", b" " * 8000 + codec.encode_inspection(inspection())[1]],
    "another station's topic": [b"result/st2/", codec.encode_inspection(inspection())[1]],
    "topic without slash": [b"result/st1", codec.encode_inspection(inspection())[1]],
    "another schema": changed(schema="edge-daemon/result/2"),
    "number as text": changed(seq="42"),
    "yes as text": changed(late="false"),
    "unknown evaluation": changed(evaluation="ok"),
    "missing view list": changed(views=None),
    "NaN": [b"result/st1/", codec.encode_inspection(inspection())[1].replace(b"1.25", b"NaN")],
    "infinity": [b"result/st1/", codec.encode_inspection(inspection())[1].replace(b"1.25", b"-Infinity")],
    "overflow": [b"result/st1/", codec.encode_inspection(inspection())[1].replace(b"1.25", b"-1e999")],
    "overflow in what is not OK": [
        b"result/st1/",
        codec.encode_inspection(not_ok())[1].replace(b'"score":3.5', b'"score":1e999'),
    ],
    "a key twice": [
        b"result/st1/",
        codec.encode_inspection(not_ok())[1].replace(
            b'"evaluation":"NotOK","result', b'"evaluation":"NotOK","evaluation":"OK","result'
        ),
    ],
}


@pytest.mark.parametrize("frames", REFUSED.values(), ids=REFUSED)
def test_what_is_no_inspection_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        codec.decode_inspection(frames)


DECODERS = [codec.decode_inspection, codec.decode_image, codec.decode_status, codec.decode_event]
BODY_DECODERS = [
    codec.decode_trigger_request,
    codec.decode_trigger_reply,
    codec.decode_control_request,
    codec.decode_control_reply,
    codec.decode_header,
]


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_raises_wire_error_and_nothing_else(frames: list[bytes]) -> None:
    for decode in DECODERS:
        with pytest.raises(WireError):
            decode(frames)
    for decode_body in BODY_DECODERS:
        with pytest.raises(WireError):
            decode_body(b"".join(frames))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(json.loads(codec.encode_inspection(inspection())[1]))), json_values)
def test_any_one_field_replaced_by_anything_is_read_as_what_it_says_or_refused(field: str, value: object) -> None:
    frames = changed(**{field: value})
    try:
        got = codec.decode_inspection(frames)
    except WireError:
        return
    assert codec.contradiction(got) is None


@given(data=st.data())
def test_one_flipped_byte_never_turns_a_bad_part_into_a_good_one_without_proof(data: st.DataObject) -> None:
    topic, header = codec.encode_inspection(not_ok())
    position = data.draw(st.integers(0, len(header) - 1))
    flipped = bytearray(header)
    flipped[position] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(WireError):
        assert codec.decode_inspection([topic, bytes(flipped)]).evaluation != "OK"


text = st.text(st.characters(codec="utf-8"), max_size=30)
finite = st.floats(allow_nan=False, allow_infinity=False)
boxes_drawn = st.builds(
    BoxMessage, x=st.integers(0, 9999), y=st.integers(0, 9999), w=st.integers(1, 9999), h=st.integers(1, 9999),
    peak=finite, area=finite,
)  # fmt: skip
views_drawn = st.builds(
    ViewMessage,
    camera=text,
    evaluation=st.sampled_from(["Undefined", "NotOK", "NotDecidable"]),
    score=st.none() | finite,
    boxes=st.lists(boxes_drawn, max_size=5).map(tuple),
    boxes_total=st.just(5),
    health=st.dictionaries(text, finite, max_size=3),
    provider=text,
)
inspections_drawn = st.builds(
    inspection,
    evaluation=st.sampled_from(["Undefined", "NotOK", "NotDecidable"]),
    views=st.lists(views_drawn, max_size=3).map(tuple),
    part_id=st.none() | text,
    trigger_id=text,
    seq=st.integers(1, 2**53),
    late=st.booleans(),
)


@given(inspections_drawn)
def test_what_is_written_reads_back_equal(original: Inspection) -> None:
    assert codec.decode_inspection(codec.encode_inspection(original)) == original


@given(st.builds(TriggerRequest, station=text.filter(bool), trigger_id=text.filter(bool), part_id=st.none() | text))
def test_requests_read_back_equal(request: TriggerRequest) -> None:
    assert codec.decode_trigger_request(codec.encode_request(request)) == request


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{}", "station"),
        (b'{"station":"st1","trigger_id":4711}', "trigger_id"),
        (b'{"station":"st1","trigger_id":""}', "trigger_id"),
        (b'{"station":"st1","trigger_id":"1","mode":"Production"}', "mode"),
        (b'{"station":"st1","trigger_id":"1","schema":"edge-daemon/trigger/2"}', "schema"),
        (b'{"station":"st1","trigger_id":"%s"}' % (b"9" * 65), "trigger_id"),
    ],
)
def test_a_wrong_request_names_its_field(body: bytes, named: str) -> None:
    with pytest.raises(WireError, match=named):
        codec.decode_trigger_request(body)


def test_text_that_is_not_unicode_cannot_be_written() -> None:
    with pytest.raises(WireError):
        codec.encode_inspection(inspection(trigger_id="\ud800"))


def test_values_of_a_wrong_type_are_refused_when_written() -> None:
    with pytest.raises(WireError):
        codec.encode_inspection(inspection().model_copy(update={"seq": "forty-two"}))


# --- schema -------------------------------------------------------------------------------------------------------


def test_every_message_has_a_schema_whose_fields_are_those_on_the_wire() -> None:
    schemas = message_schemas()
    written = {"result": "result_ok"} | {
        n: n for n in ("image", "status", "event", "trigger_reply", "control_reply", "replay_reply")
    }
    for name, golden in written.items():
        frames = golden_messages()[golden]
        header = json.loads(frames[1] if len(frames) > 1 else frames[0])
        assert set(schemas[name]["properties"]) == set(header), name
    for schema in schemas.values():
        json.dumps(schema)
        assert schema.get("additionalProperties", True) is True


def test_every_field_that_is_not_plain_says_what_it_is() -> None:
    """Counters, identities and what a number is in must be told in the schema that MES people read."""
    fields = message_schemas()["result"]["properties"]
    for name in ("seq", "boot", "boot_id", "recipe_set", "image_ref"):
        assert fields[name]["description"], name


def test_messages_cannot_be_changed_after_they_are_made() -> None:
    message: Message = inspection()
    with pytest.raises(ValueError):
        message.seq = 1  # type: ignore[attr-defined]
