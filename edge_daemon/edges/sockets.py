"""Bound ZeroMQ sockets with everything set that must be, and a wake-up for the thread that owns them."""

import contextlib
import os
from collections.abc import Callable
from typing import Final

import zmq

from edge_daemon.errors import EdgeError

# Called on every socket before it is bound: the place for CURVE keys and the ZAP domain.
Secure = Callable[[zmq.Socket[bytes]], None]

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
    secure: Secure | None = None,
) -> tuple[zmq.Socket[bytes], str]:
    """A bound socket and the endpoint it really has (port 0 or `*` resolved). IPv4 only.

    high_water_mark:   messages kept per peer, each way
    max_message_bytes: largest frame that is read; a longer one ends its connection
    linger_ms:         how long unsent messages may hold up the end of the program
    Raises EndpointError.
    """
    socket = context.socket(kind)
    try:
        socket.setsockopt(zmq.IPV6, 0)
        socket.setsockopt(zmq.SNDHWM, high_water_mark)
        socket.setsockopt(zmq.RCVHWM, high_water_mark)
        socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        socket.setsockopt(zmq.LINGER, linger_ms)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_IVL_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TTL_MS)
        if kind == zmq.ROUTER:
            # A client that reconnects under its own id takes over from its dead connection.
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if kind == zmq.XPUB:
            socket.setsockopt(zmq.XPUB_NODROP, 1)
            # Every subscription and its end is told, not only the first of a topic: they are counted.
            socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        if secure is not None:
            secure(socket)
        socket.bind(endpoint)
    except zmq.ZMQError as exc:
        socket.close(0)
        raise EndpointError(_explain(exc, endpoint)) from exc
    except BaseException:
        socket.close(0)
        raise
    return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)


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

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)
