"""The real clocks, with what the kernel knows of their quality."""

import ctypes
import os
import time
from datetime import UTC, datetime

from edge_daemon.core.clock import UtcAnchor

_STA_UNSYNC = 0x0040
_CHECK_EVERY_NS = 5_000_000_000


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2), as far as it is read here; the tail is padding."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("_rest", ctypes.c_byte * 256),
    )


def kernel_clock_quality() -> tuple[str, int]:
    """(`ntp`, `unsynchronised` or `unknown`; largest error in µs) as the kernel states it (adjtimex, read only)."""
    try:
        timex = _Timex()
        if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0:
            return "unknown", 1_000_000
    except (OSError, AttributeError):
        return "unknown", 1_000_000
    if timex.status & _STA_UNSYNC:
        return "unsynchronised", max(int(timex.maxerror), 1_000_000)
    return "ntp", int(timex.maxerror)


class SystemClock:
    """The clocks of this PC; the quality of UTC is asked of the kernel every five seconds."""

    def __init__(self) -> None:
        self._checked_ns = -_CHECK_EVERY_NS
        self._quality = ("unknown", 1_000_000)

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def utc(self) -> UtcAnchor:
        now = time.monotonic_ns()
        if now - self._checked_ns >= _CHECK_EVERY_NS:
            self._checked_ns = now
            self._quality = kernel_clock_quality() if os.name == "posix" else self._quality
        text = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return UtcAnchor(text, self._quality[1], self._quality[0])
