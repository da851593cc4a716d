"""Messages that are complete and true, for tests to bend."""

from typing import Any

from edge_daemon.wire.messages import BoxMessage, Inspection, Provenance, RecipeRef, Times, ViewMessage


def box(peak: float = 2.5, **changes: Any) -> BoxMessage:
    return BoxMessage(**({"x": 10, "y": 20, "w": 30, "h": 40, "peak": peak, "area": 600.0} | changes))


def view(**changes: Any) -> ViewMessage:
    fields: dict[str, Any] = {
        "camera": "top",
        "frame_ids": (17,),
        "evaluation": "OK",
        "score": 1.25,
        "max_distance": 1.375,
        "threshold": 2.0,
        "threshold_upper": 2.5,
        "map_kind": "exact",
        "health": {"focus": 0.5},
        "recipe": RecipeRef(name="bottle", version="1", digest="ab" * 32),
        "provider": "CPUExecutionProvider",
        "precision": "fp32",
    }
    return ViewMessage(**(fields | changes))


def inspection(**changes: Any) -> Inspection:
    fields: dict[str, Any] = {
        "line": "line-1",
        "station": "st1",
        "boot": 7,
        "boot_id": "0123456789abcdef0123456789abcdef",
        "seq": 42,
        "result_id": "fedcba9876543210fedcba9876543210",
        "trigger_id": "4711",
        "part_id": "PN-0042",
        "evaluation": "OK",
        "result_state": "Completed",
        "recipe_set": "cd" * 32,
        "views": (view(),),
        "provenance": Provenance(software="edge-daemon 0.1.0", config_digest="ef" * 32),
        "times": Times(
            utc="2026-11-20T08:15:30.123456+00:00",
            utc_uncertainty_us=500,
            clock_quality="ntp",
            frame_us=1000,
            model_us=1500,
            features_us=20000,
            judged_us=25000,
        ),
        "deadline_ms": 200.0,
    }
    return Inspection(**(fields | changes))


def not_ok(**changes: Any) -> Inspection:
    bad = view(evaluation="NotOK", score=3.5, boxes=(box(4.5), box(3.25, label="scratch", confidence=0.75)))
    return inspection(**({"evaluation": "NotOK", "views": (bad.model_copy(update={"boxes_total": 2}),)} | changes))
