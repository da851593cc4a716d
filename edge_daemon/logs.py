"""Where log lines go: to the systemd journal with fields to search by, or to standard error for people.

    log.warning("trigger %s: failed", id, extra=fields(station="st1", trigger_id=id))

makes `journalctl -u edge-daemon STATION=st1 TRIGGER_ID=4711` find that line. Writing never waits: what the journal does
not take at once goes with the next line; a thousand lines are kept, the oldest are dropped, counted and told.
"""

import array
import fcntl
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, TextIO

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
# Priorities of syslog(3).
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
_EXTRA: Final = "journal_fields"
_WAITING: Final = 1_000
# Less than any buffer of a datagram socket: what is not taken, although it is shorter, is not too long.
_SURELY_FITS_BYTES: Final = 65_536


def fields(**values: str | int) -> dict[str, Any]:
    """For `extra=` of a log call: fields of the line by name, `station`, `trigger_id`, …; empty ones are left out."""
    return {_EXTRA: {name.upper(): value for name, value in values.items() if value != ""}}


def start(program: str, environ: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Log to the journal when standard error goes there, for people with the time otherwise.

    program: SYSLOG_IDENTIFIER of its lines.
    """
    stream = stream or sys.stderr
    handler: logging.Handler
    if _is_journal(stream, environ.get("JOURNAL_STREAM", "")):
        handler = JournalHandler(program)
    else:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _is_journal(stream: TextIO, journal_stream: str) -> bool:
    """Whether the stream is the one that JOURNAL_STREAM names, DEVICE:INODE: a child may have redirected it."""
    try:
        stat = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return journal_stream == f"{stat.st_dev}:{stat.st_ino}"


class JournalHandler(logging.Handler):
    """Writes the native protocol of journald (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/)."""

    def __init__(self, program: str, address: str = JOURNAL_SOCKET) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))  # or basicConfig gives it one that repeats the fields
        self._program = program
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._waiting: deque[bytes] = deque()
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.append(_datagram({"MESSAGE": self.format(record), **self._fields_of(record)}))
            if len(self._waiting) > _WAITING:
                self._waiting.popleft()
                self._dropped += 1
            self._write()
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _write(self) -> None:
        try:
            while self._waiting:
                self._send(self._waiting[0])
                self._waiting.popleft()
            if self._dropped:
                text = f"{self._dropped} lines are missing before this one: the system's journal did not take them"
                self._send(_datagram({"MESSAGE": text, "PRIORITY": 4, "SYSLOG_IDENTIFIER": self._program}))
                self._dropped = 0
        except OSError:
            return  # busy, or being restarted

    def _fields_of(self, record: logging.LogRecord) -> dict[str, str | int]:
        own = getattr(record, _EXTRA, {})
        return {
            "PRIORITY": next(priority for level, priority in _PRIORITIES if record.levelno >= level),
            "SYSLOG_IDENTIFIER": self._program,
            "LOGGER": record.name,
            "THREAD_NAME": record.threadName or "",
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName or "",
            **own,
        }

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, self._address)
        except OSError as error:
            # EMSGSIZE and ENOBUFS alike: the datagram is larger than the socket's buffer.
            if len(data) < _SURELY_FITS_BYTES or isinstance(error, BlockingIOError):
                raise
            self._send_as_file(data)

    def _send_as_file(self, data: bytes) -> None:
        """What no datagram holds goes as a sealed file in memory, its descriptor in an empty datagram."""
        memory = os.memfd_create("journal-entry", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(memory), "wb") as file:
                file.write(data)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
            descriptor = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))]
            self._socket.sendmsg([], descriptor, 0, self._address)
        finally:
            os.close(memory)


def _datagram(entry: Mapping[str, str | int]) -> bytes:
    """`NAME=value` lines; a value of several lines with its length, 64 bit little-endian, before it."""
    out = bytearray()
    for name, value in entry.items():
        data = str(value).encode("utf-8", "replace")
        if b"\n" in data:
            out += name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        else:
            out += name.encode() + b"=" + data + b"\n"
    return bytes(out)
