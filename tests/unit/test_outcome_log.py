"""What the log says of parts without a verdict."""

import logging
from typing import Any

import pytest

from edge_daemon.pipeline.outcome_log import OutcomeLog
from tests.wire_kit import inspection

S = 1_000_000_000


def _failed(trigger_id: str, reason: str = "camera", station: str = "st1") -> Any:
    changes = {"evaluation": "Undefined", "result_state": "Failed", "reason": reason, "trigger_id": trigger_id}
    return inspection().model_copy(update={**changes, "station": station})


def test_a_failed_part_is_found_by_its_station_and_trigger(caplog: pytest.LogCaptureFixture) -> None:
    OutcomeLog(lambda: S).published(_failed("4711"))
    (line,) = caplog.records
    assert line.getMessage() == "station st1: trigger 4711: Failed, camera"
    found = line.journal_fields  # type: ignore[attr-defined]
    assert (found["STATION"], found["TRIGGER_ID"], found["REASON"]) == ("st1", "4711", "camera")
    assert "RECIPE_SET" in found
    assert line.levelno == logging.WARNING


def test_a_part_with_a_plain_verdict_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    OutcomeLog(lambda: S).published(inspection().model_copy(update={"reason": ""}))
    assert not caplog.records


def test_a_flood_of_missed_triggers_is_one_line_a_second_that_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    now = [0]
    log = OutcomeLog(lambda: now[0])
    for number in range(10_000):
        now[0] += S // 5_000
        log.published(_failed(str(number), "missed_busy"))
    log.published(_failed("other station", "missed_busy", "st2"))
    log.published(_failed("other reason", "camera"))
    told = [line.getMessage() for line in caplog.records]
    assert len(told) == 4
    assert told[1] == "station st1: trigger 5000: Failed, missed_busy (and 4999 more since the last such line)"
