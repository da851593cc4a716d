"""Lets in whom the list of clients names, counts the others, and ends connections that do harm.

One thread with two ears. ZAP (rfc.zeromq.org/spec/27): ZeroMQ asks it about every key; sockets demand an answer
(ZAP_ENFORCE_DOMAIN), so that nobody gets in when it is gone. Socket monitors: ZeroMQ tells it of every connection.
pyzmq's own authenticator was refused: an exception in its callback ends it, and it counts nobody.

Limits and what happens at them: `ConnectionLimits`; a handshake that takes longer than `young_ns` is ended by ZeroMQ.
"""

import logging
import os
import struct
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import zmq

from edge_daemon.edges.connections import Connection, ConnectionLimits, Connections
from edge_daemon.edges.door import LOCAL, Peer, Visitor, connection_of, property_of
from edge_daemon.edges.keyring import KeyChanges, KeyRing
from edge_daemon.edges.owner import SocketOwner
from edge_daemon.edges.sockets import EndpointError, Wake
from edge_daemon.errors import EdgeError
from edge_daemon.wire.roles import SOCKETS

log = logging.getLogger(__name__)

# Given by the ZAP specification.
_ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
_ZAP_FRAMES, _KEY_BYTES = 7, 32
# "Temporary": ZeroMQ's own clients try again, since who is enrolled a minute later must not need a restart.
_ACCEPTED, _REFUSED, _NOT_UNDERSTOOD = b"200", b"300", b"500"
_FAILURES: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)
_EVENTS: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_ACCEPT_FAILED | sum(_FAILURES)
_BACKLOG: Final = 128
_LOOK_EVERY_MS: Final = 250
_SILENT_NS: Final = 5_000_000_000
# Strangers are told at once, then in sums.
_TELL_EVERY_NS: Final = 60_000_000_000
_TELL_CUT_EVERY_NS: Final = 5_000_000_000
_ADDRESSES_TOLD: Final = 5
_ADDRESSES_KEPT: Final = 1_000

# name, message
Tell = Callable[[str, str], None]


