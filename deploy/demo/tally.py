"""What came of the demo, against the simulation's truth."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from plan import DemoStation

from edge_daemon.wire.messages import Inspection


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of one run. `problems` are what must never happen; an empty list means that the run was sound.

    escapes: defective parts judged OK; false_rejects: good parts judged NotOK or NotDecidable
    latency_ms: trigger's arrival to verdict, of every judged part, ascending
    """

    parts: int
    evaluations: Mapping[str, int]
    defective: int
    escapes: tuple[str, ...]
    false_rejects: tuple[str, ...]
    latency_ms: Sequence[float]
    problems: list[str] = field(default_factory=list)


def tally(plan: Sequence[DemoStation], triggered: Collection[str], inspections: Sequence[Inspection]) -> Tally:
    """triggered: ids of the triggers sent; inspections: as received."""
    by_name = {station.name: station for station in plan}
    truth = {i.result_id: _truth(by_name, i) for i in inspections}
    judged = [i for i in inspections if i.result_state == "Completed"]
    return Tally(
        parts=len(inspections),
        evaluations=Counter(i.evaluation for i in inspections),
        defective=sum(defect is not None for defect in truth.values()),
        escapes=tuple(
            f"{i.part_id} ({truth[i.result_id]})" for i in judged if i.evaluation == "OK" and truth[i.result_id]
        ),
        false_rejects=tuple(str(i.part_id) for i in judged if i.evaluation != "OK" and truth[i.result_id] is None),
        latency_ms=sorted(i.times.judged_us / 1000 for i in judged if i.times.judged_us is not None),
        problems=_problems(triggered, inspections),
    )


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed; NaN of nothing."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)] if ascending else math.nan


def _truth(by_name: Mapping[str, DemoStation], inspection: Inspection) -> str | None:
    """Name of the defect in any frame of the inspection, or None."""
    frames = [frame for view in inspection.views for frame in view.frame_ids]
    defects = [by_name[inspection.station].truth(frame) for frame in frames]
    return next((str(defect) for defect in defects if defect is not None), None)


def _problems(triggered: Collection[str], inspections: Sequence[Inspection]) -> list[str]:
    answers = Counter(i.trigger_id for i in inspections)
    found = [f"trigger {trigger} got no result" for trigger in triggered if not answers[trigger]]
    found += [f"trigger {trigger} got {count} results" for trigger, count in answers.items() if count > 1]
    found += [
        f"a result answers trigger {trigger}, which nobody sent" for trigger in answers if trigger not in triggered
    ]
    found += [
        f"part {i.part_id} was not judged: {i.result_state}, {i.reason or 'without a reason'}"
        for i in inspections
        if i.result_state != "Completed"
    ]
    found += [f"part {i.part_id} passed without proof" for i in inspections if i.evaluation == "OK" and not _proven(i)]
    for station in sorted({i.station for i in inspections}):
        numbers = [i.seq for i in inspections if i.station == station]
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            found.append(f"station {station} has a gap in its sequence numbers, or they are out of order")
    return found


def _proven(inspection: Inspection) -> bool:
    """An OK needs a completed, timely, durable judgement of at least one frame in every view, by the numbers."""
    return (
        inspection.result_state == "Completed"
        and inspection.journaled
        and not inspection.late
        and bool(inspection.views)
        and all(
            view.evaluation == "OK"
            and view.frame_ids
            and view.score is not None
            and view.threshold is not None
            and view.score <= view.threshold
            for view in inspection.views
        )
    )
