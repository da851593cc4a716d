"""What an MES, a gateway or a script needs: read inspections, ask for one, give commands. Copy from it freely.

    from edge_daemon.client import Subscriber

    with Subscriber("tcp://127.0.0.1:5561", station="st1") as results:
        for inspection in results:
            store(inspection)
            if results.gaps:
                note_missing(results.gaps.popleft())

Every record of the journal, whatever happens to this program, the daemon or the network:

    def keep(batch):
        with database.transaction():
            for record in batch.records:
                store(record.inspection, record.header)
            store_positions(batch.position)

    with Subscriber(replay="tcp://127.0.0.1:5566", since=load_positions()) as results:
        results.follow(keep)

A daemon that the network can reach wants to know who asks. Whoever runs it has made a key file for this program
(`edge-ctl keys enrol`); name it: `Subscriber("tcp://10.0.0.7:5561", key="mes-1.key")`.

It needs pyzmq, pydantic and `edge_daemon.wire`, nothing else of the daemon. None of it is thread-safe: one object,
one thread.
"""

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import zmq

from edge_daemon.errors import EdgeError, WireError
from edge_daemon.wire.codec import (
    RESULT_TOPIC,
    decode_control_reply,
    decode_header,
    decode_inspection,
    decode_job,
    decode_replay_reply,
    decode_trigger_reply,
    encode_request,
    topic,
)
from edge_daemon.wire.keys import ClientKey, read_client_key
from edge_daemon.wire.messages import (
    AmendmentRecord,
    ControlRequest,
    Inspection,
    JobState,
    Mode,
    ReplayReply,
    ReplayRequest,
    TriggerReply,
    TriggerRequest,
)

RESULTS: Final = "tcp://127.0.0.1:5561"
IMAGES: Final = "tcp://127.0.0.1:5562"
STATUS: Final = "tcp://127.0.0.1:5563"
TRIGGERS: Final = "tcp://127.0.0.1:5564"
CONTROL: Final = "tcp://127.0.0.1:5565"
REPLAY: Final = "tcp://127.0.0.1:5566"
AMENDMENTS: Final = "tcp://127.0.0.1:5567"

_MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
_GAPS_KEPT: Final = 10_000
_LIVE_AT_ONCE: Final = 200

# A key file, or what was read from one; None for a daemon that uses no keys.
Key = ClientKey | Path | str | None


class NoAnswerError(EdgeError):
    """The daemon did not answer in time. The text says whether it can have acted."""