class Doorkeeper(SocketOwner):
    """The door of all sockets of one context. `open` before the first of them is bound, `close` after the last.

    keyring: None where no keys are used, on loopback only; connections are limited there as well
    tell:    (name, message) of an event worth an operator's attention; called in this thread
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        keyring: KeyRing | None,
        tell: Tell,
        *,
        limits: ConnectionLimits | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__("doorkeeper")
        self._context = context
        self._keyring = keyring
        self._tell = tell
        self._clock_ns = clock_ns
        self._connections = Connections(limits or ConnectionLimits())
        # Guarded by the lock, with the counters.
        self._new_monitors: deque[tuple[str, str]] = deque()
        self._refused = self._untold = 0
        self._addresses: Counter[str] = Counter()
        self._accept_failed = 0
        self._cut_told_ns: int | None = None
        self._looked_ns = 0
        self._fault = ""
        # These belong to the thread.
        self._failures_told: Counter[str] = Counter()
        self._told_ns: int | None = None

    def open(self) -> None:
        """Raises EndpointError when this context has a doorkeeper already."""
        self._must_be_closed()
        zap = self._context.socket(zmq.REP)
        zap.setsockopt(zmq.LINGER, 0)
        try:
            zap.bind(_ZAP_ENDPOINT)
        except zmq.ZMQError as exc:
            zap.close(0)
            raise EndpointError(f"another authenticator answers in this context: {exc}") from exc
        self._looked_ns = self._clock_ns()
        self._begin(partial(self._run, zap))

    # --- for the threads that own the sockets -------------------------------------------------------------------

    def guard(self, name: str, socket: "zmq.Socket[bytes]") -> None:
        """Everything that a socket needs before it is bound. name: a key of `SOCKETS`, its ZAP domain."""
        socket.setsockopt(zmq.HANDSHAKE_IVL, self._connections.limits.young_ns // 1_000_000)
        socket.setsockopt(zmq.BACKLOG, _BACKLOG)
        if self._keyring is not None:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, self._keyring.server.public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, self._keyring.server.secret)
            socket.setsockopt(zmq.ZAP_DOMAIN, name.encode())
            # Without this, everybody who knows the daemon's public key gets in while no authenticator is there.
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        told_at = f"inproc://monitor-{name}-{os.urandom(4).hex()}"
        socket.monitor(told_at, _EVENTS)
        with self._lock:
            self._new_monitors.append((name, told_at))
            self._awaken()

    def visitor(self, name: str, frame: zmq.Frame) -> Visitor | None:
        """Who sent a frame, by the list of now. None: nobody any more; the connection has been ended."""
        descriptor, address, now_ns = connection_of(frame), property_of(frame, "Peer-Address"), self._clock_ns()
        if self._keyring is None:
            connection = self._connections.spoke(name, descriptor, b"", now_ns)
            return Visitor(connection, b"", Peer(LOCAL.name, LOCAL.role, address))
        key = property_of(frame, "User-Id").encode()
        connection = self._connections.spoke(name, descriptor, key, now_ns)
        client = self._keyring.client(key)
        if client is None or client.role not in SOCKETS[name]:
            self._connections.cut(connection)
            return None
        return Visitor(connection, key, Peer(client.name, client.role, address))

    def cut(self, visitor: Visitor, why: str) -> None:
        """Ends a connection because of what came by it."""
        if self._connections.cut(visitor.connection):
            self._tell_cut(f"client {visitor.peer.name} ({visitor.peer.address}) is cut off: {why}")

    def _tell_cut(self, message: str) -> None:
        """Who is cut off comes back, and is cut off again: all are counted, some are told."""
        now_ns = self._clock_ns()
        with self._lock:
            told = self._cut_told_ns is None or now_ns - self._cut_told_ns >= _TELL_CUT_EVERY_NS
            if told:
                self._cut_told_ns = now_ns
        if told:
            self._tell("client_cut_off", message)

    # --- for the daemon -----------------------------------------------------------------------------------------

    def reload(self) -> KeyChanges:
        """Puts the list of clients as it is on the disk in force; whoever is not on it any more, or has another role,
        is cut off at once. A connection by which nothing has come yet has been told nothing either; it is cut off at
        its first word. Raises KeyFileError, and the list before stays in force; EdgeError where no keys are used."""
        if self._keyring is None:
            raise EdgeError("no keys are used: every address is one of this PC, and security.curve is auto")
        changes = self._keyring.reload()
        if changes.revoked:
            ring = self._keyring
            self._connections.cut_where(lambda c: c.spoken and not _stays(c, ring))
        return changes

    @property
    def failing(self) -> str:
        """Why nobody new gets in; empty when all is well."""
        if self._fault:
            return self._fault
        if self._running and self._clock_ns() - self._looked_ns > _SILENT_NS:
            return "the thread that lets clients in hangs; nobody new gets in: restart the daemon"
        return ""

    def stats(self) -> dict[str, Any]:
        """For `status`. refused_handshakes: strangers. accept_failed: the PC had no descriptor left."""
        with self._lock:
            refused, accept_failed = self._refused, self._accept_failed
        counts = self._connections.counts()
        return {
            "curve": self._keyring is not None,
            "clients": len(self._keyring) if self._keyring is not None else 0,
            "refused_handshakes": refused,
            "accept_failed": accept_failed,
            "connections": asdict(counts) | {"by_socket": self._connections.by_socket()},
            "failing": self.failing,
        }

    # --- the thread ---------------------------------------------------------------------------------------------

    def _run(self, zap: "zmq.Socket[bytes]", wake: Wake) -> None:
        monitors: dict[Any, str] = {}
        try:
            self._serve(zap, wake, monitors)
        except Exception as exc:
            # The sockets live on, and none of them lets anybody in. The monitors stay open, because ZeroMQ's thread
            # would wait for ever to tell one that is closed.
            log.critical("the doorkeeper ends: %s", exc, exc_info=True)
            self._fault = f"the thread that lets clients in has ended ({exc}); nobody new gets in: restart the daemon"
        finally:
            zap.close(0)
            while not self._stopped():
                wake.wait()
            for monitor in monitors:
                monitor.close(0)

    def _stopped(self) -> bool:
        with self._lock:
            return not self._running

    def _serve(self, zap: "zmq.Socket[bytes]", wake: Wake, monitors: dict[Any, str]) -> None:
        poller = zmq.Poller()
        poller.register(zap, zmq.POLLIN)
        poller.register(wake.fileno(), zmq.POLLIN)
        looked_ns = self._clock_ns()
        while not self._stopped():
            for ready, _ in poller.poll(_LOOK_EVERY_MS):
                if ready is zap:
                    self._answer(zap)
                elif ready in monitors:
                    self._hear(ready, monitors[ready])
            wake.clear()
            self._listen(poller, monitors)
            now_ns = self._looked_ns = self._clock_ns()
            if now_ns - looked_ns >= _LOOK_EVERY_MS * 1_000_000:
                looked_ns = now_ns
                self._look(now_ns)

    def _listen(self, poller: zmq.Poller, monitors: dict[Any, str]) -> None:
        """Begins to hear of sockets that were bound in the meantime."""
        while self._new_monitors:
            with self._lock:
                name, told_at = self._new_monitors.popleft()
            monitor = self._context.socket(zmq.PAIR)
            # Without a limit: ZeroMQ's one network thread waits for room, and with it every verdict would.
            monitor.setsockopt(zmq.RCVHWM, 0)
            monitor.setsockopt(zmq.LINGER, 0)
            monitor.connect(told_at)
            monitors[monitor] = name
            poller.register(monitor, zmq.POLLIN)

    def _answer(self, zap: "zmq.Socket[bytes]") -> None:
        """One question of ZAP: version, request id, domain, address, routing id, mechanism, key."""
        frames = zap.recv_multipart()
        status, user = _NOT_UNDERSTOOD, b""
        if _asks_about_a_key(frames) and self._keyring is not None:
            key = zmq.utils.z85.encode(frames[6])
            client = self._keyring.client(key)
            domain = frames[2].decode(errors="replace")
            if client is not None and client.role in SOCKETS.get(domain, ()):
                status, user = _ACCEPTED, key
            else:
                status = _REFUSED
                who = f"client {client.name}, whose role {client.role} does not open {domain}" if client else ""
                self._stranger(frames[3].decode(errors="replace"), who)
        request_id = frames[1] if len(frames) > 1 else b""
        zap.send_multipart([b"1.0", request_id, status, b"", user, b""])

    def _hear(self, monitor: "zmq.Socket[bytes]", name: str) -> None:
        """Events that wait, at most some: the questions must not wait behind a flood of connections."""
        for _ in range(100):
            try:
                told = monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            event, value = struct.unpack("=HI", told[0])
            if event == zmq.EVENT_ACCEPTED:
                self._accepted(name, value)
            elif event == zmq.EVENT_DISCONNECTED:
                self._ended(name, value)
            elif event == zmq.EVENT_ACCEPT_FAILED:
                with self._lock:
                    self._accept_failed += 1
            elif event in _FAILURES:
                # Whose handshake it was, ZeroMQ does not say; its connection ends soon and is not counted again.
                self._failures_told[name] += 1
                if event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    self._stranger("", "")

    def _accepted(self, name: str, descriptor: int) -> None:
        connection = self._connections.accepted(name, descriptor, self._clock_ns())
        ring = self._keyring
        # A client may have spoken, and been revoked, before this was told.
        if connection is not None and ring is not None and connection.spoken and not _stays(connection, ring):
            self._connections.cut(connection.number)

    def _ended(self, name: str, descriptor: int) -> None:
        connection = self._connections.ended(name, descriptor)
        if connection is not None and (connection.spoken or connection.shut):
            return
        if self._failures_told[name]:
            self._failures_told[name] -= 1
        elif connection is None:
            self._stranger("", "")  # over before anybody looked
        elif self._clock_ns() - connection.since_ns < self._connections.limits.young_ns:
            self._stranger(connection.address, "")  # what it sent was no ZeroMQ at all

    def _stranger(self, address: str, who: str) -> None:
        with self._lock:
            self._refused += 1
            self._untold += 1
        if address and len(self._addresses) < _ADDRESSES_KEPT:
            self._addresses[who or address] += 1

    def _look(self, now_ns: int) -> None:
        """Four times a second: floods are ended, strangers told."""
        for connection in self._connections.flooding(now_ns):
            if self._connections.cut(connection.number):
                megabytes = self._connections.limits.bytes_per_s / 1e6
                who = f"a connection from {connection.address or 'this PC'} to {connection.socket}"
                self._tell_cut(f"{who} is cut off: it sent more than {megabytes:g} MB a second")
        if self._untold and (self._told_ns is None or now_ns - self._told_ns > _TELL_EVERY_NS):
            self._told_ns = now_ns
            with self._lock:
                untold, self._untold = self._untold, 0
            names = ", ".join(f"{name} ({count})" for name, count in self._addresses.most_common(_ADDRESSES_TOLD))
            self._addresses.clear()
            self._tell(
                "stranger_refused", f"{untold} connection(s) refused at the handshake; from: {names or 'unknown'}"
            )


def _asks_about_a_key(frames: list[bytes]) -> bool:
    asks = len(frames) == _ZAP_FRAMES and frames[0] == b"1.0" and frames[5] == b"CURVE"
    return asks and len(frames[6]) == _KEY_BYTES


def _stays(connection: Connection, ring: KeyRing) -> bool:
    client = ring.client(connection.key)
    return client is not None and client.role in SOCKETS[connection.socket]
