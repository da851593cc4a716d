"""Requests and answers over ROUTER sockets: triggers, control, replay, amendments, each with a thread of its own.

Limits and what happens at them: at most `max_outstanding` requests without an answer, of one client at most
`max_outstanding_per_client`, more are refused with `busy`; more than `max_per_s` a second of one client are refused
with `too_fast`, and whoever goes on all the same is cut off; the last `remembered` answers are kept for clients that
repeat a request; a frame longer than `max_request_bytes` ends its connection; more than four frames are no request; an
answer that its client does not read is dropped. All are counted.
"""

import hashlib
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

import zmq

from edge_daemon.edges.allowance import Allowance, Ruling
from edge_daemon.edges.door import Door, OpenDoor, Peer, Visitor
from edge_daemon.edges.owner import SocketOwner
from edge_daemon.edges.sockets import Wake, bind
from edge_daemon.errors import EdgeError, WireError
from edge_daemon.wire.codec import (
    decode_amendment_request,
    decode_control_request,
    decode_replay_request,
    decode_trigger_request,
    encode_request,
    parse_json,
)
from edge_daemon.wire.messages import (
    AmendmentReply,
    AmendmentRequest,
    ControlFault,
    ControlReply,
    ControlRequest,
    ReplayReply,
    ReplayRequest,
    TriggerReply,
    TriggerRequest,
)

log = logging.getLogger(__name__)

Q = TypeVar("Q", TriggerRequest, ControlRequest, ReplayRequest, AmendmentRequest)
A = TypeVar("A", TriggerReply, ControlReply, ReplayReply, AmendmentReply)

_MOST_FRAMES: Final = 4
# Clients whose rate is known; the one that has been silent longest is forgotten first.
_CLIENTS_KEPT: Final = 1_024
# Requests that are read before the next look at answers that wait.
_READ_AT_ONCE: Final = 500
# Requests of one client that were read and not yet looked at; more are refused with `too_fast`.
_MOST_WAITING: Final = 64
# What a flood left unread still arrives after its connection was ended, and is no reason to end another one.
_CUT_AGAIN_NS: Final = 1_000_000_000
_WARN_EVERY_NS: Final = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a client may not ask this. code: for programs; message: for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Dialogue(Generic[Q, A]):
    """What differs between triggers and control.

    decode: body -> request, raises WireError
    echo:   fields of the answer that say which request it answers
    refuse: code for programs, message for people -> answer
    """

    name: str
    decode: Callable[[bytes], Q]
    echo: Callable[[Q], dict[str, str]]
    refuse: Callable[[str, str], A]


def _refuse_trigger(code: str, message: str) -> TriggerReply:
    return TriggerReply(accepted=False, reason=code, message=message)


def _refuse_control(code: str, message: str) -> ControlReply:
    return ControlReply(ok=False, error=ControlFault(code=code, message=message))


def _refuse_replay(code: str, message: str) -> ReplayReply:
    return ReplayReply(ok=False, reason=code, message=message)


def _refuse_amendment(code: str, message: str) -> AmendmentReply:
    return AmendmentReply(ok=False, reason=code, message=message)


TRIGGERS: Final[Dialogue[TriggerRequest, TriggerReply]] = Dialogue(
    "triggers",
    decode_trigger_request,
    lambda q: {"request_id": q.request_id, "station": q.station, "trigger_id": q.trigger_id},
    _refuse_trigger,
)
CONTROL: Final[Dialogue[ControlRequest, ControlReply]] = Dialogue(
    "control", decode_control_request, lambda q: {"request_id": q.request_id}, _refuse_control
)
REPLAY: Final[Dialogue[ReplayRequest, ReplayReply]] = Dialogue(
    "replay", decode_replay_request, lambda q: {"request_id": q.request_id}, _refuse_replay
)
AMENDMENTS: Final[Dialogue[AmendmentRequest, AmendmentReply]] = Dialogue(
    "amendments",
    decode_amendment_request,
    lambda q: {"request_id": q.request_id, "amendment_id": q.amendment_id},
    _refuse_amendment,
)


@dataclass(frozen=True, slots=True)
class ServerStats:
    requests: int
    malformed: int
    refused_busy: int
    refused_too_fast: int
    refused_forbidden: int
    thrown_away: int
    answers_not_read: int
    repeated: int
    failed: int
    outstanding: int