class RefusedError(EdgeError):
    """The daemon refused a command. `code` is for programs, the text for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message or code)
        self.code = code


@dataclass(frozen=True, slots=True)
class Gap:
    """Results that went out and did not arrive here, `first` to `last`: ask for their replay."""

    station: str
    boot: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class BootChange:
    """The daemon started anew. Results of `old_boot` after `last_seq` may exist: its status names the last one."""

    station: str
    old_boot: int
    last_seq: int
    new_boot: int


class Position(NamedTuple):
    """The last record that a reader has of one station. `boot_id` tells this boot from one with the same number
    before the PC was set up anew; empty when it is not known."""

    boot: int
    seq: int
    boot_id: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """An inspection, and the header that it came in, byte for byte as the journal keeps it."""

    inspection: Inspection
    header: bytes


@dataclass(frozen=True, slots=True)
class Gone:
    """Records that exist no more: pruned, lost with a disk, or unreadable. `last` is None when nobody knows."""

    station: str
    boot: int
    first: int
    last: int | None


@dataclass(frozen=True, slots=True)
class Batch:
    """What `Subscriber.follow` hands over: records in order, ranges that can never come, and the position after
    them, of every station, to be stored in the same transaction."""

    records: tuple[Record, ...]
    gone: tuple[Gone, ...]
    position: dict[str, Position]


def connect(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    endpoint: str,
    *,
    high_water_mark: int = 10_000,
    key: Key = None,
) -> zmq.Socket[bytes]:
    """A connected socket that notices a dead peer within seconds. Raises EdgeError for what is no endpoint or no key
    file."""
    client_key = key if isinstance(key, ClientKey) or key is None else read_client_key(Path(key))
    socket = context.socket(kind)
    try:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, high_water_mark)
        socket.setsockopt(zmq.RCVHWM, high_water_mark)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        socket.setsockopt(zmq.HEARTBEAT_TTL, 3000)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        if client_key is not None:
            client_key.apply(socket)
        if kind == zmq.DEALER:
            # Nothing is kept for a daemon that is not there: a trigger must not arrive when its part has gone.
            socket.setsockopt(zmq.IMMEDIATE, 1)
            # Known to the daemon by this name also after a reconnect, so that a repeated request is recognised.
            socket.setsockopt(zmq.ROUTING_ID, uuid.uuid4().bytes.hex().encode())
        socket.connect(endpoint)
    except zmq.ZMQError as exc:
        socket.close(0)
        raise EdgeError(f"{endpoint!r} is no endpoint: {exc}; one looks like tcp://127.0.0.1:5561") from exc
    return socket


class Subscriber:
    """Inspections as they are published, in order, each once.

    endpoint: results socket of the daemon; station: one station, or None for all
    timeout_s: a loop over this object ends when nothing came for so long; None never ends
    since:    where an earlier run stopped, (boot, seq) or Position by station; without it the first result of each
              station starts the count, and what came before is not missed
    on_gap:   called with each Gap, besides `gaps`
    replay:   replay socket of the daemon, for `follow`
    key:      key file of this program, where the daemon uses keys

    `gaps` and `boots` hold what was noticed, oldest first (at most 10,000 each); `received`, `missed`, `repeated`
    and `malformed` count. The first messages after connecting are lost by design of publish and subscribe; a
    reader that needs every record calls `follow`.
    """

    def __init__(
        self,
        endpoint: str = RESULTS,
        station: str | None = None,
        *,
        timeout_s: float | None = None,
        since: Mapping[str, tuple[int, int] | Position] | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        replay: str | None = None,
        key: Key = None,
    ) -> None:
        self._endpoint = endpoint
        self._key = key
        self._replay = replay
        self._station = station
        self._topic = f"{RESULT_TOPIC}/".encode() if station is None else topic(RESULT_TOPIC, station)
        self._kept = {name: Position(*where) for name, where in (since or {}).items()}
        self._position = {name: (where.boot, where.seq) for name, where in self._kept.items()}
        self._boot_ids: dict[str, str] = {}
        self._timeout_s = timeout_s
        self._on_gap = on_gap
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self.gaps: deque[Gap] = deque(maxlen=_GAPS_KEPT)
        self.boots: deque[BootChange] = deque(maxlen=_GAPS_KEPT)
        self.received = 0
        self.missed = 0
        self.repeated = 0
        self.malformed = 0

    def open(self) -> None:
        """Connects and subscribes; a daemon that is not there yet is waited for in the background."""
        self.close()
        self._context = zmq.Context()
        try:
            self._socket = connect(self._context, zmq.SUB, self._endpoint, key=self._key)
        except EdgeError:
            self.close()
            raise
        self._socket.setsockopt(zmq.SUBSCRIBE, self._topic)

    def close(self) -> None:
        """May be called twice."""
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None
        if self._context is not None:
            self._context.term()
            self._context = None

    def __enter__(self) -> "Subscriber":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Inspection]:
        """Until nothing came for `timeout_s`; iterating again goes on where it ended."""
        while (inspection := self.receive(self._timeout_s)) is not None:
            yield inspection

    def receive(self, timeout_s: float | None = None) -> Inspection | None:
        """The next inspection, or None when none came within the timeout (None waits for ever)."""
        if self._socket is None:
            raise EdgeError("the subscriber is not open; use `with Subscriber(...) as results:`")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_ms = None if deadline is None else max(0, round((deadline - time.monotonic()) * 1000))
            if not self._socket.poll(left_ms):
                return None
            try:
                inspection = decode_inspection(self._socket.recv_multipart())
            except WireError:
                self.malformed += 1  # nothing to act upon; its number shows up as a gap
                continue
            if self._follows(inspection):
                self.received += 1
                return inspection

    # --- every record of the journal ----------------------------------------------------------------------------

    def follow(
        self,
        keep: Callable[[Batch], None],
        *,
        until: Callable[[], bool] | None = None,
        check_s: float = 1.0,
        amend: Callable[[tuple[AmendmentRecord, ...]], None] | None = None,
        amended_since: str = "",
    ) -> None:
        """Every record that the journal holds after `since` (without it: from its oldest on), then each new one.

        keep:    stores the records of a batch and its position in one transaction; when it raises, nothing of the
                 batch counts as kept, the error goes to the caller, and the next call of `follow` begins there
        until:   asked between two batches and at least every `check_s`; True ends
        check_s: how often the daemon is asked for what did not arrive, when nothing comes
        amend:   stores what became known of records later (what the PLC took, what the gate did), and the `position`
                 of the last one, in one transaction; asked for every `check_s`. After a journal that was begun anew
                 they begin with its oldest, so that one may come twice: by `result_id` and `body["amendment_id"]`
        amended_since: position of the last amendment that is stored; empty for all

        At least once, in order by station and boot. With positions that are stored in the records' own transaction,
        exactly once; `result_id` is a second guard. A result that went out withdrawn (`journaled` false) is handed
        over when the journal has it, if it ever does: a table kept like this says what the journal says. While the
        daemon is down this waits. Raises EdgeError when not open or without `replay`.
        """
        if self._socket is None or self._replay is None:
            raise EdgeError("to follow the journal, give the replay endpoint and use `with Subscriber(...)`")
        with ReplayClient(self._replay, key=self._key) as asker:
            check_at = time.monotonic()
            while until is None or not until():
                if time.monotonic() >= check_at:
                    self._catch_up(asker, keep)
                    if amend is not None:
                        amended_since = self._catch_up_amendments(asker, amend, amended_since)
                    check_at = time.monotonic() + check_s
                if self._socket.poll(max(0, round((check_at - time.monotonic()) * 1000))) and not self._live(keep):
                    self._catch_up(asker, keep)

    def _live(self, keep: Callable[[Batch], None]) -> bool:
        """Hands over what has arrived as far as it follows; False when a replay must tell what lies between."""
        ahead: dict[str, Position] = {}
        records: list[Record] = []
        complete = True
        for record in self._arrived():
            i = record.inspection
            at = ahead.get(i.station) or self._kept.get(i.station)
            if at is not None and (at.boot, at.boot_id) == (i.boot, i.boot_id) and i.seq <= at.seq:
                self.repeated += 1
            elif at is not None and at == (i.boot, i.seq - 1, i.boot_id) and i.journaled:
                records.append(record)
                ahead[i.station] = Position(i.boot, i.seq, i.boot_id)
            else:
                complete = False
        if records:
            self._hand_over(keep, records, [], ahead)
        return complete

    def _arrived(self) -> Iterator[Record]:
        """Messages that wait in the socket, at most some."""
        assert self._socket is not None
        for _ in range(_LIVE_AT_ONCE):
            if not self._socket.poll(0):
                return
            frames = self._socket.recv_multipart()
            try:
                yield Record(decode_inspection(frames), frames[1])
            except WireError:
                self.malformed += 1  # the journal has it, or says that it is gone

    def _catch_up(self, asker: "ReplayClient", keep: Callable[[Batch], None]) -> None:
        """Asks until the daemon has no more; silence and refusals are met by asking again later."""
        try:
            for station in self._stations_to_ask(asker):
                self._catch_up_station(asker, keep, station)
        except (NoAnswerError, RefusedError):
            return

    def _catch_up_amendments(
        self, asker: "ReplayClient", amend: Callable[[tuple[AmendmentRecord, ...]], None], since: str
    ) -> str:
        """As far as there are any; the position reached."""
        while True:
            try:
                reply = asker.amendments(since)
            except (NoAnswerError, RefusedError):
                return since
            if reply.amendments:
                amend(reply.amendments)
                since = reply.amendments[-1].position
            if not reply.more:
                return since

    def _stations_to_ask(self, asker: "ReplayClient") -> list[str]:
        if self._station is not None:
            return [self._station]
        return sorted({*asker.stations(), *self._kept})

    def _catch_up_station(self, asker: "ReplayClient", keep: Callable[[Batch], None], station: str) -> None:
        while True:
            at = self._kept.get(station, Position(0, 0))
            reply = asker.fetch(station, at.boot, at.seq + 1, boot_id=at.boot_id)
            records, gone = self._unpack(reply)
            reached = [at.seq, *(r.seq for r in reply.records), *(g.last or 0 for g in reply.gone)]
            after = Position(at.boot, max(reached), reply.boot_id or at.boot_id)
            ended = reply.next_seq is None and reply.next_boot is not None
            if ended and reply.next_boot is not None:
                after = Position(reply.next_boot, 0)
            if records or gone:
                self._hand_over(keep, records, gone, {station: after})
            elif after.boot:
                self._kept[station] = after
            if not ended and reply.next_seq is None:
                return

    def _unpack(self, reply: ReplayReply) -> tuple[list[Record], list[Gone]]:
        """A record that cannot be read is told as gone: it must not hold up all that come after it."""
        records: list[Record] = []
        gone = [Gone(reply.station, reply.boot, span.first, span.last) for span in reply.gone]
        for record in reply.records:
            try:
                inspection = decode_header(record.header.encode())
            except WireError:
                self.malformed += 1
                gone.append(Gone(reply.station, reply.boot, record.seq, record.seq))
            else:
                records.append(Record(inspection, record.header.encode()))
        return records, sorted(gone, key=lambda span: span.first)

    def _hand_over(
        self, keep: Callable[[Batch], None], records: list[Record], gone: list[Gone], ahead: Mapping[str, Position]
    ) -> None:
        position = self._kept | dict(ahead)
        keep(Batch(tuple(records), tuple(gone), dict(position)))
        self._kept = position
        self.received += len(records)
        for station, at in ahead.items():
            self._position[station] = (at.boot, at.seq)
            self._boot_ids[station] = at.boot_id

    # --- inside -------------------------------------------------------------------------------------------------

    def _follows(self, inspection: Inspection) -> bool:
        """Keeps the position, notices what is missing; False for a record that was here before."""
        station, boot, seq = inspection.station, inspection.boot, inspection.seq
        last_boot, last_seq = self._position.get(station, (boot, seq - 1))
        known_id = self._boot_ids.get(station, inspection.boot_id)
        same_boot = boot == last_boot and inspection.boot_id == known_id
        if same_boot and seq <= last_seq:
            self.repeated += 1
            return False
        # Also a lower number is a new boot: the PC was set up anew, and its records must not pass for old ones.
        if not same_boot:
            self.boots.append(BootChange(station, last_boot, last_seq, boot))
            last_seq = 0
        if seq > last_seq + 1:
            gap = Gap(station, boot, last_seq + 1, seq - 1)
            self.missed += seq - last_seq - 1
            self.gaps.append(gap)
            if self._on_gap is not None:
                self._on_gap(gap)
        self._position[station] = (boot, seq)
        self._boot_ids[station] = inspection.boot_id
        return True

    @property
    def position(self) -> dict[str, tuple[int, int]]:
        """(boot, seq) of the last inspection by station: store it with the records, give it as `since` later."""
        return dict(self._position)


class _Asker:
    """One request, one answer, over a DEALER socket; late answers of earlier requests are passed over."""

    def __init__(self, endpoint: str, timeout_s: float, key: Key) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._socket = connect(self._context, zmq.DEALER, endpoint, key=key)
        except EdgeError:
            self._context.term()
            raise

    def close(self) -> None:
        """May be called twice."""
        self._socket.close(0)
        self._context.term()

    def _ask(self, body: bytes, timeout_s: float | None) -> Iterator[bytes]:
        """Every answer that arrives until the timeout, then NoAnswerError."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s

        def ready(direction: int) -> int:
            return self._socket.poll(max(0, round((deadline - time.monotonic()) * 1000)), direction)

        if not ready(zmq.POLLOUT):
            raise NoAnswerError(
                f"nobody answers at {self._endpoint}; nothing was sent: is the daemon running, is this its address? A "
                "daemon that uses keys is silent to strangers: give the key file that was made for this program"
            )
        self._socket.send_multipart([b"", body], zmq.DONTWAIT)
        while ready(zmq.POLLIN):
            yield self._socket.recv_multipart()[-1]
        raise NoAnswerError(
            f"{self._endpoint} did not answer within {timeout_s:g} s, and may have acted all the same: ask again with "
            "the same request id"
        )


