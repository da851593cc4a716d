"""JSON Schema of every message, generated from the models that read and write them."""

from typing import Any, Literal

from edge_daemon.wire.messages import (
    AmendmentReply,
    AmendmentRequest,
    ControlReply,
    ControlRequest,
    Event,
    Image,
    Inspection,
    JobState,
    Message,
    ReplayReply,
    ReplayRequest,
    Status,
    TriggerReply,
    TriggerRequest,
)

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def message_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema (draft 2020-12) of the header or body of every message, by name.

    What the daemon writes is described as written: fields with defaults are always there. What it reads is
    described as accepted: they may be left out. Unknown fields are allowed in both.
    """
    written: dict[str, type[Message]] = {
        "result": Inspection,
        "image": Image,
        "status": Status,
        "event": Event,
        "trigger_reply": TriggerReply,
        "control_reply": ControlReply,
        "replay_reply": ReplayReply,
        "amendment_reply": AmendmentReply,
        "job": JobState,
    }
    read: dict[str, type[Message]] = {
        "trigger_request": TriggerRequest,
        "control_request": ControlRequest,
        "replay_request": ReplayRequest,
        "amendment_request": AmendmentRequest,
    }
    schemas = {name: _schema(model, "serialization") for name, model in written.items()}
    return schemas | {name: _schema(model, "validation") for name, model in read.items()}


def _schema(model: type[Message], mode: Literal["serialization", "validation"]) -> dict[str, Any]:
    return {"$schema": _DIALECT} | model.model_json_schema(mode=mode, by_alias=True)
