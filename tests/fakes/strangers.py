"""Strangers at every port of a line, with nothing but sockets: no library of the product, of ZeroMQ or of Modbus.

    python -m tests.fakes.strangers '{"results": 5561, …, "metrics": 9108, "gateway": 5020}'

Goes on until its standard input ends, then says how often each has tried. It takes only what time the line leaves: who
attacks has a computer of his own.
"""

import contextlib
import itertools
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

# ZMTP 3.0 (rfc.zeromq.org/spec/23): signature, version, mechanism, client, filler; then READY with a socket type.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def reached(port: int, receives: int = 65_536) -> socket.socket:
    """A connection from an address that is nobody's."""
    connection = socket.socket()
    connection.settimeout(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    try:
        connection.bind(("127.0.0.2", 0))
        connection.connect(("127.0.0.1", port))
    except OSError:
        connection.close()
        raise
    return connection


def ready(kind: bytes) -> bytes:
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return b"\x04" + bytes([len(body)]) + body


class Attack:
    """Goes on until the end of `with`. tries: how often it began anew; being hung up on is no end."""

    def __init__(self, name: str, step: Callable[[], None]) -> None:
        self.name, self.tries = name, 0
        self._step = step
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    def __enter__(self) -> "Attack":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self.tries += 1
            with contextlib.suppress(OSError):
                self._step()


class SlowLoris:
    """Many connections, each with a byte now and then of something that could become right, and never does."""

    def __init__(self, ports: dict[int, bytes], each: int) -> None:
        self._begun = [(port, begin) for port, begin in ports.items() for _ in range(each)]
        self._open: dict[int, tuple[socket.socket, Iterator[int]]] = {}

    def step(self) -> None:
        """Connects where it was hung up on, and sends each a byte."""
        for number, (port, begin) in enumerate(self._begun):
            if number not in self._open:
                connection = reached(port)
                self._open[number] = (connection, itertools.chain(begin, itertools.repeat(begin[-1])))
            connection, letters = self._open[number]
            try:
                connection.send(bytes([next(letters)]))
            except OSError:
                connection.close()
                del self._open[number]
        time.sleep(0.05)  # that is the attack

    def close(self) -> None:
        for connection, _ in self._open.values():
            connection.close()


def garbage(port: int) -> Callable[[], None]:
    """At full speed, until hung up on."""

    def step() -> None:
        with reached(port) as connection:
            for _ in range(50):
                connection.send(os.urandom(8_192))

    return step


def hasty(port: int) -> Callable[[], None]:
    """Connects and goes, as fast as it can."""

    def step() -> None:
        reached(port).close()

    return step


def deaf(port: int) -> socket.socket:
    """Subscribes to everything by the book, and never reads."""
    connection = reached(port, receives=2_048)
    with contextlib.suppress(OSError):  # hung up on, where keys are asked for
        connection.sendall(GREETING)
        connection.sendall(ready(b"SUB"))
        connection.sendall(b"\x00\x01\x01")
    return connection


def babbling(port: int) -> Callable[[], None]:
    """A right handshake at the triggers, and then frames of nonsense, as large as they may be, none of them read."""

    def step() -> None:
        with reached(port) as connection:
            connection.sendall(GREETING + ready(b"DEALER"))
            for _ in range(200):
                connection.sendall(b"\x01\x00" + b"\x00\xff" + os.urandom(255))
            with selectors.DefaultSelector() as hung_up:
                hung_up.register(connection, selectors.EVENT_READ)
                hung_up.select(0.2)

    return step


def main() -> None:
    ports: dict[str, int] = json.loads(sys.argv[1])
    os.nice(19)
    published = ("results", "images", "status")
    slow = SlowLoris(
        dict.fromkeys((port for name, port in ports.items() if name not in ("metrics", "gateway")), GREETING)
        | {ports["metrics"]: b"GET /metrics HTTP/1.1\r\nX-Waits: a", ports["gateway"]: b"\0\1\0\0\0\xc8\1\x10\0"},
        each=6,
    )
    attacks = [
        Attack("slow loris", slow.step),
        Attack("garbage at the gateway", garbage(ports["gateway"])),
        Attack("garbage at the triggers", garbage(ports["triggers"])),
        Attack("garbage at the metrics", garbage(ports["metrics"])),
        Attack("hasty at the results", hasty(ports["results"])),
        Attack("babbling at the triggers", babbling(ports["triggers"])),
    ]
    with contextlib.ExitStack() as stack:
        for name in published:
            stack.enter_context(deaf(ports[name]))
        stack.callback(slow.close)
        for attack in attacks:
            stack.enter_context(attack)
        sys.stdin.read()
    print(json.dumps({attack.name: attack.tries for attack in attacks}))


if __name__ == "__main__":
    main()
