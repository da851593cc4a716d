"""The way of an outcome out of the daemon: journal first, then the wire, in order; no OK that is not durable."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_daemon.core.decision import Reason
from edge_daemon.edges.journal_entries import Concluded, Intent, OutcomeTwiceError
from edge_daemon.errors import JournalError
from edge_daemon.wire.codec import inspection_frames
from edge_daemon.wire.messages import Inspection, Provenance, Times

log = logging.getLogger(__name__)


class OutcomeJournal(Protocol):
    """What Records needs of a journal."""

    def conclude(self, draft: Inspection, on_done: Callable[[Concluded], None]) -> Inspection: ...

    def withdraw(self, inspection: Inspection) -> Concluded: ...


class ResultPublisher(Protocol):
    """What Records needs of a publisher; never blocks, False when the message was not taken."""

    def publish_result(self, frames: Sequence[bytes]) -> bool: ...


@dataclass(frozen=True, slots=True)
class RecordsStats:
    """waiting: concluded and not yet published; bounded by the commit budget, after which each goes out withdrawn.
    withdrawn: went out with journaled False. late_commits: reached the disk after they had been withdrawn.
    second_outcomes: refused, never published. not_taken: durable, but the publisher's queue was full (replay)."""

    waiting: int
    published: int
    withdrawn: int
    late_commits: int
    second_outcomes: int
    not_taken: int


@dataclass(slots=True, eq=False)
class _Outcome:
    """One outcome between its conclusion and its publication."""

    due_ns: int
    inspection: Inspection | None = None
    end: Concluded | None = None
    left: bool = False


