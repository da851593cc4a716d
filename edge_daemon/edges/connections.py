"""Every connection that the daemon has accepted: whose it is, how much it sends, and how to end it.

ZeroMQ neither limits connections nor ends one. It does name the descriptor: in the events of a socket's monitor, and
with every message that arrived by it. A descriptor's number is used again as soon as it is free, so a connection is
known by its inode as well, and is shut down through a duplicate of the descriptor whose inode was looked at.
"""

import contextlib
import ctypes
import itertools
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

# struct tcp_info of linux/tcp.h: tcpi_bytes_received, since Linux 4.1.
_BYTES_RECEIVED_AT: Final = 128
_TCP_INFO_BYTES: Final = 136
_MEASURED_FOR_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """most: connections of one socket. most_young, most_young_per_address: of those accepted less than `young_ns` ago,
    in which time a handshake must be complete; this PC's own addresses count only for the first. bytes_per_s: what one
    connection may send to the daemon."""

    most: int = 256
    most_young: int = 128
    most_young_per_address: int = 32
    young_ns: int = 3_000_000_000
    bytes_per_s: int = 8_000_000


@dataclass(slots=True, eq=False)
class Connection:
    """number: 1, 2, 3, …, never used again. socket: name of the daemon's socket. key: public key of the client (Z85),
    empty where none is used. confirmed: the monitor has told of it; until then the descriptor may be something else's
    by now (a camera's), and is not touched. spoken: whether a message has come by it, which only a completed handshake
    allows. shut: it has been ended here."""

    number: int
    socket: str
    descriptor: int
    inode: int
    address: str
    since_ns: int
    key: bytes = b""
    confirmed: bool = False
    spoken: bool = False
    shut: bool = False
    received_bytes: int = 0
    measured_ns: int = 0


@dataclass(slots=True)
class ConnectionCounts:
    """refused: too many at once. cut: ended because of what came by them, or because their client was revoked.
    open: now."""

    accepted: int = 0
    refused: int = 0
    cut: int = 0
    open: int = 0


@dataclass(slots=True)
class Connections:
    """The book. Any thread may call; `now_ns` is monotonic."""

    limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _by_descriptor: dict[int, Connection] = field(default_factory=dict)
    _counts: ConnectionCounts = field(default_factory=ConnectionCounts)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def accepted(self, socket_name: str, descriptor: int, now_ns: int) -> Connection | None:
        """Notes a new connection. None when it was one too many, and has been ended."""
        with self._lock:
            connection = self._noted(socket_name, descriptor, now_ns)
            self._counts.accepted += 1
            if connection is not None:
                connection.confirmed = True
            refused = connection is not None and self._too_many(connection, now_ns)
            self._counts.refused += refused
        if connection is not None and refused:
            connection.shut = True
            _shut(connection)
            return None
        return connection

    def _noted(self, socket_name: str, descriptor: int, now_ns: int) -> Connection | None:
        """The entry of a descriptor: a message may be read before the monitor has told of its connection, and a
        descriptor be used again before it has told of the end. None: over before it was looked at."""
        known = self._by_descriptor.get(descriptor)
        inode = _inode(descriptor)
        if inode is None:
            return None
        if known is not None and (known.inode, known.socket) == (inode, socket_name):
            return known
        address = _address(descriptor, inode)
        new = Connection(next(self._numbers), socket_name, descriptor, inode, address, now_ns, measured_ns=now_ns)
        self._by_descriptor[descriptor] = new
        return new

    def _too_many(self, new: Connection, now_ns: int) -> bool:
        limits = self.limits
        mine = [c for c in self._by_descriptor.values() if c.socket == new.socket]
        young = [c for c in mine if not c.spoken and now_ns - c.since_ns < limits.young_ns]
        beside = sum(c.address == new.address for c in young)
        return (
            len(mine) > limits.most
            or len(young) > limits.most_young
            or (beside > limits.most_young_per_address and not _is_own(new.address))
        )

    def ended(self, socket_name: str, descriptor: int) -> Connection | None:
        """Forgets a connection. The events of two sockets come in any order, and the descriptor may have gone from
        this one to the other in between."""
        with self._lock:
            connection = self._by_descriptor.get(descriptor)
            if connection is None or connection.socket != socket_name:
                return None
            return self._by_descriptor.pop(descriptor)

    def spoke(self, socket_name: str, descriptor: int, key: bytes, now_ns: int) -> int:
        """A message of this client came by it. Returns the connection's number, 0 for one that is over."""
        with self._lock:
            connection = self._noted(socket_name, descriptor, now_ns)
            if connection is None:
                return 0
            connection.spoken, connection.key = True, key
            return connection.number

    def cut(self, number: int) -> bool:
        """Ends a connection because of what came by it. False: it is over, or is being ended."""
        with self._lock:
            found = [c for c in self._by_descriptor.values() if c.number == number and c.confirmed and not c.shut]
            for connection in found:
                connection.shut = True
                self._counts.cut += 1
        return any(_shut(connection) for connection in found)

    def cut_where(self, condition: Callable[[Connection], bool]) -> int:
        """Ends all that meet a condition, and counts them."""
        with self._lock:
            chosen = [c for c in self._by_descriptor.values() if c.confirmed and condition(c)]
            for connection in chosen:
                connection.shut = True
        ended = sum(_shut(connection) for connection in chosen)
        with self._lock:
            self._counts.cut += ended
        return ended

    def flooding(self, now_ns: int) -> list[Connection]:
        """Those that have sent more than they may in a second, however short the time was in which they did. Whatever
        ZeroMQ makes of it (a message without end is kept until its last frame), this much the network card took."""
        with self._lock:
            connections = [c for c in self._by_descriptor.values() if c.confirmed]
        return [c for c in connections if self._floods(c, now_ns)]

    def _floods(self, connection: Connection, now_ns: int) -> bool:
        received = _received_bytes(connection)
        if received is None:
            return False
        elapsed_s = max(1.0, (now_ns - connection.measured_ns) / 1e9)
        floods = received - connection.received_bytes > self.limits.bytes_per_s * elapsed_s
        if now_ns - connection.measured_ns >= _MEASURED_FOR_NS:
            connection.received_bytes, connection.measured_ns = received, now_ns
        return floods

    def by_socket(self) -> dict[str, int]:
        """How many there are."""
        with self._lock:
            return dict(Counter(c.socket for c in self._by_descriptor.values()))

    def counts(self) -> ConnectionCounts:
        """A copy."""
        with self._lock:
            c = self._counts
            return ConnectionCounts(c.accepted, c.refused, c.cut, len(self._by_descriptor))