@dataclass(slots=True, eq=False)
class _Call(Generic[Q]):
    """One request between arrival and answer. `envelope`: the frames before the body, as they came. `client`: its key,
    or the routing id where none is used."""

    envelope: list[bytes]
    visitor: Visitor
    client: bytes
    request: Q
    digest: bytes
    answered: bool = False


class RequestServer(SocketOwner, Generic[Q, A]):
    """Answers JSON requests. `open` binds and starts its thread; `close` refuses what is unanswered and stops.

    handle(request, reply): called in the server's thread and must return quickly; `reply(answer)` may be called from
    any thread, then or later, once: further calls change nothing. The fields of the answer that say which request
    it answers are filled in here. An EdgeError from `handle` becomes an answer with code `refused`, any other
    exception one with `internal`.
    admit(peer, request): asked before `handle`, in the server's thread; a Refusal is the answer
    ended(peer, request, answer): told of the one answer of each request that was decoded, refusals for rate apart
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        dialogue: Dialogue[Q, A],
        handle: Callable[[Q, Callable[[A], None]], None],
        *,
        max_outstanding: int = 64,
        max_outstanding_per_client: int | None = None,
        max_per_s: float = 500,
        max_request_bytes: int = 65_536,
        remembered: int = 1_024,
        high_water_mark: int = 1_000,
        linger_ms: int = 1_000,
        door: Door | None = None,
        admit: Callable[[Peer, Q], Refusal | None] | None = None,
        ended: Callable[[Peer, Q, A], None] | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        super().__init__(f"server-{dialogue.name}")
        self._context = context
        self._endpoint = endpoint
        self._dialogue: Dialogue[Q, A] = dialogue
        self._handle: Callable[[Q, Callable[[A], None]], None] = handle
        self._max_outstanding = max_outstanding
        self._max_outstanding_per_client = max_outstanding_per_client or max_outstanding
        self._max_per_s = max_per_s
        self._max_request_bytes = max_request_bytes
        self._remembered = remembered
        self._high_water_mark = high_water_mark
        self._linger_ms = linger_ms
        self._door = door or OpenDoor()
        self._admit: Callable[[Peer, Q], Refusal | None] | None = admit
        self._ended: Callable[[Peer, Q, A], None] | None = ended
        self._on_fatal = on_fatal
        # Guarded by the lock, with the counters.
        self._replies: deque[tuple[_Call[Q], A]] = deque()
        self._counts = {name: 0 for name in ServerStats.__slots__ if name != "outstanding"}
        # These belong to the thread.
        self._open_calls: set[_Call[Q]] = set()
        self._open_by_client: Counter[bytes] = Counter()
        self._calls_by_id: dict[tuple[bytes, bytes, str], _Call[Q]] = {}
        self._answers: OrderedDict[tuple[bytes, bytes, str], tuple[bytes, bytes]] = OrderedDict()
        self._waiting: dict[bytes, deque[tuple[list[bytes], Visitor]]] = {}
        self._allowances: OrderedDict[bytes, Allowance] = OrderedDict()
        self._cut_ns: dict[bytes, int] = {}
        self._warned_ns: int | None = None

    def open(self) -> str:
        """Binds and starts; the endpoint that was bound. Raises EndpointError."""
        self._must_be_closed()
        socket, bound = bind(
            self._context,
            zmq.ROUTER,
            self._endpoint,
            high_water_mark=self._high_water_mark,
            max_message_bytes=self._max_request_bytes,
            linger_ms=self._linger_ms,
            name=self._dialogue.name,
            door=self._door,
        )
        self._begin(partial(self._run, socket))
        return bound

    def stats(self) -> ServerStats:
        with self._lock:
            return ServerStats(**self._counts, outstanding=len(self._open_calls))

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    # --- the thread that owns the socket ------------------------------------------------------------------------

    def _run(self, socket: zmq.Socket[bytes], wake: Wake) -> None:
        try:
            self._serve(socket, wake)
        except BaseException as exc:
            log.critical("the server of %s ends: %s", self._dialogue.name, exc, exc_info=True)
            if self._on_fatal is None:
                raise
            self._on_fatal(exc)
        finally:
            socket.close()

    def _serve(self, socket: zmq.Socket[bytes], wake: Wake) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(wake.fileno(), zmq.POLLIN)
        while True:
            events = dict(poller.poll(0 if self._waiting else None))
            wake.clear()
            with self._lock:
                replies, self._replies = self._replies, deque()
                running = self._running
            for call, answer in replies:
                self._end(socket, call, answer)
            if not running:
                for call in list(self._open_calls):
                    self._refuse(socket, call, "stopped", "the daemon is stopping")
                return
            if socket in events:
                for _ in range(_READ_AT_ONCE):
                    if not self._receive(socket):
                        break
            self._take_turns(socket)

    def _receive(self, socket: zmq.Socket[bytes]) -> bool:
        """Reads one request and rules on it. All that has come is read before any of it is served: only so is a flood
        seen as what it is, and not as fast as it happens to be served. False: nothing more has come."""
        try:
            frames = socket.recv_multipart(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        visitor = self._door.visitor(self._dialogue.name, frames[-1])
        if visitor is None:
            self._count("refused_forbidden")
            return True
        client = visitor.key or frames[0].bytes
        ruling = self._ruling(client)
        if ruling is Ruling.DROP:
            self._throw_away(client, visitor)
            return True
        self._count("requests")
        # Of a message with too many frames only as many as are needed to refuse it.
        envelope_and_body = [frame.bytes for frame in frames[:_MOST_FRAMES]]
        waiting = self._waiting.setdefault(client, deque())
        if ruling is Ruling.SERVE and len(waiting) < _MOST_WAITING:
            waiting.append((envelope_and_body, visitor))
        else:
            self._take(socket, envelope_and_body, visitor, client, Ruling.REFUSE)
        return True

    def _take_turns(self, socket: zmq.Socket[bytes]) -> None:
        """One request of each client, so that nobody's answers wait behind somebody else's questions."""
        for client, waiting in list(self._waiting.items()):
            if waiting:
                frames, visitor = waiting.popleft()
                self._take(socket, frames, visitor, client, Ruling.SERVE)
            if not waiting:
                del self._waiting[client]

    def _ruling(self, client: bytes) -> Ruling:
        now_ns = time.monotonic_ns()
        allowance = self._allowances.get(client)
        if allowance is None:
            allowance = self._allowances[client] = Allowance.full(self._max_per_s, now_ns)
            while len(self._allowances) > _CLIENTS_KEPT:
                forgotten, _ = self._allowances.popitem(last=False)
                self._cut_ns.pop(forgotten, None)
        self._allowances.move_to_end(client)
        return allowance.take(now_ns)

    def _throw_away(self, client: bytes, visitor: Visitor) -> None:
        self._count("thrown_away")
        now_ns = time.monotonic_ns()
        if now_ns - self._cut_ns.get(client, -_CUT_AGAIN_NS) >= _CUT_AGAIN_NS:
            self._cut_ns[client] = now_ns
            self._door.cut(visitor, f"it floods {self._dialogue.name}, and heeds no refusal")

    def _take(
        self, socket: zmq.Socket[bytes], frames: list[bytes], visitor: Visitor, client: bytes, ruling: Ruling
    ) -> None:
        # A REQ socket puts an empty frame before the body, a DEALER does not have to.
        envelope, body = (frames[:2], frames[2:]) if len(frames) > 2 and not frames[1] else (frames[:1], frames[1:])
        try:
            if len(body) != 1:
                raise WireError(f"a request is one frame, got {len(body)}")
            request = self._dialogue.decode(body[0])
        except WireError as exc:
            self._count("malformed")
            refusal = self._dialogue.refuse("malformed", str(exc))
            body_out = encode_request(refusal.model_copy(update={"request_id": _request_id(body)}))
            self._send(socket, envelope, body_out)
            return
        call = _Call(envelope, visitor, client, request, hashlib.sha256(body[0]).digest())
        if ruling is Ruling.REFUSE:
            self._count("refused_too_fast")
            text = f"more than {self._max_per_s:g} requests a second, or many at once; who goes on like this is cut off"
            self._refuse(socket, call, "too_fast", text)
        else:
            self._take_up(socket, call)

    def _take_up(self, socket: zmq.Socket[bytes], call: _Call[Q]) -> None:
        key = _key(call)
        known = self._calls_by_id.get(key)
        answer = self._answers.get(key)
        if known is not None or answer is not None:
            self._count("repeated")
            digest = known.digest if known is not None else answer[0] if answer is not None else b""
            if digest != call.digest:
                self._refuse(socket, call, "request_id_reused", "this request id was used for another request")
            elif known is not None:
                known.envelope = call.envelope  # still running: its answer will come
            elif answer is not None:
                self._send(socket, call.envelope, answer[1])
            return
        if refusal := self._too_many(call):
            self._count("refused_busy")
            self._refuse(socket, call, "busy", refusal)
            return
        if self._admit is not None and (forbidden := self._admit(call.visitor.peer, call.request)) is not None:
            self._count("refused_forbidden")
            self._refuse(socket, call, forbidden.code, forbidden.message)
            return
        self._open_calls.add(call)
        self._open_by_client[call.client] += 1
        if call.request.request_id:
            self._calls_by_id[key] = call
        self._start(socket, call)

    def _too_many(self, call: _Call[Q]) -> str:
        if len(self._open_calls) >= self._max_outstanding:
            return f"{self._max_outstanding} requests wait already; try again"
        if self._open_by_client[call.client] >= self._max_outstanding_per_client:
            return f"{self._max_outstanding_per_client} requests of yours wait already; wait for their answers"
        return ""

    def _close_call(self, call: _Call[Q]) -> None:
        call.answered = True
        if call in self._open_calls:
            self._open_calls.discard(call)
            self._open_by_client[call.client] -= 1
            if not self._open_by_client[call.client]:
                del self._open_by_client[call.client]

    def _start(self, socket: zmq.Socket[bytes], call: _Call[Q]) -> None:
        try:
            self._handle(call.request, lambda answer: self._reply(call, answer))
        except EdgeError as exc:
            self._end(socket, call, self._dialogue.refuse("refused", str(exc)))
        except Exception:
            log.exception("%s request %r failed", self._dialogue.name, call.request.request_id)
            self._fail(socket, call, "a defect of the program; its log has the details")

    def _reply(self, call: _Call[Q], answer: A) -> None:
        """From any thread."""
        with self._lock:
            if self._wake is not None:
                self._replies.append((call, answer))
                self._awaken()

    def _end(self, socket: zmq.Socket[bytes], call: _Call[Q], answer: A) -> None:
        """The one answer of a request; kept for a client that asks again."""
        if call.answered:
            return
        try:
            body = encode_request(answer.model_copy(update=self._dialogue.echo(call.request)))
        except (WireError, AttributeError):
            log.exception("the answer to %s request %r cannot be written", self._dialogue.name, call.request.request_id)
            self._fail(socket, call, "the answer cannot be written, although the command may have run")
            return
        self._close_call(call)
        if call.request.request_id:
            key = _key(call)
            self._calls_by_id.pop(key, None)
            self._answers[key] = (call.digest, body)
            while len(self._answers) > self._remembered:
                self._answers.popitem(last=False)
        if self._ended is not None:
            self._ended(call.visitor.peer, call.request, answer)
        self._send(socket, call.envelope, body)

    def _fail(self, socket: zmq.Socket[bytes], call: _Call[Q], message: str) -> None:
        self._count("failed")
        self._end(socket, call, self._dialogue.refuse("internal", message))

    def _refuse(self, socket: zmq.Socket[bytes], call: _Call[Q], code: str, message: str) -> None:
        """Without remembering: the same request may be asked again."""
        was_open = call in self._open_calls
        self._close_call(call)
        refusal = self._dialogue.refuse(code, message).model_copy(update=self._dialogue.echo(call.request))
        if was_open and self._ended is not None:
            self._ended(call.visitor.peer, call.request, refusal)
        self._send(socket, call.envelope, encode_request(refusal))

    def _send(self, socket: zmq.Socket[bytes], envelope: list[bytes], body: bytes) -> None:
        """A client that has gone, or reads nothing, loses its answer; it can ask again with the same id."""
        try:
            socket.send_multipart([*envelope, body], zmq.DONTWAIT)
        except zmq.ZMQError as exc:
            if exc.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._count("answers_not_read")
            now_ns = time.monotonic_ns()
            if self._warned_ns is None or now_ns - self._warned_ns > _WARN_EVERY_NS:
                self._warned_ns = now_ns
                log.warning("an answer of %s is dropped: its client has gone, or does not read", self._dialogue.name)


def _key(call: _Call[Q]) -> tuple[bytes, bytes, str]:
    """A request id is its client's own: nobody gets the answer to another's by guessing it."""
    return call.visitor.key, call.envelope[0], call.request.request_id


def _request_id(body: list[bytes]) -> str:
    """The id of a malformed request, when it can still be read, so that the asker knows what was refused."""
    try:
        request_id = parse_json(body[0]).get("request_id") if body else None
    except WireError:
        return ""
    return request_id if isinstance(request_id, str) and len(request_id) <= 64 and request_id.isprintable() else ""
