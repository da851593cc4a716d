"""The control protocol of GigE Vision (GVCP), as much of it as a look from outside needs: who is there, does it live?

Aravis waits seconds for a camera that does not answer, and holds its lock meanwhile. These questions have their own
socket and their own deadline: cameras answer them to anybody, whoever controls them (GigE Vision 1.2, 9.2 and 14).
"""

import errno
import fcntl
import select
import socket
import struct
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from edge_daemon.cameras.base import CameraSilent
from edge_daemon.errors import CameraError

A = TypeVar("A")

PORT = 3956
HEARTBEAT_TIMEOUT_REGISTER = 0x0938
CONTROL_PRIVILEGE_REGISTER = 0x0A00
CONTROLLER_IP_REGISTER = 0x0A14
_CONTROLLED = 0b11  # exclusive or control access
_CONTROL, _NO_CONTROL = 0b10, 0

_KEY, _ACKNOWLEDGE, _BROADCAST_ACKNOWLEDGE = 0x42, 0x01, 0x10
_DISCOVER, _DISCOVERED, _READ, _HAS_READ, _WRITE, _HAS_WRITTEN = 0x0002, 0x0003, 0x0080, 0x0081, 0x0082, 0x0083
_DISCOVERY_BYTES = 0xF8
_SIOCGIFCONF, _INTERFACES = 0x8912, 64
_RESEND_S = 0.1
_BROADCAST_AGAIN_NS = 250_000_000
_SECOND_ONE_S = 0.2


@dataclass(frozen=True, slots=True)
class FoundCamera:
    """What a camera says of itself when it is looked for."""

    ip: str
    serial: str
    name: str
    vendor: str
    model: str
    mac: str

    def __str__(self) -> str:
        return f"{self.vendor} {self.model}, serial {self.serial or 'none'}, at {self.ip}"


def discovery_request(request_id: int) -> bytes:
    """DISCOVERY_CMD; cameras of other subnets may answer by broadcast."""
    return struct.pack(">BBHHH", _KEY, _ACKNOWLEDGE | _BROADCAST_ACKNOWLEDGE, _DISCOVER, 0, request_id)


def read_request(request_id: int, address: int) -> bytes:
    """READREG_CMD of one register."""
    return struct.pack(">BBHHHI", _KEY, _ACKNOWLEDGE, _READ, 4, request_id, address)


def write_request(request_id: int, address: int, value: int) -> bytes:
    """WRITEREG_CMD of one register."""
    return struct.pack(">BBHHHII", _KEY, _ACKNOWLEDGE, _WRITE, 8, request_id, address, value)


def parse_discovered(packet: bytes) -> FoundCamera | None:
    """A DISCOVERY_ACK; None for anything else."""
    if len(packet) < 8 + _DISCOVERY_BYTES or struct.unpack_from(">HH", packet) != (0, _DISCOVERED):
        return None
    data = packet[8:]

    def text(offset: int, size: int) -> str:
        return data[offset : offset + size].split(b"\0")[0].decode("utf-8", "replace").strip()

    return FoundCamera(
        ip=socket.inet_ntoa(data[0x24:0x28]),
        serial=text(0xD8, 16),
        name=text(0xE8, 16),
        vendor=text(0x48, 32),
        model=text(0x68, 32),
        mac=data[0x0A:0x10].hex(":"),
    )


def parse_has_read(packet: bytes) -> tuple[int, int | None] | None:
    """A READREG_ACK as (request id, value); value None when the camera refuses; None for anything else."""
    if len(packet) < 8:
        return None
    status, kind, _, request_id = struct.unpack_from(">HHHH", packet)
    if kind != _HAS_READ:
        return None
    good = status == 0 and len(packet) >= 12
    return request_id, struct.unpack_from(">I", packet, 8)[0] if good else None


def parse_has_written(packet: bytes) -> tuple[int, bool] | None:
    """A WRITEREG_ACK as (request id, whether it was written); None for anything else."""
    if len(packet) < 8:
        return None
    status, kind, _, request_id = struct.unpack_from(">HHHH", packet)
    return (request_id, status == 0) if kind == _HAS_WRITTEN else None


def discover(timeout_s: float, wanted: Callable[[FoundCamera], bool] = lambda _: False) -> list[FoundCamera]:
    """Every camera that answers within the timeout on any network of this PC, in the order of their addresses. Asks
    again all the while: a camera that has just been plugged in heard no question before. Ends early, some time after
    one answered that is `wanted`: another one like it would be a problem to be told."""
    found: dict[str, FoundCamera] = {}
    with ExitStack() as stack:
        sockets = [stack.enter_context(opened) for opened in _sockets_on_all_networks()]
        until = time.monotonic() + timeout_s
        ask_ns = 0
        while sockets and (left := until - time.monotonic()) > 0:
            if time.monotonic_ns() >= ask_ns:
                ask_ns = time.monotonic_ns() + _BROADCAST_AGAIN_NS
                sockets = [asked for asked in sockets if _has_asked(asked)]
            for ready in select.select(sockets, [], [], min(left, _RESEND_S))[0]:
                if camera := _received(ready):
                    found[camera.ip] = camera
                    if wanted(camera):
                        until = min(until, time.monotonic() + _SECOND_ONE_S)
    return sorted(found.values(), key=lambda camera: socket.inet_aton(camera.ip))


