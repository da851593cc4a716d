"""Bound ZeroMQ sockets with everything set that must be, and a wake-up for the thread that owns them."""

import contextlib
import os
import select
from typing import Final

import zmq

from edge_daemon.edges.door import Door
from edge_daemon.errors import EdgeError

# Messages that wait to be read, by connection. What is limited is limited by those who read (a request too fast is
# refused, a client that floods is cut off): ZeroMQ itself must not stop reading a connection. When one ends that it has
# stopped to read, the next heartbeat (ours, or the answer to one of the client's) aborts the whole process: libzmq
# 4.3.5, `Assertion failed: !_io_error`, stream_engine_base.cpp.
_UNREAD: Final = 100_000

HEARTBEAT_IVL_MS: Final = 1000
HEARTBEAT_TIMEOUT_MS: Final = 3000
HEARTBEAT_TTL_MS: Final = 3000


class EndpointError(EdgeError):
    """A socket cannot be bound: address in use, not of this PC, or not an address."""


def bind(
    context: zmq.Context[zmq.Socket[bytes]],
    kind: int,
    endpoint: str,
    *,
    high_water_mark: int,
    max_message_bytes: int,
    linger_ms: int,
    name: str,
    door: Door,
) -> tuple[zmq.Socket[bytes], str]:
    """A bound socket and the endpoint it really has (port 0 or `*` resolved). IPv4 only.

    high_water_mark:   messages kept for a peer that does not read
    max_message_bytes: largest frame that is read; a longer one ends its connection
    linger_ms:         how long unsent messages may hold up the end of the program
    name, door:        who stands before the socket, and what he calls it
    Raises EndpointError.
    """
    socket = context.socket(kind)
    try:
        socket.setsockopt(zmq.IPV6, 0)
        socket.setsockopt(zmq.SNDHWM, high_water_mark)
        socket.setsockopt(zmq.RCVHWM, _UNREAD)
        socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        socket.setsockopt(zmq.LINGER, linger_ms)
        _notice_the_dead(socket)
        if kind == zmq.ROUTER:
            # A client that reconnects under its own id takes over from its dead connection.
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
            # An answer that a client does not read is refused here, not dropped unseen.
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if kind == zmq.XPUB:
            # So that a plain subscriber notices a PC that has lost its power. A request socket has none of its own: see
            # _UNREAD; its clients ask, and notice by themselves.
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_IVL_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TTL_MS)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
            # Every subscription and its end is told, not only the first of a topic, and takes effect when we say so.
            socket.setsockopt(zmq.XPUB_VERBOSER, 1)
            socket.setsockopt(zmq.XPUB_MANUAL, 1)
        door.guard(name, socket)
        socket.bind(endpoint)
    except zmq.ZMQError as exc:
        socket.close(0)
        raise EndpointError(_explain(exc, endpoint)) from exc
    except BaseException:
        socket.close(0)
        raise
    return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)


def _notice_the_dead(socket: zmq.Socket[bytes]) -> None:
    """By the kernel: a peer without power is gone after some seconds."""
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 5)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 2)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)


def _explain(exc: zmq.ZMQError, endpoint: str) -> str:
    if exc.errno == zmq.EADDRINUSE:
        return f"{endpoint} is in use by another program; stop that one or configure another port"
    if exc.errno == zmq.EADDRNOTAVAIL:
        return f"{endpoint} is not an address of this PC; configure 127.0.0.1 or one that `ip address` lists"
    return f"{endpoint} cannot be bound: {exc}; an endpoint looks like tcp://127.0.0.1:5561"


class Wake:
    """Wakes a thread that polls sockets: a pipe, because a ZeroMQ socket belongs to one thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """What to poll for reading."""
        return self._read

    def set(self) -> None:
        """From any thread. A full pipe wakes as well as an empty one."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def clear(self) -> None:
        """From the thread that polls, before it looks for work."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def wait(self) -> None:
        """Until somebody calls `set`."""
        waiting = select.poll()  # unlike select(), for descriptors above 1023 too
        waiting.register(self._read, select.POLLIN)
        waiting.poll()
        self.clear()

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)
