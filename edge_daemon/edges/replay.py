"""Answers requests for records that a reader has missed. See DESIGN 5.5."""

from collections.abc import Callable
from typing import Final, Protocol

from edge_daemon.edges.journal_chain import Head, parse_head
from edge_daemon.edges.journal_entries import KnownBoot, Laters, Replay
from edge_daemon.errors import JournalError
from edge_daemon.wire.messages import AmendmentRecord, ReplayRecord, ReplayReply, ReplayRequest, SeqRange

# Records of one answer: at most 1.6 MB, a few milliseconds of reading.
RECORDS_AT_ONCE: Final = 200
_NO_END: Final = 2**62


class ReplaySource(Protocol):
    """What ReplayDesk needs of a journal. All raise JournalError."""

    def read(self, station: str, boot: int, first: int, last: int, limit: int = 1000) -> Replay: ...

    def boots(self) -> tuple[KnownBoot, ...]: ...

    def stations(self) -> tuple[str, ...]: ...

    def later(self, after: Head | None, limit: int = 1000) -> Laters: ...


class ReplayDesk:
    """Answers the replay socket, in its server's thread: nothing else waits for it.

    journal:   where the records are
    own_boot:  number of this boot
    published: last seq of a station in this boot that has gone out on the results socket. A replay never says more:
               a record that is on the disk and about to be withdrawn must not be told as OK in between
    """

    def __init__(self, journal: ReplaySource, own_boot: int, published: Callable[[str], int]) -> None:
        self._journal = journal
        self._own_boot = own_boot
        self._published = published

    def handle(self, request: ReplayRequest, reply: Callable[[ReplayReply], None]) -> None:
        """Answers at once."""
        try:
            reply(self.answer(request))
        except JournalError as exc:
            reply(ReplayReply(ok=False, reason="failed", message=str(exc)))

    def answer(self, request: ReplayRequest) -> ReplayReply:
        """Raises JournalError when the journal cannot be read."""
        if request.amendments_after is not None:
            return self._amendments(request.amendments_after)
        if request.last is not None and request.last < request.first:
            return ReplayReply(ok=False, reason="malformed", message="last is below first")
        boots = self._journal.boots()
        if not request.station:
            return ReplayReply(
                ok=True, boot=0, next_boot=_after(boots, 0), stations=tuple(sorted(self._journal.stations()))
            )
        known = next((b for b in boots if b.number == request.boot), None)
        if known is not None and request.boot_id in ("", known.boot_id):
            return self._of(known, request, _after(boots, known.number))
        gone = () if request.boot == 0 else (SeqRange(first=request.first, last=request.last),)
        # A number that is known under another id, or above all: this PC was set up anew, and counts from the oldest.
        anew = known is not None or all(b.number < request.boot for b in boots)
        next_boot = _after(boots, 0 if anew else request.boot)
        return ReplayReply(ok=True, station=request.station, boot=request.boot, gone=gone, next_boot=next_boot)

    def _amendments(self, after: str) -> ReplayReply:
        try:
            position = parse_head(after) if after else None
        except JournalError as exc:
            return ReplayReply(ok=False, reason="malformed", message=str(exc))
        found = self._journal.later(position, RECORDS_AT_ONCE)
        return ReplayReply(
            ok=True,
            amendments=tuple(
                AmendmentRecord(
                    position=later.position,
                    station=later.station,
                    result_id=later.result_id,
                    kind=later.amendment.kind,
                    utc=later.amendment.utc,
                    body=later.amendment.body,
                )
                for later in found.entries
            ),
            more=found.more,
            begun_anew=found.begun_anew,
        )

    def _of(self, boot: KnownBoot, request: ReplayRequest, next_boot: int | None) -> ReplayReply:
        last = request.last or _NO_END
        if boot.number == self._own_boot:
            last = min(last, self._published(request.station))
        found = Replay((), (), None)
        if last >= request.first:
            found = self._journal.read(request.station, boot.number, request.first, last, RECORDS_AT_ONCE)
        return ReplayReply(
            ok=True,
            station=request.station,
            boot=boot.number,
            boot_id=boot.boot_id,
            records=tuple(
                ReplayRecord(seq=e.seq, result_id=e.result_id, header=e.header.decode()) for e in found.entries
            ),
            gone=tuple(SeqRange(first=first, last=end) for first, end in found.gone),
            next_seq=found.next_seq,
            next_boot=next_boot,
        )


def _after(boots: tuple[KnownBoot, ...], number: int) -> int | None:
    return min((b.number for b in boots if b.number > number), default=None)
