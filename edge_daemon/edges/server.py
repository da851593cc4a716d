"""Requests and answers over ROUTER sockets: triggers, control and replay, each with a thread of its own.

Limits and what happens at them: at most `max_outstanding` requests without an answer, more are refused with `busy`;
the last `remembered` answers are kept for clients that repeat a request; a frame longer than `max_request_bytes`
ends its connection; more than four frames are no request.
"""

import hashlib
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import zmq

from edge_daemon.edges.sockets import Secure, Wake, bind
from edge_daemon.errors import EdgeError, WireError
from edge_daemon.wire.codec import (
    decode_control_request,
    decode_replay_request,
    decode_trigger_request,
    encode_request,
    parse_json,
)
from edge_daemon.wire.messages import (
    ControlFault,
    ControlReply,
    ControlRequest,
    ReplayReply,
    ReplayRequest,
    TriggerReply,
    TriggerRequest,
)

log = logging.getLogger(__name__)

Q = TypeVar("Q", TriggerRequest, ControlRequest, ReplayRequest)
A = TypeVar("A", TriggerReply, ControlReply, ReplayReply)

_MOST_FRAMES: Final = 4


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


@dataclass(frozen=True, slots=True)
class ServerStats:
    requests: int
    malformed: int
    refused_busy: int
    repeated: int
    failed: int
    outstanding: int


@dataclass(slots=True, eq=False)
class _Call(Generic[Q]):
    """One request between arrival and answer. `envelope`: the frames before the body, as they came."""

    envelope: list[bytes]
    request: Q
    digest: bytes
    answered: bool = False


class RequestServer(Generic[Q, A]):
    """Answers JSON requests. `open` binds and starts its thread; `close` refuses what is unanswered and stops.

    handle(request, reply): called in the server's thread and must return quickly; `reply(answer)` may be called from
    any thread, then or later, once: further calls change nothing. The fields of the answer that say which request
    it answers are filled in here. An EdgeError from `handle` becomes an answer with code `refused`, any other
    exception one with `internal`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        dialogue: Dialogue[Q, A],
        handle: Callable[[Q, Callable[[A], None]], None],
        *,
        max_outstanding: int = 64,
        max_request_bytes: int = 65_536,
        remembered: int = 1_024,
        high_water_mark: int = 1_000,
        linger_ms: int = 1_000,
        secure: Secure | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._context = context
        self._endpoint = endpoint
        self._dialogue: Dialogue[Q, A] = dialogue
        self._handle: Callable[[Q, Callable[[A], None]], None] = handle
        self._max_outstanding = max_outstanding
        self._max_request_bytes = max_request_bytes
        self._remembered = remembered
        self._high_water_mark = high_water_mark
        self._linger_ms = linger_ms
        self._secure = secure
        self._on_fatal = on_fatal
        self._lock = threading.Lock()  # guards _replies, _running, _wake and the counters
        self._replies: deque[tuple[_Call[Q], A]] = deque()
        self._running = False
        self._wake: Wake | None = None
        self._thread: threading.Thread | None = None
        self._counts = {"requests": 0, "malformed": 0, "refused_busy": 0, "repeated": 0, "failed": 0}
        # These belong to the thread.
        self._open_calls: set[_Call[Q]] = set()
        self._calls_by_id: dict[tuple[bytes, str], _Call[Q]] = {}
        self._answers: OrderedDict[tuple[bytes, str], tuple[bytes, bytes]] = OrderedDict()

    def open(self) -> str:
        """Binds and starts; the endpoint that was bound. Raises EndpointError."""
        if self._thread is not None:
            raise EdgeError(f"the server of {self._dialogue.name} is open already")
        socket, bound = bind(
            self._context,
            zmq.ROUTER,
            self._endpoint,
            high_water_mark=self._high_water_mark,
            max_message_bytes=self._max_request_bytes,
            linger_ms=self._linger_ms,
            secure=self._secure,
        )
        wake = Wake()
        with self._lock:
            self._wake = wake
            self._running = True
        self._thread = threading.Thread(
            target=self._run, args=(socket, wake), name=f"server-{self._dialogue.name}", daemon=True
        )
        self._thread.start()
        return bound

    def close(self) -> None:
        """Answers what is unanswered with `stopped` and ends. May be called twice."""
        with self._lock:
            self._running = False
            if self._wake is not None:
                self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._lock:
            if self._wake is not None:
                self._wake.close()
                self._wake = None

    def __enter__(self) -> "RequestServer[Q, A]":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
            events = dict(poller.poll())
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
                self._receive(socket)

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        """One request, so that answers never wait behind a flood of questions."""
        frames = _receive_frames(socket)
        if not frames:
            return
        self._count("requests")
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
        self._take_up(socket, _Call(envelope, request, hashlib.sha256(body[0]).digest()))

    def _take_up(self, socket: zmq.Socket[bytes], call: _Call[Q]) -> None:
        key = (call.envelope[0], call.request.request_id)
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
        if len(self._open_calls) >= self._max_outstanding:
            self._count("refused_busy")
            self._refuse(socket, call, "busy", f"{self._max_outstanding} requests wait already; try again")
            return
        self._open_calls.add(call)
        if call.request.request_id:
            self._calls_by_id[key] = call
        self._start(socket, call)

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
                self._wake.set()

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
        call.answered = True
        self._open_calls.discard(call)
        if call.request.request_id:
            key = (call.envelope[0], call.request.request_id)
            self._calls_by_id.pop(key, None)
            self._answers[key] = (call.digest, body)
            while len(self._answers) > self._remembered:
                self._answers.popitem(last=False)
        self._send(socket, call.envelope, body)

    def _fail(self, socket: zmq.Socket[bytes], call: _Call[Q], message: str) -> None:
        self._count("failed")
        self._end(socket, call, self._dialogue.refuse("internal", message))

    def _refuse(self, socket: zmq.Socket[bytes], call: _Call[Q], code: str, message: str) -> None:
        """Without remembering: the same request may be asked again."""
        call.answered = True
        self._open_calls.discard(call)
        refusal = self._dialogue.refuse(code, message).model_copy(update=self._dialogue.echo(call.request))
        self._send(socket, call.envelope, encode_request(refusal))

    def _send(self, socket: zmq.Socket[bytes], envelope: list[bytes], body: bytes) -> None:
        """A client that has gone, or reads nothing, loses its answer; it can ask again with the same id."""
        try:
            socket.send_multipart([*envelope, body], zmq.DONTWAIT)
        except zmq.Again:
            log.warning("an answer of %s is dropped: the client does not read", self._dialogue.name)


def _receive_frames(socket: zmq.Socket[bytes]) -> list[bytes]:
    """The frames of one message; of a longer one only as many as are needed to refuse it."""
    frames: list[bytes] = []
    try:
        while True:
            frame = socket.recv(zmq.DONTWAIT)
            if len(frames) < _MOST_FRAMES:
                frames.append(frame)
            if not socket.getsockopt(zmq.RCVMORE):
                return frames
    except zmq.Again:
        return []


def _request_id(body: list[bytes]) -> str:
    """The id of a malformed request, when it can still be read, so that the asker knows what was refused."""
    try:
        request_id = parse_json(body[0]).get("request_id") if body else None
    except WireError:
        return ""
    return request_id if isinstance(request_id, str) and len(request_id) <= 64 and request_id.isprintable() else ""