class Records:
    """Publishes outcomes in the order of their conclusion, each only once durable.

    journal:          numbers and keeps
    publisher:        takes the frames; a slow subscriber is its business
    commit_budget_ns: how long a record may take to reach the disk. Past it, or when the commit fails, what goes out
                      is Failed/journal with journaled False, under the same seq and result_id
    on_published:     told each outcome as it went out, in order, one at a time: from the thread that tells of its
                      commit, or from this object's own; must be short
    clock_ns:         monotonic clock
    on_fatal:         told when `on_published` or the thread fails in a way nobody foresaw

    `conclude` never waits for the disk or the network. The queue has no limit of its own: nothing stays in it
    longer than the budget. What is durable goes out in the thread that says so: every hand-over to another thread
    costs a tenth of a millisecond and more on a PC whose cores are busy. This object's own thread only looks for
    what is out of time.
    """

    def __init__(
        self,
        journal: OutcomeJournal,
        publisher: ResultPublisher,
        commit_budget_ns: int,
        on_published: Callable[[Inspection], None],
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        if commit_budget_ns <= 0:
            raise ValueError("the commit budget must be positive")
        self._journal = journal
        self._publisher = publisher
        self._budget_ns = commit_budget_ns
        self._on_published = on_published
        self._clock_ns = clock_ns
        self._on_fatal = on_fatal
        # Re-entrant: a journal whose queue is full answers inside `conclude`.
        self._wake = threading.Condition(threading.RLock())
        self._waiting: deque[_Outcome] = deque()
        self._closing = False
        self._broken = False
        self._thread: threading.Thread | None = None
        self._published = 0
        self._withdrawn = 0
        self._late_commits = 0
        self._second_outcomes = 0
        self._not_taken = 0

    def open(self) -> None:
        """Starts publishing."""
        if self._thread is not None or self._closing:
            raise JournalError("records are open already, or were closed")
        self._thread = threading.Thread(target=self._watch, name="records", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Publishes what waits, each within its budget, and stops. May be called twice."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> "Records":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def conclude(self, draft: Inspection) -> Inspection | None:
        """The outcome of a trigger; see `Journal.conclude`. Returns it as numbered, before it is durable.

        None when the trigger has its outcome already: counted, logged, not published. Raises JournalError when
        closed: the caller must not stop this before itself.
        """
        with self._wake:
            if self._closing or self._thread is None:
                raise JournalError(f"the outcome of trigger {draft.trigger_id} comes while records are closed")
            outcome = _Outcome(self._clock_ns() + self._budget_ns)
            try:
                outcome.inspection = self._journal.conclude(draft, lambda end: self._ended(outcome, end))
            except OutcomeTwiceError as exc:
                self._second_outcomes += 1
                log.warning("%s", exc)
                return None
            self._waiting.append(outcome)
            self._publish_ended()
            return outcome.inspection

    def conclude_unfinished(self, intents: Iterable[Intent], provenance: Provenance) -> int:
        """Gives the triggers that a crash left without outcome their one record, Failed/restarted; how many."""
        return sum(self.conclude(restarted(intent, provenance)) is not None for intent in intents)

    def stats(self) -> RecordsStats:
        with self._wake:
            return RecordsStats(
                waiting=len(self._waiting),
                published=self._published,
                withdrawn=self._withdrawn,
                late_commits=self._late_commits,
                second_outcomes=self._second_outcomes,
                not_taken=self._not_taken,
            )

    def _ended(self, outcome: _Outcome, end: Concluded) -> None:
        """From the journal's thread. A commit after the budget is late even where nobody has looked yet."""
        with self._wake:
            if outcome.left:
                self._late_commits += end.error is None
                return
            if end.error is None and self._clock_ns() > outcome.due_ns:
                self._late_commits += 1
                end = self._journal.withdraw(end.inspection)
            outcome.end = end
            self._publish_ended()

    def _publish_ended(self) -> None:
        """Under the lock: the oldest outcomes that have ended, in order; after a defect none."""
        try:
            while not self._broken and self._waiting and (end := self._waiting[0].end) is not None:
                self._waiting.popleft().left = True
                self._publish(end)
        except BaseException as exc:
            self._end_for(exc)
        if self._closing and not self._waiting:
            self._wake.notify_all()

    def _end_for(self, exc: BaseException) -> None:
        log.critical("the way of the records out ends: %s", exc, exc_info=True)
        self._closing = True
        self._broken = True
        self._wake.notify_all()
        if self._on_fatal is None:
            raise exc
        self._on_fatal(exc)

    def _watch(self) -> None:
        """Withdraws what is out of time. Nobody has to wake this thread for a new outcome: it is due a whole budget
        after its conclusion, and this thread never sleeps longer."""
        with self._wake:
            while not self._broken and (self._waiting or not self._closing):
                left_ns = self._waiting[0].due_ns - self._clock_ns() if self._waiting else self._budget_ns
                if left_ns > 0:
                    self._wake.wait(left_ns / 1e9)
                    continue
                try:
                    outcome = self._waiting[0]
                    assert outcome.inspection is not None
                    outcome.end = self._journal.withdraw(outcome.inspection)
                except BaseException as exc:
                    self._end_for(exc)
                    return
                self._publish_ended()

    def _publish(self, end: Concluded) -> None:
        """Under the lock."""
        if isinstance(end.error, OutcomeTwiceError):
            self._second_outcomes += 1
            log.warning("%s", end.error)
            return
        if end.error is not None:
            log.error("result %s goes out withdrawn: %s", end.inspection.result_id, end.error)
        taken = self._publisher.publish_result(inspection_frames(end.inspection.station, end.header))
        self._published += 1
        self._withdrawn += end.error is not None
        self._not_taken += not taken
        self._on_published(end.inspection)


def restarted(intent: Intent, provenance: Provenance) -> Inspection:
    """Draft of the record of a trigger whose daemon died before it had an outcome."""
    return Inspection(
        line="",
        station=intent.station,
        boot=0,
        boot_id="",
        seq=0,
        result_id=intent.result_id,
        trigger_id=intent.trigger_id,
        part_id=intent.part_id,
        attempt=intent.attempt,
        mode=intent.mode,
        provisional=intent.provisional,
        simulated=intent.simulated,
        evaluation="Undefined",
        result_state="Failed",
        reason=Reason.RESTARTED.value,
        recipe_set=intent.recipe_set,
        provenance=provenance,
        times=Times(
            utc=intent.accepted_utc,
            utc_uncertainty_us=intent.utc_uncertainty_us,
            clock_quality=intent.clock_quality,
        ),
        deadline_ms=intent.deadline_ms,
    )