def ask_at(ip: str, timeout_s: float) -> FoundCamera | None:
    """The camera at one address; None when none answers within the timeout."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            try:
                asked.sendto(discovery_request(1), (ip, PORT))
            except OSError:
                return None  # no way there: no route, network down
            if select.select([asked], [], [], min(left, _RESEND_S))[0] and (camera := _received(asked)):
                return camera
    return None


def _received(ready: socket.socket) -> FoundCamera | None:
    try:
        return parse_discovered(ready.recv(2048))
    except OSError:
        return None


def _sockets_on_all_networks() -> Iterator[socket.socket]:
    """One socket per IPv4 address of this PC, which may broadcast."""
    for address in _own_addresses():
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            opened.bind((address, 0))
        except OSError:
            opened.close()
        else:
            yield opened


def _has_asked(opened: socket.socket) -> bool:
    """Whether a discovery request is under way; False where the network is down."""
    try:
        opened.sendto(discovery_request(1), ("255.255.255.255", PORT))
    except OSError:
        return False
    return True


def _own_addresses() -> list[str]:
    """The IPv4 addresses of this PC's network interfaces, secondary ones included (netdevice(7), SIOCGIFCONF)."""
    entry_bytes = 40 if struct.calcsize("P") == 8 else 32  # struct ifreq: name, then a sockaddr_in
    table = array("B", bytes(entry_bytes * _INTERFACES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("iP", len(table), table.buffer_info()[0])
        used: int = struct.unpack("iP", fcntl.ioctl(any_socket, _SIOCGIFCONF, request))[0]
    return [socket.inet_ntoa(table[at + 20 : at + 24].tobytes()) for at in range(0, used, entry_bytes)]


class Probe:
    """Reads registers of one camera on a socket of its own, each with a deadline. Not for several threads."""

    def __init__(self, name: str, ip: str) -> None:
        self._name, self._ip = name, ip
        self._request_id = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.connect((ip, PORT))  # connected, so that "nobody is at this port" reaches us
        except OSError as exc:
            self._socket.close()
            raise CameraError(
                f"camera {name}: there is no way to {ip} ({exc.strerror}); check network and cable"
            ) from exc

    def close(self) -> None:
        """May be called twice."""
        self._socket.close()

    def read(self, address: int, timeout_s: float) -> int | None:
        """The register's value; None when the camera answers, but not to us. Asks again every 100 ms.

        Raises CameraError when no answer comes within the timeout, or nobody is there.
        """
        answer = self._ask(lambda number: read_request(number, address), parse_has_read, timeout_s)
        if answer is None:
            raise CameraSilent(str(self._gone(f"no answer for {timeout_s * 1e3:.0f} ms")))
        return answer[0]

    def may_control(self, timeout_s: float) -> bool:
        """Whether nobody controls the camera: we take control for a moment and give it back.

        Reading who has it would do, but for cameras that take any reading of the privilege register for a sign of life
        of their controller: asked often enough, they keep one that is dead for ever. Some do not answer a write that
        they refuse, so silence is a no. Raises CameraError when nobody is there.
        """
        free = self._write(CONTROL_PRIVILEGE_REGISTER, _CONTROL, timeout_s)
        # Also after silence: the answer may have been late. From one who has no control it changes nothing.
        self._write(CONTROL_PRIVILEGE_REGISTER, _NO_CONTROL, timeout_s if free else _RESEND_S)
        return free

    def _write(self, address: int, value: int, timeout_s: float) -> bool:
        answer = self._ask(lambda number: write_request(number, address, value), parse_has_written, timeout_s)
        return answer is not None and answer[0]

    def _ask(
        self, request: Callable[[int], bytes], parse: Callable[[bytes], tuple[int, A] | None], timeout_s: float
    ) -> tuple[A] | None:
        """(answer,) to one request; None when the time is up. Raises CameraError when nobody is there."""
        self._request_id = self._request_id % 0xFFFF + 1
        asked = request(self._request_id)
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            try:
                self._socket.send(asked)
                answer = self._answer(parse, min(left, _RESEND_S))
            except OSError as exc:
                if exc.errno in (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
                    raise self._gone("nobody answers there") from exc
                raise self._gone(exc.strerror or str(exc)) from exc
            if answer is not None:
                return answer
        return None

    def _answer(self, parse: Callable[[bytes], tuple[int, A] | None], timeout_s: float) -> tuple[A] | None:
        """(answer,) to the request under way; None when the time is up."""
        until = time.monotonic() + timeout_s
        while select.select([self._socket], [], [], max(0.0, until - time.monotonic()))[0]:
            parsed = parse(self._socket.recv(2048))
            if parsed is not None and parsed[0] == self._request_id:
                return (parsed[1],)
        return None

    def _gone(self, why: str) -> CameraError:
        return CameraError(
            f"camera {self._name}: the camera at {self._ip} does not answer ({why}); check its power, cable and "
            "switch. The daemon reconnects"
        )


def is_controlled(privilege: int | None) -> bool:
    """Whether a value of the control privilege register says that somebody controls the camera. A camera that refuses
    the question is in exclusive use."""
    return privilege is None or bool(privilege & _CONTROLLED)