class ReplayClient(_Asker):
    """Asks for records that the journal holds. `Subscriber.follow` does so by itself.

    with ReplayClient() as replay:
        print(replay.stations(), replay.fetch("st1", 7, 1).records)
    """

    def __init__(self, endpoint: str = REPLAY, timeout_s: float = 2.0, *, key: Key = None) -> None:
        super().__init__(endpoint, timeout_s, key)

    def __enter__(self) -> "ReplayClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stations(self) -> tuple[str, ...]:
        """Stations that the journal knows. Raises RefusedError, NoAnswerError."""
        return self._request(ReplayRequest(request_id=uuid.uuid4().hex)).stations

    def fetch(
        self, station: str, boot: int, first: int = 1, last: int | None = None, *, boot_id: str = ""
    ) -> ReplayReply:
        """The first records of a range: `next_seq` and `next_boot` say where to go on. Boot 0 asks for the oldest.
        Raises RefusedError, NoAnswerError."""
        return self._request(
            ReplayRequest(
                request_id=uuid.uuid4().hex, station=station, boot=boot, boot_id=boot_id, first=first, last=last
            )
        )

    def amendments(self, after: str = "") -> ReplayReply:
        """What became known of records after they went out, of all stations, oldest first; `more` says whether to ask
        again with the last one's position. Raises RefusedError, NoAnswerError."""
        return self._request(ReplayRequest(request_id=uuid.uuid4().hex, amendments_after=after))

    def _request(self, request: ReplayRequest) -> ReplayReply:
        for body in self._ask(encode_request(request), None):
            reply = decode_replay_reply(body)
            if reply.request_id != request.request_id:
                continue
            if not reply.ok:
                raise RefusedError(reply.reason, reply.message)
            return reply
        raise AssertionError("unreachable: _ask ends in NoAnswerError")