def _is_own(address: str) -> bool:
    return not address or address.startswith("127.")


def _inode(descriptor: int) -> int | None:
    """None when the descriptor is closed, which may happen at any moment."""
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None


def _address(descriptor: int, inode: int) -> str:
    """Of the peer; empty for one of this PC, and for one that has gone."""
    try:
        with _borrowed(descriptor, inode) as peer:
            name = peer.getpeername()
    except OSError:
        return ""
    return str(name[0]) if isinstance(name, tuple) else ""


def _received_bytes(connection: Connection) -> int | None:
    """None for what is no TCP connection, or is over."""
    try:
        with _borrowed(connection.descriptor, connection.inode) as peer:
            information = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(information) < _TCP_INFO_BYTES:
        return None
    return int(struct.unpack_from("=Q", information, _BYTES_RECEIVED_AT)[0])


def _shut(connection: Connection) -> bool:
    """Resets it: ZeroMQ sees the end of the connection and cleans up by itself.

    shutdown() would not do: what a peer that heeds no end goes on sending is still received, and read (seen: 100 MB).
    connect() to no address (AF_UNSPEC, connect(2)) drops what was received and answers the rest with a reset.
    """
    try:
        with _borrowed(connection.descriptor, connection.inode) as peer:
            if peer.family == socket.AF_UNIX:
                peer.shutdown(socket.SHUT_RDWR)
                return True
            nobody = struct.pack("=H14x", socket.AF_UNSPEC)
            return bool(ctypes.CDLL(None).connect(peer.fileno(), nobody, len(nobody)) == 0)
    except OSError:
        return False


@contextlib.contextmanager
def _borrowed(descriptor: int, inode: int) -> Iterator[socket.socket]:
    """The socket behind a descriptor of ZeroMQ's, if it is still the one with this inode. Raises OSError."""
    own = os.dup(descriptor)
    try:
        if os.fstat(own).st_ino != inode:
            raise OSError(f"descriptor {descriptor} is another connection's now")
        peer = socket.socket(fileno=own)
    except BaseException:
        os.close(own)
        raise
    with peer:
        yield peer
