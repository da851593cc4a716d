"""From a finished inspection to its record."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from edge_daemon.core.clock import UtcAnchor
from edge_daemon.core.decision import Verdict
from edge_daemon.core.geometry import Box
from edge_daemon.pipeline.inspection import LiveRecipeSet, OpenInspection, ViewOutcome
from edge_daemon.wire.messages import BoxMessage, Inspection, Provenance, RecipeRef, Times, ViewMessage


@dataclass(frozen=True, slots=True)
class Identity:
    """Who speaks: the same in every message of a boot."""

    line: str
    boot: int
    boot_id: str
    software: str
    config_digest: str


def _box(box: Box, um_per_px: float | None) -> BoxMessage:
    area_mm2 = None if um_per_px is None else box.area_px * (um_per_px / 1000) ** 2
    return BoxMessage(x=box.x, y=box.y, w=box.w, h=box.h, peak=box.peak, area=box.area_px, area_mm2=area_mm2)


def view_message(
    view: str, camera: str, outcome: ViewOutcome, recipes: LiveRecipeSet | None, health: Mapping[str, float]
) -> ViewMessage:
    """One view's part of the record."""
    ready = recipes.views.get(view) if recipes else None
    evidence, judged = outcome.evidence, outcome.verdict.judged
    fields: dict[str, object] = {}
    if ready is not None:
        manifest = ready.recipe.manifest
        fields |= {
            "recipe": RecipeRef(name=manifest.name, version=manifest.version, digest=ready.recipe.digest),
            "threshold": manifest.thresholds.lower,
            "threshold_upper": manifest.thresholds.upper,
            "provider": ready.provider,
            "precision": manifest.backbone.precision,
        }
    if evidence is not None and judged:
        scale = ready.recipe.manifest.view.um_per_px if ready else None
        fields |= {
            "score": evidence.score,
            "max_distance": evidence.max_distance,
            "boxes": tuple(_box(box, scale) for box in evidence.boxes[:64]),
            "boxes_total": len(evidence.boxes),
            "boxes_below_minimum": evidence.boxes_below_minimum,
            "map_kind": evidence.map_kind,
        }
    return ViewMessage(
        camera=camera,
        view=view,
        frame_ids=(outcome.frame.frame_id,) if outcome.frame else (),
        evaluation=outcome.verdict.evaluation.label,  # type: ignore[arg-type]  # label is one of the literals
        reason=outcome.verdict.reason.value,
        health=dict(health),
        **fields,  # type: ignore[arg-type]
    )


def earlier(anchor: UtcAnchor, by_ns: int) -> UtcAnchor:
    """The moment so long before."""
    moment = datetime.fromisoformat(anchor.text) - timedelta(microseconds=by_ns / 1_000)
    return replace(anchor, text=moment.isoformat(timespec="microseconds").replace("+00:00", "Z"))


def _times(inspection: OpenInspection) -> Times:
    """Offsets from the trigger's arrival of the last view at each stage."""
    outcomes = inspection.outcomes.values()

    def latest(values: list[int | None]) -> int | None:
        known = [v for v in values if v is not None]
        return (max(known) - inspection.accepted_ns) // 1000 if known else None

    return Times(
        utc=inspection.anchor.text,
        utc_uncertainty_us=inspection.anchor.uncertainty_us,
        clock_quality=inspection.anchor.quality,
        frame_us=latest([o.frame.arrived_ns if o.frame else None for o in outcomes]),
        model_us=latest([o.model_ns for o in outcomes]),
        features_us=latest([o.features_ns for o in outcomes]),
        judged_us=latest([o.judged_ns for o in outcomes]),
    )


def inspection_message(
    identity: Identity,
    station: str,
    inspection: OpenInspection,
    verdict: Verdict,
    cameras: Mapping[str, str],
    deadline_ms: float,
    late: bool,
    pictures: bool,
) -> Inspection:
    """The record of a finished inspection; `seq` is given by the journal, here it is 0.

    cameras: by name of the view.
    """
    recipes = inspection.recipe_set
    return Inspection(
        line=identity.line,
        station=station,
        boot=identity.boot,
        boot_id=identity.boot_id,
        seq=0,
        result_id=inspection.result_id,
        trigger_id=inspection.trigger_id,
        part_id=inspection.part_id,
        attempt=inspection.attempt,
        mode=inspection.mode,
        provisional=recipes.provisional if recipes else False,
        simulated=inspection.simulated,
        evaluation=verdict.evaluation.label,  # type: ignore[arg-type]
        result_state=verdict.state.value,
        reason=verdict.reason.value,
        recipe_set=recipes.digest if recipes else "",
        views=tuple(
            view_message(view, cameras[view], outcome, recipes, inspection.health.get(view, {}))
            for view, outcome in sorted(inspection.outcomes.items())
        ),
        provenance=Provenance(
            software=identity.software,
            config_digest=identity.config_digest,
            camera_settings_digest=inspection.camera_settings_digest,
        ),
        times=_times(inspection),
        deadline_ms=deadline_ms,
        late=late,
        image_ref=inspection.result_id if pictures else None,
    )
