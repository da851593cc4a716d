"""What systemd is told: ready, alive, what goes on. Without systemd nothing is said, and nothing fails.

The protocol is one datagram of `VARIABLE=value` lines to the socket that NOTIFY_SOCKET names (sd_notify(3)).
"""

import os
import socket
from collections.abc import MutableMapping
from typing import Final

# A status line is for `systemctl status`: one line of a terminal or two.
_STATUS_CHARACTERS: Final = 300
_STATUS_GAP_NS: Final = 1_000_000_000
# The watchdog is fed four times in its period, so that one feed may be lost or late.
_FEEDS_PER_PERIOD: Final = 4
_FEED: Final = "WATCHDOG=1"


class Notifier:
    """Tells the service manager, from one thread. Never waits: what its socket does not take goes out with the next
    call; a feed of the watchdog does not, since it would speak for a time that is over.

    address: path of the socket, or `@name` of an abstract one; None when nobody listens. watchdog_us: WATCHDOG_USEC of
    the unit, 0 for no watchdog.
    """

    def __init__(self, address: str | None, watchdog_us: int = 0) -> None:
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self._watchdog_us = watchdog_us if address else 0
        self._socket: socket.socket | None = None
        self._unsent: list[str] = []
        self._told_status, self._status_ns = "", 0
        self._fed_count, self._fed_ns = 0, 0

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> "Notifier":
        """As systemd started this process. The variables are taken out: a child must not speak for its parent."""
        address = environ.pop("NOTIFY_SOCKET", "")
        period, pid = environ.pop("WATCHDOG_USEC", "0"), environ.pop("WATCHDOG_PID", "")
        mine = pid in ("", str(os.getpid()))
        known = address.startswith(("/", "@"))
        return cls(address if known else None, int(period) if mine and period.isascii() and period.isdigit() else 0)

    @property
    def watchdog_ns(self) -> int:
        """The watchdog's period, 0 for none."""
        return self._watchdog_us * 1000

    def ready(self) -> None:
        """Started, or reloaded: systemd goes on with what waited for this service, and the watchdog begins."""
        self._send("READY=1")

    def reloading(self, now_ns: int) -> None:
        """What was configured is read anew; `ready` ends it. now_ns: CLOCK_MONOTONIC."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_ns // 1000}")

    def stopping(self, longest_s: float) -> None:
        """The clean stop has begun, and takes longest_s at most."""
        self._send("STOPPING=1", _extension(longest_s))

    def busy_starting(self, longest_s: float) -> None:
        """The start goes on: not ready within longest_s from now counts as failed."""
        self._send(_extension(longest_s))

    def allow(self, longest_ns: int) -> None:
        """Lengthen the watchdog's period to at least this; it is never shortened."""
        if 0 < self.watchdog_ns < longest_ns:
            self._watchdog_us = longest_ns // 1000
            self._send(f"WATCHDOG_USEC={self._watchdog_us}")

    def status(self, text: str, now_ns: int) -> None:
        """The line that `systemctl status` shows; sent when it is another one, and not more than once a second."""
        if text != self._told_status and (now_ns - self._status_ns >= _STATUS_GAP_NS or not self._told_status):
            self._told_status, self._status_ns = text, now_ns
            line = " ".join(text.split())
            self._send("STATUS=" + (line if len(line) <= _STATUS_CHARACTERS else line[: _STATUS_CHARACTERS - 1] + "…"))

    def feed(self, passes: int, now_ns: int) -> None:
        """Feed the watchdog, if `passes` (what has gone all the way through the inspection so far) is another number
        than when it was last fed. Only that keeps it quiet: there is no other way to feed it."""
        if self._unsent:
            self._send()
        if not self._watchdog_us or passes == self._fed_count:
            return
        if now_ns - self._fed_ns >= self.watchdog_ns // _FEEDS_PER_PERIOD:
            self._fed_count, self._fed_ns = passes, now_ns
            self._send(_FEED)

    def close(self) -> None:
        """May be called twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        said = [line for line in self._unsent if line not in lines] + list(lines)
        self._unsent = [line for line in said if line != _FEED]
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.sendto("\n".join(said).encode(), self._address)
        except OSError:  # systemd is busy, or restarts itself: said with the next call
            return
        self._unsent = []


def _extension(longest_s: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int(longest_s * 1e6)}"
