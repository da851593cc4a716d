"""What a camera's own process and the daemon say to each other: JSON messages over a socket pair, and one slot of
shared memory for the pixels. No pickle: a camera library that went wild can spoil a picture, not the daemon.

The memory is a sealed memfd, made by the camera's process and handed over through the socket: it has no name that
could be left behind, its size cannot change under the reader, and it is gone with the last process that holds it.
"""

import array
import contextlib
import fcntl
import json
import mmap
import os
import socket
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edge_daemon.core.frame import ClockQuality, Frame

Message = dict[str, Any]

_LENGTH = struct.Struct("<I")
# The largest is a camera's table of the configuration: ten thousand scripted faults are 1 MB.
_LONGEST_MESSAGE = 16 << 20

_MAGIC = b"edgeslot"
# magic, seq, frame id, height, width, channels (0: grey), flags, clock quality, arrived, device frame id, device ns,
# exposed, uncertainty; then the CRC-32 of all of it
_HEADER = struct.Struct("<8sQQIIBBBqQQqq")
_CRC = struct.Struct("<I")
_PIXELS_AT = 4096
_QUALITIES: tuple[ClockQuality, ...] = ("host", "camera", "ptp")
_HAS_DEVICE_ID, _HAS_DEVICE_NS, _HAS_EXPOSED = 1, 2, 4
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class ChannelClosed(Exception):
    """The other side has closed its end or is gone."""


class SlotError(Exception):
    """What lies in the shared memory is not the frame that was announced."""


