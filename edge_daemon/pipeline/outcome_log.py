"""A line in the log for every part without a verdict, so that `journalctl STATION=st1` tells what a gate was told."""

import logging
from collections.abc import Callable
from typing import Final

from edge_daemon.logs import fields
from edge_daemon.wire.messages import Inspection

log = logging.getLogger(__name__)

# Triggers that are missed can come thousands a second. The records have each of them; the log need not.
_GAP_NS: Final = 1_000_000_000


class OutcomeLog:
    """Logs outcomes that have a reason (failed, missed, not decidable): of each station and reason one a second,
    which says how many more there were. Called from one thread."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._logged_ns: dict[tuple[str, str], int] = {}
        self._unlogged: dict[tuple[str, str], int] = {}

    def published(self, record: Inspection) -> None:
        """A record went out."""
        if not record.reason:
            return
        key, now = (record.station, record.reason), self._clock_ns()
        if key in self._logged_ns and now - self._logged_ns[key] < _GAP_NS:
            self._unlogged[key] = self._unlogged.get(key, 0) + 1
            return
        self._logged_ns[key] = now
        others = self._unlogged.pop(key, 0)
        log.warning(
            "station %s: trigger %s: %s, %s%s",
            record.station,
            record.trigger_id,
            record.result_state if record.evaluation == "Undefined" else record.evaluation,
            record.reason,
            f" (and {others} more since the last such line)" if others else "",
            extra=fields(
                station=record.station,
                trigger_id=record.trigger_id,
                result_id=record.result_id,
                part_id=record.part_id or "",
                recipe=", ".join(sorted({f"{v.recipe.name}@{v.recipe.version}" for v in record.views if v.recipe})),
                recipe_set=record.recipe_set,
                evaluation=record.evaluation,
                result_state=record.result_state,
                reason=record.reason,
                seq=record.seq,
                boot=record.boot,
            ),
        )
