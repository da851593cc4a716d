"""The audit trail: every command, accepted or refused, with who, as what, from where, when, and what came of it.

A file of its own, one JSON object a line, only ever appended to and on the disk before the command is carried out: a
command that changes something and cannot be recorded is refused. Each line carries the hash of the line before, so that
one that was changed or taken out is noticed. Why not the journal: its rows are the parts' records, kept by age and
size; a trail of commands is small, is never pruned, and must be readable with any editor.

What only looks (`status`) and what is refused could be asked a thousand times a second: the first is written at once,
its repetitions within a minute as one line with their number.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, Literal

from edge_daemon.edges.door import Peer
from edge_daemon.edges.server import Refusal
from edge_daemon.errors import EdgeError
from edge_daemon.wire.messages import ControlReply, ControlRequest, JobState
from edge_daemon.wire.roles import permission

log = logging.getLogger(__name__)

Outcome = Literal["begun", "done", "failed", "refused"]

_SUM_UP_NS: Final = 60_000_000_000
_SUMS_KEPT: Final = 256
_MOST_ARGS_BYTES: Final = 2_048
_MOST_MESSAGE_CHARS: Final = 500
_TAIL_BYTES: Final = 65_536


class AuditError(EdgeError):
    """The audit trail cannot be written or read."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line. role: empty for a program of this PC where no keys are used, and for the daemon itself. outcome:
    `begun` before a command is carried out, then `done` or `failed`; `refused` when it was not carried out at all.
    times: how many like it there were. previous: SHA-256 of the line before, empty in the first."""

    number: int
    utc: str
    who: str
    role: str
    address: str
    command: str
    outcome: Outcome
    args: dict[str, Any]
    request_id: str = ""
    code: str = ""
    message: str = ""
    times: int = 1
    previous: str = ""


@dataclass(slots=True)
class _Sum:
    """Like entries that are being counted and not yet written."""

    entry: AuditEntry
    until_ns: int
    unwritten: int = 0


class AuditTrail:
    """Appends to the file. Any thread may call; each call waits for the disk.

    tell: called with every entry that is written and is not a sum
    utc:  time as text
    """

    def __init__(
        self,
        path: Path,
        utc: Callable[[], str],
        tell: Callable[[AuditEntry], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._path = path
        self._utc = utc
        self._tell = tell
        self._clock_ns = clock_ns
        self._lock = threading.Lock()  # guards everything below
        self._file: IO[bytes] | None = None
        self._number = 0
        self._previous = ""
        self._sums: dict[tuple[str, ...], _Sum] = {}
        self._failing = ""

    def open(self) -> None:
        """Raises AuditError."""
        try:
            self._file = self._path.open("a+b", buffering=0)
            os.fchmod(self._file.fileno(), 0o640)
            self._find_end(self._file)
        except OSError as exc:
            self.close()
            raise AuditError(f"the audit trail {self._path} cannot be opened: {exc.strerror or exc}") from exc

    def _find_end(self, file: IO[bytes]) -> None:
        """The last line; one that a loss of power cut short is taken away: its command was not carried out."""
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
        whole, newline, torn = tail.rpartition(b"\n")
        if torn:
            log.warning("the last line of %s was not written to its end; it is taken away", self._path)
            os.ftruncate(file.fileno(), size - len(torn))
        if not newline:
            return
        last = whole.rpartition(b"\n")[2]
        self._previous = hashlib.sha256(last).hexdigest()
        try:
            self._number = int(json.loads(last)["number"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            log.error("the last line of %s is no entry; the numbers begin anew", self._path)

    def close(self) -> None:
        """Writes the sums. May be called twice."""
        with self._lock:
            if self._file is not None:
                for known in list(self._sums.values()):
                    self._write_sum(known)
                self._sums.clear()
                self._file.close()
                self._file = None

    @property
    def failing(self) -> str:
        """Why the last entry could not be written; empty when it could."""
        return self._failing

    def record(
        self,
        peer: Peer,
        command: str,
        outcome: Outcome,
        *,
        args: dict[str, Any] | None = None,
        request_id: str = "",
        code: str = "",
        message: str = "",
    ) -> None:
        """One entry, on the disk when this returns. Raises AuditError."""
        entry = self._entry(peer, command, outcome, args or {}, request_id, code, message)
        with self._lock:
            written = self._append(entry)
        self._tell(written)

    def sum_up(
        self, peer: Peer, command: str, outcome: Outcome, *, request_id: str = "", code: str = "", message: str = ""
    ) -> None:
        """An entry whose like may come a thousand times. Never raises: `failing` and the log tell."""
        entry = self._entry(peer, command, outcome, {}, request_id, code, message)
        key = (peer.name, peer.address, command, outcome, code)
        now_ns = self._clock_ns()
        with self._lock:
            try:
                self._write_old_sums(now_ns)
                known = self._sums.get(key)
                if known is not None:
                    known.unwritten += 1
                    return
                if len(self._sums) < _SUMS_KEPT:
                    self._sums[key] = _Sum(entry, now_ns + _SUM_UP_NS)
                written = self._append(entry)
            except AuditError as exc:
                log.error("%s", exc)
                return
        if outcome == "refused":
            self._tell(written)

    def _entry(
        self,
        peer: Peer,
        command: str,
        outcome: Outcome,
        args: dict[str, Any],
        request_id: str,
        code: str,
        message: str,
    ) -> AuditEntry:
        size = len(json.dumps(args))
        return AuditEntry(
            number=0,
            utc=self._utc(),
            who=peer.name,
            role=peer.role or "",
            address=peer.address,
            command=command,
            outcome=outcome,
            args=args if size <= _MOST_ARGS_BYTES else {"left_out_bytes": size},
            request_id=request_id,
            code=code,
            message=message[:_MOST_MESSAGE_CHARS],
        )

    def _write_old_sums(self, now_ns: int) -> None:
        for key, known in list(self._sums.items()):
            if now_ns >= known.until_ns:
                del self._sums[key]
                self._write_sum(known)

    def _write_sum(self, known: _Sum) -> None:
        if known.unwritten:
            self._append(replace(known.entry, utc=self._utc(), times=known.unwritten))

    def _append(self, entry: AuditEntry) -> AuditEntry:
        if self._file is None:
            raise AuditError("the audit trail is closed")
        numbered = replace(entry, number=self._number + 1, previous=self._previous)
        line = json.dumps(asdict(numbered), separators=(",", ":")).encode()
        before = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line + b"\n") != len(line) + 1:
                raise OSError(None, "no space for a whole line")
            os.fsync(self._file.fileno())
        except OSError as exc:
            self._failing = f"the audit trail {self._path} cannot be written: {exc.strerror or exc}; make room"
            os.ftruncate(self._file.fileno(), before)
            raise AuditError(self._failing) from exc
        self._failing = ""
        self._number, self._previous = numbered.number, hashlib.sha256(line).hexdigest()
        return numbered


class ControlAudit:
    """Stands between the control socket and its desk: rules by the table of roles, and records."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    def admit(self, peer: Peer, request: ControlRequest) -> Refusal | None:
        """Before a command is carried out."""
        rule = permission(request.command)
        if not peer.may(rule.roles):
            text = f"{request.command} is for {' and '.join(sorted(rule.roles))}; {peer.name} is {peer.role}"
            self._trail.sum_up(
                peer, request.command, "refused", request_id=request.request_id, code="forbidden", message=text
            )
            return Refusal("forbidden", text)
        if rule.changes:
            try:
                self._trail.record(peer, request.command, "begun", args=request.args, request_id=request.request_id)
            except AuditError as exc:
                return Refusal("audit", f"{exc}. Nothing is changed that cannot be recorded")
        return None

    def ended(self, peer: Peer, request: ControlRequest, answer: ControlReply) -> None:
        """After a command that was admitted."""
        outcome: Outcome = "done" if answer.ok else "failed"
        code, message = ("", f"job {answer.job}" if answer.job else "")
        if answer.error is not None:
            code, message = answer.error.code, answer.error.message
        if not permission(request.command).changes:
            self._trail.sum_up(
                peer, request.command, outcome, request_id=request.request_id, code=code, message=message
            )
            return
        self._record(peer, request.command, outcome, request.request_id, code, message)

    def reloaded(self, changes: dict[str, Any]) -> None:
        """After SIGHUP: who may send it to the daemon could stop it as well."""
        self._record(Peer("SIGHUP", None), "reload_keys", "done", "", "", json.dumps(changes))

    def job_ended(self, state: JobState) -> None:
        """After a slow command, in its own thread."""
        error = state.error
        code, message = (error.code, error.message) if error is not None else ("", "")
        outcome: Outcome = "failed" if error is not None else "done"
        self._record(Peer(f"job {state.job}", None), state.command, outcome, "", code, message)

    def _record(self, peer: Peer, command: str, outcome: Outcome, request_id: str, code: str, message: str) -> None:
        """What has happened already cannot be refused any more."""
        try:
            self._trail.record(peer, command, outcome, request_id=request_id, code=code, message=message)
        except AuditError as exc:
            log.error("%s", exc)


@dataclass(frozen=True, slots=True)
class AuditLine:
    """A line as it was read. entry: None when it is none. problem: what is wrong with it, or missing before it; empty
    when nothing is."""

    number: int
    entry: AuditEntry | None
    problem: str = ""


def read_trail(path: Path) -> Iterator[AuditLine]:
    """Every line in order, held against the hash of the one before. May run beside the daemon. Raises AuditError."""
    previous = ""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    return  # being written just now, or cut short; the daemon takes it away
                yield _line(number, raw[:-1], previous)
                previous = hashlib.sha256(raw[:-1]).hexdigest()
    except FileNotFoundError:
        return
    except OSError as exc:
        raise AuditError(f"the audit trail {path} cannot be read: {exc.strerror or exc}") from exc


def _line(number: int, raw: bytes, previous: str) -> AuditLine:
    try:
        entry = AuditEntry(**json.loads(raw))
    except (ValueError, TypeError, RecursionError):
        return AuditLine(number, None, f"line {number} is no entry")
    if entry.previous != previous:
        return AuditLine(number, entry, f"line {number} does not follow the one before: one was changed or taken out")
    return AuditLine(number, entry)