class Channel:
    """One end of the socket pair. Messages are JSON objects behind their length; a message may bring one descriptor.

    Times are absolute, by clock_ns (monotonic, the same in both processes).
    """

    def __init__(self, end: socket.socket, clock_ns: Callable[[], int]) -> None:
        self._socket = end
        self._clock_ns = clock_ns
        self._bytes = bytearray()
        self._descriptors: list[int] = []

    def send(self, message: Mapping[str, Any], descriptor: int | None = None) -> None:
        """Raises ChannelClosed, also when the other side has stopped reading for so long that nothing more fits in."""
        text = json.dumps(message, separators=(",", ":")).encode()
        data = _LENGTH.pack(len(text)) + text
        beside = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            self._socket.settimeout(1.0)
            sent = self._socket.sendmsg([data], beside)
            self._socket.sendall(data[sent:])
        except OSError as exc:
            raise ChannelClosed(str(exc)) from exc

    def receive(self, until_ns: int | None) -> Message | None:
        """The next message, None when none is complete by `until_ns` (None: wait for ever). Raises ChannelClosed."""
        while (message := self._complete()) is None:
            left_s = None if until_ns is None else max(0.0, (until_ns - self._clock_ns()) / 1e9)
            try:
                self._socket.settimeout(left_s)
                data, beside, _flags, _address = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(4))
            except (TimeoutError, BlockingIOError):
                return None
            except OSError as exc:
                raise ChannelClosed(str(exc)) from exc
            for _level, kind, content in beside:
                if kind == socket.SCM_RIGHTS:
                    self._descriptors += array.array("i", content[: len(content) // 4 * 4])
            if not data:
                raise ChannelClosed("the connection has ended")
            self._bytes += data
        return message

    def take_descriptor(self) -> int:
        """The descriptor that came with the last message; the caller closes it. Raises SlotError without one."""
        if not self._descriptors:
            raise SlotError("a frame's memory was announced and did not come")
        return self._descriptors.pop(0)

    def hang_up(self) -> None:
        """End the conversation: whoever waits here or there, in whatever thread, gets ChannelClosed."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end, and what came and nobody took."""
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _complete(self) -> Message | None:
        if len(self._bytes) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._bytes)
        if length > _LONGEST_MESSAGE:
            raise ChannelClosed(f"a message of {length} bytes is none of ours")
        end = _LENGTH.size + length
        if len(self._bytes) < end:
            return None
        text = bytes(self._bytes[_LENGTH.size : end])
        del self._bytes[:end]
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise ChannelClosed("the message is no JSON") from exc
        if not isinstance(message, dict):
            raise ChannelClosed("the message is no JSON object")
        return message


class SlotWriter:
    """The camera's side of the memory. A larger frame gets a new memory; the old one is given back."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def write(self, seq: int, frame: Frame, numbered_from: int = 0) -> int | None:
        """Put the frame in as the answer to request `seq`, its number raised by `numbered_from`. Returns the
        descriptor of a new memory, which the caller sends and closes; None when the one already sent serves."""
        needed = _PIXELS_AT + frame.pixels.nbytes
        descriptor = None
        if self._memory is None or len(self._memory) < needed:
            descriptor, self._memory = _new_memory(needed)
        memory = self._memory
        head = memory[: _HEADER.size + _CRC.size]
        memory[: len(head)] = bytes(len(head))  # until all is written it is nobody's frame
        pixels = np.frombuffer(memory, np.uint8, frame.pixels.size, _PIXELS_AT)
        pixels.reshape(frame.pixels.shape)[...] = frame.pixels
        header = _packed(seq, frame, frame.frame_id + numbered_from)
        memory[: len(header)] = header
        return descriptor


class SlotReader:
    """The daemon's side of the memory."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def attach(self, descriptor: int) -> None:
        """Read from this memory from now on. Takes the descriptor over. Raises SlotError when it is not sealed: a
        memory that can shrink would end the daemon with SIGBUS."""
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise SlotError("the frame's memory is not sealed")
            size = os.fstat(descriptor).st_size
            if size < _PIXELS_AT:
                raise SlotError(f"the frame's memory has only {size} bytes")
            self.close()
            self._memory = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
        except OSError as exc:
            raise SlotError(f"the frame's memory cannot be mapped: {exc}") from exc
        finally:
            os.close(descriptor)

    def read(self, seq: int, camera: str) -> Frame:
        """A copy of the frame that answers request `seq`. Raises SlotError when the slot holds anything else, or was
        written to meanwhile."""
        memory = self._memory
        if memory is None:
            raise SlotError("a frame was announced, but no memory ever came")
        header = memory[: _HEADER.size + _CRC.size]
        frame = _unpacked(header, seq, camera, memory)
        if memory[: len(header)] != header:
            raise SlotError("the slot changed while it was read")
        return frame

    def close(self) -> None:
        """Give the memory back."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _new_memory(needed: int) -> tuple[int, mmap.mmap]:
    size = -(-needed // mmap.PAGESIZE) * mmap.PAGESIZE
    descriptor = os.memfd_create("camera-frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor, mmap.mmap(descriptor, size)


def _packed(seq: int, frame: Frame, frame_id: int) -> bytes:
    height, width = frame.pixels.shape[:2]
    flags = (
        _HAS_DEVICE_ID * (frame.device_frame_id is not None)
        | _HAS_DEVICE_NS * (frame.device_ns is not None)
        | _HAS_EXPOSED * (frame.exposed_ns is not None)
    )
    header = _HEADER.pack(
        _MAGIC,
        seq,
        frame_id,
        height,
        width,
        0 if frame.pixels.ndim == 2 else frame.pixels.shape[2],
        flags,
        _QUALITIES.index(frame.clock_quality),
        frame.arrived_ns,
        frame.device_frame_id or 0,
        frame.device_ns or 0,
        frame.exposed_ns or 0,
        frame.exposed_uncertainty_ns,
    )
    return header + _CRC.pack(zlib.crc32(header))


def _unpacked(raw: bytes, seq: int, camera: str, memory: mmap.mmap) -> Frame:
    header, crc = raw[: _HEADER.size], raw[_HEADER.size :]
    if _CRC.unpack(crc)[0] != zlib.crc32(header):
        raise SlotError("the slot is not completely written")
    magic, found, frame_id, height, width, channels, flags, quality, arrived, *device = _HEADER.unpack(header)
    if magic != _MAGIC or found != seq:
        raise SlotError(f"the slot holds the answer to request {found}, not to {seq}")
    shape = (height, width) if channels == 0 else (height, width, channels)
    count = height * width * max(channels, 1)
    if channels not in (0, 3) or count == 0 or _PIXELS_AT + count > len(memory) or quality >= len(_QUALITIES):
        raise SlotError(f"the slot's picture of {shape} does not fit into its memory")
    device_id, device_ns, exposed_ns, uncertainty_ns = device
    return Frame(
        camera,
        frame_id,
        np.frombuffer(memory, np.uint8, count, _PIXELS_AT).reshape(shape).copy(),
        arrived,
        device_id if flags & _HAS_DEVICE_ID else None,
        device_ns if flags & _HAS_DEVICE_NS else None,
        exposed_ns if flags & _HAS_EXPOSED else None,
        uncertainty_ns,
        _QUALITIES[quality],
    )
