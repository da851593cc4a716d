"""What a socket's thread asks about those who connect: who sent this message, and may he?"""

from dataclasses import dataclass
from typing import Final, Protocol

import zmq

from edge_daemon.wire.roles import Role


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks. role: None for a program of this PC where no keys are used; it may do everything."""

    name: str
    role: Role | None
    address: str = ""

    def may(self, roles: frozenset[Role]) -> bool:
        """Whether it has one of the roles."""
        return self.role is None or self.role in roles


LOCAL: Final = Peer("local", None)


@dataclass(frozen=True, slots=True)
class Visitor:
    """By which connection a message came (a number that is its own), and from whom. key: public key (Z85), empty where
    none is used."""

    connection: int
    key: bytes
    peer: Peer


class Door(Protocol):
    """Stands before every socket. `guard` is called before the socket is bound; the rest by the thread that owns it."""

    def guard(self, name: str, socket: "zmq.Socket[bytes]") -> None: ...

    def visitor(self, name: str, frame: zmq.Frame) -> Visitor | None:
        """Who sent a frame. None: nobody who may use this socket (any more); the connection has been ended."""

    def cut(self, visitor: Visitor, why: str) -> None:
        """Ends a connection because of what came by it."""


class OpenDoor:
    """Lets everybody in and ends nobody: for sockets inside one program."""

    def guard(self, name: str, socket: "zmq.Socket[bytes]") -> None:
        pass

    def visitor(self, name: str, frame: zmq.Frame) -> Visitor | None:  # noqa: ARG002  # as every door
        return Visitor(connection_of(frame), b"", LOCAL)

    def cut(self, visitor: Visitor, why: str) -> None:
        pass


def connection_of(frame: zmq.Frame) -> int:
    """The descriptor by which a frame came; -1 when it came from within the process."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1


def property_of(frame: zmq.Frame, name: str) -> str:
    """A property that ZeroMQ keeps with a frame (`User-Id`, `Peer-Address`); empty when it has none."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""
