"""What the gateway reports of verdicts that went out: into the journal, and an alarm where it is an accident.

A report changes no record and no verdict, and nothing that judges reads one. See DESIGN 5.5 and
deploy/decisions/0017-amendments.md.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from edge_daemon.core.strict_json import parse_strictly
from edge_daemon.edges.journal_entries import Report, Reported
from edge_daemon.edges.standing import Kept, StandingAlarmError
from edge_daemon.wire.messages import AmendmentReply, AmendmentRequest

_MEANINGS: Final = {
    "pending": "its record is not on the disk yet; tell it again",
    "unknown_result": "the journal has no such record of this station and trigger: never accepted, pruned, or lost",
    "amendment_id_reused": "this amendment id was used for something else",
    "too_many": "this record has as many reports as one may have",
}
# The gate let the part through, or nothing shows that it did not.
_MAY_HAVE_PASSED: Final = frozenset({"passed", "gate_failure"})


class ReportJournal(Protocol):
    """What the desk needs of a journal."""

    def report(self, report: Report, on_done: Callable[[Reported], None]) -> None: ...


@dataclass(slots=True)
class AmendmentCounts:
    """recorded: by kind; passed_without_ok: parts that may have passed although nothing released them, each once."""

    deliveries: int = 0
    dispositions: int = 0
    repeated: int = 0
    refused: int = 0
    not_written: int = 0
    passed_without_ok: int = 0


class AmendmentDesk:
    """Answers the amendments socket, once the report is on the disk.

    alarm: told in the journal's thread of a part that may have passed without an OK (station, its trigger, what
           happened); whether it is told for the first time. The gateway is answered when the alarm is kept: until
           then it tells the part again, whoever is restarted meanwhile.
    """

    def __init__(self, journal: ReportJournal, alarm: Callable[[str, str, str, Kept], bool]) -> None:
        self._journal = journal
        self._alarm = alarm
        self._lock = threading.Lock()  # guards what follows
        self._counts = AmendmentCounts()

    def handle(self, request: AmendmentRequest, reply: Callable[[AmendmentReply], None]) -> None:
        """The answer comes from the journal's thread. Raises JournalError."""
        report = Report(
            station=request.station,
            trigger_id=request.trigger_id,
            result_id=request.result_id,
            kind=request.kind,
            amendment_id=request.amendment_id,
            body=_body(request),
        )
        self._journal.report(report, lambda reported: self._reported(request, reported, reply))

    def stats(self) -> AmendmentCounts:
        """A copy."""
        with self._lock:
            return replace(self._counts)

    def _reported(self, request: AmendmentRequest, reported: Reported, reply: Callable[[AmendmentReply], None]) -> None:
        self._count(request, reported)
        accident = None
        if reported.error is None and reported.fate != "pending":
            accident = why_an_accident(request, reported.header)
        if accident is None:
            reply(_answer(request, reported))
            return

        def kept(error: StandingAlarmError | None) -> None:
            reply(_answer(request, reported, error))

        if self._alarm(request.station, request.trigger_id, accident, kept):
            with self._lock:
                self._counts.passed_without_ok += 1

    def _count(self, request: AmendmentRequest, reported: Reported) -> None:
        with self._lock:
            counts = self._counts
            if reported.error is not None or reported.fate == "pending":
                counts.not_written += 1
            elif reported.fate == "repeated":
                counts.repeated += 1
            elif reported.fate != "recorded":
                counts.refused += 1
            elif request.kind == "delivery":
                counts.deliveries += 1
            else:
                counts.dispositions += 1


def why_an_accident(request: AmendmentRequest, header: bytes) -> str | None:
    """What to tell people when a part may have passed that nothing released; None when all is well. header: of its
    record, empty where there is none."""
    if request.what not in _MAY_HAVE_PASSED or request.kind != "disposition":
        return None
    why = _unreleased(request, header)
    if why is None:
        return None
    happened = (
        "passed the gate" if request.what == "passed" else "was not seen by the reject sensor, and may have passed"
    )
    return (
        f"part {request.acquisition_id} (trigger {request.trigger_id}) {happened}, and {why}: hold what was made "
        "since, find the part, look at gate, sensor and the PLC's program"
    )


def _unreleased(request: AmendmentRequest, header: bytes) -> str | None:
    if not header:
        return "it has no record"
    record: dict[str, Any] = parse_strictly(header.decode())
    if record.get("evaluation") != "OK":
        return f"its record says {record.get('evaluation')} ({record.get('reason') or 'judged so'})"
    shown = request.verdict == "OK" or (request.verdict == "COMMISSIONING_OK" and record.get("simulated") is True)
    return None if shown else f"the PLC was never shown its OK, but {request.verdict}"


def _body(request: AmendmentRequest) -> dict[str, Any]:
    """What the journal keeps beside the record's id and the kind."""
    return request.model_dump(
        mode="json", exclude={"schema_", "request_id", "station", "trigger_id", "result_id", "kind"}
    )


def _answer(
    request: AmendmentRequest, reported: Reported, not_kept: StandingAlarmError | None = None
) -> AmendmentReply:
    """not_kept: why the alarm of it does not outlive the daemon yet."""
    error = reported.error or not_kept
    ok = error is None and reported.fate in ("recorded", "repeated")
    reason = "" if ok else "journal" if error is not None else reported.fate
    return AmendmentReply(
        request_id=request.request_id,
        amendment_id=request.amendment_id,
        ok=ok,
        result_id=reported.result_id,
        reason=reason,
        message=str(error) if error is not None else _MEANINGS.get(reason, ""),
    )