class TriggerClient(_Asker):
    """Asks for inspections.

    with TriggerClient() as triggers:
        reply = triggers.trigger("st1", "4711")
    """

    def __init__(self, endpoint: str = TRIGGERS, timeout_s: float = 2.0, *, key: Key = None) -> None:
        super().__init__(endpoint, timeout_s, key)

    def __enter__(self) -> "TriggerClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def trigger(
        self,
        station: str,
        trigger_id: str,
        *,
        part_id: str | None = None,
        job: str | None = None,
        mode: Mode | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> TriggerReply:
        """Whether the trigger was accepted; the verdict comes on the results socket.

        request_id: give the same one to repeat a request whose answer did not come; no second part is inspected
        Raises NoAnswerError; WireError when the request itself cannot be written.
        """
        request = TriggerRequest.model_construct(
            request_id=request_id or uuid.uuid4().hex,
            station=station,
            trigger_id=trigger_id,
            part_id=part_id,
            job=job,
            mode=mode,
        )
        for body in self._ask(encode_request(request), timeout_s):
            reply = decode_trigger_reply(body)
            if reply.request_id == request.request_id:
                return reply
        raise AssertionError("unreachable: _ask ends in NoAnswerError")


class ControlClient(_Asker):
    """Gives commands.

    with ControlClient() as control:
        print(control.request("status"))
    """

    def __init__(self, endpoint: str = CONTROL, timeout_s: float = 5.0, *, key: Key = None) -> None:
        super().__init__(endpoint, timeout_s, key)

    def __enter__(self) -> "ControlClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self,
        command: str,
        args: dict[str, Any] | None = None,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """The result of a command; for a slow one {"job": id}, to be given to `wait`.

        Raises RefusedError when the daemon refuses, NoAnswerError when it is silent.
        """
        request = ControlRequest.model_construct(
            request_id=request_id or uuid.uuid4().hex, command=command, args=dict(args or {})
        )
        for body in self._ask(encode_request(request), timeout_s):
            reply = decode_control_reply(body)
            if reply.request_id != request.request_id:
                continue
            if not reply.ok:
                fault = reply.error
                raise RefusedError(fault.code if fault else "refused", fault.message if fault else "")
            return (reply.result or {}) | ({"job": reply.job} if reply.job else {})
        raise AssertionError("unreachable: _ask ends in NoAnswerError")

    def job(self, job: str) -> JobState:
        """How far a job is. Raises RefusedError, NoAnswerError."""
        return decode_job(self.request("job", {"job": job}))

    def wait(self, job: str, timeout_s: float = 600.0, ask_every_s: float = 0.2) -> JobState:
        """The end of a job, done or failed. Raises NoAnswerError when it has none within the timeout."""
        deadline = time.monotonic() + timeout_s
        while True:
            state = self.job(job)
            if state.state != "running":
                return state
            if time.monotonic() + ask_every_s > deadline:
                raise NoAnswerError(f"job {job} is still running after {timeout_s:g} s; ask again later")
            time.sleep(ask_every_s)
