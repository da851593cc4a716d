"""The input line of a simulated camera: each datagram on a Unix socket is one pulse."""

import contextlib
import os
import select
import socket
from dataclasses import dataclass
from pathlib import Path

from edge_daemon.errors import CameraError

# A wait is cut into pieces, so that a camera that is closed meanwhile lets go.
_SLICE_S = 0.05
_LARGEST_BYTES = 64


@dataclass(frozen=True, slots=True)
class Pulse:
    """One pulse: the index of the part that lies under the camera, and when it was given (monotonic nanoseconds, None
    for when it was read)."""

    part: int
    at_ns: int | None


class Pulses:
    """Pulses that were given while the camera was open; those before and after are lost, as on a wire."""

    def __init__(self, camera: str, path: Path) -> None:
        self._camera = camera
        self._path = path
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Raises CameraError when the socket cannot be made."""
        self.close()
        line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            line.bind(str(self._path))
        except OSError as error:
            line.close()
            raise CameraError(
                f"camera {self._camera}: no pulses can be taken at {self._path}: {error.strerror or error}; name a "
                "path of at most 107 bytes in a folder that is writable"
            ) from error
        self._socket = line

    def close(self) -> None:
        """Never raises."""
        line, self._socket = self._socket, None
        if line is not None:
            line.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def next(self, timeout_s: float) -> Pulse | None:
        """The next pulse, None when none came within the timeout, or within a twentieth of a second. Raises CameraError
        for a datagram that is no pulse."""
        line = self._socket
        if line is None:
            return None
        try:
            if not select.select([line], [], [], max(0.0, min(timeout_s, _SLICE_S)))[0]:
                return None
            text = line.recv(_LARGEST_BYTES)
        except (OSError, ValueError):
            return None  # closed meanwhile, by another thread
        part, _, at_ns = text.partition(b" ")
        if part.isdigit() and (not at_ns or at_ns.isdigit()):
            return Pulse(int(part), int(at_ns) if at_ns else None)
        raise CameraError(f"camera {self._camera}: {text!r} is no pulse; send INDEX or INDEX NANOSECONDS")
